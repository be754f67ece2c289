# SPDX-License-Identifier: Apache-2.0
"""The residual at a node after some rejections, as scalars, and passes over it.

It is [a p - b q]+. Only at the tokens of POINT and WITHOUT_REPLACEMENT children may it differ
(docs/verification.md, tracked.py).
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .arguments import bitmask_of, draft_logits, edits_of, row_data, target_data
from .law import weights
from .row import Row, read_row, read_tokens
from .tracked import NO_TRACKED, Tracking, leave_out, tracked_mass
from .tree import INDEPENDENT, NO_KEY

_LARGEST_RATIO = tl.constexpr(3e38)  # finite as float32


class Residual(NamedTuple):
    """P = [a p - b q]+ after some rejections, and Q = factor q of the child under test; factor 0 = the point
    at its token."""

    a: tl.tensor  # float64
    b: tl.tensor  # float64
    b_point: tl.tensor  # float64, in place of b at the tokens of POINT children
    since: tl.tensor  # int64, key of the child whose rejection left nothing: P = p again; -1 = none
    last: tl.tensor  # int64, key of the child rejected last; -1 = none
    dry: tl.tensor  # int64, key from which on WITHOUT_REPLACEMENT children had nothing to be drawn from
    factor: tl.tensor  # float64


class Pair(NamedTuple):
    """What a pass over [p - ratio q]+ needs of a node, in units of p's weights."""

    p: tl.tensor  # Law
    q: tl.tensor  # Law
    row: tl.tensor  # int64, of the node
    data: tl.tensor  # -> the first entry of its row of the target
    drawn_from: tl.tensor  # int64, row of the draft's logits; -1 = no q
    rest_top: tl.tensor  # float32, the score whose weight in q is 1
    ratio: tl.tensor  # float32


@triton.jit
def nothing_rejected():
    """P = p."""
    one = tl.full([], 1.0, tl.float64)
    none = tl.full([], -1, tl.int64)
    return Residual(one, 0.0 * one, 0.0 * one, none, none, tl.full([], NO_KEY, tl.int64), 0.0 * one)


@triton.jit
def subtract(state, child, w):
    """Rejects the child under test, with P scaled by w: [w P - Q]+, which is not normalised. A POINT child's
    token is left out of P, and nothing is scaled."""
    scale = tl.where(state.factor > 0, w, 1.0)
    point = state.b_point * scale + tl.where(child.proposal == INDEPENDENT, state.factor, 0.0)
    b = state.b * scale + state.factor
    return Residual(state.a * scale, b, point, state.since, child.key, state.dry, state.factor)


@triton.jit
def normalised(state, mass):
    """P of a residual with that mass; of a mass of 0 P = p."""
    left = mass > 0
    unit = 1.0 / tl.where(left, mass, 1.0)
    a = tl.where(left, state.a * unit, 1.0)
    b, b_point = tl.where(left, state.b * unit, 0.0), tl.where(left, state.b_point * unit, 0.0)
    since = tl.where(left, state.since, state.last)
    return Residual(a, b, b_point, since, state.last, state.dry, state.factor)


@triton.jit
def pair_of(ctx, node, state):
    ratio = tl.full([], 0.0, tl.float32)
    if state.b > 0:
        scale = node.rest_scale
        if scale < 0:
            scale = 1.0 / node.q.mass
        ratio = tl.minimum(state.b * scale * node.p.mass / state.a, _LARGEST_RATIO).to(tl.float32)
    data = target_data(ctx.target, node.row)
    return Pair(node.p, node.q, node.row, data, node.drawn_from, node.rest_top, ratio)


@triton.jit
def residual_weights(target, draft, pair, token):
    """[p - ratio q]+ of a tile of tokens, and p itself. Both rows are under way before either is used."""
    scores = Row(pair.data, target.vocab, bitmask_of(target, pair.row), edits_of(target, pair.row))
    if draft.data is None:
        x = read_row(scores, token)
        left = weights(pair.p.top, pair.p, tl.maximum(x, float("-inf")), token)
        return left, left
    else:
        drafted = Row(row_data(draft, tl.maximum(pair.drawn_from, 0)), draft.size, None, None)
        x = read_row(scores, token)
        y = read_tokens(drafted, token, draft.columns, target.vocab, pair.ratio > 0)
        of_p = weights(pair.p.top, pair.p, tl.maximum(x, float("-inf")), token)
        of_q = weights(pair.rest_top, pair.q, draft_logits(draft, y), token)
        left = of_p
        if pair.ratio > 0:
            left = tl.maximum(of_p - pair.ratio * of_q, 0.0)
        return left, of_p


@triton.jit
def span_mass(ctx, node, state, begin, end, TILE: tl.constexpr):
    """The sum of [a p - b q]+ over tokens [begin, end) that are not tracked, in units of p's weights."""
    acc = tl.zeros([TILE], tl.float32)
    pair = pair_of(ctx, node, state)
    tracking = Tracking(ctx.tree, node.index, node.drawn_from, None, ctx.target.vocab)
    tracked = tl.where(node.tracked > 0, tl.full([], -1, tl.int64) + begin, NO_TRACKED)
    for start in range(begin, end, TILE):
        token = start + tl.arange(0, TILE)
        left, _ = residual_weights(ctx.target, ctx.draft, pair, token)
        left, tracked = leave_out(left, 0.0, token, start + TILE, tracked, tracking)
        acc += left
    return tl.sum(acc.to(tl.float64))


@triton.jit
def whole_mass(ctx, node, state, untracked):
    """The mass of the residual, where `untracked` is that of all spans."""
    return state.a / node.p.mass * untracked + tracked_mass(ctx, node, state)
