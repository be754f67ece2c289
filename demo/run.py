# SPDX-License-Identifier: Apache-2.0
"""The demo from beginning to end: every prompt alone, then all of them in one queue."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.text import Text

import specdec_kernels as sdk

from .drafters.ngrams import Ngrams
from .files import Refused
from .llama import Llama, Shape
from .report import chart, tables
from .report.answers import ACCEPTED, Answer, lines
from .report.figures import Results, label, write_json
from .smollm import SmolLM, load
from .timing import PAGE_SIZE, ROWS, race, step_costs
from .transformers_loop import Generation, generate
from .ways import DRAFTERS, MAX_NODES, ways

NUM_DRAFT = 10  # of transformers' prompt lookup


def run(
    prompts: Mapping[str, str],
    *,
    temperatures: Sequence[float],
    max_new_tokens: int,
    rounds: int,
    seed: int,
    picture: Path,
    json: Path | None,
) -> int:
    """Show every prompt at every temperature. Returns the exit status: 1 where a text differs."""
    chart.check_format(picture)
    color = None if os.environ.get("NO_COLOR") else "auto"
    width = None if sys.stdout.isatty() else 110
    console = Console(color_system=color, highlight=False, markup=False, emoji=False, width=width)
    demo = Demo(console, load(), prompts, max_new_tokens, rounds, seed)
    demo.introduce()
    for name in prompts:
        demo.decode_alone(name, temperatures)
    demo.summarise(temperatures)
    chart.draw(demo.results, picture)
    console.print(f"\nThe same as a picture, with acceptance by depth and by rule: {picture}", soft_wrap=True)
    demo.decode_together(temperatures)
    if json is not None:
        write_json(demo.results, json)
    if demo.differing:
        found = ", ".join(demo.differing)
        console.print(f"The text is not that of plain decoding: {found}", style="bold red")
    return 1 if demo.differing else 0


class Demo:
    """Decodes prompts, prints what came and keeps what was measured."""

    def __init__(
        self,
        console: Console,
        lm: SmolLM,
        prompts: Mapping[str, str],
        max_new_tokens: int,
        rounds: int,
        seed: int,
    ):
        self.console = console
        self.lm = lm
        self.prompts = prompts
        self.encoded = {name: lm.encode_chat(message) for name, message in prompts.items()}
        self.max_new_tokens = max_new_tokens
        self.rounds = rounds
        self.seed = seed
        shape = Shape.of(lm.model.config)
        for name, prompt in self.encoded.items():
            if len(prompt) + max_new_tokens + MAX_NODES > shape.max_positions:
                raise Refused(
                    f"{name} is too long: {len(prompt)} tokens, and {max_new_tokens} to write, "
                    f"of {shape.max_positions} that the model can hold"
                )
        self.model = Llama(shape, lm.model.state_dict())
        self.curve = step_costs(self.model)
        self.table = Ngrams.load()
        self.results = Results()
        self.by_transformers: dict[str, Generation] = {}  # with its prompt lookup, greedy
        self.differing: list[str] = []  # whose text is not the one that it has to be

    def introduce(self) -> None:
        cost = sdk.Budget(self.curve.costs()).cost
        costs = ", ".join(f"{rows}: {cost(rows):.2f}" for rows in ROWS[1:])
        lines(
            self.console,
            f"SmolLM2-135M-Instruct, float32, torch {torch.__version__}, {torch.get_num_threads()} threads",
            "chain and tree look drafts up in the text so far; learned adds n-grams of the model's other "
            "answers.",
            Text.assemble("Its text is shown, the ", ("accepted tokens", ACCEPTED), " coloured."),
            f"A step over n rows costs, in steps over one: {costs}.",
            "Plain decoding and all drafters run in the same engine, in turn, token by token.",
            "Rates are tokens per second after the prompt and, in brackets, their ratio to plain decoding's.",
            f"The last column is transformers {transformers.__version__}'s own loop with prompt lookup of "
            f"{NUM_DRAFT} tokens.",
        )

    def decode_alone(self, name: str, temperatures: Sequence[float]) -> None:
        self.console.rule(Text(name, "bold"))
        self.console.print(Text(self.prompts[name], "dim"), soft_wrap=True)
        for temperature in temperatures:
            self.console.print(Text(f"\n{label(temperature)}:", "bold"))
            # Where something is left to chance, other rules write other texts of the same law.
            races = []
            for number in range(self.rounds):
                compared = ways(self.table, self.curve, rules=temperature > 0)
                shown = Answer(self.console, self.lm.tokenizer) if number == 0 else None
                requests = [self._request(name, temperature)]
                races.append(race(self.model, self.lm.eos_id, compared, requests, 1, shown))
            self.results.single[name, temperature] = races
            text = self.results.text(name, temperature)
            self.differing += [
                f"{name} at {temperature:g} ({way})"
                for way in DRAFTERS
                if any(run[way].texts != [text] for run in races)
            ]
        greedy = generate(self.lm, self.encoded[name], self.max_new_tokens)
        self.by_transformers[name] = generate(self.lm, self.encoded[name], self.max_new_tokens, NUM_DRAFT)
        if 0 in temperatures and self.results.text(name, 0) != greedy.tokens:
            self.differing.append(f"{name} (transformers)")

    def summarise(self, temperatures: Sequence[float]) -> None:
        self.console.rule(Text("summary", "bold"))
        for temperature in temperatures:
            peer = {name: found.rate for name, found in self.by_transformers.items()}
            self.console.print(
                tables.rates_by_prompt(self.results, temperature, peer if temperature == 0 else {})
            )
            self.console.print()
        self.console.print(tables.bars(self.results))

    def decode_together(self, temperatures: Sequence[float]) -> None:
        """The prompts at all temperatures in one queue, as many at once as there are prompts."""
        self.console.rule(Text("several prompts at once", "bold"))
        lines(
            self.console,
            f"Keys and values in pages of {PAGE_SIZE} slots; all prompts' trees in one forward.",
            "The likeliest nodes of all trees are drafted, while they are expected to pay.",
            "A text is identical where plain decoding and all drafters write what the prompt got alone.",
            "A text that is finished gives its pages back, and the next one in the queue joins.",
            "Rates are tokens per second of all prompts together, after reading them.\n",
        )
        keys = [(name, temperature) for temperature in sorted(set(temperatures)) for name in self.prompts]
        requests = [self._request(*key) for key in keys]
        self.results.together = [
            race(self.model, self.lm.eos_id, ways(self.table, self.curve), requests, len(self.prompts))
            for _ in range(self.rounds)
        ]
        texts = [self.results.text(*key) for key in keys]
        same = [
            all(run.texts[place] == text for runs in self.results.together for run in runs.values())
            for place, text in enumerate(texts)
        ]
        self.console.print(tables.texts_together(self.results, keys, same))
        self.console.print()
        self.console.print(tables.rates_together(self.results))
        # A batch may round the logits otherwise, which can move a sampled text without an error.
        greedy = [
            name for (name, temperature), found in zip(keys, same, strict=True) if not (temperature or found)
        ]
        self.differing += greedy

    def _request(self, name: str, temperature: float) -> dict[str, Any]:
        return {
            "prompt": self.encoded[name],
            "max_new_tokens": self.max_new_tokens,
            "temperature": temperature,
            "seed": self.seed,
        }
