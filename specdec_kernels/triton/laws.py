# SPDX-License-Identifier: Apache-2.0
"""The launches of `verify` that settle the laws of all rows, and with each law the chances of its node's
children."""

from __future__ import annotations

import triton
import triton.language as tl

from .arguments import (
    bitmask_of,
    draft_params_of,
    drawn_from,
    edits_of,
    params_of,
    row_data,
    target_data,
    target_row,
)
from .chances import save_coin, save_draft_chances, save_target_chances
from .law import Law, logprobs_law
from .measure import split_results
from .race import merge_races
from .row import Row, exponent_of
from .settle import Settled, close_row, collect_row, is_open, save_settled, select_row, settle_row
from .sums import ENTROPY, NOTHING, RESIDUAL_MASS, REST_MASS, ask
from .tree import lay_out_node, save_owner
from .wanted import (
    DRAFT,
    TARGET,
    bar_params,
    children_of,
    place_of,
    wanted_draft_row,
    wants_target,
)


@triton.jit(do_not_specialize=["rows", "requests", "draft_count"])
def verify_settle_kernel(
    target,
    draft,
    sampling,
    draft_sampling,
    batch,
    scratch,
    rows,
    requests,
    draft_count,
    bar,  # `top_k` of `Relaxed`
    RULE: tl.constexpr,
    LOGPROBS: tl.constexpr,
    SUMS: tl.constexpr,
    ALL: tl.constexpr,
    LANES: tl.constexpr,
    SPLIT: tl.constexpr,
    SPLITS: tl.constexpr,
):
    row, side = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = place_of(batch, tl.program_id(0), rows, requests)
    if LANES > 0:
        close_row(scratch, row, side)
    if side == TARGET:
        save_owner(scratch, row, tl.where(place.node >= 0, place.request, -1))
        if SUMS:
            ask(scratch, row, NOTHING)
    if place.node >= 0:
        params = params_of(sampling, place.request)
        if (side == TARGET) | (RULE == "relaxed"):
            number = target_row(target, row)
            if side == TARGET:
                lay_out_node(scratch, batch, place)
                if RULE != "match":
                    save_coin(scratch, batch, place, row)
                    if SUMS:
                        if number >= 0:
                            ask(scratch, row, _asked_sum(batch, place, RULE, ALL))
            if wants_target(batch, place, number, params, target.vocab, RULE):
                if RULE == "relaxed":
                    if side != TARGET:
                        params = bar_params(params, bar)
                results = split_results(scratch, row, TARGET, target.vocab, SPLIT, SPLITS)
                law, settled, bracket = settle_row(
                    scratch,
                    row,
                    TARGET,
                    Row(
                        row_data(target, number), target.vocab, bitmask_of(target, row), edits_of(target, row)
                    ),
                    results,
                    params,
                    SPLIT,
                    LANES,
                    (RULE != "typical") & (RULE != "relaxed") & (RULE != "deferred"),
                )
                if RULE == "match":
                    if law.point < 0:
                        scores = results.score * tl.exp2(exponent_of(results.max, law.top, law.slope))
                        _, token = merge_races(scores, results.token)
                        settled = Settled(settled.status, token, settled.arrivals)
                elif (side == TARGET) & (bracket.open == 0):
                    save_target_chances(target, scratch, batch, place, row, law)
                save_settled(scratch, row, side, law, settled, bracket if LANES > 0 else None)
        if draft.data is not None:
            source = tl.full([], -1, tl.int64)
            if (side == DRAFT) | LOGPROBS:
                source = wanted_draft_row(draft, batch, place, row, sampling, draft_count, RULE)
            if source >= 0:
                if LOGPROBS:
                    save_draft_chances(draft, scratch, batch, place, source, target.vocab, logprobs_law())
                else:
                    results = split_results(scratch, row, DRAFT, draft.size, SPLIT, SPLITS)
                    params = draft_params_of(sampling, draft_sampling, place.request)
                    law, settled, bracket = settle_row(
                        scratch,
                        row,
                        DRAFT,
                        Row(row_data(draft, source), draft.size, None, None),
                        results,
                        params,
                        SPLIT,
                        LANES,
                        True,
                    )
                    if draft.ids is not None:
                        if law.point >= 0:
                            point = tl.load(draft.ids + law.point).to(tl.int32)
                            law = Law(law.top, law.slope, law.cut, law.mass, point)
                    if bracket.open == 0:
                        save_draft_chances(draft, scratch, batch, place, source, target.vocab, law)
                    save_settled(scratch, row, DRAFT, law, settled, bracket if LANES > 0 else None)


