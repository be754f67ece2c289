# SPDX-License-Identifier: Apache-2.0
"""Integers and predicates: arithmetic, extended precision, division, shifts, comparison.

Opcodes that serve floating point as well are handed on to `floating`.
"""

from __future__ import annotations

import numpy as np

from ..errors import PTXError
from ..parse import Instruction
from ..values import TYPES
from . import floating
from .step import Step, compute, instruction, select

ARITHMETIC = {"add": np.add, "sub": np.subtract, "mul": np.multiply}
WIDER = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


def high_u64(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The upper half of a 64 x 64 bit product, by 32-bit halves."""
    a_low, a_high, b_low, b_high = a & LOW, a >> HALF, b & LOW, b >> HALF
    middle = ((a_low * b_low) >> HALF) + (a_high * b_low & LOW) + (a_low * b_high & LOW)
    return a_high * b_high + (a_high * b_low >> HALF) + (a_low * b_high >> HALF) + (middle >> HALF)


def high(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The upper half of a product of 32- or 64-bit integers."""
    dtype = a.dtype
    if dtype.itemsize == 4:
        wide = np.int64 if dtype.kind == "i" else np.uint64
        return ((a.astype(wide) * b.astype(wide)) >> wide(32)).astype(dtype)
    if dtype.itemsize != 8:
        raise PTXError(f"the upper half of a product of {dtype}")
    unsigned = [value.view(np.uint64) for value in (a, b)]
    product = high_u64(*unsigned)
    if dtype.kind == "i":
        zero = np.uint64(0)
        product = product - select(a < 0, unsigned[1], zero) - select(b < 0, unsigned[0], zero)
    return product.view(dtype)


@instruction("add", "sub", "mul")
def arithmetic(ins: Instruction) -> Step:
    if floating.is_float(ins.type):
        return floating.arithmetic(ins)
    if "cc" in ins.modifiers:
        return _carried(ins)
    if ins.opcode == "mul" and "hi" in ins.modifiers:
        return compute(ins, high)
    if ins.opcode == "mul" and "wide" in ins.modifiers:
        wide = TYPES[WIDER[ins.type]]
        product = lambda a, b: a.astype(wide) * b.astype(wide)  # noqa: E731
        return compute(ins, product, result=WIDER[ins.type])
    return compute(ins, ARITHMETIC[ins.opcode])


@instruction("mad")
def mad(ins: Instruction) -> Step:
    if floating.is_float(ins.type):
        return floating.arithmetic(ins)
    if "cc" in ins.modifiers:
        return _carried(ins)
    if "wide" in ins.modifiers:
        sum_type = WIDER[ins.type]
        wide = TYPES[sum_type]
        fused = lambda a, b, c: a.astype(wide) * b.astype(wide) + c  # noqa: E731
        return compute(ins, fused, (ins.type, ins.type, sum_type), sum_type)
    product = high if "hi" in ins.modifiers else np.multiply
    return compute(ins, lambda a, b, c: product(a, b) + c)


@instruction("addc", "subc", "madc")
def _carried(ins: Instruction) -> Step:
    """Extended precision: takes the carry flag in (addc, subc, madc) and out (.cc)."""
    takes, gives = ins.opcode.endswith("c"), "cc" in ins.modifiers
    unsigned = ins.type.replace("s", "u")
    product = high if "hi" in ins.modifiers else np.multiply

    def run(*values: np.ndarray) -> tuple[np.ndarray, ...]:
        *values, carry = values if takes else (*values, np.bool_(False))
        if len(values) == 3:
            values = [product(values[0], values[1]), values[2]]
        a, b = values
        bit = carry.astype(a.dtype)
        if ins.opcode.startswith("sub"):
            result = a - b - bit
            out = (a < b) | ((a == b) & carry)
        else:
            partial = a + b
            result = partial + bit
            out = (partial < a) | (result < partial)
        return (result, out) if gives else result

    sources = [(operand, unsigned) for operand in ins.operands[1:]]
    results = [(ins.operands[0], unsigned)]
    return Step(
        run,
        [*sources, ("%cc", "pred")] if takes else sources,
        [*results, ("%cc", "pred")] if gives else results,
    )


@instruction("div", "rem")
def division(ins: Instruction) -> Step:
    """Rounds towards zero. What PTX leaves open, a division by zero, is one by one here."""
    if floating.is_float(ins.type):
        return floating.arithmetic(ins)

    def divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        b = select(b == 0, b.dtype.type(1), b)
        if ins.opcode == "rem":
            return np.fmod(a, b)
        quotient = a // b
        if a.dtype.kind == "i":
            quotient = quotient + ((quotient * b != a) & ((a < 0) != (b < 0))).astype(a.dtype)
        return quotient

    return compute(ins, divide)


@instruction("abs", "neg", "min", "max")
def sign_and_order(ins: Instruction) -> Step:
    if floating.is_float(ins.type):
        return floating.sign_and_order(ins)
    function = {"abs": np.abs, "neg": np.negative, "min": np.minimum, "max": np.maximum}[ins.opcode]
    if "relu" in ins.modifiers:  # from sm_90 on
        return compute(ins, lambda a, b: np.maximum(function(a, b), TYPES[ins.type].type(0)))
    return compute(ins, function)


@instruction("shl", "shr")
def shift(ins: Instruction) -> Step:
    """Amounts from the width on shift everything out."""
    dtype = TYPES[ins.type]
    width = 8 * dtype.itemsize
    function = np.left_shift if ins.opcode == "shl" else np.right_shift
    if ins.operands[2].isdigit() and int(ins.operands[2]) < width:
        return compute(ins, function)
    signed = ins.opcode == "shr" and dtype.kind == "i"

    def run(value: np.ndarray, amount: np.ndarray) -> np.ndarray:
        over = amount >= width
        shifted = function(value, np.minimum(amount, np.uint32(width - 1)).astype(dtype))
        if not over.any():
            return shifted
        return shifted if signed and over.all() else select(over, _out(value), shifted)

    def _out(value: np.ndarray) -> np.ndarray:
        return value >> dtype.type(width - 1) if signed else dtype.type(0)

    return compute(ins, run, (ins.type, "u32"))


COMPARISONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
LOGICAL = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


@instruction("setp")
def setp(ins: Instruction) -> Step:
    """`setp.lt.and.s32 %p1|%p2, a, b, %p0`: p1 = (a < b) and p0, p2 = not (a < b) and p0. Of pairs p1 is the
    lower halves' and p2 the upper halves'."""
    name, type_ = ins.modifiers[0], ins.type
    compare = floating.comparison(name, type_) if floating.is_float(type_) else COMPARISONS[name]
    combine = LOGICAL.get(ins.one_of(*LOGICAL) or "")
    results = [(result, "pred") for result in ins.operands[0].split("|")]

    pairs = type_.endswith("x2")
    if pairs and len(results) != 2:
        raise PTXError("one result of pairs")

    def run(a: np.ndarray, b: np.ndarray, p: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        holds = compare(a, b)
        both = holds if pairs else (holds, ~holds)[: len(results)]
        return tuple(combine(one, p) for one in both) if combine else both

    sources = [*zip(ins.operands[1:3], (type_, type_), strict=True)]
    if combine:
        if ins.operands[3].startswith("!"):
            raise PTXError("a negated predicate operand")
        sources.append((ins.operands[3], "pred"))
    elif len(results) == 1:
        return Step(compare, sources, results)
    return Step(run if len(results) > 1 else lambda *values: run(*values)[0], sources, results)
