# SPDX-License-Identifier: Apache-2.0
"""The first launch of `verify`: what the laws of the rows need to know of them, split over the vocabulary.

Of every split of a row the largest score, the mass relative to it, whether there is a NaN, for greedy
requests the lowest token that has the largest score, with cuts the largest scores of every lane, and under
`match` without cuts the winner of the race.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .arguments import bitmask_of, draft_params_of, edits_of, has_cuts, params_of, row_data, target_row
from .cuts import Listed, largest
from .race import race
from .random import NEXT, race_words
from .record import load_shared, save
from .row import NO_TOKEN, Row, exponent_of, measure, read_tile, slope_of
from .tree import clear_ranks
from .wanted import DRAFT, TARGET, depth_of, place_of, wanted_draft_row, wants_target

RESULT = 4  # float64 words of the result of a split: a sector
_RESULT = tl.constexpr(RESULT)
_PIECE = tl.constexpr(512)  # tokens read together where a row is read again


class Split(NamedTuple):
    """The result of a split, or of several."""

    max: tl.tensor  # float32
    mass: tl.tensor  # float32
    token: tl.tensor  # int32: the likeliest of a greedy request, or the winner of a race
    flags: tl.tensor  # int32
    score: tl.tensor  # float32, of the winner
    floor: tl.tensor  # float32: all scores above it are listed


@triton.jit
def _empty_split():
    zero = tl.full([], 0.0, tl.float32)
    lowest = tl.full([], float("-inf"), tl.float32)
    return Split(lowest, zero, tl.full([], NO_TOKEN, tl.int32), tl.full([], 0, tl.int32), zero, lowest)


@triton.jit
def store_split(words, split, result):
    save((words + split * _RESULT).to(tl.pointer_type(tl.float32)), result)


@triton.jit
def load_splits(words, splits, SPLITS: tl.constexpr):
    """[SPLITS] results, which other programs, even of the same launch, may have written."""
    split = tl.arange(0, SPLITS)
    words = (words + split * _RESULT).to(tl.pointer_type(tl.float32))
    return Split(*load_shared(words, _empty_split(), split < splits))


@triton.jit
def results_of(scratch, row, side, SPLITS: tl.constexpr):
    return scratch.words + (row * scratch.sides + side) * (SPLITS * _RESULT)


@triton.jit
def split_results(scratch, row, side, size, SPLIT: tl.constexpr, SPLITS: tl.constexpr):
    """Of a measured row; the flag of a split is 1 where it has a NaN."""
    return load_splits(results_of(scratch, row, side, SPLITS), tl.cdiv(size, SPLIT), SPLITS)


@triton.jit
def _lists_of(scratch, row, side, SPLITS: tl.constexpr, LANES: tl.constexpr):
    lists = (scratch.words + scratch.listed).to(tl.pointer_type(tl.float32))
    return lists + (row * scratch.sides + side) * (3 * SPLITS * LANES)


@triton.jit
def _list_largest(lists, split, row, SPLIT: tl.constexpr, SPLITS: tl.constexpr, LANES: tl.constexpr):
    """Writes the largest scores of a split; returns the floor."""
    a, b, c, floor = largest(row, split * SPLIT, SPLIT, LANES)
    place = split * LANES + tl.arange(0, LANES)
    tl.store(lists + place, a)
    tl.store(lists + SPLITS * LANES + place, b)
    tl.store(lists + 2 * SPLITS * LANES + place, c)
    return floor


@triton.jit
def load_listed(scratch, row, side, size, floors, SPLIT: tl.constexpr, LANES: tl.constexpr):
    """What was listed of all splits of a row of that size, which have these floors."""
    SPLITS: tl.constexpr = floors.shape[0]
    place = tl.arange(0, 4 * SPLITS * LANES)
    inside = (place < 3 * SPLITS * LANES) & (place % (SPLITS * LANES) < tl.cdiv(size, SPLIT) * LANES)
    lists = _lists_of(scratch, row, side, SPLITS, LANES)
    return Listed(tl.load(lists + place, mask=inside, other=float("-inf")), tl.max(floors))


@triton.jit
def _read_split(row, begin, SPLIT: tl.constexpr, WHOLE: tl.constexpr):
    """Scores of a split; where all splits are WHOLE, nothing beyond the row has to be masked."""
    if WHOLE and row.bitmask is None and row.edits is None:
        x = tl.load(row.data + begin + tl.arange(0, SPLIT)).to(tl.float32)
    else:
        x = read_tile(row, begin, SPLIT)
    return x


@triton.jit
def _lowest_at(row, begin, max, SPLIT: tl.constexpr):
    """The lowest place of a split's largest score. The row is read again, piece by piece: few requests ask,
    and to hold what it takes would cost all others registers."""
    lowest = tl.full([], NO_TOKEN, tl.int32)
    for start in range(begin, begin + SPLIT, _PIECE):
        offsets = start + tl.arange(0, _PIECE)
        x = read_tile(row, start, _PIECE)
        lowest = tl.minimum(lowest, tl.min(tl.where((x == max) & (offsets < row.size), offsets, NO_TOKEN)))
    return lowest


@triton.jit
def _largest(x):
    """The largest of a tile of scores; NaN are not seen. The eight that a lane has read are compared first,
    and then integers, which a warp compares in one step."""
    of_lanes = tl.maximum(tl.max(tl.reshape(x, [x.shape[0] // 8, 8]), 1), float("-inf"))
    bits = _in_order(of_lanes.to(tl.int32, bitcast=True))
    return _in_order(tl.max(bits)).to(tl.float32, bitcast=True)


@triton.jit
def _in_order(bits):
    """Integers that compare as the numbers with these bits do, and back again."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def measure_and_race(row, begin, end, slope, seed, position, purpose, TILE: tl.constexpr):
    """The result of a split with the winner of its race, in one pass: weights are relative to the largest
    score so far."""
    max = tl.full([], float("-inf"), tl.float32)
    masses = tl.zeros([TILE], tl.float32)
    score = tl.full([], 0.0, tl.float32)
    token = tl.full([], NO_TOKEN, tl.int32)
    for start in range(begin, end, TILE):
        tokens = start + tl.arange(0, TILE)
        x = read_tile(row, start, TILE)
        before = max
        max = tl.maximum(max, _largest(x))
        scale = tl.exp2(exponent_of(before, max, slope))
        weights = tl.exp2(exponent_of(x, max, slope))
        masses = masses * scale + weights
        words = race_words(seed, position, purpose, 0, start // 4 + tl.arange(0, TILE // 4))
        score, token = race(weights, words, tokens, score * scale, token)
    mass = tl.sum(masses)
    nan = (mass != mass).to(tl.int32)
    if nan > 0:
        masses = tl.zeros([TILE], tl.float32)
        for start in range(begin, end, TILE):
            x = read_tile(row, start, TILE)
            masses += tl.exp2(exponent_of(tl.where(x == x, x, float("-inf")), max, slope))
        mass = tl.sum(masses)
    return Split(max, mass, token, nan, score, tl.full([], float("-inf"), tl.float32))


@triton.jit
def measure_split(
    scratch,
    place,
    side,
    split,
    row,
    temperature,
    races,
    lists,
    seed,
    position,
    RACE: tl.constexpr,
    LANES: tl.constexpr,
    SPLIT: tl.constexpr,
    SPLITS: tl.constexpr,
    RACE_TILE: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Writes the result of a split of a row, which begins inside it. The largest scores are listed where
    `lists` is set, and where `races` is the race is run."""
    begin = split * SPLIT
    greedy = (temperature > 0) == 0
    slope = slope_of(tl.where(greedy, 1.0, temperature))  # some rules test there
    if RACE:
        racing = races & (temperature > 0)
    else:
        racing: tl.constexpr = False
    if racing:
        result = measure_and_race(
            row, begin, tl.minimum(begin + SPLIT, row.size), slope, seed, position, NEXT, RACE_TILE
        )
    else:
        x = _read_split(row, begin, SPLIT, WHOLE)
        max, mass, nan = measure(x, slope)
        token = tl.full([], NO_TOKEN, tl.int32)
        floor = tl.full([], float("-inf"), tl.float32)
        if greedy:
            token = _lowest_at(row, begin, max, SPLIT)
        if LANES > 0:
            if lists:
                list_ptr = _lists_of(scratch, place, side, SPLITS, LANES)
                floor = _list_largest(list_ptr, split, row, SPLIT, SPLITS, LANES)
        result = Split(max, mass, token, nan, tl.full([], 0.0, tl.float32), floor)
    store_split(results_of(scratch, place, side, SPLITS), split, result)


@triton.jit(do_not_specialize=["rows", "requests", "draft_count"])
def verify_measure_kernel(
    target,
    draft,
    sampling,
    draft_sampling,
    batch,
    scratch,
    rows,
    requests,
    draft_count,
    RULE: tl.constexpr,
    LANES: tl.constexpr,
    SPLIT: tl.constexpr,
    SPLITS: tl.constexpr,
    RACE_TILE: tl.constexpr,
    WHOLE: tl.constexpr,
):
    row, split, side = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    place = place_of(batch, tl.program_id(0), rows, requests)
    if side == TARGET:
        if split == 0:
            clear_ranks(scratch, batch, row)
        if (split * SPLIT < target.vocab) & (place.node >= 0):
            params = params_of(sampling, place.request)
            number = target_row(target, row)
            if wants_target(batch, place, number, params, target.vocab, RULE):
                position = tl.load(batch.positions + place.request)
                lists = has_cuts(params, target.vocab)
                if RULE == "match":
                    position += depth_of(batch, place)
                elif RULE == "relaxed":
                    lists = place.node >= 0
                measure_split(
                    scratch,
                    row,
                    TARGET,
                    split,
                    Row(
                        row_data(target, number), target.vocab, bitmask_of(target, row), edits_of(target, row)
                    ),
                    params.temperature,
                    not lists,
                    lists,
                    tl.load(batch.seeds + place.request),
                    position,
                    RULE == "match",
                    LANES,
                    SPLIT,
                    SPLITS,
                    RACE_TILE,
                    WHOLE,
                )
    elif draft.data is not None:
        if split * SPLIT < draft.size:
            source = wanted_draft_row(draft, batch, place, row, sampling, draft_count, RULE)
            if source >= 0:
                params = draft_params_of(sampling, draft_sampling, place.request)
                measure_split(
                    scratch,
                    row,
                    DRAFT,
                    split,
                    Row(row_data(draft, source), draft.size, None, None),
                    params.temperature,
                    False,
                    has_cuts(params, draft.size),
                    0,
                    0,
                    False,
                    LANES,
                    SPLIT,
                    SPLITS,
                    RACE_TILE,
                    WHOLE,
                )
