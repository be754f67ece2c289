# SPDX-License-Identifier: Apache-2.0
"""Min-p, top-k and top-p of a row as one threshold on the score, found among the row's largest scores.

Kept are the scores x >= cut. Cuts go by value, so ties are kept or dropped together. Min-p comes first, or
with `min_p_last` > 0 last.

- `measure` lists the three largest scores of every lane, in a second pass over its split, which is near. The
  largest of the lanes' fourth scores is the floor. No score above the floor is missing from the list.
- `settle_cut` finds a threshold above the floor in the list, by bisection. A top_k of 200 or a nucleus of
  that size is there almost always, and the row is not read again.
- Another threshold is left open, and looked for by `select.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .logarithm import LOG2E, log
from .row import read_tile

_LEAST_MIN_P = tl.constexpr(1e-37)  # `log` takes normal numbers
_LEAST_KEPT = tl.constexpr(1e-30)
_NOTHING = tl.constexpr(float("-inf"))


class Listed(NamedTuple):
    """The largest scores of a row."""

    scores: tl.tensor  # [n] float32; -inf where there is none
    floor: tl.tensor  # all scores above it are listed; -inf: all there are


class Scale(NamedTuple):
    """What scores amount to, 2^((x - max) steepness), and how fine they are."""

    max: tl.tensor  # float32
    steepness: tl.tensor  # float32; with 0 every score amounts to 1
    grain: tl.tensor  # uint32: the bits of scores are multiples of it


class Cuts(NamedTuple):
    """What a row's cuts ask for, and what is known of the answer."""

    cut: tl.tensor  # float32: scores below are dropped, so far
    mass: tl.tensor  # float32, of the scores >= cut, where it is known
    likely: tl.tensor  # float32, the threshold of min-p; -inf = none
    counting: tl.tensor  # whether top-k is still looked for
    summing: tl.tensor  # whether top-p is
    known: tl.tensor  # whether the mass is


@triton.jit
def _four_largest(a, b, c, d, e, f, g, h):
    """The four largest of two descending runs of four."""
    return (
        tl.maximum(a, e),
        tl.maximum(tl.minimum(a, e), tl.maximum(b, f)),
        tl.maximum(tl.maximum(c, g), tl.maximum(tl.minimum(a, f), tl.minimum(b, e))),
        tl.maximum(
            tl.maximum(d, h), tl.maximum(tl.maximum(tl.minimum(a, g), tl.minimum(c, e)), tl.minimum(b, f))
        ),
    )


@triton.jit
def largest(row, begin, SPLIT: tl.constexpr, LANES: tl.constexpr):
    """The three largest scores of each lane of a split, [LANES] each, and the largest of the lanes' fourth
    ones. NaN are not listed. The row is read again, piece by piece, while it is near: to hold all of it would
    cost registers. Eight scores side by side belong to one lane, as they are loaded."""
    PIECE: tl.constexpr = 8 * LANES
    a = tl.full([PIECE], _NOTHING, tl.float32)
    b, c, d = a, a, a
    for start in range(begin, begin + SPLIT, PIECE):
        x = tl.maximum(read_tile(row, start, PIECE), _NOTHING)
        less = tl.minimum(a, x)
        a = tl.maximum(a, x)
        least = tl.minimum(b, less)
        b = tl.maximum(b, less)
        d = tl.maximum(d, tl.minimum(c, least))
        c = tl.maximum(c, least)
    shape: tl.constexpr = [LANES, 8]
    runs = (tl.reshape(a, shape), tl.reshape(b, shape), tl.reshape(c, shape), tl.reshape(d, shape))
    a, b, c, d = tl.reduce(runs, 1, _four_largest)
    return a, b, c, tl.max(d)


@triton.jit
def weight_of(x, max, steepness):
    """2^((x - max) steepness): the weight of a score, or with steepness 0 one."""
    return tl.exp2((x - max) * steepness)


@triton.jit
def min_p_threshold(params, slope, max):
    likely = tl.full([], _NOTHING, tl.float32)
    if params.min_p > 0:
        step = log(tl.clamp(params.min_p, _LEAST_MIN_P, 1.0)) * LOG2E / slope
        likely = max + tl.where(params.min_p < 1, step, 0.0)
    return likely


