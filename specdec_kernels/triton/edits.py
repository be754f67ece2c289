# SPDX-License-Identifier: Apache-2.0
"""Penalties, biases, bans and forced tokens: one launch over (rows x splits) before all that read rows.

A program finds the tokens of its split that are edited, which stand in its slot's counts or in one of the
lists of its request, and on the path to its node. It writes what edited.py describes. What a token gets does
not depend on which of the lists named it, so it is no matter if several do.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._ops.calls import EditLogitsCall, EditTensors
from .arguments import (
    OPTIONAL,
    RowsForm,
    Target,
    compiler_options,
    edits_of,
    rows_form,
    target_data,
    target_of,
    target_row,
)
from .counts import find_tokens
from .dispatch import Launch, current, device_of, given
from .edited import FORCED, edited_words, ones, place_in, places_of, word_of
from .ends import NO_ENDS
from .launch import EDIT_ENTRIES, EDIT_SPLIT
from .law import OVERFLOW
from .row import number_of
from .wanted import Batch, Place, depth_of, place_of, row_numbers, trees_of

_TILE = tl.constexpr(256)  # tokens written together
_ROUNDS = tl.constexpr(5)  # of parts of 128: more than any number of entries has
_MOST = tl.constexpr(2**31 - 1)
_FINITE = tl.constexpr(3.4028234663852886e38)


class Edits(NamedTuple):
    """The tensors of `EditTensors`, or None, and numbers."""

    tokens: tl.tensor  # [slots, capacity] int32, ascending
    prompt: tl.tensor  # [slots, capacity] int32
    output: tl.tensor  # [slots, capacity] int32
    sizes: tl.tensor  # [slots] int32
    recent: tl.tensor  # [slots, recent_count] int64
    slots: tl.tensor  # [B] int64
    repetitions: tl.tensor  # [B] float32
    frequencies: tl.tensor  # [B] float32
    presences: tl.tensor  # [B] float32
    bias_tokens: tl.tensor  # [B, bias_count] int64
    bias_values: tl.tensor  # [B, bias_count] float32
    banned_tokens: tl.tensor  # [B, banned_count] int64
    banned_until: tl.tensor  # [B] int32
    bad_words: tl.tensor  # [B, bad_count, bad_length] int64
    forced_tokens: tl.tensor  # [B, forced_count] int64
    repetition: tl.tensor
    frequency: tl.tensor
    presence: tl.tensor
    counts_prompt: tl.tensor  # 1 where frequency and presence count the prompt
    slot_count: tl.tensor
    capacity: tl.tensor
    recent_count: tl.tensor
    bias_count: tl.tensor
    banned_count: tl.tensor
    bad_count: tl.tensor
    bad_length: tl.tensor
    forced_count: tl.tensor


NO_TREE = Batch(*[None] * len(Batch._fields))


class Site(NamedTuple):
    """A row, and what is known of it."""

    request: tl.tensor  # int64
    slot: tl.tensor  # int64, -1 = none
    counts: tl.tensor  # int64, place of the first count of its slot
    size: tl.tensor  # int32, distinct tokens of its slot; 0 where it has overflowed
    penalized: tl.tensor  # whether it has not
    depth: tl.tensor  # int32
    path: tl.tensor  # int32, tokens of its path that are counted
    listed: tl.tensor  # int32, entries of all lists: the path, biases, bans and bad words


class Span(NamedTuple):
    """The tokens of a split, and their places in the counts of its slot."""

    begin: tl.tensor
    end: tl.tensor
    low: tl.tensor
    high: tl.tensor


def _width(tensor: Tensor | None, dim: int) -> int:
    return 0 if tensor is None else tensor.shape[dim]


def edits_from(tensors: list[Tensor | None], numbers: list[float]) -> Edits:
    """From the lists of a call."""
    given = EditTensors(*tensors)
    repetition, frequency, presence, prompt = numbers
    slots = given.counts_sizes if given.counts_sizes is not None else given.counts_recent
    return Edits(
        *given, repetition, frequency, presence, int(prompt),
        _width(slots, 0), _width(given.counts_tokens, 1), _width(given.counts_recent, 1),
        _width(given.bias_tokens, 1), _width(given.banned_tokens, 1),
        _width(given.bad_words, 1), _width(given.bad_words, 2), _width(given.forced_tokens, 1),
    )  # fmt: skip


def _places(edits: Edits, depth: int) -> int:
    """The most tokens of a row that can be edited."""
    path = depth if edits.tokens is not None else 0
    return edits.capacity + path + edits.bias_count + edits.banned_count + edits.bad_count


@cache
def _kernel(device: Any, rows: RowsForm, tensors: tuple[bool, ...], trees: bool, apply: bool) -> Launch:
    """tensors: which of them there are."""
    constants = dict(APPLY=apply, SPLIT=EDIT_SPLIT, ENTRIES=EDIT_ENTRIES)
    with current(device):
        options = compiler_options(1)
    options |= dict(num_warps=1)
    # A product and a difference are rounded one after the other, as elsewhere.
    return Launch(_edit_rows_kernel, device, constants, optional=OPTIONAL, enable_fp_fusion=False, **options)


def edited_target(
    target: Target,
    edits: Edits,
    batch: Batch,
    status: Tensor | None,
    rows: int,
    requests: int,
    depth: int,
    apply: bool = False,
) -> Target:
    """The target's rows with the edits of `rows` nodes, no deeper than `depth`, or with NO_TREE of as many
    requests. One launch. `status` [B] receives the bits that are known already."""
    vocab, logits = target.vocab, target.data
    words = edited_words(vocab, _places(edits, depth))
    scores = torch.empty(rows, words, dtype=torch.int64, device=logits.device)
    target = target._replace(edits=scores, edits_stride=words)
    if rows > 0:
        plain, trees = target._replace(bitmask=None, bitmask_stride=0), batch.tokens is not None
        tensors = tuple(part is not None for part in edits[:15])
        kernel = _kernel(device_of(logits), rows_form(plain), tensors, trees, apply)
        grid = (rows, triton.cdiv(vocab, EDIT_SPLIT), 1)
        kernel(grid, plain, trees_of(batch), edits, status, rows, requests, depth)
    return target


def edit_logits(call: EditLogitsCall) -> None:
    """Edit the rows themselves."""
    edits, batch, numbers = edits_from(call.edits, call.edit_numbers), NO_TREE, None
    rows = requests = call.logits.shape[0]
    if call.tokens is not None:
        assert call.cu_nodes is not None
        rows, requests = call.tokens.shape[0], call.cu_nodes.shape[0] - 1
        batch = NO_TREE._replace(tokens=call.tokens, parents=call.parents, cu_nodes=call.cu_nodes)
        if call.target_rows is not None:
            numbers = row_numbers(batch, call.target_rows, False, NO_ENDS, call.logits)
    target = target_of(call.logits, None, numbers)
    if requests > 0:
        edited_target(target, edits, batch, None, rows, requests, rows, apply=True)


@triton.jit(do_not_specialize=["rows", "requests", "deepest"])
def _edit_rows_kernel(
    target,
    batch,  # without tokens row b belongs to request b, and has no path
    edits,
    status_ptr,  # [B], optional
    rows,
    requests,
    deepest,  # nodes below are never reached
    APPLY: tl.constexpr,
    SPLIT: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    zero = tl.full([], 0, tl.int32)
    if batch.tokens is not None:
        place = place_of(batch, tl.program_id(0), rows, requests)
    else:
        place = Place(tl.program_id(0), zero, zero + 1, zero)
    words = edits_of(target, row)
    begin = split * SPLIT
    end = tl.minimum(begin + SPLIT, target.vocab)
    _store_words(words, begin, end, 0, SPLIT)
    depth = zero
    if batch.tokens is not None:
        depth = depth_of(batch, place)
    site = _site_of(edits, place, depth)
    writes = given(status_ptr) & (split == 0) & (place.node == 0)
    tl.store(status_ptr + place.request, tl.where(site.penalized, 0, OVERFLOW), mask=writes)
    if (place.node >= 0) & (target_row(target, row) >= 0) & (depth <= deepest):
        forced = zero - 1
        if edits.forced_tokens is not None:
            forced = _forced_token(edits, site, target.vocab)
        tl.debug_barrier()
        if forced >= 0:
            _force(words, target.vocab, begin, end, forced, SPLIT)
        else:
            low, high = zero, zero
            if edits.tokens is not None:
                low = _first_not_below(edits.tokens + site.counts, site.size, begin, ENTRIES)
                high = _first_not_below(edits.tokens + site.counts, site.size, end, ENTRIES)
            span = Span(begin, end, low, high)
            first = _mark(words, edits, batch, place, site, span, ENTRIES)
            _rank(words, begin, end, first, SPLIT)
            _write_scores(target, row, edits, batch, place, site, span, ENTRIES)
        if APPLY:
            tl.debug_barrier()
            _apply(target, row, begin, end)


@triton.jit
def _store_words(words, begin, end, word, SPLIT: tl.constexpr):
    """The same word, int64, or words [SPLIT / 32] of a split."""
    place = begin // 32 + tl.arange(0, SPLIT // 32)
    tl.store(words + place, tl.zeros([SPLIT // 32], tl.int64) + word, mask=place * 32 < end)


@triton.jit
def _force(words, vocab, begin, end, token, SPLIT: tl.constexpr):
    """A point mass in place of a row."""
    first = tl.where(begin // 32 + tl.arange(0, SPLIT // 32) == token >> 5, FORCED, 0)
    _store_words(words, begin, end, word_of(tl.full([SPLIT // 32], -1, tl.int32), first), SPLIT)
    at = tl.arange(0, 64)
    score = tl.where(at == FORCED + (token & 31), 0.0, float("-inf"))
    number = tl.where((token >= begin) & (token < end), 64, FORCED)
    tl.store(places_of(words, vocab) + at, score, mask=at < number)


@triton.jit
def _rank(words, begin, end, first, SPLIT: tl.constexpr):
    """Gives the marked tokens of a split places from the first on."""
    tl.debug_barrier()
    place = begin // 32 + tl.arange(0, SPLIT // 32)
    # The first-level cache does not see what was marked.
    word = tl.load(words + place, mask=place * 32 < end, other=0, cache_modifier=".cg")
    bits = word.to(tl.int32)
    number = ones(bits)
    _store_words(words, begin, end, word_of(bits, first + tl.cumsum(number, 0) - number), SPLIT)
    tl.debug_barrier()


@triton.jit
def _apply(target, row, begin, end):
    """Writes the edited scores of a split into its row."""
    words, data = edits_of(target, row), target_data(target, row)
    for start in range(begin, end, _TILE):
        token = start + tl.arange(0, _TILE)
        word = tl.load(words + (token >> 5), mask=token < end, other=0)
        there, place = place_in(word, token)
        x = tl.load(places_of(words, target.vocab) + place, mask=there & (token < end), other=0.0)
        tl.store(data + token, x.to(target.data.dtype.element_ty), mask=there & (token < end))


@triton.jit
def _site_of(edits, place, depth):
    request = tl.maximum(place.request, 0).to(tl.int64)  # of a row that belongs to none
    slot = request
    if edits.slots is not None:
        slot = tl.load(edits.slots + request)
    slot = tl.where((slot >= 0) & (slot < edits.slot_count), slot, -1)
    size, path = tl.full([], 0, tl.int32), tl.full([], 0, tl.int32)
    penalized = size == 0
    if edits.tokens is not None:
        size = tl.load(edits.sizes + slot, mask=slot >= 0, other=0)
        penalized = size <= edits.capacity
        size = tl.where(penalized, tl.maximum(size, 0), 0)
        path = depth
    listed = path + edits.bias_count + edits.banned_count + edits.bad_count
    counts = tl.maximum(slot, 0) * edits.capacity
    return Site(request, slot, counts, size, penalized, depth, path, listed)


@triton.jit
def _forced_token(edits, site, vocab):
    """-1 = none."""
    inside = site.depth < edits.forced_count
    token = tl.load(
        edits.forced_tokens + site.request * edits.forced_count + site.depth, mask=inside, other=-1
    )
    return tl.where((token >= 0) & (token < vocab), token, -1).to(tl.int32)


@triton.jit
def _first_not_below(tokens_ptr, size, token, ENTRIES: tl.constexpr):
    """The place of the first of ascending tokens that is not below one. Whatever the tokens are, it does not
    fall as that one rises, so that splits share no entry."""
    low, high = tl.full([], 0, tl.int32), size + 0
    rounds = tl.where(size > ENTRIES * ENTRIES, _ROUNDS, 2)
    for _ in range(rounds):  # Triton 3.4 cannot compile what follows a `while` over these
        step = tl.cdiv(high - low, ENTRIES)
        last = low + (1 + tl.arange(0, ENTRIES)) * step - 1  # of each part
        below = tl.load(tokens_ptr + last, mask=(last >= low) & (last < high), other=_MOST) < token
        low = tl.maximum(low, tl.max(tl.where(below, last + 1, 0)))
        high = tl.minimum(high, low + step - 1)
    return low


@triton.jit
def _listed_tokens(edits, batch, place, site, start, ENTRIES: tl.constexpr):
    """Entries [start, start + ENTRIES) of the lists, int64; whatever is no token is out of range."""
    entry = start + tl.arange(0, ENTRIES)
    tokens = tl.full([ENTRIES], -1, tl.int64)
    if (batch.tokens is not None) and (edits.tokens is not None):
        if start < site.path:
            node, up = place.node, tl.full([], 0, tl.int32)
            while node > 0:
                token = tl.load(batch.tokens + place.first + node)
                tokens = tl.where(entry == up, token, tokens)
                node = _parent(batch, place, node)
                up += 1
    if edits.bias_tokens is not None:
        i = entry - site.path
        mine = (i >= 0) & (i < edits.bias_count)
        tokens = tl.load(edits.bias_tokens + site.request * edits.bias_count + i, mask=mine, other=tokens)
    if edits.banned_tokens is not None:
        i = entry - site.path - edits.bias_count
        mine = (i >= 0) & (i < edits.banned_count)
        tokens = tl.load(edits.banned_tokens + site.request * edits.banned_count + i, mask=mine, other=tokens)
    if edits.bad_words is not None:
        i = entry - (site.listed - edits.bad_count)
        mine = (i >= 0) & (i < edits.bad_count)
        tokens = tl.load(_bad_word(edits, site, i) + edits.bad_length - 1, mask=mine, other=tokens)
    return tokens


@triton.jit
def _bad_word(edits, site, i):
    """-> its tokens."""
    return edits.bad_words + (site.request * edits.bad_count + i) * edits.bad_length


@triton.jit
def _parent(batch, place, node):
    """0 where a node has none of lower index."""
    parent = tl.load(batch.parents + place.first + node)
    return tl.where(parent < node, parent, 0)


@triton.jit
def _mark(words, edits, batch, place, site, span, ENTRIES: tl.constexpr):
    """Sets the bits of the edited tokens of a split, and returns the place of its first score: all entries
    of splits before it have places there."""
    first = span.low
    lane = tl.arange(0, ENTRIES)
    if edits.tokens is not None:
        for start in range(span.low, span.high, ENTRIES):
            token = tl.load(
                edits.tokens + site.counts + start + lane, mask=start + lane < span.high, other=-1
            )
            _set_bits(words, token.to(tl.int64), span)
    for start in range(0, site.listed, ENTRIES):
        token = _listed_tokens(edits, batch, place, site, start, ENTRIES)
        first += tl.sum(((token >= 0) & (token < span.begin)).to(tl.int32))
        _set_bits(words, token, span)
    return first


@triton.jit
def _set_bits(words, token, span):
    bit = tl.full([], 1, tl.int64) << (token & 31)
    tl.atomic_or(words + (token >> 5), bit, mask=(token >= span.begin) & (token < span.end), sem="relaxed")


@triton.jit
def _write_scores(target, row, edits, batch, place, site, span, ENTRIES: tl.constexpr):
    lane = tl.arange(0, ENTRIES)
    nothing = tl.zeros([ENTRIES], tl.int32)
    if edits.tokens is not None:
        for start in range(span.low, span.high, ENTRIES):
            entry, inside = site.counts + start + lane, start + lane < span.high
            token = tl.load(edits.tokens + entry, mask=inside, other=-1)
            prompt = tl.load(edits.prompt + entry, mask=inside, other=0)
            output = tl.load(edits.output + entry, mask=inside, other=0)
            _write(target, row, edits, batch, place, site, span, token.to(tl.int64), prompt, output)
    for start in range(0, site.listed, ENTRIES):
        token = _listed_tokens(edits, batch, place, site, start, ENTRIES)
        inside = (token >= span.begin) & (token < span.end)
        if tl.max(inside.to(tl.int32)) > 0:
            prompt, output = nothing, nothing
            if edits.tokens is not None:
                list_ptr = edits.tokens + site.counts
                entry, counted = find_tokens(list_ptr, span.low, span.high, token, inside)
                prompt = tl.load(edits.prompt + site.counts + entry, mask=counted, other=0)
                output = tl.load(edits.output + site.counts + entry, mask=counted, other=0)
            _write(target, row, edits, batch, place, site, span, token, prompt, output)


@triton.jit
def _write(target, row, edits, batch, place, site, span, token, prompt, output):
    """Writes the scores of tokens [ENTRIES] of a split, which were counted so often; others are left out."""
    inside = (token >= span.begin) & (token < span.end)
    x = tl.load(target_data(target, row) + token, mask=inside, other=0.0).to(tl.float32)
    path, bias, banned = _looked_up(edits, batch, place, site, span, token)
    if edits.tokens is not None:
        prompt, output = tl.maximum(prompt, 0).to(tl.int64), tl.maximum(output, 0).to(tl.int64)
        x = _penalised(edits, site, x, prompt, output + path)
    if edits.bias_tokens is not None:
        banned = banned | (bias == float("-inf"))
        x = tl.where(banned, x, x + bias)
    x = tl.where(banned & (x == x), float("-inf"), x)
    words = edits_of(target, row)
    _, at = place_in(tl.load(words + (token >> 5), mask=inside, other=0), token)
    tl.store(places_of(words, target.vocab) + at, x, mask=inside)


@triton.jit
def _penalised(edits, site, x, prompt, written):
    """After penalties, of tokens that are so often in the prompt, and in output and path."""
    repetition = number_of(edits.repetitions, edits.repetition, site.request)
    repetition = tl.where(site.penalized & (repetition > 0) & (repetition <= _FINITE), repetition, 1.0)
    x = tl.where(prompt + written > 0, tl.where(x > 0, tl.div_rn(x, repetition), x * repetition), x)
    count = written + tl.where(edits.counts_prompt > 0, prompt, 0)
    x -= _penalty(edits.frequencies, edits.frequency, site) * count.to(tl.float32)
    return x - tl.where(count > 0, _penalty(edits.presences, edits.presence, site), 0.0)


@triton.jit
def _penalty(values_ptr, value, site):
    penalty = number_of(values_ptr, value, site.request)
    return tl.where(site.penalized & (tl.abs(penalty) <= _FINITE), penalty, 0.0)


@triton.jit
def _looked_up(edits, batch, place, site, span, token):
    """What the lists say of tokens [ENTRIES] of a split: how often the path has them, their biases, and
    whether they are banned. Biases add up in order."""
    ENTRIES: tl.constexpr = token.shape[0]
    path, bias = tl.zeros([ENTRIES], tl.int32), tl.zeros([ENTRIES], tl.float32)
    banned = token < 0
    lane = tl.arange(0, ENTRIES)
    for start in range(0, site.listed, ENTRIES):
        listed = _listed_tokens(edits, batch, place, site, start, ENTRIES)
        inside = (listed >= span.begin) & (listed < span.end)
        at = tl.min(tl.where(inside, lane, ENTRIES))
        while at < ENTRIES:
            same = token == tl.max(tl.where(lane == at, listed, -1))
            i = start + at - site.path
            if i < 0:
                path += same.to(tl.int32)
            elif i < edits.bias_count:
                if edits.bias_values is not None:
                    value = tl.load(edits.bias_values + site.request * edits.bias_count + i)
                    bias += tl.where(same, value, 0.0)
            elif _bans(edits, batch, place, site, i - edits.bias_count):
                banned = banned | same
            at = tl.min(tl.where(inside & (lane > at), lane, ENTRIES))
    return path, bias, banned


@triton.jit
def _bans(edits, batch, place, site, i):
    """Whether the i-th of bans and last tokens of bad words holds here."""
    holds = tl.full([], True, tl.int1)
    if edits.banned_until is not None:
        if i < edits.banned_count:
            holds = site.depth < tl.load(edits.banned_until + site.request)
    if edits.bad_words is not None:
        if i >= edits.banned_count:
            holds = _was_written(edits, batch, place, site, i - edits.banned_count)
    return holds


@triton.jit
def _was_written(edits, batch, place, site, word):
    """Whether all tokens of a bad word but the last are what was written last."""
    node = place.node
    holds, padded = tl.full([], True, tl.int1), tl.full([], False, tl.int1)
    before, kept = tl.full([], 1, tl.int32), edits.recent_count + 0
    while holds & (before < edits.bad_length):
        wanted = tl.load(_bad_word(edits, site, word) + edits.bad_length - 1 - before)
        token = tl.full([], -1, tl.int64)
        if node > 0:
            if batch.tokens is not None:
                token = tl.load(batch.tokens + place.first + node)
                node = _parent(batch, place, node)
        else:
            kept -= 1
            if edits.recent is not None:
                there = (site.slot >= 0) & (kept >= 0)
                token = tl.load(edits.recent + site.slot * edits.recent_count + kept, mask=there, other=-1)
        holds = (wanted < 0) | ((wanted == token) & (not padded))
        padded = wanted < 0  # and so are all before, or there is no such word
        before += 1
    return holds
