# SPDX-License-Identifier: Apache-2.0
"""Tables on a terminal: rates of every prompt alone and of all together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from ..engine import Progress
from ..timing import Race, rates
from ..ways import DRAFTERS, PLAIN
from .figures import Results, label

BAR = 40  # characters of the longest bar


def rates_by_prompt(results: Results, temperature: float, transformers: Mapping[str, float]) -> Table:
    """A row for every prompt, and for all of them; `transformers` is a last column of rates."""
    rows = results.at(temperature)
    last = ["transformers"] if transformers else []
    table = _table(label(temperature), "tokens", *next(iter(rows.values()))[0], *last)

    def add(name: str, requests: Sequence[Sequence[Race]], peer: Sequence[str] = (), style: str = "") -> None:
        written = sum(races[0][PLAIN].written for races in requests)
        table.add_row(name, f"{written}", *_cells(rates(requests)), *peer, style=style)

    for name, races in rows.items():
        add(name, [races], [f"{transformers[name]:.1f}"] if transformers else [])
    if len(rows) > 1:
        add("all", list(rows.values()), style="bold")
    return table


def plain_and_drafted(results: Results) -> Table:
    """The short form's: plain decoding and one drafter, a row for every prompt and for all of them."""
    headings = "tokens", "rounds", "plain tok/s", "drafted tok/s", "speed-up", "tokens per step"
    table = _table("prompt", *headings)

    def add(name: str, requests: Sequence[Sequence[Race]], style: str = "") -> None:
        runs = [races[0][DRAFTERS[-1]] for races in requests]
        found = rates(requests)
        plain, drafted = found[PLAIN], found[DRAFTERS[-1]]
        written, steps = sum(run.written for run in runs), sum(len(run.steps) for run in runs)
        rounds = "-".join(f"{n}" for n in sorted({len(races) for races in requests}))
        figures = f"{plain:.1f}", f"{drafted:.1f}", f"{drafted / plain:.2f}x", f"{written / steps:.2f}"
        table.add_row(name, f"{written}", rounds, *figures, style=style)

    for (name, temperature), races in results.single.items():
        add(f"{name}, {label(temperature)}" if len(results.temperatures) > 1 else name, [races])
    if len(results.single) > 1:
        add("all", list(results.single.values()), "bold")
    return table


def texts_together(results: Results, keys: Sequence[tuple[str, float]], same: Sequence[bool]) -> Table:
    """A row for every request of the queue."""
    table = _table("prompt", "temp.", "tokens", "per step", "nodes", "identical")
    run = results.together[0][DRAFTERS[-1]]
    for request, (name, temperature), identical in zip(run.requests, keys, same, strict=True):
        steps = run.progress(request)
        tokens, nodes = _totals(steps)
        means = f"{tokens / len(steps):.2f}", f"{nodes / len(steps):.1f}"
        table.add_row(name, f"{temperature:g}", f"{tokens}", *means, "yes" if identical else "no")
    return table


def rates_together(results: Results) -> Table:
    """A row for every way."""
    table = _table("together", "tokens/s", "steps", "requests per step", "tokens", "nodes")
    found = rates([results.together])
    for way, run in results.together[0].items():
        progress = [progress for step in run.steps for progress in step]
        means = [f"{total / len(run.steps):.1f}" for total in (len(progress), *_totals(progress))]
        table.add_row(way, _with_ratio(found[way], found[PLAIN]), f"{len(run.steps)}", *means)
    return table


def bars(results: Results) -> Table:
    """Speed-up of the best way of each prompt and temperature."""
    table = Table(box=None, pad_edge=False, show_header=False)
    best = {}
    for temperature in results.temperatures:
        ratios = results.speedups(temperature)
        for name in results.at(temperature):
            best[name, temperature] = max((ratios[way][name], way) for way in ratios)
    longest = max(ratio for ratio, _ in best.values())
    for (name, temperature), (ratio, way) in best.items():
        bar = "█" * max(round(ratio / longest * BAR), 1)
        drawn = Text.assemble((bar, "green"), f" {ratio:.2f}x ({way})")
        table.add_row(name, f"{temperature:g}" if temperature else "greedy", drawn)
    return table


def _table(first: str, *others: str) -> Table:
    """Without lines, the first column to the left, the others to the right."""
    table = Table(box=None, header_style="dim", pad_edge=False, collapse_padding=True)
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _cells(found: Mapping[str, float]) -> list[str | Text]:
    """Plain decoding's rate, and those of the other ways with their ratio to it, the best in bold."""
    best = max(rate for way, rate in found.items() if way != PLAIN)
    cells: list[str | Text] = [f"{found[PLAIN]:.1f}"]
    for way, rate in found.items():
        if way != PLAIN:
            cells.append(Text(_with_ratio(rate, found[PLAIN]), "bold" if rate == best else ""))
    return cells


def _with_ratio(rate: float, plain: float) -> str:
    return f"{rate:.1f} ({rate / plain:.2f}x)"


def _totals(progress: Sequence[Progress]) -> tuple[int, int]:
    """Tokens and nodes."""
    return sum(len(part.tokens) for part in progress), sum(part.nodes for part in progress)
