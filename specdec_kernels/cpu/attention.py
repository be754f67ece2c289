# SPDX-License-Identifier: Apache-2.0
"""Attention over the draft tree: addresses and strides for the native core."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _native

_DTYPES = {
    torch.float32: 0,
    torch.bfloat16: 1,
    torch.float16: 2,
    torch.int8: 3,
    torch.float8_e4m3fn: 4,
}


def tree_attention(
    query, key_cache, value_cache, parents, cu_nodes, block_table, prefix_lens, new_key, new_value,
    scale, window, softcap, sinks, key_scale, key_scales, value_scale, value_scales, value_dim,
    max_prefix_len, heads_first, deterministic, out, out_lse,
):  # fmt: skip
    """The operator `specdec_kernels::tree_attention`."""
    if value_cache is None:
        value_cache, value_scale, value_scales, new_value = key_cache, key_scale, key_scales, new_key
    page_size, heads = key_cache.shape[1:3]
    if heads_first:
        page_size, heads = heads, page_size
    _native.tree_attention(
        [_rows(query), _rows(new_key), _rows(new_value)],
        [
            _cache(key_cache, heads_first, key_scale, key_scales),
            _cache(value_cache, heads_first, value_scale, value_scales),
        ],
        [query.shape[0], query.shape[1], heads, query.shape[2], value_dim, cu_nodes.shape[0] - 1],
        [parents.data_ptr(), cu_nodes.data_ptr()],
        [block_table.data_ptr(), prefix_lens.data_ptr()],
        [block_table.shape[1], key_cache.shape[0], page_size, max_prefix_len],
        scale,
        window,
        softcap,
        0 if sinks is None else sinks.data_ptr(),
        deterministic,
        [out.data_ptr(), 0 if out_lse is None else out_lse.data_ptr()],
        torch.get_num_threads(),
    )


def _rows(rows: Tensor | None) -> tuple[int, ...]:
    """Address, dtype, strides of rows and of heads."""
    if rows is None:
        return (0, 0, 0, 0)
    return (rows.data_ptr(), _DTYPES[rows.dtype], rows.stride(0), rows.stride(1))


def _cache(cache: Tensor, heads_first: bool, scale: float, scales: Tensor | None):
    """Address, dtype, strides of pages, slots and heads, one scale, scales per head."""
    slots, heads = (2, 1) if heads_first else (1, 2)
    strides = (cache.stride(0), cache.stride(slots), cache.stride(heads))
    return (
        cache.data_ptr(),
        _DTYPES[cache.dtype],
        *strides,
        scale,
        0 if scales is None else scales.data_ptr(),
    )
