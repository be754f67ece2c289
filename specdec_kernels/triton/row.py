# SPDX-License-Identifier: Apache-2.0
"""Reading rows of logits, and what a row's law needs to know of it.

    x = read_row(row, offsets)                          # [n] float32; -inf where masked or outside
    x = read_tile(row, begin, SIZE)                     # the same of [begin, begin + SIZE)
    x = read_tokens(row, tokens, columns_ptr, vocab, wanted)    # the same under a draft vocabulary
    max, mass, nan = measure(x, slope)                  # of one split
    first = merge_first(maxima, firsts, max)            # of all splits

`columns_ptr` points at the columns of the tokens, or is None. NaN is read as NaN. The weight of a score x is
2^((x - max) slope), and a mass is a sum of weights. Where max = +inf, the mass is the number of such entries.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .edited import edited, edited_tile
from .logarithm import LOG2E

NO_TOKEN = tl.constexpr(2**31 - 1)

_MOST_FACTORED = tl.constexpr(2.0**20)  # of max * slope, above which its rounding is too large a factor


class Row(NamedTuple):
    """One row of logits."""

    data: tl.tensor  # -> its first entry: float32, bfloat16 or float16
    size: tl.tensor
    bitmask: tl.tensor  # -> its words, or None: all tokens are allowed
    edits: tl.tensor  # -> its edited scores (edited.py), or None: all are as they are stored


@triton.jit
def number_of(values_ptr, value, request):
    """A request's own number, or the one that holds for all: float32."""
    if values_ptr is None:
        return tl.cast(value, tl.float32)
    else:
        return tl.load(values_ptr + request).to(tl.float32)


@triton.jit
def slope_of(temperature):
    """log2(e) / temperature, and 1 for greedy requests (temperature not above 0), which need none."""
    slope = tl.minimum(tl.maximum(tl.div_rn(tl.full([], LOG2E, tl.float32), temperature), 1e-30), 1e30)
    return tl.where(temperature > 0, slope, 1.0)


@triton.jit
def allowed(bitmask_ptr, offsets, inside):
    """Whether the bitmask allows the tokens."""
    word = tl.load(bitmask_ptr + (offsets >> 5), mask=inside, other=0)
    return ((word >> (offsets & 31)) & 1) != 0


@triton.jit
def read_row(row, offsets):
    """Scores of a row's entries. A masked NaN stays one: it has no weight, and is reported."""
    x = _load(row, offsets)
    if row.edits is not None:
        x = edited(row, x, offsets, offsets < row.size)
    return _masked(row, x, offsets)


@triton.jit
def read_tile(row, begin, SIZE: tl.constexpr):
    """The same of entries side by side, from a multiple of eight on. Where there are edits it takes less."""
    offsets = begin + tl.arange(0, SIZE)
    x = _load(row, offsets)
    if row.edits is not None:
        x = edited_tile(row, x, begin)
    return _masked(row, x, offsets)


@triton.jit
def _load(row, offsets):
    return tl.load(row.data + offsets, mask=offsets < row.size, other=float("-inf")).to(tl.float32)


@triton.jit
def _masked(row, x, offsets):
    if row.bitmask is not None:
        x = tl.where(allowed(row.bitmask, offsets, offsets < row.size) | (x != x), x, float("-inf"))
    return x


@triton.jit
def read_tokens(row, tokens, columns_ptr, vocab, wanted):
    """Scores of tokens [0, vocab) in a draft's row, whose columns are the tokens or, with `columns_ptr`, are
    looked up: -1 where the draft has no such token. Nothing is read unless `wanted`."""
    inside = (tokens < vocab) & wanted
    column = tokens
    if columns_ptr is not None:
        column = tl.load(columns_ptr + tokens, mask=inside, other=-1)
    inside = inside & (column >= 0) & (column < row.size)
    return tl.load(row.data + column, mask=inside, other=float("-inf")).to(tl.float32)


@triton.jit
def lowest_allowed(row, TILE: tl.constexpr):
    """What a row with nothing left emits: its lowest allowed token, 0 where none is."""
    lowest = tl.full([], NO_TOKEN, tl.int32)
    if row.bitmask is not None:
        for begin in range(0, row.size, TILE):
            offsets = begin + tl.arange(0, TILE)
            free = allowed(row.bitmask, offsets, offsets < row.size)
            lowest = tl.minimum(lowest, tl.min(tl.where(free, offsets, NO_TOKEN)))
    return tl.where(lowest == NO_TOKEN, 0, lowest)


@triton.jit
def exponent_of(x, max, slope):
    """log2 of the weights, max being that of a row or of a part of it."""
    shift = x - tl.where(max == float("-inf"), 0.0, max)
    if max == float("inf"):  # inf - inf: these share all the mass
        shift = tl.where(x == float("inf"), 0.0, float("-inf"))
    return shift * slope


@triton.jit
def measure(x, slope):
    """Largest score, mass, and 1 if there is a NaN."""
    max = tl.maximum(tl.max(x), float("-inf"))  # a maximum sees no NaN but where there is nothing else
    # One operation a score in place of two. The rounding of max * slope is the same factor of all weights.
    shift = max * slope
    mass = tl.sum(tl.exp2(tl.fma(x, slope, -shift))) * tl.exp2(-tl.fma(max, slope, -shift))
    nan = tl.full([], 0, tl.int32)
    if (mass != mass) | (tl.abs(shift) > _MOST_FACTORED):  # NaN, +inf, nothing but -inf; a factor too large
        nan = tl.max((x != x).to(tl.int32))
        mass = tl.sum(tl.exp2(exponent_of(tl.where(x == x, x, float("-inf")), max, slope)))
    return max, mass, nan


@triton.jit
def merge_first(maxima, firsts, max):
    """The lowest token that has the largest score."""
    return tl.min(tl.where(maxima == max, firsts, NO_TOKEN))
