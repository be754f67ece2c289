# SPDX-License-Identifier: Apache-2.0
"""Kept paths entered into SGLang's arrays: one launch of a program per request. Torch's operators would take
about eight."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dispatch import Launch, device_of


@cache
def _kernel(device: Any, clear: bool, *dtypes: torch.dtype) -> Launch:
    return Launch(_path_kernel, device, dict(CLEAR=clear, BLOCK=64), num_warps=1)


def enter_path(
    tokens: Tensor, path: Tensor, cu_nodes: Tensor, out: tuple[Tensor, Tensor], clear: bool
) -> None:
    """Kept nodes [B, W], with the tokens after them, of requests that begin at rows `cu_nodes` [B + 1]: into
    the token after each row [R], 0 after others with `clear`, and the rows [B, W] of the nodes, then -1."""
    (batch, width), (predicts, accept_index) = path.shape, out
    if batch:
        launch = _kernel(device_of(path), clear, tokens.dtype, predicts.dtype, accept_index.dtype)
        launch(
            (batch, 1, 1),
            tokens, path, cu_nodes, predicts, predicts.stride(0), predicts.shape[0],
            accept_index, *accept_index.stride(), width,
        )  # fmt: skip


@triton.jit(do_not_specialize=["rows", "width"])
def _path_kernel(
    tokens_ptr,  # [B, width]
    path_ptr,  # [B, width]
    cu_nodes_ptr,  # [B + 1]
    predicts_ptr,  # [rows]
    predicts_stride,
    rows,
    index_ptr,  # [B, width]
    index_stride_b,
    index_stride_w,
    width,
    CLEAR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    start = tl.load(cu_nodes_ptr + b).to(tl.int64)
    if CLEAR:
        end = tl.minimum(tl.load(cu_nodes_ptr + b + 1).to(tl.int64), rows)
        for begin in range(tl.maximum(start, 0), end, BLOCK):
            row = begin + tl.arange(0, BLOCK)
            tl.store(predicts_ptr + row * predicts_stride, 0, mask=row < end)
        tl.debug_barrier()
    for begin in range(0, width, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        inside = place < width
        node = tl.load(path_ptr + b * width + place, mask=inside, other=-1)
        token = tl.load(tokens_ptr + b * width + place, mask=inside, other=0)
        row = tl.where(node >= 0, start + node, -1)
        tl.store(index_ptr + b * index_stride_b + place * index_stride_w, row, mask=inside)
        tl.store(predicts_ptr + row * predicts_stride, token, mask=(row >= 0) & (row < rows))
