# SPDX-License-Identifier: Apache-2.0
"""Parts of the kernels of `tree_attention`: a tile of keys taken into the softmax of rows of queries, and how
rows, slots of a paged cache, requests and parents are found."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .logarithm import LOG2E


class Form(NamedTuple):
    """What the compiler knows of a call. The host fills it, and kernels take it whole."""

    QUERY_HEADS: int
    KV_HEADS: int
    HEAD: int  # elements of a key
    VALUE: int  # of a value
    PAGE_SIZE: int
    WIDE: bool  # a page has 2^32 elements
    ALIKE: bool  # values lie as keys do
    WINDOW: bool  # whether there is one
    SOFTCAP: bool
    LATENT: bool  # the first part of a key is its value
    BLOCK_HEAD: int  # elements of a key in the first product
    BLOCK_REST: int  # the other elements, 0 = none
    BLOCK_VALUE: int


class Tile(NamedTuple):
    """Keys and values that rows see."""

    key_rows: tl.tensor  # pointers
    value_rows: tl.tensor
    held: tl.tensor  # which of them there are
    factor: tl.tensor  # of the scores
    softcap: tl.tensor


class Softmax(NamedTuple):
    """Of every row what it has seen so far. Scores are to the base 2."""

    acc: tl.tensor  # [rows, BLOCK_VALUE] values times weights
    top: tl.tensor  # [rows] the largest score
    total: tl.tensor  # [rows] weights, relative to it


class Cache(NamedTuple):
    """One head of a paged cache, and the pages of one request."""

    table: tl.tensor  # pointer to its row of the block table
    key_ptr: tl.tensor
    value_ptr: tl.tensor
    pages: tl.tensor  # of the cache
    key_page: tl.tensor  # strides
    key_slot: tl.tensor
    value_page: tl.tensor
    value_slot: tl.tensor


@triton.jit
def nothing_seen(ROWS: tl.constexpr, BLOCK_VALUE: tl.constexpr):
    top = tl.full([ROWS], float("-inf"), tl.float32)
    return Softmax(tl.zeros([ROWS, BLOCK_VALUE], tl.float32), top, tl.zeros([ROWS], tl.float32))


@triton.jit
def load_query(row_ptrs, mask, FORM: tl.constexpr, ELEMENTS: tl.constexpr):
    """Query rows in two parts; without a second, the first twice. Rows of more parts stay where they are."""
    if FORM.HEAD > FORM.BLOCK_HEAD + FORM.BLOCK_REST:
        query, rest = row_ptrs, mask
    else:
        query = load_rows(row_ptrs, mask, tl.arange(0, FORM.BLOCK_HEAD), FORM.HEAD, ELEMENTS)
        rest = query
        if FORM.BLOCK_REST > 0:
            offs = FORM.BLOCK_HEAD + tl.arange(0, FORM.BLOCK_REST)
            rest = load_rows(row_ptrs, mask, offs, FORM.HEAD, ELEMENTS)
    return query, rest


@triton.jit
def attend_tile(query, tile, is_seen, softmax, FORM: tl.constexpr):
    """The softmax of every row with a tile: keys that are held and, unless None, `is_seen` [rows, keys]."""
    first, rest = query
    WHOLE: tl.constexpr = FORM.HEAD <= FORM.BLOCK_HEAD + FORM.BLOCK_REST
    ELEMENTS: tl.constexpr = first.dtype if WHOLE else tl.float32  # keys are taken in parts only as float32
    scores = tl.zeros([first.shape[0], tile.key_rows.shape[0]], tl.float32)
    if not WHOLE:
        for part in tl.static_range(0, FORM.HEAD, FORM.BLOCK_HEAD):
            offs = part + tl.arange(0, FORM.BLOCK_HEAD)
            query_part = load_rows(first, rest, offs, FORM.HEAD, ELEMENTS)
            key_part = load_rows(tile.key_rows, tile.held, offs, FORM.HEAD, ELEMENTS)
            scores = _add_products(query_part, key_part, scores)
    else:
        offs = tl.arange(0, FORM.BLOCK_HEAD)
        key = load_rows(tile.key_rows, tile.held, offs, FORM.HEAD, ELEMENTS)
        scores = _add_products(first, key, scores)
        if FORM.BLOCK_REST > 0:
            offs_rest = FORM.BLOCK_HEAD + tl.arange(0, FORM.BLOCK_REST)
            key_rest = load_rows(tile.key_rows, tile.held, offs_rest, FORM.HEAD, ELEMENTS)
            scores = _add_products(rest, key_rest, scores)
    if FORM.SOFTCAP:
        scores = _tanh(scores * (tile.factor / tile.softcap)) * (tile.softcap * LOG2E)
    else:
        scores = scores * (tile.factor * LOG2E)
    scores += tl.where(tile.held, 0, float("-inf"))[None, :]  # finite before: keys not held are 0
    if is_seen is not None:
        scores = tl.where(is_seen, scores, float("-inf"))
    top, base, alpha = raise_top(softmax.top, tl.max(scores, 1))
    weights = tl.exp2(scores - base[:, None])
    total = softmax.total * alpha + tl.sum(weights, 1)
    if FORM.LATENT:
        value = key
    else:
        offs_v = tl.arange(0, FORM.BLOCK_VALUE)
        value = load_rows(tile.value_rows, tile.held, offs_v, FORM.VALUE, ELEMENTS)
    acc = tl.dot(weights.to(value.dtype), value, softmax.acc * alpha[:, None], input_precision="ieee")
    return Softmax(acc, top, total)


@triton.jit
def _add_products(query, key, scores):
    """scores + query . key. In float32, without tensor cores, a thread holds whole rows of what it
    multiplies: they are taken in pieces of 16, side by side, and the pieces added."""
    if query.dtype == tl.float32:
        PIECES: tl.constexpr = query.shape[1] // 16
        query = tl.permute(tl.reshape(query, [query.shape[0], PIECES, 16]), [1, 0, 2])
        key = tl.permute(tl.reshape(key, [key.shape[0], PIECES, 16]), [1, 2, 0])
        return scores + tl.sum(tl.dot(query, key, input_precision="ieee"), 0)
    else:
        return tl.dot(query, tl.trans(key), scores)


@triton.jit
def raise_top(top, score):
    """The new largest score, what is subtracted from scores (finite also where nothing was seen), and what
    earlier weights are to be multiplied by."""
    new_top = tl.maximum(top, score)
    base = tl.where(new_top == float("-inf"), 0, new_top)
    return new_top, base, tl.exp2(top - base)


@triton.jit
def _tanh(x):
    """The rational approximation of Eigen's fast tanh, a few units in the last place."""
    x = tl.minimum(tl.maximum(x, -7.90531111, tl.PropagateNan.ALL), 7.90531111, tl.PropagateNan.ALL)
    y = x * x
    p = y * -2.76076847742355e-16 + 2.00018790482477e-13
    p = p * y - 8.60467152213735e-11
    p = p * y + 5.12229709037114e-08
    p = p * y + 1.48572235717979e-05
    p = p * y + 6.37261928875436e-04
    p = p * y + 4.89352455891786e-03
    q = y * 1.19825839466702e-06 + 1.18534705686654e-04
    q = q * y + 2.26843463243900e-03
    q = q * y + 4.89352518554385e-03
    return x * p / q


