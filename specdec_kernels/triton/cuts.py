"""Min-p, top-k and top-p of a row as one threshold on the score, found by one program.

    cut, mass = row_cut(row_ptr, size, bitmask_ptr, bins_ptr, slope, max, mass, nan, top_k, top_p, min_p, TILE)

Kept are the scores x >= cut, whose mass is returned. Cuts go by value, so ties are kept or dropped together.

- One pass keeps the two largest scores of each of TILE groups (the tokens equal modulo TILE), and the largest of
  the third ones, the floor: no score above the floor is missing from this list. A threshold above it, which a
  top_k of 100 or a nucleus of that size almost always has, is found in the list by bisection.
- Other thresholds come from a radix histogram over the bits of the score, 11 + 11 (+ 10 for float32), of counts
  or of masses. The bins, in global memory, are integers: no order of adding matters.

Reads of the row: 1 for min-p alone and for thresholds above the floor; else 2 (3 for float32) more for each of
top-k and top-p, and 1 more where the mass is not a result of the last of them.
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
    slope, max, mass, nan,  # of the row: max finite; `nan` is true where it has one
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
        a, b, floor = _largest(row_ptr, size, bitmask_ptr, nan, TILE)
        weight_a, weight_b = tl.exp2((a - max) * slope), tl.exp2((b - max) * slope)
        lowest = tl.min(tl.minimum(tl.where(a > floor, a, max), tl.where(b > floor, b, max)))
        if counting:
            if _amount(a, b, weight_a, weight_b, lowest, False) >= top_k:
                kth = _bisect(row_ptr, a, b, weight_a, weight_b, lowest, max, slope, top_k, False)
                cut = tl.maximum(cut, kth)
                counting &= False
            else:
                counting = (cut <= floor) & (floor > float("-inf"))
        if counting == 0:
            if (cut > floor) | (floor == float("-inf")):
                mass = _amount(a, b, weight_a, weight_b, cut, True)
                known |= True
            if summing & known:
                goal = top_p * mass
                if _amount(a, b, weight_a, weight_b, lowest, True) >= goal:
                    nucleus = _bisect(row_ptr, a, b, weight_a, weight_b, lowest, max, slope, goal, True)
                    cut = tl.maximum(cut, nucleus)
                    mass = _amount(a, b, weight_a, weight_b, cut, True)
                    summing &= False
    if counting:
        kth, _ = _select(row_ptr, size, bitmask_ptr, bins_ptr, cut, slope, max, top_k, TILE, False)
        cut = tl.maximum(cut, kth)
        known &= False
    if summing:
        nucleus, mass = _select(row_ptr, size, bitmask_ptr, bins_ptr, cut, slope, max, top_p, TILE, True)
        cut = tl.maximum(cut, nucleus)
        known |= True
    if known == 0:
        mass = _mass(row_ptr, size, bitmask_ptr, slope, max, cut, TILE)
    return cut, mass


@triton.jit
def _largest(row_ptr, size, bitmask_ptr, nan, TILE: tl.constexpr):
    """The two largest scores of each group, and the largest of the groups' third ones: [TILE], [TILE], scalar."""
    a = tl.full([TILE], float("-inf"), tl.float32)
    b, c = a, a
    for begin in range(0, size, TILE):
        x = read_row(row_ptr, begin + tl.arange(0, TILE), size, bitmask_ptr)
        if nan:
            x = tl.where(x == x, x, float("-inf"))
        less = tl.minimum(a, x)
        a = tl.maximum(a, x)
        c = tl.maximum(c, tl.minimum(b, less))
        b = tl.maximum(b, less)
    return a, b, tl.max(c)


@triton.jit
def _amount(a, b, weight_a, weight_b, value, MASS: tl.constexpr):
    """The number of the listed scores >= value (float32), or their MASS."""
    if MASS:
        return tl.sum(tl.where(a >= value, weight_a, 0.0) + tl.where(b >= value, weight_b, 0.0))
    else:
        return tl.sum((a >= value).to(tl.int32) + (b >= value).to(tl.int32)).to(tl.float32)


@triton.jit
def _bisect(row_ptr, a, b, weight_a, weight_b, low, high, slope, goal, MASS: tl.constexpr):
    """The largest t for which the number (or MASS) of the listed scores >= t reaches the goal, up to a t that
    keeps the same scores. `low` is a score that reaches it, `high` the largest."""
    max = high
    amount_low = _amount(a, b, weight_a, weight_b, low, MASS)
    amount_high = _amount(a, b, weight_a, weight_b, high, MASS)
    if amount_high >= goal:
        low, amount_low = high, amount_high
    middle = _between(row_ptr, low, high)
    open = middle > low
    while open:
        amount = _amount(a, b, weight_a, weight_b, middle, MASS)
        if amount >= goal:
            low, amount_low = middle, amount
        else:
            high, amount_high = middle, amount
        middle = _between(row_ptr, low, high)
        if MASS:  # two scores of [low, high) weigh at least twice what `low` would
            single = amount_low - amount_high < 1.5 * tl.exp2((low - max) * slope)
        else:
            single = (amount_low - amount_high < 2) | (amount_low == goal)
        open = (middle > low) & (single == 0)
    return low


