# SPDX-License-Identifier: Apache-2.0
"""The last launch of `verify`: the token after the accepted ones, by an exponential race split over the
vocabulary.

The walk leaves what is to be drawn for each request: the law as scalars. The last program of a request to
arrive merges the winners, in fixed order, and writes the token.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .arguments import bitmask_of, edits_of, params_of, target_data
from .dispatch import given
from .ends import finish_request
from .law import EMPTY, NAN, Law, load_law, store_logprob
from .measure import RESULT, Split, load_splits, measure_and_race, store_split
from .race import merge_races, race
from .random import RESIDUAL, race_words
from .record import load, save, whole_sectors
from .residual import Pair, pair_of, residual_weights
from .row import NO_TOKEN, Row, exponent_of, lowest_allowed, slope_of
from .settle import Settled, save_settled
from .tracked import NO_TRACKED, Tracking, leave_out, tracked_race
from .tree import Tree, nodes_of, ranks_of, request_rows
from .wanted import TARGET

_NO_CUT = tl.constexpr(float("-inf"))
_RESULT = tl.constexpr(RESULT)
_OF_P = tl.constexpr(2)  # flag of a split: nothing is left of it, and the winner is that of p

# Kinds of draws.
SETTLED = tl.constexpr(0)  # none: the walk wrote the token
FROM_RESIDUAL = tl.constexpr(1)  # of [p - ratio q]+, and of p where that is nothing
UNMEASURED = tl.constexpr(2)  # of the law of a row that was not measured


class Draw(NamedTuple):
    """What is still to be drawn for a request."""

    p: Law
    q: Law
    node: tl.tensor  # int32, index in its request
    depth: tl.tensor  # int32
    drawn_from: tl.tensor  # int64, row of the draft's logits, -1 = no q
    tracked: tl.tensor  # int32, > 0: the node's tracked tokens are left out; their winners follow below
    ratio: tl.tensor  # float32
    rest_top: tl.tensor  # float32


class Known(NamedTuple):
    """What only the last program needs of it."""

    status: tl.tensor  # int32, so far
    score: tl.tensor  # float32, of the winner of the tracked tokens' residual
    token: tl.tensor  # int32
    p_score: tl.tensor  # float32, of that of p
    p_token: tl.tensor  # int32


# Float64 words: kind and arrivals share the first, then come p, q, the other fields, and what is known.
_FIELDS = tl.constexpr(1 + 2 * len(Law._fields))
_KNOWN = tl.constexpr(_FIELDS.value + len(Draw._fields[2:]))
DRAW = whole_sectors(_KNOWN.value + len(Known._fields))
_DRAW = tl.constexpr(DRAW)


@triton.jit
def draw_words(scratch, request):
    """Where the draw of a request is kept; `sample` keeps its arrivals there."""
    return scratch.words + scratch.draws + request * _DRAW


@triton.jit
def winner_words(scratch, request, SPLITS: tl.constexpr):
    """Where the results of the splits of its draw are kept."""
    return scratch.words + scratch.winners + request * (SPLITS * _RESULT)


@triton.jit
def save_kind(words, kind):
    tl.store(words.to(tl.pointer_type(tl.int32)), kind)


@triton.jit
def load_kind(words):
    return tl.load(words.to(tl.pointer_type(tl.int32)))


@triton.jit
def open_draw(words):
    """Before the programs of a request's draw arrive."""
    tl.store(words.to(tl.pointer_type(tl.int32)) + 1, 0)


@triton.jit
def arrives_last(words):
    """Whether all other programs of the request have arrived, with what they wrote."""
    tl.debug_barrier()
    arrived = tl.atomic_add(words.to(tl.pointer_type(tl.int32)) + 1, 1, sem="acq_rel")
    return arrived == tl.num_programs(1) - 1


