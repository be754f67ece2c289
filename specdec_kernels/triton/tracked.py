# SPDX-License-Identifier: Apache-2.0
"""Tracked tokens of a node: those of its POINT and WITHOUT_REPLACEMENT children, at which the residual may
differ from [a p - b q]+.

They are few. The passes over the vocabulary leave them out, and they are reckoned one by one. A sampled child
of a node without q counts as POINT."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .law import draft_scores, probability, target_scores
from .random import RESIDUAL, race_key, token_word
from .row import NO_TOKEN
from .tree import INDEPENDENT, NODES, POINT, WITHOUT_REPLACEMENT, Tree, siblings

NO_TRACKED = tl.constexpr(2**62)


@triton.jit
def target_p(ctx, node, token, inside):
    return probability(node.p, target_scores(ctx.target, node.row, token, inside), token)


@triton.jit
def draft_q(ctx, node, token, inside):
    """q of some tokens; 0 where there is no q."""
    q = tl.zeros_like(token).to(tl.float64)
    if ctx.draft.data is not None:
        if node.drawn_from >= 0:
            scores = draft_scores(ctx.draft, node.drawn_from, ctx.target.vocab, token, inside)
            q = probability(node.q, scores, token)
    return q


@triton.jit
def is_point(node, proposal):
    return (proposal == POINT) | (node.drawn_from < 0)


@triton.jit
def _is_tracked(proposal, drawn_from):
    return (proposal != INDEPENDENT) | (drawn_from < 0)


@triton.jit
def _any(same):
    return tl.max(same.to(tl.int32), 1) > 0


@triton.jit
def _place_of(tree, key):
    """What orders drafted children of one node as their keys do: int32."""
    if tree.ranks is not None:
        key = key >> 32
    return key.to(tl.int32)


@triton.jit
def marks_of(tree, node, state, token, key):
    """What the children of a node make of some tokens [n], those of the children with these keys:

    - whether a POINT child holds it,
    - whether such a child, or one that could be drawn from nothing, was rejected there: P is 0,
    - whether an earlier WITHOUT_REPLACEMENT child holds it,
    - whether an earlier tracked child holds it.
    """
    point, rejected, taken, repeated = token < 0, token < 0, token < 0, token < 0
    token, place = token.to(tl.int32), _place_of(tree, key)  # half as many registers for all pairs
    for begin in range(node.index + 1, tree.count, NODES):
        run = siblings(tree, node.index, begin)
        same = (token[:, None] == run.token.to(tl.int32)[None, :]) & run.drafted[None, :]
        earlier = _place_of(tree, run.key)[None, :] < place[:, None]
        chosen = is_point(node, run.proposal)
        without = (chosen == 0) & (run.proposal == WITHOUT_REPLACEMENT)
        tested = (run.key > state.since) & (run.key <= state.last)
        closed = tested & (chosen | (without & (run.key >= state.dry)))
        point = point | _any(same & chosen[None, :])
        rejected = rejected | _any(same & closed[None, :])
        taken = taken | _any(same & earlier & without[None, :])
        repeated = repeated | _any(same & earlier & (chosen | without)[None, :])
    return point, rejected, taken, repeated


@triton.jit
def _residual_at(state, p, q, point, rejected):
    """P at tracked tokens."""
    left = tl.maximum(state.a * p - tl.where(point, state.b_point, state.b) * q, 0.0)
    return tl.where(rejected, 0.0, left)


@triton.jit
def tracked_mass(ctx, node, state):
    """The residual's mass at the tracked tokens."""
    mass = tl.full([], 0.0, tl.float64)
    if node.tracked > 0:
        for begin in range(node.index + 1, ctx.tree.count, NODES):
            run = siblings(ctx.tree, node.index, begin)
            point, rejected, _, repeated = marks_of(ctx.tree, node, state, run.token, run.key)
            mine = run.drafted & _is_tracked(run.proposal, node.drawn_from) & (repeated == 0)
            p = target_p(ctx, node, run.token, mine)
            q = draft_q(ctx, node, run.token, mine)
            mass += tl.sum(tl.where(mine, _residual_at(state, p, q, point, rejected), 0.0))
    return mass


@triton.jit
def tracked_race(ctx, node, state, position):
    """The races over the tracked tokens, in units of p's weights: of the residual, and, for where there is
    none, of p itself: score and token of each."""
    score = tl.full([], 0.0, tl.float32)
    token = tl.full([], NO_TOKEN, tl.int32)
    p_score = tl.full([], 0.0, tl.float32)
    p_token = tl.full([], NO_TOKEN, tl.int32)
    unit = state.a / node.p.mass
    for begin in range(node.index + 1, ctx.tree.count, NODES):
        run = siblings(ctx.tree, node.index, begin)
        point, rejected, _, repeated = marks_of(ctx.tree, node, state, run.token, run.key)
        mine = (
            run.drafted
            & _is_tracked(run.proposal, node.drawn_from)
            & (repeated == 0)
            & (run.token < ctx.target.vocab)
        )
        p = target_p(ctx, node, run.token, mine)
        q = draft_q(ctx, node, run.token, mine)
        left = tl.where(mine, _residual_at(state, p, q, point, rejected), 0.0)
        id = tl.where(mine, run.token, 0).to(tl.int32)
        key = race_key(token_word(tl.load(ctx.seed), position, RESIDUAL, 0, id))
        score, token = _leader((left / unit).to(tl.float32) / key, id, score, token)
        p = tl.where(mine, p, 0.0)
        p_score, p_token = _leader((p * node.p.mass).to(tl.float32) / key, id, p_score, p_token)
    return score, token, p_score, p_token


@triton.jit
def _leader(scores, tokens, score, token):
    top = tl.max(scores)
    first = tl.min(tl.where(scores == top, tokens, NO_TOKEN))
    leads = (top > score) | ((top == score) & (top > 0) & (first < token))
    return tl.where(leads, top, score), tl.where(leads, first, token)


class Tracking(NamedTuple):
    """The tracked tokens of a node, for passes in ascending order."""

    tree: Tree
    parent: tl.tensor  # int32
    drawn_from: tl.tensor  # int64
    columns: tl.tensor  # of the draft, where a pass is over its columns, or None: it is over tokens
    vocab: tl.tensor


@triton.jit
def next_tracked(tracking, after):
    """The lowest tracked token, or column, above `after`."""
    best = tl.full([], NO_TRACKED, tl.int64)
    for begin in range(tracking.parent + 1, tracking.tree.count, NODES):
        run = siblings(tracking.tree, tracking.parent, begin)
        mine = run.drafted & _is_tracked(run.proposal, tracking.drawn_from)
        place = run.token
        if tracking.columns is not None:
            mine = mine & (place < tracking.vocab)
            place = tl.load(tracking.columns + place, mask=mine, other=-1).to(tl.int64)
        best = tl.minimum(best, tl.min(tl.where(mine & (place > after), place, NO_TRACKED)))
    return best


@triton.jit
def leave_out(x, nothing, places, end, tracked, tracking):
    """Sets what a tile has at tracked tokens to `nothing`. Tiles come in ascending order, `places` ending
    before `end`; `tracked` is what the tile before returned, at first the place before the first tile."""
    while tracked < end:
        x = tl.where(places == tracked, nothing, x)
        tracked = next_tracked(tracking, tracked)
    return x, tracked
