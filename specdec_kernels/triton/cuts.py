# SPDX-License-Identifier: Apache-2.0
"""Min-p, top-k and top-p of a row as one threshold on the score, found by one program.

    cut, mass = row_cut(
        row_ptr, size, bitmask_ptr, bins_ptr, slope, max, mass, top_k, top_p, min_p, min_p_last, TILE
    )

Kept are the scores x >= cut, of that mass. Cuts go by value, so ties are kept or dropped together. Min-p
comes first, or with `min_p_last` > 0 last.

- One pass lists the three largest scores of each of TILE groups (tokens equal modulo TILE); the largest of
  the groups' fourth ones is the floor. No score above the floor is missing from the list, so a threshold
  above it, as a top_k of 100 or a nucleus of that size almost always has, is found in it by bisection.
- Other thresholds are narrowed down by histograms, first of the scores in steps of WIDTH, then of their bits.
  Their bins are integers in global memory, so no order of adding matters.

Reads of the row: 1 for min-p alone and for thresholds above the floor; for others see `_narrow`, and 1 before
it where a list was made. Where min-p comes last and drops some of what the others kept, 1 more.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .logarithm import LOG2E, log
from .row import read_row

_BINS = tl.constexpr(2048)  # of a histogram
BINS = tl.constexpr(3 * 2048)  # int64 that `bins_ptr` points to: of numbers for top-k; of masses for each

_LANES = tl.constexpr(256)  # bins, and scores sorted into them, taken together: few, to need few registers
_WIDTH = tl.constexpr(0.03125)  # of a bin of scores: a power of two, so that multiples of it are exact
_LOWEST = tl.constexpr(-3.4028234663852886e38)  # of finite float32
_LEAST_MIN_P = tl.constexpr(1e-37)  # `log` takes normal numbers
_COARSEST = tl.constexpr(1 << 23)  # grain: values with a mantissa of 0
_LEVELS = tl.constexpr(8)  # more than ever needed: each but the first takes 11 of 32 bits off a key
_MOST_LISTED = tl.constexpr(256)  # the threshold of a top_k or nucleus of more is seldom in the list


@triton.jit
def row_cut(
    row_ptr, size, bitmask_ptr,
    bins_ptr,  # [BINS] int64, this program's own
    slope, max, mass,  # of the row; max is finite
    top_k, top_p, min_p, min_p_last,
    TILE: tl.constexpr,
):  # fmt: skip
    likely = tl.full([], float("-inf"), tl.float32)
    if min_p > 0:
        likely = max + tl.where(min_p < 1, log(tl.clamp(min_p, _LEAST_MIN_P, 1.0)) * LOG2E / slope, 0.0)
    cut = tl.where(min_p_last > 0, float("-inf"), likely)
    # What is still to be done, and whether `mass` is that of the scores >= cut.
    counting = (top_k >= 1) & (top_k < size)
    summing = top_p < 1
    known = cut == float("-inf")
    fewest = tl.where(counting, top_k, top_p * mass)  # scores that are kept: the largest has the weight 1
    if (counting | summing) & (fewest <= _MOST_LISTED):
        a, b, c, floor = _largest(row_ptr, size, bitmask_ptr, TILE)
        lowest = tl.min(_lowest_above(a, _lowest_above(b, _lowest_above(c, max, floor), floor), floor))
        grain = tl.min(tl.minimum(tl.minimum(_lowest_bit(a), _lowest_bit(b)), _lowest_bit(c)))
        grain = tl.minimum(grain, _COARSEST)
        for step in range(2):  # top-k by numbers, top-p by weights
            if (counting & (step == 0)) | (summing & known & (counting == 0) & (step == 1)):
                steepness = slope * step
                needed = tl.where(step == 0, top_k, top_p * mass)
                listed = _at_least(a, b, c, max, steepness, lowest)
                if listed >= needed:
                    found = _bisect(a, b, c, lowest, max, listed, grain, steepness, needed)
                    cut = tl.maximum(cut, found)
                    counting = counting & (step == 1)
                    summing = summing & (step == 0)
                    known = known & False
                elif step == 0:
                    counting = (cut <= floor) & (floor > float("-inf"))
            if (counting == 0) & ((cut > floor) | (floor == float("-inf"))):
                mass = _at_least(a, b, c, max, slope, cut)
                lowest = tl.maximum(lowest, cut)
                known = known | True
        summing = summing & (floor > float("-inf"))
    if counting | summing:
        cut, mass = _narrow(
            row_ptr, size, bitmask_ptr, bins_ptr, cut, slope, max, top_k, top_p, counting, summing
        )
        known = known | True
    if likely > cut:  # only where min-p comes last
        cut = likely
        known = known & False
    if known == 0:
        mass = _mass(row_ptr, size, bitmask_ptr, slope, max, cut, TILE)
    return cut, mass


@triton.jit
def _largest(row_ptr, size, bitmask_ptr, TILE: tl.constexpr):
    """The three largest scores of each group, [TILE] each, and the largest of the groups' fourth ones."""
    a = tl.full([TILE], float("-inf"), tl.float32)
    b, c, d = a, a, a
    for start in range(0, size, 4 * TILE):
        for part in tl.static_range(4):  # loads in flight together
            x = read_row(row_ptr, start + part * TILE + tl.arange(0, TILE), size, bitmask_ptr)
            x = tl.maximum(x, float("-inf"))  # NaN
            less = tl.minimum(a, x)
            a = tl.maximum(a, x)
            least = tl.minimum(b, less)
            b = tl.maximum(b, less)
            d = tl.maximum(d, tl.minimum(c, least))
            c = tl.maximum(c, least)
    return a, b, c, tl.max(d)


