# SPDX-License-Identifier: Apache-2.0
"""Verification in three launches, whatever the rule, the options, the data or the tree.

measure   (R, splits, 1 or 2)   reads every row once, and finds what its law needs to know of it
walk      (B,)                  follows the rule, and leaves the law of the next token, as scalars
draw      (B, splits)           races for the next token; the last program of a request merges the splits

Under `match` the walk finds the next token itself, and there is no third launch.
"""

from __future__ import annotations

from torch import Tensor

from .._ops.calls import VerifyCall
from .arguments import (
    NO_DRAFT,
    PARAMS,
    Draft,
    compiler_options,
    layout,
    may_cut,
    sampling_of,
    scratch_of,
    target_of,
)
from .cuts import BINS
from .draw import DRAW, verify_draw_kernel
from .launch import verify_launch
from .measure import RESULT, verify_measure_kernel
from .walk import VISIT, verify_walk_kernel

_READS_DRAFT = ("token", "traversal", "lenient")


def verify(
    call: VerifyCall, trace_thresholds: Tensor | None = None, trace_masses: Tensor | None = None
) -> None:
    """Fill the outputs.

    For tests, `trace_thresholds` and `trace_masses` ([R] float64) receive what each tested node's coin was
    compared with and the residual mass that its rejection left; other entries keep what they hold.
    """
    rows, requests, vocab = call.tokens.shape[0], call.seeds.shape[0], call.target_logits.shape[-1]
    rule, draft_logits = call.rule, call.draft_logits
    if requests == 0:
        return
    if rule not in _READS_DRAFT:
        draft_logits = None
    drawn_by = sampling_of(call.sampling, call.sampling_rows)
    drafted_by = sampling_of(call.draft_sampling, call.draft_sampling_rows)
    draft, count, measured, sides = NO_DRAFT, 0, vocab, 1
    cuts, draft_cuts = may_cut(drawn_by), False
    if draft_logits is not None:
        size, chain = draft_logits.shape[-1], 0
        count = draft_logits.shape[0]
        if draft_logits.dim() == 3:
            chain = draft_logits.shape[1]
            count *= chain
        draft = Draft(
            draft_logits,
            size,
            *layout(draft_logits),
            call.draft_rows,
            chain,
            call.draft_ids,
            call.draft_columns,
        )  # fmt: skip
        if not call.draft_is_logprobs:
            measured, sides = max(vocab, size), 2
            draft_cuts = may_cut(drafted_by)
    launch = verify_launch(vocab, measured, rule, cuts or draft_cuts)
    measured_splits, draw_splits = launch.rows.splits, launch.draw
    scratch = scratch_of(
        call.target_logits.device,
        rows * sides * measured_splits.padded * RESULT,
        sides,
        params=requests * PARAMS,
        visits=rows * VISIT,
        nodes=rows,
        ranks=rows if call.first_child is not None else 0,
        bins=requests * BINS.value if cuts or draft_cuts or rule == "relaxed" else 0,
        draws=requests * DRAW,
        winners=requests * draw_splits.padded * RESULT,
    )
    given = dict(
        target=target_of(call.target_logits, call.token_bitmask),
        draft=draft,
        sampling=drawn_by,
        cu_nodes_ptr=call.cu_nodes,
        seeds_ptr=call.seeds,
        positions_ptr=call.positions,
        scratch=scratch,
        rows=rows,
    )
    tree = dict(tokens_ptr=call.tokens, parents_ptr=call.parents, proposals_ptr=call.proposals)
    splits = dict(RULE=rule, CUTS=cuts, SPLIT=measured_splits.length, SPLITS=measured_splits.padded)
    if rows > 0:
        verify_measure_kernel[(rows, measured_splits.count, sides)](
            **given,
            **tree,
            draft_sampling=drafted_by,
            requests=requests,
            draft_count=count,
            **splits,
            RACE_TILE=measured_splits.race_tile,
            WHOLE=vocab % measured_splits.length == 0 and draft.size % measured_splits.length == 0,
            num_warps=measured_splits.warps,
        )
    verify_walk_kernel[(requests,)](
        **given,
        **tree,
        draft_sampling=drafted_by,
        first_child_ptr=call.first_child,
        next_sibling_ptr=call.next_sibling,
        out_tokens_ptr=call.out_tokens,
        out_num_tokens_ptr=call.out_num_tokens,
        out_num_accepted_ptr=call.out_num_accepted,
        out_path_ptr=call.out_path,
        out_logprobs_ptr=call.out_logprobs,
        out_status_ptr=call.out_status,
        trace_thresholds_ptr=trace_thresholds,
        trace_masses_ptr=trace_masses,
        draft_count=count,
        width=call.out_tokens.shape[1],
        value0=call.rule_values[0] if call.rule_values else 0.0,
        value1=call.rule_values[1] if len(call.rule_values) > 1 else 0.0,
        **splits,
        DRAFT_CUTS=draft_cuts,
        LOGPROBS=call.draft_is_logprobs,
        RATES=tuple(call.rule_values) if rule == "synthetic" else (),
        TILE=launch.rows.row_tile,
        num_warps=launch.rows.row_warps,
        **compiler_options(cuts or draft_cuts),
    )
    if rule != "match":
        verify_draw_kernel[(requests, draw_splits.count)](
            **given,
            out_tokens_ptr=call.out_tokens,
            out_logprobs_ptr=call.out_logprobs,
            out_status_ptr=call.out_status,
            width=call.out_tokens.shape[1],
            LINKS=call.first_child is not None,
            CUTS=cuts or draft_cuts,
            SPLIT=draw_splits.length,
            SPLITS=draw_splits.padded,
            TILE=draw_splits.race_tile,
            num_warps=draw_splits.warps,
        )
