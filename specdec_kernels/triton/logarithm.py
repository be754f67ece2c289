# SPDX-License-Identifier: Apache-2.0
"""A natural logarithm that is accurate everywhere.

The hardware's is not: near 1 it has an absolute error of 2^-22, which leaves nothing of a small result.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

LN2 = tl.constexpr(math.log(2))
LOG2E = tl.constexpr(math.log2(math.e))
_TWO_THIRDS_BITS = tl.constexpr(0x3F2AAAAB)


@triton.jit
def split_binary(x):
    """Of normal x > 0: integer e and float32 f with x = 2^e (1 + f), f in [-1/3, 1/3)."""
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - _TWO_THIRDS_BITS) >> 23
    return exponent, (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0


@triton.jit
def log_binary(exponent, f):
    """log(2^exponent (1 + f)), f in [-1/3, 1/3)."""
    # log(1 + f) = f - f^2 / 2 + f^3 P(f), P a fit of least relative error, 2^-27
    p = 0.139845252 - 0.128914237 * f
    p = -0.121843144 + p * f
    p = 0.140058503 + p * f
    p = -0.166804835 + p * f
    p = 0.200104073 + p * f
    p = -0.249997973 + p * f
    p = 0.333332151 + p * f
    p = (-0.5 + p * f) * (f * f) + f
    return exponent.to(tl.float32) * LN2 + p


@triton.jit
def log(x):
    """log(x) of normal float32 x > 0."""
    exponent, f = split_binary(x)
    return log_binary(exponent, f)