@triton.jit
def least_kept(params, mass):
    """The mass that top-p keeps at least, of a row of that mass: something, whatever top-p is."""
    return tl.maximum(params.top_p * mass, _LEAST_KEPT)


@triton.jit
def settle_cut(listed, row, slope, max, mass, params):
    """The threshold of a row's cuts, as far as it lies above the floor. `max` is finite."""
    likely = min_p_threshold(params, slope, max)
    cut = tl.where(params.min_p_last > 0, _NOTHING, likely)
    counting = (params.top_k >= 1) & (params.top_k < row.size)
    summing = params.top_p < 1
    complete = listed.floor == _NOTHING
    x = tl.where(listed.scores > listed.floor, listed.scores, _NOTHING)
    weights = tl.where(x > _NOTHING, weight_of(x, max, slope), 0.0)
    known = cut == _NOTHING
    if counting:
        ones = tl.where(x > _NOTHING, 1.0, 0.0)
        found, _, enough = find(x, ones, scale_of(row, max, 0.0), params.top_k)
        cut = tl.where(enough, tl.maximum(cut, found), cut)
        # A cut above the floor, of min-p, keeps listed scores alone: top-k keeps all of them if not found
        # there.
        counting = counting & (not (enough | complete | (cut > listed.floor)))
    if (not counting) & ((cut > listed.floor) | complete):
        mass = sum_from(x, weights, cut)
        known = known | True
    if summing & known & (not counting):
        x, weights = tl.where(x >= cut, x, _NOTHING), tl.where(x >= cut, weights, 0.0)
        found, kept, enough = find(x, weights, scale_of(row, max, slope), least_kept(params, mass))
        if enough:
            cut, mass = found, kept
        summing = summing & (not (enough | complete))
    if (likely > cut) & (not counting) & (not summing):  # only where min-p comes last
        cut = likely
        known = known & False
        if (cut > listed.floor) | complete:
            mass = sum_from(x, weights, cut)
            known = known | True
    return Cuts(cut, mass, likely, counting, summing, known)


@triton.jit
def find(x, amounts, scale, needed):
    """The largest of the scores x for which the amounts of those at or above it are at least `needed`, up to
    a value that keeps the same scores; the amounts there; and whether there is one. An amount is 0 where x is
    -inf."""
    low, high = tl.min(tl.where(x > _NOTHING, x, float("inf"))), tl.max(x)
    amount, amount_high = tl.sum(amounts), tl.full([], 0.0, tl.float32)
    enough = (amount >= needed) & (low <= high)
    # Variables of a loop must not start from one value: Triton 3.9 takes them for one variable.
    middle = high + 0.0
    narrowing = enough & (low < high) & (amount > needed)
    while narrowing:
        sum = sum_from(x, amounts, middle)
        if sum >= needed:
            low, amount = middle, sum
        else:
            high, amount_high = middle, sum
        middle = _between(low, high, scale.grain)
        # Two scores of [low, high) have at least twice the amount of `low`.
        single = amount - amount_high < 1.5 * weight_of(low, scale.max, scale.steepness)
        narrowing = (middle > low) & (single == 0) & (amount > needed)
    return low, amount, enough


@triton.jit
def sum_from(x, amounts, value):
    """The amounts of the scores >= value."""
    return tl.sum(tl.where(x >= value, amounts, 0.0))


@triton.jit
def scale_of(row, max, steepness):
    # Scores of 16 bits leave the low bits of float32 0, unless they are edited.
    DTYPE: tl.constexpr = row.data.dtype.element_ty if row.edits is None else tl.float32
    BITS: tl.constexpr = 16 if DTYPE == tl.bfloat16 else 13 if DTYPE == tl.float16 else 0
    return Scale(max, steepness, tl.full([], 1 << BITS, tl.uint32))


@triton.jit
def _between(low, high, grain):
    """Half way between two values, of those whose bits are multiples of `grain`; `low` if there is none."""
    bits = (low * 0.5 + high * 0.5).to(tl.uint32, bitcast=True) & (~grain + 1)
    inner, outer = bits.to(tl.float32, bitcast=True), (bits + grain).to(tl.float32, bitcast=True)
    middle = tl.where((outer > low) & (outer < high), outer, low)
    return tl.where((inner > low) & (inner < high), inner, middle)
