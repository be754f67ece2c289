# SPDX-License-Identifier: Apache-2.0
"""The demo on a terminal: answers as they come, a table of rates, pictures, then all prompts at once."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tokenizers.decoders import DecodeStream

from .drafters.ngrams import Ngrams
from .engine import Progress
from .llama import Llama, Shape
from .report.chart import Results, bars, draw
from .report.tables import together
from .smollm import ModelUnavailable, SmolLM, load
from .timing import ROWS, Way, race, rate, step_costs, ways
from .transformers_loop import greedy

ACCEPTED = "bold green"
SHOWN = "learned"  # the way whose text is shown as it comes
NUM_DRAFT = 10  # of transformers' prompt lookup


def run(
    prompts: dict[str, str],
    temperatures: list[float],
    max_new_tokens: int,
    rounds: int,
    seed: int,
    picture: Path,
) -> int:
    """Show every prompt at every temperature. Returns the exit code: 1 where a greedy text differs."""
    color = None if os.environ.get("NO_COLOR") else "auto"
    console = Console(color_system=color, highlight=False, width=None if sys.stdout.isatty() else 110)
    try:
        lm = load()
    except ModelUnavailable as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    model = Llama(Shape.of(lm.model.config), lm.model.state_dict())
    costs, table = step_costs(model), Ngrams.load()
    _introduce(console, costs)

    results: Results = {}
    peers, broken = {}, []
    for name, message in prompts.items():
        console.rule(Text(name, "bold"))
        console.print(Text(message, "dim"), soft_wrap=True)
        prompt = lm.encode_chat(message)
        for temperature in temperatures:
            console.print(Text(f"\n{_law(temperature)}:", "bold"))
            request = dict(prompt=prompt, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
            runs = [
                race(model, lm.eos_id, _ways(table, costs, temperature), [request], 1, stream)
                for stream in [_Stream(console, lm)] + [_silent] * (rounds - 1)
            ]
            results[name, temperature] = runs
            plain = runs[0]["plain"].texts
            differing = [
                way for way in ("chain", "tree", "learned") if any(each[way].texts != plain for each in runs)
            ]
            broken += [f"{name} at {temperature:g} ({way})" for way in differing]
        theirs, _ = greedy(lm, prompt, max_new_tokens)
        peers[name] = greedy(lm, prompt, max_new_tokens, NUM_DRAFT)[1]
        if 0 in temperatures and results[name, 0][0]["plain"].texts != [theirs]:
            broken.append(f"{name} (transformers)")

    console.rule(Text("summary", "bold"))
    for temperature in temperatures:
        console.print(_summary(results, temperature, peers if temperature == 0 else {}))
        console.print()
    console.print(bars(results))
    draw(results, picture)
    console.print(f"\nThe same as a picture, with acceptance by depth and by rule: {picture}", soft_wrap=True)

    texts = {key: runs[0]["plain"].texts[0] for key, runs in results.items()}
    broken += together(console, lm, model, table, costs, prompts, texts, max_new_tokens, rounds, seed)
    if broken:
        console.print(f"The text is not that of plain decoding: {', '.join(broken)}", style="bold red")
    return 1 if broken else 0


def _ways(table: Ngrams, costs: Mapping[int, float], temperature: float) -> dict[str, Way]:
    """Where something is left to chance, one drafter is judged by the rules that only keep the law too."""
    found = ways(table, costs)
    if temperature:
        found |= {rule: Way(ways(table, costs)["learned"].draft, rule) for rule in ("token", "traversal")}
    return found


def _silent(way: str, progress: list[Progress]) -> None:
    pass


class _Stream:
    """Prints steps as text, accepted tokens in colour. A character split between tokens waits for its end."""

    def __init__(self, console: Console, lm: SmolLM):
        self.console = console
        self.tokenizer = lm.tokenizer
        self.decoder = DecodeStream(skip_special_tokens=True)

    def __call__(self, way: str, progress: list[Progress]) -> None:
        if way != SHOWN:
            return
        for each in progress:
            for place, token in enumerate(each.tokens):
                piece = self.decoder.step(self.tokenizer, token)
                if piece:
                    style = ACCEPTED if place < len(each.tokens) - 1 else ""
                    self.console.print(Text(piece, style), end="", soft_wrap=True)
            if not each.request.pages:  # it has left
                self.console.print()


def _introduce(console: Console, costs: Mapping[int, float]) -> None:
    def line(*parts):
        console.print(Text.assemble(*parts), soft_wrap=True)

    line(f"SmolLM2-135M-Instruct, float32, torch {torch.__version__}, {torch.get_num_threads()} threads")
    line(
        "chain and tree look drafts up in the text so far; learned adds n-grams of the model's other answers."
    )
    line("Its text is shown, the ", ("accepted tokens", ACCEPTED), " coloured.")
    shown = ", ".join(f"{rows}: {costs[rows]:.2f}" for rows in ROWS[1:])
    line(f"A step over n rows costs, in steps over one: {shown}.")
    line("Plain decoding and all drafters run in the same engine, in turn, token by token.")
    line("Rates are tokens per second after the prompt and, in brackets, their ratio to plain decoding's.")
    version = f"transformers {transformers.__version__}"
    line(f"The last column is {version}'s own loop with prompt lookup of {NUM_DRAFT} tokens.")


def _law(temperature: float) -> str:
    return f"temperature {temperature:g}" if temperature else "greedy"


def _summary(results: Results, temperature: float, peers: Mapping[str, float]) -> Table:
    rows = {name: runs for (name, other), runs in results.items() if other == temperature}
    ways = list(next(iter(rows.values()))[0])
    table = Table(box=None, header_style="dim", pad_edge=False, collapse_padding=True)
    table.add_column(_law(temperature), no_wrap=True)
    for heading in ("tokens", *ways, *(["transformers"] if peers else [])):
        table.add_column(heading, justify="right", no_wrap=True)

    def add(name, runs_of, theirs=None, **style):
        plain = rate(runs_of("plain"))
        cells = [f"{plain:.1f}"]
        rates = {way: rate(runs_of(way)) for way in ways[1:]}
        best = max(rates.values())
        for each in rates.values():
            cell = f"{each:.1f} ({each / plain:.2f}x)"
            cells.append(Text(cell, "bold" if each == best else ""))
        if theirs is not None:
            cells.append(f"{theirs:.1f}")
        written = sum(run.written for run in runs_of("plain")) // len(next(iter(rows.values())))
        table.add_row(name, f"{written}", *cells, **style)

    for name, runs in rows.items():
        add(name, lambda way, runs=runs: [each[way] for each in runs], peers.get(name))
    if len(rows) > 1:
        add("all", lambda way: [each[way] for runs in rows.values() for each in runs], style="bold")
    return table
