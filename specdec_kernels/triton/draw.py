# SPDX-License-Identifier: Apache-2.0
"""The last launch of `verify`: the token after the accepted ones, by an exponential race split over the
vocabulary.

The walk leaves a goal for each request: the law to draw from as scalars. The last program of a request to
arrive merges the winners, in fixed order, and writes the token.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .arguments import bitmask_row, params_of, target_row
from .law import EMPTY, NAN, Law, log_probability, target_scores
from .measure import RESULT, Split, load_splits, measure_and_race, store_split
from .node import residual_weights
from .race import merge_races, race
from .random import RESIDUAL, race_words
from .row import NO_TOKEN, exponent_of, lowest_allowed, slope_of
from .special import NO_SPECIAL, leave_out
from .tree import Tree, request_range

_NO_CUT = tl.constexpr(float("-inf"))
SETTLED = tl.constexpr(0)  # the walk wrote the token
RESIDUAL_OF = tl.constexpr(1)  # [p - ratio q]+, and p where that is nothing
UNMEASURED = tl.constexpr(2)  # the law of a row that was not measured
GOAL = 24  # float64 words
_GOAL = tl.constexpr(GOAL)
_RESULT = tl.constexpr(RESULT)
_OF_P = tl.constexpr(2)  # flag of a split: nothing is left of it, and the winner is that of p


class Goal(NamedTuple):
    kind: tl.tensor
    node: tl.tensor  # index in its request
    depth: tl.tensor
    status: tl.tensor  # so far
    drawn_from: tl.tensor  # row of the draft's logits, -1 = no q
    special: tl.tensor  # > 0: the node's special tokens are left out; their winners follow below
    ratio: tl.tensor
    p: Law
    q: Law
    rest_top: tl.tensor
    score: tl.tensor
    token: tl.tensor
    p_score: tl.tensor
    p_token: tl.tensor


@triton.jit
def goal_of(scratch, request):
    """Where the goal of a request is kept; `sample` keeps the row's law there."""
    return scratch.words + scratch.goals + request * _GOAL


@triton.jit
def winners_of(scratch, request, SPLITS: tl.constexpr):
    """Where the results of the splits of its draw are kept."""
    return scratch.words + scratch.winners + request * (SPLITS * _RESULT)


@triton.jit
def save_law(words, law):
    tl.store(words, law.top.to(tl.float64))
    tl.store(words + 1, law.slope.to(tl.float64))
    tl.store(words + 2, law.cut.to(tl.float64))
    tl.store(words + 3, law.mass)
    tl.store(words + 4, law.point.to(tl.float64))


@triton.jit
def load_law(words):
    return Law(
        tl.load(words).to(tl.float32),
        tl.load(words + 1).to(tl.float32),
        tl.load(words + 2).to(tl.float32),
        tl.load(words + 3),
        tl.load(words + 4).to(tl.int32),
    )


@triton.jit
def _load_law(words, CUTS: tl.constexpr):
    """A law whose cut is known to be none without CUTS: nothing is compared with it."""
    law = load_law(words)
    if not CUTS:
        law = Law(law.top, law.slope, _NO_CUT, law.mass, law.point)
    return law


@triton.jit
def open_draw(words):
    """Before the programs of a request's draw arrive."""
    tl.store((words + 22).to(tl.pointer_type(tl.int32)), 0)


@triton.jit
def arrives_last(words):
    """Whether all other programs of the request have arrived, with what they wrote."""
    tl.debug_barrier()
    arrived = tl.atomic_add((words + 22).to(tl.pointer_type(tl.int32)), 1, sem="acq_rel")
    return arrived == tl.num_programs(1) - 1


@triton.jit
def emit(target, row, law, token, tokens_ptr, logprobs_ptr, place):
    """Writes a token (int64) drawn from a law, and its log-probability."""
    tl.store(tokens_ptr + place, token)
    if logprobs_ptr is not None:
        x = target_scores(target, row, token, token >= 0)
        tl.store(logprobs_ptr + place, log_probability(law, x, token))


@triton.jit
def save_goal(words, goal):
    tl.store(words, goal.kind.to(tl.float64))
    tl.store(words + 1, goal.node.to(tl.float64))
    tl.store(words + 2, goal.depth.to(tl.float64))
    tl.store(words + 3, goal.status.to(tl.float64))
    tl.store(words + 4, goal.drawn_from.to(tl.float64))
    tl.store(words + 5, goal.special.to(tl.float64))
    tl.store(words + 6, goal.ratio.to(tl.float64))
    save_law(words + 7, goal.p)
    save_law(words + 12, goal.q)
    tl.store(words + 17, goal.rest_top.to(tl.float64))
    tl.store(words + 18, goal.score.to(tl.float64))
    tl.store(words + 19, goal.token.to(tl.float64))
    tl.store(words + 20, goal.p_score.to(tl.float64))
    tl.store(words + 21, goal.p_token.to(tl.float64))
    open_draw(words)


@triton.jit
def _load_goal(words, CUTS: tl.constexpr):
    return Goal(
        tl.load(words).to(tl.int32),
        tl.load(words + 1).to(tl.int32),
        tl.load(words + 2).to(tl.int32),
        tl.load(words + 3).to(tl.int32),
        tl.load(words + 4).to(tl.int64),
        tl.load(words + 5).to(tl.int32),
        tl.load(words + 6).to(tl.float32),
        _load_law(words + 7, CUTS),
        _load_law(words + 12, CUTS),
        tl.load(words + 17).to(tl.float32),
        tl.load(words + 18).to(tl.float32),
        tl.load(words + 19).to(tl.int32),
        tl.load(words + 20).to(tl.float32),
        tl.load(words + 21).to(tl.int32),
    )


