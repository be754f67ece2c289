# SPDX-License-Identifier: Apache-2.0
"""One node under verification: the target's law p, the draft's law q, and the tests of its children."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .arguments import draft_logits, drawn_from, row_data
from .law import IMPOSSIBLE, Law, draft_scores, exp2_wide, law_if, logprobs_law, probability
from .residual import Residual
from .row import Row, read_tile
from .settle import load_settled
from .sums import load_sums
from .tracked import draft_q, is_point, marks_of
from .tree import (
    HAS_INDEPENDENT,
    HAS_POINT,
    HAS_WITHOUT_REPLACEMENT,
    INDEPENDENT,
    NODES,
    WITHOUT_REPLACEMENT,
    siblings,
)
from .wanted import DRAFT, TARGET


class Node(NamedTuple):
    """What is known of a node once its rows were looked at."""

    p: Law
    q: Law
    index: tl.tensor  # int32, in its request
    row: tl.tensor  # int64, of the target
    drawn_from: tl.tensor  # int64, row of the draft's logits; -1 = no q
    tracked: tl.tensor  # int32, > 0 = has tracked children
    rest_top: tl.tensor  # float32; outside the tracked tokens q(x) = rest_scale 2^((x - rest_top) slope)
    rest_scale: tl.tensor  # float64; -1 = 1 / mass of q
    rest: tl.tensor  # float64, the mass of q there, where a child needs it


class Laws(NamedTuple):
    """Of the rows of a node, as they were settled."""

    p: Law
    status: tl.tensor  # int32
    q: Law
    draft_status: tl.tensor  # int32; anything but 0 says that q is no law
    drawn_from: tl.tensor  # int64


@triton.jit
def unloaded(ctx, index):
    """A node of which nothing is known yet."""
    none = logprobs_law()
    one = tl.full([], 1.0, tl.float64)
    nowhere = tl.full([], -1, tl.int64)
    return Node(
        none, none, index, ctx.first + index, nowhere, tl.full([], 0, tl.int32), none.top, -one, 0.0 * one
    )


@triton.jit
def with_law(node, p):
    return Node(
        p,
        node.q,
        node.index,
        node.row,
        node.drawn_from,
        node.tracked,
        node.rest_top,
        node.rest_scale,
        node.rest,
    )


@triton.jit
def load_laws(ctx, index, LOGPROBS: tl.constexpr):
    """Of a node's rows, whether or not they will be needed: what is looked up next is then under way with
    them."""
    row = ctx.first + index
    p, settled = load_settled(ctx.scratch, row, TARGET)
    q, status = logprobs_law(), tl.full([], 0, tl.int32)
    source = tl.full([], -1, tl.int64)
    if ctx.draft.data is not None:
        source = drawn_from(ctx.draft, ctx.draft_count, ctx.request, row, index)
        if not LOGPROBS:
            q, of_draft = load_settled(ctx.scratch, row, DRAFT)
            status = of_draft.status
    return Laws(p, settled.status, q, status, source)


@triton.jit
def load_node(ctx, here, laws, loaded, LOGPROBS: tl.constexpr, SUMS: tl.constexpr, TILE: tl.constexpr):
    """What the tests of a node's children need of its laws, if they are `loaded`, and the status bits of the
    target's. SUMS: the length and the number of splits that were summed, or None before they were."""
    node = unloaded(ctx, here.node)
    drawn = loaded & (here.proposals >= HAS_INDEPENDENT) & (laws.draft_status == 0)
    source = tl.where(drawn, laws.drawn_from, -1)
    if LOGPROBS:
        if here.proposals >= HAS_INDEPENDENT:
            if source >= 0:
                # They are taken on trust until a child turns out to be sampled from nothing.
                if _drafted_the_impossible(ctx, here.node, node.q, source):
                    if not _is_sound(ctx, source, TILE):
                        source = tl.full([], -1, tl.int64)
    p, q = law_if(loaded, laws.p), law_if(source >= 0, laws.q)
    # A node without q has tracked children only.
    tracked = tl.where(source >= 0, here.proposals & (HAS_POINT | HAS_WITHOUT_REPLACEMENT), here.proposals)
    node = Node(p, q, here.node, node.row, source, tracked, q.top, node.rest_scale, node.rest)
    if SUMS is not None:
        if here.proposals >= HAS_WITHOUT_REPLACEMENT:
            if source >= 0:
                node = _with_rest(ctx, node, SUMS[0], SUMS[1])
    return node, tl.where(loaded, laws.status, 0)


@triton.jit
def _drafted_the_impossible(ctx, index, q, drawn_from):
    impossible = tl.full([], 0, tl.int32)
    for begin in range(index + 1, ctx.tree.count, NODES):
        run = siblings(ctx.tree, index, begin)
        sampled = run.drafted & (run.proposal >= INDEPENDENT)
        scores = draft_scores(ctx.draft, drawn_from, ctx.target.vocab, run.token, sampled)
        p = probability(q, scores, run.token)
        impossible = tl.maximum(impossible, tl.max((sampled & ((p > 0) == 0)).to(tl.int32)))
    return impossible > 0


