# SPDX-License-Identifier: Apache-2.0
"""The end of a walk: at a node whose next token is drawn, has been drawn by the caller, or cannot be told
because the target has no row of the node."""

from __future__ import annotations

import triton
import triton.language as tl

from .arguments import target_row
from .dispatch import given
from .draw import leave_draw
from .law import store_logprob
from .settle import likeliest_law, load_settled
from .wanted import ENDED, TARGET


@triton.jit
def _has_row(ctx, node):
    there = tl.full([], True, tl.int1)
    if given(ctx.target.rows):
        there = tl.load(ctx.target.rows + ctx.first + node) >= 0
    return there


@triton.jit
def _bonus_after(ctx, node):
    """The token after a node if the caller has drawn it, int64, else -1: after the last node of a chain, or
    after one without a row at which the chain ends; never where the request ends."""
    token = tl.full([], -1, tl.int64)
    if ctx.bonus is not None:
        after = tl.load(ctx.tree.nodes + node + 1, mask=node + 1 < ctx.tree.count, other=-1)
        row = target_row(ctx.target, ctx.first + node)
        ends = ((node + 1 == ctx.tree.count) | ((row < 0) & (after < 0))) & (row != ENDED)
        token = tl.load(ctx.bonus).to(tl.int64)
        token = tl.where(ends & (token >= 0) & (token < ctx.target.vocab), token, -1)
    return token


@triton.jit
def can_keep(ctx, node):
    """Whether the token after a node can be told."""
    return _has_row(ctx, node) | (_bonus_after(ctx, node) >= 0)


@triton.jit
def draws_at(ctx, node):
    """Whether the token after a node is drawn from the target's row, if the walk ends there."""
    drawn = _has_row(ctx, node)
    if ctx.bonus is not None:
        drawn = drawn & (_bonus_after(ctx, node) < 0)
    return drawn


@triton.jit
def draws_after(ctx, here):
    """The same of a node that was looked up."""
    drawn = here.proposals >= 0
    if ctx.bonus is not None:
        drawn = drawn & (_bonus_after(ctx, here.node) < 0)
    return drawn


@triton.jit
def end_walk(ctx, out, node, state, depth, loaded, status, RULE: tl.constexpr):
    """Ends a walk that accepted a node, whose token is written. Returns the depth of the last node that is
    kept."""
    if draws_at(ctx, node.index):
        leave_draw(ctx, node, state, depth, loaded, status)
    else:
        depth = end_without_draw(ctx, out, node.index, depth, RULE)
        tl.store(out.status, status)
    return depth


@triton.jit
def end_without_draw(ctx, out, node, depth, RULE: tl.constexpr):
    """The same where nothing is drawn: the bonus token is the next token, or the node's own, which is written
    where its parent's next token belongs."""
    bonus = _bonus_after(ctx, node)
    if bonus >= 0:
        tl.store(out.tokens + depth, bonus)
        if given(out.logprobs):
            if _has_row(ctx, node):
                law, _ = law_drawn_from(ctx, node, RULE)
                store_logprob(out.logprobs, depth, ctx.target, ctx.first + node, law, bonus)
            else:
                tl.store(out.logprobs + depth, float("nan"))
    else:
        depth -= 1
    return depth


@triton.jit
def law_drawn_from(ctx, index, RULE: tl.constexpr):
    """The law of the next token at a node. At temperature 0 rules that test p itself test the law at
    temperature 1."""
    law, settled = load_settled(ctx.scratch, ctx.first + index, TARGET)
    if (RULE == "typical") | (RULE == "relaxed") | (RULE == "deferred"):
        if ctx.greedy:
            law = likeliest_law(law, settled.token)
    return law, settled.status