@triton.jit
def load_rows(row_ptrs, mask, offs, SIZE: tl.constexpr, ELEMENTS: tl.constexpr):
    """[rows, offs] as ELEMENTS; zeros where masked and from SIZE on."""
    stored = tl.load(row_ptrs[:, None] + offs[None, :], mask=mask_rows(mask, offs, SIZE), other=0)
    if stored.dtype == tl.uint8:  # float8_e4m3fn: its exponent and mantissa, where those of float32 lie
        bits = stored.to(tl.uint32)
        number = ((bits & 0x80) << 24 | (bits & 0x7F) << 20).to(tl.float32, bitcast=True) * 2.0**120
        return tl.where((bits & 0x7F) == 0x7F, float("nan"), number).to(ELEMENTS)
    return stored.to(ELEMENTS)


@triton.jit
def mask_rows(mask, offs, SIZE: tl.constexpr):
    """The rows of a mask as far as there are columns. Columns begin at a multiple of their number."""
    mask = mask[:, None]
    if SIZE % offs.shape[0] != 0:
        mask &= (offs < SIZE)[None, :]
    return mask


@triton.jit
def scale_of(scale, scales_ptr, head):
    if scales_ptr is not None:
        scale = tl.load(scales_ptr + head)
    return scale


# --- The cache ---------------------------------------------------------------------------------------------


