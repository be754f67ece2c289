# SPDX-License-Identifier: Apache-2.0
"""`token`: Leviathan et al. 2023 on a chain, recursive rejection on a tree. `ensemble` and `threshold` walk in
the same way, with other tests."""

from __future__ import annotations

import triton
import triton.language as tl

from .context import child_with, coin_of, first_child
from .draw import leave_draw
from .law import store_logprob
from .node import acceptance, chances, load_node, test_child, unloaded
from .rejection import reject
from .residual import nothing_rejected
from .tree import next_child


@triton.jit
def token(
    ctx, out, value0, value1,
    RULE: tl.constexpr, LOGPROBS: tl.constexpr, SUMS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    index = tl.full([], 0, tl.int32)
    depth = tl.full([], 0, tl.int32)
    status = tl.full([], 0, tl.int32)
    one = tl.full([], 1.0, tl.float64)
    walking = tl.full([], 1, tl.int32)
    while walking > 0:
        node = unloaded(ctx, index)
        state = nothing_rejected()
        key = first_child(ctx, index, depth)
        loaded = (key >= 0) | ctx.has_cuts
        if loaded:
            node, found = load_node(ctx, index, LOGPROBS, SUMS, TILE)
            status |= found
        walking = tl.full([], 0, tl.int32)
        summed = tl.full([], 0.0, tl.float64)  # p of the children so far
        while key >= 0:
            child = child_with(ctx, key)
            left, q, state, found = test_child(ctx, node, state, child)
            status |= found
            if out.thresholds is not None:
                tl.store(out.thresholds + child.node, acceptance(left, q))
            if RULE == "threshold":
                p, _ = chances(ctx, node, child)
                summed += p
                passes = (coin_of(ctx, index) * value1 < summed) | ((p > 0) & (p >= value0))
            elif RULE == "ensemble":
                weight = value0.to(tl.float64)
                passes = coin_of(ctx, child.node) * q < weight * left + (1.0 - weight) * q
                passes = passes & (child.token < ctx.target.vocab)
            else:
                passes = coin_of(ctx, child.node) * q < left
            if passes:
                store_logprob(out.logprobs, depth, ctx.target, node.row, node.p, child.token)
                index = child.node
                depth += 1
                walking = tl.full([], 1, tl.int32)
                key = tl.full([], -1, tl.int64)
            else:
                key = next_child(ctx.tree, index, key)
                wanted = key >= 0
                if out.masses is not None:
                    wanted = wanted | True
                state, mass = reject(ctx, node, state, child, left, one, wanted, SUMS, TILE)
                if out.masses is not None:
                    tl.store(out.masses + child.node, mass)
        if walking == 0:
            leave_draw(ctx, node, state, depth, loaded, status)
    return index, depth
