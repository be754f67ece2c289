# SPDX-License-Identifier: Apache-2.0
"""Sums over rows that rules ask for, in one launch over (rows x splits) once all laws are settled.

Under `traversal` a launch of one program per request comes before, which weighs the nodes.

- The mass of q outside the tracked tokens, of nodes with WITHOUT_REPLACEMENT children.
- The mass of the residual that is left when the first child of another node is rejected. It follows from
  scalars: under `token` nothing else enters, and under `traversal` the weight w that reaches the node, if
  only first children lead there, as on a chain.
- The entropy of rows that `Typical` and `Deferred` test.

Residuals between later siblings are not summed here: they depend on what was rejected before.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arguments import bitmask_of, draft_logits, edits_of, has_cuts, params_of, row_data, target_data
from .context import Context, child_with, first_child, look_up, root_of
from .node import acceptance, load_laws, load_node, q_of, test_child
from .residual import nothing_rejected, span_mass, subtract
from .row import Row, exponent_of, read_tile
from .settle import law_of
from .sums import (
    ENTROPY,
    NOTHING,
    RESIDUAL_MASS,
    REST_MASS,
    Sum,
    load_asked,
    load_weight,
    save_kind,
    save_sum,
    weight_of,
)
from .tracked import Tracking, is_point, leave_out
from .tree import (
    HAS_WITHOUT_REPLACEMENT,
    NODES,
    Tree,
    next_child,
    nodes_of,
    owned_rows,
    ranks_of,
)
from .wanted import TARGET, place_of

_LEAST_BITS = tl.constexpr(-160.0)  # log2 of weights that count as 0, where -inf would make NaN


@triton.jit(do_not_specialize=["rows", "requests", "draft_count", "width"])
def verify_sum_kernel(
    target,
    draft,
    sampling,
    batch,
    scratch,
    rows,
    requests,
    draft_count,
    width,
    RULE: tl.constexpr,
    LOGPROBS: tl.constexpr,
    SPLIT: tl.constexpr,
    SPLITS: tl.constexpr,
    TILE: tl.constexpr,
):
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    kind = load_asked(scratch, row)
    asked = kind != NOTHING
    if RULE == "traversal":
        asked = (kind == REST_MASS) | (asked & (load_weight(scratch, row) != 0))
    if asked:  # programs of other nodes leave at once
        place = place_of(batch, tl.program_id(0), rows, requests)
        params = params_of(sampling, place.request)
        tree = Tree(nodes_of(scratch, place.first), ranks_of(scratch, batch, place.first), place.count)
        ctx = Context(
            target, draft, scratch, tree, place.request, place.first.to(tl.int64),
            (params.temperature > 0) == 0, has_cuts(params, target.vocab),
            width, draft_count, batch.seeds + place.request, batch.positions + place.request, None,
            tl.full([], 0, tl.int32),
        )  # fmt: skip
        kind = tl.full([], NOTHING, tl.int32)
        begin = split * SPLIT
        if (RULE == "typical") | (RULE == "deferred"):
            kind = tl.full([], ENTROPY, tl.int32)
            save_sum(scratch, row, split, _entropy(ctx, row, begin, SPLIT, TILE), SPLITS)
        elif (not ctx.greedy) | (RULE == "lenient"):
            laws = load_laws(ctx, place.node, LOGPROBS)
            here = look_up(ctx, place.node, tl.full([], -1, tl.int64))
            node, _ = load_node(ctx, here, laws, here.proposals > 0, LOGPROBS, None, TILE)
            if here.proposals >= HAS_WITHOUT_REPLACEMENT:
                kind = tl.full([], REST_MASS, tl.int32)
                if node.drawn_from >= 0:
                    save_sum(scratch, row, split, _rest(ctx, node, begin, SPLIT, TILE), SPLITS)
            elif RULE != "lenient":
                child = child_with(ctx, here.following)
                _, _, state, _ = test_child(ctx, node, nothing_rejected(), child)
                if (here.following >= 0) & (state.factor > 0):
                    kind = tl.full([], RESIDUAL_MASS, tl.int32)
                    w = tl.full([], 1.0, tl.float64)
                    if RULE == "traversal":
                        w = load_weight(scratch, row)
                    end = tl.minimum(begin + SPLIT, target.vocab)
                    mass = span_mass(ctx, node, subtract(state, child, w), begin, end, TILE)
                    save_sum(scratch, row, split, Sum(mass, node.p.top), SPLITS)
        save_kind(scratch, row, kind)


@triton.jit(do_not_specialize=["rows", "draft_count", "width"])
def verify_weigh_kernel(
    target,
    draft,
    sampling,
    batch,
    scratch,
    rows,
    draft_count,
    width,
    LOGPROBS: tl.constexpr,
    ALL: tl.constexpr,
    TILE: tl.constexpr,
):
    """Under `traversal`: for each node that is reached by first children alone the weight w that reaches it,
    where the mass that the rejection of its own first child leaves can be asked for; for other nodes 0.

    It is asked for if another child follows, or if the node's coin may still accept it: a rejection never
    raises w, and a node of w = 1 needs no mass. A deeper node of w = 1 is accepted for certain, and then
    nothing above it is rejected."""
    b = tl.program_id(0).to(tl.int64)
    first, count = owned_rows(scratch, batch.cu_nodes, b, rows)
    params = params_of(sampling, b)
    ctx = Context(
        target, draft, scratch, Tree(nodes_of(scratch, first), ranks_of(scratch, batch, first), count),
        b, first.to(tl.int64), (params.temperature > 0) == 0, has_cuts(params, target.vocab),
        width, draft_count, batch.seeds + b, batch.positions + b, None, tl.full([], 0, tl.int32),
    )  # fmt: skip
    for begin in range(0, ctx.tree.count, NODES):
        index = begin + tl.arange(0, NODES)
        zero = tl.zeros([NODES], tl.float64)
        tl.store(weight_of(ctx.scratch, ctx.first) + index, zero, mask=index < ctx.tree.count)
    tl.debug_barrier()
    depth = tl.full([], 0, tl.int32)
    w = tl.full([], 1.0, tl.float64)
    if (ctx.tree.count > 0) & (not ctx.greedy):
        here = root_of(ctx)
        key = first_child(ctx, here, depth)
        while key >= 0:
            laws = load_laws(ctx, here.node, LOGPROBS)
            child = child_with(ctx, key)
            node, _ = load_node(ctx, here, laws, key >= 0, LOGPROBS, None, TILE)
            asked = (w < 1) & (here.coin < w)
            if not asked:
                asked = next_child(ctx.tree, here.node, key) >= 0
            tl.store(weight_of(ctx.scratch, node.row), tl.where(asked | ALL, w, 0.0))
            w = acceptance(w * child.p, tl.where(is_point(node, child.proposal), 1.0, q_of(node, child)))
            key = tl.full([], -1, tl.int64)
            # The mass of q that a child drawn without replacement needs is not known here.
            if (w > 0) & (here.proposals < HAS_WITHOUT_REPLACEMENT):
                here, depth = child, depth + 1
                key = first_child(ctx, here, depth)
                if w == 1:
                    if not ALL:
                        for begin in range(0, here.node, NODES):
                            above = begin + tl.arange(0, NODES)
                            zero = tl.zeros([NODES], tl.float64)
                            tl.debug_barrier()
                            tl.store(weight_of(ctx.scratch, ctx.first) + above, zero, mask=above < here.node)
                            tl.debug_barrier()


@triton.jit
def _rest(ctx, node, begin, SPLIT: tl.constexpr, TILE: tl.constexpr):
    """The mass of q outside the tracked tokens, in a part of its columns. It is summed over them and never
    found as a difference, and relative to the largest score there, so that it does not vanish beside a
    tracked token that holds nearly all."""
    q = node.q
    # Each lane's largest score so far, and its mass relative to that.
    top = tl.full([TILE], float("-inf"), tl.float32)
    mass = tl.zeros([TILE], tl.float32)
    tracked = begin.to(tl.int64) - 1
    tracking = Tracking(ctx.tree, node.index, node.drawn_from, ctx.draft.columns, ctx.target.vocab)
    for start in range(begin, tl.minimum(begin + SPLIT, ctx.draft.size), TILE):
        column = start + tl.arange(0, TILE)
        x = read_tile(Row(row_data(ctx.draft, node.drawn_from), ctx.draft.size, None, None), start, TILE)
        x = draft_logits(ctx.draft, x)
        x = tl.where((x == x) & (x >= q.cut), x, float("-inf"))
        if q.top == float("inf"):
            x = tl.where(x == float("inf"), 0.0, float("-inf"))
        x, tracked = leave_out(x, float("-inf"), column, start + TILE, tracked, tracking)
        above = tl.maximum(top, x)
        known = tl.where(above > float("-inf"), above, 0.0)
        mass = mass * tl.exp2((top - known) * q.slope) + tl.exp2((x - known) * q.slope)
        top = above
    largest = tl.max(top)
    known = tl.where(largest > float("-inf"), largest, 0.0)
    return Sum(tl.sum((mass * tl.exp2((top - known) * q.slope)).to(tl.float64)), largest)


@triton.jit
def _entropy(ctx, row, begin, SPLIT: tl.constexpr, TILE: tl.constexpr):
    """The sum of weights times their logarithms, in bits, in a part of a row."""
    law = law_of(ctx.scratch, row, TARGET)
    acc = tl.zeros([TILE], tl.float32)
    for start in range(begin, tl.minimum(begin + SPLIT, ctx.target.vocab), TILE):
        x = read_tile(
            Row(
                target_data(ctx.target, row),
                ctx.target.vocab,
                bitmask_of(ctx.target, row),
                edits_of(ctx.target, row),
            ),
            start,
            TILE,
        )
        t = exponent_of(tl.where((x == x) & (x >= law.cut), x, float("-inf")), law.top, law.slope)
        acc += tl.exp2(t) * tl.maximum(t, _LEAST_BITS)
    return Sum(tl.sum(acc.to(tl.float64)), law.top)