@triton.jit
def _lowest_above(x, other, floor):
    return tl.where(x > floor, tl.minimum(x, other), other)


@triton.jit
def _weight(x, value, max, steepness):
    """Of the scores >= value."""
    return tl.where(x >= value, tl.exp2((x - max) * steepness), 0.0)


@triton.jit
def _at_least(a, b, c, max, steepness, value):
    """The amount of the listed scores >= value: their mass, or with steepness 0 their number."""
    weights = _weight(a, value, max, steepness) + _weight(b, value, max, steepness)
    return tl.sum(weights + _weight(c, value, max, steepness))


@triton.jit
def _bisect(a, b, c, low, high, amount_low, grain, steepness, needed):
    """The largest t for which the amount of the listed scores >= t is at least `needed`, up to a t that keeps
    the same scores. It is of `low`; `high` is the largest score; x has the amount 2^((x - max) steepness)."""
    max = high
    amount_high = _at_least(a, b, c, max, steepness, high)
    if amount_high >= needed:
        low, amount_low = high, amount_high
    # Variables of a loop must not start from one value: Triton 3.9 takes them for one variable.
    middle = _between(low, high, grain)
    narrowing = middle > low
    while narrowing:
        amount = _at_least(a, b, c, max, steepness, middle)
        if amount >= needed:
            low, amount_low = middle, amount
        else:
            high, amount_high = middle, amount
        middle = _between(low, high, grain)
        # Two scores of [low, high) have at least twice the amount of `low`.
        single = amount_low - amount_high < 1.5 * tl.exp2((low - max) * steepness)
        narrowing = (middle > low) & (single == 0) & (amount_low > needed)
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
def _key_of(x, GRAIN: tl.constexpr):
    """Integers in the order of the scores, int32; one for every 2^GRAIN float32 from 0 on."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, -(bits & 0x7FFFFFFF), bits) >> GRAIN


@triton.jit
def _score_of(key, GRAIN: tl.constexpr):
    """The lowest score with a key."""
    key = key << GRAIN
    return tl.where(key < 0, -key | -0x80000000, key).to(tl.float32, bitcast=True)


@triton.jit
def _narrow(row_ptr, size, bitmask_ptr, bins_ptr, cut, slope, max, top_k, top_p, counting, summing):
    """The threshold of top-k (where `counting`) and then of top-p (where `summing`) among the scores >= cut,
    and the mass of those at or above it.

    Each threshold lies in an interval of keys. A read of the row sorts the scores of the interval into bins,
    of numbers and of masses; the bin with the threshold is the next interval, until its scores are all equal
    or all kept. The first bins are steps of WIDTH down from `max`, the last of which has all the rest; later
    ones are ranges of keys. As long as top-k's threshold is not known, the mass of which top-p takes a share
    has bounds, and top-p's interval is wherever its threshold may then be.

    Two reads do for 16 bits and three for float32, but for thresholds within WIDTH of 0 or more than
    BINS * WIDTH below `max`, which take one more."""
    # The bits of a float32 that scores of 16 bits leave 0.
    GRAIN: tl.constexpr = (
        16 if row_ptr.dtype.element_ty == tl.bfloat16 else 13 if row_ptr.dtype.element_ty == tl.float16 else 0
    )
    k_bins, k_masses, p_masses = bins_ptr, bins_ptr + _BINS, bins_ptr + 2 * _BINS
    low_key, high_key = -_key_of(-tl.maximum(cut, _LOWEST), GRAIN), _key_of(max, GRAIN)
    unit = tl.exp2(
        61.0 - tl.floor(tl.log2(tl.cast(size, tl.float32)))
    )  # masses are integers, in units of its inverse
    # An interval in which nothing is looked for is empty.
    k_low, k_high = tl.where(counting, low_key, 1), tl.where(counting, high_key, 0)
    p_low, p_high = tl.where(summing, low_key, 1), tl.where(summing, high_key, 0)
    k_above = tl.full([], 0, tl.int64)
    k_mass_above, p_mass_above = k_above, k_above
    most = k_above  # that top-k may keep; in the end what is kept
    for level in range(_LEVELS):
        if (k_low <= k_high) | (p_low <= p_high):
            k_shift, p_shift = _shift(k_low, k_high), _shift(p_low, p_high)
            for begin in range(0, BINS, _LANES):
                tl.store(bins_ptr + begin + tl.arange(0, _LANES), tl.zeros([_LANES], tl.int64))
            tl.debug_barrier()
            for begin in range(0, size, _LANES):
                x = read_row(row_ptr, begin + tl.arange(0, _LANES), size, bitmask_ptr)
                key = _key_of(x, GRAIN)
                if level == 0:
                    k_bin = _step_of(x, max)
                    p_bin = k_bin
                else:
                    k_bin = ((k_high - key).to(tl.uint32, bitcast=True) >> k_shift).to(tl.int32)
                    p_bin = ((p_high - key).to(tl.uint32, bitcast=True) >> p_shift).to(tl.int32)
                weight = (tl.exp2((x - max) * slope) * unit).to(tl.int64)
                in_k = (key >= k_low) & (key <= k_high)
                in_p = (key >= p_low) & (key <= p_high)
                tl.atomic_add(k_bins + k_bin, 1, mask=in_k, sem="relaxed")
                tl.atomic_add(k_masses + k_bin, weight, mask=in_k, sem="relaxed")
                tl.atomic_add(p_masses + p_bin, weight, mask=in_p, sem="relaxed")
            tl.debug_barrier()
            if k_low <= k_high:
                place, before, through = _find(k_bins, k_above, top_k.to(tl.int64))
                k_above = before
                k_mass_above += _sum_before(k_masses, place)
                most = k_mass_above + tl.load(k_masses + place)
                k_low, k_high = _interval(level, place, place, k_low, k_high, k_shift, max, GRAIN)
                if (through <= top_k) | (through - before == 1) | (k_low == k_high):
                    cut = tl.maximum(cut, _score_of(k_low, GRAIN))
                    k_low, k_high = k_high + 1, k_high
            elif level == 0:
                _, _, most = _find(p_masses, p_mass_above, tl.full([], 2**62, tl.int64))
            if p_low <= p_high:
                least = tl.where(k_low <= k_high, k_mass_above, most)
                first, before, _ = _find(p_masses, p_mass_above, _share(top_p, least))
                last, _, mass = _find(p_masses, p_mass_above, _share(top_p, most))
                p_mass_above = before
                p_low, p_high = _interval(level, first, last, p_low, p_high, p_shift, max, GRAIN)
                lightest = tl.exp2((_score_of(p_low, GRAIN) - max) * slope) * unit
                single = (mass - before).to(tl.float32) < 1.5 * lightest
                if single | (p_low == p_high):
                    cut = tl.maximum(cut, _score_of(p_low, GRAIN))
                    most = mass
                    p_low, k_low = p_high + 1, k_high + 1
            tl.debug_barrier()
    return cut, most.to(tl.float32) / unit


@triton.jit
def _shift(low, high):
    """The bits by which differences of keys are shifted to be numbers of bins."""
    bits = tl.maximum(high.to(tl.int64) - low, 1).to(tl.float64).to(tl.int64, bitcast=True)
    return tl.maximum((bits >> 52) - 1023 - 10, 0).to(tl.uint32)


@triton.jit
def _end_of_step(step, max):
    """The largest score of a bin of the first level; exact but for one rounding."""
    return max - step.to(tl.float32) * _WIDTH


@triton.jit
def _step_of(x, max):
    """The bins of the first level."""
    step = tl.minimum(tl.maximum((max - x) * (1 / _WIDTH), 0.0), _BINS - 1.0).to(tl.int32)
    step = tl.where(x > _end_of_step(step, max), step - 1, step)  # the difference was rounded
    step = tl.where(x <= _end_of_step(step + 1, max), step + 1, step)
    return tl.minimum(tl.maximum(step, 0), _BINS - 1)


@triton.jit
def _upper_end(level, place, high_key, shift, max, GRAIN: tl.constexpr):
    """The largest key of a bin, int64."""
    key = tl.where(place == 0, high_key, _key_of(_end_of_step(place, max), GRAIN))
    return tl.where(level == 0, key.to(tl.int64), high_key - (place.to(tl.int64) << shift))


@triton.jit
def _interval(level, first, last, low_key, high_key, shift, max, GRAIN: tl.constexpr):
    """The smallest and the largest key of some bins."""
    low = tl.maximum(_upper_end(level, last + 1, high_key, shift, max, GRAIN) + 1, low_key)
    low = tl.where(last == _BINS - 1, low_key, low)
    return low.to(tl.int32), _upper_end(level, first, high_key, shift, max, GRAIN).to(tl.int32)


@triton.jit
def _share(share, mass):
    return tl.maximum((share.to(tl.float64) * mass.to(tl.float64)).to(tl.int64), 1)


@triton.jit
def _find(bins_ptr, above, needed):
    """The first bin with which the amount is at least `needed`, else the last; the amounts before and with
    it."""
    lane = tl.arange(0, _LANES)
    start = tl.full([], 0, tl.int32)
    for begin in range(0, _BINS - _LANES, _LANES):
        amount = above + tl.sum(tl.load(bins_ptr + begin + lane))
        further = (start == begin) & (amount < needed)
        start = tl.where(further, begin + _LANES, start)
        above = tl.where(further, amount, above)
    amounts = above + tl.cumsum(tl.load(bins_ptr + start + lane))
    place = tl.min(tl.where(amounts >= needed, lane, _LANES - 1))
    before = tl.max(tl.where(lane < place, amounts, above))
    return start + place, before, tl.max(tl.where(lane <= place, amounts, above))


@triton.jit
def _sum_before(bins_ptr, place):
    lane = tl.arange(0, _LANES)
    sums = tl.zeros([_LANES], tl.int64)
    for begin in range(0, place, _LANES):
        sums += tl.load(bins_ptr + begin + lane, mask=begin + lane < place, other=0)
    return tl.sum(sums)


@triton.jit
def _mass(row_ptr, size, bitmask_ptr, slope, max, cut, TILE: tl.constexpr):
    """The mass of the scores >= cut."""
    sums = tl.zeros([TILE], tl.float32)
    for begin in range(0, size, TILE):
        x = read_row(row_ptr, begin + tl.arange(0, TILE), size, bitmask_ptr)
        sums += tl.where(x >= cut, tl.exp2((x - max) * slope), 0.0)
    return tl.sum(sums)
