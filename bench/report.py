# SPDX-License-Identifier: Apache-2.0
"""From timings to ratios, goals, tables and files."""

import json
import os
import platform
from collections import Counter
from importlib import metadata
from pathlib import Path

from .cases import Goal
from .contenders import OURS
from .floor import CFLAGS
from .timing import Timings

FLOORS = ("floor target", "floor all")
CAVEAT = (
    "Times are medians of interleaved runs. On a shared machine an absolute time means little; "
    "the ratios between contenders of one run mean more."
)
LEGEND = (
    "floor target: plain C log-sum-exp of every target row; floor all: of the draft's rows too. "
    "roof: that floor's time over ours (floor all for `traversal raw`, which needs every row); a rule that "
    "reads only the rows it needs can exceed 100 %."
)
PACKAGES = ("specdec-kernels", "torch", "transformers", "flashspec", "flashspec-asm-kernel", "numpy")


def header() -> dict:
    return {
        "benchmark": "verify",
        "machine": {
            "cpu": _cpu(),
            "architecture": platform.machine(),
            "cores": os.cpu_count(),
            "system": platform.system(),
            "floor_flags": " ".join(CFLAGS),
        },
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "caveat": CAVEAT,
        "cases": [],
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = dict(
            line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line
        )
        fields = {key.strip(): value.strip() for key, value in fields.items()}
        if "model name" in fields:
            wide = ", AVX-512" if "avx512f" in fields.get("flags", "").split() else ""
            return fields["model name"] + wide
    return platform.processor() or "unknown"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def figures(timings: Timings, threads: int, eager: list[str], goals: tuple[Goal, ...]) -> dict:
    """Times, ratios of every peer to ours, shares of the roof and the goals, at one number of threads."""
    seconds = timings.medians
    ours = [name for name in OURS if name in seconds]
    best = min((name for name in eager if name in seconds), key=seconds.__getitem__, default=None)
    known = seconds | ({"best eager torch": seconds[best]} if best else {})
    return {
        "threads": threads,
        "rounds": {"quiet": timings.quiet, "noisy": timings.noisy, "used": timings.used},
        "milliseconds": {name: 1e3 * value for name, value in seconds.items()},
        "ratios": {
            name: {peer: seconds[peer] / seconds[name] for peer in seconds if peer not in (*OURS, *FLOORS)}
            for name in ours
        },
        "roof": {name: seconds[_roof(name)] / seconds[name] for name in ours},
        "best_eager_torch": best,
        "goals": [judge(goal, known, noisy=timings.used != "quiet") for goal in goals],
    }


def _roof(name: str) -> str:
    return "floor all" if name == "traversal raw" else "floor target"


def judge(goal: Goal, seconds: dict[str, float], noisy: bool) -> dict:
    """Under foreign load some contenders slow down by far more than others: noisy figures settle nothing."""
    other, ours = seconds.get(goal.other), seconds.get(goal.ours)
    ratio = None
    if other and ours:
        ratio = ours / other if goal.ceiling else other / ours
    met = ratio is not None and (ratio <= goal.bound if goal.ceiling else ratio >= goal.bound)
    text = f"{goal.ours}: {'at most' if goal.ceiling else 'at least'} {goal.bound:g}x "
    text += f"the time of {goal.other}" if goal.ceiling else f"as fast as {goal.other}"
    state = "NOISY" if noisy and ratio is not None else "ok" if met else "MISS"
    return {"goal": text, "ratio": ratio, "state": state}


def describe(results: dict) -> str:
    machine, versions = results["machine"], results["versions"]
    shown = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}; {shown}\n{CAVEAT}\n{LEGEND}\n"


def case_table(entry: dict) -> str:
    """Everything measured for one case, for a terminal."""
    lines = [f"== {entry['name']}  (mean overlap {entry['overlap']:.3f})"]
    lines += [
        f"   not timed: {name}: {reason}" for name, reason in (entry["failed"] | entry["missing"]).items()
    ]
    for timing in entry["timings"]:
        lines += ["", f"   {timing['threads']} thread(s); {rounds_line(timing)}"]
        columns = [name for name in ("token", "traversal") if name in timing["ratios"]]
        lines.append(
            f"   {'':24}{'ms':>10}" + "".join(f"{'x ' + name:>13}" for name in columns) + f"{'roof':>8}"
        )
        for name, milliseconds in timing["milliseconds"].items():
            row = f"   {name:24}{milliseconds:10.3f}"
            if name in timing["roof"]:
                row += " " * 13 * len(columns) + f"{timing['roof'][name]:8.0%}"
            elif name not in FLOORS:
                row += "".join(f"{timing['ratios'][column][name]:13.2f}" for column in columns)
            lines.append(row)
        lines += [f"   {goal_line(goal)}" for goal in timing["goals"]]
    if entry["memory"]:
        lines += ["", "   peak extra memory, MB: " + _memory(entry)]
        lines += [f"   MISS   {name}: memory over the limit" for name in _over_limit(entry)]
    return "\n".join(lines) + "\n"


