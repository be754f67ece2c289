# SPDX-License-Identifier: Apache-2.0
"""The demo's result as bars on a terminal and as a PNG."""

from collections import Counter
from pathlib import Path

import matplotlib
from rich.table import Table

from ..timing import Run, rate

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402  once the canvas is chosen

Results = dict[tuple[str, float], list[dict[str, Run]]]  # by prompt and temperature; one entry a round
DRAFTERS = ("chain", "tree", "learned")
WIDTH = 40  # characters of the longest bar


def speedups(results: Results, temperature: float) -> dict[str, dict[str, float]]:
    """By way and prompt, tokens per second in units of plain decoding's."""
    ratios: dict[str, dict[str, float]] = {}
    for (name, other), rounds in results.items():
        if other != temperature:
            continue
        rates = {way: rate([runs[way] for runs in rounds]) for way in rounds[0]}
        for way in rates:
            if way != "plain":
                ratios.setdefault(way, {})[name] = rates[way] / rates["plain"]
    return ratios


def bars(results: Results) -> Table:
    """Speed-up of the best way of each prompt and temperature."""
    table = Table(box=None, pad_edge=False, show_header=False)
    best = {}
    for temperature in dict.fromkeys(temperature for _, temperature in results):
        ratios = speedups(results, temperature)
        for name in next(iter(ratios.values())):
            best[name, temperature] = max((ratios[way][name], way) for way in ratios)
    longest = max(ratio for ratio, _ in best.values())
    for (name, temperature), (ratio, way) in best.items():
        law = f"{temperature:g}" if temperature else "greedy"
        bar = "█" * max(round(ratio / longest * WIDTH), 1)
        table.add_row(name, law, f"[green]{bar}[/green] {ratio:.2f}x ({way})")
    return table


def draw(results: Results, path: Path) -> None:
    """Four panels: speed-up by prompt, tokens of a step, acceptance by depth, speed-up by rule."""
    temperatures = list(dict.fromkeys(temperature for _, temperature in results))
    figure, panels = pyplot.subplots(2, 2, figsize=(13, 9), layout="constrained")
    _speed_by_prompt(panels[0, 0], results, temperatures[0])
    _step_lengths(panels[0, 1], results, temperatures)
    _by_depth(panels[1, 0], results, temperatures)
    _by_rule(panels[1, 1], results, temperatures)
    figure.suptitle("SmolLM2-135M-Instruct, one request, against plain decoding")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _law(temperature: float) -> str:
    return f"temperature {temperature:g}" if temperature else "greedy"


def _grouped(panel, groups: dict[str, dict[str, float]]) -> None:
    names = list(next(iter(groups.values())))
    width = 0.8 / len(groups)
    for place, (label, values) in enumerate(groups.items()):
        offsets = [index + (place - (len(groups) - 1) / 2) * width for index in range(len(names))]
        panel.bar(offsets, [values.get(name, 0.0) for name in names], width, label=label)
    panel.set_xticks(range(len(names)), names, rotation=30, ha="right")
    panel.legend()


def _speed_by_prompt(panel, results: Results, temperature: float) -> None:
    _grouped(panel, speedups(results, temperature))
    panel.axhline(1.0, color="black", linewidth=0.8)
    panel.set_title(f"Tokens per second, in units of plain decoding's ({_law(temperature)})")


def _step_lengths(panel, results: Results, temperatures: list[float]) -> None:
    groups = {}
    for temperature in temperatures:
        counts = Counter(
            len(each.tokens) - 1
            for (_, other), rounds in results.items()
            if other == temperature
            for step in rounds[0]["learned"].steps
            for each in step
        )
        total = sum(counts.values())
        longest = max(counts)
        groups[_law(temperature)] = {str(n): counts[n] / total for n in range(longest + 1)}
    _grouped(panel, dict(sorted(groups.items(), key=lambda item: -len(item[1]))))
    panel.set_title("Accepted tokens of a step (learned): share of steps")


def _by_depth(panel, results: Results, temperatures: list[float]) -> None:
    for temperature in temperatures:
        for way in ("tree", "learned"):
            stats = [
                rounds[0][way].engine.verifier.statistics()
                for (_, other), rounds in results.items()
                if other == temperature
            ]
            tested = [sum(places) for places in zip(*(each.tested for each in stats), strict=True)]
            accepted = [sum(places) for places in zip(*(each.accepted for each in stats), strict=True)]
            rates = [a / t for a, t in zip(accepted, tested, strict=True) if t]
            panel.plot(range(1, len(rates) + 1), rates, marker="o", label=f"{way}, {_law(temperature)}")
    panel.set_ylim(0, 1.02)
    panel.set_xlabel("depth")
    panel.legend(loc="lower right")
    panel.set_title("Accepted where a draft of that depth was tested")


def _by_rule(panel, results: Results, temperatures: list[float]) -> None:
    groups = {}
    for temperature in temperatures:
        ratios = speedups(results, temperature)
        whole = {way: sum(values.values()) / len(values) for way, values in ratios.items()}
        groups[_law(temperature)] = {
            **{f"{way}, match": whole[way] for way in DRAFTERS},
            **{f"learned, {way}": value for way, value in whole.items() if way not in DRAFTERS},
        }
    _grouped(panel, dict(sorted(groups.items(), key=lambda item: -len(item[1]))))
    panel.axhline(1.0, color="black", linewidth=0.8)
    panel.set_title("Mean speed-up over the prompts, by drafter and rule")
