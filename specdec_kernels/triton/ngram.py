# SPDX-License-Identifier: Apache-2.0
"""Prompt lookup: finds where a text repeats what it ends with, and drafts what followed there.

search  (B, splits)   finds the best occurrences in every split of a text
draft   (B,)          writes the continuation of the best one, or of the one that a vote elects

An occurrence is one number, n << 32 | end. It says that the text's last n tokens are also those up to `end`,
and n is as large as it can be. A larger number is a longer repeat or a more recent equal one; -1 is none.

A text has at most 65535 splits, which is what a launch allows. `lengths` and tokens may hold anything.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._ops.calls import NgramDraftCall, NgramTreeCall
from .arguments import compiler_options
from .dispatch import Launch, current, device_of
from .launch import (
    NGRAM_BINS,
    NGRAM_LISTED,
    NGRAM_NODES,
    NGRAM_SPLIT,
    NGRAM_VOTE_WARPS,
    NGRAM_WORDS,
    ngram_splits,
)

_MADE_HERE = ("listed_ptr", "places_ptr", "bins_ptr")  # which are aligned


@cache
def _search_kernel(device: Any, tokens: torch.dtype, lengths: torch.dtype, places: bool) -> Launch:
    constants = dict(SPLIT=NGRAM_SPLIT)
    return Launch(_ngram_search_kernel, device, constants, aligned=_MADE_HERE, num_warps=1)


@cache
def _draft_kernel(
    device: Any, tokens: torch.dtype, lengths: torch.dtype, frequent: bool, cyclic: bool
) -> Launch:
    sizes = dict(
        SPLIT=NGRAM_SPLIT, LISTED=NGRAM_LISTED, WORDS=NGRAM_WORDS, BINS=NGRAM_BINS, DRAFT=NGRAM_NODES
    )
    warps = NGRAM_VOTE_WARPS if frequent else 1
    constants = dict(CYCLIC=cyclic, **sizes)
    with current(device):
        options = compiler_options(warps)
    return Launch(_ngram_draft_kernel, device, constants, aligned=_MADE_HERE, num_warps=warps, **options)


def ngram_draft(call: NgramDraftCall) -> None:
    """Fill the output, in two launches."""
    batch, num_draft = call.out.shape
    if batch == 0:
        return
    listed, places = search(call, branches=1, places=call.frequent)
    bins = None
    if call.frequent:
        bins = torch.empty((batch, 2, NGRAM_BINS), dtype=torch.int32, device=call.out.device)
    launch = _draft_kernel(
        device_of(call.tokens), call.tokens.dtype, call.lengths.dtype, call.frequent, call.cyclic
    )
    launch(
        (batch, 1, 1),
        call.tokens, call.lengths, listed, places, bins, call.out,
        call.tokens.shape[1], listed.shape[1], num_draft,
    )  # fmt: skip


def search(
    call: NgramDraftCall | NgramTreeCall, *, branches: int, places: bool
) -> tuple[Tensor, Tensor | None]:
    """The best occurrences of every split, [B, splits, branches] int64 in descending order, -1 where there
    are no more; and, with `places`, [B, 2, splits * NGRAM_SPLIT / 32] int32, in whose first half the bits are
    the ends of all occurrences as long as the split's best, where it has any."""
    (batch, width), device = call.tokens.shape, call.tokens.device
    splits = ngram_splits(width)
    listed = torch.empty((batch, splits, branches), dtype=torch.int64, device=device)
    shape = (batch, 2, splits * NGRAM_SPLIT // 32)
    bits = torch.empty(shape, dtype=torch.int32, device=device) if places else None
    least, most = min(call.min_ngram, width + 1), min(call.max_ngram, width)
    launch = _search_kernel(device_of(call.tokens), call.tokens.dtype, call.lengths.dtype, places)
    launch((batch, splits, 1), call.tokens, call.lengths, listed, bits, width, branches, least, most)
    return listed, bits


@triton.jit
def _ngram_search_kernel(
    tokens_ptr,  # [B, width]
    lengths_ptr,  # [B]
    listed_ptr,  # [B, splits, branches]
    places_ptr,  # [B, 2, splits * SPLIT / 32] or None
    width,
    branches,
    min_ngram,
    max_ngram,
    SPLIT: tl.constexpr,
):
    b, split, splits = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    tokens_ptr += b * width
    length = text_length(lengths_ptr, b, width)
    end = split * SPLIT + tl.arange(0, SPLIT)
    n = tl.where(end < length - 1, 0, -1)
    shared, place_ptr = 0, tokens_ptr
    while (shared < max_ngram) & (tl.max(n) == shared):
        asked = (n == shared) & (end >= shared)
        same = tl.load(place_ptr + end, mask=asked) == tl.load(place_ptr + length - 1)
        shared += 1
        place_ptr -= 1
        n = tl.where(asked & same, shared, n)

    longest = tl.max(n)
    listed_ptr += (b * splits + split) * branches
    if longest >= min_ngram:
        occurrences = tl.where(n >= min_ngram, (n.to(tl.int64) << 32) | end, -1)
        for place in range(branches):
            best = tl.max(occurrences)
            tl.store(listed_ptr + place, best)
            occurrences = tl.where(occurrences == best, -1, occurrences)
        if places_ptr is not None:
            bits = tl.reshape((n == longest).to(tl.int32), [SPLIT // 32, 32]) << tl.arange(0, 32)[None, :]
            word = split * (SPLIT // 32) + tl.arange(0, SPLIT // 32)
            tl.store(places_ptr + 2 * b * splits * (SPLIT // 32) + word, tl.sum(bits, axis=1))
    else:
        for place in range(branches):
            tl.store(listed_ptr + place, tl.full([], -1, tl.int64))


@triton.jit
def text_length(lengths_ptr, b, width):
    return tl.minimum(tl.maximum(tl.load(lengths_ptr + b), 0), width).to(tl.int32)


@triton.jit
def best_below(bound, listed_ptr, count, LISTED: tl.constexpr):
    """The best of `count` listed occurrences that are less than `bound`."""
    best = tl.full([], -1, tl.int64)
    for first in range(0, count, LISTED):
        place = first + tl.arange(0, LISTED)
        listed = tl.load(listed_ptr + place, mask=place < count, other=-1)
        best = tl.maximum(best, tl.max(tl.where(listed < bound, listed, -1)))
    return best


@triton.jit
def token_after(tokens_ptr, length, end, i, mask, CYCLIC: tl.constexpr):
    """Token i of what follows `end`; it must be there, see `goes_on`."""
    if CYCLIC:
        i = i % tl.maximum(length - 1 - end, 1)
    return tl.load(tokens_ptr + end + 1 + i, mask=mask)


@triton.jit
def goes_on(length, end, i, CYCLIC: tl.constexpr):
    """Whether what follows an occurrence's `end` has a token i."""
    if CYCLIC:
        return end + i >= 0
    else:
        return end + i < length - 1


@triton.jit
def _ngram_draft_kernel(
    tokens_ptr,  # [B, width]
    lengths_ptr,  # [B]
    listed_ptr,  # [B, splits]
    places_ptr,  # [B, 2, splits * SPLIT / 32], or None to take the most recent occurrence
    bins_ptr,  # [B, 2, BINS]; or None
    out_ptr,  # [B, num_draft]
    width,
    splits,
    num_draft,
    CYCLIC: tl.constexpr,
    SPLIT: tl.constexpr,
    LISTED: tl.constexpr,
    WORDS: tl.constexpr,
    BINS: tl.constexpr,
    DRAFT: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    tokens_ptr += b * width
    listed_ptr += b * splits
    length = text_length(lengths_ptr, b, width)
    best = best_below(2**63 - 1, listed_ptr, splits, LISTED)
    end = best.to(tl.int32)
    if places_ptr is not None:
        if best >= 0:
            places_ptr += 2 * b * splits * (SPLIT // 32)
            end = _elected(
                tokens_ptr, length, listed_ptr, places_ptr, bins_ptr + b * 2 * BINS,
                best, splits, num_draft,
                CYCLIC, SPLIT, WORDS, BINS,
            )  # fmt: skip
    count = tl.where(best >= 0, num_draft, 0)
    for first in range(0, num_draft, DRAFT):
        i = first + tl.arange(0, DRAFT)
        there = (i < count) & goes_on(length, end, i, CYCLIC)
        drafted = token_after(tokens_ptr, length, end, i, there, CYCLIC)
        tl.store(out_ptr + b * num_draft + i, tl.where(there, drafted, -1), mask=i < num_draft)


@triton.jit
def _elected(
    tokens_ptr, length,
    listed_ptr,  # [splits]
    places_ptr,  # [2, splits * SPLIT / 32]
    bins_ptr,  # [2, BINS]
    best, splits, num_draft,
    CYCLIC: tl.constexpr, SPLIT: tl.constexpr, WORDS: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """Where the occurrence ends whose continuation is, token by token, what most of those that agreed so far
    go on with, the most recent among equals.

    A round elects a token. Every occurrence goes to the bin of its token's low bits, and the most recent one
    there owns it; those that have its token are counted. The others go to the bins again, as long as there
    are any: as often as there are different tokens in a bin. So counts are exact and need no order.

    Occurrences are bits, of which a lane has a word: those that agree so far, and behind them those that a
    round has still to count.
    """
    words = splits * (SPLIT // 32)
    bins = tl.arange(0, BINS)
    end = best.to(tl.int32)
    token = tl.load(tokens_ptr + length - 1)  # that they agreed on last
    votes = tl.full([], 2, tl.int32)  # for it; how many it has is not known yet
    depth = 0
    while (votes > 1) & (depth < num_draft):
        elected = tl.full([], -1, tl.int64)  # votes << 32 | end
        plane, left = 0, tl.full([], 1, tl.int32)
        while left > 0:
            tl.store(bins_ptr + bins, tl.full([BINS], -1, tl.int32))
            tl.store(bins_ptr + BINS + bins, tl.zeros([BINS], tl.int32))
            tl.debug_barrier()
            for first in range(0, words, WORDS):
                place = first + tl.arange(0, WORDS)
                here = _has_longest(listed_ptr, best, place, words, SPLIT)
                word = tl.load(places_ptr + plane + place, mask=here, other=0)
                agreeing = tl.zeros([WORDS], tl.int32)
                while tl.max((word != 0).to(tl.int32)) > 0:
                    bit, other = _lowest_end(word, place)
                    there = (word != 0) & goes_on(length, other, depth, CYCLIC)
                    # Before the first token there is the last one of the n-gram.
                    there &= token_after(tokens_ptr, length, other, depth - 1, there, CYCLIC) == token
                    own = token_after(tokens_ptr, length, other, depth, there, CYCLIC)
                    own_bin = (own & (BINS - 1)).to(tl.int32)
                    tl.atomic_max(bins_ptr + own_bin, other, mask=there, sem="relaxed")
                    agreeing |= tl.where(there, bit, 0)
                    word ^= bit
                tl.store(places_ptr + plane + place, agreeing, mask=here)
            tl.debug_barrier()
            left = tl.full([], 0, tl.int32)
            for first in range(0, words, WORDS):
                place = first + tl.arange(0, WORDS)
                here = _has_longest(listed_ptr, best, place, words, SPLIT)
                word = tl.load(places_ptr + plane + place, mask=here, other=0)
                uncounted = tl.zeros([WORDS], tl.int32)
                while tl.max((word != 0).to(tl.int32)) > 0:
                    bit, other = _lowest_end(word, place)
                    there = word != 0
                    own = token_after(tokens_ptr, length, other, depth, there, CYCLIC)
                    own_bin = (own & (BINS - 1)).to(tl.int32)
                    owner = tl.load(bins_ptr + own_bin, mask=there, other=0)
                    same = there & (token_after(tokens_ptr, length, owner, depth, there, CYCLIC) == own)
                    tl.atomic_add(bins_ptr + BINS + own_bin, 1, mask=same, sem="relaxed")
                    uncounted |= tl.where(same, 0, bit)
                    word ^= bit
                tl.store(places_ptr + words + place, uncounted, mask=here)
                left = tl.maximum(left, tl.max((uncounted != 0).to(tl.int32)))
            tl.debug_barrier()
            counts = tl.load(bins_ptr + BINS + bins).to(tl.int64)
            owners = tl.load(bins_ptr + bins)
            elected = tl.maximum(elected, tl.max(tl.where(counts > 0, (counts << 32) | owners, -1)))
            plane = words
            tl.debug_barrier()
        votes = (elected >> 32).to(tl.int32)
        if elected >= 0:  # else none of them goes on
            end = elected.to(tl.int32)
            token = token_after(tokens_ptr, length, end, depth, None, CYCLIC)
        depth += 1
    return end


@triton.jit
def _has_longest(listed_ptr, best, place, words, SPLIT: tl.constexpr):
    """Whether words are of splits that have an occurrence as long as the best. Others were not written."""
    listed = tl.load(listed_ptr + place // (SPLIT // 32), mask=place < words, other=-1)
    return (listed >> 32) == (best >> 32)


@triton.jit
def _lowest_end(word, place):
    """The lowest bit of each word, and the end that it stands for."""
    bit = word & -word
    exponent = bit.to(tl.uint32, bitcast=True).to(tl.float32).to(tl.int32, bitcast=True) >> 23
    return bit, place * 32 + exponent - 127
