# SPDX-License-Identifier: Apache-2.0
"""Moves the kept rows of all caches in one launch. A program moves those of one request in two caches."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import triton
import triton.language as tl

from .._cache_table import FIELDS, cache_rows, new_rows
from .._ops.calls import CommitKVCall
from .addresses import on_device, pointer, unit_words
from .dispatch import Launch, device_of
from .launch import COMMIT_CACHES, COMMIT_UNITS, COMMIT_WARPS, commit_splits
from .path import kept_nodes
from .tree import request_rows

_FIELDS = tl.constexpr(len(FIELDS))
_LARGEST = tl.constexpr(2**31 - 1)


@cache
def _kernel(device: Any, heads_first: bool, page_size: int, new: bool) -> Launch:
    """With or without rows that are new."""
    constants = dict(HEADS_FIRST=heads_first, PAGE_SIZE=page_size, CACHES=COMMIT_CACHES, UNITS=COMMIT_UNITS)
    return Launch(_commit_kv_kernel, device, constants, num_warps=COMMIT_WARPS)


def commit_kv(call: CommitKVCall) -> None:
    """Move the kept rows, and fill the outputs."""
    table, device = call.table, call.path.device
    if call.caches:  # no plan; or a tracer shows them, perhaps as copies of those that the plan was made for
        table = on_device(cache_rows(call.caches, call.layout), device)
    new = on_device(new_rows(call.new, call.layout), device) if call.new else None
    (batch, width), caches = call.path.shape, table.shape[0]
    groups = -(-caches // COMMIT_CACHES)
    launch = _kernel(device_of(call.path), call.layout == "HND", call.page_size, new is not None)
    launch(
        (batch, groups, commit_splits(batch * groups)),
        table, new, call.path, call.cu_nodes, call.block_table, call.prefix_lens,
        call.out_lengths, call.out_pages_kept,
        caches, width, call.rows, call.block_table.shape[1],
    )  # fmt: skip


@triton.jit
def _commit_kv_kernel(
    table_ptr,  # [C, 7] int64: FIELDS of each cache
    new_ptr,  # [C, 3] int64: address, strides of rows and of heads of the rows to write; or None
    path_ptr,  # [B, width]
    cu_nodes_ptr,  # [B + 1]
    block_table_ptr,  # [B, pages_per_request]
    prefix_lens_ptr,  # [B]
    out_lengths_ptr,  # [B]
    out_pages_kept_ptr,  # [B]
    cache_count,
    width,
    rows,
    pages_per_request,
    HEADS_FIRST: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    CACHES: tl.constexpr,
    UNITS: tl.constexpr,
):
    b, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    prefix = tl.load(prefix_lens_ptr + b)
    start, nodes = request_rows(cu_nodes_ptr, b, rows)
    path_ptr += b * width
    kept = kept_nodes(path_ptr, width, tl.where(prefix < 0, 0, nodes))
    prefix = tl.maximum(prefix, 0).to(tl.uint32)  # so that sums of two int32 fit
    if (group == 0) & (tl.program_id(2) == 0):
        length = prefix + kept.to(tl.uint32)
        pages_kept = length // PAGE_SIZE + (length % PAGE_SIZE != 0)
        tl.store(out_lengths_ptr + b, tl.minimum(length, _LARGEST).to(tl.int32))
        tl.store(out_pages_kept_ptr + b, tl.minimum(pages_kept, _LARGEST).to(tl.int32))

    caches = ()
    numbers = tl.full((), 0, tl.int64)
    for i in tl.static_range(CACHES):
        cache, more = _cache(table_ptr, new_ptr, group * CACHES + i, cache_count, start, HEADS_FIRST)
        caches = caches + (cache,)
        numbers |= more
    block_table_ptr += b * pages_per_request
    if numbers % 16 == 0:
        _move_rows(
            caches, path_ptr, kept, prefix, block_table_ptr, pages_per_request,
            HEADS_FIRST, new_ptr is not None, PAGE_SIZE, UNITS, tl.int64, 2,
        )  # fmt: skip
    else:
        _move_rows(
            caches, path_ptr, kept, prefix, block_table_ptr, pages_per_request,
            HEADS_FIRST, new_ptr is not None, PAGE_SIZE, UNITS, tl.int8, 1,
        )  # fmt: skip


class _Cache(NamedTuple):
    """A cache, and the rows of the request that are to be written to it; strides in bytes."""

    address: tl.tensor
    pages: tl.tensor
    page_stride: tl.tensor
    slot_stride: tl.tensor
    heads: tl.tensor
    head_stride: tl.tensor
    row_bytes: tl.tensor
    new: tl.tensor
    new_stride: tl.tensor
    new_head_stride: tl.tensor


@triton.jit
def _cache(table_ptr, new_ptr, cache, cache_count, start, HEADS_FIRST: tl.constexpr):
    """What there is to know of a cache, and all its numbers that have to be aligned, or-ed. Beyond the last
    cache is one without pages."""
    mask = cache < cache_count
    table_ptr += cache * _FIELDS
    address = tl.load(table_ptr, mask=mask, other=0)
    pages = tl.load(table_ptr + 1, mask=mask, other=0).to(tl.uint32)
    page_stride = tl.load(table_ptr + 2, mask=mask, other=0)
    slot_stride = tl.load(table_ptr + 3, mask=mask, other=0)
    row_bytes = tl.load(table_ptr + 6, mask=mask, other=0)
    numbers = address | page_stride | slot_stride | row_bytes
    heads, head_stride, new, new_stride, new_head_stride = 1, 0, 0, 0, 0
    if HEADS_FIRST:
        heads = tl.load(table_ptr + 4, mask=mask, other=0).to(tl.int32)
        head_stride = tl.load(table_ptr + 5, mask=mask, other=0)
        numbers |= head_stride
    if new_ptr is not None:
        new = tl.load(new_ptr + cache * 3, mask=mask, other=0)
        new_stride = tl.load(new_ptr + cache * 3 + 1, mask=mask, other=0)
        new_head_stride = tl.load(new_ptr + cache * 3 + 2, mask=mask, other=0)
        numbers |= new | new_stride | new_head_stride
        new += start * new_stride
    row_bytes = row_bytes.to(tl.int32)
    known = _Cache(
        address, pages, page_stride, slot_stride, heads, head_stride, row_bytes,
        new, new_stride, new_head_stride,
    )  # fmt: skip
    return known, numbers


@triton.jit
def _move_rows(
    caches, path_ptr, kept, prefix, block_table_ptr, pages_per_request,
    HEADS_FIRST: tl.constexpr, HAS_NEW: tl.constexpr, PAGE_SIZE: tl.constexpr, UNITS: tl.constexpr,
    WORD: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """Move the kept rows of a request in some caches. A thread moves a unit of `WORDS` words in one access.

    In place, ascending. Since path[j] >= j, nothing is read from a slot that has been written, and a thread
    that writes its part of slot j has read what was there if node j is kept.
    """
    size: tl.constexpr = WORD.primitive_bitwidth // 8 * WORDS
    units = 0
    for i in tl.static_range(len(caches)):
        cache = _one_of(caches, i)
        units = tl.maximum(units, cache.heads * (cache.row_bytes // size))
    for first in range(tl.program_id(2) * UNITS, units, tl.num_programs(2) * UNITS):
        for j in range(kept):
            node = tl.load(path_ptr + j)
            if HAS_NEW | (node != j):
                page, slot = _place(
                    prefix + tl.cast(j, tl.uint32), block_table_ptr, pages_per_request, PAGE_SIZE
                )
                from_page, from_slot = page, slot
                if not HAS_NEW:
                    from_page, from_slot = _place(
                        prefix + node.to(tl.uint32), block_table_ptr, pages_per_request, PAGE_SIZE
                    )
                rows = ()
                for i in tl.static_range(len(caches)):
                    cache = _one_of(caches, i)
                    if HAS_NEW:
                        source, head_stride = cache.new + node * cache.new_stride, cache.new_head_stride
                    else:
                        source = cache.address + from_page * cache.page_stride + from_slot * cache.slot_stride
                        head_stride = cache.head_stride
                    inside = tl.maximum(page, from_page) < cache.pages
                    offs, mask = _units(first, cache, inside, head_stride, HEADS_FIRST, UNITS, size)
                    source = pointer(source + first * size, WORD, size) + unit_words(offs, WORDS)
                    rows = rows + (tl.load(source, mask=mask[:, None]),)
                for i in tl.static_range(len(caches)):  # after all loads, which so wait together
                    cache = _one_of(caches, i)
                    to = cache.address + page * cache.page_stride + slot * cache.slot_stride
                    inside = tl.maximum(page, from_page) < cache.pages
                    offs, mask = _units(first, cache, inside, cache.head_stride, HEADS_FIRST, UNITS, size)
                    to = pointer(to + first * size, WORD, size) + unit_words(offs, WORDS)
                    tl.store(to, rows[i], mask=mask[:, None])


@triton.jit
def _one_of(caches, i: tl.constexpr):
    """Before 3.6, Triton forgets the names of what is in a tuple of tuples."""
    c = caches[i]
    return _Cache(c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7], c[8], c[9])


@triton.jit
def _place(slot, block_table_ptr, pages_per_request, PAGE_SIZE: tl.constexpr):
    """Page of a slot, and its place there. Outside the block table the page is beyond those of any cache."""
    index = slot // PAGE_SIZE
    page = tl.load(block_table_ptr + index, mask=index < pages_per_request, other=-1)
    return page.to(tl.uint32), slot % PAGE_SIZE


@triton.jit
def _units(
    first, cache, inside, head_stride, HEADS_FIRST: tl.constexpr, UNITS: tl.constexpr, size: tl.constexpr
):
    """Offsets of a row's units from `first` on, less `first`, and their mask: none of a row that is not
    inside the cache."""
    unit, per_head = tl.arange(0, UNITS), cache.row_bytes // size
    mask = unit < tl.where(inside, cache.heads * per_head - first, 0)
    if HEADS_FIRST:
        head = (first + unit) // per_head
        unit = (first + unit) % per_head + head.to(tl.int64) * (head_stride // size) - first
    return unit, mask
