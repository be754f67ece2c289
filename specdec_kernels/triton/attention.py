# SPDX-License-Identifier: Apache-2.0
"""Attention over the draft tree, in two launches.

splits   (tiles x KV heads, splits)   attends to a split of the prefix, with the first one to the tree as well
merge    (rows, heads, columns)       merges the splits of each row

Where the result must be deterministic, the second kernel attends to the tree.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import torch
from triton.runtime import driver

from .._ops.calls import TreeAttentionCall
from .addresses import element_type
from .attention_launch import (
    AttentionLaunch,
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
from .dispatch import Launch, current, device_of, dtype_of, multiples_of_16

_MADE_HERE = ("partial_ptr", "partial_lse_ptr")  # which are aligned
_ALIGNED = (
    "query_ptr", "new_key_ptr", "new_value_ptr", "key_ptr", "value_ptr", "out_ptr",
    "stride_query_r", "stride_query_h", "stride_key_p", "stride_key_s", "stride_key_h",
    "stride_value_p", "stride_value_s", "stride_value_h",
    "stride_new_key_r", "stride_new_key_h", "stride_new_value_r", "stride_new_value_h",
)  # fmt: skip


class _Key(NamedTuple):
    """What the kernels depend on."""

    device: Any
    form: Form
    launch: AttentionLaunch  # but for the splits, which are numbers
    at_once: int  # splits that are merged together, at most
    deterministic: bool
    elements: torch.dtype  # of the operands of products
    dtypes: tuple[torch.dtype | None, ...]  # of the tensors; None: it is not there
    aligned: bool


class _Kernels(NamedTuple):
    splits: Launch
    finish: Launch
    heads: int  # query heads of a program that finishes
    columns: int  # elements of a value of such a program


@cache
def _kernels(key: _Key) -> _Kernels:
    launch, form, device = key.launch, key.form, key.device
    elements = dict(ELEMENTS=element_type(key.elements))
    aligned = (*_MADE_HERE, *_ALIGNED) if key.aligned else _MADE_HERE
    with current(device):
        target = driver.active.get_current_target()
    widened = key.dtypes[1] not in (None, key.elements)
    tiles = dict(BLOCK_ROWS=launch.block_rows, BLOCK_KEYS=launch.block_keys)
    splits = Launch(
        _attention_splits_kernel,
        device,
        dict(TREE=not key.deterministic, FORM=form, **elements, **tiles),
        aligned=aligned,
        num_warps=launch.warps,
        num_stages=launch.stages,
        **attention_registers(target, launch, widened),
    )
    if key.deterministic:
        block, warps = path_blocks(target, launch)
        # Latent values are read again: keys that wait for them would fill registers.
        finish = Launch(
            _attention_paths_kernel,
            device,
            dict(FORM=form._replace(LATENT=False), **elements, BLOCK_HEADS=block),
            aligned=aligned,
            num_warps=warps,
            num_stages=1,
            **attention_registers(target, launch, True),
        )
        return _Kernels(splits, finish, block, form.VALUE)
    block_splits, block_heads, columns = merge_blocks(launch, key.at_once)
    blocks = dict(BLOCK_HEADS=block_heads, BLOCK_SPLITS=block_splits, BLOCK_COLUMNS=columns)
    merging = dict(aligned=aligned, num_warps=max(block_splits // 16, 1), num_stages=1)
    finish = Launch(_attention_merge_kernel, device, dict(FORM=form, **blocks), **merging)
    return _Kernels(splits, finish, block_heads, columns)


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
    plain = key_cache.dtype == elements and not window and call.softcap == 0
    device = device_of(query)
    problem = Problem(
        query_heads, kv_heads, head, call.value_dim, rows, requests,
        elements.itemsize, plain, call.deterministic,
    )  # fmt: skip
    launch = attention_launch(_target(device), problem)
    longest = min(call.max_prefix_len, call.block_table.shape[1] * page_size)
    splits = most_splits(min(longest, window) if window else longest, launch.splits, launch.least)
    key_strides, value_strides = key_cache.stride(), value_cache.stride()
    whole = head <= launch.block_head + launch.block_rest  # else keys are taken in parts
    form = Form(
        query_heads,
        kv_heads,
        head,
        call.value_dim,
        page_size,
        WIDE=page_size * max(key_strides[slots], value_strides[slots]) >= 2**32,
        ALIKE=key_strides[:3] == value_strides[:3],
        WINDOW=window > 0,
        SOFTCAP=call.softcap > 0,
        LATENT=latent and whole and launch.block_value == launch.block_head,
        BLOCK_HEAD=launch.block_head,
        BLOCK_REST=launch.block_rest,
        BLOCK_VALUE=launch.block_value,
    )
    new_strides = (
        *((0, 0) if new_key is None else new_key.stride()[:2]),
        *((0, 0) if new_value is None else new_value.stride()[:2]),
    )
    strides = (
        *query.stride()[:2],
        key_strides[0], key_strides[slots], key_strides[heads],
        value_strides[0], value_strides[slots], value_strides[heads],
        *new_strides,
    )  # fmt: skip
    given = (call.key_scales, value_scales, new_key, new_value, call.sinks, call.out_lse)
    kernels = _kernels(
        _Key(
            device, form, replace(launch, splits=0, least=0), merge_blocks(launch, splits)[0],
            call.deterministic, elements,
            (query.dtype, key_cache.dtype, value_cache.dtype, call.out.dtype, *map(dtype_of, given)),
            _are_aligned(query, key_cache, value_cache, new_key, new_value, call.out, strides=strides),
        )
    )  # fmt: skip
    # Results of splits have the bytes of the operands: what rounding them costs is in docs/triton.md.
    partial = torch.empty((splits, rows, query_heads, call.value_dim), dtype=elements, device=query.device)
    partial_lse = torch.empty((splits, rows, query_heads), dtype=torch.float32, device=query.device)
    caches = (
        _stored(key_cache), _stored(value_cache), call.key_scales, value_scales,
        call.block_table, call.prefix_lens, call.cu_nodes, call.parents, partial, partial_lse,
    )  # fmt: skip
    numbers = (
        rows, requests, longest, call.block_table.shape[1], key_cache.shape[0], *strides,
        call.scale, call.key_scale, value_scale, call.softcap, window, launch.splits, launch.least,
    )  # fmt: skip
    outputs = (call.sinks, call.out, call.out_lse)
    if requests:
        tiles = (rows * (query_heads // kv_heads) - 1) // launch.block_rows + requests
        kernels.splits((tiles * kv_heads, splits, 1), query, new_key, new_value, *caches, *numbers)
    if call.deterministic:
        grid = (rows, kv_heads, -(-(query_heads // kv_heads) // kernels.heads))
        kernels.finish(grid, query, new_key, new_value, *outputs, *caches, *numbers)
    else:
        grid = (rows, -(-query_heads // kernels.heads), -(-call.value_dim // kernels.columns))
        kernels.finish(
            grid, *outputs, partial, partial_lse, call.prefix_lens, call.cu_nodes,
            rows, requests, longest, window, launch.splits, launch.least,
        )  # fmt: skip


@cache
def _target(device: Any) -> Any:
    with current(device):
        return driver.active.get_current_target()


def _are_aligned(*tensors: torch.Tensor | None, strides: tuple[int, ...]) -> bool:
    """Whether rows begin at multiples of 16 bytes, and are as many elements apart."""
    there = [tensor for tensor in tensors if tensor is not None]
    return multiples_of_16(there[0], *strides) and all(map(multiples_of_16, there[1:]))


def _product_dtype(query: torch.dtype, cache: torch.dtype) -> torch.dtype:
    """The dtype that holds the elements of both exactly. Any dtype of a query holds int8 and float8."""
    return query if cache in (query, torch.int8, torch.float8_e4m3fn) else torch.float32


def _stored(cache):
    """A cache of float8 as one of bytes, which every target reads."""
    return cache.view(torch.uint8) if cache.dtype == torch.float8_e4m3fn else cache
