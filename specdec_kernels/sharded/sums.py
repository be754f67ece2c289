# SPDX-License-Identifier: Apache-2.0
"""Sums of numbers in [0, 1] that do not depend on the order of adding: in fixed point, as integers.

A number is split into two integers, of units 2^-b and 2^-2b, and each is summed. b leaves room for as many
numbers as there are, so nothing overflows. What is lost is below 2^-2b of each number.
"""

from __future__ import annotations

import torch
from torch import Tensor


def bits_for(count: int) -> int:
    """b, for sums of at most `count` numbers."""
    return 62 - count.bit_length()


def parts(numbers: Tensor, bits: int) -> Tensor:
    """[..., n] float64 in [0, 1] -> [..., 2] int64, to be summed over the processes."""
    high = (numbers * 2.0**bits).floor()
    low = ((numbers * 2.0**bits - high) * 2.0**bits).floor()
    return torch.stack((high.long().sum(-1), low.long().sum(-1)), -1)


def value(summed: Tensor, bits: int) -> Tensor:
    """[..., 2] int64 -> [...] float64."""
    high, low = summed.double().unbind(-1)
    return high * 2.0**-bits + low * 2.0 ** (-2 * bits)