@triton.jit
def save_draw(words, kind, draw, known):
    open_draw(words)
    save_kind(words, kind)
    save(words + 1, draw.p)
    save(words + 1 + len(draw.p), draw.q)
    save(words + _FIELDS, draw[2:])
    save(words + _KNOWN, known)


@triton.jit
def leave_draw(ctx, node, state, depth, loaded, status):
    """Leaves where and from what the next token is to be drawn."""
    pair = pair_of(ctx, node, state)
    tracked = tl.full([], 0, tl.int32)
    score = tl.full([], 0.0, tl.float32)
    p_score = score
    token = tl.full([], NO_TOKEN, tl.int32)
    p_token = token
    ratio = tl.full([], 0.0, tl.float32)
    if (state.b > 0) | (state.last > state.since):
        ratio = pair.ratio
        tracked = node.tracked
        if tracked > 0:
            score, token, p_score, p_token = tracked_race(ctx, node, state, tl.load(ctx.position) + depth)
    draw = Draw(node.p, node.q, node.index, depth, node.drawn_from, tracked, ratio, node.rest_top)
    known = Known(status, score, token, p_score, p_token)
    kind = tl.where(loaded, FROM_RESIDUAL, UNMEASURED)
    save_draw(draw_words(ctx.scratch, ctx.request), kind, draw, known)


@triton.jit
def _load_draw(words, CUTS: tl.constexpr):
    p = _load_law(words + 1, CUTS)
    q = _load_law(words + 1 + len(p), CUTS)
    number, score = tl.full([], 0, tl.int32), tl.full([], 0.0, tl.float32)
    row = tl.full([], 0, tl.int64)
    return Draw(p, q, *load(words + _FIELDS, (number, number, row, number, score, score)))


@triton.jit
def _load_known(words):
    number, score = tl.full([], 0, tl.int32), tl.full([], 0.0, tl.float32)
    return Known(*load(words + _KNOWN, (number, score, number, score, number)))


@triton.jit
def _load_law(words, CUTS: tl.constexpr):
    """A law whose cut is known to be none without CUTS: nothing is compared with it."""
    law = load_law(words)
    if not CUTS:
        law = Law(law.top, law.slope, _NO_CUT, law.mass, law.point)
    return law


@triton.jit
def emit(target, row, law, token, tokens_ptr, logprobs_ptr, place):
    """Writes a token (int64) drawn from a law, and its log-probability."""
    tl.store(tokens_ptr + place, token)
    store_logprob(logprobs_ptr, place, target, row, law, token)


@triton.jit(do_not_specialize=["rows", "width"])
def verify_draw_kernel(
    target,
    draft,
    sampling,
    batch,
    scratch,
    out_tokens_ptr,  # [B, width]
    logprobs_ptr,  # [B, width], optional
    out_status_ptr,  # [B]
    ends,
    rows,
    width,
    CUTS: tl.constexpr,
    KEEP: tl.constexpr,  # the law of a row that was not measured, for what is reported
    SPLIT: tl.constexpr,
    SPLITS: tl.constexpr,
    TILE: tl.constexpr,
):
    request, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    words = draw_words(scratch, request)
    # All is under way at once, whether or not it will be needed.
    kind = load_kind(words)
    draw = _load_draw(words, CUTS)
    first, count = request_rows(batch.cu_nodes, request, rows)
    seed, position = tl.load(batch.seeds + request), tl.load(batch.positions + request)
    if kind != SETTLED:
        row = first.to(tl.int64) + draw.node
        position += draw.depth
        begin = split * SPLIT
        end = tl.minimum(begin + SPLIT, target.vocab)
        slope = draw.p.slope
        if kind == UNMEASURED:
            slope = slope_of(params_of(sampling, request).temperature)
            result = measure_and_race(
                Row(target_data(target, row), target.vocab, bitmask_of(target, row), edits_of(target, row)),
                begin,
                end,
                slope,
                seed,
                position,
                RESIDUAL,
                TILE,
            )
        else:
            tree = Tree(nodes_of(scratch, first), ranks_of(scratch, batch, first), count)
            tracking = Tracking(tree, draw.node, draw.drawn_from, None, target.vocab)
            result = _race_residual(target, draft, draw, row, tracking, seed, position, begin, end, TILE)
        winners = winner_words(scratch, request, SPLITS)
        store_split(winners, split, result)
        if arrives_last(words):
            results = load_splits(winners, tl.num_programs(1), SPLITS)
            token, p, status = _merge(target, kind, draw, _load_known(words), row, slope, results, SPLIT)
            emit(target, row, p, token, out_tokens_ptr, logprobs_ptr, request * width + draw.depth)
            tl.store(out_status_ptr + request, status)
            if given(ends.finish):
                finish_request(ends, request, draw.depth + 1, token, False)
            if KEEP:
                if kind == UNMEASURED:
                    settled = Settled(status, token.to(tl.int32), tl.full([], 0, tl.int32))
                    save_settled(scratch, row, TARGET, p, settled, None)


