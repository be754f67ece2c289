# SPDX-License-Identifier: Apache-2.0
"""The page docs/gpu_counts.md: counts of the standard cases, and every kernel compiled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..report import rows
from . import targets, variants

PAGE = Path(__file__).parents[2] / "docs" / "gpu_counts.md"
MARK = "<!-- what follows is written by `make gpu-report` -->\n"
MOST_REGISTERS = 168  # of a thread, except in attention
RICHEST = Path(__file__).with_name("richest.json")
OF = ("sm_80", "sm_90")  # targets in that file
LONGEST_COMPILE = 6  # CPU seconds
TIGHT = 8  # registers that a form in that file leaves at most of those that it may take


def write(results: dict[str, Any]) -> bool:
    """Compiles the kernels and writes the page; whether a rule is broken."""
    sections = ["## Standard cases\n\n" + "\n".join(counts(results["cases"]))]
    kernels = [kernel for p in targets.PROCESSORS for kernel in targets.kernels(p, variants.calls())]
    compiled = list(zip(kernels, targets.build_all(kernels), strict=True))
    sections.append("## Kernels\n\n" + "\n".join(compile_table(compiled)))
    found = richest(compiled)
    RICHEST.write_text("[\n" + ",\n".join(f"  {json.dumps(entry)}" for entry in found) + "\n]\n")
    largest = largest_forms(compiled)
    seconds = dict(zip((kernel.name for kernel in largest), targets.compile_seconds(largest), strict=True))
    sections.append("## Compilation\n\n" + "\n".join(seconds_table(seconds)))
    broken = list(dict.fromkeys([*broken_rules(compiled), *slow_compilations(seconds)]))
    if broken:
        sections.append("## Rules that are not kept\n\n" + "\n".join(f"- {rule}" for rule in broken))
    print("\n\n".join(sections[1:]))
    text = PAGE.read_text()
    PAGE.write_text(text[: text.index(MARK)] + MARK + "\n" + "\n\n".join(sections) + "\n")
    return bool(broken)


# Counts

COLUMNS = ("launches", "blocks", "requested MB", "moved MB", "sectors", "least MB", "instructions")


def counts(entries: list[dict[str, Any]]) -> list[str]:
    return rows([("operation", *COLUMNS[:-1], "M instructions", "peer", "goals"), *map(count_row, entries)])


def count_row(entry: dict[str, Any]) -> list[object]:
    figures = [entry["figures"][name] for name in COLUMNS]
    goals = (
        f"{goal['subject']} {goal['measured']:.4g} {'<=' if goal['ceiling'] else '>='} {goal['bound']:g} "
        + ("met" if goal["state"] == "ok" else "**missed**")
        for goal in entry["goals"]
    )
    shown = (f"{value:.2f}" if isinstance(value, float) else value for value in figures)
    return [entry["name"], *shown, entry["case"]["peer"], "; ".join(goals)]


# Compiled kernels

Compiled = list[tuple[targets.Kernel, targets.Build]]


def compile_table(compiled: Compiled) -> list[str]:
    """A line per kernel: the worst of its variants."""
    processors = [processor.name for processor in targets.PROCESSORS]
    columns = ["kernel", "variants", "warps", "widest load", "tensor cores", *processors]
    lines = [columns]
    for name in sorted({kernel.name for kernel, _ in compiled}):
        some = [(kernel, build) for kernel, build in compiled if kernel.name == name]
        warps, loads = {kernel.warps for kernel, _ in some}, {build.widest_load for _, build in some}
        dots = sum(build.dots for _, build in some)
        used = f"{sum(b.tensor_cores for _, b in some if b.dots)} of {dots}" if dots else ""
        cells = [f"`{name}`", str(-(-len(some) // len(processors))), span(warps), f"{span(loads)} B", used]
        cells += [worst([build for kernel, build in some if kernel.processor.name == p]) for p in processors]
        lines.append(cells)
    return rows(lines)


def worst(builds: list[targets.Build]) -> str:
    """Most registers, spills and shared memory, least occupancy."""
    registers, spills = max(b.registers for b in builds), max(b.spills for b in builds)
    shared, occupancy = max(b.shared for b in builds), min(b.occupancy for b in builds)
    return f"{registers}, {spills}, {shared / 1024:.3g} KB, {occupancy:.0%}"


def span(values: set[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def broken_rules(compiled: Compiled) -> Iterator[str]:
    """What must not be: spills, too many registers, more shared memory than a block may have, products of
    matrices without tensor cores."""
    for kernel, build in compiled:
        where = f"{kernel.name} on {kernel.processor.name}"
        if build.spills:
            yield f"{where}: spills {build.spills}"
        if build.registers > MOST_REGISTERS and not kernel.module.startswith("attention"):
            yield f"{where}: {build.registers} registers"
        if build.shared > kernel.processor.shared - kernel.processor.reserved:
            yield f"{where}: {build.shared} bytes of shared memory"
        if build.dots and not build.tensor_cores:
            yield f"{where}: no tensor-core instruction"


# Time to compile


def largest_forms(compiled: Compiled) -> list[targets.Kernel]:
    """Of each kernel the form that takes the largest file on sm_90."""
    largest: dict[str, tuple[targets.Kernel, targets.Build]] = {}
    for kernel, build in compiled:
        if kernel.processor.name == "sm_90":
            before = largest.setdefault(kernel.name, (kernel, build))
            if build.binary > before[1].binary:
                largest[kernel.name] = (kernel, build)
    return [kernel for kernel, _ in largest.values()]


def seconds_table(seconds: dict[str, float]) -> list[str]:
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    lines = [(f"`{name}`", f"{spent:.1f}") for name, spent in ordered]
    return rows([("kernel, largest form", "CPU s for sm_90"), *lines])


def slow_compilations(seconds: dict[str, float]) -> Iterator[str]:
    for name, spent in seconds.items():
        if spent > LONGEST_COMPILE:
            yield f"{name} on sm_90: {spent:.1f} CPU s to compile, goal {LONGEST_COMPILE}"


# Forms that ordinary tests compile


def richest(compiled: Compiled) -> list[tuple[str, str, int, int]]:
    """Target, kernel, warps and place of the forms that are nearest to spilling: of each kernel and number of
    warps one, where it is near."""
    groups: dict[tuple[str, str, int], list[int]] = {}
    for kernel, build in compiled:
        group = groups.setdefault((kernel.processor.name, kernel.name, kernel.warps), [])
        group.append(_slack(kernel, build))
    return [
        (*group, slacks.index(min(slacks)))
        for group, slacks in sorted(groups.items())
        if group[0] in OF and min(slacks) <= TIGHT
    ]


def _slack(kernel: targets.Kernel, build: targets.Build) -> int:
    """Registers that a form leaves of those it may take; below 0, bytes that it spills."""
    return -build.spills if build.spills else (kernel.options.get("maxnreg") or 255) - build.registers


def richest_of(kernels: list[targets.Kernel]) -> list[targets.Kernel]:
    """Those of all kernels of a target that were nearest to spilling when `make gpu-report` last ran. Forms
    that were added since may stand in their place."""
    places: dict[tuple[str, str, int], int] = {
        (target, name, warps): place for target, name, warps, place in json.loads(RICHEST.read_text())
    }
    groups: dict[tuple[str, str, int], list[targets.Kernel]] = {}
    for kernel in kernels:
        groups.setdefault((kernel.processor.name, kernel.name, kernel.warps), []).append(kernel)
    return [group[min(places[key], len(group) - 1)] for key, group in groups.items() if key in places]
