# SPDX-License-Identifier: Apache-2.0
"""What can be known of a kernel before it runs: basic blocks, live registers, where addresses come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .parse import Instruction, Kernel, elements

BRANCHES = ("bra", "ret", "exit")


def is_barrier(ins: Instruction) -> bool:
    return ins.opcode in ("bar", "barrier") and "warp" not in ins.modifiers


def is_control(ins: Instruction) -> bool:
    return ins.opcode in BRANCHES or is_barrier(ins)


def block_starts(kernel: Kernel) -> list[int]:
    """Where blocks begin: at labels that branches name, and after branches and barriers."""
    after = (place + 1 for place, ins in enumerate(kernel.instructions) if is_control(ins))
    targets = (kernel.labels[ins.operands[0]] for ins in kernel.instructions if ins.opcode == "bra")
    starts = {0, *targets, *after}
    return sorted(start for start in starts if start < len(kernel.instructions))


def live_registers(
    reads: list[set[int]], writes: list[set[int]], successors: list[list[int]]
) -> list[set[int]]:
    """The registers that each block needs at its beginning. reads: before any write of the block's own."""
    live = [set(block) for block in reads]
    changed = True
    while changed:
        changed = False
        for block in reversed(range(len(live))):
            after = set().union(*(live[successor] for successor in successors[block]))
            before = reads[block] | (after - writes[block])
            if before != live[block]:
                live[block], changed = before, True
    return live


COPIES = {"mov", "cvta", "selp", "shfl", "cvt"}  # an address may be any of the sources
SUMS = {"add", "sub", "mad", "or", "and"}  # an address and offsets


def pointers(kernel: Kernel) -> Callable[[str], frozenset[str]]:
    """For a register that holds an address: the pointer parameters (or constant tables) it can come from;
    none where an address loaded from memory can reach it.

    Whatever the order of instructions: what may flow somewhere does.
    """
    given = {name for name, _, is_pointer in kernel.parameters if is_pointer}
    origins: dict[str, set[str]] = {symbol: {symbol} for symbol in kernel.tables}
    flows: list[tuple[str, list[str], bool]] = []
    loaded: set[str] = set()
    for ins in kernel.instructions:
        if ins.opcode == "ld" and "param" in ins.modifiers:
            name = ins.operands[1].strip("[]")
            if name in given:
                origins.setdefault(ins.operands[0], set()).add(name)
        elif ins.opcode in ("ld", "atom"):
            loaded.update(elements(ins.operands[0]))
        elif ins.opcode in COPIES | SUMS and ins.operands:
            sources = [source for operand in ins.operands[1:] for source in elements(operand)]
            for target in elements(ins.operands[0].split("|")[0]):
                flows.append((target, sources, ins.opcode in COPIES))

    def spread(step: Callable[[str, list[str], bool], bool]) -> None:
        while any([step(*flow) for flow in flows]):
            pass

    def union(names: Iterable[str]) -> set[str]:
        return set().union(*(origins.get(name, ()) for name in names))

    def flow_origins(target: str, sources: list[str], copies: bool) -> bool:
        new = union(sources) - origins.get(target, set())
        origins.setdefault(target, set()).update(new)
        return bool(new)

    def flow_loaded(target: str, sources: list[str], copies: bool) -> bool:
        """What is loaded and added to a known address is an offset."""
        unknown = any(source in loaded for source in sources) and (copies or not union(sources))
        new = unknown and target not in loaded
        if new:
            loaded.add(target)
        return new

    spread(flow_origins)
    spread(flow_loaded)
    return lambda register: frozenset(() if register in loaded else origins.get(register, ()))
