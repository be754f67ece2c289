# SPDX-License-Identifier: Apache-2.0
"""Attention over the draft tree on a paged cache."""

from __future__ import annotations

import math
from typing import Literal, overload

import torch
from torch import Tensor

from . import _debug, _ops
from ._cache_table import SLOT_DIM
from ._checks import (
    FLOATS,
    bad_value,
    check_bool,
    check_device,
    check_dim,
    check_dtype,
    check_int,
    check_name,
    check_number,
    check_shape,
    check_tensor,
    check_type,
    what,
)
from ._memory import check_contiguous, check_last_stride
from ._ops.calls import TreeAttentionCall
from .tree import DraftTree

OPERATION = "tree_attention"
CACHES = (*FLOATS, torch.int8, torch.float8_e4m3fn)


@overload
def tree_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor | None,
    tree: DraftTree,
    block_table: Tensor,
    prefix_lens: Tensor,
    *,
    new_key: Tensor | None = None,
    new_value: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    key_scale: float | Tensor | None = None,
    value_scale: float | Tensor | None = None,
    value_dim: int | None = None,
    max_prefix_len: int | None = None,
    layout: Literal["NHD", "HND"] = "NHD",
    deterministic: bool = False,
    return_lse: Literal[False] = False,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor: ...


@overload
def tree_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor | None,
    tree: DraftTree,
    block_table: Tensor,
    prefix_lens: Tensor,
    *,
    new_key: Tensor | None = None,
    new_value: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    key_scale: float | Tensor | None = None,
    value_scale: float | Tensor | None = None,
    value_dim: int | None = None,
    max_prefix_len: int | None = None,
    layout: Literal["NHD", "HND"] = "NHD",
    deterministic: bool = False,
    return_lse: Literal[True],
    out: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...


@overload
def tree_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor | None,
    tree: DraftTree,
    block_table: Tensor,
    prefix_lens: Tensor,
    *,
    new_key: Tensor | None = None,
    new_value: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    key_scale: float | Tensor | None = None,
    value_scale: float | Tensor | None = None,
    value_dim: int | None = None,
    max_prefix_len: int | None = None,
    layout: Literal["NHD", "HND"] = "NHD",
    deterministic: bool = False,
    return_lse: bool,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]: ...


