"""The first launch of `verify`: what the laws of the rows need to know of them, split over the vocabulary.

Of every split of a row the largest score, the mass relative to it, whether there is a NaN, for greedy
requests the lowest token that has the largest score, and under `match` without cuts the winner of the race.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arguments import bitmask_row, draft_row, drawn_from, has_cuts, params_of, target_row
from .race import race_law
from .random import NEXT
from .row import NO_TOKEN, measure, read_row, slope_of
from .tree import POINT, request_range

TARGET = tl.constexpr(0)
DRAFT = tl.constexpr(1)
RESULT = 8  # int32 words of the result of a split: max, mass, token, NaN, the race's score, and padding
_RESULT = tl.constexpr(RESULT)
_REQUESTS = tl.constexpr(32)  # looked through together
_NODES = tl.constexpr(32)
_PIECE = tl.constexpr(512)


@triton.jit
def _record(scratch, row, side, split, SPLITS: tl.constexpr):
    return scratch.words.to(tl.pointer_type(tl.int32)) + ((row * 2 + side) * SPLITS + split) * _RESULT


@triton.jit
def split_results(scratch, row, side, size, SPLIT: tl.constexpr, SPLITS: tl.constexpr):
    """(maxima, masses, tokens, NaNs, scores) of the splits of a row, [SPLITS]."""
    split = tl.arange(0, SPLITS)
    inside = split < tl.cdiv(size, SPLIT)
    record = _record(scratch, row, side, split, SPLITS)
    numbers = record.to(tl.pointer_type(tl.float32))
    return (
        tl.load(numbers, mask=inside, other=float("-inf")),
        tl.load(numbers + 1, mask=inside, other=0.0),
        tl.load(record + 2, mask=inside, other=NO_TOKEN),
        tl.load(record + 3, mask=inside, other=0),
        tl.load(numbers + 4, mask=inside, other=0.0),
    )


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
def _kinds_of_children(tokens, parents, proposals, node, count):
    """Of the drafted children of a node: 0 = there are none, 1 = all are POINT, 2 = some are sampled."""
    kinds = tl.full([], 0, tl.int32)
    for begin in range(node + 1, count, _NODES):
        child = begin + tl.arange(0, _NODES)
        inside = child < count
        mine = tl.load(parents + child, mask=inside, other=-1) == node
        mine = mine & (tl.load(tokens + child, mask=inside, other=-1) >= 0)
        sampled = tl.load(proposals + child, mask=inside, other=POINT) > POINT
        kinds = tl.maximum(kinds, tl.max(tl.where(mine, tl.where(sampled, 2, 1), 0)))
    return kinds


@triton.jit(do_not_specialize=["rows", "requests", "draft_count"])
def measure_kernel(
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
        first, count = request_range(cu_nodes_ptr, rows, request)
        node = row - first
        if node >= 0:
            begin = split * SPLIT
            offsets = begin + tl.arange(0, SPLIT)
            record = _record(scratch, row.to(tl.int64), side, split, SPLITS)
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
                    wanted = kinds > 0
                if (begin < target.vocab) & wanted:
                    ptr = target_row(target, row.to(tl.int64))
                    bitmask = bitmask_row(target, row.to(tl.int64))
                    slope = slope_of(tl.where(greedy, 1.0, params.temperature))  # some rules test there
                    x = _read_split(ptr, offsets, target.vocab, bitmask, WHOLE)
                    max, mass, token, nan = measure(x, offsets, slope, False)
                    if greedy:
                        token = _lowest_at(ptr, begin, target.vocab, bitmask, max, SPLIT)
                    score = tl.full([], 0.0, tl.float32)
                    if RULE == "match":
                        if races & (mass > 0):
                            score, token = race_law(
                                ptr, begin, tl.minimum(begin + SPLIT, target.vocab), target.vocab, bitmask,
                                max, slope, max,
                                tl.load(seeds_ptr + request),
                                tl.load(positions_ptr + request) + _depth(parents_ptr + first, node),
                                NEXT, RACE_TILE, False,
                            )  # fmt: skip
                    _store(record, max, mass, token, nan, score)
            elif draft is not None:
                if (begin < draft.size) & ((not greedy) | (RULE == "lenient")):
                    if kinds > 1:
                        source = drawn_from(draft, draft_count, request, row.to(tl.int64), node)
                        if source >= 0:
                            drafted_by = params_of(draft_sampling, request)
                            ptr = draft_row(draft, source)
                            max, mass, token, nan = measure(
                                _read_split(ptr, offsets, draft.size, None, WHOLE),
                                offsets,
                                slope_of(drafted_by.temperature),
                                False,
                            )
                            if (drafted_by.temperature > 0) == 0:
                                token = _lowest_at(ptr, begin, draft.size, None, max, SPLIT)
                            _store(record, max, mass, token, nan, 0.0)


@triton.jit
def _store(record, max, mass, token, nan, score):
    numbers = record.to(tl.pointer_type(tl.float32))
    tl.store(numbers, max)
    tl.store(numbers + 1, mass)
    tl.store(record + 2, token)
    tl.store(record + 3, nan)
    tl.store(numbers + 4, score)
