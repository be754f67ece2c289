# SPDX-License-Identifier: Apache-2.0
"""Drafted tokens that lie one after the other, entered into chains with roots: one launch of a program for
every so many rows. Torch's operators would take about twenty."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dispatch import Launch, device_of

ROWS = 128  # of a program


@cache
def _kernel(device: Any, *dtypes: torch.dtype) -> Launch:
    return Launch(_chains_kernel, device, dict(ROWS=ROWS), num_warps=1)


def enter_chains(
    drafts: Tensor, cu_drafts: Tensor, out_tokens: Tensor, out_parents: Tensor, out_cu_nodes: Tensor
) -> None:
    """Drafted tokens [S] and sums of their numbers [B], into tokens and parents [S + B], offsets [B + 1]."""
    count, batch = drafts.shape[0], cu_drafts.shape[0]
    launch = _kernel(device_of(out_tokens), drafts.dtype, cu_drafts.dtype)
    launch(
        (triton.cdiv(count + batch + 1, ROWS), 1, 1),
        drafts.contiguous(), cu_drafts.contiguous(), out_tokens, out_parents, out_cu_nodes, count, batch,
    )  # fmt: skip


@triton.jit
def _offset(cu_drafts_ptr, request, mask):
    """Where a request begins. Sums that are none may wrap."""
    before = tl.load(cu_drafts_ptr + request - 1, mask=mask & (request > 0), other=0)
    return (before.to(tl.int64) + request).to(tl.int32)


@triton.jit(do_not_specialize=["count", "batch"])
def _chains_kernel(
    drafts_ptr,  # [count]
    cu_drafts_ptr,  # [batch]
    out_tokens_ptr,  # [count + batch]
    out_parents_ptr,  # [count + batch]
    out_cu_nodes_ptr,  # [batch + 1]
    count,
    batch,
    ROWS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    tl.store(out_cu_nodes_ptr + row, _offset(cu_drafts_ptr, row, row <= batch), mask=row <= batch)
    inside = row < count.to(tl.int64) + batch
    request = tl.zeros([ROWS], tl.int64)  # the requests before it end at or before the row
    end = tl.zeros([ROWS], tl.int64) + batch
    steps = batch
    while steps > 0:
        middle = (request + end) >> 1
        open = inside & (request < end)
        after = open & (_offset(cu_drafts_ptr, middle + 1, open) <= row)
        end = tl.where(open & (after == 0), middle, end)
        request = tl.where(after, middle + 1, request)
        steps = steps >> 1
    node = row - _offset(cu_drafts_ptr, request, inside)
    place = row - request - 1
    drafted = inside & (request < batch) & (node > 0) & (place >= 0) & (place < count)
    token = tl.load(drafts_ptr + place, mask=drafted, other=-1)
    tl.store(out_tokens_ptr + row, tl.where(drafted, token.to(tl.int64), -1), mask=inside)
    parent = tl.minimum(tl.maximum(node - 1, -1), 0x7FFFFFFF)
    tl.store(out_parents_ptr + row, parent.to(tl.int32), mask=inside)
