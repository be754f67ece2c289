# SPDX-License-Identifier: Apache-2.0
"""One node under verification: the target's law p, the draft's law q, and the residual as scalars.

The residual after any rejections is [a p - b q]+. Only at the tokens of POINT and WITHOUT_REPLACEMENT
children may it differ (docs/verification.md, tracked.py).
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .arguments import bitmask_row, draft_row, drawn_from, load_params, target_row
from .law import (
    IMPOSSIBLE,
    Law,
    draft_law,
    draft_scores,
    exp2_wide,
    is_sound,
    logprobs_law,
    probability,
    target_law,
    weights,
)
from .row import read_row, read_tokens
from .tracked import NO_TRACKED, draft_q, is_point, leave_out, marks_of, target_p, tracked_mass
from .tree import (
    HAS_INDEPENDENT,
    HAS_POINT,
    HAS_WITHOUT_REPLACEMENT,
    INDEPENDENT,
    NO_KEY,
    NODES,
    WITHOUT_REPLACEMENT,
    proposals_of,
    siblings,
)

_LARGEST_RATIO = tl.constexpr(3e38)  # finite as float32


class Node(NamedTuple):
    """What is known of a node once its rows were looked at."""

    p: Law
    q: Law
    row: tl.tensor  # int64, of the target
    drawn_from: tl.tensor  # int64, row of the draft's logits; -1 = no q
    tracked: tl.tensor  # int32, > 0 = has tracked children
    rest_top: tl.tensor  # float32; outside the tracked tokens q(x) = rest_scale 2^((x - rest_top) slope)
    rest_scale: tl.tensor  # float64
    rest: tl.tensor  # float64, the mass of q there, where a child needs it


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


@triton.jit
def unloaded(row):
    """A node of which nothing is known yet."""
    none = logprobs_law()
    one = tl.full([], 1.0, tl.float64)
    nowhere = tl.full([], -1, tl.int64)
    return Node(none, none, row, nowhere, tl.full([], 0, tl.int32), none.top, one, 0.0 * one)


@triton.jit
def nothing_rejected():
    """P = p."""
    one = tl.full([], 1.0, tl.float64)
    none = tl.full([], -1, tl.int64)
    return Residual(one, 0.0 * one, 0.0 * one, none, none, tl.full([], NO_KEY, tl.int64), 0.0 * one)


@triton.jit
def load_node(
    target, draft, scratch, tree, request, index,
    CUTS: tl.constexpr, DRAFT_CUTS: tl.constexpr, LOGPROBS: tl.constexpr,
    SPLIT: tl.constexpr, SPLITS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """What the tests of a node's children need of its rows, and the status bits of the target's."""
    row = request.first + index
    p, status = target_law(
        target, scratch, row, load_params(request.params), request.bins, CUTS, SPLIT, SPLITS, TILE
    )
    node = unloaded(row)
    proposals = proposals_of(tree, index)
    q = node.q
    source = node.drawn_from
    if draft.data is not None:
        if proposals >= HAS_INDEPENDENT:
            source = drawn_from(draft, request.draft_count, request.index, row, index)
            if source >= 0:
                if LOGPROBS:
                    # They are taken on trust until a child turns out to be sampled from nothing.
                    if _drafted_the_impossible(draft, target.vocab, tree, index, q, source):
                        if not is_sound(draft, source, TILE):
                            source = tl.full([], -1, tl.int64)
                else:
                    q, sound = draft_law(
                        draft, scratch, row, source, load_params(request.drafted_by), request.bins,
                        DRAFT_CUTS, SPLIT, SPLITS, TILE,
                    )  # fmt: skip
                    source = tl.where(sound, source, -1)
    # A node without q has tracked children only.
    tracked = tl.where(source >= 0, proposals & (HAS_POINT | HAS_WITHOUT_REPLACEMENT), proposals)
    node = Node(p, q, row, source, tracked, q.top, 1.0 / q.mass, node.rest)
    if draft.data is not None:
        if (proposals >= HAS_WITHOUT_REPLACEMENT) & (source >= 0):
            node = _weigh_rest(draft, target.vocab, tree, index, node, TILE)
    return node, status


@triton.jit
def _drafted_the_impossible(draft, vocab, tree, parent, q, drawn_from):
    impossible = tl.full([], 0, tl.int32)
    for begin in range(parent + 1, tree.count, NODES):
        run = siblings(tree, parent, begin)
        sampled = run.drafted & (run.proposal >= INDEPENDENT)
        p = probability(q, draft_scores(draft, drawn_from, vocab, run.token, sampled), run.token)
        impossible = tl.maximum(impossible, tl.max((sampled & ((p > 0) == 0)).to(tl.int32)))
    return impossible > 0


@triton.jit
def _weigh_rest(draft, vocab, tree, parent, node, TILE: tl.constexpr):
    """The mass of q outside the tracked tokens, summed over them and never as a difference. The passes'
    weights are then relative to the largest score there, so that they do not vanish beside a tracked token
    that holds nearly all."""
    q = node.q
    rest_top = tl.full([], 0.0, tl.float32)
    scale = tl.full([], 0.0, tl.float64)
    rest = tl.full([], 0.0, tl.float64)
    if q.point >= 0:
        held = tl.full([], 0, tl.int32)
        for begin in range(parent + 1, tree.count, NODES):
            run = siblings(tree, parent, begin)
            tracked = run.drafted & (run.proposal != INDEPENDENT)
            held = tl.maximum(held, tl.max((tracked & (run.token == q.point)).to(tl.int32)))
        rest = tl.where(held > 0, 0.0, 1.0).to(tl.float64)
        scale = tl.full([], 1.0, tl.float64)
    else:
        # In one pass: each lane's largest score so far, and its mass relative to that.
        top = tl.full([TILE], float("-inf"), tl.float32)
        mass = tl.zeros([TILE], tl.float32)
        tracked = tl.full([], -1, tl.int64)
        for begin in range(0, draft.size, TILE):
            column = begin + tl.arange(0, TILE)
            x = read_row(draft_row(draft, node.drawn_from), column, draft.size, None)
            x = tl.where((x == x) & (x >= q.cut), x, float("-inf"))
            if q.top == float("inf"):
                x = tl.where(x == float("inf"), 0.0, float("-inf"))
            x, tracked = leave_out(
                x,
                float("-inf"),
                column,
                begin + TILE,
                tracked,
                tree,
                parent,
                node.drawn_from,
                draft.columns,
                vocab,
            )
            above = tl.maximum(top, x)
            known = tl.where(above > float("-inf"), above, 0.0)
            mass = mass * tl.exp2((top - known) * q.slope) + tl.exp2((x - known) * q.slope)
            top = above
        rest_top = tl.max(top)
        if rest_top > float("-inf"):
            rest = tl.sum((mass * tl.exp2((top - rest_top) * q.slope)).to(tl.float64))
            if q.top == float("inf"):
                rest_top = q.top
                scale = 1.0 / q.mass
            else:
                scale = exp2_wide((rest_top.to(tl.float64) - q.top) * q.slope) / q.mass
            rest *= scale
    return Node(node.p, q, node.row, node.drawn_from, node.tracked, rest_top, scale, rest)


@triton.jit
def test_child(target, draft, tree, parent, node, state, key, token, proposal):
    """P(token) and Q(token) of a child, to be asked in sibling order; the state with the child under test;
    and the status bits that it sets."""
    tokens = tl.full([1], 0, tl.int64) + token
    p = tl.sum(target_p(target, node, tokens, tokens >= 0))
    q = tl.sum(draft_q(draft, target.vocab, node, tokens, tokens >= 0))
    point = tl.full([], 0, tl.int32)
    rejected = tl.full([], 0, tl.int32)
    removed = tl.full([], 0, tl.int32)
    remaining = node.rest
    if node.tracked > 0:
        for begin in range(parent + 1, tree.count, NODES):
            run = siblings(tree, parent, begin)
            held, closed, taken, _ = marks_of(tree, parent, node, state, run.token, run.key)
            this = run.drafted & (run.key == key)
            point |= tl.max((this & held).to(tl.int32))
            rejected |= tl.max((this & closed).to(tl.int32))
            removed |= tl.max((this & (held | taken)).to(tl.int32))
            # What a child drawn without replacement, and those after it, may still hold.
            later = run.drafted & (run.proposal == WITHOUT_REPLACEMENT) & (run.key >= key)
            later = later & (held == 0) & (taken == 0)
            remaining += tl.sum(tl.where(later, draft_q(draft, target.vocab, node, run.token, later), 0.0))
    left = tl.maximum(state.a * p - tl.where(point > 0, state.b_point, state.b) * q, 0.0)
    left = tl.where(rejected > 0, 0.0, left)
    factor = tl.full([], 0.0, tl.float64)
    dry = state.dry
    status = tl.full([], 0, tl.int32)
    if not is_point(node, proposal):
        if proposal == INDEPENDENT:
            factor += 1.0
        else:
            q = tl.where(removed > 0, 0.0, q)
            if remaining > 0:
                factor = 1.0 / remaining
            else:  # nothing it could have been drawn from
                dry = tl.minimum(dry, key)
        status = tl.where((q > 0) | (token >= target.vocab), 0, IMPOSSIBLE)
    state = Residual(state.a, state.b, state.b_point, state.since, state.last, dry, factor)
    return left, tl.where(factor > 0, factor * q, 1.0), state, status


@triton.jit
def reject(
    target, draft, tree, parent, node, state, key, proposal, left, w, last,
    TRACE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Rejects the child under test, which had P(token) = left, with P scaled by w. Returns the state, and
    the mass S of [w P - Q]+, which, normalised, is the new P. A mass of 0 leaves P = p.

    Where no sibling follows (`last`) and w is 1 nobody needs S, and 1 is returned: the draw finds out whether
    anything is left."""
    a, b, b_point = state.a, state.b, state.b_point
    mass = tl.full([], 1.0, tl.float64)
    divisor = mass
    if state.factor > 0:
        a *= w
        b = b * w + state.factor
        b_point = b_point * w + tl.where(proposal == INDEPENDENT, state.factor, 0.0)
        if TRACE | (last == 0) | (w < 1):
            rejected = Residual(a, b, b_point, state.since, key, state.dry, state.factor)
            mass = residual_mass(target, draft, tree, parent, node, rejected, TILE)
            divisor = mass
    else:
        divisor = 1.0 - left
        mass = w * divisor
    since = state.since
    if mass > 0:
        a /= divisor
        b /= divisor
        b_point /= divisor
    else:
        mass = tl.full([], 0.0, tl.float64)
        a = tl.full([], 1.0, tl.float64)
        b = mass
        b_point = mass
        since = key
    return Residual(a, b, b_point, since, key, state.dry, state.factor), mass


