"""Children of a draft tree's nodes.

measure, settle         the laws of the rows, as for `sample`
list      (N, splits)   of every split: its likeliest tokens, the first finishers of its race, or both
merge     (N,)          the lists of all splits, merged from their heads

A race is run on the logarithms, log2(weight) - log2(E), so that weights far below the largest still race.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cuts import BINS
from .launch import row_passes
from .logarithm import log
from .random import race_key, race_words
from .row import LOG2E, NO_TOKEN, exponent_of, read_row
from .sample import _measure_kernel, _settle_kernel

METHODS = ("independent", "without_replacement", "top_k", "hybrid")
INDEPENDENT, WITHOUT_REPLACEMENT, TOP_K, HYBRID = (tl.constexpr(number) for number in range(4))
_NOTHING = tl.constexpr(float("-inf"))


def sample_children(
    logits: Tensor,
    method: str,
    sampling: list[float],
    sampling_rows: list[Tensor | None],
    seeds: Tensor,
    positions: Tensor,
    nodes: Tensor,
    purpose: int,
    out_tokens: Tensor,
    out_scores: Tensor,
) -> None:
    """The operator `specdec_kernels::sample_children`: four launches."""
    (rows, vocab), k = logits.shape, out_tokens.shape[1]
    if rows == 0:
        return
    temperature, top_k, top_p, min_p = sampling
    values = sampling_rows or [None] * 4
    passes = row_passes(vocab)
    empty = lambda shape, dtype: torch.empty(shape, dtype=dtype, device=logits.device)  # noqa: E731
    partials = empty((4, rows, passes.splits), torch.float32)
    laws = empty((4, rows), torch.float32)
    points = empty(rows, torch.int64)
    lists = 2 if method == "hybrid" else 1
    scores = empty((lists, rows, passes.splits, k), torch.float32)
    tokens = empty((lists, rows, passes.splits, k), torch.int32)
    row = dict(logits_ptr=logits, vocab=vocab, stride_logits_b=logits.stride(0))
    unmasked = dict(bitmask_ptr=None, stride_bitmask_b=0)
    _measure_kernel[(rows, passes.splits)](
        **row,
        **unmasked,
        temperature_ptr=values[0],
        seeds_ptr=seeds,
        positions_ptr=positions,
        partials_ptr=partials,
        arrived_ptr=empty(rows, torch.int32),
        temperature=temperature,
        RACE=False,
        SPLIT=passes.split,
        RACE_TILE=passes.race_tile,
        num_warps=passes.split_warps,
    )
    _settle_kernel[(rows,)](
        **row,
        **unmasked,
        temperature_ptr=values[0],
        top_k_ptr=values[1],
        top_p_ptr=values[2],
        min_p_ptr=values[3],
        partials_ptr=partials,
        bins_ptr=empty((rows, BINS.value), torch.int64),
        laws_ptr=laws,
        tokens_ptr=points,
        logprobs_ptr=None,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        splits=passes.splits,
        CUTS=True,
        SPLITS=passes.padded_splits,
        TILE=passes.row_tile,
        num_warps=passes.row_warps,
    )
    _list_kernel[(rows, passes.splits)](
        **row,
        seeds_ptr=seeds,
        positions_ptr=positions,
        nodes_ptr=nodes,
        laws_ptr=laws,
        scores_ptr=scores,
        tokens_ptr=tokens,
        purpose=purpose,
        k=k,
        METHOD=METHODS.index(method),
        SPLIT=passes.split,
        num_warps=passes.split_warps,
    )
    _merge_kernel[(rows,)](
        **row,
        partials_ptr=partials,
        laws_ptr=laws,
        points_ptr=points,
        scores_ptr=scores,
        tokens_ptr=tokens,
        out_tokens_ptr=out_tokens,
        out_scores_ptr=out_scores,
        splits=passes.splits,
        k=k,
        METHOD=METHODS.index(method),
        SPLITS=passes.padded_splits,
        CHILDREN=triton.next_power_of_2(k),
        num_warps=1,
    )


@triton.jit
def _list_best(values, tokens, count, scores_ptr, tokens_ptr):
    """Writes the `count` largest values and their tokens, descending, ties to the lowest token."""
    for place in range(count):
        top = tl.max(values)
        token = tl.min(tl.where(values == top, tokens, NO_TOKEN))
        tl.store(scores_ptr + place, top)
        tl.store(tokens_ptr + place, token)
        values = tl.where(tokens == token, _NOTHING, values)


@triton.jit
def _race(exponents, seed, position, purpose, node, index):
    """log2(weight) - log2(E); -inf where there is no weight."""
    return exponents - log(race_key(race_words(seed, position, purpose, node, index))) * LOG2E


@triton.jit
def _list_kernel(
    logits_ptr,  # [N, V]
    seeds_ptr,  # [N]
    positions_ptr,  # [N]
    nodes_ptr,  # [N]
    laws_ptr,  # [4, N]: max, slope, cut, mass; mass 0 where the law is a point
    scores_ptr,  # [1 or 2, N, splits, k]
    tokens_ptr,  # [1 or 2, N, splits, k]
    vocab,
    stride_logits_b,
    purpose,
    k,
    METHOD: tl.constexpr,
    SPLIT: tl.constexpr,
):
    n, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    rows, splits = tl.num_programs(0).to(tl.int64), tl.num_programs(1)
    if tl.load(laws_ptr + 3 * rows + n) > 0:
        max = tl.load(laws_ptr + n)
        slope = tl.load(laws_ptr + rows + n)
        cut = tl.load(laws_ptr + 2 * rows + n)
        begin = split * SPLIT
        tokens = begin + tl.arange(0, SPLIT)
        x = read_row(logits_ptr + n * stride_logits_b, tokens, vocab, None)
        exponents = tl.where(x >= cut, exponent_of(x, max, slope), _NOTHING)
        exponents = tl.where(exponents == exponents, exponents, _NOTHING)
        list_ptr = (n * splits + split) * k
        if METHOD == TOP_K or METHOD == HYBRID:
            values = tl.where(exponents > _NOTHING, tl.where(max == float("inf"), exponents, x), _NOTHING)
            count = k - 1 if METHOD == HYBRID else k
            _list_best(values, tokens, count, scores_ptr + list_ptr, tokens_ptr + list_ptr)
        if METHOD == HYBRID:
            list_ptr += rows * splits * k
        if METHOD != TOP_K:
            seed, position = tl.load(seeds_ptr + n), tl.load(positions_ptr + n)
            node = tl.load(nodes_ptr + n)
            index = begin // 4 + tl.arange(0, SPLIT // 4)
            for ordinal in range(k if METHOD == INDEPENDENT else 1):
                values = _race(exponents, seed, position, purpose, node, index + (ordinal << 24))
                count = 1 if METHOD == INDEPENDENT else k
                place = list_ptr + ordinal
                _list_best(values, tokens, count, scores_ptr + place, tokens_ptr + place)


@triton.jit
def _pop(scores_ptr, tokens_ptr, heads, splits, count, k, SPLITS: tl.constexpr):
    """The best of the heads of lists of `count` in rows of k, NO_TOKEN where all are used up, and the heads
    without it."""
    lane = tl.arange(0, SPLITS)
    here = (lane < splits) & (heads < count)
    scores = tl.load(scores_ptr + lane * k + heads, mask=here, other=_NOTHING)
    tokens = tl.load(tokens_ptr + lane * k + heads, mask=here, other=NO_TOKEN)
    top = tl.max(scores)
    token = tl.min(tl.where((scores == top) & (scores > _NOTHING), tokens, NO_TOKEN))
    return token, tl.where(here & (tokens == token), heads + 1, heads)


@triton.jit
def _merge_kernel(
    logits_ptr,  # [N, V]
    partials_ptr,  # [4, N, splits]: max, ...
    laws_ptr,  # [4, N]: max, slope, cut, mass
    points_ptr,  # [N]
    scores_ptr,  # [1 or 2, N, splits, k]
    tokens_ptr,  # [1 or 2, N, splits, k]
    out_tokens_ptr,  # [N, k]
    out_scores_ptr,  # [N, k]
    vocab,
    stride_logits_b,
    splits,
    k,
    METHOD: tl.constexpr,
    SPLITS: tl.constexpr,
    CHILDREN: tl.constexpr,
):
    n, rows = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    row_ptr = logits_ptr + n * stride_logits_b
    mass = tl.load(laws_ptr + 3 * rows + n)
    child = tl.arange(0, CHILDREN)
    children = tl.full([CHILDREN], NO_TOKEN, tl.int32)
    if mass > 0:
        scores_ptr += n * splits * k
        tokens_ptr += n * splits * k
        heads = tl.zeros([SPLITS], tl.int32)
        if METHOD == HYBRID:
            for place in range(1, k):
                token, heads = _pop(scores_ptr, tokens_ptr, heads, splits, k - 1, k, SPLITS)
                children = tl.where(child == place, token, children)
            plane = rows * splits * k
            heads = tl.zeros([SPLITS], tl.int32)
            found = tl.full([], NO_TOKEN, tl.int32)
            for _ in range(k):  # at most k - 1 of the first finishers were chosen already
                token, heads = _pop(scores_ptr + plane, tokens_ptr + plane, heads, splits, k, k, SPLITS)
                if (found == NO_TOKEN) & (tl.max((children == token).to(tl.int32)) == 0):
                    found = token
            children = tl.where(child == 0, found, children)
        else:
            for place in range(k):
                if METHOD == INDEPENDENT:
                    heads = tl.full([SPLITS], 0, tl.int32) + place
                token, heads = _pop(scores_ptr, tokens_ptr, heads, splits, k, k, SPLITS)
                children = tl.where(child == place, token, children)
    else:
        lane = tl.arange(0, SPLITS)
        maxima = tl.load(partials_ptr + n * splits + lane, mask=lane < splits, other=_NOTHING)
        if tl.max(maxima) > _NOTHING:
            point = tl.load(points_ptr + n).to(tl.int32)
            if METHOD == INDEPENDENT:
                children = tl.zeros([CHILDREN], tl.int32) + point
            elif METHOD == HYBRID:
                children = tl.where(child == tl.minimum(k - 1, 1), point, children)
            else:
                children = tl.where(child == 0, point, children)
    there, inside = children != NO_TOKEN, child < k
    x = tl.load(row_ptr + tl.where(there, children, 0), mask=inside & there, other=0.0).to(tl.float32)
    score = tl.zeros([CHILDREN], tl.float32)
    if mass > 0:
        max, slope = tl.load(laws_ptr + n), tl.load(laws_ptr + rows + n)
        score = tl.minimum(exponent_of(x, max, slope) / LOG2E - log(mass), 0.0)
    tl.store(out_tokens_ptr + n * k + child, tl.where(there, children, -1).to(tl.int64), mask=inside)
    tl.store(out_scores_ptr + n * k + child, tl.where(there, score, _NOTHING), mask=inside)
