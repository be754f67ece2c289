# SPDX-License-Identifier: Apache-2.0
"""The first launch of `tree_attention`: packed rows of a request over a split of its prefix, and its tree."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .attention_tile import (
    Cache,
    Softmax,
    Tile,
    attend_tile,
    find_depths,
    find_pages,
    find_parents,
    find_request,
    find_rows,
    find_splits,
    is_page,
    load_query,
    mask_rows,
    nothing_seen,
    scale_of,
    valid_until,
)

# Numbers that vary from call to call, and addresses of single numbers: all have the same kernels.
VARYING = ["rows", "requests", "longest", "table_width", "pages", "window", "splits", "least"]
UNALIGNED = [
    "key_scales_ptr", "value_scales_ptr", "block_table_ptr", "prefix_lens_ptr", "cu_nodes_ptr", "parents_ptr",
]  # fmt: skip


class Tree(NamedTuple):
    """The tree of a request, as a tile of packed rows sees it."""

    node: tl.tensor  # of each row, -1 = no such row
    nodes: tl.tensor
    parents: tl.tensor  # pointer to that of the root
    prefix: tl.tensor
    room: tl.tensor  # positions of the block table
    window: tl.tensor
    factor: tl.tensor  # of the scores
    softcap: tl.tensor


class New(NamedTuple):
    """Keys and values of the nodes of one head, where they are not in the cache."""

    key_ptr: tl.tensor  # of the root, or None
    value_ptr: tl.tensor
    key_row: tl.tensor  # strides
    value_row: tl.tensor


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=UNALIGNED)
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
    splits,  # of a prefix, at most
    least,  # positions of a split
    TREE: tl.constexpr,
    FORM: tl.constexpr,
    ELEMENTS: tl.constexpr,  # dtype of the operands of products
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """Packed rows of one request and one head of the cache over one split of the prefix; with the first split
    over the tree as well, if TREE."""
    GROUP: tl.constexpr = FORM.QUERY_HEADS // FORM.KV_HEADS
    tile, kv_head, split = (
        tl.program_id(0) // FORM.KV_HEADS,
        tl.program_id(0) % FORM.KV_HEADS,
        tl.program_id(1),
    )
    request, begin, request_end = find_request(cu_nodes_ptr, requests, rows, tile, GROUP, BLOCK_ROWS)
    nodes = request_end - begin
    packed = (tile - request - begin * GROUP // BLOCK_ROWS) * BLOCK_ROWS
    if (request < 0) | (packed >= nodes * GROUP):
        return
    prefix, first, length = find_splits(prefix_lens_ptr, request, longest, window, splits, least, FORM)
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
    query = load_query(query_rows, mask_m, FORM, ELEMENTS)
    node = tl.where(mask_m, first_node + offs_i, -1)
    parents_ptr += begin
    lowest = start
    if FORM.WINDOW:
        row_first = prefix + find_depths(parents_ptr, node, window) - window + 1
        lowest = tl.maximum(lowest, tl.min(tl.where(mask_m, row_first, prefix), 0))

    factor = scale * scale_of(key_scale, key_scales_ptr, kv_head)
    value_factor = scale_of(value_scale, value_scales_ptr, kv_head)
    wide_head = kv_head.to(tl.int64)
    cache = Cache(
        block_table_ptr + request.to(tl.int64) * table_width,
        key_ptr + wide_head * stride_key_h, value_ptr + wide_head * stride_value_h,
        pages, stride_key_p, stride_key_s, stride_value_p, stride_value_s,
    )  # fmt: skip
    softmax = nothing_seen(BLOCK_ROWS, FORM.BLOCK_VALUE)
    offs_n = tl.arange(0, BLOCK_KEYS)
    while start < end:  # mostly once: all pages are valid
        stop = valid_until(cache, start, end, FORM)
        # The pages of a tile are read while the tile before is multiplied. So its keys and values wait for
        # nothing that is read in the same step, and can be copied steps ahead.
        position = start + offs_n
        page = find_pages(cache, position, _is_between(position, lowest, stop, FORM), FORM)
        for at in range(start, stop, BLOCK_KEYS):
            position = at + offs_n
            held = _is_between(position, lowest, stop, FORM)
            key_rows, value_rows = find_rows(cache, page, position, FORM)
            after = position + BLOCK_KEYS
            page = find_pages(cache, after, _is_between(after, lowest, stop, FORM), FORM)
            is_seen = None
            if FORM.WINDOW:
                is_seen = position[None, :] >= row_first[:, None]
            tile_at = Tile(key_rows, value_rows, held, factor, softcap)
            softmax = attend_tile(query, tile_at, is_seen, softmax, FORM)
        start = (stop // FORM.PAGE_SIZE + 1) * FORM.PAGE_SIZE
    acc, top, total = softmax
    if new_key_ptr is not None:  # neither the nodes' own keys nor their values are scaled
        acc *= value_factor
        factor = scale
        value_factor = 1.0
    softmax = Softmax(acc, top, total)
    if TREE:
        if split == 0:
            room = table_width * FORM.PAGE_SIZE
            tree = Tree(node, nodes, parents_ptr, prefix, room, window, factor, softcap)
            new = New(new_key_ptr, new_value_ptr, stride_new_key_r, stride_new_value_r)
            if new_key_ptr is not None:
                wide_begin = begin.to(tl.int64)
                new_key_ptr += wide_begin * stride_new_key_r + wide_head * stride_new_key_h
                new_value_ptr += wide_begin * stride_new_value_r + wide_head * stride_new_value_h
                new = New(new_key_ptr, new_value_ptr, stride_new_key_r, stride_new_value_r)
            TREE_KEYS: tl.constexpr = BLOCK_KEYS if BLOCK_KEYS < 32 else 32
            softmax = _attend_tree(query, tree, cache, new, softmax, FORM, TREE_KEYS)
    acc, top, total = softmax
    acc = acc * tl.where(total == 0, 0, value_factor / total)[:, None]
    # Places are found anew, with signed numbers: compilers would keep the others over the loops.
    offs_p = packed + tl.arange(0, BLOCK_ROWS)
    first_node = packed // GROUP
    first_place = (split.to(tl.int64) * rows + begin + first_node) * FORM.QUERY_HEADS
    place = (offs_p // GROUP - first_node) * FORM.QUERY_HEADS + kv_head * GROUP + offs_p % GROUP
    mask_p = offs_p // GROUP < nodes
    tl.store(partial_lse_ptr + first_place + place, top + tl.log2(total), mask=mask_p)
    partial_rows = partial_ptr + first_place * FORM.VALUE + place * FORM.VALUE
    offs_v = tl.arange(0, FORM.BLOCK_VALUE)
    mask = mask_rows(mask_p, offs_v, FORM.VALUE)
    tl.store(partial_rows[:, None] + offs_v[None, :], acc.to(partial_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _is_between(position, lowest, end, FORM: tl.constexpr):
    is_between = position < end
    if FORM.WINDOW:
        is_between &= position >= lowest
    return is_between


@triton.jit
def _attend_tree(query, tree, cache, new, softmax, FORM: tl.constexpr, NODES: tl.constexpr):
    """Takes the ancestors of every row's node, and the node, into its softmax. Tiles of NODES nodes, bits of
    one word, come from the last one on: in this order a row's way to the root meets them."""
    node = tree.node
    left = tl.where(node >= 0, tree.window, 0)
    last = tl.max(node, 0) // NODES * NODES
    for at in tl.range(last, -1, -NODES, num_stages=1):
        ancestor_bits = tl.zeros([node.shape[0]], tl.uint32)
        while tl.max(node, 0) >= at:
            for _ in tl.static_range(4):  # a step costs less than to ask whether it is needed
                is_here = node >= at
                ancestor_bits |= tl.where(is_here, 1 << (node - at).to(tl.uint32), 0)
                parent = find_parents(tree.parents, node, is_here)
                if FORM.WINDOW:
                    left -= is_here.to(tl.int32)
                    parent = tl.where(left > 0, parent, -1)
                node = tl.where(is_here, parent, node)
        offs_w = tl.arange(0, NODES)
        other = at + offs_w
        held = other < tree.nodes
        if new.key_ptr is not None:
            other_row = other.to(tl.int64)
            keys, values = new.key_ptr + other_row * new.key_row, new.value_ptr + other_row * new.value_row
        else:
            position = tree.prefix + other
            page = find_pages(cache, position, held & (position < tree.room), FORM)
            keys, values = find_rows(cache, page, position, FORM)
            held = is_page(cache, page)
        is_seen = (ancestor_bits[:, None] >> offs_w.to(tl.uint32)[None, :]) & 1 != 0
        tile = Tile(keys, values, held, tree.factor, tree.softcap)
        softmax = attend_tile(query, tile, is_seen, softmax, FORM)
    return softmax