@triton.jit
def ratio_of(node, state):
    """b q relative to a p, in units of their weights."""
    ratio = tl.minimum(state.b * node.rest_scale / (state.a / node.p.mass), _LARGEST_RATIO).to(tl.float32)
    return tl.where(state.b > 0, ratio, 0.0)  # without q its scale may be anything


@triton.jit
def residual_weights(target, draft, p, q, row, source, rest_top, ratio, token):
    """[p - ratio q]+ of a tile of tokens and p itself, in units of p's weights."""
    x = read_row(target_row(target, row), token, target.vocab, bitmask_row(target, row))
    wp = weights(p.top, p.slope, p.cut, p.point, tl.maximum(x, float("-inf")), token)
    left = wp
    if draft.data is not None:
        if ratio > 0:
            y = read_tokens(draft_row(draft, source), token, draft.size, draft.columns, target.vocab)
            wq = weights(rest_top, q.slope, q.cut, q.point, y, token)
            left = tl.maximum(wp - ratio * wq, 0.0)
    return left, wp


@triton.jit
def residual_mass(target, draft, tree, parent, node, state, TILE: tl.constexpr):
    """The sum of [a p - b q]+: one pass over both rows."""
    acc = tl.zeros([TILE], tl.float32)
    ratio = ratio_of(node, state)
    tracked = tl.where(node.tracked > 0, -1, NO_TRACKED).to(tl.int64)
    for begin in range(0, target.vocab, TILE):
        token = begin + tl.arange(0, TILE)
        left, _ = residual_weights(
            target, draft, node.p, node.q, node.row, node.drawn_from, node.rest_top, ratio, token
        )
        left, tracked = leave_out(
            left, 0.0, token, begin + TILE, tracked, tree, parent, node.drawn_from, None, target.vocab
        )
        acc += left
    mass = state.a / node.p.mass * tl.sum(acc.to(tl.float64))
    return mass + tracked_mass(target, draft, tree, parent, node, state)
