"""Min-p, top-k and top-p of a row as one threshold on the score, found by one program.

    cut, mass = row_cut(row_ptr, size, bitmask_ptr, bins_ptr, slope, max, mass, top_k, top_p, min_p, TILE)

Kept are the scores x >= cut, of that mass. Cuts go by value, so ties are kept or dropped together.

- One pass lists the two largest scores of each of TILE groups (tokens equal modulo TILE); the largest of the
  groups' third ones is the floor. No score above the floor is missing from the list, so a threshold above
  it, as a top_k of 100 or a nucleus of that size almost always has, is found in the list by bisection.
- Other thresholds come from a radix histogram of the scores' bits, 11 + 11 (+ 10 for float32), of counts or
  masses. Its bins are integers in global memory, so no order of adding matters.

Reads of the row: 1 for min-p alone and for thresholds above the floor; else 2 (3 for float32) more for each
of top-k and top-p, and 1 more where the mass is not a result of the last of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .logarithm import log
from .row import LOG2E, read_row

BINS = tl.constexpr(2048)  # int64 each that `bins_ptr` points to

_LOWEST = tl.constexpr(-3.4028234663852886e38)
_MOST_LISTED = tl.constexpr(256)  # a wider top_k seldom has its threshold in the list


@triton.jit
def row_cut(
    row_ptr, size, bitmask_ptr,
    bins_ptr,  # [BINS] int64, this program's own
    slope, max, mass,  # of the row; max is finite
    top_k, top_p, min_p,
    TILE: tl.constexpr,
):  # fmt: skip
    cut = tl.full([], float("-inf"), tl.float32)
    if min_p > 0:
        cut = max + tl.where(min_p < 1, log(tl.clamp(min_p, 1e-37, 1.0)) * LOG2E / slope, 0.0)
    # What is still to be done, and whether `mass` is that of the scores >= cut.
    counting = (top_k >= 1) & (top_k < size)
    summing = top_p < 1
    known = (min_p > 0) == 0
    if (counting & (top_k <= _MOST_LISTED)) | (summing & (counting == 0)):
        a, b, floor = _largest(row_ptr, size, bitmask_ptr, TILE)
        weight_a, weight_b = tl.exp2((a - max) * slope), tl.exp2((b - max) * slope)
        lowest = tl.min(tl.minimum(tl.where(a > floor, a, max), tl.where(b > floor, b, max)))
        grain = tl.minimum(tl.min(tl.minimum(_lowest_bit(a), _lowest_bit(b))), 1 << 23)
        for step in range(2):  # top-k by counts, top-p by weights
            if (counting & (step == 0)) | (summing & known & (counting == 0) & (step == 1)):
                amount_a, amount_b = tl.where(step == 0, 1.0, weight_a), tl.where(step == 0, 1.0, weight_b)
                goal = tl.where(step == 0, top_k, top_p * mass)
                listed = _at_least(a, b, amount_a, amount_b, lowest)
                if listed >= goal:
                    found = _bisect(a, b, amount_a, amount_b, lowest, max, listed, grain, slope * step, goal)
                    cut = tl.maximum(cut, found)
                    counting = counting & (step == 1)
                    summing = summing & (step == 0)
                    known = known & False
                elif step == 0:
                    counting = (cut <= floor) & (floor > float("-inf"))
            if (counting == 0) & ((cut > floor) | (floor == float("-inf"))):
                mass = _at_least(a, b, weight_a, weight_b, cut)
                lowest = tl.maximum(lowest, cut)
                known = known | True
    for step in range(2):
        if (counting & (step == 0)) | (summing & (step == 1)):
            found, reached = _select(
                row_ptr, size, bitmask_ptr, bins_ptr,
                cut, slope, max, tl.where(step == 0, top_k, top_p), step == 1,
                TILE,
            )  # fmt: skip
            cut = tl.maximum(cut, found)
            mass = reached
            known = step == 1
    if known == 0:
        mass = _mass(row_ptr, size, bitmask_ptr, slope, max, cut, TILE)
    return cut, mass


@triton.jit
def _largest(row_ptr, size, bitmask_ptr, TILE: tl.constexpr):
    """The two largest scores of each group, [TILE] each, and the largest of the groups' third ones."""
    a = tl.full([TILE], float("-inf"), tl.float32)
    b, c = a, a
    for start in range(0, size, 2 * TILE):
        for part in tl.static_range(2):  # two loads in flight
            x = read_row(row_ptr, start + part * TILE + tl.arange(0, TILE), size, bitmask_ptr)
            x = tl.maximum(x, float("-inf"))  # NaN
            less = tl.minimum(a, x)
            a = tl.maximum(a, x)
            c = tl.maximum(c, tl.minimum(b, less))
            b = tl.maximum(b, less)
    return a, b, tl.max(c)


@triton.jit
def _at_least(a, b, amount_a, amount_b, value):
    """The amount of the listed scores >= value."""
    return tl.sum(tl.where(a >= value, amount_a, 0.0) + tl.where(b >= value, amount_b, 0.0))


