# SPDX-License-Identifier: Apache-2.0
"""Attention over the draft tree, in two launches.

splits   (tiles x KV heads, splits)   attends to a split of the prefix, with the first one to the tree as well
merge    (rows, heads, columns)       merges the splits of each row

Where the result must be deterministic, the second kernel attends to the tree.
"""

from __future__ import annotations

import torch
import triton
from triton.runtime import driver

from .._ops.calls import TreeAttentionCall
from .addresses import element_type
from .attention_launch import (
    Problem,
    attention_launch,
    attention_registers,
    merge_blocks,
    most_splits,
    path_blocks,
)
from .attention_merge import _attention_merge_kernel, _attention_paths_kernel
from .attention_splits import _attention_splits_kernel
from .attention_tile import Form


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
    elements = _product_dtype(query.dtype, key_cache.dtype)
    widened = key_cache.dtype != elements
    target = driver.active.get_current_target()
    launch = attention_launch(
        target,
        Problem(
            query_heads,
            kv_heads,
            head,
            call.value_dim,
            rows,
            requests,
            bytes_per_element=elements.itemsize,
            plain=not widened and not window and call.softcap == 0,
            deterministic=call.deterministic,
        ),
    )
    longest = min(call.max_prefix_len, call.block_table.shape[1] * page_size)
    splits = most_splits(min(longest, window) if window else longest, launch.splits, launch.least)
    whole = head <= launch.block_head + launch.block_rest  # else keys are taken in parts
    form = Form(
        query_heads,
        kv_heads,
        head,
        call.value_dim,
        page_size,
        WIDE=page_size * max(key_cache.stride(slots), value_cache.stride(slots)) >= 2**32,
        ALIKE=key_cache.stride()[:3] == value_cache.stride()[:3],
        WINDOW=window > 0,
        SOFTCAP=call.softcap > 0,
        LATENT=latent and whole and launch.block_value == launch.block_head,
        BLOCK_HEAD=launch.block_head,
        BLOCK_REST=launch.block_rest,
        BLOCK_VALUE=launch.block_value,
    )
    # Results of splits have the bytes of the operands: what rounding them costs is in docs/triton.md.
    partial = torch.empty((splits, rows, query_heads, call.value_dim), dtype=elements, device=query.device)
    partial_lse = torch.empty((splits, rows, query_heads), dtype=torch.float32, device=query.device)
    merged = dict(
        partial_ptr=partial,
        partial_lse_ptr=partial_lse,
        prefix_lens_ptr=call.prefix_lens,
        cu_nodes_ptr=call.cu_nodes,
        rows=rows,
        requests=requests,
        longest=longest,
        window=window,
        splits=launch.splits,
        least=launch.least,
        FORM=form,
    )
    attended = merged | dict(
        query_ptr=query,
        new_key_ptr=new_key,
        new_value_ptr=new_value,
        key_ptr=_stored(key_cache),
        value_ptr=_stored(value_cache),
        key_scales_ptr=call.key_scales,
        value_scales_ptr=value_scales,
        block_table_ptr=call.block_table,
        parents_ptr=call.parents,
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
        ELEMENTS=element_type(elements),
        **attention_registers(target, widened),
    )
    group = query_heads // kv_heads
    tiles = (rows * group - 1) // launch.block_rows + requests
    if requests:
        _attention_splits_kernel[(tiles * kv_heads, splits)](
            **attended,
            TREE=not call.deterministic,
            BLOCK_ROWS=launch.block_rows,
            BLOCK_KEYS=launch.block_keys,
            num_warps=launch.warps,
            num_stages=launch.stages,
        )
    outputs = dict(sinks_ptr=call.sinks, out_ptr=call.out, out_lse_ptr=call.out_lse)
    if call.deterministic:
        block, warps = path_blocks(target, launch)
        # Latent values are read again: keys that wait for them would fill registers.
        attended |= dict(FORM=form._replace(LATENT=False)) | attention_registers(target, True)
        _attention_paths_kernel[(rows, kv_heads, triton.cdiv(group, block))](
            **attended, **outputs, BLOCK_HEADS=block, num_warps=warps, num_stages=1
        )
    else:
        block_splits, block_heads, columns = merge_blocks(launch, splits)
        grid = (rows, triton.cdiv(query_heads, block_heads), triton.cdiv(call.value_dim, columns))
        _attention_merge_kernel[grid](
            **merged,
            **outputs,
            BLOCK_HEADS=block_heads,
            BLOCK_SPLITS=block_splits,
            BLOCK_COLUMNS=columns,
            num_warps=1,
            num_stages=1,
        )


def _product_dtype(query: torch.dtype, cache: torch.dtype) -> torch.dtype:
    """The dtype that holds the elements of both exactly. Any dtype of a query holds int8 and float8."""
    return query if cache in (query, torch.int8, torch.float8_e4m3fn) else torch.float32


def _stored(cache):
    """A cache of float8 as one of bytes, which every target reads."""
    return cache.view(torch.uint8) if cache.dtype == torch.float8_e4m3fn else cache
