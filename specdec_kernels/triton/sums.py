# SPDX-License-Identifier: Apache-2.0
"""What `sum_rows.py` leaves of a node: sums over its rows, as one number from each split."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .record import load_shared, save

SUM = 2  # float64 words of a split
_SUM = tl.constexpr(SUM)

# What is asked for, and what was summed.
NOTHING = tl.constexpr(0)
RESIDUAL_MASS = tl.constexpr(1)  # that is left when the first child is rejected
REST_MASS = tl.constexpr(2)  # of q outside the tracked tokens
ENTROPY = tl.constexpr(3)


class Sum(NamedTuple):
    """Of a split, or of several."""

    amount: tl.tensor  # float64
    top: tl.tensor  # float32, the score that masses of q are relative to


@triton.jit
def _kinds_of(scratch, row):
    return (scratch.words + scratch.summed + row).to(tl.pointer_type(tl.int32))


@triton.jit
def _sums_of(scratch, row, SPLITS: tl.constexpr):
    return scratch.words + scratch.masses + row * (SPLITS * _SUM)


@triton.jit
def ask(scratch, row, kind):
    """Before the launch that sums: what for, while nothing is summed. That launch leaves this word alone,
    since every program of a row reads it."""
    tl.store(_kinds_of(scratch, row), kind)
    tl.store(_kinds_of(scratch, row) + 1, NOTHING)


@triton.jit
def load_asked(scratch, row):
    return tl.load(_kinds_of(scratch, row))


@triton.jit
def save_kind(scratch, row, kind):
    tl.store(_kinds_of(scratch, row) + 1, kind)


@triton.jit
def load_kind(scratch, row):
    return tl.load(_kinds_of(scratch, row) + 1)


@triton.jit
def save_sum(scratch, row, split, sum, SPLITS: tl.constexpr):
    save(_sums_of(scratch, row, SPLITS) + split * _SUM, sum)


@triton.jit
def load_sums(scratch, row, splits, SPLITS: tl.constexpr):
    """[SPLITS] sums."""
    split = tl.arange(0, SPLITS)
    nothing = (tl.full([], 0.0, tl.float64), tl.full([], float("-inf"), tl.float32))
    return Sum(*load_shared(_sums_of(scratch, row, SPLITS) + split * _SUM, nothing, split < splits))


@triton.jit
def weight_of(scratch, row):
    """Where the weight that reaches a node under `traversal` is kept."""
    return scratch.words + scratch.weights + row


@triton.jit
def load_weight(scratch, row):
    return tl.load(weight_of(scratch, row))