@triton.jit
def _merge(target, kind, draw, known, row, slope, results, TILE: tl.constexpr):
    """The next token, its law and the status, from the results of all splits."""
    p = draw.p
    status = known.status
    top = tl.max(results.max)
    scale = tl.exp2(exponent_of(results.max, top, slope))
    scores = results.score * scale
    score, token = merge_races(tl.where(results.flags == _OF_P, 0.0, scores), results.token)
    score, token = _better(known.score, known.token, score, token)
    if score == 0:
        score, token = merge_races(scores, results.token)
        score, token = _better(known.p_score, known.p_token, score, token)
    if kind == UNMEASURED:
        status |= tl.max(results.flags) * NAN
        point = p.point
        if top == float("-inf"):
            status |= EMPTY
            point = lowest_allowed(
                Row(target_data(target, row), target.vocab, bitmask_of(target, row), edits_of(target, row)),
                TILE,
            )
            token = point
        p = Law(top, slope, p.cut, tl.sum((results.mass * scale).to(tl.float64)), point)
    return tl.minimum(tl.maximum(token, 0), target.vocab - 1).to(tl.int64), p, status


@triton.jit
def _better(score, token, other_score, other_token):
    other = (other_score > score) | ((other_score == score) & (other_token < token))
    return tl.where(other, other_score, score), tl.where(other, other_token, token)


@triton.jit
def _race_residual(target, draft, draw, row, tracking, seed, position, begin, end, TILE: tl.constexpr):
    """The winner of a split of the residual, or, where that is nothing, of p itself, which counts if it is so
    in all splits."""
    score = tl.full([], 0.0, tl.float32)
    token = tl.full([], NO_TOKEN, tl.int32)
    flags = tl.full([], 0, tl.int32)
    again = tl.full([], 1, tl.int32)
    pair = Pair(draw.p, draw.q, row, target_data(target, row), draw.drawn_from, draw.rest_top, draw.ratio)
    while again > 0:
        tracked = tl.where(draw.tracked > 0, begin.to(tl.int64) - 1, NO_TRACKED)
        for start in range(begin, end, TILE):
            offsets = start + tl.arange(0, TILE)
            weights, all_weights = residual_weights(target, draft, pair, offsets)
            if flags == _OF_P:
                weights = all_weights
            weights, tracked = leave_out(weights, 0.0, offsets, start + TILE, tracked, tracking)
            some = draw.p.cut == float("-inf")
            if not some:
                some = tl.max(weights) > 0  # a cut leaves most tiles empty
            if some:
                words = race_words(seed, position, RESIDUAL, 0, start // 4 + tl.arange(0, TILE // 4))
                score, token = race(weights, words, offsets, score, token)
        again = ((score == 0) & (flags == 0) & ((draw.ratio > 0) | (draw.tracked > 0))).to(tl.int32)
        flags += again * _OF_P
    zero = 0.0 * score
    return Split(draw.p.top, zero, token, flags, score, zero)
