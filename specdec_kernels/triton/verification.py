# SPDX-License-Identifier: Apache-2.0
"""Verification in three launches, whatever the rule, the options, the data or the tree.

measure   (R, splits, 1 or 2)   reads every row once, and finds what its law needs to know of it
walk      (B,)                  follows the rule, and leaves the law of the next token, as scalars
draw      (B, splits)           races for the next token; the last program of a request merges the splits

Under `match` the walk finds the next token itself, and there is no third launch.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._ops.calls import VerifyCall
from .arguments import (
    NO_DRAFT,
    PARAMS,
    Draft,
    RowsForm,
    SamplingForm,
    compiler_options,
    draft_aligned,
    draft_form,
    layout,
    may_cut,
    rows_form,
    sampling_form,
    sampling_of,
    scratch_of,
    target_of,
)
from .cuts import BINS
from .dispatch import Launch, current, device_of
from .draw import DRAW, verify_draw_kernel
from .launch import VerifyLaunch, verify_launch
from .measure import RESULT, verify_measure_kernel
from .walk import VISIT, verify_walk_kernel

_READS_DRAFT = ("token", "traversal", "lenient")


class _Form(NamedTuple):
    """What the kernels depend on."""

    device: Any
    rule: str
    rates: tuple[float, ...]  # of `Synthetic`
    target: RowsForm
    vocab: int
    draft: tuple[torch.dtype | None, ...]  # its rows, their indices, and the ids and columns of its tokens
    draft_vocab: int
    draft_aligned: bool
    draft_is_logprobs: bool
    sampling: SamplingForm
    draft_sampling: SamplingForm
    cuts: bool
    draft_cuts: bool
    links: bool
    others: tuple[bool, ...]  # outputs that may be left out: whether they are there


class _Kernels(NamedTuple):
    """In one form, and how they read rows."""

    measure: Launch
    walk: Launch
    draw: Launch
    launch: VerifyLaunch


@cache
def _kernels(form: _Form) -> _Kernels:
    vocab, size, cuts, device = form.vocab, form.draft_vocab, form.cuts or form.draft_cuts, form.device
    measured = vocab if form.draft_is_logprobs else max(vocab, size)
    launch = verify_launch(vocab, measured, form.rule, cuts)
    rows, draw = launch.rows.splits, launch.draw
    aligned = form.target._replace(aligned=form.target.aligned and form.draft_aligned).names
    splits = dict(RULE=form.rule, CUTS=form.cuts, SPLIT=rows.length, SPLITS=rows.padded)
    whole = vocab % rows.length == 0 and size % rows.length == 0
    walking = dict(DRAFT_CUTS=form.draft_cuts, LOGPROBS=form.draft_is_logprobs, TILE=launch.rows.row_tile)
    drawing = dict(SPLIT=draw.length, SPLITS=draw.padded, TILE=draw.race_tile)
    with current(device):
        options = compiler_options(cuts)
    return _Kernels(
        measure=Launch(
            verify_measure_kernel,
            device,
            dict(**splits, RACE_TILE=rows.race_tile, WHOLE=whole),
            aligned=aligned,
            num_warps=rows.warps,
        ),
        walk=Launch(
            verify_walk_kernel,
            device,
            dict(**splits, **walking, RATES=form.rates),
            aligned=aligned,
            num_warps=launch.rows.row_warps,
            **options,
        ),
        draw=Launch(
            verify_draw_kernel,
            device,
            dict(LINKS=form.links, CUTS=cuts, **drawing),
            aligned=aligned,
            num_warps=draw.warps,
        ),
        launch=launch,
    )


def _draft(call: VerifyCall) -> tuple[Draft, int]:
    """The draft's rows, and how many there are."""
    logits = call.draft_logits
    if logits is None or call.rule not in _READS_DRAFT:
        return NO_DRAFT, 0
    chain = logits.shape[1] if logits.dim() == 3 else 0
    draft = Draft(
        logits, logits.shape[-1], *layout(logits),
        call.draft_rows, chain, call.draft_ids, call.draft_columns,
    )  # fmt: skip
    return draft, logits.shape[0] * (chain if logits.dim() == 3 else 1)


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
    rule, links, values = call.rule, call.first_child is not None, call.rule_values
    target, (draft, count) = target_of(call.target_logits, call.token_bitmask), _draft(call)
    drawn_by = sampling_of(call.sampling, call.sampling_rows)
    drafted_by = sampling_of(call.draft_sampling, call.draft_sampling_rows)
    both_measured = draft.data is not None and not call.draft_is_logprobs
    sides, cuts, draft_cuts = 1 + both_measured, may_cut(drawn_by), both_measured and may_cut(drafted_by)
    kernels = _kernels(
        _Form(
            device_of(target.data), rule, tuple(values) if rule == "synthetic" else (),
            rows_form(target), target.vocab,
            draft_form(draft), draft.size, draft_aligned(draft), call.draft_is_logprobs,
            sampling_form(drawn_by), sampling_form(drafted_by),
            cuts, draft_cuts, links,
            (call.out_logprobs is not None, trace_thresholds is not None, trace_masses is not None),
        )
    )  # fmt: skip
    measured, drawn = kernels.launch.rows.splits, kernels.launch.draw
    scratch = scratch_of(
        call.target_logits.device,
        rows * sides * measured.padded * RESULT,
        sides,
        params=requests * PARAMS,
        visits=rows * VISIT,
        nodes=rows,
        ranks=rows if links else 0,
        bins=requests * BINS.value if cuts or draft_cuts or rule == "relaxed" else 0,
        draws=requests * DRAW,
        winners=requests * drawn.padded * RESULT,
    )
    if rows > 0:
        kernels.measure(
            (rows, measured.count, sides),
            target, draft, drawn_by, drafted_by,
            call.tokens, call.parents, call.proposals, call.cu_nodes, call.seeds, call.positions,
            scratch, rows, requests, count,
        )  # fmt: skip
    width = call.out_tokens.shape[1]
    kernels.walk(
        (requests, 1, 1),
        target, draft, drawn_by, drafted_by,
        call.tokens, call.parents, call.proposals, call.first_child, call.next_sibling,
        call.cu_nodes, call.seeds, call.positions,
        scratch,
        call.out_tokens, call.out_num_tokens, call.out_num_accepted, call.out_path,
        call.out_logprobs, call.out_status, trace_thresholds, trace_masses,
        rows, count, width, values[0] if values else 0.0, values[1] if len(values) > 1 else 0.0,
    )  # fmt: skip
    if rule != "match":
        kernels.draw(
            (requests, drawn.count, 1),
            target, draft, drawn_by, call.cu_nodes, call.seeds, call.positions, scratch,
            call.out_tokens, call.out_logprobs, call.out_status, rows, width,
        )  # fmt: skip
