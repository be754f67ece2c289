# SPDX-License-Identifier: Apache-2.0
"""From entries to text: one header, tables for a terminal, JSON and Markdown."""

from __future__ import annotations

import json
import os
import platform
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import specdec_kernels as sdk

from . import roofs
from .floor import CFLAGS
from .suite import Goal, Suite

Data = dict[str, Any]
CAVEAT = (
    "Times are medians of interleaved runs. On a shared machine an absolute time means little; "
    "the ratios between contenders of one run mean more."
)
PACKAGES = ["specdec-kernels", "torch", "triton", "numpy", "transformers"]
PACKAGES += ["flashspec", "flashspec-asm-kernel"]  # the package, and what is fast in it


def header(suite: Suite, threads: Sequence[int], quick: bool) -> Data:
    """The same for every suite, without a date."""
    installed = {distribution.name: distribution.version for distribution in metadata.distributions()}
    return {
        "benchmark": suite.name,
        "machine": {
            "cpu": _cpu(),
            "generation": _generation(),
            "architecture": platform.machine(),
            "cores": os.cpu_count(),
            "system": platform.system(),
            "floor_flags": " ".join(CFLAGS),
        },
        "instruction_sets": {
            "specdec_kernels": "".join(re.findall(r"instruction set (\w+)", sdk.explain())),
            "torch": torch.backends.cpu.get_cpu_capability(),
        },
        "blas": "".join(re.findall(r"BLAS_INFO=(\w+)", torch.__config__.show())),
        "versions": {"python": platform.python_version()} | {name: installed.get(name) for name in PACKAGES},
        "threads": list(threads),
        "quick": quick,
        "caveat": CAVEAT,
        "cases": [],
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    model = re.search(r"^model name\s*: (.*)", text, re.M)
    return model[1] + ", AVX-512" * (" avx512f " in text) if model else platform.processor() or "unknown"


def _generation() -> str:
    """Family and model of an x86 processor, which its name may leave out."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    found = (re.search(rf"^{field}\s*: (\d+)", text, re.M) for field in ("cpu family", "model"))
    return ".".join(match[1] for match in found if match)


def folder_of(results: Data, root: Path) -> Path:
    """Where results of this processor are kept; counts are the same on each."""
    machine = results["machine"]
    name = " ".join([machine["cpu"], machine["generation"]]) if results["roofs"] else ""
    return root / re.sub(r"[^a-z0-9]+", "-", re.sub(r"\(r\)|cpu|@ [^,]*", "", name.lower())).strip("-")


def describe(suite: Suite, results: Data) -> str:
    machine, sets = results["machine"], results["instruction_sets"]
    shown = [f"{name} {version}" for name, version in results["versions"].items() if version]
    shown += [f"{name} on {instructions}" for name, instructions in sets.items() if instructions]
    shown += [f"BLAS {results['blas']}"] * bool(results["blas"]) + ["quick"] * results["quick"]
    text = f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}; {', '.join(shown)}"
    return (
        "\n\n".join(
            filter(None, (f"{text}. {results['caveat']}", roofs.describe(results["roofs"]), suite.legend))
        )
        + "\n"
    )


def table(suite: Suite, entry: Data) -> str:
    """Everything measured for one case, for a terminal."""
    figures = ", ".join(f"{name} {value:.4g}" for name, value in entry["figures"].items())
    lines = [f"== {entry['name']}" + f"  ({figures})" * bool(figures)]
    lines += [f"   not timed: {name}: {why}" for name, why in (entry["failed"] | entry["missing"]).items()]
    timings = entry["timings"]
    heads = [f"{timing['threads']} thread(s), noisy rounds {_noise(timing)}" for timing in timings]
    names = dict.fromkeys(name for timing in timings for name in _times(timing))
    rows = [("ms", *heads), *((name, *(_cell(suite, t, name) for t in timings)) for name in names)]
    width = max(len(cell) for row in rows for cell in row[1:] or [""]) + 3
    lines += [f"   {row[0]:28}" + "".join(f"{cell:>{width}}" for cell in row[1:]) for row in rows if timings]
    if entry["memory"]:
        lines.append(f"   peak extra memory, MB: {', '.join(map(' '.join, _memory(entry).items()))}")
    lines += [f"   {g['state']:5}  {_goal(g)}: {_measured(g)}{where}" for where, g in _goals(entry)]
    return "\n".join(lines) + "\n"


def verdict(results: Data) -> str:
    count = Counter(goal["state"] for entry in results["cases"] for _, goal in _goals(entry))
    return (
        f"{sum(count.values())} goals of {results['benchmark']}: {count['ok']} met, {count['MISS']} missed, "
        f"{count['NOISY']} too noisy to tell, {count['NONE']} without a baseline to compare with\n"
    )


def write(suite: Suite, results: Data, folder: Path) -> None:
    """The JSON, and beside it times as Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{suite.name}.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if suite.threads:
        path.with_suffix(".md").write_text(markdown(suite, results), encoding="utf-8")


def markdown(suite: Suite, results: Data) -> str:
    """Times, a table for the cases that share their contenders; goals; memory."""
    lines, cases = [describe(suite, results)], results["cases"]
    groups: dict[tuple[str, ...], list[Data]] = {}
    for entry in cases:
        groups.setdefault(tuple(sorted(_names(entry))), []).append(entry)
    for entries in groups.values():
        lines += [*rows(_time_rows(suite, entries)), ""]
    goals = [(e["name"] + at, _goal(g), _measured(g), g["state"]) for e in cases for at, g in _goals(e)]
    if goals:
        lines += ["### Goals", "", *rows([("case", "goal", "measured", ""), *goals]), ""]
    memory = [entries for entries in groups.values() if entries[0]["memory"]]
    if memory:
        lines += ["### Peak extra memory of one call, MB", ""]
    for entries in memory:
        names = entries[0]["memory"]
        cells = ((entry["name"], *(_memory(entry).get(name, "-") for name in names)) for entry in entries)
        lines += [*rows([("case", *names), *cells]), ""]
    return "\n".join(lines).rstrip() + "\n"


def rows(cells: Iterable[Sequence[object]]) -> list[str]:
    """Lines of a Markdown table; the first is its head."""
    head, *rest = [f"| {' | '.join(map(str, row))} |" for row in cells]
    return [head, "|---" * (head.count(" | ") + 1) + "|", *rest]


def _time_rows(suite: Suite, entries: list[Data]) -> Iterator[Sequence[object]]:
    derived = [n for entry in entries for t in entry["timings"] for n in t["derived"] if n in suite.floors]
    names = list(dict.fromkeys([*(name for entry in entries for name in _names(entry)), *derived]))
    names.sort(key=lambda name: (name not in suite.floors, name not in suite.subjects))
    figures = list(entries[0]["figures"])
    yield "case", *figures, "threads", *names, "noisy rounds"
    for entry in entries:
        values = [f"{entry['figures'][name]:.4g}" for name in figures]
        for timing in entry["timings"]:
            cells = (_cell(suite, timing, name) for name in names)
            yield entry["name"], *values, timing["threads"], *cells, _noise(timing)


def _names(entry: Data) -> dict[str, None]:
    """Whatever was to be timed, in the order of the contenders."""
    timed = [name for timing in entry["timings"] for name in timing["milliseconds"]]
    return dict.fromkeys([*timed, *entry["failed"], *entry["missing"]])


def _times(timing: Data) -> dict[str, float]:
    return timing["milliseconds"] | timing["derived"]


def _cell(suite: Suite, timing: Data, name: str) -> str:
    """A time, with its multiples of the references, or with the share that its floor has of it."""
    times, floor = _times(timing), suite.roofs.get(name)
    if name not in times:
        return "-"
    text = f"{times[name]:.{0 if times[name] >= 1000 else 2}f}"
    if floor in times:
        return f"{text} (roof {times[floor] / times[name]:.0%})"
    multiples = [_multiple(timing, name, other) for other in suite.references if other in times]
    return f"{text} ({' / '.join(multiples)})" if multiples and name not in suite.floors else text


def _multiple(timing: Data, name: str, reference: str) -> str:
    """How many times as long as a reference; the middle half of the rounds where they are kept."""
    times, each = _times(timing), timing.get("each_round", {})
    ratio = times[name] / times[reference]
    text = f"{ratio:.{1 if ratio >= 10 else 2}f}x"
    if name == reference or not {name, reference} <= each.keys():
        return text
    ratios = sorted(a / b for a, b in zip(each[name], each[reference], strict=True))
    quarter = len(ratios) // 4
    return f"{text}, {ratios[quarter]:.2f}-{ratios[-1 - quarter]:.2f}"


def _noise(timing: Data) -> str:
    rounds = timing["rounds"]
    share = f"{rounds['noisy'] / (rounds['quiet'] + rounds['noisy']):.0%}"
    return share if rounds["used"] == "quiet" else f"{share}, kept"


def _goals(entry: Data) -> Iterator[tuple[str, Data]]:
    """Each with where it was measured."""
    for timing in entry["timings"]:
        yield from ((f", {timing['threads']} thread(s)", goal) for goal in timing["goals"])
    yield from (("", goal) for goal in entry["goals"])


def _goal(goal: Data) -> str:
    return str(Goal(**{name: value for name, value in goal.items() if name not in ("measured", "state")}))


def _measured(goal: Data) -> str:
    if goal["measured"] is None:
        return "not measured"
    return f"{goal['measured']:.2f}x" if goal["baseline"] else f"{goal['measured']:.4g}"


def _memory(entry: Data) -> dict[str, str]:
    return {name: f"{peak / 2**20:.2f}" for name, peak in entry["memory"].items()}
