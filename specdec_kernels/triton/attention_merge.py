# SPDX-License-Identifier: Apache-2.0
"""The second launch of `tree_attention`: the splits of each row merged. Where the result must be
deterministic, the path of the row's node comes first."""

from __future__ import annotations

import triton
import triton.language as tl

from .attention_splits import UNALIGNED, VARYING
from .attention_tile import (
    Cache,
    Softmax,
    Tile,
    attend_tile,
    find_pages,
    find_request,
    find_rows,
    find_splits,
    is_page,
    load_query,
    load_rows,
    mask_rows,
    nothing_seen,
    raise_top,
    scale_of,
)
from .logarithm import LN2, LOG2E


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=[*UNALIGNED, "sinks_ptr"])
def _attention_merge_kernel(
    sinks_ptr,  # [QUERY_HEADS] or None
    out_ptr,  # [rows, QUERY_HEADS, VALUE]
    out_lse_ptr,  # [rows, QUERY_HEADS] or None
    partial_ptr,  # [splits, rows, QUERY_HEADS, VALUE]
    partial_lse_ptr,  # [splits, rows, QUERY_HEADS]
    prefix_lens_ptr,
    cu_nodes_ptr,
    rows,
    requests,
    longest,
    window,
    splits,
    least,
    FORM: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Some columns of a block of query heads of one row: BLOCK_SPLITS splits at a time."""
    row = tl.program_id(0).to(tl.int64)
    query_head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    offs_v = tl.program_id(2) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    mask_h = query_head < FORM.QUERY_HEADS
    request, _, _ = find_request(cu_nodes_ptr, requests, rows, tl.program_id(0), 0, 1)
    top = tl.full([BLOCK_HEADS], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_HEADS], tl.float32)
    acc = tl.zeros([BLOCK_HEADS, BLOCK_COLUMNS], tl.float32)
    if request >= 0:
        prefix, first, length = find_splits(prefix_lens_ptr, request, longest, window, splits, least, FORM)
        used = tl.maximum(tl.cdiv(prefix - first, length), 1)  # the first has the tree
        for at in range(0, used, BLOCK_SPLITS):
            split = at + tl.arange(0, BLOCK_SPLITS)
            place = (split.to(tl.int64) * rows + row)[:, None] * FORM.QUERY_HEADS + query_head[None, :]
            held = (split < used)[:, None] & mask_h[None, :]
            lse = tl.load(partial_lse_ptr + place, mask=held, other=float("-inf"))
            part_ptrs = (partial_ptr + place * FORM.VALUE)[:, :, None] + offs_v[None, None, :]
            held = held[:, :, None]
            if FORM.VALUE % BLOCK_COLUMNS != 0:
                held &= (offs_v < FORM.VALUE)[None, None, :]
            part = tl.load(part_ptrs, mask=held, other=0)
            top, base, alpha = raise_top(top, tl.max(lse, 0))
            weight = tl.exp2(lse - base[None, :])
            total = total * alpha + tl.sum(weight, 0)
            acc = acc * alpha[:, None] + tl.sum(part.to(tl.float32) * weight[:, :, None], 0)
        if sinks_ptr is not None:
            acc, top, total = _add_sink(sinks_ptr + query_head, mask_h, Softmax(acc, top, total))
    place = row * FORM.QUERY_HEADS + query_head
    _store(out_ptr + place * FORM.VALUE, offs_v, mask_h, Softmax(acc, top, total), FORM.VALUE)
    if out_lse_ptr is not None:
        if tl.program_id(2) == 0:
            tl.store(out_lse_ptr + place, (top + tl.log2(total)) * LN2, mask=mask_h)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=[*UNALIGNED, "sinks_ptr"])
def _attention_paths_kernel(
    query_ptr,
    new_key_ptr,
    new_value_ptr,
    sinks_ptr,
    out_ptr,
    out_lse_ptr,
    key_ptr,
    value_ptr,
    key_scales_ptr,
    value_scales_ptr,
    block_table_ptr,
    prefix_lens_ptr,
    cu_nodes_ptr,
    parents_ptr,
    partial_ptr,
    partial_lse_ptr,
    rows,
    requests,
    longest,
    table_width,
    pages,
    stride_query_r,
    stride_query_h,
    stride_key_p,
    stride_key_s,
    stride_key_h,
    stride_value_p,
    stride_value_s,
    stride_value_h,
    stride_new_key_r,
    stride_new_key_h,
    stride_new_value_r,
    stride_new_value_h,
    scale,
    key_scale,
    value_scale,
    softcap,
    window,
    splits,
    least,
    FORM: tl.constexpr,
    ELEMENTS: tl.constexpr,  # dtype of the operands of products
    BLOCK_HEADS: tl.constexpr,
):
    """One node and a block of query heads of a head of the cache: the node and its ancestors, nearest first,
    then the splits in order. Nothing else in the tree is read."""
    GROUP: tl.constexpr = FORM.QUERY_HEADS // FORM.KV_HEADS
    row, kv_head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    offs_h = tl.program_id(2) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    mask_h = offs_h < GROUP
    query_head = kv_head * GROUP + offs_h
    wide_head = kv_head.to(tl.int64)
    offs_v = tl.arange(0, FORM.BLOCK_VALUE)
    request, begin, _ = find_request(cu_nodes_ptr, requests, rows, tl.program_id(0), 0, 1)
    acc, top, total = nothing_seen(BLOCK_HEADS, FORM.BLOCK_VALUE)
    if request >= 0:
        prefix, first, length = find_splits(prefix_lens_ptr, request, longest, window, splits, least, FORM)
        query_rows = query_ptr + row * stride_query_r + query_head * stride_query_h
        query = load_query(query_rows, mask_h, FORM, ELEMENTS)
        factor = scale
        if new_key_ptr is None:
            factor *= scale_of(key_scale, key_scales_ptr, kv_head)
        cache = Cache(
            block_table_ptr + request.to(tl.int64) * table_width,
            key_ptr + wide_head * stride_key_h, value_ptr + wide_head * stride_value_h,
            pages, stride_key_p, stride_key_s, stride_value_p, stride_value_s,
        )  # fmt: skip
        offs_t = tl.arange(0, 16)
        node = tl.program_id(0) - begin
        distance = 0
        while (node >= 0) & ((distance < window) | (not FORM.WINDOW)):
            path = tl.full([16], -1, tl.int32)
            step = 0
            while (node >= 0) & (step < 16):
                path = tl.where(offs_t == step, node, path)
                parent = tl.load(parents_ptr + begin + node)
                node = tl.where(parent < node, parent, -1)
                step += 1
            held = path >= 0
            if FORM.WINDOW:
                held &= distance + offs_t < window
            distance += 16
            if new_key_ptr is not None:
                tree_row = (begin + path).to(tl.int64)
                keys = new_key_ptr + tree_row * stride_new_key_r + kv_head * stride_new_key_h
                values = new_value_ptr + tree_row * stride_new_value_r + kv_head * stride_new_value_h
            else:
                position = prefix + path
                page = find_pages(cache, position, held & (position < table_width * FORM.PAGE_SIZE), FORM)
                keys, values = find_rows(cache, page, position, FORM)
                held = is_page(cache, page)
            tile = Tile(keys, values, held, factor, softcap)
            acc, top, total = attend_tile(query, tile, None, Softmax(acc, top, total), FORM)
        if new_key_ptr is None:
            acc *= scale_of(value_scale, value_scales_ptr, kv_head)
        for split in range(0, tl.cdiv(prefix - first, length)):
            place = (split.to(tl.int64) * rows + row) * FORM.QUERY_HEADS + query_head
            lse = tl.load(partial_lse_ptr + place, mask=mask_h, other=float("-inf"))
            part = load_rows(partial_ptr + place * FORM.VALUE, mask_h, offs_v, FORM.VALUE, tl.float32)
            top, base, alpha = raise_top(top, lse)
            weight = tl.exp2(lse - base)
            total = total * alpha + weight
            acc = acc * alpha[:, None] + part * weight[:, None]
        if sinks_ptr is not None:
            acc, top, total = _add_sink(sinks_ptr + query_head, mask_h, Softmax(acc, top, total))
    place = row * FORM.QUERY_HEADS + query_head
    _store(out_ptr + place * FORM.VALUE, offs_v, mask_h, Softmax(acc, top, total), FORM.VALUE)
    if out_lse_ptr is not None:
        tl.store(out_lse_ptr + place, (top + tl.log2(total)) * LN2, mask=mask_h)


@triton.jit
def _add_sink(sink_ptrs, mask, softmax):
    """A score without a value."""
    sink = tl.load(sink_ptrs, mask=mask, other=float("-inf")) * LOG2E
    top, base, alpha = raise_top(softmax.top, sink)
    total = softmax.total * alpha + tl.exp2(sink - base)
    return Softmax(softmax.acc * alpha[:, None], top, total)


@triton.jit
def _store(row_ptrs, offs, mask, softmax, SIZE: tl.constexpr):
    """Values over weights, 0 where nothing was seen."""
    out = softmax.acc * tl.where(softmax.total == 0, 0, 1 / softmax.total)[:, None]
    mask = mask_rows(mask, offs, SIZE)
    tl.store(row_ptrs[:, None] + offs[None, :], out.to(row_ptrs.dtype.element_ty), mask=mask)
