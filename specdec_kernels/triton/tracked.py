# SPDX-License-Identifier: Apache-2.0
"""Tracked tokens of a node: those of its POINT and WITHOUT_REPLACEMENT children, at which the residual may
differ from [a p - b q]+.

They are few. The passes over the vocabulary leave them out, and they are reckoned one by one. `node` is a
`node.Node`, `parent` its index. A sampled child of a node without q counts as POINT.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .law import draft_scores, probability, target_scores
from .random import RESIDUAL, race_key, token_word
from .row import NO_TOKEN
from .tree import INDEPENDENT, NODES, POINT, WITHOUT_REPLACEMENT, siblings

NO_TRACKED = tl.constexpr(2**62)


@triton.jit
def target_p(target, node, token, inside):
    return probability(node.p, target_scores(target, node.row, token, inside), token)


@triton.jit
def draft_q(draft, vocab, node, token, inside):
    """q of some tokens; 0 where there is no q."""
    q = tl.zeros_like(token).to(tl.float64)
    if draft.data is not None:
        if node.drawn_from >= 0:
            q = probability(node.q, draft_scores(draft, node.drawn_from, vocab, token, inside), token)
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
def marks_of(tree, parent, node, state, token, key):
    """What the children of `parent` make of some tokens [n], those of the children with these keys:

    - whether a POINT child holds it,
    - whether such a child, or one that could be drawn from nothing, was rejected there: P is 0,
    - whether an earlier WITHOUT_REPLACEMENT child holds it,
    - whether an earlier tracked child holds it.
    """
    point, rejected, taken, repeated = token < 0, token < 0, token < 0, token < 0
    for begin in range(parent + 1, tree.count, NODES):
        run = siblings(tree, parent, begin)
        same = (token[:, None] == run.token[None, :]) & run.drafted[None, :]
        earlier = run.key[None, :] < key[:, None]
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
def tracked_mass(target, draft, tree, parent, node, state):
    """The residual's mass at the tracked tokens."""
    mass = tl.full([], 0.0, tl.float64)
    if node.tracked > 0:
        for begin in range(parent + 1, tree.count, NODES):
            run = siblings(tree, parent, begin)
            point, rejected, _, repeated = marks_of(tree, parent, node, state, run.token, run.key)
            mine = run.drafted & _is_tracked(run.proposal, node.drawn_from) & (repeated == 0)
            p = target_p(target, node, run.token, mine)
            q = draft_q(draft, target.vocab, node, run.token, mine)
            mass += tl.sum(tl.where(mine, _residual_at(state, p, q, point, rejected), 0.0))
    return mass


@triton.jit
def tracked_race(target, draft, tree, parent, node, state, seed, position):
    """The races over the tracked tokens, in units of p's weights: of the residual, and, for where there is
    none, of p itself: score and token of each."""
    score = tl.full([], 0.0, tl.float32)
    token = tl.full([], NO_TOKEN, tl.int32)
    p_score = tl.full([], 0.0, tl.float32)
    p_token = tl.full([], NO_TOKEN, tl.int32)
    unit = state.a / node.p.mass
    for begin in range(parent + 1, tree.count, NODES):
        run = siblings(tree, parent, begin)
        point, rejected, _, repeated = marks_of(tree, parent, node, state, run.token, run.key)
        mine = (
            run.drafted
            & _is_tracked(run.proposal, node.drawn_from)
            & (repeated == 0)
            & (run.token < target.vocab)
        )
        p = target_p(target, node, run.token, mine)
        q = draft_q(draft, target.vocab, node, run.token, mine)
        left = tl.where(mine, _residual_at(state, p, q, point, rejected), 0.0)
        id = tl.where(mine, run.token, 0).to(tl.int32)
        key = race_key(token_word(seed, position, RESIDUAL, 0, id))
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


@triton.jit
def next_tracked(tree, parent, drawn_from, after, columns, vocab):
    """The lowest tracked token above `after`, or with `columns` the lowest of their columns."""
    best = tl.full([], NO_TRACKED, tl.int64)
    for begin in range(parent + 1, tree.count, NODES):
        run = siblings(tree, parent, begin)
        mine = run.drafted & _is_tracked(run.proposal, drawn_from)
        place = run.token
        if columns is not None:
            mine = mine & (place < vocab)
            place = tl.load(columns + place, mask=mine, other=-1).to(tl.int64)
        best = tl.minimum(best, tl.min(tl.where(mine & (place > after), place, NO_TRACKED)))
    return best


@triton.jit
def leave_out(x, nothing, places, end, tracked, tree, parent, drawn_from, columns, vocab):
    """Sets what a tile has at tracked tokens (or their columns) to `nothing`. Tiles come in ascending order,
    `places` ending before `end`; `tracked` is what the tile before returned, at first the place before the
    first tile."""
    while tracked < end:
        x = tl.where(places == tracked, nothing, x)
        tracked = next_tracked(tree, parent, drawn_from, tracked, columns, vocab)
    return x, tracked
