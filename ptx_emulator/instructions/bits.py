# SPDX-License-Identifier: Apache-2.0
"""Bits: logic, fields, bytes, counts."""

from __future__ import annotations

import numpy as np

from ..errors import PTXError
from ..parse import Instruction
from ..values import TYPES
from .step import Step, compute, instruction, select

BYTE, U32, U64 = np.uint64(0xFF), np.uint32, np.uint64


@instruction("and", "or", "xor", "not")
def logic(ins: Instruction) -> Step:
    functions = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert}
    return compute(ins, functions[ins.opcode])


@instruction("lop3")
def lop3(ins: Instruction) -> Step:
    """Any function of three bits: bit 4a + 2b + c of the table."""
    table = int(ins.operands[4], 0)

    def run(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        result = U32(0)
        for case in range(8):
            if table >> case & 1:
                terms = (x if case & bit else ~x for x, bit in ((a, 4), (b, 2), (c, 1)))
                result = result | np.bitwise_and.reduce(np.broadcast_arrays(*terms), axis=0)
        return result

    return Step(run, [(operand, "b32") for operand in ins.operands[1:4]], [(ins.operands[0], "b32")])


@instruction("shf")
def funnel_shift(ins: Instruction) -> Step:
    """The upper (l) or lower (r) word of {b, a} shifted."""
    left, wrap = "l" in ins.modifiers, "wrap" in ins.modifiers

    def run(a: np.ndarray, b: np.ndarray, amount: np.ndarray) -> np.ndarray:
        amount = (amount & U32(31) if wrap else np.minimum(amount, U32(32))).astype(U64)
        both = (b.astype(U64) << U64(32)) | a.astype(U64)
        return ((both << amount) >> U64(32) if left else both >> amount).astype(U32)

    return compute(ins, run, ("b32", "b32", "u32"), "b32")


@instruction("bfe")
def extract_field(ins: Instruction) -> Step:
    """`length` bits from `start` on. A signed field is extended by its uppermost bit."""
    dtype = TYPES[ins.type]
    width = 8 * dtype.itemsize

    def run(value: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
        start, length = (np.minimum(x & U32(0xFF), U32(64)).astype(np.int64) for x in (start, length))
        end = np.minimum(start + length, width)
        if dtype.kind == "u":
            kept = value.astype(U64) << _amount(64 - end)
            kept = select(end <= 0, U64(0), kept)
            field = kept >> _amount(64 - end + np.minimum(start, 63))
            return select((length == 0) | (start >= width), dtype.type(0), field.astype(dtype))
        kept = value.astype(np.int64) << np.minimum(64 - end, 63)
        field = kept >> np.minimum(64 - end + np.minimum(start, width - 1), 63)
        return select(length == 0, dtype.type(0), field.astype(dtype))

    return compute(ins, run, (ins.type, "u32", "u32"))


def _amount(bits: np.ndarray) -> np.ndarray:
    return np.minimum(bits, 63).astype(U64)


@instruction("bfi")
def insert_field(ins: Instruction) -> Step:
    """The low `length` bits of a, put into b from `start` on."""
    dtype = TYPES[ins.type]
    width = 8 * dtype.itemsize

    def run(a: np.ndarray, b: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
        start, length = ((x & U32(0xFF)).astype(U64) for x in (start, length))
        ones = select(length >= 64, ~U64(0), (U64(1) << np.minimum(length, U64(63))) - U64(1))
        inside = start < width
        shift = np.minimum(start, U64(63))
        mask = select(inside, ones << shift, U64(0)).astype(dtype)
        return (b & ~mask) | ((a.astype(U64) << shift).astype(dtype) & mask)

    return compute(ins, run, (ins.type, ins.type, "u32", "u32"))


@instruction("prmt")
def permute_bytes(ins: Instruction) -> Step:
    """Each byte picks one of the eight of {b, a}; a selector of 8 and above copies that byte's sign."""
    if ins.type != "b32":
        raise PTXError("a permutation mode")

    def pick(word: np.ndarray, selector: np.ndarray) -> np.ndarray:
        shift = (selector & U32(7)).astype(U64) << U64(3)
        byte = ((word >> shift) & BYTE).astype(U32)
        sign = select(byte >= 128, U32(0xFF), U32(0))
        return select(selector >= 8, sign, byte)

    def run(a: np.ndarray, b: np.ndarray, selectors: np.ndarray) -> np.ndarray:
        word = (b.astype(U64) << U64(32)) | a.astype(U64)
        result = U32(0)
        for j in range(4):
            result = result | (pick(word, (selectors >> U32(4 * j)) & U32(15)) << U32(8 * j))
        return result

    return compute(ins, run)


def popc(value: np.ndarray) -> np.ndarray:
    return np.bitwise_count(value).astype(U32)


def clz(value: np.ndarray) -> np.ndarray:
    """Zeros above the uppermost one: the ones are smeared down, then counted."""
    width = 8 * value.dtype.itemsize
    shift = 1
    while shift < width:
        value = value | (value >> value.dtype.type(shift))
        shift *= 2
    return U32(width) - popc(value)


def brev(value: np.ndarray) -> np.ndarray:
    dtype = value.dtype.type
    width = 8 * value.dtype.itemsize
    result = dtype(0)
    for bit in range(width):
        result = result | (((value >> dtype(bit)) & dtype(1)) << dtype(width - 1 - bit))
    return result


@instruction("popc", "clz", "brev")
def count_bits(ins: Instruction) -> Step:
    if ins.opcode == "brev":
        return compute(ins, brev)
    return compute(ins, {"popc": popc, "clz": clz}[ins.opcode], result="u32")
