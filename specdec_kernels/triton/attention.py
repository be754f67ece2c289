# SPDX-License-Identifier: Apache-2.0
"""Attention over the draft tree, in two launches.

splits   (tiles x KV heads, splits)   attends to a split of the prefix, with the first one to the tree as well
merge    (rows, KV heads, blocks)     merges the splits of each row

Where the result must be deterministic, the second kernel attends to the tree.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.runtime import driver

from .._ops.calls import TreeAttentionCall
from . import launch
from .addresses import element_type
from .logarithm import LN2, LOG2E

_LONG_PREFIX = tl.constexpr(launch.LONG_PREFIX)
_LONGER_EACH = tl.constexpr(launch.LONGER_EACH)
_LONGER_BY = tl.constexpr(launch.LONGER_BY)


def tree_attention(call: TreeAttentionCall) -> None:
    """Fill the outputs, in two launches."""
    query, key_cache, new_key, window = call.query, call.key_cache, call.new_key, call.window
    rows, query_heads, head = query.shape
    if rows == 0 or query_heads == 0:
        return
    latent = call.value_cache is None
    value_cache, value_scale, value_scales, new_value = (
        (key_cache, call.key_scale, call.key_scales, new_key)
        if latent
        else (call.value_cache, call.value_scale, call.value_scales, call.new_value)
    )
    slots, heads = (2, 1) if call.heads_first else (1, 2)
    page_size, kv_heads, requests = key_cache.shape[slots], key_cache.shape[heads], call.cu_nodes.shape[0] - 1
    group = query_heads // kv_heads
    elements = _product_dtype(query.dtype, key_cache.dtype)
    packed = -(-rows // max(requests, 1)) * group  # rows of an average request
    widened = key_cache.dtype != elements
    plain = not widened and not window and call.softcap == 0
    target = driver.active.get_current_target()
    shape = launch.attention_launch(
        target,
        query_heads,
        head,
        call.value_dim,
        packed,
        bytes_per_element=elements.itemsize,
        plain=plain,
        deterministic=call.deterministic,
    )
    whole = head <= shape.block_head + shape.block_rest  # else keys are taken in parts
    longest = min(call.max_prefix_len, call.block_table.shape[1] * page_size)
    splits = launch.attention_splits(min(longest, window) if window else longest, shape.split)
    tiles = (rows * group - 1) // shape.block_rows + requests
    partial = torch.empty(
        (splits, rows, query_heads, call.value_dim), dtype=torch.float32, device=query.device
    )
    partial_lse = torch.empty((splits, rows, query_heads), dtype=torch.float32, device=query.device)
    shared = dict(
        query_ptr=query,
        new_key_ptr=new_key,
        new_value_ptr=new_value,
        key_ptr=_stored(key_cache),
        value_ptr=_stored(value_cache),
        key_scales_ptr=call.key_scales,
        value_scales_ptr=value_scales,
        block_table_ptr=call.block_table,
        prefix_lens_ptr=call.prefix_lens,
        cu_nodes_ptr=call.cu_nodes,
        parents_ptr=call.parents,
        partial_ptr=partial,
        partial_lse_ptr=partial_lse,
        rows=rows,
        requests=requests,
        longest=longest,
        table_width=call.block_table.shape[1],
        pages=key_cache.shape[0],
        stride_query_r=query.stride(0),
        stride_query_h=query.stride(1),
        stride_key_p=key_cache.stride(0),
        stride_key_s=key_cache.stride(slots),
        stride_key_h=key_cache.stride(heads),
        stride_value_p=value_cache.stride(0),
        stride_value_s=value_cache.stride(slots),
        stride_value_h=value_cache.stride(heads),
        stride_new_key_r=new_key.stride(0) if new_key is not None else 0,
        stride_new_key_h=new_key.stride(1) if new_key is not None else 0,
        stride_new_value_r=new_value.stride(0) if new_value is not None else 0,
        stride_new_value_h=new_value.stride(1) if new_value is not None else 0,
        scale=call.scale,
        key_scale=call.key_scale,
        value_scale=value_scale,
        softcap=call.softcap,
        window=window,
        QUERY_HEADS=query_heads,
        KV_HEADS=kv_heads,
        HEAD=head,
        VALUE=call.value_dim,
        PAGE_SIZE=page_size,
        SOFTCAP=call.softcap > 0,
        WINDOW=window > 0,
        FRESH=new_key is not None,
        WIDE=page_size * max(key_cache.stride(slots), value_cache.stride(slots)) >= 2**32,
        DETERMINISTIC=call.deterministic,
        ELEMENTS=element_type(elements),
        BLOCK_REQUESTS=max(triton.next_power_of_2(requests + 1), 4),
        BLOCK_HEAD=shape.block_head,
        BLOCK_REST=shape.block_rest,
        BLOCK_VALUE=shape.block_value,
        SPLIT=shape.split,
        **launch.attention_registers(target, widened),
    )
    if tiles > 0:
        _attention_splits_kernel[(tiles * kv_heads, splits)](
            **shared,
            LATENT=latent and whole and shape.block_value == shape.block_head,
            BLOCK_ROWS=shape.block_rows,
            BLOCK_KEYS=shape.block_keys,
            num_warps=shape.warps,
            num_stages=shape.stages,
        )
    spans, span = (kv_heads, group) if call.deterministic else (1, query_heads)
    _attention_merge_kernel[(rows, spans, triton.cdiv(span, shape.block_heads))](
        **shared,
        sinks_ptr=call.sinks,
        out_ptr=call.out,
        out_lse_ptr=call.out_lse,
        BLOCK_HEADS=shape.block_heads,
        num_warps=shape.merge_warps,
        num_stages=1,
    )


def _product_dtype(query: torch.dtype, cache: torch.dtype) -> torch.dtype:
    """The dtype that holds the elements of both exactly. Any dtype of a query holds int8 and float8."""
    return query if cache in (query, torch.int8, torch.float8_e4m3fn) else torch.float32


def _stored(cache):
    """A cache of float8 as one of bytes, which every target reads."""
    return cache.view(torch.uint8) if cache.dtype == torch.float8_e4m3fn else cache


_VARYING = ["rows", "requests", "longest", "table_width", "pages", "window"]


@triton.jit(do_not_specialize=_VARYING)
def _attention_splits_kernel(
    query_ptr,  # [rows, QUERY_HEADS, HEAD]
    new_key_ptr,  # [rows, KV_HEADS, HEAD] or None
    new_value_ptr,  # [rows, KV_HEADS, VALUE] or None
    key_ptr,  # a paged cache, HEAD elements a slot
    value_ptr,  # VALUE elements a slot
    key_scales_ptr,  # [KV_HEADS] or None
    value_scales_ptr,
    block_table_ptr,  # [requests, table_width]
    prefix_lens_ptr,  # [requests]
    cu_nodes_ptr,  # [requests + 1]
    parents_ptr,  # [rows]
    partial_ptr,  # [splits, rows, QUERY_HEADS, VALUE]
    partial_lse_ptr,  # [splits, rows, QUERY_HEADS], to the base 2
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
    QUERY_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    VALUE: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr,
    LATENT: tl.constexpr,
    FRESH: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_REQUESTS: tl.constexpr,
    BLOCK_HEAD: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    SPLIT: tl.constexpr,
    ELEMENTS: tl.constexpr,
    DETERMINISTIC: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """Packed rows of one request and one head of the cache over one split of the prefix; with the first split
    over the tree as well, unless DETERMINISTIC."""
    GROUP: tl.constexpr = QUERY_HEADS // KV_HEADS
    tile, kv_head, split = tl.program_id(0) // KV_HEADS, tl.program_id(0) % KV_HEADS, tl.program_id(1)
    # The tiles of request b are numbered from begin_b * GROUP // BLOCK_ROWS + b on: no two share a number,
    # and no sums over the requests before are needed.
    offs_b = tl.arange(0, BLOCK_REQUESTS)
    begins = _request_begins(cu_nodes_ptr, offs_b, requests, rows)
    is_reached = (begins * GROUP // BLOCK_ROWS + offs_b <= tile) & (offs_b < requests)
    request = tl.sum(is_reached.to(tl.int32), 0) - 1
    begin = tl.max(tl.where(offs_b <= request, begins, 0), 0)
    nodes = tl.max(tl.where(offs_b <= request + 1, begins, 0), 0) - begin
    packed = (tile - request - begin * GROUP // BLOCK_ROWS) * BLOCK_ROWS
    if (request < 0) | (packed >= nodes * GROUP):
        return
    prefix, first, length = _prefix_splits(prefix_lens_ptr, request, longest, window, WINDOW, SPLIT)
    start = first + split * length
    if (start >= prefix) & (split > 0):
        return
    end = tl.minimum(start + length, prefix)

    offs_m = (packed + tl.arange(0, BLOCK_ROWS)).to(tl.uint32)
    mask_m = offs_m < nodes * GROUP
    first_node = packed // GROUP
    offs_i = (offs_m // GROUP).to(tl.int32) - first_node
    query_head = kv_head * GROUP + (offs_m % GROUP).to(tl.int32)
    first_row = (begin + first_node).to(tl.int64)
    query_rows = (
        query_ptr + first_row * stride_query_r + offs_i * stride_query_r + query_head * stride_query_h
    )
    query, query_rest = _load_query(query_rows, mask_m, HEAD, BLOCK_HEAD, BLOCK_REST, ELEMENTS)
    node = tl.where(mask_m, first_node + offs_i, -1)
    parents_ptr += begin
    if WINDOW:
        row_first = prefix + _depths(parents_ptr, node, window) - window + 1
        lowest = tl.min(tl.where(mask_m, row_first, prefix), 0)

    factor = scale * _scale_of(key_scale, key_scales_ptr, kv_head)
    value_factor = _scale_of(value_scale, value_scales_ptr, kv_head)
    table_ptr = block_table_ptr + request.to(tl.int64) * table_width
    key_ptr += kv_head.to(tl.int64) * stride_key_h
    value_ptr += kv_head.to(tl.int64) * stride_value_h
    top = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    acc = tl.zeros([BLOCK_ROWS, BLOCK_VALUE], tl.float32)
    offs_n = tl.arange(0, BLOCK_KEYS)
    for at in range(start, end, BLOCK_KEYS):
        position = at + offs_n
        held = position < end
        if WINDOW:
            held &= position >= lowest
        page, slot, held = _find_slots(table_ptr, position, held, pages, PAGE_SIZE, WIDE)
        key_rows = key_ptr + page * stride_key_p + slot * stride_key_s
        value_rows = value_ptr + page * stride_value_p + slot * stride_value_s
        is_seen = None
        if WINDOW:
            is_seen = position[None, :] >= row_first[:, None]
        acc, top, total = _attend_tile(
            query, query_rest, key_rows, value_rows, held, is_seen, factor, softcap, acc, top, total,
            HEAD, VALUE, BLOCK_HEAD, BLOCK_REST, BLOCK_VALUE, ELEMENTS, SOFTCAP, LATENT,
        )  # fmt: skip

    if FRESH:
        acc *= value_factor
    if not DETERMINISTIC:
        if split == 0:
            if FRESH:  # neither the nodes' own keys nor their values are scaled
                factor = scale
            # Tiles of nodes from the last on: in this order a row's way to the root meets them.
            left = tl.where(mask_m, window, 0)
            NODES: tl.constexpr = BLOCK_KEYS if BLOCK_KEYS < 32 else 32  # bits of a word
            last = tl.max(node, 0) // NODES * NODES
            for at in tl.range(last, -1, -NODES, num_stages=1):
                ancestor_bits = tl.zeros([BLOCK_ROWS], tl.uint32)
                while tl.max(node, 0) >= at:
                    for _ in tl.static_range(4):  # a step costs less than to ask whether it is needed
                        is_here = node >= at
                        ancestor_bits |= tl.where(is_here, 1 << (node - at).to(tl.uint32), 0)
                        parent = _parents(parents_ptr, node, is_here)
                        if WINDOW:
                            left -= is_here.to(tl.int32)
                            parent = tl.where(left > 0, parent, -1)
                        node = tl.where(is_here, parent, node)
                offs_w = tl.arange(0, NODES)
                other = at + offs_w
                held = other < nodes
                if FRESH:
                    other_row = (begin + other).to(tl.int64)
                    key_rows = new_key_ptr + other_row * stride_new_key_r + kv_head * stride_new_key_h
                    value_rows = new_value_ptr + other_row * stride_new_value_r + kv_head * stride_new_value_h
                else:
                    held &= prefix + other < table_width * PAGE_SIZE
                    page, slot, held = _find_slots(table_ptr, prefix + other, held, pages, PAGE_SIZE, WIDE)
                    key_rows = key_ptr + page * stride_key_p + slot * stride_key_s
                    value_rows = value_ptr + page * stride_value_p + slot * stride_value_s
                is_seen = (ancestor_bits[:, None] >> offs_w.to(tl.uint32)[None, :]) & 1 != 0
                acc, top, total = _attend_tile(
                    query, query_rest, key_rows, value_rows, held, is_seen, factor, softcap, acc, top, total,
                    HEAD, VALUE, BLOCK_HEAD, BLOCK_REST, BLOCK_VALUE, ELEMENTS, SOFTCAP, LATENT,
                )  # fmt: skip
    if FRESH:
        value_factor = 1.0
    acc = acc * tl.where(total == 0, 0, value_factor / total)[:, None]
    first_place = (split.to(tl.int64) * rows + first_row) * QUERY_HEADS
    place = offs_i * QUERY_HEADS + query_head
    tl.store(partial_lse_ptr + first_place + place, top + tl.log2(total), mask=mask_m)
    partial_rows = partial_ptr + first_place * VALUE + place * VALUE
    offs_v = tl.arange(0, BLOCK_VALUE)
    tl.store(partial_rows[:, None] + offs_v[None, :], acc, mask=mask_m[:, None] & (offs_v < VALUE)[None, :])


@triton.jit(do_not_specialize=_VARYING)
def _attention_merge_kernel(
    query_ptr,
    new_key_ptr,
    new_value_ptr,
    sinks_ptr,  # [QUERY_HEADS] or None
    out_ptr,  # [rows, QUERY_HEADS, VALUE]
    out_lse_ptr,  # [rows, QUERY_HEADS] or None
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
    QUERY_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    VALUE: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr,
    FRESH: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_REQUESTS: tl.constexpr,
    BLOCK_HEAD: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    SPLIT: tl.constexpr,
    ELEMENTS: tl.constexpr,
    DETERMINISTIC: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
):
    """One node and a block of query heads. With DETERMINISTIC they share a head of the cache, and the node
    and its ancestors, nearest first, come before the splits: nothing else in the tree is read."""
    GROUP: tl.constexpr = QUERY_HEADS // KV_HEADS
    SPAN: tl.constexpr = GROUP if DETERMINISTIC else QUERY_HEADS
    row, kv_head = tl.program_id(0), tl.program_id(1)
    offs_h = tl.program_id(2) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    mask_h = offs_h < SPAN
    query_head = kv_head * SPAN + offs_h
    offs_v = tl.arange(0, BLOCK_VALUE)
    offs_b = tl.arange(0, BLOCK_REQUESTS)
    begins = _request_begins(cu_nodes_ptr, offs_b, requests, rows)
    request = tl.sum(((begins <= row) & (offs_b <= requests)).to(tl.int32), 0) - 1
    begin = tl.max(tl.where(offs_b <= request, begins, 0), 0)

    row = row.to(tl.int64)
    top = tl.full([BLOCK_HEADS], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_HEADS], tl.float32)
    acc = tl.zeros([BLOCK_HEADS, BLOCK_VALUE], tl.float32)
    if (request >= 0) & (request < requests):
        prefix, first, length = _prefix_splits(prefix_lens_ptr, request, longest, window, WINDOW, SPLIT)
        if DETERMINISTIC:
            query_rows = query_ptr + row * stride_query_r + query_head * stride_query_h
            query, query_rest = _load_query(query_rows, mask_h, HEAD, BLOCK_HEAD, BLOCK_REST, ELEMENTS)
            factor = scale
            if not FRESH:
                factor *= _scale_of(key_scale, key_scales_ptr, kv_head)
            table_ptr = block_table_ptr + request.to(tl.int64) * table_width
            offs_t = tl.arange(0, 16)
            node = row.to(tl.int32) - begin
            distance = 0
            while (node >= 0) & ((distance < window) | (not WINDOW)):
                path = tl.full([16], -1, tl.int32)
                step = 0
                while (node >= 0) & (step < 16):
                    path = tl.where(offs_t == step, node, path)
                    parent = tl.load(parents_ptr + begin + node)
                    node = tl.where(parent < node, parent, -1)
                    step += 1
                held = path >= 0
                if WINDOW:
                    held &= distance + offs_t < window
                distance += 16
                if FRESH:
                    tree_row = (begin + path).to(tl.int64)
                    key_rows = new_key_ptr + tree_row * stride_new_key_r + kv_head * stride_new_key_h
                    value_rows = new_value_ptr + tree_row * stride_new_value_r + kv_head * stride_new_value_h
                else:
                    held &= prefix + path < table_width * PAGE_SIZE
                    page, slot, held = _find_slots(table_ptr, prefix + path, held, pages, PAGE_SIZE, WIDE)
                    key_rows = key_ptr + kv_head.to(tl.int64) * stride_key_h
                    key_rows += page * stride_key_p + slot * stride_key_s
                    value_rows = value_ptr + kv_head.to(tl.int64) * stride_value_h
                    value_rows += page * stride_value_p + slot * stride_value_s
                # Latent values are read again: keys that wait for them would fill registers.
                acc, top, total = _attend_tile(
                    query, query_rest, key_rows, value_rows, held, None, factor, softcap, acc, top, total,
                    HEAD, VALUE, BLOCK_HEAD, BLOCK_REST, BLOCK_VALUE, ELEMENTS, SOFTCAP, False,
                )  # fmt: skip
            if not FRESH:
                acc *= _scale_of(value_scale, value_scales_ptr, kv_head)
        splits = tl.cdiv(prefix - first, length)
        if not DETERMINISTIC:
            splits = tl.maximum(splits, 1)  # the first has the tree
        for split in range(0, splits):
            place = (split.to(tl.int64) * rows + row) * QUERY_HEADS + query_head
            lse = tl.load(partial_lse_ptr + place, mask=mask_h, other=float("-inf"))
            part = _load_rows(partial_ptr + place * VALUE, mask_h, offs_v, VALUE, tl.float32)
            top, base, alpha = _raise_top(top, lse)
            weight = tl.exp2(lse - base)
            total = total * alpha + weight
            acc = acc * alpha[:, None] + part * weight[:, None]
        if sinks_ptr is not None:
            sink = tl.load(sinks_ptr + query_head, mask=mask_h, other=float("-inf")) * LOG2E
            top, base, alpha = _raise_top(top, sink)
            total = total * alpha + tl.exp2(sink - base)
            acc = acc * alpha[:, None]

    acc = acc * tl.where(total == 0, 0, 1 / total)[:, None]
    place = row * QUERY_HEADS + query_head
    out_rows = out_ptr + place * VALUE
    mask_v = mask_h[:, None] & (offs_v < VALUE)[None, :]
    tl.store(out_rows[:, None] + offs_v[None, :], acc.to(out_ptr.dtype.element_ty), mask=mask_v)
    if out_lse_ptr is not None:
        tl.store(out_lse_ptr + place, (top + tl.log2(total)) * LN2, mask=mask_h)


@triton.jit
def _load_query(
    row_ptrs,
    mask,
    HEAD: tl.constexpr,
    BLOCK_HEAD: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    ELEMENTS: tl.constexpr,
):
    """Query rows in two parts; without a second, the first twice. Rows of more parts stay where they are."""
    if HEAD > BLOCK_HEAD + BLOCK_REST:
        query, query_rest = row_ptrs, mask
    else:
        query = _load_rows(row_ptrs, mask, tl.arange(0, BLOCK_HEAD), HEAD, ELEMENTS)
        query_rest = query
        if BLOCK_REST > 0:
            query_rest = _load_rows(row_ptrs, mask, BLOCK_HEAD + tl.arange(0, BLOCK_REST), HEAD, ELEMENTS)
    return query, query_rest


@triton.jit
def _attend_tile(
    query, query_rest, key_rows, value_rows, held, is_seen, factor, softcap, acc, top, total,
    HEAD: tl.constexpr, VALUE: tl.constexpr,
    BLOCK_HEAD: tl.constexpr, BLOCK_REST: tl.constexpr, BLOCK_VALUE: tl.constexpr,
    ELEMENTS: tl.constexpr, SOFTCAP: tl.constexpr, LATENT: tl.constexpr,
):  # fmt: skip
    """Takes a tile of keys into the softmax of every row: those that are `held` and, unless None, `is_seen`
    [rows, keys]. Scores are to the base 2."""
    scores = tl.zeros([query.shape[0], key_rows.shape[0]], tl.float32)
    if HEAD > BLOCK_HEAD + BLOCK_REST:
        for part in tl.static_range(0, HEAD, BLOCK_HEAD):
            offs = part + tl.arange(0, BLOCK_HEAD)
            query_part = _load_rows(query, query_rest, offs, HEAD, ELEMENTS)
            scores = _add_products(query_part, _load_rows(key_rows, held, offs, HEAD, ELEMENTS), scores)
    else:
        key = _load_rows(key_rows, held, tl.arange(0, BLOCK_HEAD), HEAD, ELEMENTS)
        scores = _add_products(query, key, scores)
        if BLOCK_REST > 0:
            key_rest = _load_rows(key_rows, held, BLOCK_HEAD + tl.arange(0, BLOCK_REST), HEAD, ELEMENTS)
            scores = _add_products(query_rest, key_rest, scores)
    if SOFTCAP:
        scores = _tanh(scores * (factor / softcap)) * (softcap * LOG2E)
    else:
        scores = scores * (factor * LOG2E)
    scores += tl.where(held, 0, float("-inf"))[None, :]  # finite before: keys that are not held are 0
    if is_seen is not None:
        scores = tl.where(is_seen, scores, float("-inf"))
    top, base, alpha = _raise_top(top, tl.max(scores, 1))
    weights = tl.exp2(scores - base[:, None])
    total = total * alpha + tl.sum(weights, 1)
    if LATENT:
        value = key
    else:
        value = _load_rows(value_rows, held, tl.arange(0, BLOCK_VALUE), VALUE, ELEMENTS)
    acc = tl.dot(weights.to(value.dtype), value, acc * alpha[:, None], input_precision="ieee")
    return acc, top, total


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
def _raise_top(top, score):
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
def _load_rows(row_ptrs, mask, offs, SIZE: tl.constexpr, ELEMENTS: tl.constexpr):
    """[rows, offs] as ELEMENTS; zeros where masked and from SIZE on."""
    stored = tl.load(row_ptrs[:, None] + offs[None, :], mask=mask[:, None] & (offs < SIZE)[None, :], other=0)
    if stored.dtype == tl.uint8:  # float8_e4m3fn: its exponent and mantissa, where those of float32 lie
        bits = stored.to(tl.uint32)
        number = ((bits & 0x80) << 24 | (bits & 0x7F) << 20).to(tl.float32, bitcast=True) * 2.0**120
        return tl.where((bits & 0x7F) == 0x7F, float("nan"), number).to(ELEMENTS)
    return stored.to(ELEMENTS)


@triton.jit
def _request_begins(cu_nodes_ptr, offs_b, requests, rows):
    """Where each request begins and, one further, the last ends. Offsets out of order give empty requests."""
    offsets = tl.load(cu_nodes_ptr + offs_b, mask=offs_b <= requests, other=0)
    return tl.associative_scan(tl.minimum(tl.maximum(offsets, 0), rows), 0, _larger)


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def _prefix_splits(prefix_lens_ptr, request, longest, window, WINDOW: tl.constexpr, SPLIT: tl.constexpr):
    """The prefix, its first position that any node sees, and the length of a split of the rest, as
    `launch.attention_splits` has it."""
    prefix = tl.minimum(tl.maximum(tl.load(prefix_lens_ptr + request), 0), longest)
    first = 0
    if WINDOW:
        first = tl.maximum(prefix - window + 1, 0)
    longer = tl.cdiv(tl.maximum(prefix - first - _LONG_PREFIX, 0), _LONGER_EACH) * _LONGER_BY
    return prefix, first, SPLIT + longer


@triton.jit
def _parents(parents_ptr, node, mask):
    """Parents of nodes, -1 where masked or without a valid one."""
    parent = tl.load(parents_ptr + node, mask=mask, other=-1)
    return tl.where(parent < node, tl.maximum(parent, -1), -1)


@triton.jit
def _depths(parents_ptr, node, most):
    """Depths of nodes, counted up to `most`; of -1, 0."""
    depth = tl.zeros_like(node)
    step = 0
    while (step < most) & (tl.max(node, 0) >= 0):
        node = _parents(parents_ptr, node, node >= 0)
        depth += (node >= 0).to(tl.int32)
        step += 1
    return depth


@triton.jit
def _find_slots(table_ptr, position, held, pages, PAGE_SIZE: tl.constexpr, WIDE: tl.constexpr):
    """Page and slot of positions, and which of those that are to be held have a valid page. Slots are 64 bits
    wide only where a page has 2^32 elements."""
    position = position.to(tl.uint32)
    page = tl.load(table_ptr + position // PAGE_SIZE, mask=held, other=-1)
    slot = position % PAGE_SIZE
    if WIDE:
        slot = slot.to(tl.int64)
    return page.to(tl.int64), slot, page.to(tl.uint32) < pages.to(tl.uint32)


@triton.jit
def _scale_of(scale, scales_ptr, head):
    if scales_ptr is not None:
        scale = tl.load(scales_ptr + head)
    return scale
