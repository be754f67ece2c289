# SPDX-License-Identifier: Apache-2.0
"""The demo's result as a picture."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import matplotlib

from ..files import Refused, cannot_write
from ..ways import DRAFTERS
from .figures import Results, label

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402  once the canvas is chosen
from matplotlib.axes import Axes  # noqa: E402

LAST = DRAFTERS[-1]


def check_format(path: Path) -> None:
    formats = sorted(pyplot.figure().canvas.get_supported_filetypes())
    pyplot.close()
    if path.suffix and path.suffix[1:].lower() not in formats:
        raise Refused(f"{str(path)!r} must end in one of {', '.join(formats)}")


def draw(results: Results, path: Path) -> None:
    """Four panels: speed-up by prompt, tokens of a step, acceptance by depth, speed-up by rule."""
    with matplotlib.rc_context({"text.parse_math": False}):  # dollars in names of prompts
        figure, panels = pyplot.subplots(2, 2, figsize=(13, 9), layout="constrained")
        _speed_by_prompt(panels[0, 0], results)
        _step_lengths(panels[0, 1], results)
        _by_depth(panels[1, 0], results)
        _by_rule(panels[1, 1], results)
        figure.suptitle("SmolLM2-135M-Instruct, one request, against plain decoding")
        try:
            figure.savefig(path, dpi=110, format=path.suffix[1:].lower() or "png")
        except OSError as error:
            raise cannot_write(path, error) from None
        finally:
            pyplot.close(figure)


def _grouped(panel: Axes, groups: dict[str, dict[str, float]]) -> None:
    names = list(next(iter(groups.values())))
    width = 0.8 / len(groups)
    for place, (heading, values) in enumerate(groups.items()):
        offsets = [index + (place - (len(groups) - 1) / 2) * width for index in range(len(names))]
        panel.bar(offsets, [values.get(name, 0.0) for name in names], width, label=heading)
    panel.set_xticks(range(len(names)), names, rotation=30, ha="right")
    panel.legend()


def _longest_first(groups: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """`_grouped` takes the names on its axis from the first group."""
    return dict(sorted(groups.items(), key=lambda group: -len(group[1])))


def _speed_by_prompt(panel: Axes, results: Results) -> None:
    temperature = results.temperatures[0]
    _grouped(panel, results.speedups(temperature))
    panel.axhline(1.0, color="black", linewidth=0.8)
    panel.set_title(f"Tokens per second, in units of plain decoding's ({label(temperature)})")


def _step_lengths(panel: Axes, results: Results) -> None:
    groups = {}
    for temperature in results.temperatures:
        counts = Counter(
            len(progress.tokens) - 1
            for races in results.at(temperature).values()
            for step in races[0][LAST].steps
            for progress in step
        )
        total = sum(counts.values())
        groups[label(temperature)] = {str(n): counts[n] / total for n in range(max(counts) + 1)}
    _grouped(panel, _longest_first(groups))
    panel.set_title(f"Accepted tokens of a step ({LAST}): share of steps")


def _by_depth(panel: Axes, results: Results) -> None:
    for temperature in results.temperatures:
        for way in ("tree", LAST):
            stats = [races[0][way].engine.verifier.statistics() for races in results.at(temperature).values()]
            tested = [sum(counts) for counts in zip(*(one.tested for one in stats), strict=True)]
            accepted = [sum(counts) for counts in zip(*(one.accepted for one in stats), strict=True)]
            shares = [a / t for a, t in zip(accepted, tested, strict=True) if t]
            panel.plot(range(1, len(shares) + 1), shares, marker="o", label=f"{way}, {label(temperature)}")
    panel.set_ylim(0, 1.02)
    panel.set_xlabel("depth")
    panel.legend(loc="lower right")
    panel.set_title("Accepted where a draft of that depth was tested")


def _by_rule(panel: Axes, results: Results) -> None:
    groups = {}
    for temperature in results.temperatures:
        means = {
            way: sum(ratios.values()) / len(ratios) for way, ratios in results.speedups(temperature).items()
        }
        groups[label(temperature)] = {
            f"{way}, match" if way in DRAFTERS else f"{LAST}, {way}": mean for way, mean in means.items()
        }
    _grouped(panel, _longest_first(groups))
    panel.axhline(1.0, color="black", linewidth=0.8)
    panel.set_title("Mean speed-up over the prompts, by drafter and rule")
