# SPDX-License-Identifier: Apache-2.0
"""Floating point. Every operation is the exact result rounded once (fma of float64 excepted), also where the
hardware approximates. `.ftz` flushes subnormal float32 to zero, before and after."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..errors import PTXError
from ..parse import Instruction
from ..values import from_bf16, high, low, pack, to_bf16
from .step import Step, compute, instruction, select

NORMAL = np.float32(2**-126)
FLOATS = ("f16", "bf16", "f32", "f64", "f16x2", "bf16x2")


def is_float(type_: str) -> bool:
    return type_ in FLOATS


def flush(value: np.ndarray) -> np.ndarray:
    """Subnormal float32 to zero of the same sign."""
    tiny = np.abs(value) < NORMAL
    return select(tiny, value * np.float32(0), value) if tiny.any() else value


def computed(ins: Instruction, function: Callable, sources: tuple[str, ...] = (), result: str = "") -> Step:
    """`compute`, flushing where the instruction says so."""
    if "ftz" not in ins.modifiers:
        return compute(ins, function, sources, result)

    def flushed(*values: np.ndarray) -> np.ndarray:
        outcome = function(*(flush(v) if v.dtype == np.float32 else v for v in values))
        return flush(outcome) if outcome.dtype == np.float32 else outcome

    return compute(ins, flushed, sources, result)


def narrow(function: Callable, type_: str) -> Callable:
    """A function of floats as one of the bits of f16, bf16 or pairs of them, rounded once."""

    def half(*bits: np.ndarray) -> np.ndarray:
        if type_.startswith("bf16"):
            return to_bf16(function(*(from_bf16(b).astype(np.float64) for b in bits)).astype(np.float32))
        values = (b.view(np.float16).astype(np.float64) for b in bits)
        return function(*values).astype(np.float16).view(np.uint16)

    if not type_.endswith("x2"):
        return half
    return lambda *bits: pack(half(*map(low, bits)), half(*map(high, bits)))


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return a * b + c


def fma_f32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """The product of two float32 is exact in float64."""
    return (a.astype(np.float64) * b + c).astype(np.float32)


def fma_f16(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return (a.astype(np.float64) * b + c).astype(np.float16)


ARITHMETIC = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "fma": fma,
    "mad": fma,
}


@instruction("fma")
def arithmetic(ins: Instruction) -> Step:
    function = ARITHMETIC[ins.opcode]
    if ins.type in ("bf16", "f16x2", "bf16x2"):
        function = narrow(function, ins.type)
    elif function is fma:
        function = {"f32": fma_f32, "f16": fma_f16}.get(ins.type, fma)
    if "sat" in ins.modifiers:
        raise PTXError("saturation")
    if "relu" in ins.modifiers:
        raise PTXError("relu")
    return computed(ins, function)


def sign_and_order(ins: Instruction) -> Step:
    """min and max give the number where the other is a NaN, unless .NaN."""
    functions = {"abs": np.abs, "neg": np.negative, "min": np.fmin, "max": np.fmax}
    function = functions[ins.opcode]
    if "NaN" in ins.modifiers:
        function = {"min": np.minimum, "max": np.maximum}[ins.opcode]
    if ins.type in ("bf16", "f16x2", "bf16x2"):
        function = narrow(function, ins.type)
    return computed(ins, function)


@instruction("copysign")
def copysign(ins: Instruction) -> Step:
    """The second operand with the first one's sign."""
    return compute(ins, lambda sign, size: np.copysign(size, sign))


ORDERED = {
    "eq": np.equal,
    "ne": lambda a, b: (a < b) | (a > b),
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
}
UNORDERED = {  # also true if either is a NaN
    "equ": lambda a, b: ~((a < b) | (a > b)),
    "neu": np.not_equal,
    "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b),
    "nan": lambda a, b: np.isnan(a) | np.isnan(b),
}


def comparison(name: str, type_: str) -> Callable:
    """Of two numbers, or of two pairs, which gives two results: that of the lower halves first."""
    compare = (ORDERED | UNORDERED)[name]
    if type_.endswith("x2"):
        one = comparison(name, type_[:-2])
        form = np.float16 if type_ == "f16x2" else np.uint16
        return lambda a, b: tuple(one(half(a).view(form), half(b).view(form)) for half in (low, high))
    if type_ == "bf16":
        return lambda a, b: compare(from_bf16(a), from_bf16(b))
    return compare


@instruction("set")
def set_pair(ins: Instruction) -> Step:
    """1 or 0 for each of a pair, as floats of the pair's own type."""
    name, to, source = ins.modifiers
    if to != source or not to.endswith("x2"):
        raise PTXError("types of set")
    compare = comparison(name, to)
    one, zero = np.uint16(0x3C00 if to == "f16x2" else 0x3F80), np.uint16(0)
    return compute(ins, lambda a, b: pack(*(select(holds, one, zero) for holds in compare(a, b))))


def reciprocal_root(value: np.ndarray) -> np.ndarray:
    return value.dtype.type(1) / np.sqrt(value)


FUNCTIONS = {
    "ex2": np.exp2,
    "lg2": np.log2,
    "rcp": np.reciprocal,
    "sqrt": np.sqrt,
    "rsqrt": reciprocal_root,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}


@instruction(*FUNCTIONS)
def function(ins: Instruction) -> Step:
    run = FUNCTIONS[ins.opcode]
    if ins.type in ("bf16", "f16x2", "bf16x2"):
        run = narrow(run, ins.type)
    return computed(ins, run)
