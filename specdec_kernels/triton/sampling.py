# SPDX-License-Identifier: Apache-2.0
"""Sampling of one token per row, in two launches, or five where a cut was asked for, and one more with edits.

edit      (B, splits)   with edits: the scores of the tokens that are edited
measure   (B, splits)   reads each row once, as for `verify`; without cuts it runs the race as well
settle    (B,)          merges a row's law from its splits; writes the token without cuts or if it is certain
collect   (B, splits)   with cuts: reads rows again where they keep more than was listed
select    (B,)          with cuts: settles these
draw      (B, splits)   with cuts, races among what is kept; the last program of a row merges the splits
report    (B, splits)   with `Logprobs`: what is reported of the tokens
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .._ops.calls import SampleCall
from .arguments import (
    OPTIONAL,
    RowsForm,
    Sampling,
    SamplingForm,
    Scratch,
    Target,
    bitmask_of,
    compiler_options,
    edits_of,
    has_cuts,
    may_cut,
    params_of,
    row_data,
    rows_form,
    sampling_form,
    sampling_of,
    scratch_layout,
    scratch_of,
    target_of,
)
from .dispatch import Launch, current, device_of, dtype_of
from .draw import DRAW, arrives_last, draw_words, emit, open_draw, winner_words
from .edits import NO_TREE, edited_target, edits_from
from .launch import RowPasses, row_passes
from .measure import RESULT, Split, load_splits, measure_split, split_results, store_split
from .race import merge_races, race_law
from .random import NEXT
from .report import report
from .row import Row, exponent_of
from .settle import collect_row, is_open, law_of, save_settled, select_row, settle_row, settling_of
from .wanted import TARGET


class _Kernels(NamedTuple):
    """In one form, and how they read rows."""

    measure: Launch
    settle: Launch
    collect: Launch
    select: Launch
    draw: Launch
    passes: RowPasses


@cache
def _kernels(
    device: Any, vocab: int, rows: RowsForm, sampling: SamplingForm, cuts: bool, race: bool, written: Any
) -> _Kernels:
    """Of rows of `vocab` tokens. written: the dtype of tokens, or None."""
    passes = row_passes(vocab)
    splits, collect, aligned = passes.splits, passes.collect, rows.names
    sizes = dict(SPLIT=splits.length, SPLITS=splits.padded)
    collecting = dict(SPLIT=collect.length, SPLITS=collect.padded)
    settling = dict(RACE=race, LANES=passes.lanes if cuts else 0, **sizes)

    def launch(kernel: Any, constants: dict[str, Any], warps: int) -> Launch:
        with current(device):
            options = compiler_options(warps)
        return Launch(
            kernel, device, constants, aligned=aligned, optional=OPTIONAL, num_warps=warps, **options
        )

    raced = dict(TILE=splits.race_tile)
    measuring = dict(**settling, **raced, WHOLE=vocab % splits.length == 0)
    return _Kernels(
        measure=launch(_sample_measure_kernel, measuring, splits.warps),
        settle=launch(_sample_settle_kernel, settling, passes.settle_warps if cuts else 1),
        collect=launch(_sample_collect_kernel, collecting, collect.warps),
        select=launch(_sample_select_kernel, collecting, passes.select_warps),
        draw=launch(_sample_draw_kernel, dict(**sizes, **raced), splits.warps),
        passes=passes,
    )


def sample(call: SampleCall) -> None:
    """Fill the outputs."""
    batch = call.logits.shape[0]
    if batch == 0:
        return
    target = target_of(call.logits, call.token_bitmask)
    if call.edits:
        edits = edits_from(call.edits, call.edit_numbers)
        target = edited_target(target, edits, NO_TREE, None, batch, batch, 0)
    law = sampling_of(call.sampling, call.sampling_rows)
    out = call.out_tokens, call.out_logprobs if call.logprobs_kind == "processed" else None
    cuts = may_cut(law)
    kernels, scratch = settle_rows(target, law, call.seeds, call.positions, *out, race=not cuts)
    if cuts:
        grid = (batch, kernels.passes.splits.count, 1)
        kernels.draw(grid, target, scratch, call.seeds, call.positions, *out)
    if call.out_report:
        report(call, target, law, scratch, unscaled=False)


def settle_rows(
    target: Target,
    sampling: Sampling,
    seeds: Tensor,
    positions: Tensor,
    tokens: Tensor | None,
    logprobs: Tensor | None,
    race: bool,
) -> tuple[_Kernels, Scratch]:
    """Measures and settles rows: two launches, four with cuts, which leave their laws in the scratch. Tokens
    that are certain are written, and with `race`, for laws without cuts, the others as well."""
    (batch, vocab), cuts = target.data.shape, may_cut(sampling)
    form = rows_form(target), sampling_form(sampling), cuts, race, dtype_of(tokens)
    kernels = _kernels(device_of(target.data), vocab, *form)
    passes = kernels.passes
    results = batch * passes.splits.padded * RESULT
    parts = settling_of(batch, passes, cuts)
    layout = scratch_layout(results, **parts, draws=batch * DRAW, winners=results)
    scratch = scratch_of(target.data.device, layout)
    kernels.measure((batch, passes.splits.count, 1), target, sampling, scratch, seeds, positions)
    kernels.settle((batch, 1, 1), target, sampling, scratch, tokens, logprobs)
    if cuts:
        kernels.collect((batch, passes.collect.count, 1), target, sampling, scratch)
        kernels.select((batch, 1, 1), target, sampling, scratch)
    return kernels, scratch


@triton.jit
def _sample_measure_kernel(
    target,
    sampling,
    scratch,
    seeds_ptr,  # [B]
    positions_ptr,  # [B]
    RACE: tl.constexpr,
    LANES: tl.constexpr,
    SPLIT: tl.constexpr,
    SPLITS: tl.constexpr,
    TILE: tl.constexpr,
    WHOLE: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    params = params_of(sampling, b)
    measure_split(
        scratch,
        b,
        TARGET,
        tl.program_id(1),
        Row(row_data(target, b), target.vocab, bitmask_of(target, b), edits_of(target, b)),
        params.temperature,
        True,
        has_cuts(params, target.vocab),
        tl.load(seeds_ptr + b),
        tl.load(positions_ptr + b),
        RACE,
        LANES,
        SPLIT,
        SPLITS,
        TILE,
        WHOLE,
    )


@triton.jit
def _sample_settle_kernel(
    target,
    sampling,
    scratch,
    tokens_ptr,  # [B] or None
    logprobs_ptr,  # [B], optional
    RACE: tl.constexpr,
    LANES: tl.constexpr,
    SPLIT: tl.constexpr,
    SPLITS: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    results = split_results(scratch, b, TARGET, target.vocab, SPLIT, SPLITS)
    params = params_of(sampling, b)
    law, settled, bracket = settle_row(
        scratch,
        b,
        TARGET,
        Row(row_data(target, b), target.vocab, bitmask_of(target, b), edits_of(target, b)),
        results,
        params,
        SPLIT,
        LANES,
        True,
    )
    save_settled(scratch, b, TARGET, law, settled, bracket if LANES > 0 else None)
    open_draw(draw_words(scratch, b))
    if tokens_ptr is not None:
        token = law.point
        if RACE:
            if token < 0:
                scores = results.score * tl.exp2(exponent_of(results.max, law.top, law.slope))
                _, token = merge_races(scores, results.token)
        if token >= 0:
            emit(target, b, law, token.to(tl.int64), tokens_ptr, logprobs_ptr, b)


@triton.jit
def _sample_collect_kernel(target, sampling, scratch, SPLIT: tl.constexpr, SPLITS: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    if is_open(scratch, b, TARGET):
        collect_row(
            scratch,
            b,
            TARGET,
            Row(row_data(target, b), target.vocab, bitmask_of(target, b), edits_of(target, b)),
            tl.program_id(1),
            SPLIT,
            SPLITS,
        )


@triton.jit
def _sample_select_kernel(target, sampling, scratch, SPLIT: tl.constexpr, SPLITS: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    if is_open(scratch, b, TARGET):
        select_row(
            scratch,
            b,
            TARGET,
            Row(row_data(target, b), target.vocab, bitmask_of(target, b), edits_of(target, b)),
            params_of(sampling, b),
            SPLIT,
            SPLITS,
        )


@triton.jit
def _sample_draw_kernel(
    target,
    scratch,
    seeds_ptr,  # [B]
    positions_ptr,  # [B]
    tokens_ptr,  # [B]
    logprobs_ptr,  # [B], optional
    SPLIT: tl.constexpr,
    SPLITS: tl.constexpr,
    TILE: tl.constexpr,
):
    b, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    law = law_of(scratch, b, TARGET)
    if law.point < 0:
        begin = split * SPLIT
        score, token = race_law(
            Row(row_data(target, b), target.vocab, bitmask_of(target, b), edits_of(target, b)),
            begin,
            tl.minimum(begin + SPLIT, target.vocab),
            law,
            tl.load(seeds_ptr + b),
            tl.load(positions_ptr + b),
            NEXT,
            TILE,
        )
        winners = winner_words(scratch, b, SPLITS)
        zero = tl.full([], 0.0, tl.float32)
        store_split(winners, split, Split(law.top, zero, token, zero.to(tl.int32), score, zero))
        if arrives_last(draw_words(scratch, b)):
            raced = load_splits(winners, tl.num_programs(1), SPLITS)
            _, token = merge_races(raced.score, raced.token)
            emit(target, b, law, token.to(tl.int64), tokens_ptr, logprobs_ptr, b)
