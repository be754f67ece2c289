"""Attention over the draft tree: one kernel over the prefix, split; one that merges the splits, follows each
node's path and finishes its rows."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from . import launch

_ELEMENTS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
_LOG2E = tl.constexpr(math.log2(math.e))
_LN2 = tl.constexpr(math.log(2))
_PATH = tl.constexpr(16)  # nodes of a path that are taken at once


def tree_attention(
    query, key_cache, value_cache, parents, cu_nodes, block_table, prefix_lens, new_key, new_value,
    scale, window, softcap, sinks, key_scale, key_scales, value_scale, value_scales, value_dim,
    max_prefix_len, heads_first, deterministic, out, out_lse,
):  # fmt: skip
    """The operator `specdec_kernels::tree_attention`: two launches, one where no prefix can be."""
    rows, query_heads, head = query.shape
    if rows == 0 or query_heads == 0:
        return
    latent = value_cache is None
    if latent:
        value_cache, value_scale, value_scales, new_value = key_cache, key_scale, key_scales, new_key
    slots, heads = (2, 1) if heads_first else (1, 2)
    page_size, kv_heads, requests = key_cache.shape[slots], key_cache.shape[heads], cu_nodes.shape[0] - 1
    group = query_heads // kv_heads
    elements = _product_dtype(query.dtype, key_cache.dtype)
    shape = launch.attention_launch(
        head, value_dim, group, -(-rows // max(requests, 1)) * group, elements.itemsize, deterministic
    )
    longest = min(max_prefix_len, block_table.shape[1] * page_size)
    tiles = (rows * group - 1) // shape.block_rows + requests
    seen = min(longest, window) if window else longest
    splits = launch.attention_splits(seen, max(tiles - requests, requests) * kv_heads, deterministic)
    partial = torch.empty((splits, rows, query_heads, value_dim), dtype=torch.float32, device=query.device)
    partial_lse = torch.empty((splits, rows, query_heads), dtype=torch.float32, device=query.device)
    cache = dict(
        key_ptr=_stored(key_cache),
        value_ptr=_stored(value_cache),
        key_scales_ptr=key_scales,
        value_scales_ptr=value_scales,
        block_table_ptr=block_table,
        prefix_lens_ptr=prefix_lens,
        cu_nodes_ptr=cu_nodes,
        parents_ptr=parents,
        partial_ptr=partial,
        partial_lse_ptr=partial_lse,
        rows=rows,
        requests=requests,
        longest=longest,
        max_splits=splits,
        table_width=block_table.shape[1],
        pages=key_cache.shape[0],
        stride_query_r=query.stride(0),
        stride_query_h=query.stride(1),
        stride_key_p=key_cache.stride(0),
        stride_key_s=key_cache.stride(slots),
        stride_key_h=key_cache.stride(heads),
        stride_value_p=value_cache.stride(0),
        stride_value_s=value_cache.stride(slots),
        stride_value_h=value_cache.stride(heads),
        scale=scale,
        key_scale=key_scale,
        value_scale=value_scale,
        softcap=softcap,
        window=window,
        QUERY_HEADS=query_heads,
        KV_HEADS=kv_heads,
        HEAD=head,
        VALUE=value_dim,
        PAGE_SIZE=page_size,
        SOFTCAP=softcap > 0,
        WINDOW=window > 0,
        LATENT=latent and value_dim <= shape.block_head,
        FRESH=new_key is not None,
        BLOCK_REQUESTS=triton.next_power_of_2(requests + 1),
        BLOCK_HEAD=shape.block_head,
        BLOCK_REST=shape.block_rest,
        BLOCK_VALUE=shape.block_value,
    )
    if splits > 0:
        _attend_prefix_kernel[(tiles * kv_heads, splits)](
            query_ptr=query,
            **cache,
            ELEMENTS=_ELEMENTS[elements],
            BLOCK_ROWS=shape.block_rows,
            BLOCK_KEYS=shape.block_keys,
            num_warps=shape.warps,
            num_stages=shape.stages,
        )
    head_blocks = triton.cdiv(group, shape.block_heads)
    _attend_path_kernel[(rows, kv_heads * head_blocks)](
        query_ptr=query,
        new_key_ptr=new_key,
        new_value_ptr=new_value,
        sinks_ptr=sinks,
        out_ptr=out,
        out_lse_ptr=out_lse,
        **cache,
        stride_new_key_r=new_key.stride(0) if new_key is not None else 0,
        stride_new_key_h=new_key.stride(1) if new_key is not None else 0,
        stride_new_value_r=new_value.stride(0) if new_value is not None else 0,
        stride_new_value_h=new_value.stride(1) if new_value is not None else 0,
        ELEMENTS=_ELEMENTS[query.dtype if new_key is not None else elements],
        BLOCK_HEADS=shape.block_heads,
        num_warps=shape.path_warps,
        num_stages=1,
    )


def _product_dtype(query: torch.dtype, cache: torch.dtype) -> torch.dtype:
    """The dtype that holds the elements of both exactly; those of int8 and float8 are in every one."""
    return query if cache in (query, torch.int8, torch.float8_e4m3fn) else torch.float32


def _stored(cache):
    """Float8 as bytes, which every target reads."""
    return cache.view(torch.uint8) if cache.dtype == torch.float8_e4m3fn else cache


_VARYING = ["rows", "requests", "longest", "max_splits", "table_width", "pages", "window"]


@triton.jit(do_not_specialize=_VARYING)
def _attend_prefix_kernel(
    query_ptr,  # [rows, QUERY_HEADS, HEAD]
    key_ptr,  # a paged cache, HEAD elements a slot
    value_ptr,  # VALUE elements a slot
    key_scales_ptr,  # [KV_HEADS] or None
    value_scales_ptr,
    block_table_ptr,  # [requests, table_width]
    prefix_lens_ptr,  # [requests]
    cu_nodes_ptr,  # [requests + 1]
    parents_ptr,  # [rows]
    partial_ptr,  # [max_splits, rows, QUERY_HEADS, VALUE]
    partial_lse_ptr,  # [max_splits, rows, QUERY_HEADS], to the base 2
    rows,
    requests,
    longest,
    max_splits,
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
    BLOCK_REQUESTS: tl.constexpr,
    BLOCK_HEAD: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    ELEMENTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """Packed rows of one request and one head of the cache, over one split of the prefix."""
    GROUP: tl.constexpr = QUERY_HEADS // KV_HEADS
    tile, kv_head, split = tl.program_id(0) // KV_HEADS, tl.program_id(0) % KV_HEADS, tl.program_id(1)
    # The tiles of request b are numbered from begin_b * GROUP // BLOCK_ROWS + b on: no two share a number,
    # and no sums over the requests before are needed.
    offs_b = tl.arange(0, BLOCK_REQUESTS)
    begins = _request_begins(cu_nodes_ptr, offs_b, requests, rows)
    is_mine = (begins * GROUP // BLOCK_ROWS + offs_b <= tile) & (offs_b < requests)
    request = tl.sum(is_mine.to(tl.int32), 0) - 1
    begin = tl.max(tl.where(offs_b <= request, begins, 0), 0)
    nodes = tl.max(tl.where(offs_b <= request + 1, begins, 0), 0) - begin
    packed = (tile - request - begin * GROUP // BLOCK_ROWS) * BLOCK_ROWS
    if (request < 0) | (packed >= nodes * GROUP):
        return
    prefix, first, length = _prefix_splits(
        prefix_lens_ptr, request, longest, window, max_splits, WINDOW
    )
    start = first + split * length
    if start >= prefix:
        return
    end = tl.minimum(start + length, prefix)

    offs_m = packed + tl.arange(0, BLOCK_ROWS)
    mask_m = offs_m < nodes * GROUP
    node = offs_m // GROUP
    query_head = kv_head * GROUP + offs_m % GROUP
    offs_d, offs_e = tl.arange(0, BLOCK_HEAD), BLOCK_HEAD + tl.arange(0, max(BLOCK_REST, 1))
    offs_v = tl.arange(0, BLOCK_VALUE)
    row = (begin + node).to(tl.int64)
    query_rows = query_ptr + row * stride_query_r + query_head * stride_query_h
    query = _load_rows(query_rows, mask_m, offs_d, HEAD, ELEMENTS)
    query_rest = query
    if BLOCK_REST > 0:
        query_rest = _load_rows(query_rows, mask_m, offs_e, HEAD, ELEMENTS)
    factor = scale * _scale_of(key_scale, key_scales_ptr, kv_head)
    if WINDOW:
        row_first = prefix + _depths(parents_ptr + begin, node, mask_m, window) - window + 1
        lowest = tl.min(tl.where(mask_m, row_first, prefix), 0)
        start += tl.maximum(lowest - start, 0) // BLOCK_KEYS * BLOCK_KEYS

    table_ptr = block_table_ptr + request.to(tl.int64) * table_width
    key_ptr += kv_head.to(tl.int64) * stride_key_h
    value_ptr += kv_head.to(tl.int64) * stride_value_h
    top = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    acc = tl.zeros([BLOCK_ROWS, BLOCK_VALUE], tl.float32)
    for at in range(start, end, BLOCK_KEYS):
        position = at + tl.arange(0, BLOCK_KEYS)
        held = position < end
        if WINDOW:
            held &= position >= lowest
        page, slot = _find_slots(table_ptr, position, held, PAGE_SIZE)
        held = (page >= 0) & (page < pages)
        key_rows = key_ptr + page.to(tl.int64) * stride_key_p + slot * stride_key_s
        key = _load_rows(key_rows, held, offs_d, HEAD, ELEMENTS)
        key_rest = key
        if BLOCK_REST > 0:
            key_rest = _load_rows(key_rows, held, offs_e, HEAD, ELEMENTS)
        value = key
        if not LATENT:
            value_rows = value_ptr + page.to(tl.int64) * stride_value_p + slot * stride_value_s
            value = _load_rows(value_rows, held, offs_v, VALUE, ELEMENTS)
        seen = held[None, :]
        if WINDOW:
            seen = seen & (position[None, :] >= row_first[:, None])
        acc, top, total = _attend(
            query, query_rest, key, key_rest, value, seen, factor, softcap, acc, top, total, BLOCK_REST, SOFTCAP
        )

    value_factor = 1.0
    if FRESH:  # the nodes' own values are not scaled
        value_factor = _scale_of(value_scale, value_scales_ptr, kv_head)
    acc = acc * tl.where(total == 0, 0, value_factor / total)[:, None]
    place = (split.to(tl.int64) * rows + row) * QUERY_HEADS + query_head
    tl.store(partial_lse_ptr + place, top + tl.log2(total), mask=mask_m)
    partial_rows = partial_ptr + place * VALUE
    tl.store(partial_rows[:, None] + offs_v[None, :], acc, mask=mask_m[:, None] & (offs_v < VALUE)[None, :])


@triton.jit(do_not_specialize=_VARYING)
def _attend_path_kernel(
    query_ptr,
    new_key_ptr,  # [rows, KV_HEADS, HEAD] or None
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
    max_splits,
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
    BLOCK_REQUESTS: tl.constexpr,
    BLOCK_HEAD: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    ELEMENTS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
):
    """One node and up to BLOCK_HEADS query heads of one head of the cache: the splits of the prefix in their
    order, then the node and its ancestors, nearest first, then the sink."""
    GROUP: tl.constexpr = QUERY_HEADS // KV_HEADS
    SHARES: tl.constexpr = _PATH // BLOCK_HEADS
    row = tl.program_id(0)
    kv_head = tl.program_id(1) % KV_HEADS
    offs_b = tl.arange(0, BLOCK_REQUESTS)
    begins = _request_begins(cu_nodes_ptr, offs_b, requests, rows)
    request = tl.sum(((begins <= row) & (offs_b <= requests)).to(tl.int32), 0) - 1
    begin = tl.max(tl.where(offs_b <= request, begins, 0), 0)
    is_owned = (request >= 0) & (request < requests)

    # A product has at least 16 rows; those that no head needs take every SHARES-th split.
    offs_r = tl.arange(0, SHARES * BLOCK_HEADS)
    share, in_group = offs_r // BLOCK_HEADS, tl.program_id(1) // KV_HEADS * BLOCK_HEADS + offs_r % BLOCK_HEADS
    mask_r = in_group < GROUP
    query_head = kv_head * GROUP + in_group
    offs_d, offs_e = tl.arange(0, BLOCK_HEAD), BLOCK_HEAD + tl.arange(0, max(BLOCK_REST, 1))
    offs_v = tl.arange(0, BLOCK_VALUE)
    top = tl.full([SHARES * BLOCK_HEADS], float("-inf"), tl.float32)
    total = tl.zeros([SHARES * BLOCK_HEADS], tl.float32)
    acc = tl.zeros([SHARES * BLOCK_HEADS, BLOCK_VALUE], tl.float32)
    if is_owned:
        prefix, first, length = _prefix_splits(
            prefix_lens_ptr, request, longest, window, max_splits, WINDOW
        )
        splits = tl.cdiv(prefix - first, length)
        for split in range(0, splits, SHARES):
            place = ((split + share).to(tl.int64) * rows + row) * QUERY_HEADS + query_head
            held = mask_r & (split + share < splits)
            lse = tl.load(partial_lse_ptr + place, mask=held, other=float("-inf"))
            part = _load_rows(partial_ptr + place * VALUE, held, offs_v, VALUE, tl.float32)
            top, base, alpha = _raise_top(top, lse)
            weight = tl.exp2(lse - base)
            total = total * alpha + weight
            acc = acc * alpha[:, None] + part * weight[:, None]

        mask_q = mask_r & (share == 0)
        query_rows = query_ptr + row.to(tl.int64) * stride_query_r + query_head * stride_query_h
        query = _load_rows(query_rows, mask_q, offs_d, HEAD, ELEMENTS)
        query_rest = query
        if BLOCK_REST > 0:
            query_rest = _load_rows(query_rows, mask_q, offs_e, HEAD, ELEMENTS)
        factor = scale
        if not FRESH:
            factor *= _scale_of(key_scale, key_scales_ptr, kv_head)
        table_ptr = block_table_ptr + request.to(tl.int64) * table_width
        offs_t = tl.arange(0, _PATH)
        node = row - begin
        distance = 0
        while (node >= 0) & ((distance < window) | (not WINDOW)):
            path = tl.full([_PATH], -1, tl.int32)
            step = 0
            while (node >= 0) & (step < _PATH):
                path = tl.where(offs_t == step, node, path)
                parent = tl.load(parents_ptr + begin + node)
                node = tl.where(parent < node, parent, -1)
                step += 1
            held = path >= 0
            if WINDOW:
                held &= distance + offs_t < window
            distance += _PATH
            if FRESH:
                tree_row = (begin + path).to(tl.int64)
                key_rows = new_key_ptr + tree_row * stride_new_key_r + kv_head * stride_new_key_h
                value_rows = new_value_ptr + tree_row * stride_new_value_r + kv_head * stride_new_value_h
            else:
                position = prefix + path
                held &= position < table_width * PAGE_SIZE
                page, slot = _find_slots(table_ptr, position, held, PAGE_SIZE)
                held = (page >= 0) & (page < pages)
                key_rows = key_ptr + kv_head.to(tl.int64) * stride_key_h
                key_rows += page.to(tl.int64) * stride_key_p + slot * stride_key_s
                value_rows = value_ptr + kv_head.to(tl.int64) * stride_value_h
                value_rows += page.to(tl.int64) * stride_value_p + slot * stride_value_s
            key = _load_rows(key_rows, held, offs_d, HEAD, ELEMENTS)
            key_rest = key
            if BLOCK_REST > 0:
                key_rest = _load_rows(key_rows, held, offs_e, HEAD, ELEMENTS)
            value = key
            if not LATENT:
                value = _load_rows(value_rows, held, offs_v, VALUE, ELEMENTS)
            acc, top, total = _attend(
                query, query_rest, key, key_rest, value, mask_q[:, None] & held[None, :], factor, softcap,
                acc, top, total, BLOCK_REST, SOFTCAP,
            )  # fmt: skip
        if not FRESH:
            acc *= _scale_of(value_scale, value_scales_ptr, kv_head)
        if sinks_ptr is not None:
            sink = tl.load(sinks_ptr + query_head, mask=mask_q, other=float("-inf")) * _LOG2E
            top, base, alpha = _raise_top(top, sink)
            total = total * alpha + tl.exp2(sink - base)
            acc = acc * alpha[:, None]

    best = tl.max(tl.reshape(top, [SHARES, BLOCK_HEADS]), 0)
    _, base, alpha = _raise_top(tl.reshape(top, [SHARES, BLOCK_HEADS]), best[None, :])
    total = tl.sum(tl.reshape(total, [SHARES, BLOCK_HEADS]) * alpha, 0)
    acc = tl.sum(tl.reshape(acc, [SHARES, BLOCK_HEADS, BLOCK_VALUE]) * alpha[:, :, None], 0)
    acc = acc * tl.where(total == 0, 0, 1 / total)[:, None]
    offs_h = tl.program_id(1) // KV_HEADS * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    place = row.to(tl.int64) * QUERY_HEADS + kv_head * GROUP + offs_h
    mask_h = offs_h < GROUP
    out_rows = out_ptr + place * VALUE
    tl.store(
        out_rows[:, None] + offs_v[None, :],
        acc.to(out_ptr.dtype.element_ty),
        mask=mask_h[:, None] & (offs_v < VALUE)[None, :],
    )
    if out_lse_ptr is not None:
        tl.store(out_lse_ptr + place, (best + tl.log2(total)) * _LN2, mask=mask_h)


@triton.jit
def _attend(
    query, query_rest, key, key_rest, value, seen, factor, softcap, acc, top, total,
    BLOCK_REST: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Takes a tile of keys into the softmax of every row; scores are to the base 2."""
    scores = tl.dot(query, tl.trans(key), input_precision="ieee")
    if BLOCK_REST > 0:
        scores = tl.dot(query_rest, tl.trans(key_rest), scores, input_precision="ieee")
    if SOFTCAP:
        scores = _tanh(scores * (factor / softcap)) * (softcap * _LOG2E)
    else:
        scores = scores * (factor * _LOG2E)
    scores = tl.where(seen, scores, float("-inf"))
    new_top, base, alpha = _raise_top(top, tl.max(scores, 1))
    weights = tl.exp2(scores - base[:, None])
    total = total * alpha + tl.sum(weights, 1)
    acc = tl.dot(weights.to(value.dtype), value, acc * alpha[:, None], input_precision="ieee")
    return acc, new_top, total


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
def _prefix_splits(prefix_lens_ptr, request, longest, window, max_splits, WINDOW: tl.constexpr):
    """The prefix, its first position that any node sees, and the length of a split of the rest."""
    prefix = tl.minimum(tl.maximum(tl.load(prefix_lens_ptr + request), 0), longest)
    first = 0
    if WINDOW:
        first = tl.maximum(prefix - window + 1, 0)
    return prefix, first, tl.maximum(tl.cdiv(tl.cdiv(prefix - first, tl.maximum(max_splits, 1)), 64), 2) * 64


@triton.jit
def _depths(parents_ptr, node, mask, most):
    """Depths of nodes, counted up to `most`."""
    depth = tl.zeros_like(node)
    at = tl.where(mask, node, -1)
    step = 0
    while (step < most) & (tl.max(at, 0) >= 0):
        parent = tl.load(parents_ptr + at, mask=at >= 0, other=-1)
        at = tl.where((parent >= 0) & (parent < at), parent, -1)
        depth += (at >= 0).to(tl.int32)
        step += 1
    return depth


@triton.jit
def _find_slots(table_ptr, position, held, PAGE_SIZE: tl.constexpr):
    """Page and slot of positions; page -1 where not held."""
    unsigned = position.to(tl.uint32)
    page = tl.load(table_ptr + unsigned // PAGE_SIZE, mask=held, other=-1)
    return page, unsigned % PAGE_SIZE


@triton.jit
def _scale_of(scale, scales_ptr, head):
    if scales_ptr is not None:
        scale = tl.load(scales_ptr + head)
    return scale
