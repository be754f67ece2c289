# SPDX-License-Identifier: Apache-2.0
"""A basic block as a Python function with a line or two per instruction.

    add.s32 %r3, %r1, %r2;                 r[2] = k0(r[0], r[1])
    @%p1 ld.global.b32 %r4, [%rd1+16];     a = g.where(r[4])
                                           if a is not NOBODY:
                                            r[3] = place(r[3], a, k1(g, a, r[5].view(int64) + 16), g.size)

`r` is the list of registers of the group `g` of threads that runs the block, `t` what counts, `k0` the
function of a step. A register is forgotten after its last use, which keeps the arrays few and in cache.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .errors import PTXError
from .instructions import ADDRESS
from .parse import Instruction, offset_of, register_of
from .program import Action, Block, Program
from .values import TYPES, immediate, raw

NOBODY = object()  # no lane takes part


def function(program: Program, block: Block) -> tuple[Callable, list[Instruction | None]]:
    """The function of a block, and the instruction of each of its lines."""
    writer = _Writer(program)
    writer.write(block)
    exec(compile("\n".join(writer.lines), file_of(program, block), "exec"), writer.names)
    return writer.names["block"], writer.at_line


def file_of(program: Program, block: Block) -> str:
    """What stands for a file name in tracebacks."""
    return f"<ptx {program.kernel.name}, block {block.index}>"


def choose(old: np.ndarray, guard: np.ndarray, negated: bool, new: np.ndarray) -> np.ndarray:
    """A guarded computation: new values where the guard holds."""
    if guard.ndim == 0:
        return new if guard != negated else old
    return np.where(guard, old, new) if negated else np.where(guard, new, old)


def place(old: np.ndarray, lanes: np.ndarray | None, new: np.ndarray, size: int) -> np.ndarray:
    """New values for the lanes that took part, old ones for the others."""
    if lanes is None:
        return new
    merged = np.full(size, old, new.dtype) if old.ndim == 0 else old.copy()
    merged[lanes] = new
    return merged


class _Writer:
    def __init__(self, program: Program):
        self.program = program
        self.lines: list[str] = []
        self.at_line: list[Instruction | None] = [None]  # the first line is 1
        self.names: dict[str, object] = {"NOBODY": NOBODY, "place": place, "choose": choose}

    def write(self, block: Block) -> None:
        self._line("def block(g):", None)
        self._line(" r, t = g.registers, g.batch.tally", None)
        for action, slots in zip(block.body, _last_uses(block), strict=True):
            try:
                lines = self._action(action)
            except PTXError as error:
                raise PTXError(f"{error}: {action.ins.text}") from error
            for line in lines:
                self._line(f" {line}", action.ins)
            if slots:
                self._line(" " + "".join(f"r[{slot}] = " for slot in slots) + "None", action.ins)
        if block.guard is not None:
            self._line(f" if t: t.guarded(g.size, r[{block.guard}], {block.negated})", block.instructions[-1])

    def _line(self, text: str, ins: Instruction | None) -> None:
        self.lines.append(text)
        self.at_line.append(ins)

    def _constant(self, value: object) -> str:
        name = f"k{len(self.names)}"
        self.names[name] = value
        return name

    def _dtype(self, dtype: np.dtype) -> str:
        self.names[dtype.name] = dtype
        return dtype.name

    def _action(self, action: Action) -> list[str]:
        ins, step = action.ins, action.step
        values = [self._read(*source) for source in step.sources]
        function = self._constant(step.function)
        if step.effect:
            values = ["g", "a" if ins.guard else "None", *values]
        call = f"{function}({', '.join(values)})"
        if not ins.guard:
            return self._assign(action, call, "{new}")
        guard = f"r[{self.program.slot(ins.guard)}]"
        count = f"if t: t.guarded(g.size, {guard}, {ins.negated})"
        if not step.effect:
            merge = f"choose({{old}}, {guard}, {ins.negated}, {{new}})"
            return [count, *self._assign(action, call, merge)]
        lanes = f"a = g.where({'~' * ins.negated}{guard})"
        kept = self._assign(action, call, "place({old}, a, {new}, g.size)")
        return [count, lanes, "if a is not NOBODY:", *(f" {line}" for line in kept)]

    def _assign(self, action: Action, call: str, merge: str) -> list[str]:
        """Statements that put the values of a call into the registers of its results."""
        results = action.step.results
        if len(results) < 2:
            lines, values = [], [call]
        else:
            lines, values = [f"v = {call}"], [f"v[{j}]" for j in range(len(results))]
        if not results or results[0][0] == "_" and len(results) == 1:
            return [call]
        for value, (operand, type_) in zip(values, results, strict=True):
            if operand != "_":
                old = f"r[{self.program.slot(operand)}]"
                new = self._as_register(value, operand, type_)
                lines.append(f"{old} = {merge.format(old=old, new=new)}")
        return lines

    def _as_register(self, value: str, register: str, type_: str) -> str:
        """The bits of a value of a type, extended to the register's width as the type's sign says."""
        own, bits = self.program.raw(register), raw(type_)
        if bits.itemsize != own.itemsize:
            extended = TYPES[type_] if TYPES[type_].kind == "i" else bits
            return f"{value}.view({self._dtype(extended)}).astype({self._dtype(own)})"
        return value if TYPES[type_] == own else f"{value}.view({self._dtype(own)})"

    def _read(self, operand: str, type_: str) -> str:
        if type_ == ADDRESS:
            return self._address(operand)
        if operand not in self.program.types:
            return self._constant(self._fixed(operand, type_))
        own, dtype = self.program.raw(operand), TYPES[type_]
        value = f"r[{self.program.slot(operand)}]"
        if own == dtype:
            return value
        if own.kind == "b" or dtype.kind == "b" or own.itemsize < dtype.itemsize:
            raise PTXError(f"{operand} is no {type_}")
        if own.itemsize > dtype.itemsize:
            value = f"{value}.astype({self._dtype(raw(type_))})"
        return f"{value}.view({self._dtype(dtype)})"

    def _fixed(self, operand: str, type_: str) -> np.generic:
        if operand in self.program.tables:
            return np.uint64(self.program.tables[operand].ctypes.data).view(TYPES[type_])
        return immediate(str(self.program.kernel.symbols.get(operand, operand)), type_)

    def _address(self, operand: str) -> str:
        """[%rd1+16]. Addresses of 32 bits, which are shared memory's, wrap."""
        register, offset, wide = register_of(operand), offset_of(operand), self._dtype(np.dtype(np.int64))
        if register not in self.program.types:
            return self._constant(self._fixed(register, "s64") + np.int64(offset))
        value = f"r[{self.program.slot(register)}]"
        if self.program.raw(register).itemsize == 4:
            value = f"({value} + {self._constant(np.uint32(offset & 0xFFFFFFFF))})" if offset else value
            return f"{value}.astype({wide})"
        return f"({value}.view({wide}) + {offset})" if offset else f"{value}.view({wide})"


def _last_uses(block: Block) -> list[set[int]]:
    """For each instruction, the registers that nothing after it needs."""
    needed = set(block.needed)
    if block.guard is not None:
        needed.add(block.guard)
    last = []
    for action in reversed(block.body):
        last.append((action.reads | action.fills) - needed)
        needed = (needed - action.fills) | action.reads
    return last[::-1]