def rounds_line(timing: dict) -> str:
    rounds = timing["rounds"]
    total = rounds["quiet"] + rounds["noisy"]
    kept = "dropped" if rounds["used"] == "quiet" else "kept for want of quiet ones"
    return f"{rounds['quiet']} quiet rounds; {rounds['noisy'] / total:.0%} of rounds noisy" + (
        f", {kept}" if rounds["noisy"] else ""
    )


def goal_line(goal: dict) -> str:
    ratio = "not measured" if goal["ratio"] is None else f"{goal['ratio']:.2f}x"
    return f"{goal['state']:5}  {goal['goal']}: {ratio}"


def _memory(entry: dict) -> str:
    return ", ".join(f"{name} {peak / 2**20:.2f}" for name, peak in entry["memory"].items())


def _over_limit(entry: dict) -> list[str]:
    return [name for name in OURS if entry["memory"].get(name, 0) > entry["memory_limit"]]


def verdict(results: dict) -> str:
    goals = [goal for entry in results["cases"] for timing in entry["timings"] for goal in timing["goals"]]
    over = sum(len(_over_limit(entry)) for entry in results["cases"])
    count = Counter(goal["state"] for goal in goals)
    return (
        f"{len(goals)} goals: {count['ok']} met, {count['MISS']} missed, {count['NOISY']} too noisy to tell; "
        f"{over} measurements over the memory limit"
    )


def write(results: dict, path: Path) -> None:
    """The JSON, and beside it the same as Markdown."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(results))


def markdown(results: dict) -> str:
    """One section of tables per kind of case: times with ratios, goals, memory."""
    machine, versions = results["machine"], results["versions"]
    shown = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    lines = [f"{machine['cpu']}, {machine['cores']} cores; {shown}. {CAVEAT}", "", LEGEND, ""]
    lines += [
        "Times in milliseconds; beside a peer, how many times as long as `token` / `traversal` it takes.",
        "",
    ]
    for entries in _by_columns(results["cases"]):
        lines += _time_table(entries)
    lines += ["### Goals", "", "| case | goal | measured | |", "|---|---|---|---|"]
    for entry in results["cases"]:
        for timing in entry["timings"]:
            for goal in timing["goals"]:
                ratio = "-" if goal["ratio"] is None else f"{goal['ratio']:.2f}x"
                lines.append(f"| {entry['name']} | {goal['goal']} | {ratio} | {goal['state']} |")
    lines += ["", "### Peak extra memory of one call, MB", ""]
    for entries in _by_columns(results["cases"]):
        names = list(entries[0]["memory"])
        if names:
            lines += _row("case", *names), _row(*["---"] * (len(names) + 1))
            lines += [
                _row(e["name"], *(f"{e['memory'].get(n, 0) / 2**20:.2f}" for n in names)) for e in entries
            ]
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _by_columns(entries: list[dict]) -> list[list[dict]]:
    """Cases that share their contenders share a table."""
    kinds: dict[tuple, list[dict]] = {}
    for entry in entries:
        kinds.setdefault((bool(entry["case"]["branching"]), entry["case"]["top_k"] > 0), []).append(entry)
    return list(kinds.values())


def _time_table(entries: list[dict]) -> list[str]:
    timings = [timing for entry in entries for timing in entry["timings"]]
    names = list(dict.fromkeys(name for timing in timings for name in timing["milliseconds"]))
    names.sort(key=lambda name: (name not in FLOORS, name not in OURS))
    lines = [_row("case", "threads", *names, "noisy rounds"), _row(*["---"] * (len(names) + 3))]
    for entry in entries:
        for timing in entry["timings"]:
            rounds = timing["rounds"]
            noisy = f"{rounds['noisy'] / (rounds['quiet'] + rounds['noisy']):.0%}"
            cells = (_cell(timing, name) for name in names)
            lines.append(_row(entry["name"], timing["threads"], *cells, noisy))
    return [*lines, ""]


def _cell(timing: dict, name: str) -> str:
    if name not in timing["milliseconds"]:
        return "-"
    text = f"{timing['milliseconds'][name]:.2f}"
    if name in timing["roof"]:
        return f"{text} (roof {timing['roof'][name]:.0%})"
    ratios = [timing["ratios"][ours].get(name) for ours in ("token", "traversal") if ours in timing["ratios"]]
    if None in ratios or not ratios:
        return text
    return f"{text} ({' / '.join(f'{ratio:.1f}x' for ratio in ratios)})"


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"
