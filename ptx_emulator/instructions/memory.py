# SPDX-License-Identifier: Apache-2.0
"""Memory: ld, st, atom, red, cp.async."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..errors import PTXError
from ..memory import PROCESS
from ..parse import Instruction, elements
from ..values import RAW, TYPES, raw
from .floating import is_float, narrow
from .movement import same
from .step import ADDRESS, Step, instruction


def space(ins: Instruction) -> str:
    return ins.one_of("shared", "local", "global") or "global"


@instruction("ld", "ldu")
def load(ins: Instruction) -> Step:
    if "param" in ins.modifiers:
        return Step(same, [(ins.operands[1].strip("[]"), ins.type)], [(ins.operands[0], ins.type)])
    targets = elements(ins.operands[0])
    dtype, where, pointers = TYPES[ins.type], space(ins), ins.pointers
    width, count = dtype.itemsize, len(targets)
    shift = width.bit_length() - 1

    def run(group, lanes, address):
        uniform = address.ndim == 0
        memory, place = group.reach(where, lanes, address, width * count, "ld", pointers)
        source, index = memory[width], place >> shift
        values = [source.take(index + j if j else index).view(dtype) for j in range(count)]
        if uniform and where == "global":
            values = [value[0] for value in values]
        return tuple(values) if count > 1 else values[0]

    return Step(run, [(ins.operands[1], ADDRESS)], [(name, ins.type) for name in targets], effect=True)


@instruction("st")
def store(ins: Instruction) -> Step:
    sources = elements(ins.operands[1])
    type_ = f"b{8 * TYPES[ins.type].itemsize}"
    width, count, where, pointers = raw(type_).itemsize, len(sources), space(ins), ins.pointers
    shift = width.bit_length() - 1

    def run(group, lanes, address, *values):
        address = group.full(address)
        memory, place = group.reach(where, lanes, address, width * count, "st", pointers)
        target, index = memory[width], place >> shift
        for j, value in enumerate(values):
            at, value = index + j if j else index, group.pick(value, lanes)
            target[at] = value
            if where == "shared" and group.batch.races and (target[at] != value).any():
                raise PTXError("shared-memory race: two lanes write different values with one instruction")

    operands = [(ins.operands[0], ADDRESS), *((name, type_) for name in sources)]
    return Step(run, operands, [], effect=True)


UPDATES = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "exch": lambda old, value: value,
    "cas": lambda old, expected, value: np.where(old == expected, value, old),
}


def update(memory: np.ndarray, index: np.ndarray, function: Callable, values: list[np.ndarray]) -> np.ndarray:
    """memory[i] = function(memory[i], value) for one i after another; returns what was there before each."""
    order = np.argsort(index, kind="stable")
    ordered = index[order]
    first = np.flatnonzero(np.diff(ordered, prepend=ordered[0] - 1))
    if len(first) == len(index):  # no two lanes meet
        old = memory[index]
        memory[index] = function(old, *values)
        return old
    lengths = np.diff(first, append=len(index))
    old = np.empty(len(index), memory.dtype)
    for turn in range(int(lengths.max())):
        lane = order[first[lengths > turn] + turn]
        old[lane] = memory[index[lane]]
        memory[index[lane]] = function(old[lane], *(value[lane] for value in values))
    return old


@instruction("atom", "red")
def atomic(ins: Instruction) -> Step:
    """Lanes take their turns in order. red is atom without a result."""
    operation = ins.one_of(*UPDATES)
    if operation is None or any(operand.startswith("{") for operand in ins.operands):
        raise PTXError("an atomic operation")
    results = [] if ins.opcode == "red" else [(ins.operands[0], ins.type)]
    address, *sources = ins.operands[len(results) :]
    function, where, pointers = UPDATES[operation], space(ins), ins.pointers
    dtype = TYPES[ins.type]
    if is_float(ins.type) and ins.type not in ("f32", "f64"):
        dtype, function = raw(ins.type), narrow(function, ins.type)

    def run(group, lanes, address, *values):
        width = dtype.itemsize
        address = group.full(address)
        memory, place = group.reach(where, lanes, address, width, "atom", pointers)
        target = memory[width]
        target = target if dtype == target.dtype else target.view(dtype)
        values = [group.pick(group.full(value), lanes).view(dtype) for value in values]
        old = update(target, place >> (width.bit_length() - 1), function, values)
        return old.view(TYPES[ins.type]) if results else None

    operands = [(address, ADDRESS), *((source, ins.type) for source in sources)]
    return Step(run, operands, results, effect=True)


@instruction("cp")
def copy_async(ins: Instruction) -> Step:
    if ins.modifiers[0] != "async" or "bulk" in ins.modifiers or "mbarrier" in ins.modifiers:
        raise PTXError("a copy")
    if "commit_group" in ins.modifiers:
        return Step(
            lambda group, lanes: group.batch.copies.commit(group.pick(group.threads, lanes)), [], [], True
        )
    if "wait_group" in ins.modifiers or "wait_all" in ins.modifiers:
        return _wait(-1 if "wait_all" in ins.modifiers else int(ins.operands[0]))
    if len(ins.operands) > 3 and "cache_hint" in ins.name and len(ins.operands) == 4:
        raise PTXError("a cache hint in place of a size")
    return _copy(ins)


def _wait(ahead: int) -> Step:
    def wait(group, lanes):
        batch = group.batch
        if not batch.copies.pending:
            return
        waiting = np.zeros(batch.threads, bool)
        waiting[group.pick(group.threads, lanes)] = True
        for thread, place, data in batch.copies.arrive(waiting, ahead):
            width, words = data.itemsize, data.shape[1]
            batch.shared.bytes[width][(place // width)[:, None] + np.arange(words)] = data
            batch.check_race(thread, place, width * words, write=True)
            if batch.proxy:
                batch.proxy.arrive(thread, place)

    return Step(wait, [], [], effect=True)


def _copy(ins: Instruction) -> Step:
    """`cp.async.cg.shared.global [to], [from], size, given;`: `given` bytes of `size`, the rest zeros."""
    size, pointers = int(ins.operands[2], 0), ins.pointers
    width = min(size, 8)  # moved as words
    word = np.arange(size // width)

    def copy(group, lanes, to, source, given=None):
        to, source = group.full(to), group.full(source)
        memory, place = group.reach("shared", lanes, to, size, "copy")
        thread = group.pick(group.threads, lanes)
        data = np.zeros((len(thread), len(word)), RAW[width])
        taken = np.full(len(thread), size) if given is None else group.pick(group.full(given), lanes)
        if ((taken != 0) & (taken != size)).any():
            raise PTXError("cp.async of a part")
        some = np.flatnonzero(taken)
        if len(some):
            active = some if lanes is None else lanes[some]
            _, start = group.reach("global", active, source, size, "ld", pointers)
            data[some] = PROCESS[width][(start // width)[:, None] + word]
        group.batch.copies.start(thread, place, data)

    sources = [(ins.operands[0], ADDRESS), (ins.operands[1], ADDRESS)]
    if len(ins.operands) > 3:
        sources.append((ins.operands[3], "u32"))
    return Step(copy, sources, [], effect=True)
