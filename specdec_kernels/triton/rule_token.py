# SPDX-License-Identifier: Apache-2.0
"""`token`: Leviathan et al. 2023 on a chain, recursive rejection on a tree. `ensemble` and `threshold` walk
in the same way, with other tests."""

from __future__ import annotations

import triton
import triton.language as tl

from .context import child_with, first_child, root_of
from .end import draws_after, end_walk
from .law import store_logprob
from .node import acceptance, load_laws, load_node, test_child
from .rejection import reject
from .residual import nothing_rejected
from .tree import next_child


@triton.jit
def token(
    ctx, out, value0, value1,
    RULE: tl.constexpr, LOGPROBS: tl.constexpr, SUMS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    here = root_of(ctx)
    depth = tl.full([], 0, tl.int32)
    status = ctx.status
    one = tl.full([], 1.0, tl.float64)
    walking = tl.full([], 1, tl.int32)
    while walking > 0:
        state = nothing_rejected()
        key = first_child(ctx, here, depth)
        laws = load_laws(ctx, here.node, LOGPROBS)
        child = child_with(ctx, key)
        loaded = ((key >= 0) | ctx.has_cuts) & draws_after(ctx, here)
        node, found = load_node(ctx, here, laws, loaded, LOGPROBS, SUMS, TILE)
        status |= found
        walking = tl.full([], 0, tl.int32)
        summed = tl.full([], 0.0, tl.float64)  # p of the children so far
        while key >= 0:
            left, q, state, found = test_child(ctx, node, state, child)
            status |= found
            if out.thresholds is not None:
                tl.store(out.thresholds + child.node, acceptance(left, q))
            if RULE == "threshold":
                summed += child.p
                passes = (here.coin * value1 < summed) | ((child.p > 0) & (child.p >= value0))
            elif RULE == "ensemble":
                weight = value0.to(tl.float64)
                passes = child.coin * q < weight * left + (1.0 - weight) * q
                passes = passes & (child.token < ctx.target.vocab)
            else:
                passes = child.coin * q < left
            if passes:
                store_logprob(out.logprobs, depth, ctx.target, node.row, node.p, child.token)
                tl.store(out.tokens + depth, child.token)
                depth += 1
                tl.store(out.path + depth, child.node)
                walking = tl.full([], 1, tl.int32)
                key = tl.full([], -1, tl.int64)
            else:
                key = next_child(ctx.tree, node.index, key)
                wanted = key >= 0
                if out.masses is not None:
                    wanted = wanted | True
                state, mass = reject(ctx, node, state, child, left, one, wanted, SUMS, TILE)
                if out.masses is not None:
                    tl.store(out.masses + child.node, mass)
                child = child_with(ctx, key)
        here = child
        if walking == 0:
            depth = end_walk(ctx, out, node, state, depth, loaded, status, "token")
    return depth
