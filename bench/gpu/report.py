# SPDX-License-Identifier: Apache-2.0
"""`python -m bench gpu`: counts the standard cases and compiles every kernel; writes docs/gpu_counts.md."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from . import cases, targets, variants

PAGE = Path(__file__).parents[2] / "docs" / "gpu_counts.md"
MARK = "<!-- what follows is written by `make gpu-report` -->\n"
MOST_REGISTERS = 168  # of a thread, except in attention


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench gpu", description=__doc__)
    parser.parse_args(arguments)
    sections = [f"## Standard cases\n\n{count_head()}"]
    print(sections[0])
    for name in cases.JOBS:
        sections[0] += "\n" + count_line(cases.count(name))
        print(sections[0].rsplit("\n", 1)[-1], flush=True)
    kernels = [kernel for p in targets.PROCESSORS for kernel in targets.kernels(p, variants.calls())]
    compiled = list(zip(kernels, targets.build_all(kernels), strict=True))
    sections.append(f"## Kernels\n\n{compile_table(compiled)}")
    print(sections[1])
    broken = list(dict.fromkeys(broken_rules(compiled)))
    if broken:
        sections.append("## Rules that are not kept\n\n" + "\n".join(f"- {each}" for each in broken))
        print(sections[2])
    text = PAGE.read_text()
    PAGE.write_text(text[: text.index(MARK)] + MARK + "\n" + "\n\n".join(sections) + "\n")
    return 1 if broken else 0


# Counts


def count_head() -> str:
    columns = ("operation", "launches", "blocks", "requested MB", "moved MB", "sectors", "least MB")
    columns += ("M instructions", "peer", "goals")
    return f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|"


def count_line(counts: cases.Counts) -> str:
    launches, least = counts.launches, counts.least
    goals = "; ".join(
        f"{name} {value:.4g} {'>=' if name == 'blocks' else '<='} {bound:g} {'met' if met else '**missed**'}"
        for name, (value, bound, met) in counts.verdicts().items()
    )
    cells = (
        counts.name,
        len(launches),
        counts.blocks,
        f"{launches.bytes() / 1e6:.2f}",
        f"{launches.moved() / 1e6:.2f}",
        launches.sectors(),
        f"{least / 1e6:.2f}",
        f"{counts.instructions / 1e6:.2f}",
        counts.job.peer,
        goals,
    )
    return f"| {' | '.join(map(str, cells))} |"


# Compiled kernels

Compiled = list[tuple[targets.Kernel, targets.Build]]


def compile_table(compiled: Compiled) -> str:
    """A line per kernel: the worst of its variants."""
    processors = [processor.name for processor in targets.PROCESSORS]
    columns = ["kernel", "variants", "warps", "widest load", "tensor cores", *processors]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name in sorted({kernel.name for kernel, _ in compiled}):
        some = [(kernel, build) for kernel, build in compiled if kernel.name == name]
        warps, loads = {kernel.warps for kernel, _ in some}, {build.widest_load for _, build in some}
        dots = sum(build.dots for _, build in some)
        used = f"{sum(b.tensor_cores for _, b in some if b.dots)} of {dots}" if dots else ""
        cells = [f"`{name}`", str(-(-len(some) // len(processors))), span(warps), f"{span(loads)} B", used]
        cells += [worst([build for kernel, build in some if kernel.processor.name == p]) for p in processors]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


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
        if build.registers > MOST_REGISTERS and kernel.module != "attention":
            yield f"{where}: {build.registers} registers"
        if build.shared > kernel.processor.shared - kernel.processor.reserved:
            yield f"{where}: {build.shared} bytes of shared memory"
        if build.dots and not build.tensor_cores:
            yield f"{where}: no tensor-core instruction"
