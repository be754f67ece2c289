# SPDX-License-Identifier: Apache-2.0
"""The demo's result as a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import matplotlib

from ..files import Refused, cannot_write
from ..timing import rates
from ..ways import DRAFTERS, PLAIN
from .figures import Results, label

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402  once the canvas is chosen
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

LAST = DRAFTERS[-1]
HATCHES = ("", "//", "..", "xx")
CAPTION = (
    "{model}, on {processor}; at most {tokens} tokens an answer. Plain decoding writes one token in a step,\n"
    "which is one forward pass of the model. A step with a draft reads all drafted tokens in one pass,\n"
    "and writes those that the model accepts and the token after them. The steps took turns in one engine."
)


def check_format(path: Path) -> None:
    formats = sorted(pyplot.figure().canvas.get_supported_filetypes())
    pyplot.close()
    if path.suffix and path.suffix[1:].lower() not in formats:
        raise Refused(f"{str(path)!r} must end in one of {', '.join(formats)}")


def draw(results: Results, path: Path, facts: Mapping[str, object], full: bool) -> None:
    """Speed-up by prompt and tokens of a step; in full also acceptance by depth and speed-up by rule."""
    with matplotlib.rc_context({"text.parse_math": False}):  # dollars in names of prompts
        size = (2, 2) if full else (1, 2)
        figure, panels = pyplot.subplots(
            *size, figsize=(13, 10 if full else 5.5), layout="constrained", squeeze=False
        )
        if full:
            _speed_by_prompt(panels[0, 0], results)
            _step_lengths(panels[0, 1], results)
            _by_depth(panels[1, 0], results)
            _by_rule(panels[1, 1], results)
        else:
            _plain_and_drafted(panels[0, 0], results)
            _steps(panels[0, 1], results)
        figure.suptitle("Speculative decoding of one text at a time, with the text of plain decoding")
        figure.supxlabel(CAPTION.format_map(facts), fontsize=9)
        try:
            figure.savefig(path, dpi=110, format=path.suffix[1:].lower() or "png")
        except OSError as error:
            raise cannot_write(path, error) from None
        finally:
            pyplot.close(figure)


def _plain_and_drafted(panel: Axes, results: Results) -> None:
    """Two bars for every prompt."""
    names = _names(results)
    for place, races in enumerate(results.single.values()):
        found = rates([races])
        ratio = found[LAST] / found[PLAIN]
        panel.barh(place - 0.2, found[PLAIN], 0.38, color="0.75", hatch="//", edgecolor="0.4")
        panel.barh(place + 0.2, found[LAST], 0.38, color="tab:blue", edgecolor="0.2")
        panel.text(found[PLAIN], place - 0.2, f" {found[PLAIN]:.1f} plain", va="center")
        panel.text(found[LAST], place + 0.2, f" {found[LAST]:.1f} drafted, {ratio:.2f}x", va="center")
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()
    panel.margins(x=0.35)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_title("Tokens per second, median of the rounds", loc="left")


def _steps(panel: Axes, results: Results) -> None:
    """Every answer as a row, cut into the tokens of each step."""
    names = _names(results)
    longest = 0
    for place, races in enumerate(results.single.values()):
        run, start = races[0][LAST], 0
        for step in run.steps:
            count = sum(len(progress.tokens) for progress in step)
            panel.barh(place, count - 1, 0.6, start, color="tab:blue")
            panel.barh(
                place, 1, 0.6, start + count - 1, color="0.75", hatch="////", edgecolor="0.4", linewidth=0
            )
            start += count
            panel.vlines(start, place - 0.36, place + 0.36, color="black", linewidth=1)
        panel.text(start, place, f" {start} tokens,\n {len(run.steps)} steps", va="center", fontsize=9)
        longest = max(longest, start)
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()
    panel.set_xlim(0, longest * 1.18)
    panel.set_xlabel("tokens of the answer")
    panel.spines[["top", "right"]].set_visible(False)
    title = "The steps of each answer: accepted drafts blue, the token after them hatched"
    panel.set_title(title, loc="left", fontsize=10)


def _names(results: Results) -> list[str]:
    several = len(results.temperatures) > 1
    return [f"{name}, {label(t)}" if several else name for name, t in results.single]


def _grouped(panel: Axes, groups: dict[str, dict[str, float]]) -> None:
    names = list(next(iter(groups.values())))
    width = 0.8 / len(groups)
    for place, (heading, values) in enumerate(groups.items()):
        offsets = [index + (place - (len(groups) - 1) / 2) * width for index in range(len(names))]
        heights = [values.get(name, 0.0) for name in names]
        panel.bar(offsets, heights, width, label=heading, hatch=HATCHES[place % 4], edgecolor="0.2")
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
            marker = "o" if way == LAST else "s"
            panel.plot(range(1, len(shares) + 1), shares, marker=marker, label=f"{way}, {label(temperature)}")
    panel.set_ylim(0, 1.02)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
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
