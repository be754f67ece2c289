# SPDX-License-Identifier: Apache-2.0
"""Sampling of one token per row, in two or three launches.

measure   (B, splits)   reads each row once, as for `verify`; without cuts it runs the race as well
settle    (B,)          merges a row's law from its splits; writes the token without cuts or if it is certain
draw      (B, splits)   with cuts, races among what is kept; the last program of a row merges the splits
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .._ops.calls import SampleCall
from .arguments import (
    RowsForm,
    Sampling,
    SamplingForm,
    Scratch,
    Target,
    bitmask_row,
    compiler_options,
    may_cut,
    params_of,
    rows_form,
    sampling_form,
    sampling_of,
    scratch_of,
    target_of,
    target_row,
)
from .cuts import BINS
from .dispatch import Launch, current, device_of, dtype_of
from .draw import (
    DRAW,
    arrives_last,
    draw_words,
    emit,
    load_row_law,
    open_draw,
    save_row_law,
    winner_words,
)
from .launch import Splits, row_passes
from .law import target_law
from .measure import RESULT, TARGET, Split, load_splits, measure_split, split_results, store_split
from .race import merge_races, race_law
from .random import NEXT
from .row import exponent_of


class _Kernels(NamedTuple):
    """In one form, and how they read rows."""

    measure: Launch
    settle: Launch
    draw: Launch
    splits: Splits


@cache
def _kernels(
    device: Any, vocab: int, rows: RowsForm, sampling: SamplingForm, cuts: bool, race: bool, written: tuple
) -> _Kernels:
    """Of rows of `vocab` tokens. written: of tokens and log-probabilities, the dtypes or None."""
    passes = row_passes(vocab)
    splits, aligned = passes.splits, rows.names
    sizes = dict(SPLIT=splits.length, SPLITS=splits.padded)
    raced = dict(TILE=splits.race_tile)
    with current(device):
        options = compiler_options(cuts)
    return _Kernels(
        measure=Launch(
            _sample_measure_kernel,
            device,
            dict(RACE=race, **sizes, **raced, WHOLE=vocab % splits.length == 0),
            aligned=aligned,
            num_warps=splits.warps,
        ),
        settle=Launch(
            _sample_settle_kernel,
            device,
            dict(RACE=race, CUTS=cuts, **sizes, TILE=passes.row_tile),
            aligned=aligned,
            num_warps=passes.row_warps,
            **options,
        ),
        draw=Launch(
            _sample_draw_kernel, device, dict(**sizes, **raced), aligned=aligned, num_warps=splits.warps
        ),
        splits=splits,
    )


def sample(call: SampleCall) -> None:
    """Fill the outputs, in two launches; in three where a cut was asked for."""
    batch = call.logits.shape[0]
    if batch == 0:
        return
    target = target_of(call.logits, call.token_bitmask)
    law = sampling_of(call.sampling, call.sampling_rows)
    out = call.out_tokens, call.out_logprobs
    cuts = may_cut(law)
    kernels, scratch = settle_rows(target, law, call.seeds, call.positions, *out, race=not cuts)
    if cuts:
        kernels.draw((batch, kernels.splits.count, 1), target, scratch, call.seeds, call.positions, *out)


def settle_rows(
    target: Target,
    sampling: Sampling,
    seeds: Tensor,
    positions: Tensor,
    tokens: Tensor | None,
    logprobs: Tensor | None,
    race: bool,
) -> tuple[_Kernels, Scratch]:
    """Measures and settles rows: two launches, which leave their laws in the scratch. Tokens that are certain
    are written, and with `race`, for laws without cuts, the others as well."""
    (batch, vocab), cuts = target.data.shape, may_cut(sampling)
    written = dtype_of(tokens), dtype_of(logprobs)
    kernels = _kernels(
        device_of(target.data), vocab, rows_form(target), sampling_form(sampling), cuts, race, written
    )
    splits = kernels.splits
    results = batch * splits.padded * RESULT
    scratch = scratch_of(
        target.data.device,
        results,
        bins=batch * BINS.value if cuts else 0,
        draws=batch * DRAW,
        winners=results,
    )
    kernels.measure((batch, splits.count, 1), target, sampling, scratch, seeds, positions)
    kernels.settle((batch, 1, 1), target, sampling, scratch, tokens, logprobs)
    return kernels, scratch


@triton.jit
def _sample_measure_kernel(
    target,
    sampling,
    scratch,
    seeds_ptr,  # [B]
    positions_ptr,  # [B]
    RACE: tl.constexpr,
    SPLIT: tl.constexpr,
    SPLITS: tl.constexpr,
    TILE: tl.constexpr,
    WHOLE: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    measure_split(
        scratch, b, TARGET, tl.program_id(1),
        target_row(target, b), target.vocab, bitmask_row(target, b),
        params_of(sampling, b).temperature, True, tl.load(seeds_ptr + b), tl.load(positions_ptr + b),
        RACE, SPLIT, SPLITS, TILE, WHOLE,
    )  # fmt: skip


@triton.jit
def _sample_settle_kernel(
    target,
    sampling,
    scratch,
    tokens_ptr,  # [B] or None
    logprobs_ptr,  # [B] or None
    RACE: tl.constexpr,
    CUTS: tl.constexpr,
    SPLIT: tl.constexpr,
    SPLITS: tl.constexpr,
    TILE: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    bins = (scratch.words + scratch.bins).to(tl.pointer_type(tl.int64)) + b * BINS
    law, _status = target_law(target, scratch, b, params_of(sampling, b), bins, CUTS, SPLIT, SPLITS, TILE)
    save_row_law(draw_words(scratch, b), law)
    open_draw(draw_words(scratch, b))
    if tokens_ptr is not None:
        token = law.point
        if RACE:
            if token < 0:
                raced = split_results(scratch, b, TARGET, target.vocab, SPLIT, SPLITS)
                scores = raced.score * tl.exp2(exponent_of(raced.max, law.top, law.slope))
                _, token = merge_races(scores, raced.token)
        if token >= 0:
            emit(target, b, law, token.to(tl.int64), tokens_ptr, logprobs_ptr, b)


@triton.jit
def _sample_draw_kernel(
    target,
    scratch,
    seeds_ptr,  # [B]
    positions_ptr,  # [B]
    tokens_ptr,  # [B]
    logprobs_ptr,  # [B] or None
    SPLIT: tl.constexpr,
    SPLITS: tl.constexpr,
    TILE: tl.constexpr,
):
    b, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    law = load_row_law(draw_words(scratch, b))
    if law.point < 0:
        begin = split * SPLIT
        score, token = race_law(
            target_row(target, b), begin, tl.minimum(begin + SPLIT, target.vocab), target.vocab,
            bitmask_row(target, b),
            law.top, law.slope, law.cut,
            tl.load(seeds_ptr + b), tl.load(positions_ptr + b), NEXT,
            TILE,
        )  # fmt: skip
        winners = winner_words(scratch, b, SPLITS)
        zero = tl.full([], 0, tl.int32)
        store_split(winners, split, Split(law.top, zero.to(tl.float32), token, zero, score))
        if arrives_last(draw_words(scratch, b)):
            raced = load_splits(winners, tl.num_programs(1), SPLITS)
            _, token = merge_races(raced.score, raced.token)
            emit(target, b, law, token.to(tl.int64), tokens_ptr, logprobs_ptr, b)