@triton.jit
def _between(row_ptr, low, high):
    """Half way between two values among those that the row can hold; `low` where there is none."""
    middle = (low * 0.5 + high * 0.5).to(row_ptr.dtype.element_ty).to(tl.float32)
    return tl.where(middle < high, middle, low)


@triton.jit
def _select(
    row_ptr, size, bitmask_ptr, bins_ptr,
    cut, slope, max, aim,
    TILE: tl.constexpr, MASS: tl.constexpr,
):  # fmt: skip
    """The largest t such that of the scores >= cut those >= t number `aim` (where MASS: have that share of the
    mass), or the smallest of them where they are too few; and what those >= t number or weigh."""
    cut = tl.maximum(cut, _LOWEST)
    unit = tl.exp2(61.0 - tl.floor(tl.log2(tl.cast(size, tl.float32))))
    prefix = tl.full([], 0, tl.uint32)
    above = tl.full([], 0, tl.int64)
    prefix, above, reached, goal = _digit(
        row_ptr, size, bitmask_ptr, bins_ptr, cut, slope, max, aim, unit, prefix, above, above, 21, 11, TILE, MASS
    )
    prefix, above, reached, goal = _digit(
        row_ptr, size, bitmask_ptr, bins_ptr, cut, slope, max, aim, unit, prefix, above, goal, 10, 11, TILE, MASS
    )
    if row_ptr.dtype.element_ty == tl.float32:
        prefix, above, reached, goal = _digit(
            row_ptr, size, bitmask_ptr, bins_ptr, cut, slope, max, aim, unit, prefix, above, goal, 0, 10, TILE, MASS
        )
    else:  # 16 bits have no more digits
        prefix = prefix << 10
    bits = prefix.to(tl.int32, bitcast=True)
    value = tl.where(bits < 0, bits ^ -0x80000000, ~bits).to(tl.float32, bitcast=True)
    return value, reached.to(tl.float32) / unit


@triton.jit
def _digit(
    row_ptr, size, bitmask_ptr, bins_ptr,
    cut, slope, max, aim, unit,
    prefix, above, goal,  # what is known of the threshold's key; the amount beyond it; the amount to reach
    SHIFT: tl.constexpr, WIDTH: tl.constexpr,  # of the digit
    TILE: tl.constexpr, MASS: tl.constexpr,
):  # fmt: skip
    """One digit of the threshold's key, from a histogram of it over the scores that share the digits before."""
    digits = tl.arange(0, BINS)
    tl.store(bins_ptr + digits, tl.zeros([BINS], tl.int64))
    tl.debug_barrier()
    for begin in range(0, size, TILE):
        x = read_row(row_ptr, begin + tl.arange(0, TILE), size, bitmask_ptr)
        bits = x.to(tl.int32, bitcast=True)
        key = (bits ^ ((bits >> 31) | -0x80000000)).to(tl.uint32, bitcast=True)  # ordered as the scores are
        counted = x >= cut
        if SHIFT < 21:
            counted = counted & ((key >> (SHIFT + WIDTH)) == prefix)
        amount = tl.full([TILE], 1, tl.int64)
        if MASS:
            amount = (tl.exp2((x - max) * slope) * unit).to(tl.int64)
        digit = ((key >> SHIFT) & ((1 << WIDTH) - 1)).to(tl.int32)
        tl.atomic_add(bins_ptr + digit, amount, mask=counted, sem="relaxed")
    tl.debug_barrier()
    amounts = above + tl.cumsum(tl.load(bins_ptr + digits), reverse=True)
    tl.debug_barrier()
    if SHIFT == 21:
        everything = tl.max(amounts)
        goal = aim.to(tl.int64)
        if MASS:
            goal = tl.maximum((aim.to(tl.float64) * everything.to(tl.float64)).to(tl.int64), 1)
        goal = tl.minimum(goal, everything)
    digit = tl.max(tl.where(amounts >= goal, digits, 0))
    reached = tl.max(tl.where(digits == digit, amounts, 0))
    above = tl.max(tl.where(digits == digit + 1, amounts, above))
    return (prefix << WIDTH) | digit.to(tl.uint32), above, reached, goal


@triton.jit
def _mass(row_ptr, size, bitmask_ptr, slope, max, cut, TILE: tl.constexpr):
    """The mass of the scores >= cut."""
    sums = tl.zeros([TILE], tl.float32)
    for begin in range(0, size, TILE):
        x = read_row(row_ptr, begin + tl.arange(0, TILE), size, bitmask_ptr)
        sums += tl.where(x >= cut, tl.exp2((x - max) * slope), 0.0)
    return tl.sum(sums)
