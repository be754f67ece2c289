# SPDX-License-Identifier: Apache-2.0
"""Tensors as the native core takes them: addresses, dtypes, sizes and strides, by name."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _native

DTYPES = {
    torch.float32: _native.DType.float32,
    torch.bfloat16: _native.DType.bfloat16,
    torch.float16: _native.DType.float16,
    torch.int8: _native.DType.int8,
    torch.float8_e4m3fn: _native.DType.float8_e4m3fn,
}
_NO_ADDRESSES = [0, 0, 0, 0]


def address(tensor: Tensor | None) -> int:
    """0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def rows_of(logits: Tensor) -> _native.Rows:
    """Rows of [R, V] or of [G, N, V]."""
    *groups, rows, size = logits.shape
    *group_stride, row_stride, _ = logits.stride()
    return _native.Rows(
        data=logits.data_ptr(),
        dtype=DTYPES[logits.dtype],
        count=groups[0] * rows if groups else rows,
        size=size,
        group=rows if groups else 0,
        group_stride=group_stride[0] if groups else 0,
        row_stride=row_stride,
    )


def sampling_of(
    numbers: list[float], rows: list[Tensor | None]
) -> tuple[_native.Sampling, list[Tensor | None]]:
    """What the core takes, and the tensors that must outlive the call."""
    temperature, top_k, top_p, min_p, min_p_last = numbers
    pinned = [None if row is None else row.to(torch.float64) for row in rows]
    addresses = [address(row) for row in pinned] or _NO_ADDRESSES
    law = _native.Sampling(
        temperature=(temperature, addresses[0]),
        top_k=(top_k, addresses[1]),
        top_p=(top_p, addresses[2]),
        min_p=(min_p, addresses[3]),
        min_p_last=bool(min_p_last),
    )
    return law, pinned


def stride_of(rows: Tensor | None) -> int:
    """Elements from row to row; 0 for None."""
    return 0 if rows is None else rows.stride(0)
