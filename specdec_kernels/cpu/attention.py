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
    page_size, heads = call.key_cache.shape[1:3]
    if call.heads_first:
        page_size, heads = heads, page_size
    _native.tree_attention(
        torch.get_num_threads(),
        query=_rows(call.query),
        new_key=None if call.new_key is None else _rows(call.new_key),
        new_value=None if new_value is None else _rows(new_value),
        key=key,
        value=value,
        nodes=call.query.shape[0],
        query_heads=call.query.shape[1],
        heads=heads,
        head=call.query.shape[2],
        value_size=call.value_dim,
        parents=call.parents.data_ptr(),
        cu_nodes=call.cu_nodes.data_ptr(),
        requests=call.cu_nodes.shape[0] - 1,
        block_table=call.block_table.data_ptr(),
        table_width=call.block_table.shape[1],
        pages=call.key_cache.shape[0],
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
    return _native.HeadRows(
        data=rows.data_ptr(),
        dtype=DTYPES[rows.dtype],
        row_stride=rows.stride(0),
        head_stride=rows.stride(1),
    )


def _cache(cache: Tensor, heads_first: bool, scale: float, scales: Tensor | None) -> _native.HeadCache:
    slots, heads = (2, 1) if heads_first else (1, 2)
    return _native.HeadCache(
        data=cache.data_ptr(),
        dtype=DTYPES[cache.dtype],
        page_stride=cache.stride(0),
        slot_stride=cache.stride(slots),
        head_stride=cache.stride(heads),
        scales=address(scales),
        scale=scale,
    )
