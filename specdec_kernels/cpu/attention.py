# SPDX-License-Identifier: Apache-2.0
"""Attention over the draft tree on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from .._ops.calls import TreeAttentionCall
from . import _native
from .arguments import DTYPES, address


def tree_attention(call: TreeAttentionCall) -> None:
    """Fill the outputs."""
    key = _cache(call.key_cache, call.heads_first, call.key_scale, call.key_scales)
    value, new_value = key, call.new_key
    if call.value_cache is not None:
        value = _cache(call.value_cache, call.heads_first, call.value_scale, call.value_scales)
        new_value = call.new_value
    nodes, query_heads, head = call.query.shape
    pages, page_size, heads, _ = call.key_cache.shape
    if call.heads_first:
        page_size, heads = heads, page_size
    requests, table_width = call.block_table.shape
    _native.tree_attention(
        torch.get_num_threads(),
        query=_rows(call.query),
        new_key=None if call.new_key is None else _rows(call.new_key),
        new_value=None if new_value is None else _rows(new_value),
        key=key,
        value=value,
        nodes=nodes,
        query_heads=query_heads,
        heads=heads,
        head=head,
        value_size=call.value_dim,
        parents=call.parents.data_ptr(),
        cu_nodes=call.cu_nodes.data_ptr(),
        requests=requests,
        block_table=call.block_table.data_ptr(),
        table_width=table_width,
        pages=pages,
        page_size=page_size,
        prefix_lens=call.prefix_lens.data_ptr(),
        max_prefix=call.max_prefix_len,
        scale=call.scale,
        softcap=call.softcap,
        window=call.window,
        sinks=address(call.sinks),
        deterministic=call.deterministic,
        out=call.out.data_ptr(),
        out_lse=address(call.out_lse),
    )


def _rows(rows: Tensor) -> _native.HeadRows:
    row_stride, head_stride, _ = rows.stride()
    return _native.HeadRows(
        data=rows.data_ptr(),
        dtype=DTYPES[rows.dtype],
        row_stride=row_stride,
        head_stride=head_stride,
    )


def _cache(cache: Tensor, heads_first: bool, scale: float, scales: Tensor | None) -> _native.HeadCache:
    page_stride, slot_stride, head_stride, _ = cache.stride()
    if heads_first:
        slot_stride, head_stride = head_stride, slot_stride
    return _native.HeadCache(
        data=cache.data_ptr(),
        dtype=DTYPES[cache.dtype],
        page_stride=page_stride,
        slot_stride=slot_stride,
        head_stride=head_stride,
        scales=address(scales),
        scale=scale,
    )
