# SPDX-License-Identifier: Apache-2.0
"""Exchange within a warp: shfl, vote, activemask, match, redux."""

from __future__ import annotations

from functools import cache

import numpy as np

from ..errors import PTXError
from ..parse import Instruction
from ..values import TYPES
from .step import Step, instruction

LANES = np.arange(32)
TRUE = np.bool_(True)


def shuffled(mode: str, lane: np.ndarray, offset: np.ndarray, clamp: np.ndarray) -> tuple[np.ndarray, ...]:
    """The lane that each lane reads, and whether it lies in range; out of range a lane reads itself."""
    offset = offset & 31
    segment, bound = (clamp >> 8) & 31, clamp & 31
    top = (lane & segment) | (bound & ~segment)
    source = {
        "bfly": lane ^ offset,
        "idx": (lane & segment) | (offset & ~segment),
        "up": lane - offset,
        "down": lane + offset,
    }[mode]
    inside = source >= top if mode == "up" else source <= top
    return np.where(inside, source, lane), inside


@cache
def pattern(mode: str, offset: int, clamp: int) -> tuple[np.ndarray, ...]:
    return shuffled(mode, LANES, np.int64(offset), np.int64(clamp))


@instruction("shfl")
def shfl(ins: Instruction) -> Step:
    mode = ins.one_of("bfly", "idx", "up", "down")
    names = ins.operands[0].split("|")

    def run(group, lanes, value, offset, clamp):
        if lanes is None and group.whole_warps and offset.ndim == clamp.ndim == 0:
            source, inside = pattern(mode, int(offset), int(clamp))
            if value.ndim:
                value = value.reshape(-1, 32).take(source, axis=1).reshape(-1)
            return (value, np.tile(inside, group.size // 32)) if len(names) > 1 else value
        thread = group.threads
        wide = (group.full(x).astype(np.int64) for x in (offset, clamp))
        source, inside = shuffled(mode, thread & 31, *wide)
        place = group.places((thread & ~31) + source)
        here = group.pick(np.arange(group.size), lanes)
        active = np.zeros(group.size, bool)
        active[here] = True
        read = place[here]
        if (read < 0).any() or not active[read].all():
            raise PTXError("shfl reads from an inactive lane")
        value = group.full(value)[read]
        return (value, inside[here]) if len(names) > 1 else value

    sources = list(zip(ins.operands[1:4], ("b32", "u32", "u32"), strict=True))
    return Step(run, sources, list(zip(names, ("b32", "pred"), strict=False)), effect=True)


def by_warp(group, lanes, value: np.ndarray, idle: object) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The active lanes' values as [warps of the batch, 32], `idle` elsewhere; which are active; and the
    active threads."""
    thread = group.pick(group.threads, lanes)
    table = np.full(group.batch.threads, idle, value.dtype)
    table[thread] = group.pick(value, lanes)
    active = np.zeros(group.batch.threads, bool)
    active[thread] = True
    return table.reshape(-1, 32), active.reshape(-1, 32), thread


@instruction("vote", "activemask")
def vote(ins: Instruction) -> Step:
    mode = "ballot" if ins.opcode == "activemask" else ins.one_of("ballot", "any", "all", "uni")

    def run(group, lanes, value=TRUE, members=None):
        table, active, thread = by_warp(group, lanes, value, False)
        every = (table | ~active).all(1)
        result = {
            "ballot": lambda: (table.astype(np.uint32) << LANES.astype(np.uint32)).sum(1, dtype=np.uint32),
            "any": lambda: table.any(1),
            "all": lambda: every,
            "uni": lambda: every | ~table.any(1),
        }[mode]()
        return result[thread >> 5]

    sources = [] if ins.opcode == "activemask" else [(ins.operands[1], "pred")]
    return Step(run, sources, [(ins.operands[0], "b32" if mode == "ballot" else "pred")], effect=True)


REDUCE = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


@instruction("redux")
def redux(ins: Instruction) -> Step:
    reduce = REDUCE[ins.one_of(*REDUCE)].reduce
    dtype = TYPES[ins.type]

    def run(group, lanes, value, members):
        if lanes is not None or not group.whole_warps:
            raise PTXError("redux with inactive lanes")
        if value.ndim == 0:
            value = group.full(value)
        return np.repeat(reduce(value.reshape(-1, 32), axis=1, dtype=dtype), 32)

    sources = [(ins.operands[1], ins.type), (ins.operands[2], "b32")]
    return Step(run, sources, [(ins.operands[0], ins.type)], effect=True)
