"""A kernel made ready to run: each basic block becomes a Python function with a line or two per instruction.

    add.s32 %r3, %r1, %r2;                 r[2] = f0(r[0], r[1])
    @%p1 ld.global.b32 %r4, [%rd1+16];     a = g.where(r[4])
                                           if a is not NOBODY:
                                            r[3] = place(r[3], a, f1(g, a, r[5] + 16), g.size)

`r` is the list of registers of the group `g` of threads that runs the block. A register is forgotten after
its last use, which keeps the arrays few and in cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from . import flow
from .errors import PTXError
from .instructions import ADDRESS, Step, translate
from .machine import NOBODY, place
from .parse import Instruction, parse
from .values import TYPES, immediate, raw

SPECIAL = {  # registers that are there from the start
    **{f"%{name}.{axis}": "u32" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"},
    **dict.fromkeys(("%laneid", "%warpid", "%smid", "%nsmid", "%clock"), "u32"),
    **dict.fromkeys(("%clock64", "%globaltimer"), "u64"),
    "%cc": "pred",
}


@dataclass
class Block:
    index: int
    instructions: list[Instruction]
    unguarded: int = 0  # instructions without a guard
    exit: str = "next"  # or "branch", "return", "barrier"
    guard: int | None = None  # the register that an exit depends on
    negated: bool = False
    target: int = 0  # of a branch
    live: set[int] = field(default_factory=set)  # registers needed at its beginning
    run: object = None  # the function


class Program:
    """A compiled module. It holds no state of a launch."""

    def __init__(self, ptx: str):
        self.kernel = kernel = parse(ptx)
        self.types = {
            **SPECIAL,
            **{name: type_ for name, type_, _ in kernel.parameters},
            **kernel.registers,
        }
        self.tables = {symbol: np.frombuffer(data, np.uint8) for symbol, data in kernel.tables.items()}
        self.slots: dict[str, int] = {}  # register -> place in the list
        self.filename = f"<ptx {kernel.name}>"
        self.at_line: list[Instruction | None] = [None]  # by line of the generated source
        self._names: dict[str, object] = {"NOBODY": NOBODY, "place": place, "choose": _choose}
        self._source: list[str] = []
        self._blocks()
        exec(compile("\n".join(self._source), self.filename, "exec"), self._names)
        for block in self.blocks:
            block.run = self._names[f"block_{block.index}"]

    def slot(self, register: str) -> int:
        return self.slots.setdefault(register, len(self.slots))

    def _blocks(self) -> None:
        kernel = self.kernel
        origin = flow.pointers(kernel)
        starts = flow.block_starts(kernel)
        ends = [*starts[1:], len(kernel.instructions)]
        self.blocks = [
            Block(index, kernel.instructions[start:end])
            for index, (start, end) in enumerate(zip(starts, ends, strict=True))
        ]
        index_of = {start: index for index, start in enumerate([*starts, len(kernel.instructions)])}
        steps = []
        for block in self.blocks:
            block.unguarded = sum(ins.guard is None for ins in block.instructions)
            if flow.is_control(block.instructions[-1]):
                self._exit(block, index_of)
            body = [ins for ins in block.instructions if not flow.is_control(ins)]
            steps.append([(ins, translate(_with_pointers(ins, origin))) for ins in body])
        self._liveness(steps)
        for block, body in zip(self.blocks, steps, strict=True):
            self._generate(block, body)

    def _exit(self, block: Block, index_of: dict[int, int]) -> None:
        ins = block.instructions[-1]
        if flow.is_barrier(ins):
            threads = ins.operands[1:]
            if ins.guard or ins.operands[0] != "0" or any(int(n) != self.kernel.threads for n in threads):
                raise PTXError(f"a barrier of some threads: {ins.text}")
            block.exit = "barrier"
            return
        block.exit = "branch" if ins.opcode == "bra" else "return"
        block.target = len(self.blocks)
        if block.exit == "branch":
            block.target = index_of[self.kernel.labels[ins.operands[0]]]
        if ins.guard:
            block.guard, block.negated = self.slot(ins.guard), ins.negated

    def _liveness(self, steps: list[list[tuple[Instruction, Step]]]) -> None:
        reads, writes, successors = [], [], []
        for block, body in zip(self.blocks, steps, strict=True):
            read, written = set(), set()
            for ins, step in body:
                uses, fills = self._uses(ins, step)
                read |= uses - written
                written |= fills
            if block.guard is not None:
                read |= {block.guard} - written
            reads.append(read)
            writes.append(written)
            following = [block.index + 1] if block.exit != "return" or block.guard is not None else []
            if block.exit == "branch":
                following = [block.target] if block.guard is None else [block.target, *following]
            successors.append([index for index in following if index < len(self.blocks)])
        for block, live in zip(self.blocks, flow.live_registers(reads, writes, successors), strict=True):
            block.live = live
        self.needed_after = [
            set().union(*(self.blocks[index].live for index in following)) for following in successors
        ]

    def _uses(self, ins: Instruction, step: Step) -> tuple[set[int], set[int]]:
        """Registers that an instruction reads and those that it certainly fills."""
        read = {_register(operand) for operand, _ in step.sources} & self.types.keys()
        filled = {operand for operand, _ in step.results if operand != "_"}
        if ins.guard:
            return set(map(self.slot, read | filled | {ins.guard})), set()
        return set(map(self.slot, read)), set(map(self.slot, filled))

    def _emit(self, line: str, ins: Instruction | None = None) -> None:
        self._source.append(line)
        self.at_line.append(ins)

    def _constant(self, value: object) -> str:
        name = f"k{len(self._names)}"
        self._names[name] = value
        return name

    def _generate(self, block: Block, body: list[tuple[Instruction, Step]]) -> None:
        needed = set(self.needed_after[block.index])
        if block.guard is not None:
            needed.add(block.guard)
        forget = []
        for ins, step in reversed(body):
            uses, fills = self._uses(ins, step)
            forget.append((uses | fills) - needed)
            needed = (needed - fills) | uses
        self._emit(f"def block_{block.index}(g):")
        self._emit(" r, t = g.registers, g.batch.tally")
        for (ins, step), slots in zip(body, reversed(forget), strict=True):
            try:
                lines = self._lines(ins, step)
            except PTXError as error:
                raise PTXError(f"{error}: {ins.text}") from error
            for line in lines:
                self._emit(" " + line, ins)
            if slots:
                self._emit(" " + "".join(f"r[{slot}] = " for slot in slots) + "None", ins)
        if block.guard is not None:
            last = block.instructions[-1]
            self._emit(f" if t: t.guarded(g, r[{block.guard}], {block.negated})", last)

    def _lines(self, ins: Instruction, step: Step) -> list[str]:
        lines, guard = [], None
        if ins.guard:
            guard = f"r[{self.slot(ins.guard)}]"
            lines.append(f"if t: t.guarded(g, {guard}, {ins.negated})")
        sources = [self._read(*source) for source in step.sources]
        function = self._constant(step.function)
        if not step.effect:
            merge = f"choose({{}}, {guard}, {ins.negated}, {{}})" if guard else "{1}"
            return lines + self._assign(step, f"{function}({', '.join(sources)})", merge)
        lanes = "None"
        if guard:
            lines.append(f"a = g.where({'~' if ins.negated else ''}{guard})")
            lanes = "a"
        call = f"{function}({', '.join(['g', lanes, *sources])})"
        kept = self._assign(step, call, "place({}, a, {}, g.size)" if guard else "{1}")
        if guard:
            return [*lines, "if a is not NOBODY:", *(f" {line}" for line in kept)]
        return kept

    def _assign(self, step: Step, call: str, merge: str) -> list[str]:
        """Statements that put the values of a call into the registers of its results. merge: (old, new)."""
        if not step.results:
            return [call]
        values = [call] if len(step.results) == 1 else [f"v[{j}]" for j in range(len(step.results))]
        lines = [] if len(step.results) == 1 else [f"v = {call}"]
        for value, (operand, type_) in zip(values, step.results, strict=True):
            if operand == "_":
                lines += [value] if value is call else []
                continue
            old = f"r[{self.slot(operand)}]"
            lines.append(f"{old} = {merge.format(old, self._as_register(value, operand, type_))}")
        return lines

    def _as_register(self, value: str, register: str, type_: str) -> str:
        """The bits of a value of a type, extended to the register's width as the type's sign says."""
        own, bits = self._raw(register), raw(type_)
        if bits.itemsize != own.itemsize:
            extended = TYPES[type_] if TYPES[type_].kind == "i" else bits
            return f"{value}.view({self._dtype(extended)}).astype({self._dtype(own)})"
        return value if TYPES[type_] == own else f"{value}.view({self._dtype(own)})"

    def _read(self, operand: str, type_: str) -> str:
        if type_ == ADDRESS:
            return self._address(operand)
        if operand not in self.types:
            return self._constant(self._fixed(operand, type_))
        value, own, dtype = f"r[{self.slot(operand)}]", self._raw(operand), TYPES[type_]
        if own == dtype:
            return value
        if own.kind == "b" or dtype.kind == "b" or own.itemsize < dtype.itemsize:
            raise PTXError(f"{operand} is no {type_}")
        if own.itemsize > dtype.itemsize:
            value = f"{value}.astype({self._dtype(raw(type_))})"
        return f"{value}.view({self._dtype(dtype)})"

    def _fixed(self, operand: str, type_: str) -> np.generic:
        if operand in self.tables:
            return np.uint64(self.tables[operand].ctypes.data).view(TYPES[type_])
        return immediate(str(self.kernel.symbols.get(operand, operand)), type_)

    def _address(self, operand: str) -> str:
        """[%rd1+16]: 32-bit addresses, which are shared memory's, wrap."""
        register, offset = _register(operand), _offset(operand)
        if register not in self.types:
            return self._constant(self._fixed(register, "s64") + np.int64(offset))
        value, own = f"r[{self.slot(register)}]", self._raw(register)
        if own.itemsize == 4:
            value = f"({value} + {self._constant(np.uint32(offset & 0xFFFFFFFF))})" if offset else value
            return f"{value}.astype({self._dtype(np.dtype(np.int64))})"
        value = f"{value}.view({self._dtype(np.dtype(np.int64))})"
        return f"({value} + {offset})" if offset else value

    def _raw(self, register: str) -> np.dtype:
        return raw(self.types[register])

    def _dtype(self, dtype: np.dtype) -> str:
        name = dtype.name
        self._names[name] = dtype
        return name


def _choose(old: np.ndarray, guard: np.ndarray, negated: bool, new: np.ndarray) -> np.ndarray:
    """A guarded computation: new values where the guard holds."""
    if guard.ndim == 0:
        return new if guard != negated else old
    return np.where(guard, old, new) if negated else np.where(guard, new, old)


def _register(operand: str) -> str:
    """`[%rd1+16]` to `%rd1`."""
    return operand.strip("[] ").partition("+")[0].strip() if operand.startswith("[") else operand


def _offset(operand: str) -> int:
    text = operand.strip("[] ").partition("+")[2].strip()
    try:
        return int(text or "0", 0)
    except ValueError:
        raise PTXError(f"offset {text!r} of an address") from None


def _with_pointers(ins: Instruction, origin) -> Instruction:
    """An instruction that knows where its global address comes from."""
    address = [operand for operand in ins.operands if operand.startswith("[")]
    if not address or "param" in ins.modifiers:
        return ins
    return replace(ins, pointers=origin(_register(address[-1])))


@lru_cache(maxsize=1024)
def load(ptx: str) -> Program:
    """The program of a PTX text, compiled once."""
    return Program(ptx)