@triton.jit
def find_pages(cache, position, held, FORM: tl.constexpr):
    """Entries of the block table, -1 where positions are not to be held."""
    return tl.load(cache.table + position.to(tl.uint32) // FORM.PAGE_SIZE, mask=held, other=-1)


@triton.jit
def is_page(cache, page):
    return page.to(tl.uint32) < cache.pages.to(tl.uint32)


@triton.jit
def valid_until(cache, start, end, FORM: tl.constexpr):
    """The first position from `start` on without a valid page, `end` if there is none before it."""
    BLOCK: tl.constexpr = 256
    entry, last = start // FORM.PAGE_SIZE, tl.cdiv(end, FORM.PAGE_SIZE)
    stop = last
    while entry < last:
        offs = entry + tl.arange(0, BLOCK)
        page = tl.load(cache.table + offs, mask=offs < last, other=-1)
        stop = tl.min(tl.where(is_page(cache, page), last, offs), 0)
        entry = tl.where(stop < entry + BLOCK, last, entry + BLOCK)
    return tl.maximum(tl.minimum(stop * FORM.PAGE_SIZE, end), start)


@triton.jit
def find_rows(cache, page, position, FORM: tl.constexpr):
    """Rows of keys and values of positions whose pages were found."""
    slot = position.to(tl.uint32) % FORM.PAGE_SIZE
    if FORM.WIDE:
        slot = slot.to(tl.int64)
    wide_page = page.to(tl.uint32).to(tl.int64)
    offset = wide_page * cache.key_page + slot * cache.key_slot
    value_offset = offset
    if not FORM.ALIKE:
        value_offset = wide_page * cache.value_page + slot * cache.value_slot
    return cache.key_ptr + offset, cache.value_ptr + value_offset


# --- Requests, splits, parents -----------------------------------------------------------------------------


@triton.jit
def find_request(cu_nodes_ptr, requests, rows, place, GROUP: tl.constexpr, TILE: tl.constexpr):
    """The request that a tile of TILE packed rows belongs to, -1 = none, where it begins and where it ends.
    With GROUP = 0 `place` is a row and no tile.

    The tiles of request b are numbered from begin_b * GROUP // TILE + b on: no two share a number, and no
    sums over the requests before are needed. Offsets out of order give empty requests.
    """
    BLOCK: tl.constexpr = 32
    found, begin, end = 0, 0, rows
    last = 0
    for at in range(0, requests + 1, BLOCK):
        offs = at + tl.arange(0, BLOCK)
        offset = tl.load(cu_nodes_ptr + offs, mask=offs <= requests, other=0)
        offset = tl.associative_scan(tl.minimum(tl.maximum(offset, last), rows), 0, _larger)
        last = tl.max(offset, 0)
        if GROUP > 0:
            is_reached = offset * GROUP // TILE + offs <= place
        else:
            is_reached = offset <= place
        is_reached &= offs <= requests
        found += tl.sum(is_reached.to(tl.int32), 0)
        begin = tl.maximum(begin, tl.max(tl.where(is_reached, offset, 0), 0))
        end = tl.minimum(end, tl.min(tl.where(is_reached | (offs > requests), rows, offset), 0))
    return tl.where(found <= requests, found - 1, -1), begin, end


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def find_splits(prefix_lens_ptr, request, longest, window, splits, least, FORM: tl.constexpr):
    """The prefix, its first position that any node sees, and the length of a split of the rest, as
    `attention_launch.split_length` has it."""
    prefix = tl.minimum(tl.maximum(tl.load(prefix_lens_ptr + request), 0), longest)
    first = 0
    if FORM.WINDOW:
        first = tl.maximum(prefix - window + 1, 0)
    length = tl.cdiv(tl.cdiv(prefix - first, splits), 64) * 64
    return prefix, first, tl.maximum(length, least)


@triton.jit
def find_parents(parents_ptr, node, mask):
    """Parents of nodes, -1 where masked or without a valid one."""
    parent = tl.load(parents_ptr + node, mask=mask, other=-1)
    return tl.where(parent < node, tl.maximum(parent, -1), -1)


@triton.jit
def find_depths(parents_ptr, node, most):
    """Depths of nodes, counted up to `most`; of -1, 0."""
    depth = tl.zeros_like(node)
    step = 0
    while (step < most) & (tl.max(node, 0) >= 0):
        node = find_parents(parents_ptr, node, node >= 0)
        depth += (node >= 0).to(tl.int32)
        step += 1
    return depth
