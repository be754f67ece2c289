# SPDX-License-Identifier: Apache-2.0
"""Verification in launches whose number depends on which arguments are given, and never on data or on the
tree.

measure   (R, splits, 1 or 2)   reads every row once, and finds what its law needs to know of it
settle    (R, 1 or 2)           merges the laws, and finds their cuts among the largest scores
collect   (R, splits, 1 or 2)   with cuts: reads rows again where they keep more than was listed
select    (R, 1 or 2)           with cuts: settles these
race      (R, splits)           under `match` with cuts: draws the target's own tokens
weigh     (B,)                  under `traversal` with draft logits: weights that reach nodes
sum       (R, splits)           with draft logits, or under `Typical`: sums over rows that the rule asks for
walk      (B,)                  follows the rule, and leaves the law of the next token, as scalars
draw      (B, splits)           but for `match`: races for the next token; the last program merges
"""

from __future__ import annotations

from torch import Tensor

from .._ops.calls import VerifyCall
from .arguments import (
    NO_DRAFT,
    Draft,
    Scratch,
    compiler_options,
    layout,
    may_cut,
    sampling_of,
    scratch_of,
    target_of,
)
from .chances import CHANCES
from .draw import DRAW, verify_draw_kernel
from .launch import VerifyLaunch, verify_launch
from .laws import verify_collect_kernel, verify_select_kernel, verify_settle_kernel
from .measure import RESULT, verify_measure_kernel
from .rule_match import verify_race_kernel
from .rule_traversal import VISIT
from .settle import settling_of
from .sum_rows import verify_sum_kernel, verify_weigh_kernel
from .sums import SUM
from .walk import Out, verify_walk_kernel
from .wanted import Batch

_READS_DRAFT = ("token", "traversal", "lenient")


