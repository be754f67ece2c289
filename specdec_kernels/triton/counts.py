# SPDX-License-Identifier: Apache-2.0
"""Tokens that were emitted, counted in the slots of `TokenCounts`: one launch of a program per request."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from .._ops.calls import CountTokensCall
from .dispatch import Launch, device_of

_MOST = tl.constexpr(2**31 - 1)
_NEW = tl.constexpr(16)  # emitted tokens taken together
_ENTRIES = tl.constexpr(256)  # of a slot, moved together


class Slot(NamedTuple):
    """What is counted in one slot, and the last tokens there."""

    tokens: tl.tensor  # -> [capacity] int32, ascending
    prompt: tl.tensor  # -> [capacity] int32
    output: tl.tensor  # -> [capacity] int32
    recent: tl.tensor  # -> [recent_count] int64
    capacity: tl.tensor
    recent_count: tl.tensor


class Emitted(NamedTuple):
    """What a request emitted."""

    tokens: tl.tensor  # -> [count] int64 or int32
    count: tl.tensor
    vocab: tl.tensor


@cache
def _kernel(device: Any, tokens: torch.dtype, counted: bool, slots: bool) -> Launch:
    return Launch(_count_tokens_kernel, device, {}, num_warps=4)


def count_tokens(call: CountTokensCall) -> None:
    """Change the counts."""
    (batch, width), (slots, capacity) = call.tokens.shape, call.counts_tokens.shape
    if batch:
        form = call.tokens.dtype, call.num_tokens is not None, call.slots is not None
        launch = _kernel(device_of(call.tokens), *form)
        launch(
            (batch, 1, 1),
            call.tokens, call.num_tokens, call.slots,
            call.counts_tokens, call.counts_prompt, call.counts_output, call.counts_sizes, call.counts_recent,
            call.vocab_size, width, slots, capacity, call.counts_recent.shape[1],
        )  # fmt: skip


@triton.jit
def find_tokens(tokens_ptr, low, high, token, inside):
    """Where tokens stand, or would, among ascending [low, high), and whether they are there."""
    low, high = tl.where(inside, low, 0), tl.where(inside, high, 0)
    end = high
    while tl.max(high - low) > 0:
        middle = (low + high) >> 1
        below = (low < high) & (tl.load(tokens_ptr + middle, mask=low < high, other=0) < token)
        high = tl.where(below, high, middle)
        low = tl.where(below, middle + 1, low)
    there = low < end
    return low, there & (tl.load(tokens_ptr + low, mask=there, other=-1) == token)


@triton.jit(do_not_specialize=["vocab", "width", "slots", "capacity", "recent_count"])
def _count_tokens_kernel(
    tokens_ptr,  # [B, width]
    num_tokens_ptr,  # [B] or None
    slots_ptr,  # [B] or None
    counts_tokens_ptr,  # [slots, capacity]
    counts_prompt_ptr,  # [slots, capacity]
    counts_output_ptr,  # [slots, capacity]
    counts_sizes_ptr,  # [slots]
    counts_recent_ptr,  # [slots, recent_count]
    vocab,
    width,
    slots,
    capacity,
    recent_count,
):
    b = tl.program_id(0).to(tl.int64)
    slot = b
    if slots_ptr is not None:
        slot = tl.load(slots_ptr + b)
    if (slot >= 0) & (slot < slots):
        count = tl.full([], 0, tl.int32) + width
        if num_tokens_ptr is not None:
            count = tl.minimum(tl.maximum(tl.load(num_tokens_ptr + b), 0), width)
        begin = slot * capacity
        here = Slot(
            counts_tokens_ptr + begin, counts_prompt_ptr + begin, counts_output_ptr + begin,
            counts_recent_ptr + slot * recent_count, capacity, recent_count,
        )  # fmt: skip
        emitted = Emitted(tokens_ptr + b * width, count, vocab)
        _remember(here, emitted)
        size = tl.maximum(tl.load(counts_sizes_ptr + slot), 0)
        if size <= capacity:
            if size + _distinct_new(here, emitted, size) > capacity:
                size = capacity + 1
            else:
                for start in range(0, count, _NEW):
                    size = _count_some(here, emitted, size, start)
            tl.store(counts_sizes_ptr + slot, size)


@triton.jit
def _tokens_from(emitted, start):
    """[_NEW] emitted tokens, int32, and which of them are counted."""
    place = start + tl.arange(0, _NEW)
    token = tl.load(emitted.tokens + place, mask=place < emitted.count, other=-1).to(tl.int64)
    counted = (token >= 0) & (token < emitted.vocab)
    return tl.where(counted, token, -1).to(tl.int32), counted


@triton.jit
def _remember(here, emitted):
    """Moves the last tokens on."""
    number = tl.full([], 0, tl.int32)
    for start in range(0, emitted.count, _NEW):
        _, counted = _tokens_from(emitted, start)
        number += tl.sum(counted.to(tl.int32))
    for start in range(0, here.recent_count, _ENTRIES):
        place = start + tl.arange(0, _ENTRIES)
        stays = place + number.to(tl.int64) < here.recent_count
        token = tl.load(here.recent + number + place, mask=stays, other=-1)
        tl.debug_barrier()
        tl.store(here.recent + place, token, mask=stays)
        tl.debug_barrier()
    before = here.recent_count - number
    for start in range(0, emitted.count, _NEW):
        token, counted = _tokens_from(emitted, start)
        place = before + tl.cumsum(counted.to(tl.int32), 0) - 1
        tl.store(here.recent + place, token.to(tl.int64), mask=counted & (place >= 0))
        before += tl.sum(counted.to(tl.int32))


@triton.jit
def _same(token, other):
    """[_NEW, n]"""
    return token[:, None] == other[None, :]


@triton.jit
def _count_where(same):
    return tl.sum(same.to(tl.int32), 1)


@triton.jit
def _distinct_new(here, emitted, size):
    """How many distinct tokens a slot of that size does not have yet."""
    lane = tl.arange(0, _NEW)
    number = tl.full([], 0, tl.int32)
    for start in range(0, emitted.count, _NEW):
        token, counted = _tokens_from(emitted, start)
        place, found = find_tokens(here.tokens, 0, size, token, counted)
        before = _count_where(_same(token, token) & (lane[None, :] < lane[:, None]))
        for other in range(0, start, _NEW):
            earlier, known = _tokens_from(emitted, other)
            before += _count_where(_same(token, earlier) & known[None, :])
        number += tl.sum((counted & (found == 0) & (before == 0)).to(tl.int32))
    return number


@triton.jit
def _count_some(here, emitted, size, start):
    """Counts emitted tokens [start, start + _NEW). Returns the size."""
    lane = tl.arange(0, _NEW)
    token, counted = _tokens_from(emitted, start)
    place, found = find_tokens(here.tokens, 0, size, token, counted)
    times = _count_where(_same(token, token)).to(tl.int64)
    first = counted & (_count_where(_same(token, token) & (lane[None, :] < lane[:, None])) == 0)
    output = tl.load(here.output + place, mask=first & found, other=0).to(tl.int64)
    tl.store(here.output + place, tl.minimum(output + times, _MOST).to(tl.int32), mask=first & found)
    new = first & (found == 0)
    number = tl.sum(new.to(tl.int32))
    if number > 0:
        _make_room(here, size, tl.where(new, place, _MOST))
        place += _count_where((token[None, :] < token[:, None]) & new[None, :])
        new = new & (place < here.capacity)  # but where the slot is changed from elsewhere, it is
        tl.store(here.tokens + place, token, mask=new)
        tl.store(here.prompt + place, tl.zeros([_NEW], tl.int32), mask=new)
        tl.store(here.output + place, times.to(tl.int32), mask=new)
    tl.debug_barrier()
    return tl.minimum(size + number, here.capacity)


@triton.jit
def _make_room(here, size, places):
    """Moves each entry up by the number of `places` [_NEW] at or below it, the last ones first."""
    lowest = tl.min(places)
    end = size + 0
    while end > lowest:
        entry = end - 1 - tl.arange(0, _ENTRIES)
        moved = entry >= tl.maximum(lowest, 0)
        token = tl.load(here.tokens + entry, mask=moved, other=0)
        prompt = tl.load(here.prompt + entry, mask=moved, other=0)
        output = tl.load(here.output + entry, mask=moved, other=0)
        entry += _count_where(places[None, :] <= entry[:, None])
        moved = moved & (entry < here.capacity)
        tl.debug_barrier()
        tl.store(here.tokens + entry, token, mask=moved)
        tl.store(here.prompt + entry, prompt, mask=moved)
        tl.store(here.output + entry, output, mask=moved)
        end -= _ENTRIES
    tl.debug_barrier()