@triton.jit(do_not_specialize=["rows", "width"])
def verify_draw_kernel(
    target,
    draft,
    sampling,
    cu_nodes_ptr,  # [B + 1]
    seeds_ptr,  # [B]
    positions_ptr,  # [B]
    scratch,
    out_tokens_ptr,  # [B, width]
    out_logprobs_ptr,  # [B, width] or None
    out_status_ptr,  # [B]
    rows,
    width,
    LINKS: tl.constexpr,
    CUTS: tl.constexpr,
    SPLIT: tl.constexpr,
    SPLITS: tl.constexpr,
    TILE: tl.constexpr,
):
    request, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    goal_words = goal_of(scratch, request)
    if tl.load(goal_words) > SETTLED:
        goal = _load_goal(goal_words, CUTS)
        first, count = request_range(cu_nodes_ptr, rows, request)
        row = first.to(tl.int64) + goal.node
        seed = tl.load(seeds_ptr + request)
        position = tl.load(positions_ptr + request) + goal.depth
        begin = split * SPLIT
        end = tl.minimum(begin + SPLIT, target.vocab)
        slope = goal.p.slope
        if goal.kind == UNMEASURED:
            slope = slope_of(params_of(sampling, request).temperature)
            result = measure_and_race(
                target_row(target, row), begin, end, target.vocab, bitmask_row(target, row),
                slope, seed, position, RESIDUAL, TILE,
            )  # fmt: skip
        else:
            ranks = None
            if LINKS:
                ranks = (scratch.words + scratch.ranks).to(tl.pointer_type(tl.int32)) + first
            tree = Tree((scratch.words + scratch.nodes).to(tl.pointer_type(tl.int64)) + first, ranks, count)
            result = _race_residual(target, draft, tree, goal, row, seed, position, begin, end, TILE)
        winners = winners_of(scratch, request, SPLITS)
        store_split(winners, split, result)
        if arrives_last(goal_words):
            results = load_splits(winners, tl.num_programs(1), SPLITS)
            token, p, status = _merge(target, goal, row, slope, results, SPLIT)
            emit(target, row, p, token, out_tokens_ptr, out_logprobs_ptr, request * width + goal.depth)
            tl.store(out_status_ptr + request, status)


@triton.jit
def _merge(target, goal, row, slope, results, TILE: tl.constexpr):
    """The next token, its law and the status, from the results of all splits."""
    p = goal.p
    status = goal.status
    top = tl.max(results.max)
    scale = tl.exp2(exponent_of(results.max, top, slope))
    scores = results.score * scale
    score, token = merge_races(tl.where(results.flags == _OF_P, 0.0, scores), results.token)
    score, token = _better(goal.score, goal.token, score, token)
    if score == 0:
        score, token = merge_races(scores, results.token)
        score, token = _better(goal.p_score, goal.p_token, score, token)
    if goal.kind == UNMEASURED:
        status |= tl.max(results.flags) * NAN
        point = p.point
        if top == float("-inf"):
            status |= EMPTY
            point = lowest_allowed(bitmask_row(target, row), target.vocab, TILE)
            token = point
        p = Law(top, slope, p.cut, tl.sum((results.mass * scale).to(tl.float64)), point)
    return tl.minimum(tl.maximum(token, 0), target.vocab - 1).to(tl.int64), p, status


@triton.jit
def _better(score, token, other_score, other_token):
    other = (other_score > score) | ((other_score == score) & (other_token < token))
    return tl.where(other, other_score, score), tl.where(other, other_token, token)


@triton.jit
def _race_residual(target, draft, tree, goal, row, seed, position, begin, end, TILE: tl.constexpr):
    """The winner of a split of the residual, or, where that is nothing, of p itself, which counts if it is so
    in all splits."""
    score = tl.full([], 0.0, tl.float32)
    token = tl.full([], NO_TOKEN, tl.int32)
    flags = tl.full([], 0, tl.int32)
    again = tl.full([], 1, tl.int32)
    while again > 0:
        special = tl.where(goal.special > 0, begin.to(tl.int64) - 1, NO_SPECIAL)
        for start in range(begin, end, TILE):
            offsets = start + tl.arange(0, TILE)
            weights, all_weights = residual_weights(
                target, draft, goal.p, goal.q, row, goal.drawn_from, goal.rest_top, goal.ratio, offsets
            )
            if flags == _OF_P:
                weights = all_weights
            weights, special = leave_out(
                weights, 0.0, offsets, start + TILE,
                special, tree, goal.node, goal.drawn_from, None, target.vocab,
            )  # fmt: skip
            some = goal.p.cut == float("-inf")
            if not some:
                some = tl.max(weights) > 0  # a cut leaves most tiles empty
            if some:
                words = race_words(seed, position, RESIDUAL, 0, start // 4 + tl.arange(0, TILE // 4))
                score, token = race(weights, words, offsets, score, token)
        again = ((score == 0) & (flags == 0) & ((goal.ratio > 0) | (goal.special > 0))).to(tl.int32)
        flags += again * _OF_P
    return Split(goal.p.top, 0.0 * score, token, flags, score)
