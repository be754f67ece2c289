# SPDX-License-Identifier: Apache-2.0
"""`match`, and greedy requests under the rules that are not in `rule_lossy`: the target's own token at each
node."""

from __future__ import annotations

import triton
import triton.language as tl

from .arguments import bitmask_of, edits_of, has_cuts, params_of, row_data, target_row
from .end import draws_at, end_without_draw
from .law import store_logprob
from .measure import Split, load_splits, results_of, store_split
from .race import merge_races, race_law
from .random import NEXT
from .row import Row
from .settle import arrives_last_at, law_of, load_settled, save_token
from .tree import child_holding
from .wanted import TARGET, depth_of, place_of


@triton.jit(do_not_specialize=["rows", "requests"])
def verify_race_kernel(
    target,
    sampling,
    batch,
    scratch,
    rows,
    requests,
    SPLIT: tl.constexpr,
    SPLITS: tl.constexpr,
    TILE: tl.constexpr,
):
    """The races of rows with cuts, which can only be run when these are settled; `measure` runs the
    others."""
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = place_of(batch, tl.program_id(0), rows, requests)
    number = target_row(target, row)
    if (place.node >= 0) & (number >= 0):
        law = law_of(scratch, row, TARGET)
        if has_cuts(params_of(sampling, place.request), target.vocab) & (law.point < 0):
            begin = split * SPLIT
            score, token = race_law(
                Row(row_data(target, number), target.vocab, bitmask_of(target, row), edits_of(target, row)),
                begin,
                tl.minimum(begin + SPLIT, target.vocab),
                law,
                tl.load(batch.seeds + place.request),
                tl.load(batch.positions + place.request) + depth_of(batch, place),
                NEXT,
                TILE,
            )
            results = results_of(scratch, row, TARGET, SPLITS)
            zero = tl.full([], 0.0, tl.float32)
            store_split(results, split, Split(law.top, zero, token, zero.to(tl.int32), score, zero))
            if arrives_last_at(scratch, row, TARGET, tl.num_programs(1)):
                raced = load_splits(results, tl.num_programs(1), SPLITS)
                _, token = merge_races(raced.score, raced.token)
                save_token(scratch, row, TARGET, token)


@triton.jit
def match(ctx, out):
    """Follows the child that holds the target's own token: what its race drew, or the likeliest."""
    node = tl.full([], 0, tl.int32)
    depth = tl.full([], 0, tl.int32)
    child = tl.full([], 0, tl.int32)
    status = ctx.status
    while (child >= 0) & draws_at(ctx, tl.maximum(child, 0)):
        node = child
        law, settled = load_settled(ctx.scratch, ctx.first + node, TARGET)
        status |= settled.status
        token = tl.where(law.point >= 0, law.point, settled.token)
        token = tl.minimum(tl.maximum(token, 0), ctx.target.vocab - 1).to(tl.int64)
        store_logprob(out.logprobs, depth, ctx.target, ctx.first + node, law, token)
        tl.store(out.tokens + depth, token)
        child = tl.full([], -1, tl.int32)
        if depth + 1 < ctx.width:
            child = child_holding(ctx.tree, node, token)
        if child >= 0:
            depth += 1
            tl.store(out.path + depth, child)
    if child >= 0:
        depth = end_without_draw(ctx, out, child, depth, "match")
    tl.store(out.status, status)
    return depth
