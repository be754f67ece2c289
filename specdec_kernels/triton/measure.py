# SPDX-License-Identifier: Apache-2.0
"""The first launch of `verify`: what the laws of the rows need to know of them, split over the vocabulary.

Of every split of a row the largest score, the mass relative to it, whether there is a NaN, for greedy
requests the lowest token that has the largest score, and under `match` without cuts the winner of the race.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .arguments import bitmask_row, draft_row, drawn_from, has_cuts, params_of, target_row
from .race import race
from .random import NEXT, race_words
from .record import load_shared, save
from .row import NO_TOKEN, exponent_of, measure, read_row, slope_of
from .tree import NODES, POINT, request_rows

TARGET = tl.constexpr(0)
DRAFT = tl.constexpr(1)
RESULT = 4  # float64 words of the result of a split: a sector
_RESULT = tl.constexpr(RESULT)
_REQUESTS = tl.constexpr(32)  # looked through together
_PIECE = tl.constexpr(512)  # tokens read together where a row is read again
# Kinds of children.
_NONE, _ALL_POINT, _SOME_SAMPLED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


class Split(NamedTuple):
    """The result of a split, or of several."""

    max: tl.tensor  # float32
    mass: tl.tensor  # float32
    token: tl.tensor  # int32: the likeliest of a greedy request, or the winner of a race
    flags: tl.tensor  # int32
    score: tl.tensor  # float32, of the winner


@triton.jit
def _empty_split():
    zero = tl.full([], 0.0, tl.float32)
    lowest = tl.full([], float("-inf"), tl.float32)
    return Split(lowest, zero, tl.full([], NO_TOKEN, tl.int32), tl.full([], 0, tl.int32), zero)


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
def _results(scratch, row, side, SPLITS: tl.constexpr):
    return scratch.words + (row * scratch.sides + side) * (SPLITS * _RESULT)


@triton.jit
def split_results(scratch, row, side, size, SPLIT: tl.constexpr, SPLITS: tl.constexpr):
    """Of a measured row; the flag of a split is 1 where it has a NaN."""
    return load_splits(_results(scratch, row, side, SPLITS), tl.cdiv(size, SPLIT), SPLITS)


@triton.jit
def _request_of(cu_nodes, requests, row):
    """The request that owns a row; `requests` where none does."""
    before = tl.full([], 0, tl.int32)
    for begin in range(0, requests, _REQUESTS):
        request = begin + tl.arange(0, _REQUESTS)
        end = tl.load(cu_nodes + request + 1, mask=request < requests, other=2**31 - 1)
        before += tl.sum((end <= row).to(tl.int32))
    return before


@triton.jit
def _depth(parents, node):
    depth = tl.full([], 0, tl.int32)
    while node > 0:
        parent = tl.load(parents + node)
        node = tl.where(parent < node, parent, 0)
        depth += 1
    return depth


@triton.jit
def _read_split(row_ptr, offsets, size, bitmask_ptr, WHOLE: tl.constexpr):
    """Scores of a split; where all splits are WHOLE, nothing beyond the row has to be masked."""
    if WHOLE and bitmask_ptr is None:
        x = tl.load(row_ptr + offsets).to(tl.float32)
    else:
        x = read_row(row_ptr, offsets, size, bitmask_ptr)
    return x


@triton.jit
def _lowest_at(row_ptr, begin, size, bitmask_ptr, max, SPLIT: tl.constexpr):
    """The lowest place of a split's largest score. The row is read again, piece by piece: few requests ask,
    and to hold what it takes would cost all others registers."""
    lowest = tl.full([], NO_TOKEN, tl.int32)
    for start in range(begin, begin + SPLIT, _PIECE):
        offsets = start + tl.arange(0, _PIECE)
        x = read_row(row_ptr, offsets, size, bitmask_ptr)
        lowest = tl.minimum(lowest, tl.min(tl.where((x == max) & (offsets < size), offsets, NO_TOKEN)))
    return lowest


@triton.jit
def measure_and_race(
    row_ptr, begin, end, size, bitmask_ptr,
    slope, seed, position, purpose,
    TILE: tl.constexpr,
):  # fmt: skip
    """The result of a split with the winner of its race, in one pass: weights are relative to the largest
    score so far."""
    max = tl.full([], float("-inf"), tl.float32)
    mass = tl.full([], 0.0, tl.float32)
    nan = tl.full([], 0, tl.int32)
    score = tl.full([], 0.0, tl.float32)
    token = tl.full([], NO_TOKEN, tl.int32)
    for start in range(begin, end, TILE):
        tokens = start + tl.arange(0, TILE)
        x = read_row(row_ptr, tokens, size, bitmask_ptr)
        before = max
        max = tl.maximum(max, tl.max(x))  # sees no NaN
        scale = tl.exp2(exponent_of(before, max, slope))
        weights = tl.exp2(exponent_of(x, max, slope))
        part = tl.sum(weights)
        if part != part:
            nan = tl.full([], 1, tl.int32)
            part = tl.sum(tl.where(weights == weights, weights, 0.0))
        mass = mass * scale + part
        words = race_words(seed, position, purpose, 0, start // 4 + tl.arange(0, TILE // 4))
        score, token = race(weights, words, tokens, score * scale, token)
    return Split(max, mass, token, nan, score)


@triton.jit
def measure_split(
    scratch, row, side, split,
    row_ptr, size, bitmask_ptr,
    temperature, races, seed, position,
    RACE: tl.constexpr, SPLIT: tl.constexpr, SPLITS: tl.constexpr, RACE_TILE: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """Writes the result of a split of a row, which begins inside it."""
    begin = split * SPLIT
    greedy = (temperature > 0) == 0
    slope = slope_of(tl.where(greedy, 1.0, temperature))  # some rules test there
    if RACE:
        racing = races & (temperature > 0)
    else:
        racing: tl.constexpr = False
    if racing:
        result = measure_and_race(
            row_ptr, begin, tl.minimum(begin + SPLIT, size), size, bitmask_ptr,
            slope, seed, position, NEXT, RACE_TILE,
        )  # fmt: skip
    else:
        x = _read_split(row_ptr, begin + tl.arange(0, SPLIT), size, bitmask_ptr, WHOLE)
        max, mass, nan = measure(x, slope)
        token = tl.full([], NO_TOKEN, tl.int32)
        if greedy:
            token = _lowest_at(row_ptr, begin, size, bitmask_ptr, max, SPLIT)
        result = Split(max, mass, token, nan, tl.full([], 0.0, tl.float32))
    store_split(_results(scratch, row, side, SPLITS), split, result)


@triton.jit
def _kinds_of_children(tokens, parents, proposals, node, count):
    """Of the drafted children of a node: _NONE, _ALL_POINT or _SOME_SAMPLED."""
    kinds = tl.full([], _NONE, tl.int32)
    for begin in range(node + 1, count, NODES):
        child = begin + tl.arange(0, NODES)
        inside = child < count
        mine = tl.load(parents + child, mask=inside, other=-1) == node
        mine = mine & (tl.load(tokens + child, mask=inside, other=-1) >= 0)
        sampled = tl.load(proposals + child, mask=inside, other=POINT) > POINT
        kinds = tl.maximum(kinds, tl.max(tl.where(mine, tl.where(sampled, _SOME_SAMPLED, _ALL_POINT), _NONE)))
    return kinds


@triton.jit(do_not_specialize=["rows", "requests", "draft_count"])
def verify_measure_kernel(
    target,
    draft,
    sampling,
    draft_sampling,
    tokens_ptr,  # [R]
    parents_ptr,  # [R]
    proposals_ptr,  # [R]
    cu_nodes_ptr,  # [B + 1]
    seeds_ptr,  # [B]
    positions_ptr,  # [B]
    scratch,
    rows,
    requests,
    draft_count,
    RULE: tl.constexpr,
    CUTS: tl.constexpr,
    SPLIT: tl.constexpr,
    SPLITS: tl.constexpr,
    RACE_TILE: tl.constexpr,
    WHOLE: tl.constexpr,
):
    row, split, side = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    request = _request_of(cu_nodes_ptr, requests, row)
    if request < requests:
        first, count = request_rows(cu_nodes_ptr, request, rows)
        node = row - first
        if node >= 0:
            begin = split * SPLIT
            params = params_of(sampling, request)
            greedy = (params.temperature > 0) == 0
            kinds = _kinds_of_children(
                tokens_ptr + first, parents_ptr + first, proposals_ptr + first, node, count
            )
            if side == TARGET:
                wanted = greedy
                races = not greedy
                if CUTS:
                    wanted = wanted | has_cuts(params, target.vocab)
                    races = races & (not wanted)
                if RULE == "match":
                    wanted = True
                elif (begin < target.vocab) & (not wanted):
                    # A row without children is only drawn from: its law is found in the same pass.
                    wanted = kinds > _NONE
                if (begin < target.vocab) & wanted:
                    seed = tl.load(seeds_ptr + request)
                    position = tl.load(positions_ptr + request)
                    if RULE == "match":
                        position += _depth(parents_ptr + first, node)
                    measure_split(
                        scratch, row.to(tl.int64), TARGET, split,
                        target_row(target, row), target.vocab, bitmask_row(target, row.to(tl.int64)),
                        params.temperature, races, seed, position,
                        RULE == "match", SPLIT, SPLITS, RACE_TILE, WHOLE,
                    )  # fmt: skip
            elif draft.data is not None:
                if (begin < draft.size) & ((not greedy) | (RULE == "lenient")):
                    if kinds == _SOME_SAMPLED:
                        source = drawn_from(draft, draft_count, request, row.to(tl.int64), node)
                        if source >= 0:
                            measure_split(
                                scratch, row.to(tl.int64), DRAFT, split,
                                draft_row(draft, source), draft.size, None,
                                params_of(draft_sampling, request).temperature, False, 0, 0,
                                False, SPLIT, SPLITS, RACE_TILE, WHOLE,
                            )  # fmt: skip