def tree_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor | None,
    tree: DraftTree,
    block_table: Tensor,
    prefix_lens: Tensor,
    *,
    new_key: Tensor | None = None,
    new_value: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    key_scale: float | Tensor | None = None,
    value_scale: float | Tensor | None = None,
    value_dim: int | None = None,
    max_prefix_len: int | None = None,
    layout: Literal["NHD", "HND"] = "NHD",
    deterministic: bool = False,
    return_lse: bool = False,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of every node of the draft over its request's prefix, its ancestors and itself.

    Node i of request b stands at position `p_i = prefix_lens[b] + depth(i)`. With A(i) the prefix, the
    ancestors of i and i itself,

        s_ij = scale * query_i . key_j             (with softcap c: c * tanh(s_ij / c))
        out_i = sum_{j in A(i)} exp(s_ij - lse_i) value_j
        lse_i = log(sum_{j in A(i)} exp(s_ij) + exp(sink))

    With `window` w only positions with `p_i - p_j < w` count. A chain of one node is ordinary decoding. Query
    head h reads head `h // (Hq / Hkv)` of the cache.

    Args:
        query: [R, Hq, D] float32 | bfloat16 | float16, last stride 1.
        key_cache: [pages, page_size, Hkv, D], or [pages, Hkv, page_size, D] with layout HND; any strides, the
            last being 1; float32 | bfloat16 | float16, or int8 | float8_e4m3fn with scales.
        value_cache: the values, as `key_cache`, with a size that may differ from D; None with `value_dim`.
        tree: the drafted tokens, R rows of B requests.
        block_table: [B, P] int32: position j of request b lies in slot `j % page_size` of page
            `block_table[b, j // page_size]`. Entries beyond the prefix and the tree are not read.
        prefix_lens: [B] int32, committed positions before the root.
        new_key: [R, Hkv, D] of the query's dtype, unscaled: the keys of the nodes. Without it node i has its
            key and value in the cache at position `prefix_lens[b] + i`.
        new_value: the values of the nodes, as `new_key`; None with `value_dim`: part of `new_key`.
        scale: factor of the scores; default `1 / sqrt(D)`.
        window: number of positions that a node sees, itself included; >= 1.
        softcap: > 0.
        sinks: [Hq] float32, for each head a score that takes part in the sum and has no value.
        key_scale: a number or [Hkv] float32 by which stored keys are multiplied.
        value_scale: the same for stored values; None with `value_dim`.
        value_dim: the values are the first `value_dim` elements of the keys (latent attention).
        max_prefix_len: host bound on `prefix_lens`; default P * page_size.
        layout: "NHD" or "HND", the order of slots and heads in the caches.
        deterministic: the row of a node is bitwise the same, whatever else is in the batch or the tree.
        return_lse: also return lse.
        out: [R, Hq, value size] of the query's dtype, contiguous, to fill and return.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        out [R, Hq, value size] of the query's dtype, and with `return_lse` lse [R, Hq] float32. Rows that
        belong to no request are 0 with lse `-inf`.

    Raises:
        ValueError: wrong shapes, numbers out of range.
        TypeError: wrong dtypes or devices.
        BackendUnavailable: the named backend cannot serve the call.

    Notes:
        Never synchronises. Slots outside the prefix and the tree may hold anything, NaN included. Wrong
        values do no harm: `prefix_lens` is clamped to the block table, a position without a valid page is not
        seen, a node without a valid parent is a root. `SPECDEC_DEBUG=1` in the environment makes such lengths
        and pages raise `ValueError`, and synchronises. On the cpu backend a row is bitwise the same in any
        batch and on any number of threads, with and without `deterministic`. It reads the prefix once for all
        nodes and all query heads of one head of the cache (per 256 such rows), in float32, with a few MB of
        memory. Float64 is served by the reference.

    Source: Miao et al. 2024, SpecInfer, section 4.2 (tree attention); Dao et al. 2022, FlashAttention, and
        Flash-Decoding 2023 (online softmax, splits over the prefix).

    Example:
        >>> tree = DraftTree.from_parents(torch.tensor([[-1, 5, 6]]), torch.tensor([[-1, 0, 0]]))
        >>> cache = torch.zeros(1, 8, 1, 2)  # one page of 8 slots: a prefix of 2, then 3 nodes
        >>> cache[0, :5, 0, 0] = torch.tensor([1.0, 1.0, 4.0, 8.0, 16.0])
        >>> query, pages, lengths = torch.zeros(3, 1, 2), torch.tensor([[0]]).int(), torch.tensor([2]).int()
        >>> tree_attention(query, cache, cache, tree, pages, lengths)[:, 0, 0].tolist()
        [2.0, 3.5, 5.5]
    """
    check_type(OPERATION, "tree", tree, DraftTree, "a DraftTree")
    check_dtype(OPERATION, "query", query, FLOATS)
    rows, batch, device = tree.tokens.shape[0], tree.batch_size, query.device
    check_dim(OPERATION, "query", query, 3, "[R, Hq, D]")
    _, query_heads, head_dim = query.shape
    check_shape(OPERATION, "query", query, "[R, Hq, D]", (rows, query_heads, head_dim))
    check_last_stride(OPERATION, "query", query, "D")
    check_device(OPERATION, "tree", tree.tokens, device)
    check_name(OPERATION, "layout", layout, SLOT_DIM)
    check_bool(OPERATION, "deterministic", deterministic)
    check_bool(OPERATION, "return_lse", return_lse)
    kv_heads, page_size, value_size = _check_caches(query, key_cache, value_cache, value_dim, layout)
    check_dtype(OPERATION, "block_table", block_table, (torch.int32,))
    check_device(OPERATION, "block_table", block_table, device)
    if block_table.dim() != 2 or block_table.shape[0] != batch:
        bad_value(OPERATION, "block_table", f"must have shape [B, P], B = {batch}", list(block_table.shape))
    check_tensor(OPERATION, "prefix_lens", prefix_lens, "[B]", (batch,), (torch.int32,), device)
    _check_new(query, new_key, new_value, kv_heads, value_size, value_cache is None)
    scale = check_number(OPERATION, "scale", 1 / math.sqrt(head_dim) if scale is None else scale)
    window = 0 if window is None else check_int(OPERATION, "window", window, 1)
    softcap = 0.0 if softcap is None else _positive("softcap", softcap)
    if sinks is not None:
        check_tensor(OPERATION, "sinks", sinks, "[Hq]", (query_heads,), (torch.float32,), device)
        sinks = sinks.contiguous()
    if value_cache is None and value_scale is not None:
        bad_value(OPERATION, "value_scale", "must be None with value_dim", what(value_scale))
    key_scale, key_scales = _scale("key_scale", key_scale, kv_heads, device)
    value_scale, value_scales = _scale("value_scale", value_scale, kv_heads, device)
    table = block_table.shape[1] * page_size
    max_prefix_len = check_int(
        OPERATION, "max_prefix_len", table if max_prefix_len is None else max_prefix_len, 0
    )
    out = _output(out, query, value_size)
    if _debug.enabled():
        _debug.check_pages(
            OPERATION, tree, block_table, prefix_lens, page_size, key_cache.shape[0],
            in_cache=new_key is None, window=window, max_prefix_len=max_prefix_len,
        )  # fmt: skip
    lse = torch.empty((rows, query_heads), dtype=torch.float32, device=device) if return_lse else None
    call = TreeAttentionCall(
        query=query,
        key_cache=key_cache,
        value_cache=value_cache,
        parents=tree.parents.contiguous(),
        cu_nodes=tree.cu_nodes.contiguous(),
        block_table=block_table.contiguous(),
        prefix_lens=prefix_lens.contiguous(),
        new_key=new_key,
        new_value=new_value,
        scale=scale,
        window=window,
        softcap=softcap,
        sinks=sinks,
        key_scale=key_scale,
        key_scales=key_scales,
        value_scale=value_scale,
        value_scales=value_scales,
        value_dim=value_size,
        max_prefix_len=max_prefix_len,
        heads_first=layout == "HND",
        deterministic=deterministic,
        out=out,
        out_lse=lse,
    )
    _ops.tree_attention(call, backend)
    return out if lse is None else (out, lse)


def _check_caches(
    query: Tensor, key_cache: Tensor, value_cache: Tensor | None, value_dim: int | None, layout: str
) -> tuple[int, int, int]:
    """Check the caches. Returns their number of heads, the page size, and the elements of a value."""
    _, query_heads, head_dim = query.shape
    symbols = "[pages, page_size, Hkv, D]" if layout == "NHD" else "[pages, Hkv, page_size, D]"
    check_dtype(OPERATION, "key_cache", key_cache, CACHES)
    check_device(OPERATION, "key_cache", key_cache, query.device)
    shape = key_cache.shape
    if len(shape) != 4 or shape[3] != head_dim:
        bad_value(OPERATION, "key_cache", f"must have shape {symbols}, D = {head_dim}", list(shape))
    check_last_stride(OPERATION, "key_cache", key_cache, "D")
    pages, page_size, kv_heads, _ = shape
    if layout == "HND":
        page_size, kv_heads = kv_heads, page_size
    if page_size < 1:
        bad_value(OPERATION, "key_cache", "must have page_size >= 1", list(key_cache.shape))
    if kv_heads < 1 or query_heads % kv_heads:
        bad_value(OPERATION, "query", f"must have Hq a multiple of Hkv = {kv_heads}", query_heads)
    if value_cache is None:
        if value_dim is None:
            bad_value(OPERATION, "value_dim", "must be given where value_cache is None", "None")
        value_dim = check_int(OPERATION, "value_dim", value_dim)
        if not 1 <= value_dim <= head_dim:
            bad_value(OPERATION, "value_dim", f"must be in [1, D] = [1, {head_dim}]", value_dim)
        return kv_heads, page_size, value_dim
    if value_dim is not None:
        bad_value(OPERATION, "value_dim", "must be None where value_cache is given", value_dim)
    value_size = value_cache.shape[-1] if isinstance(value_cache, Tensor) and value_cache.dim() == 4 else 0
    wanted = (pages, shape[1], shape[2], value_size)
    check_tensor(OPERATION, "value_cache", value_cache, symbols, wanted, (key_cache.dtype,), query.device)
    check_last_stride(OPERATION, "value_cache", value_cache, "D")
    return kv_heads, page_size, value_size


def _check_new(
    query: Tensor,
    new_key: Tensor | None,
    new_value: Tensor | None,
    kv_heads: int,
    value_size: int,
    latent: bool,
) -> None:
    if new_key is None:
        if new_value is not None:
            bad_value(OPERATION, "new_value", "must be None without new_key", what(new_value))
        return
    rows, device = query.shape[0], query.device
    shape = (rows, kv_heads, query.shape[2])
    check_tensor(OPERATION, "new_key", new_key, "[R, Hkv, D]", shape, (query.dtype,), device)
    check_last_stride(OPERATION, "new_key", new_key, "D")
    if latent:
        if new_value is not None:
            bad_value(OPERATION, "new_value", "must be None with value_dim", what(new_value))
        return
    if new_value is None:
        bad_value(OPERATION, "new_value", "must be given with new_key", "None")
    shape = (rows, kv_heads, value_size)
    check_tensor(OPERATION, "new_value", new_value, "[R, Hkv, Dv]", shape, (query.dtype,), device)
    check_last_stride(OPERATION, "new_value", new_value, "D")


def _positive(argument: str, value: float) -> float:
    number = check_number(OPERATION, argument, value)
    if number <= 0:
        bad_value(OPERATION, argument, "must be > 0", value)
    return number


def _scale(
    argument: str, scale: float | Tensor | None, kv_heads: int, device: torch.device
) -> tuple[float, Tensor | None]:
    """One number for all heads, or [Hkv] contiguous."""
    if scale is None:
        return 1.0, None
    if not isinstance(scale, Tensor):
        return check_number(OPERATION, argument, scale, noun="a number or a [Hkv] tensor"), None
    check_dtype(OPERATION, argument, scale, (torch.float32,))
    check_device(OPERATION, argument, scale, device)
    if scale.numel() == 1:
        scale = scale.reshape(1).expand(kv_heads)
    check_shape(OPERATION, argument, scale, "[Hkv]", (kv_heads,))
    return 1.0, scale.contiguous()


def _output(out: Tensor | None, query: Tensor, value_size: int) -> Tensor:
    rows, heads, head_dim = query.shape
    if out is None and value_size == head_dim:  # the fastest
        return torch.empty_like(query, memory_format=torch.contiguous_format)
    shape = (rows, heads, value_size)
    if out is None:
        return query.new_empty(shape)
    check_tensor(OPERATION, "out", out, "[R, Hq, Dv]", shape, (query.dtype,), query.device)
    check_contiguous(OPERATION, "out", out)
    return out