@triton.jit
def _bisect(a, b, amount_a, amount_b, low, high, amount_low, grain, slope, goal):
    """The largest t for which the amount of the listed scores >= t reaches the goal, up to a t that keeps the
    same scores. `low` reaches it, `high` is the largest score; x has the amount 2^((x - max) slope)."""
    max = high
    amount_high = _at_least(a, b, amount_a, amount_b, high)
    if amount_high >= goal:
        low, amount_low = high, amount_high
    # Variables of a loop must not start from one value: Triton 3.9 takes them for one variable.
    middle = _between(low, high, grain)
    narrowing = middle > low
    while narrowing:
        amount = _at_least(a, b, amount_a, amount_b, middle)
        if amount >= goal:
            low, amount_low = middle, amount
        else:
            high, amount_high = middle, amount
        middle = _between(low, high, grain)
        # Two scores of [low, high) have at least twice the amount of `low`.
        single = amount_low - amount_high < 1.5 * tl.exp2((low - max) * slope)
        narrowing = (middle > low) & (single == 0) & (amount_low > goal)
    return low


@triton.jit
def _lowest_bit(x):
    """Of the bits of a float32: the lowest that is set. Scores of 16 bits leave the low ones 0."""
    bits = x.to(tl.uint32, bitcast=True)
    return tl.where(bits == 0, 1 << 31, bits & (~bits + 1))


@triton.jit
def _between(low, high, grain):
    """Half way between two values, of those whose bits are multiples of `grain`; `low` if there is none."""
    bits = (low * 0.5 + high * 0.5).to(tl.uint32, bitcast=True) & (~grain + 1)
    inner, outer = bits.to(tl.float32, bitcast=True), (bits + grain).to(tl.float32, bitcast=True)
    middle = tl.where((outer > low) & (outer < high), outer, low)
    return tl.where((inner > low) & (inner < high), inner, middle)


@triton.jit
def _select(
    row_ptr, size, bitmask_ptr, bins_ptr,
    cut, slope, max,
    aim, weighing,  # a number of scores; or, where `weighing`, a share of their mass
    TILE: tl.constexpr,
):  # fmt: skip
    """The largest t such that, of the scores >= cut, those >= t reach `aim`, or the smallest score where they
    are too few; and, where `weighing`, the mass of those >= t."""
    cut = tl.maximum(cut, _LOWEST)
    unit = tl.exp2(61.0 - tl.floor(tl.log2(tl.cast(size, tl.float32))))
    digits = tl.arange(0, BINS)
    prefix = tl.full([], 0, tl.uint32)  # the digits of the threshold's key that are known
    above = tl.full([], 0, tl.int64)  # the amount of the scores beyond them
    goal, reached = above, above
    for level in range(3 if row_ptr.dtype.element_ty == tl.float32 else 2):
        shift = tl.maximum(21 - 11 * level, 0).to(tl.uint32)
        width = tl.where(level == 2, 10, 11).to(tl.uint32)
        tl.store(bins_ptr + digits, tl.zeros([BINS], tl.int64))
        tl.debug_barrier()
        for begin in range(0, size, TILE):
            x = read_row(row_ptr, begin + tl.arange(0, TILE), size, bitmask_ptr)
            bits = x.to(tl.int32, bitcast=True)
            key = (bits ^ ((bits >> 31) | -0x80000000)).to(tl.uint32, bitcast=True)  # ordered as the scores
            key = key >> shift
            weight = (tl.exp2((x - max) * slope) * unit).to(tl.int64)
            tl.atomic_add(
                bins_ptr + (key & ((1 << width) - 1)).to(tl.int32),
                tl.where(weighing, weight, 1),
                mask=(x >= cut) & ((key >> width) == prefix),
                sem="relaxed",
            )
        tl.debug_barrier()
        amounts = above + tl.cumsum(tl.load(bins_ptr + digits), reverse=True)
        tl.debug_barrier()
        if level == 0:
            everything = tl.max(amounts)
            share = (aim.to(tl.float64) * everything.to(tl.float64)).to(tl.int64)
            goal = tl.minimum(tl.where(weighing, tl.maximum(share, 1), aim.to(tl.int64)), everything)
        digit = tl.max(tl.where(amounts >= goal, digits, 0))
        reached = tl.max(tl.where(digits == digit, amounts, 0))
        above = tl.max(tl.where(digits == digit + 1, amounts, above))
        prefix = (prefix << width) | digit.to(tl.uint32)
    if row_ptr.dtype.element_ty != tl.float32:  # 16 bits have no more digits
        prefix = prefix << 10
    bits = prefix.to(tl.int32, bitcast=True)
    value = tl.where(bits < 0, bits ^ -0x80000000, ~bits).to(tl.float32, bitcast=True)
    return value, reached.to(tl.float32) / unit


@triton.jit
def _mass(row_ptr, size, bitmask_ptr, slope, max, cut, TILE: tl.constexpr):
    """The mass of the scores >= cut."""
    sums = tl.zeros([TILE], tl.float32)
    for begin in range(0, size, TILE):
        x = read_row(row_ptr, begin + tl.arange(0, TILE), size, bitmask_ptr)
        sums += tl.where(x >= cut, tl.exp2((x - max) * slope), 0.0)
    return tl.sum(sums)
