# SPDX-License-Identifier: Apache-2.0
"""The demo from beginning to end: prompts alone and, in full, all of them in one queue."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.text import Text

import specdec_kernels as sdk
from specdec_kernels.cli.machine import processor

from .drafters.ngrams import Ngrams
from .files import Refused
from .fit import LENGTHS, ROUNDS, Schedule, answer_length
from .llama import Llama, Shape
from .report import tables
from .report.answers import ACCEPTED, Answer, lines, texts
from .report.figures import Results, label, write_json
from .smollm import SmolLM, load
from .timing import PAGE_SIZE, ROWS, race, step_costs
from .transformers_loop import Generation, generate
from .ways import DRAFTERS, MAX_NODES, PLAIN, RULES, ways

NUM_DRAFT = 10  # of transformers' prompt lookup


def run(
    prompts: Mapping[str, str],
    *,
    temperatures: Sequence[float],
    max_new_tokens: int | None,
    rounds: int | None,
    seed: int,
    picture: Path,
    json: Path | None,
    full: bool,
    end: float,
) -> int:
    """Show every prompt at every temperature. Returns the exit status: 1 where a text differs.

    Answers are as long, and rounds as many, as fit before `end`, a time of `time.perf_counter`.
    """
    if picture.suffix not in ("", ".png"):
        _chart().check_format(picture)
    color = None if os.environ.get("NO_COLOR") else "auto"
    width = None if sys.stdout.isatty() else 110
    console = Console(color_system=color, highlight=False, markup=False, emoji=False, width=width)
    schedule = Schedule(end)
    demo = Demo(console, load(), prompts, max_new_tokens, seed, full, schedule)
    demo.introduce()
    demo.decode_alone(temperatures, rounds or (1 if full else ROUNDS))
    if full:
        demo.compare_with_transformers(temperatures)
    demo.summarise(temperatures)
    _chart().draw(demo.results, picture, demo.facts, full)
    console.print(f"\nThe same as a picture: {picture}", soft_wrap=True)
    if full:
        demo.decode_together(temperatures, rounds or 1)
    else:
        console.print(
            "This was the short form. --full takes 10 to 15 minutes, and adds the other prompts,\n"
            "temperature 0.7, other drafters and rules, transformers' own loop, and a batch of all prompts."
        )
    if json is not None:
        write_json(demo.results, json, partial(texts, demo.lm.tokenizer), demo.costs, demo.facts)
    if demo.differing:
        found = ", ".join(demo.differing)
        console.print(f"The text is not that of plain decoding: {found}", style="bold red")
    return 1 if demo.differing else 0


def _chart() -> ModuleType:
    """With matplotlib, whose import would keep the first text waiting."""
    from .report import chart

    return chart


class Demo:
    """Decodes prompts, prints what came and keeps what was measured."""

    def __init__(
        self,
        console: Console,
        lm: SmolLM,
        prompts: Mapping[str, str],
        max_new_tokens: int | None,
        seed: int,
        full: bool,
        schedule: Schedule,
    ):
        self.console = console
        self.lm = lm
        self.prompts = prompts
        self.encoded = {name: lm.encode_chat(message) for name, message in prompts.items()}
        self.max_new_tokens = max_new_tokens or max(LENGTHS)
        self.seed = seed
        self.full = full
        self.schedule = schedule
        shape = Shape.of(lm.model.config)
        for name, prompt in self.encoded.items():
            if len(prompt) + self.max_new_tokens + MAX_NODES > shape.max_positions:
                raise Refused(
                    f"{name} is too long: {len(prompt)} tokens, and {self.max_new_tokens} to write, "
                    f"of {shape.max_positions} that the model can hold"
                )
        self.model = Llama(shape, lm.model.state_dict())
        # One text has no more rows than a tree; the first text is not to wait for the others.
        self.sizes = ROWS if full else [rows for rows in ROWS if rows <= MAX_NODES]
        self.curve = step_costs(self.model, 5 if full else 2, self.sizes)
        self.costs = self.curve.costs()  # before they change with the machine's load
        if max_new_tokens is None:
            answers = len(prompts) * (1 + len(self.drafters))
            self.max_new_tokens = answer_length(schedule.left(), self.curve.seconds(1), answers)
        self.ways = ways(Ngrams.load(), self.curve)
        self.results = Results()
        self.by_transformers: dict[str, Generation] = {}  # with its prompt lookup, greedy
        self.differing: list[str] = []  # whose text is not the one that it has to be
        self.facts: dict[str, Any] = {
            "model": "SmolLM2-135M-Instruct, float32",
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "tokens": self.max_new_tokens,
        }

    @property
    def drafters(self) -> Sequence[str]:
        return DRAFTERS if self.full else DRAFTERS[-1:]

    def introduce(self) -> None:
        cost = sdk.Budget(self.curve.costs()).cost
        costs = ", ".join(f"{rows}: {cost(rows):.2f}" for rows in self.sizes[1:])
        lookup = "n-grams of the text so far, and of a table of the model's other answers"
        drafted = f"Drafts come from {lookup}."
        last = [f"Greedy, {self.max_new_tokens} tokens an answer, what fits into three minutes here."]
        if self.full:
            drafted = f"chain and tree look drafts up in the text so far; {DRAFTERS[-1]} in {lookup}."
            last = [
                "Rates are tokens per second after the prompt, and their ratio to plain decoding's.",
                f"The last column is transformers {transformers.__version__}'s own loop, which looks "
                f"{NUM_DRAFT} tokens up.",
            ]
        lines(
            self.console,
            "{model}, on {processor}, of which {threads} are used; torch {torch}".format_map(self.facts),
            "Plain decoding writes one token in a step, which is one forward pass of the model.",
            "A step with a draft reads all its tokens in one pass and writes the accepted ones and the next.",
            drafted,
            Text.assemble("The text is shown as it comes, the ", ("accepted tokens", ACCEPTED), " coloured."),
            f"A step over n rows costs, in steps over one: {costs}.",
            "Plain decoding and drafts run in the same engine, in turn, step by step.",
            *last,
        )
        load, cores = os.getloadavg()[0], os.cpu_count() or 1
        if load > cores:
            busy = f"Other processes use this machine (load {load:.0f}, {cores} cores): times are uncertain."
            self.console.print(busy, style="bold")

    def decode_alone(self, temperatures: Sequence[float], rounds: int) -> None:
        keys = [(name, temperature) for name in self.prompts for temperature in temperatures]
        for number, (name, temperature) in self.schedule.rounds(keys, rounds):
            shown = None
            if number == 0:
                if temperature == temperatures[0]:
                    self.console.rule(Text(name, "bold"))
                    self.console.print(Text(self.prompts[name], "dim"), soft_wrap=True)
                self.console.print(Text(f"\n{label(temperature)}:", "bold"))
                shown = Answer(self.console, self.lm.tokenizer)
            elif (name, temperature) == keys[0]:
                self.console.rule(Text(f"round {number + 1} of at most {rounds}, not shown", "bold"))
            # Where something is left to chance, other rules write other texts of the same law.
            rules = RULES if self.full and temperature > 0 else ()
            compared = {way: self.ways[way] for way in (PLAIN, *self.drafters, *rules)}
            request = self._request(name, temperature)
            found = race(self.model, self.lm.eos_id, compared, [request], 1, shown)
            self.results.single.setdefault((name, temperature), []).append(found)
        for (name, temperature), races in self.results.single.items():
            text = self.results.text(name, temperature)
            self.differing += [
                f"{name} at {temperature:g} ({way})"
                for way in self.drafters
                if any(run[way].texts != [text] for run in races)
            ]

    def compare_with_transformers(self, temperatures: Sequence[float]) -> None:
        self.console.rule(Text("transformers' own loop, not shown", "bold"))
        for name, prompt in self.encoded.items():
            greedy = generate(self.lm, prompt, self.max_new_tokens)
            self.by_transformers[name] = generate(self.lm, prompt, self.max_new_tokens, NUM_DRAFT)
            if 0 in temperatures and self.results.text(name, 0) != greedy.tokens:
                self.differing.append(f"{name} (transformers)")

    def summarise(self, temperatures: Sequence[float]) -> None:
        self.console.rule(Text("summary", "bold"))
        if not self.full:
            left_out = [name for name in self.prompts if (name, temperatures[-1]) not in self.results.single]
            if left_out:
                self.console.print(f"Left out for want of time: {', '.join(left_out)}.")
            same = "no" if self.differing else "yes"
            self.console.print("Tokens per second after the prompt, from the median time of the rounds.\n")
            self.console.print(tables.plain_and_drafted(self.results))
            self.console.print(f"\nEvery text is that of plain decoding, token for token: {same}.")
            return
        for temperature in temperatures:
            peer = {name: found.rate for name, found in self.by_transformers.items()}
            self.console.print(
                tables.rates_by_prompt(self.results, temperature, peer if temperature == 0 else {})
            )
            self.console.print()
        self.console.print(tables.bars(self.results))

    def decode_together(self, temperatures: Sequence[float], rounds: int) -> None:
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
        compared = {way: self.ways[way] for way in (PLAIN, *self.drafters)}
        self.results.together = [
            race(self.model, self.lm.eos_id, compared, requests, len(self.prompts)) for _ in range(rounds)
        ]
        alone = [self.results.text(*key) for key in keys]
        same = [
            all(run.texts[place] == text for runs in self.results.together for run in runs.values())
            for place, text in enumerate(alone)
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
