# SPDX-License-Identifier: Apache-2.0
"""The launch of `verify` that decides: one program per request walks its tree by the rule, and leaves to
`draw` what the next token is to be drawn from.

On a chain it reads scalars alone. On a tree one program passes over both rows of a node for each sampled
child that is rejected after another one, since what is left of P then depends on what was rejected before. It
has many warps, and both rows on the way at once."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .arguments import has_cuts, params_of
from .context import Context
from .dispatch import given
from .draw import SETTLED, draw_words, load_kind, save_kind
from .end import can_keep, draws_at
from .ends import finish_request
from .rule_lossy import Rates, lossy
from .rule_match import match
from .rule_token import token
from .rule_traversal import traversal
from .tree import NODES, Tree, child_holding, nodes_of, owned_rows, ranks_of


class Out(NamedTuple):
    """What a call returns; in rules, of one request."""

    tokens: tl.tensor  # [B, width]
    num_tokens: tl.tensor  # [B]
    num_accepted: tl.tensor  # [B]
    path: tl.tensor  # [B, width]
    logprobs: tl.tensor  # [B, width], optional
    status: tl.tensor  # [B]
    thresholds: tl.tensor  # [R] or None: what the coins of tested nodes were compared with
    masses: tl.tensor  # [R] or None: of the residual that a rejection left


@triton.jit(do_not_specialize=["rows", "draft_count", "width", "rate_count"])
def verify_walk_kernel(
    target,
    draft,
    sampling,
    batch,
    scratch,
    out,
    rows,
    draft_count,
    width,
    value0,
    value1,
    rates_ptr,  # [D] of `Synthetic`, or None
    rate_count,
    ends,
    RULE: tl.constexpr,
    RATES: tl.constexpr,
    LOGPROBS: tl.constexpr,
    SUMS: tl.constexpr,
    TILE: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    first, count = owned_rows(scratch, batch.cu_nodes, b, rows)
    params = params_of(sampling, b)
    ctx = Context(
        target, draft, scratch, Tree(nodes_of(scratch, first), ranks_of(scratch, batch, first), count),
        b, first.to(tl.int64), (params.temperature > 0) == 0, has_cuts(params, target.vocab),
        width, draft_count, batch.seeds + b, batch.positions + b,
        _part(batch.bonus, b), _status_before(target, out.status + b),
    )  # fmt: skip
    out = Out(
        out.tokens + b * width, out.num_tokens + b, out.num_accepted + b, out.path + b * width,
        tl.where(given(out.logprobs), out.logprobs + b * width, out.logprobs), out.status + b,
        _part(out.thresholds, ctx.first), _part(out.masses, ctx.first),
    )  # fmt: skip
    save_kind(draw_words(scratch, b), SETTLED)  # unless the walk says otherwise
    depth = tl.full([], -1, tl.int32)
    walks = ctx.tree.count > 0
    if walks:
        walks = can_keep(ctx, tl.full([], 0, tl.int32))
    if walks:
        if RULE == "match":
            depth = match(ctx, out)
        elif (RULE == "typical") | (RULE == "relaxed") | (RULE == "lenient") | (RULE == "deferred"):
            depth = lossy(ctx, out, value0, value1, None, RULE, RATES, LOGPROBS, SUMS, TILE)
        elif RULE == "synthetic":
            rates = Rates(rates_ptr, rate_count)
            depth = lossy(ctx, out, value0, value1, rates, RULE, RATES, LOGPROBS, SUMS, TILE)
        elif ctx.greedy:
            depth = match(ctx, out)
        elif RULE == "traversal":
            depth = traversal(ctx, out, LOGPROBS, SUMS, TILE)
        else:
            depth = token(ctx, out, value0, value1, RULE, LOGPROBS, SUMS, TILE)
        tl.store(out.path, 0)
    tl.store(out.num_tokens, depth + 1)
    tl.store(out.num_accepted, tl.maximum(depth, 0))
    if depth < 0:
        tl.store(out.status, 0)
    if given(ends.finish):
        _finish(ctx, ends, out, depth)
    _write_beyond(out, depth, width)


@triton.jit
def _finish(ctx, ends, out, depth):
    """Where the walk wrote the last token, or none. If neither a draw nor the caller made it, it is that of a
    child that is not kept."""
    tl.debug_barrier()
    token = tl.full([], -1, tl.int64)
    drafted = tl.full([], False, tl.int1)
    if load_kind(draw_words(ctx.scratch, ctx.request)) == SETTLED:
        if ctx.tree.count > 0:
            if depth >= 0:
                token = tl.load(out.tokens + depth).to(tl.int64)
                last = tl.load(out.path + depth)
                if draws_at(ctx, last) & (depth + 1 < ctx.width):
                    drafted = child_holding(ctx.tree, last, token) >= 0
            finish_request(ends, ctx.request, depth + 1, token, drafted)
        else:
            tl.store(ends.finish + ctx.request, 0)


@triton.jit
def _part(values, begin):
    """-> the part of a request, of what may be left out."""
    part = None
    if values is not None:
        part = values + begin
    return part


@triton.jit
def _status_before(target, status_ptr):
    """What the launch that edits rows has found of a request."""
    status = tl.full([], 0, tl.int32)
    if target.edits is not None:
        status = tl.load(status_ptr)
    return status


@triton.jit
def _write_beyond(out, depth, width):
    """Nothing, where the path ends; a walk may have been deeper."""
    tl.debug_barrier()
    for begin in range(0, width, NODES):
        place = begin + tl.arange(0, NODES)
        beyond = (place > depth) & (place < width)
        tl.store(out.tokens + place, tl.full([NODES], -1, tl.int64), mask=beyond)
        tl.store(out.path + place, tl.full([NODES], -1, tl.int32), mask=beyond)
        if given(out.logprobs):
            tl.store(out.logprobs + place, tl.full([NODES], float("nan"), tl.float32), mask=beyond)
