# SPDX-License-Identifier: Apache-2.0
"""`traversal` (Weng et al. 2025): block verification's tree form, the deepest nodes first."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .context import child_with, first_child, look_up, root_of
from .dispatch import given
from .end import draws_after, end_walk
from .law import store_logprob
from .node import acceptance, load_laws, load_node, test_child
from .record import load, save, whole_sectors
from .rejection import reject
from .residual import Residual, nothing_rejected
from .settle import law_of
from .wanted import TARGET


class Visit(NamedTuple):
    """What is known of a node on the way, beside its laws and its residual."""

    w: tl.tensor  # float64, the weight that reaches it
    left: tl.tensor  # float64, P of the child under test


VISIT = whole_sectors(len(Visit._fields) + len(Residual._fields))  # float64 words
_VISIT = tl.constexpr(VISIT)


@triton.jit
def visit_words(ctx, index):
    return ctx.scratch.words + ctx.scratch.visits + (ctx.first + index) * _VISIT


@triton.jit
def _save_visit(words, visit, state):
    save(words, visit)
    save(words + len(visit), state)


@triton.jit
def _load_visit(words):
    one = tl.full([], 1.0, tl.float64)
    visit = Visit(*load(words, (one, one)))
    return visit, Residual(*load(words + len(visit), nothing_rejected()))


@triton.jit
def traversal(ctx, out, LOGPROBS: tl.constexpr, SUMS: tl.constexpr, TILE: tl.constexpr):
    """Scratch keeps a visit of every node above the one that is visited."""
    here = root_of(ctx)
    child = here  # the child under test
    depth = tl.full([], 0, tl.int32)
    status = ctx.status
    one = tl.full([], 1.0, tl.float64)
    visit, state = Visit(one, one), nothing_rejected()
    rejected = tl.full([], 0, tl.int32)  # the child under test
    walking = tl.full([], 1, tl.int32)
    lost = tl.full([], 0, tl.int32)  # 1 where the last accepted node cannot be kept
    steps = 3 * ctx.tree.count + 3  # more than a sound tree needs
    while (walking > 0) & (steps > 0):
        steps -= 1
        w = visit.w
        following = first_child(ctx, here, depth)
        laws = load_laws(ctx, here.node, LOGPROBS)
        next = child_with(ctx, following)
        # A rejection never raises w. Where the coin fails already and no sibling is left, the residual is
        # not needed.
        failed = (rejected > 0) & (following < 0) & (depth > 0) & (here.coin >= w)
        loaded = ((here.proposals > 0) & (depth + 1 < ctx.width)) | ctx.has_cuts
        loaded = loaded & draws_after(ctx, here)
        node, found = load_node(ctx, here, laws, loaded & (not failed), LOGPROBS, SUMS, TILE)
        status |= found
        if (rejected > 0) & (not failed):
            wanted = (following >= 0) | (w < 1)
            if out.masses is not None:
                wanted = wanted | True
            state, mass = reject(ctx, node, state, child, visit.left, w, wanted, SUMS, TILE)
            if out.masses is not None:
                tl.store(out.masses + child.node, mass)
            if mass > 0:
                w = mass / (mass + (1.0 - w))
            else:
                failed = w < 1
        rejected = tl.full([], 0, tl.int32)
        ready = (not failed) & (following < 0)  # all children were rejected, or there are none
        if ready & (depth > 0):
            if out.thresholds is not None:
                tl.store(out.thresholds + here.node, w)
            failed = not (here.coin < w)
        if failed:
            child = here
            depth = tl.maximum(depth - 1, 0)
            tl.debug_barrier()
            visit, state = _load_visit(visit_words(ctx, tl.maximum(child.parent, 0)))
            here = look_up(ctx, child.parent, child.key)
            rejected = tl.full([], 1, tl.int32)
        elif ready:
            walking = tl.full([], 0, tl.int32)
            lost = depth - end_walk(ctx, out, node, state, depth, loaded, status, "traversal")
        else:
            child = next
            left, q, state, found = test_child(ctx, node, state, child)
            status |= found
            down = acceptance(w * left, q)
            visit = Visit(w, left)
            if (down > 0) & (depth + 1 < ctx.width):
                tl.debug_barrier()
                _save_visit(visit_words(ctx, here.node), visit, state)
                tl.store(out.tokens + depth, child.token)
                depth += 1
                tl.store(out.path + depth, child.node)
                here = child
                visit, state = Visit(down, left), nothing_rejected()
            else:
                rejected = tl.full([], 1, tl.int32)  # nothing below can be accepted
                here = look_up(ctx, here.node, child.key)
    store_path_logprobs(ctx, out, here, depth)
    return depth - lost


@triton.jit
def store_path_logprobs(ctx, out, here, depth):
    """Of the tokens on the way to a node."""
    if given(out.logprobs):
        for up in range(0, depth):
            law = law_of(ctx.scratch, ctx.first + here.parent, TARGET)
            store_logprob(out.logprobs, depth - 1 - up, ctx.target, ctx.first + here.parent, law, here.token)
            here = look_up(ctx, here.parent, here.key)
