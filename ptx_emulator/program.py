# SPDX-License-Identifier: Apache-2.0
"""A kernel made ready to run: its basic blocks, and what each needs to know of the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from . import flow
from .errors import PTXError
from .instructions import Step, translate
from .parse import Instruction, elements, parse, register_of
from .values import raw

SPECIAL = {  # registers that are there from the start
    **{f"%{name}.{axis}": "u32" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"},
    **dict.fromkeys(("%laneid", "%warpid", "%smid", "%nsmid", "%clock"), "u32"),
    **dict.fromkeys(("%clock64", "%globaltimer"), "u64"),
    "%cc": "pred",
}


@dataclass
class Action:
    """An instruction of a block's body."""

    ins: Instruction
    step: Step
    reads: set[int]  # registers, by their places in the list
    fills: set[int]  # those it fills for certain: where it is guarded, none


@dataclass
class Block:
    index: int
    instructions: list[Instruction]
    body: list[Action] = field(default_factory=list)  # all but a branch or barrier at the end
    exit: str = "next"  # or "branch", "return", "barrier"
    guard: int | None = None  # the register that an exit depends on
    negated: bool = False
    target: int = 0  # of a branch
    live: set[int] = field(default_factory=set)  # registers needed at its beginning
    needed: set[int] = field(default_factory=set)  # and at its end
    run: Callable | None = None  # the function that executes it, which the first group to enter makes
    at_line: list[Instruction | None] = field(default_factory=list)  # by line of that function

    @property
    def unguarded(self) -> int:
        return len(self.instructions) - sum(ins.guard is not None for ins in self.instructions)


class Program:
    """A compiled module. It holds no state of a launch."""

    def __init__(self, ptx: str):
        self.ptx = ptx
        self.kernel = kernel = parse(ptx)
        parameters = {name: type_ for name, type_, _ in kernel.parameters}
        self.types = {**SPECIAL, **parameters, **kernel.registers}
        self.tables = {symbol: np.frombuffer(data, np.uint8) for symbol, data in kernel.tables.items()}
        self.has_wgmma = any(ins.opcode == "wgmma" for ins in kernel.instructions)
        self.slots: dict[str, int] = {}  # register -> place in the list
        starts = flow.block_starts(kernel)
        ends = [*starts[1:], len(kernel.instructions)]
        self.blocks = [
            Block(index, kernel.instructions[start:end])
            for index, (start, end) in enumerate(zip(starts, ends, strict=True))
        ]
        self._bodies()
        for block in self.blocks if self.has_wgmma else ():
            _check_wgmma_fences(block)
        self._exits({start: index for index, start in enumerate([*starts, len(kernel.instructions)])})
        self._liveness()

    def slot(self, register: str) -> int:
        return self.slots.setdefault(register, len(self.slots))

    def raw(self, register: str) -> np.dtype:
        return raw(self.types[register])

    def _bodies(self) -> None:
        origin = flow.pointers(self.kernel)
        for block in self.blocks:
            for ins in block.instructions:
                if not flow.is_control(ins):
                    block.body.append(self._action(_with_pointers(ins, origin)))

    def _action(self, ins: Instruction) -> Action:
        step = translate(ins)
        read = {register_of(operand) for operand, _ in step.sources}
        read = {register for register in read if register in self.types}
        filled = {operand for operand, _ in step.results if operand != "_"}
        if any(register not in self.types for register in filled):
            raise PTXError(f"an unknown register: {ins.text}")
        if ins.guard:
            read, filled = read | filled | {ins.guard}, set()
        return Action(ins, step, set(map(self.slot, read)), set(map(self.slot, filled)))

    def _exits(self, index_of: dict[int, int]) -> None:
        for block in self.blocks:
            ins = block.instructions[-1]
            if flow.is_barrier(ins):
                threads = ins.operands[1:]
                some = ins.operands[0] != "0" or any(int(n) != self.kernel.threads for n in threads)
                if ins.guard or some:
                    raise PTXError(f"a barrier of some threads: {ins.text}")
                block.exit = "barrier"
            elif flow.is_control(ins):
                block.exit, block.target = "return", len(self.blocks)
                if ins.opcode == "bra":
                    block.exit, block.target = "branch", index_of[self.kernel.labels[ins.operands[0]]]
                if ins.guard:
                    block.guard, block.negated = self.slot(ins.guard), ins.negated

    def _liveness(self) -> None:
        reads, writes, successors = [], [], []
        for block in self.blocks:
            read: set[int] = set()
            written: set[int] = set()
            for action in block.body:
                read |= action.reads - written
                written |= action.fills
            if block.guard is not None:
                read |= {block.guard} - written
            reads.append(read)
            writes.append(written)
            successors.append([index for index in _following(block) if index < len(self.blocks)])
        for block, live in zip(self.blocks, flow.live_registers(reads, writes, successors), strict=True):
            block.live = live
        for block, following in zip(self.blocks, successors, strict=True):
            block.needed = set().union(*(self.blocks[index].live for index in following))


def _following(block: Block) -> set[int]:
    """Blocks that can come next; the number of blocks stands for the end."""
    always = block.exit in ("branch", "return") and block.guard is None
    following = set() if always else {block.index + 1}
    return following | {block.target} if block.exit in ("branch", "return") else following


def _with_pointers(ins: Instruction, origin: Callable[[str], frozenset[str]]) -> Instruction:
    """An instruction that knows where its global address comes from."""
    address = [operand for operand in ins.operands if operand.startswith("[")]
    if not address or "param" in ins.modifiers:
        return ins
    return replace(ins, pointers=origin(register_of(address[-1])))


def _check_wgmma_fences(block: Block) -> None:
    """wgmma.fence lies between other uses of the registers that `wgmma.mma_async` works on, and this."""
    fenced, filled = False, set()
    for action in block.body:
        ins = action.ins
        if ins.opcode != "wgmma":
            filled |= {register for register, _ in action.step.results}
        elif "fence" in ins.modifiers:
            fenced, filled = True, set()
        elif "mma_async" in ins.modifiers:
            matrices = [operand for operand in ins.operands[:2] if operand.startswith("{")]
            used = {name for operand in matrices for name in elements(operand)}
            if not fenced or used & filled:
                raise PTXError(f"no wgmma.fence before wgmma in its block: {ins.text}")


@lru_cache(maxsize=1024)
def load(ptx: str) -> Program:
    """The program of a PTX text, made once."""
    return Program(ptx)
