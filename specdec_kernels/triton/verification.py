# SPDX-License-Identifier: Apache-2.0
"""Verification in launches whose number depends on which arguments are given, and never on data or on the
tree.

rows      (R,)                  with rows by number, none of last nodes, or ends: the row of each node
edit      (R, splits)           with edits: the scores of the tokens that are edited
measure   (R, splits, 1 or 2)   reads every row once, and finds what its law needs to know of it
settle    (R, 1 or 2)           merges the laws, and finds their cuts among the largest scores
collect   (R, splits, 1 or 2)   with cuts: reads rows again where they keep more than was listed
select    (R, 1 or 2)           with cuts: settles these
race      (R, splits)           under `match` with cuts: draws the target's own tokens
weigh     (B,)                  under `traversal` with draft logits: weights that reach nodes
sum       (R, splits)           with draft logits, or for entropies: sums over rows that the rule asks for
walk      (B,)                  follows the rule, and leaves the law of the next token, as scalars
draw      (B, splits)           but for `match`: races for the next token; the last program merges
report    (B W, splits)         with `Logprobs` or `Masks`: what is reported of emitted tokens
ids       (B W, splits)         with masks as ids
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._ops.calls import VerifyCall
from ..rules import READS_DRAFT
from .arguments import (
    NO_DRAFT,
    OPTIONAL,
    Draft,
    RowsForm,
    SamplingForm,
    Scratch,
    compiler_options,
    draft_aligned,
    draft_form,
    layout,
    may_cut,
    rows_form,
    sampling_form,
    sampling_of,
    scratch_layout,
    scratch_of,
    target_of,
)
from .chances import CHANCES
from .dispatch import Launch, current, device_of, dtype_of
from .draw import DRAW, verify_draw_kernel
from .edits import edited_target, edits_from
from .ends import NO_ENDS, ends_of
from .launch import VerifyLaunch, verify_launch
from .laws import verify_collect_kernel, verify_select_kernel, verify_settle_kernel
from .measure import RESULT, verify_measure_kernel
from .report import report
from .rule_match import verify_race_kernel
from .rule_traversal import VISIT
from .settle import settling_of
from .sum_rows import verify_sum_kernel, verify_weigh_kernel
from .sums import SUM
from .walk import Out, verify_walk_kernel
from .wanted import Batch, row_numbers


class _Form(NamedTuple):
    """What the kernels depend on."""

    device: Any
    rule: str
    rates: tuple[float, ...]  # of `Synthetic`; () where they are a tensor
    target: RowsForm
    vocab: int
    draft: tuple[Any, ...]  # its rows, the ids and columns of its tokens, and what they are
    draft_vocab: int
    draft_aligned: bool
    draft_is_law: bool
    sampling: SamplingForm
    draft_sampling: SamplingForm | None  # None = as `sampling`
    cuts: bool
    draft_cuts: bool
    links: bool
    tokens: tuple[torch.dtype | None, ...]  # dtypes of bonus tokens and of those that are written
    rated: bool  # with rates of `Synthetic` in a tensor
    traced: tuple[bool, bool]  # thresholds and masses, for tests
    reported: bool  # more of emitted tokens than their log-probabilities under the processed law

    @property
    def drafted(self) -> bool:
        return self.draft[0] is not None

    @property
    def settling(self) -> bool:
        """Whether thresholds are looked for."""
        return self.cuts or self.draft_cuts or self.rule == "relaxed"

    @property
    def summing(self) -> bool:
        return self.drafted or self.rule in ("typical", "deferred")

    @property
    def measured_sides(self) -> int:
        return 2 if self.drafted and not self.draft_is_law else 1

    @property
    def sides(self) -> int:
        return 2 if self.rule == "relaxed" else self.measured_sides


class _Kernels(NamedTuple):
    """In one form, and how they read rows."""

    measure: Launch
    settle: Launch
    collect: Launch
    select: Launch
    race: Launch
    weigh: Launch
    sum: Launch
    walk: Launch
    draw: Launch
    launch: VerifyLaunch


@cache
def _kernels(form: _Form) -> _Kernels:
    longest = max(form.vocab, form.draft_vocab)
    mapped = form.target.masked and form.draft[1] is not None
    launch = verify_launch(form.vocab, longest, form.rule, form.target.edited, mapped)
    rows, collect, sums, draw = launch.rows.splits, launch.rows.collect, launch.sums, launch.draw
    aligned = form.target._replace(aligned=form.target.aligned and form.draft_aligned).names
    lanes = launch.rows.lanes if form.settling else 0
    rule, logprobs = dict(RULE=form.rule), dict(LOGPROBS=form.draft_is_law)
    splits = dict(SPLIT=rows.length, SPLITS=rows.padded)
    whole = form.vocab % rows.length == 0 and form.draft_vocab % rows.length == 0
    measuring = dict(**rule, LANES=lanes, **splits, RACE_TILE=rows.race_tile, WHOLE=whole)
    settling = dict(**rule, **logprobs, SUMS=form.summing, ALL=form.traced[1], LANES=lanes, **splits)
    collecting = dict(**rule, SPLIT=collect.length, SPLITS=collect.padded)
    racing = dict(SPLIT=draw.length, SPLITS=draw.padded, TILE=draw.race_tile)
    weighing = dict(**logprobs, ALL=form.traced[1], TILE=launch.sum_tile)
    summing = dict(**rule, **logprobs, SPLIT=sums.length, SPLITS=sums.padded, TILE=launch.sum_tile)
    summed = (sums.length, sums.padded) if form.summing else None
    walking = dict(**rule, RATES=form.rates, **logprobs, SUMS=summed, TILE=launch.walk_tile)

    def kernel(function: Any, constants: dict[str, Any], warps: int) -> Launch:
        with current(form.device):
            options = compiler_options(warps)
        return Launch(
            function, form.device, constants, aligned=aligned, optional=OPTIONAL, num_warps=warps, **options
        )

    settle_warps = launch.rows.settle_warps if form.settling else 1
    return _Kernels(
        measure=kernel(verify_measure_kernel, measuring, rows.warps),
        settle=kernel(verify_settle_kernel, settling, settle_warps),
        collect=kernel(verify_collect_kernel, collecting, collect.warps),
        select=kernel(verify_select_kernel, collecting, launch.rows.select_warps),
        race=kernel(verify_race_kernel, racing, draw.warps),
        weigh=kernel(verify_weigh_kernel, weighing, 1),
        sum=kernel(verify_sum_kernel, summing, sums.warps),
        walk=kernel(verify_walk_kernel, walking, launch.walk_warps),
        draw=kernel(
            verify_draw_kernel,
            dict(CUTS=form.cuts or form.draft_cuts, KEEP=form.reported, **racing),
            draw.warps,
        ),
        launch=launch,
    )


@lru_cache(maxsize=4096)
def _layout(form: _Form, launch: VerifyLaunch, rows: int, requests: int) -> tuple[int, Scratch]:
    summing, raced = form.summing, max(launch.rows.splits.padded, launch.draw.padded)
    return scratch_layout(
        rows * form.sides * raced * RESULT,
        form.sides,
        **settling_of(rows, launch.rows, form.settling, form.sides),
        chances=rows * CHANCES,
        weights=rows if summing else 0,
        masses=rows * launch.sums.padded * SUM if summing else 0,
        summed=rows if summing else 0,
        visits=rows * VISIT,
        nodes=rows,
        owners=rows,
        ranks=rows if form.links else 0,
        draws=requests * DRAW,
        winners=requests * launch.draw.padded * RESULT,
    )


def _draft(call: VerifyCall) -> tuple[Draft, int]:
    """The draft's rows, and how many there are."""
    logits = call.draft_logits
    if logits is None or call.rule not in READS_DRAFT:
        return NO_DRAFT, 0
    chain = logits.shape[1] if logits.dim() == 3 else 0
    draft = Draft(
        logits, logits.shape[-1], *layout(logits),
        call.draft_rows, chain, call.draft_ids, call.draft_columns, 1 if call.draft_is_probs else None,
    )  # fmt: skip
    return draft, logits.shape[0] * (chain if logits.dim() == 3 else 1)


