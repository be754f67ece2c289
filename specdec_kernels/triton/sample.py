"""Plain one-token sampling.

measure   (B, splits)   each row once: partial results; without cuts also the race
settle    (B,)          their merging; greedy and empty rows; the cut, or without cuts the token
draw      (B, splits)   with cuts: the race among what is kept; the last program of a row merges
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cuts import BINS, row_cut
from .launch import row_passes
from .logarithm import log
from .race import merge_races, race_law
from .random import NEXT
from .row import (
    LOG2E,
    exponent_of,
    lowest_allowed,
    measure,
    merge,
    merge_first,
    number_of,
    read_row,
    slope_of,
)


def sample(
    logits: Tensor,
    sampling: list[float],
    sampling_rows: list[Tensor | None],
    seeds: Tensor,
    positions: Tensor,
    token_bitmask: Tensor | None,
    out_tokens: Tensor,
    out_logprobs: Tensor | None,
) -> None:
    """The operator `specdec_kernels::sample`: two launches, three where a cut was asked for."""
    batch, vocab = logits.shape
    if batch == 0:
        return
    temperature, top_k, top_p, min_p = sampling
    rows = sampling_rows or [None] * 4
    cuts = top_k >= 1 or top_p < 1 or min_p > 0 or any(row is not None for row in rows[1:])
    passes = row_passes(vocab)
    device = logits.device
    partials = torch.empty(4, batch, passes.splits, dtype=torch.float32, device=device)
    laws = torch.empty(4, batch, dtype=torch.float32, device=device)
    bins = torch.empty(batch, BINS.value, dtype=torch.int64, device=device) if cuts else None
    arrived = torch.empty(batch, dtype=torch.int32, device=device)
    row = dict(
        logits_ptr=logits,
        bitmask_ptr=token_bitmask,
        vocab=vocab,
        stride_logits_b=logits.stride(0),
        stride_bitmask_b=0 if token_bitmask is None else token_bitmask.stride(0),
    )
    split = dict(SPLIT=passes.split, RACE_TILE=passes.race_tile, num_warps=passes.split_warps)
    _measure_kernel[(batch, passes.splits)](
        **row,
        temperature_ptr=rows[0],
        seeds_ptr=seeds,
        positions_ptr=positions,
        partials_ptr=partials,
        arrived_ptr=arrived,
        temperature=temperature,
        RACE=not cuts,
        **split,
    )
    _settle_kernel[(batch,)](
        **row,
        temperature_ptr=rows[0],
        top_k_ptr=rows[1],
        top_p_ptr=rows[2],
        min_p_ptr=rows[3],
        partials_ptr=partials,
        bins_ptr=bins,
        laws_ptr=laws,
        tokens_ptr=out_tokens,
        logprobs_ptr=out_logprobs,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        splits=passes.splits,
        CUTS=cuts,
        SPLITS=passes.padded_splits,
        TILE=passes.row_tile,
        num_warps=passes.row_warps,
    )
    if cuts:
        _draw_kernel[(batch, passes.splits)](
            **row,
            seeds_ptr=seeds,
            positions_ptr=positions,
            laws_ptr=laws,
            partials_ptr=partials,
            arrived_ptr=arrived,
            tokens_ptr=out_tokens,
            logprobs_ptr=out_logprobs,
            SPLITS=passes.padded_splits,
            **split,
        )


@triton.jit
def _measure_kernel(
    logits_ptr,  # [B, V]
    bitmask_ptr,  # [B, ceil(V / 32)] or None
    temperature_ptr,  # [B] or None
    seeds_ptr,  # [B]
    positions_ptr,  # [B]
    partials_ptr,  # [4, B, splits]: max, mass, first or the race's token, the race's score
    arrived_ptr,  # [B]
    vocab,
    stride_logits_b,
    stride_bitmask_b,
    temperature,
    RACE: tl.constexpr,
    SPLIT: tl.constexpr,
    RACE_TILE: tl.constexpr,
):
    b, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row_ptr = logits_ptr + b * stride_logits_b
    if bitmask_ptr is not None:
        bitmask_ptr += b * stride_bitmask_b
    t = number_of(temperature_ptr, temperature, b)
    slope = slope_of(t)
    greedy = (t > 0) == 0
    begin = split * SPLIT
    offsets = begin + tl.arange(0, SPLIT)
    max, mass, token, _ = measure(read_row(row_ptr, offsets, vocab, bitmask_ptr), offsets, slope, greedy)
    score = tl.full([], 0.0, tl.float32)
    if RACE:
        if (t > 0) & (mass > 0):
            score, token = race_law(
                row_ptr, begin, tl.minimum(begin + SPLIT, vocab), vocab, bitmask_ptr,
                max, slope, max,
                tl.load(seeds_ptr + b), tl.load(positions_ptr + b), NEXT,
                RACE_TILE, False,
            )  # fmt: skip
    plane = tl.num_programs(0).to(tl.int64) * tl.num_programs(1)
    partial_ptr = partials_ptr + b * tl.num_programs(1) + split
    tl.store(partial_ptr, max)
    tl.store(partial_ptr + plane, mass)
    tl.store(partial_ptr + 2 * plane, token.to(tl.float32, bitcast=True))
    tl.store(partial_ptr + 3 * plane, score)
    if split == 0:
        tl.store(arrived_ptr + b, 0)


@triton.jit
def _finish(token, row_ptr, max, slope, mass, b, tokens_ptr, logprobs_ptr):
    """Writes a drawn token and its log-probability."""
    tl.store(tokens_ptr + b, token.to(tl.int64))
    if logprobs_ptr is not None:
        x = tl.load(row_ptr + token).to(tl.float32)
        tl.store(logprobs_ptr + b, exponent_of(x, max, slope) / LOG2E - log(mass))


@triton.jit
def _settle_kernel(
    logits_ptr,  # [B, V]
    bitmask_ptr,  # [B, ceil(V / 32)] or None
    temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr,  # [B] or None
    partials_ptr,  # [4, B, splits]
    bins_ptr,  # [B, BINS], or None without cuts
    laws_ptr,  # [4, B]: max, slope, cut, mass; mass 0 where the token is settled
    tokens_ptr,  # [B]
    logprobs_ptr,  # [B] or None
    vocab,
    stride_logits_b,
    stride_bitmask_b,
    temperature, top_k, top_p, min_p,
    splits,
    CUTS: tl.constexpr,
    SPLITS: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    b, batch = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    row_ptr = logits_ptr + b * stride_logits_b
    if bitmask_ptr is not None:
        bitmask_ptr += b * stride_bitmask_b
    t = number_of(temperature_ptr, temperature, b)
    slope = slope_of(t)
    lane = tl.arange(0, SPLITS)
    here = lane < splits
    partial_ptr = partials_ptr + b * splits + lane
    plane = batch * splits
    maxima = tl.load(partial_ptr, mask=here, other=float("-inf"))
    max, mass = merge(maxima, tl.load(partial_ptr + plane, mask=here, other=0.0), slope)
    partial_tokens = tl.load(partial_ptr + 2 * plane, mask=here, other=0.0).to(tl.int32, bitcast=True)
    if (max == float("-inf")) | ((t > 0) == 0):
        token = merge_first(maxima, partial_tokens, max)
        if max == float("-inf"):
            token = lowest_allowed(bitmask_ptr, vocab, TILE)
        tl.store(tokens_ptr + b, token.to(tl.int64))
        if logprobs_ptr is not None:
            tl.store(logprobs_ptr + b, 0.0)
        tl.store(laws_ptr + 3 * batch + b, 0.0)
    elif CUTS:
        cut = float("-inf")
        if max < float("inf"):
            cut, mass = row_cut(
                row_ptr, vocab, bitmask_ptr, bins_ptr + b * BINS,
                slope, max, mass,
                number_of(top_k_ptr, top_k, b),
                number_of(top_p_ptr, top_p, b),
                number_of(min_p_ptr, min_p, b),
                TILE,
            )  # fmt: skip
        tl.store(laws_ptr + b, max)
        tl.store(laws_ptr + batch + b, slope)
        tl.store(laws_ptr + 2 * batch + b, cut)
        tl.store(laws_ptr + 3 * batch + b, mass)
    else:
        scores = tl.load(partial_ptr + 3 * plane, mask=here, other=0.0)
        _, token = merge_races(scores * tl.exp2(exponent_of(maxima, max, slope)), partial_tokens)
        _finish(token, row_ptr, max, slope, mass, b, tokens_ptr, logprobs_ptr)


@triton.jit
def _draw_kernel(
    logits_ptr,  # [B, V]
    bitmask_ptr,  # [B, ceil(V / 32)] or None
    seeds_ptr,  # [B]
    positions_ptr,  # [B]
    laws_ptr,  # [4, B]
    partials_ptr,  # [2, B, splits]: score, token
    arrived_ptr,  # [B]
    tokens_ptr,  # [B]
    logprobs_ptr,  # [B] or None
    vocab,
    stride_logits_b,
    stride_bitmask_b,
    SPLITS: tl.constexpr,
    SPLIT: tl.constexpr,
    RACE_TILE: tl.constexpr,
):
    b, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    batch, splits = tl.num_programs(0).to(tl.int64), tl.num_programs(1)
    mass = tl.load(laws_ptr + 3 * batch + b)
    if mass > 0:
        row_ptr = logits_ptr + b * stride_logits_b
        if bitmask_ptr is not None:
            bitmask_ptr += b * stride_bitmask_b
        max = tl.load(laws_ptr + b)
        slope = tl.load(laws_ptr + batch + b)
        begin = split * SPLIT
        score, token = race_law(
            row_ptr, begin, tl.minimum(begin + SPLIT, vocab), vocab, bitmask_ptr,
            max, slope, tl.load(laws_ptr + 2 * batch + b),
            tl.load(seeds_ptr + b), tl.load(positions_ptr + b), NEXT,
            RACE_TILE, True,
        )  # fmt: skip
        plane = batch * splits
        tl.store(partials_ptr + b * splits + split, score)
        tl.store(partials_ptr + plane + b * splits + split, token.to(tl.float32, bitcast=True))
        tl.debug_barrier()
        if tl.atomic_add(arrived_ptr + b, 1, sem="acq_rel") == splits - 1:
            lane = tl.arange(0, SPLITS)
            here = lane < splits
            partial_ptr = partials_ptr + b * splits + lane
            scores = tl.load(partial_ptr, mask=here, other=0.0)
            tokens = tl.load(partial_ptr + plane, mask=here, other=0.0).to(tl.int32, bitcast=True)
            _, token = merge_races(scores, tokens)
            _finish(token, row_ptr, max, slope, mass, b, tokens_ptr, logprobs_ptr)
