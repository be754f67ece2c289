# SPDX-License-Identifier: Apache-2.0
"""Types of PTX as numpy dtypes, immediate operands, and the narrow floating-point formats.

A register holds bits: an unsigned array with an element per thread, or a scalar where all threads agree.
"""

from __future__ import annotations

import numpy as np

from .errors import PTXError

RAW = {1: np.dtype("u1"), 2: np.dtype("u2"), 4: np.dtype("u4"), 8: np.dtype("u8")}  # by bytes
TYPES = {
    name: np.dtype(dtype)
    for dtype, names in {
        "u1": "b8 u8",
        "i1": "s8",
        "u2": "b16 u16 bf16 e4m3x2 e5m2x2",
        "i2": "s16",
        "f2": "f16",
        "u4": "b32 u32 f16x2 bf16x2 tf32",
        "i4": "s32",
        "f4": "f32",
        "u8": "b64 u64",
        "i8": "s64",
        "f8": "f64",
        "?": "pred",
    }.items()
    for name in names.split()
}


def raw(type_: str) -> np.dtype:
    """How the bits of a type are kept."""
    dtype = TYPES[type_]
    return dtype if type_ == "pred" else RAW[dtype.itemsize]


def immediate(text: str, type_: str) -> np.generic:
    """A constant operand: `-1`, `0x1F`, `0f3F800000`, `0d3FF0000000000000`."""
    bits = raw(type_)
    if type_ == "pred":
        return np.bool_({"true": 1, "false": 0}.get(text) if text in ("true", "false") else int(text, 0))
    if text[:2] in ("0f", "0F", "0d", "0D"):
        source = "u4" if text[1] in "fF" else "u8"
        value = np.array(int(text[2:], 16), source).view(source.replace("u", "f"))[()]
        dtype = TYPES[type_]
        return value.view(dtype) if dtype.itemsize == value.itemsize else dtype.type(value)
    try:
        value = int(text.rstrip("U"), 0)
    except ValueError:
        raise PTXError(f"operand {text!r} is unknown") from None
    return np.array(value & ((1 << 8 * bits.itemsize) - 1), bits).view(TYPES[type_])[()]


def from_bf16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bf16(value: np.ndarray) -> np.ndarray:
    """Round float32 to nearest, ties to even. A NaN becomes PTX's own."""
    bits = value.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)
    nan = np.isnan(value)
    return np.where(nan, np.uint16(0x7FFF), rounded) if nan.any() else rounded


def low(bits: np.ndarray) -> np.ndarray:
    """The low halves of 32 bits."""
    return bits.astype(np.uint16)


def high(bits: np.ndarray) -> np.ndarray:
    return (bits >> np.uint32(16)).astype(np.uint16)


def pack(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Two 16-bit halves to 32 bits."""
    return lower.astype(np.uint32) | (upper.astype(np.uint32) << np.uint32(16))


def _table(exponent_bits: int, mantissa_bits: int, bias: int, infinities: bool) -> np.ndarray:
    """The values of the 256 patterns of an 8-bit format. Without infinities only 0x7F and 0xFF are NaN."""
    code = np.arange(256)
    exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1)
    mantissa = (code & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    value = np.where(exponent == 0, mantissa * 2.0 ** (1 - bias), (1 + mantissa) * 2.0 ** (exponent - bias))
    if infinities:
        special = exponent == (1 << exponent_bits) - 1
        value[special] = np.where(mantissa[special] == 0, np.inf, np.nan)
    else:
        value[[0x7F, 0xFF]] = np.nan
    return np.where(code & 0x80, -value, value).astype(np.float32)


FP8 = {"e4m3": _table(4, 3, 7, infinities=False), "e5m2": _table(5, 2, 15, infinities=True)}


def from_fp8(bits: np.ndarray, form: str) -> np.ndarray:
    return FP8[form][bits]


def to_fp8(value: np.ndarray, form: str) -> np.ndarray:
    """Round to nearest, ties to even; beyond the largest number the largest (`.satfinite`)."""
    finite = FP8[form][:128]
    finite = finite[np.isfinite(finite)].astype(np.float64)  # ascending: codes 0, 1, ...
    size = np.abs(np.asarray(value, np.float64))
    above = np.clip(np.searchsorted(finite, size), 1, len(finite) - 1)
    below = above - 1
    middle = (finite[above] + finite[below]) / 2
    code = np.where((size > middle) | ((size == middle) & (above % 2 == 0)), above, below)
    code = np.where(np.isnan(value), 0x7F, code)
    return (code | np.where(np.signbit(value) & ~np.isnan(value), 0x80, 0)).astype(np.uint8)