def verify(
    call: VerifyCall, trace_thresholds: Tensor | None = None, trace_masses: Tensor | None = None
) -> None:
    """Fill the outputs.

    For tests, `trace_thresholds` and `trace_masses` ([R] float64) receive what each tested node's coin was
    compared with and the residual mass that its rejection left; other entries keep what they hold.
    """
    rows, requests, vocab = call.tokens.shape[0], call.seeds.shape[0], call.target_logits.shape[-1]
    rule, width = call.rule, call.out_tokens.shape[1]
    if requests == 0:
        return
    drawn_by = sampling_of(call.sampling, call.sampling_rows)
    drafted_by = sampling_of(call.draft_sampling, call.draft_sampling_rows)
    draft, draft_count = _draft_of(call)
    measured_draft = draft.data is not None and not call.draft_is_logprobs
    sides = 2 if measured_draft or rule == "relaxed" else 1
    cuts, draft_cuts = may_cut(drawn_by), measured_draft and may_cut(drafted_by)
    settling = cuts or draft_cuts or rule == "relaxed"
    summing = draft.data is not None or rule == "typical"
    launch = verify_launch(vocab, max(vocab, draft.size), rule)
    splits, collect, summed, drawn = launch.rows.splits, launch.rows.collect, launch.sums, launch.draw
    scratch = _scratch_of(call, launch, sides, settling, summing)
    batch = Batch(
        call.tokens, call.parents, call.proposals, call.first_child, call.next_sibling,
        call.cu_nodes, call.seeds, call.positions,
    )  # fmt: skip
    given = dict(
        target=target_of(call.target_logits, call.token_bitmask), batch=batch, scratch=scratch, rows=rows
    )
    laws = dict(
        **given,
        draft=draft,
        sampling=drawn_by,
        draft_sampling=drafted_by,
        requests=requests,
        draft_count=draft_count,
    )
    value0 = call.rule_values[0] if call.rule_values else 0.0
    value1 = call.rule_values[1] if len(call.rule_values) > 1 else 0.0
    if rows > 0:
        verify_measure_kernel[(rows, splits.count, 2 if measured_draft else 1)](
            **laws,
            RULE=rule,
            LANES=launch.rows.lanes if settling else 0,
            SPLIT=splits.length,
            SPLITS=splits.padded,
            RACE_TILE=splits.race_tile,
            WHOLE=vocab % splits.length == 0 and draft.size % splits.length == 0,
            num_warps=splits.warps,
            **compiler_options(),
        )
        verify_settle_kernel[(rows, sides)](
            **laws,
            bar=value0,
            RULE=rule,
            LOGPROBS=call.draft_is_logprobs,
            SUMS=summing,
            ALL=trace_masses is not None,
            LANES=launch.rows.lanes if settling else 0,
            SPLIT=splits.length,
            SPLITS=splits.padded,
            num_warps=launch.rows.settle_warps if settling else 1,
            **compiler_options(),
        )
        if settling:
            collecting = dict(**laws, RULE=rule, SPLIT=collect.length, SPLITS=collect.padded)
            verify_collect_kernel[(rows, collect.count, sides)](
                **collecting, num_warps=collect.warps, **compiler_options()
            )
            verify_select_kernel[(rows, sides)](
                **collecting, bar=value0, num_warps=launch.rows.select_warps, **compiler_options()
            )
        if cuts and rule == "match":
            verify_race_kernel[(rows, drawn.count)](
                **given,
                sampling=drawn_by,
                requests=requests,
                SPLIT=drawn.length,
                SPLITS=drawn.padded,
                TILE=drawn.race_tile,
                num_warps=drawn.warps,
            )
        if summing and rule == "traversal":
            verify_weigh_kernel[(requests,)](
                **given,
                draft=draft,
                sampling=drawn_by,
                draft_count=draft_count,
                width=width,
                LOGPROBS=call.draft_is_logprobs,
                ALL=trace_masses is not None,
                TILE=1024,
                num_warps=1,
                **compiler_options(),
            )
        if summing:
            verify_sum_kernel[(rows, summed.count)](
                **given,
                draft=draft,
                sampling=drawn_by,
                requests=requests,
                draft_count=draft_count,
                width=width,
                RULE=rule,
                LOGPROBS=call.draft_is_logprobs,
                ALL=trace_masses is not None,
                SPLIT=summed.length,
                SPLITS=summed.padded,
                TILE=launch.sum_tile,
                num_warps=summed.warps,
                **compiler_options(),
            )
    verify_walk_kernel[(requests,)](
        **given,
        draft=draft,
        sampling=drawn_by,
        out=Out(
            call.out_tokens, call.out_num_tokens, call.out_num_accepted, call.out_path, call.out_logprobs,
            call.out_status, trace_thresholds, trace_masses,
        ),
        draft_count=draft_count,
        width=width,
        value0=value0,
        value1=value1,
        RULE=rule,
        RATES=tuple(call.rule_values) if rule == "synthetic" else (),
        LOGPROBS=call.draft_is_logprobs,
        SUMS=(summed.length, summed.padded) if summing else None,
        TILE=launch.walk_tile,
        num_warps=launch.walk_warps,
        **compiler_options(),
    )  # fmt: skip
    if rule != "match":
        verify_draw_kernel[(requests, drawn.count)](
            **given,
            draft=draft,
            sampling=drawn_by,
            out_tokens_ptr=call.out_tokens,
            out_logprobs_ptr=call.out_logprobs,
            out_status_ptr=call.out_status,
            width=width,
            CUTS=cuts or draft_cuts,
            SPLIT=drawn.length,
            SPLITS=drawn.padded,
            TILE=drawn.race_tile,
            num_warps=drawn.warps,
        )


def _draft_of(call: VerifyCall) -> tuple[Draft, int]:
    """The draft's rows, where the rule reads them, and how many there are."""
    logits = call.draft_logits
    if logits is None or call.rule not in _READS_DRAFT:
        return NO_DRAFT, 0
    chain = logits.shape[1] if logits.dim() == 3 else 0
    draft = Draft(
        data=logits,
        size=logits.shape[-1],
        **layout(logits),
        rows=call.draft_rows,
        chain=chain,
        ids=call.draft_ids,
        columns=call.draft_columns,
    )
    return draft, logits.shape[0] * (chain if logits.dim() == 3 else 1)


def _scratch_of(call: VerifyCall, launch: VerifyLaunch, sides: int, settling: bool, summing: bool) -> Scratch:
    rows, requests = call.tokens.shape[0], call.seeds.shape[0]
    results = rows * sides * max(launch.rows.splits.padded, launch.draw.padded) * RESULT
    return scratch_of(
        call.target_logits.device,
        results,
        sides,
        **settling_of(rows, launch.rows, settling, sides),
        chances=rows * CHANCES,
        weights=rows if summing else 0,
        masses=rows * launch.sums.padded * SUM if summing else 0,
        summed=rows if summing else 0,
        visits=rows * VISIT,
        nodes=rows,
        ranks=rows if call.first_child is not None else 0,
        draws=requests * DRAW,
        winners=requests * launch.draw.padded * RESULT,
    )
