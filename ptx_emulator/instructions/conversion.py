# SPDX-License-Identifier: Apache-2.0
"""cvt: between integers, floats and pairs of narrow floats."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..errors import PTXError
from ..parse import Instruction
from ..values import TYPES, from_bf16, from_fp8, high, low, pack, to_bf16, to_fp8
from .floating import computed
from .step import Step, instruction, select

TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def to_f16(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float16).view(np.uint16)


def to_f16_towards_zero(value: np.ndarray) -> np.ndarray:
    nearest = value.astype(np.float16)
    over = np.abs(nearest).astype(value.dtype) > np.abs(value)
    return nearest.view(np.uint16) - (over & np.isfinite(value)).astype(np.uint16)


def to_tf32(value: np.ndarray) -> np.ndarray:
    """Round the 13 low bits of the fraction away, ties away from zero."""
    bits = value.view(np.uint32)
    rounded = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return select(np.isfinite(value), rounded, bits)


def truncated(value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Floats with integer values to an integer type: beyond its ends, the end; NaN to 0."""
    ends = np.iinfo(dtype)
    value = np.asarray(value, np.float64)
    number = np.where(np.isnan(value), 0, np.clip(value, float(ends.min), float(ends.max)))
    if ends.bits < 64:
        return number.astype(np.int64).astype(dtype)[()]
    over = number >= float(ends.max)  # 2**63 or 2**64, which only the comparison may see
    return np.where(over, dtype.type(ends.max), np.where(over, 0, number).astype(dtype))[()]


def converter(ins: Instruction, to: str, source: str) -> Callable:
    rounding = TO_INTEGER.get(ins.one_of(*TO_INTEGER) or "")
    dtype = TYPES[to]

    def run(value: np.ndarray) -> np.ndarray:
        if source == "bf16":
            value = from_bf16(value)
        if value.dtype.kind == "f" and dtype.kind in "iu" and to not in ("bf16", "tf32"):
            return truncated(rounding(value), dtype)
        if rounding and value.dtype.kind == "f":
            value = rounding(value)
        if "sat" in ins.modifiers:
            value = _saturated(value, dtype)
        if to == "bf16":
            return to_bf16(value.astype(np.float32))
        if to == "tf32":
            return to_tf32(value)
        return value.astype(dtype)

    return run


def _saturated(value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype.kind == "f":
        return np.clip(select(np.isnan(value), value.dtype.type(0), value), 0, 1)
    ends, own = np.iinfo(dtype), np.iinfo(value.dtype)
    return np.clip(value, value.dtype.type(max(ends.min, own.min)), value.dtype.type(min(ends.max, own.max)))


@instruction("cvt")
def cvt(ins: Instruction) -> Step:
    to, source = [name for name in ins.modifiers if name in TYPES][:2]
    if "relu" in ins.modifiers:
        raise PTXError("relu")
    if ins.one_of("rm", "rp") or ("rz" in ins.modifiers and (to[:3], source) != ("f16", "f32")):
        raise PTXError("a rounding mode")
    if "rz" in ins.modifiers and to == "f16":
        return computed(ins, to_f16_towards_zero, (source,), "b16")
    if to in ("bf16x2", "f16x2") and source == "f32":
        half = to_bf16 if to == "bf16x2" else to_f16
        if "rz" in ins.modifiers:
            half = to_f16_towards_zero
        return computed(ins, lambda upper, lower: pack(half(lower), half(upper)), (source, source), to)
    if to in ("e4m3x2", "e5m2x2"):
        return computed(ins, _to_fp8_pair(to[:4], source), (source,) * (len(ins.operands) - 1), to)
    if source in ("e4m3x2", "e5m2x2"):
        half = to_f16 if to == "f16x2" else to_bf16
        pair = lambda bits: pack(*(half(from_fp8(b, source[:4])) for b in (bits & 0xFF, bits >> 8)))  # noqa: E731
        return computed(ins, pair, (source,), to)
    return computed(ins, converter(ins, to, source), (source,), to)


def _to_fp8_pair(form: str, source: str) -> Callable:
    def pair(*values: np.ndarray) -> np.ndarray:
        if source == "f32":
            upper, lower = values
        else:
            widen = from_bf16 if source == "bf16x2" else lambda bits: bits.view(np.float16)
            upper, lower = widen(high(values[0])), widen(low(values[0]))
        code = [to_fp8(value, form).astype(np.uint16) for value in (lower, upper)]
        return code[0] | (code[1] << np.uint16(8))

    return pair
