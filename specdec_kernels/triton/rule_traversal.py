# SPDX-License-Identifier: Apache-2.0
"""`traversal` (Weng et al. 2025): block verification's tree form, the deepest nodes first."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .context import child_with, coin_of, first_child
from .draw import leave_draw
from .law import store_logprob
from .node import acceptance, load_node, test_child, unloaded
from .record import load, save, whole_sectors
from .rejection import reject
from .residual import Residual, nothing_rejected
from .settle import law_of
from .tree import next_child, parent_of, token_of
from .wanted import TARGET


class Visit(NamedTuple):
    """What is known of a node on the way, beside its laws and its residual."""

    w: tl.tensor  # float64, the weight that reaches it
    left: tl.tensor  # float64, P of the child under test
    key: tl.tensor  # int64, of the child under test; -1 = none was tested
    following: tl.tensor  # int64, key of the child after it; -1 = none


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
    one, none = tl.full([], 1.0, tl.float64), tl.full([], -1, tl.int64)
    visit = Visit(*load(words, (one, one, none, none)))
    return visit, Residual(*load(words + len(visit), nothing_rejected()))


@triton.jit
def _open_visit(ctx, index, depth, w):
    """Of a node that is reached."""
    one, none = tl.full([], 1.0, tl.float64), tl.full([], -1, tl.int64)
    visit = Visit(w, one, none, first_child(ctx, index, depth))
    _save_visit(visit_words(ctx, index), visit, nothing_rejected())


@triton.jit
def traversal(ctx, out, LOGPROBS: tl.constexpr, SUMS: tl.constexpr, TILE: tl.constexpr):
    """Scratch keeps a visit of every node on the way."""
    index = tl.full([], 0, tl.int32)
    depth = tl.full([], 0, tl.int32)
    status = tl.full([], 0, tl.int32)
    rejected = tl.full([], 0, tl.int32)  # the child under test
    walking = tl.full([], 1, tl.int32)
    _open_visit(ctx, index, depth, tl.full([], 1.0, tl.float64))
    steps = 3 * ctx.tree.count + 3  # more than a sound tree needs
    while (walking > 0) & (steps > 0):
        steps -= 1
        tl.debug_barrier()
        visit, state = _load_visit(visit_words(ctx, index))
        tl.debug_barrier()
        w, following = visit.w, visit.following
        # A rejection never raises w. Where the coin fails already and no sibling is left, the residual is
        # not needed.
        failed = (rejected > 0) & (following < 0) & (depth > 0) & (coin_of(ctx, index) >= w)
        loaded = (visit.key >= 0) | (following >= 0) | ctx.has_cuts
        node = unloaded(ctx, index)
        if loaded & (not failed):
            node, found = load_node(ctx, index, LOGPROBS, SUMS, TILE)
            status |= found
        if (rejected > 0) & (not failed):
            child = child_with(ctx, visit.key)
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
                tl.store(out.thresholds + index, w)
            failed = not (coin_of(ctx, index) < w)
        if failed:
            index = tl.maximum(parent_of(ctx.tree, index), 0)
            depth = tl.maximum(depth - 1, 0)
            rejected = tl.full([], 1, tl.int32)
        elif ready:
            walking = tl.full([], 0, tl.int32)
            leave_draw(ctx, node, state, depth, loaded, status)
        else:
            child = child_with(ctx, following)
            left, q, state, found = test_child(ctx, node, state, child)
            status |= found
            down = acceptance(w * left, q)
            following = next_child(ctx.tree, index, child.key)
            _save_visit(visit_words(ctx, index), Visit(w, left, child.key, following), state)
            if (down > 0) & (depth + 1 < ctx.width):
                index = child.node
                depth += 1
                _open_visit(ctx, index, depth, down)
            else:
                rejected = tl.full([], 1, tl.int32)  # nothing below can be accepted
    store_path_logprobs(ctx, out, index, depth)
    return index, depth


@triton.jit
def store_path_logprobs(ctx, out, index, depth):
    """Of the tokens on the way to a node."""
    if out.logprobs is not None:
        for up in range(0, depth):
            parent = parent_of(ctx.tree, index)
            law = law_of(ctx.scratch, ctx.first + parent, TARGET)
            token = token_of(tl.load(ctx.tree.nodes + index))
            store_logprob(out.logprobs, depth - 1 - up, ctx.target, ctx.first + parent, law, token)
            index = parent