@triton.jit
def _is_sound(ctx, drawn_from, TILE: tl.constexpr):
    """Whether a row of probabilities, or of their logarithms, is without NaN and has something left."""
    nan = tl.full([], 0, tl.int32)
    some = tl.full([], 0, tl.int32)
    for begin in range(0, ctx.draft.size, TILE):
        x = read_tile(Row(row_data(ctx.draft, drawn_from), ctx.draft.size, None, None), begin, TILE)
        x = draft_logits(ctx.draft, x)
        nan = tl.maximum(nan, tl.max((x != x).to(tl.int32)))
        some = tl.maximum(some, tl.max((x > float("-inf")).to(tl.int32)))
    return (nan == 0) & (some > 0)


@triton.jit
def _with_rest(ctx, node, SPLIT: tl.constexpr, SPLITS: tl.constexpr):
    """With the mass of q outside the tracked tokens. The passes' weights are then relative to the largest
    score there, so that they do not vanish beside a tracked token that holds nearly all."""
    q = node.q
    rest_top = tl.full([], 0.0, tl.float32)
    scale = tl.full([], 0.0, tl.float64)
    rest = tl.full([], 0.0, tl.float64)
    if q.point >= 0:
        held = tl.full([], 0, tl.int32)
        for begin in range(node.index + 1, ctx.tree.count, NODES):
            run = siblings(ctx.tree, node.index, begin)
            tracked = run.drafted & (run.proposal != INDEPENDENT)
            held = tl.maximum(held, tl.max((tracked & (run.token == q.point)).to(tl.int32)))
        rest = tl.where(held > 0, 0.0, 1.0).to(tl.float64)
        scale = tl.full([], 1.0, tl.float64)
    else:
        masses, tops = load_sums(ctx.scratch, node.row, tl.cdiv(ctx.draft.size, SPLIT), SPLITS)
        rest_top = tl.max(tops)
        if rest_top > float("-inf"):
            rest = tl.sum(masses * tl.exp2((tops - rest_top) * q.slope).to(tl.float64))
            if q.top == float("inf"):
                rest_top = q.top
                scale = 1.0 / q.mass
            else:
                scale = exp2_wide((rest_top.to(tl.float64) - q.top) * q.slope) / q.mass
            rest *= scale
    return Node(node.p, q, node.index, node.row, node.drawn_from, node.tracked, rest_top, scale, rest)


@triton.jit
def q_of(node, child):
    """Of a child's token; 0 where there is none."""
    return tl.where(node.drawn_from >= 0, child.q, 0.0)


@triton.jit
def test_child(ctx, node, state, child):
    """P(token) and Q(token) of a child, to be asked in sibling order; the state with the child under test;
    and the status bits that it sets."""
    p, q = child.p, q_of(node, child)
    point = tl.full([], 0, tl.int32)
    rejected = tl.full([], 0, tl.int32)
    removed = tl.full([], 0, tl.int32)
    remaining = node.rest
    if node.tracked > 0:
        for begin in range(node.index + 1, ctx.tree.count, NODES):
            run = siblings(ctx.tree, node.index, begin)
            held, closed, taken, _ = marks_of(ctx.tree, node, state, run.token, run.key)
            this = run.drafted & (run.key == child.key)
            point |= tl.max((this & held).to(tl.int32))
            rejected |= tl.max((this & closed).to(tl.int32))
            removed |= tl.max((this & (held | taken)).to(tl.int32))
            # What a child drawn without replacement, and those after it, may still hold.
            later = run.drafted & (run.proposal == WITHOUT_REPLACEMENT) & (run.key >= child.key)
            later = later & (held == 0) & (taken == 0)
            remaining += tl.sum(tl.where(later, draft_q(ctx, node, run.token, later), 0.0))
    left = tl.maximum(state.a * p - tl.where(point > 0, state.b_point, state.b) * q, 0.0)
    left = tl.where(rejected > 0, 0.0, left)
    factor = tl.full([], 0.0, tl.float64)
    dry = state.dry
    status = tl.full([], 0, tl.int32)
    if not is_point(node, child.proposal):
        if child.proposal == INDEPENDENT:
            factor += 1.0
        else:
            q = tl.where(removed > 0, 0.0, q)
            if remaining > 0:
                factor = 1.0 / remaining
            else:  # nothing it could have been drawn from
                dry = tl.minimum(dry, child.key)
        status = tl.where((q > 0) | (child.token >= ctx.target.vocab), 0, IMPOSSIBLE)
    state = Residual(state.a, state.b, state.b_point, state.since, state.last, dry, factor)
    return left, tl.where(factor > 0, factor * q, 1.0), state, status


@triton.jit
def acceptance(p, q):
    """min(1, p / q), and 0 where p is 0."""
    return tl.where(p < q, p / q, tl.where(p > 0, 1.0, 0.0))