def _batch(call: VerifyCall) -> Batch:
    return Batch(
        call.tokens, call.parents, call.proposals, call.first_child, call.next_sibling,
        call.cu_nodes, call.seeds, call.positions, call.bonus_tokens,
    )  # fmt: skip


def verify(
    call: VerifyCall, trace_thresholds: Tensor | None = None, trace_masses: Tensor | None = None
) -> None:
    """Fill the outputs.

    For tests, `trace_thresholds` and `trace_masses` ([R] float64) receive what each tested node's coin was
    compared with and the residual mass that its rejection left; other entries keep what they hold.
    """
    rows, requests = call.tokens.shape[0], call.seeds.shape[0]
    if requests == 0:
        return
    rule, values, width = call.rule, call.rule_values, call.out_tokens.shape[1]
    ends, batch, numbers = ends_of(call), _batch(call), None
    if call.target_rows is not None or call.rows_end_early or ends is not NO_ENDS:
        numbers = row_numbers(batch, call.target_rows, call.rows_end_early, ends, call.target_logits)
    target, (draft, count) = target_of(call.target_logits, call.token_bitmask, numbers), _draft(call)
    if call.edits:
        edits = edits_from(call.edits, call.edit_numbers)
        target = edited_target(target, edits, batch, call.out_status, rows, requests, width - 1)
    drafted = draft.data is not None  # and read by the rule
    given = drafted and (call.draft_is_logprobs or call.draft_is_probs)
    measured = drafted and not given
    reported = bool(call.out_report or call.out_masks)
    logprobs = call.out_logprobs if call.logprobs_kind == "processed" else None
    drawn_by, drafted_by = sampling_of(call.sampling, call.sampling_rows), None
    drawn_form, drafted_form = sampling_form(drawn_by), None
    cuts = draft_cuts = may_cut(drawn_by)
    if measured and (
        call.draft_sampling is not call.sampling or call.draft_sampling_rows is not call.sampling_rows
    ):
        drafted_by = sampling_of(call.draft_sampling, call.draft_sampling_rows)
        drafted_form, draft_cuts = sampling_form(drafted_by), may_cut(drafted_by)
    form = _Form(
        device_of(target.data), rule, tuple(values) if rule == "synthetic" else (),
        rows_form(target), target.vocab,
        draft_form(draft), draft.size, draft_aligned(draft), given,
        drawn_form, drafted_form,
        cuts, measured and draft_cuts, call.first_child is not None,
        (dtype_of(call.bonus_tokens), call.out_tokens.dtype), call.rule_rates is not None,
        (trace_thresholds is not None, trace_masses is not None), reported,
    )  # fmt: skip
    kernels = _kernels(form)
    launch = kernels.launch
    scratch = scratch_of(target.data.device, _layout(form, launch, rows, requests))
    value0 = values[0] if values else 0.0
    if rows > 0:
        laws = target, draft, drawn_by, drafted_by, batch, scratch, rows, requests, count
        kernels.measure((rows, launch.rows.splits.count, form.measured_sides), *laws)
        kernels.settle((rows, form.sides, 1), *laws, value0)
        if form.settling:
            kernels.collect((rows, launch.rows.collect.count, form.sides), *laws)
            kernels.select((rows, form.sides, 1), *laws, value0)
        if form.cuts and rule == "match":
            kernels.race((rows, launch.draw.count, 1), target, drawn_by, batch, scratch, rows, requests)
        if form.summing:
            if rule == "traversal":
                plain = target
                if form.target.masked or form.target.edited:
                    plain = target._replace(bitmask=None, bitmask_stride=0, edits=None, edits_stride=None)
                kernels.weigh((requests, 1, 1), plain, draft, drawn_by, batch, scratch, rows, count, width)
            kernels.sum(
                (rows, launch.sums.count, 1),
                target, draft, drawn_by, batch, scratch, rows, requests, count, width,
            )  # fmt: skip
    out = Out(
        call.out_tokens, call.out_num_tokens, call.out_num_accepted, call.out_path, logprobs,
        call.out_status, trace_thresholds, trace_masses,
    )  # fmt: skip
    kernels.walk(
        (requests, 1, 1),
        target, draft, drawn_by, batch, scratch, out,
        rows, count, width, value0, values[1] if len(values) > 1 else 0.0,
        call.rule_rates, 0 if call.rule_rates is None else call.rule_rates.shape[0], ends,
    )  # fmt: skip
    if rule != "match":
        kernels.draw(
            (requests, launch.draw.count, 1),
            target, draft, drawn_by, batch, scratch,
            call.out_tokens, logprobs, call.out_status, ends, rows, width,
        )  # fmt: skip
    if reported:
        report(call, target, drawn_by, scratch, rule in ("typical", "relaxed", "deferred"))
