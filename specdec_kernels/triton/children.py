# SPDX-License-Identifier: Apache-2.0
"""Children of a draft tree's nodes.

measure, settle, ..     find the laws of the rows, as for `sample`
list      (N, splits)   lists of every split its likeliest tokens, the first finishers of its race, or both
merge     (N,)          merges the lists of all splits from their heads

A race is run on the logarithms, log2(weight) - log2(E), so that weights far below the largest still race.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

from .._ops.calls import SampleChildrenCall
from .arguments import RowsForm, bitmask_of, row_data, rows_form, sampling_of, target_of
from .dispatch import Launch, device_of
from .launch import row_passes
from .law import log_probability, target_scores
from .logarithm import LOG2E, log
from .random import race_key, race_words
from .row import NO_TOKEN, Row, exponent_of, read_tile
from .sampling import settle_rows
from .settle import law_of
from .wanted import TARGET

_NOTHING = tl.constexpr(float("-inf"))
_ORDINAL_SHIFT = tl.constexpr(24)  # of an index word, see `_random.py`


@cache
def _kernels(device: Any, vocab: int, rows: RowsForm, method: str, children: int) -> tuple[Launch, Launch]:
    """Those that list and merge: up to `children` of each row, a power of two."""
    splits = row_passes(vocab).splits
    constants = dict(METHOD=method, SPLIT=splits.length)
    merging = dict(METHOD=method, SPLITS=splits.padded, CHILDREN=children)
    return (
        Launch(_children_list_kernel, device, constants, aligned=rows.names, num_warps=splits.warps),
        Launch(_children_merge_kernel, device, merging, aligned=rows.names, num_warps=1),
    )


def sample_children(call: SampleChildrenCall) -> None:
    """Fill the outputs, in four launches, six with cuts."""
    (rows, vocab), k, device = call.logits.shape, call.out_tokens.shape[1], call.logits.device
    if rows == 0:
        return
    target, law = target_of(call.logits), sampling_of(call.sampling, call.sampling_rows)
    measured, scratch = settle_rows(target, law, call.seeds, call.positions, None, None, race=False)
    listing, merging = _kernels(
        device_of(call.logits), vocab, rows_form(target), call.method, triton.next_power_of_2(k)
    )
    splits = measured.passes.splits.count
    lists = (2 if call.method == "hybrid" else 1, rows, splits, k)
    scores = torch.empty(lists, dtype=torch.float32, device=device)
    tokens = torch.empty(lists, dtype=torch.int32, device=device)
    listing(
        (rows, splits, 1),
        target, scratch, call.seeds, call.positions, call.nodes, scores, tokens, call.purpose, k,
    )  # fmt: skip
    merging((rows, 1, 1), target, scratch, scores, tokens, call.out_tokens, call.out_scores, splits, k)


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
def _children_list_kernel(
    target,
    scratch,
    seeds_ptr,  # [N]
    positions_ptr,  # [N]
    nodes_ptr,  # [N]
    scores_ptr,  # [1 or 2, N, splits, k]
    tokens_ptr,  # [1 or 2, N, splits, k]
    purpose,
    k,
    METHOD: tl.constexpr,
    SPLIT: tl.constexpr,
):
    n, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    rows, splits = tl.num_programs(0).to(tl.int64), tl.num_programs(1)
    law = law_of(scratch, n, TARGET)
    if law.point < 0:
        begin = split * SPLIT
        tokens = begin + tl.arange(0, SPLIT)
        x = read_tile(Row(row_data(target, n), target.vocab, bitmask_of(target, n), None), begin, SPLIT)
        exponents = tl.where(x >= law.cut, exponent_of(x, law.top, law.slope), _NOTHING)
        exponents = tl.where(exponents == exponents, exponents, _NOTHING)
        list_ptr = (n * splits + split) * k
        if METHOD == "top_k" or METHOD == "hybrid":
            values = tl.where(exponents > _NOTHING, tl.where(law.top == float("inf"), exponents, x), _NOTHING)
            count = k - 1 if METHOD == "hybrid" else k
            _list_best(values, tokens, count, scores_ptr + list_ptr, tokens_ptr + list_ptr)
        if METHOD == "hybrid":
            list_ptr += rows * splits * k
        if METHOD != "top_k":
            seed, position = tl.load(seeds_ptr + n), tl.load(positions_ptr + n)
            node = tl.load(nodes_ptr + n)
            index = begin // 4 + tl.arange(0, SPLIT // 4)
            for ordinal in range(k if METHOD == "independent" else 1):
                values = _race(exponents, seed, position, purpose, node, index + (ordinal << _ORDINAL_SHIFT))
                count = 1 if METHOD == "independent" else k
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
def _children_merge_kernel(
    target,
    scratch,
    scores_ptr,  # [1 or 2, N, splits, k]
    tokens_ptr,  # [1 or 2, N, splits, k]
    out_tokens_ptr,  # [N, k]
    out_scores_ptr,  # [N, k]
    splits,
    k,
    METHOD: tl.constexpr,
    SPLITS: tl.constexpr,
    CHILDREN: tl.constexpr,
):
    n, rows = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    law = law_of(scratch, n, TARGET)
    child = tl.arange(0, CHILDREN)
    children = tl.full([CHILDREN], NO_TOKEN, tl.int32)
    if law.point < 0:
        scores_ptr += n * splits * k
        tokens_ptr += n * splits * k
        heads = tl.zeros([SPLITS], tl.int32)
        if METHOD == "hybrid":
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
                if METHOD == "independent":
                    heads = tl.full([SPLITS], 0, tl.int32) + place
                token, heads = _pop(scores_ptr, tokens_ptr, heads, splits, k, k, SPLITS)
                children = tl.where(child == place, token, children)
    elif law.top > _NOTHING:  # certain, and not for want of anything else
        if METHOD == "independent":
            children = tl.zeros([CHILDREN], tl.int32) + law.point
        elif METHOD == "hybrid":
            children = tl.where(child == tl.minimum(k - 1, 1), law.point, children)
        else:
            children = tl.where(child == 0, law.point, children)
    there, inside = children != NO_TOKEN, child < k
    x = target_scores(target, n, children.to(tl.int64), there & inside)
    score = tl.where(there, tl.minimum(log_probability(law, x, children), 0.0), _NOTHING)
    tl.store(out_tokens_ptr + n * k + child, tl.where(there, children, -1).to(tl.int64), mask=inside)
    tl.store(out_scores_ptr + n * k + child, score, mask=inside)
