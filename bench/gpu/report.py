"""`python -m bench gpu`: counts the standard cases, compiles every kernel for every target, writes both down."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import ptx_emulator

from . import cases, targets, variants

PAGE = Path(__file__).parents[2] / "docs" / "gpu_counts.md"
MOST_REGISTERS = 168  # of a thread, except in attention
MARK = "<!-- written by `make gpu-report` -->"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench gpu", description=__doc__)
    parser.parse_args(arguments)
    counted = []
    for job in cases.jobs():
        counted.append(cases.count(job))
        print(count_line(counted[-1]), flush=True)
    compiled = compile_all(launches_of_variants())
    tables = f"{count_table(counted)}\n\n{compile_table(compiled)}"
    print(tables)
    text = PAGE.read_text()
    PAGE.write_text(f"{text[: text.index(MARK)]}{MARK}\n\n{tables}\n")
    problems = list(broken_rules(compiled))
    print(*problems, sep="\n")
    return 1 if problems else 0


# Counts


def count_table(counted: list[cases.Counts]) -> str:
    head = "| operation | launches | blocks | requested MB | moved MB | sectors | least MB | moved / least | "
    head += "M instructions | goals | peer, M instructions |"
    rule = "|---" * 11 + "|"
    return "\n".join([head, rule, *map(count_line, counted)])


def count_line(counts: cases.Counts) -> str:
    launches, least = counts.launches, counts.least
    goals = "; ".join(
        f"{name} {value:.4g} {'>=' if name == 'blocks' else '<='} {bound:g} {'met' if met else '**missed**'}"
        for name, (value, bound, met) in counts.verdicts().items()
    )
    cells = (
        counts.job.name,
        len(launches),
        counts.blocks,
        f"{launches.bytes() / 1e6:.2f}",
        f"{launches.moved() / 1e6:.2f}",
        launches.sectors(),
        f"{least / 1e6:.2f}",
        f"{launches.moved() / least:.3f}",
        f"{counts.instructions / 1e6:.2f}",
        goals,
        counts.job.peer,
    )
    return f"| {' | '.join(map(str, cells))} |"


# Compiled kernels

Compiled = dict[str, list[tuple[ptx_emulator.Launch, dict[str, targets.Build]]]]


def launches_of_variants() -> dict[str, list[ptx_emulator.Launch]]:
    """One launch of each distinct kernel, by name."""
    found: dict[str, dict[str, ptx_emulator.Launch]] = {}
    for _, call in variants.calls():
        with ptx_emulator.active(80, compile_only=True), ptx_emulator.count() as launches:
            call()
        for launch in launches:
            found.setdefault(launch.name, {}).setdefault(launch.ptx, launch)
    return {name: list(distinct.values()) for name, distinct in sorted(found.items())}


def compile_all(launches: dict[str, list[ptx_emulator.Launch]]) -> Compiled:
    return {
        name: [
            (launch, {p.name: targets.build(launch, p) for p in targets.PROCESSORS}) for launch in distinct
        ]
        for name, distinct in launches.items()
    }


def compile_table(compiled: Compiled) -> str:
    """A line per kernel: the worst of its variants."""
    names = [processor.name for processor in targets.PROCESSORS]
    lines = [f"| kernel | variants | warps | widest load | tensor cores | {' | '.join(names)} |"]
    lines.append("|---" * (5 + len(names)) + "|")
    for kernel, distinct in compiled.items():
        warps = sorted({launch.num_warps for launch, _ in distinct})
        loads = sorted({build.widest_load for _, builds in distinct for build in builds.values()})
        dots = [targets.uses_dot(launch) for launch, _ in distinct]
        cells = [f"`{kernel}`", len(distinct), span(warps), f"{span(loads)} B"]
        cells.append(f"in {sum(dots)} of {len(dots)}" if any(dots) else "")
        for name in names:
            builds = [builds[name] for _, builds in distinct]
            registers, spills = max(b.registers for b in builds), max(b.spills for b in builds)
            shared, occupancy = max(b.shared for b in builds), min(b.occupancy for b in builds)
            cells.append(f"{registers}, {spills}, {shared / 1024:.3g} KB, {occupancy:.0%}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def span(values: list[int]) -> str:
    return str(values[0]) if values[0] == values[-1] else f"{values[0]} to {values[-1]}"


def broken_rules(compiled: Compiled):
    """What must not be: spills, too many registers, products of matrices without tensor cores."""
    for kernel, distinct in compiled.items():
        for launch, builds in distinct:
            dot = targets.uses_dot(launch)
            for name, build in builds.items():
                if build.spills:
                    yield f"{kernel} on {name}: spills {build.spills} bytes"
                if build.registers > MOST_REGISTERS and "attention" not in launch.source.fn.__module__:
                    yield f"{kernel} on {name}: {build.registers} registers"
                if dot and not build.tensor_cores:
                    yield f"{kernel} on {name}: no tensor-core instruction"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