@triton.jit
def _asked_sum(batch, place, RULE: tl.constexpr, ALL: tl.constexpr):
    """Which sum of `sum_rows.py` may be needed at a node. Under `token` one child that was sampled needs
    none: when it is rejected, the next token is drawn without knowing what is left."""
    count, sampled, without_replacement = children_of(batch, place)
    least: tl.constexpr = 2 if (RULE == "token" or RULE == "ensemble") and not ALL else 1
    if (RULE == "typical") | (RULE == "deferred"):
        asked = tl.where(count >= least, ENTROPY, NOTHING)
    elif RULE == "lenient":
        asked = tl.where(without_replacement, REST_MASS, NOTHING)
    else:
        asked = tl.where(sampled & (count >= least), RESIDUAL_MASS, NOTHING)
        asked = tl.where(without_replacement, REST_MASS, asked)
    return asked


@triton.jit(do_not_specialize=["rows", "requests", "draft_count"])
def verify_collect_kernel(
    target,
    draft,
    sampling,
    draft_sampling,
    batch,
    scratch,
    rows,
    requests,
    draft_count,
    RULE: tl.constexpr,
    SPLIT: tl.constexpr,
    SPLITS: tl.constexpr,
):
    row, split, side = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    if is_open(scratch, row, side):
        if (side == TARGET) | (RULE == "relaxed"):
            if split * SPLIT < target.vocab:
                collect_row(
                    scratch,
                    row,
                    side,
                    Row(
                        target_data(target, row), target.vocab, bitmask_of(target, row), edits_of(target, row)
                    ),
                    split,
                    SPLIT,
                    SPLITS,
                )
        elif draft.data is not None:
            place = place_of(batch, tl.program_id(0), rows, requests)
            source = drawn_from(draft, draft_count, place.request, row, place.node)
            if (source >= 0) & (split * SPLIT < draft.size):
                collect_row(
                    scratch,
                    row,
                    DRAFT,
                    Row(row_data(draft, source), draft.size, None, None),
                    split,
                    SPLIT,
                    SPLITS,
                )


@triton.jit(do_not_specialize=["rows", "requests", "draft_count"])
def verify_select_kernel(
    target,
    draft,
    sampling,
    draft_sampling,
    batch,
    scratch,
    rows,
    requests,
    draft_count,
    bar,
    RULE: tl.constexpr,
    SPLIT: tl.constexpr,
    SPLITS: tl.constexpr,
):
    row, side = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if is_open(scratch, row, side):
        place = place_of(batch, tl.program_id(0), rows, requests)
        if (side == TARGET) | (RULE == "relaxed"):
            params = params_of(sampling, place.request)
            if RULE == "relaxed":
                if side != TARGET:
                    params = bar_params(params, bar)
            law = select_row(
                scratch,
                row,
                side,
                Row(target_data(target, row), target.vocab, bitmask_of(target, row), edits_of(target, row)),
                params,
                SPLIT,
                SPLITS,
            )
            if side == TARGET:
                save_target_chances(target, scratch, batch, place, row, law)
        elif draft.data is not None:
            source = drawn_from(draft, draft_count, place.request, row, place.node)
            if source >= 0:
                params = draft_params_of(sampling, draft_sampling, place.request)
                law = select_row(
                    scratch,
                    row,
                    DRAFT,
                    Row(row_data(draft, source), draft.size, None, None),
                    params,
                    SPLIT,
                    SPLITS,
                )
                save_draft_chances(draft, scratch, batch, place, source, target.vocab, law)
