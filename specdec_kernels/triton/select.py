# SPDX-License-Identifier: Apache-2.0
"""Thresholds of cuts below the floor of what `measure` listed: the rest of a wide nucleus or of a large
top-k.

    bracket = expect(row, max, slope, mass, cuts, params)     # in `settle`, from a sample of the row
    collect(...)                                              # one launch over (rows x splits)
    cut, mass = select(...)                                   # one over rows

A sample of the row says within which scores a threshold almost certainly lies. Every split then sums exactly
what lies at or above both ends, and collects the few scores between them. A launch over rows checks that the
threshold does lie there, and finds it among the collected. If it does not, or if a split collects too many
(many equal scores), the program of the row searches all of it by bisection.

A sum depends on its threshold and on the row alone, so nothing depends on the order of programs.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .cuts import find, least_kept, scale_of, sum_from, weight_of
from .record import load, load_shared, save, whole_sectors
from .row import read_row, read_tile

SAMPLE = tl.constexpr(4096)
COLLECTED = 1024  # scores that a split may collect
_COLLECTED = tl.constexpr(COLLECTED)
_PIECE = tl.constexpr(1024)  # scores of a split taken together
_SEARCHED = tl.constexpr(4096)  # of a row that is searched
_LOWEST = tl.constexpr(-3.4028234663852886e38)  # of finite float32
_NOTHING = tl.constexpr(float("-inf"))
_NONE = tl.constexpr(float("inf"))
_DEVIATIONS = tl.constexpr(3.5)  # that the sample is trusted within


class Bracket(NamedTuple):
    """Within which scores [low, high) thresholds are expected."""

    open: tl.tensor  # int32, 0 = the law is settled
    counting: tl.tensor  # int32, whether top-k is looked for
    summing: tl.tensor  # int32, whether top-p is
    likely: tl.tensor  # float32, the threshold of min-p; -inf = none
    k_low: tl.tensor  # float32
    k_high: tl.tensor
    p_low: tl.tensor
    p_high: tl.tensor


class Sums(NamedTuple):
    """Of a split: how many scores were collected; numbers and masses of the scores at or above some
    values."""

    collected: tl.tensor  # int32
    k_low_number: tl.tensor  # float32
    k_high_number: tl.tensor
    k_high_mass: tl.tensor
    p_low_mass: tl.tensor
    p_high_mass: tl.tensor
    likely_mass: tl.tensor


BRACKET = whole_sectors(len(Bracket._fields) // 2)  # float64 words
SUMS = whole_sectors(len(Sums._fields) // 2 + 1)
_BRACKET, _SUMS = tl.constexpr(BRACKET), tl.constexpr(SUMS)


@triton.jit
def _float32(words):
    return words.to(tl.pointer_type(tl.float32))


@triton.jit
def sum_words(scratch, place, SPLITS: tl.constexpr):
    """Where the splits of a row leave what they summed."""
    return scratch.words + scratch.sums + place * (SPLITS * _SUMS)


@triton.jit
def nothing_open():
    zero, none = tl.full([], 0, tl.int32), tl.full([], _NONE, tl.float32)
    return Bracket(zero, zero, zero, -none, none, none, none, none)


@triton.jit
def save_bracket(words, bracket):
    save(_float32(words), bracket)


@triton.jit
def load_bracket(words):
    return Bracket(*load(_float32(words), nothing_open()))


@triton.jit
def expect(row, max, slope, mass, cuts, params):
    """Where the thresholds are that `settle_cut` left open."""
    step = tl.cdiv(row.size, SAMPLE)
    x = tl.maximum(read_row(row, tl.arange(0, SAMPLE) * step), _NOTHING)
    step = tl.cast(step, tl.float32)
    likely = cuts.likely
    if params.min_p_last > 0:
        likely = tl.full([], _NOTHING, tl.float32)
    else:
        mass -= step * tl.sum(tl.where(x < likely, weight_of(x, max, slope), 0.0))
        x = tl.where(x >= likely, x, _NOTHING)
    there = x > _NOTHING
    ones = tl.where(there, 1.0, 0.0)
    weights = tl.where(there, weight_of(x, max, slope), 0.0)
    number, scale = scale_of(row, max, 0.0), scale_of(row, max, slope)
    none = tl.full([], _NONE, tl.float32)
    k_low, k_high = none, none + 0.0
    p_low, p_high = none + 0.0, none + 0.0
    most, least = mass, mass + 0.0  # that top-k keeps
    if cuts.counting:
        # The number of samples above a score has the deviation of its root.
        expected = params.top_k / step
        root = tl.sqrt(expected)
        half: tl.constexpr = _DEVIATIONS / 2
        k_low = tl.maximum(likely, _LOWEST)
        for end in range(0, tl.where(root > half + 1, 2, 1)):  # a loop, as `find` takes long to compile
            needed = tl.where(end == 0, half + tl.sqrt(expected + 2 * half * half), root - half)
            found, _, enough = find(x, ones, number, needed * needed)
            k_low = tl.where(enough & (end == 0), found, k_low)
            k_high = tl.where(enough & (end == 1), found, k_high)
        most, _ = _kept(x, weights, k_low, weight_of(k_low, max, slope), step, mass)
        _, least = _kept(
            x, weights, tl.minimum(k_high, max), weight_of(tl.minimum(k_high, max), max, slope), step, mass
        )
    if cuts.summing:
        whole = tl.sum(weights)
        dropped = tl.full([], 0.0, tl.float32)
        p_low = tl.full([], _LOWEST, tl.float32)
        for turn in range(0, 4):  # the lower end, then the upper one; each roughly, then with its error
            upper, again = turn >= 2, (turn & 1) > 0
            # The dropped mass decides, since its weights are the small ones.
            rough = tl.maximum(mass - params.top_p * tl.where(upper, least, most), 0.0) / step
            dropped = tl.where(again, dropped, rough)
            found, _, enough = find(x, weights, scale, whole - tl.maximum(dropped, 0.0))
            found = tl.where(enough, found, _LOWEST)
            p_low = tl.where(again & (not upper) & (dropped > 0), found, p_low)
            p_high = tl.where(again & upper & enough & (dropped < whole), found, p_high)
            error = _error(dropped, weight_of(found, max, slope))
            dropped += tl.where(upper, error, -error)
    if cuts.counting:  # of what top-k keeps, top-p drops the lightest
        p_low = tl.maximum(p_low, k_low)
    one = tl.full([], 1, tl.int32)
    return Bracket(
        one, cuts.counting.to(tl.int32), cuts.summing.to(tl.int32), cuts.likely, k_low, k_high, p_low, p_high
    )


@triton.jit
def _error(dropped, weight):
    """Of the sampled mass of weights that are lighter than this one."""
    return _DEVIATIONS * (tl.sqrt(weight * dropped) + weight)


@triton.jit
def _kept(x, weights, value, weight, step, mass):
    """Bounds of the mass that is kept from a value of that weight on: the most and the least."""
    dropped = tl.sum(tl.where(x < value, weights, 0.0))
    error = _error(dropped, weight)
    return mass - step * tl.maximum(dropped - error, 0.0), tl.maximum(mass - step * (dropped + error), 0.0)


@triton.jit
def collect(row, split, law, bracket, words, scores_ptr, SPLIT: tl.constexpr):
    """Sums and collects what the bracket asks of a split."""
    zero = tl.zeros([_PIECE], tl.float32)
    k_low, k_high, k_mass, p_low, p_high, likely = (
        zero,
        zero + 0.0,
        zero + 0.0,
        zero + 0.0,
        zero + 0.0,
        zero + 0.0,
    )
    collected = tl.full([], 0, tl.int32)
    scores_ptr += split * _COLLECTED
    begin = split * SPLIT
    for start in range(begin, tl.minimum(begin + SPLIT, row.size), _PIECE):
        x = tl.maximum(read_tile(row, start, _PIECE), _NOTHING)
        weights = tl.where(x > _NOTHING, weight_of(x, law.top, law.slope), 0.0)
        k_low += tl.where(x >= bracket.k_low, 1.0, 0.0)
        k_high += tl.where(x >= bracket.k_high, 1.0, 0.0)
        k_mass += tl.where(x >= bracket.k_high, weights, 0.0)
        p_low += tl.where(x >= bracket.p_low, weights, 0.0)
        p_high += tl.where(x >= bracket.p_high, weights, 0.0)
        likely += tl.where(x >= bracket.likely, weights, 0.0)
        inside = (x >= bracket.k_low) & (x < bracket.k_high)
        inside = (inside | ((x >= bracket.p_low) & (x < bracket.p_high))).to(tl.int32)
        place = collected + tl.cumsum(inside, 0)
        tl.store(scores_ptr + place - 1, x, mask=(inside > 0) & (place <= _COLLECTED))
        collected += tl.sum(inside)
    sums = Sums(
        collected,
        tl.sum(k_low),
        tl.sum(k_high),
        tl.sum(k_mass),
        tl.sum(p_low),
        tl.sum(p_high),
        tl.sum(likely),
    )
    save(_float32(words + split * _SUMS), sums)


@triton.jit
def select(row, law, params, bracket, words, scores_ptr, splits, SPLITS: tl.constexpr):
    """The threshold of a row, from what its splits summed and collected, and the mass that it keeps."""
    split = tl.arange(0, SPLITS)
    zero, number = tl.full([], 0.0, tl.float32), tl.full([], 0, tl.int32)
    sums = Sums(
        *load_shared(
            _float32(words + split * _SUMS), (number, zero, zero, zero, zero, zero, zero), split < splits
        )
    )
    complete = tl.max(sums.collected) <= _COLLECTED
    cut = tl.where(params.min_p_last > 0, _NOTHING, bracket.likely)
    kept = law.mass.to(tl.float32)
    likely_mass = tl.sum(sums.likely_mass)
    kept = tl.where(cut > _NOTHING, likely_mass, kept)
    number = tl.sum(sums.k_low_number)
    fewest = (bracket.k_low <= tl.maximum(cut, _LOWEST)) & (number < params.top_k)  # top-k keeps all
    if (bracket.counting > 0) & (not fewest):
        above = tl.sum(sums.k_high_number)
        there = complete & (number >= params.top_k) & (above < params.top_k)
        found, mass = _threshold(
            row, law, words, scores_ptr, bracket.k_low, bracket.k_high, params.top_k,
            above, tl.sum(sums.k_high_mass), there, splits, SPLITS, COUNTING=True,
        )  # fmt: skip
        if found > cut:
            cut, kept = found, mass
    if bracket.summing > 0:
        needed = least_kept(params, kept)
        above = tl.sum(sums.p_high_mass)
        there = complete & (tl.sum(sums.p_low_mass) >= needed) & (above < needed)
        found, mass = _threshold(
            row, law, words, scores_ptr, bracket.p_low, bracket.p_high, needed,
            above, above, there, splits, SPLITS, COUNTING=False,
        )  # fmt: skip
        if found > cut:
            cut, kept = found, mass
    if bracket.likely > cut:  # only where min-p comes last
        cut, kept = bracket.likely, likely_mass
    return cut, kept


@triton.jit
def _threshold(
    row, law, words, scores_ptr, low, high, needed, above, mass_above, there,
    splits, SPLITS: tl.constexpr, COUNTING: tl.constexpr,
):  # fmt: skip
    """The largest score with the amount `needed` at or above it, and the mass there. Amounts are numbers of
    scores, or masses."""
    if there:
        x = _load_collected(words, scores_ptr, low, high, splits, SPLITS)
        if COUNTING:  # Registers are few: weights come after the search.
            ones = tl.where(x > _NOTHING, 1.0, 0.0)
            found, _, _ = find(x, ones, scale_of(row, law.top, 0.0), needed - above)
            mass = sum_from(x, weight_of(x, law.top, law.slope), found)
        else:
            weights = weight_of(x, law.top, law.slope)
            found, mass, _ = find(x, weights, scale_of(row, law.top, law.slope), needed - above)
        mass += mass_above
    else:
        found = _search(row, law.top, 0.0 if COUNTING else law.slope, needed)
        mass = _amount(row, found, law.top, law.slope)
    return found, mass


@triton.jit
def _load_collected(words, scores_ptr, low, high, splits, SPLITS: tl.constexpr):
    """The scores in [low, high) that all splits collected; -inf where there is none."""
    split, place = tl.arange(0, SPLITS), tl.arange(0, _COLLECTED)
    count = tl.load(
        (_float32(words + split * _SUMS)).to(tl.pointer_type(tl.int32)), mask=split < splits, other=0
    )
    held = place[None, :] < count[:, None]
    x = tl.load(scores_ptr + split[:, None] * _COLLECTED + place[None, :], mask=held, other=_NOTHING)
    return tl.reshape(tl.where((x >= low) & (x < high), x, _NOTHING), [SPLITS * _COLLECTED])


@triton.jit
def _amount(row, value, max, steepness):
    """The amount of the scores of a row >= value."""
    sums = tl.zeros([_SEARCHED], tl.float32)
    for begin in range(0, row.size, _SEARCHED):
        x = read_tile(row, begin, _SEARCHED)
        sums += tl.where(x >= value, weight_of(x, max, steepness), 0.0)
    return tl.sum(sums)


@triton.jit
def _key_of(x):
    """Integers in the order of the scores, int32."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


@triton.jit
def _score_of(key):
    return tl.where(key < 0, -key | -0x80000000, key).to(tl.float32, bitcast=True)


@triton.jit
def _search(row, max, steepness, needed):
    """The largest score of a row with the amount `needed` at or above it, by reading the row for every
    bit."""
    low, high = _key_of(tl.full([], _LOWEST, tl.float32)).to(tl.int64), _key_of(max).to(tl.int64)
    # Scores of 16 bits leave the low bits 0, unless they are edited.
    DTYPE: tl.constexpr = row.data.dtype.element_ty if row.edits is None else tl.float32
    GRAIN: tl.constexpr = 16 if DTYPE == tl.bfloat16 else 13 if DTYPE == tl.float16 else 0
    low, high = low >> GRAIN, high >> GRAIN
    while low < high:
        middle = (low + high + 1) >> 1
        if _amount(row, _score_of((middle << GRAIN).to(tl.int32)), max, steepness) >= needed:
            low = middle
        else:
            high = middle - 1
    return _score_of((low << GRAIN).to(tl.int32))
