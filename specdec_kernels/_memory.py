# SPDX-License-Identifier: Apache-2.0
"""Checks of how tensors lie in memory. They read no values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._checks import bad_value


def check_last_stride(operation: str, argument: str, tensor: Tensor, symbol: str = "V") -> None:
    """Raise `ValueError` unless rows are contiguous in memory and not empty; `symbol` names their size."""
    size = tensor.shape[-1]
    if size < 1:
        bad_value(operation, argument, f"must have {symbol} >= 1", list(tensor.shape))
    if size > 1 and tensor.stride()[-1] != 1:
        bad_value(operation, argument, "must have last stride 1", f"strides {list(tensor.stride())}")


def check_contiguous(operation: str, argument: str, tensor: Tensor) -> None:
    """Raise `ValueError` unless `tensor` is contiguous."""
    if not tensor.is_contiguous():
        bad_value(operation, argument, "must be contiguous", f"strides {list(tensor.stride())}")


def check_row(operation: str, argument: str, tensor: Tensor, dims: range) -> None:
    """Raise `ValueError` unless the given last dimensions are contiguous in memory."""
    if tensor.numel() == 0:
        return
    expected = 1
    for dim in reversed(dims):
        if tensor.shape[dim] != 1 and tensor.stride(dim) != expected:
            rule = f"must have contiguous rows (dimensions {dims.start} to {tensor.dim() - 1})"
            bad_value(operation, argument, rule, _strides(tensor))
        expected *= tensor.shape[dim]


def check_no_overlap(operation: str, argument: str, tensor: Tensor) -> None:
    """Raise `ValueError` if two elements may share bytes. The strides must nest, as in views of a pool. A
    tracer of dynamic shapes cannot sort strides, so compiled code does not check."""
    if torch.compiler.is_compiling():
        return
    extent = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride < extent:
                bad_value(operation, argument, "must not overlap itself", _strides(tensor))
            extent += stride * (size - 1)


def check_distinct(operation: str, argument: str, tensors: Sequence[Tensor]) -> None:
    """Raise `ValueError` if a tensor is listed twice, since it would be changed in place twice."""
    if torch.compiler.is_compiling() or any(tensor.is_meta for tensor in tensors):
        return
    seen: dict[int, int] = {}
    for i, tensor in enumerate(tensors):
        if tensor.numel() and seen.setdefault(tensor.data_ptr(), i) != i:
            got = f"{seen[tensor.data_ptr()]} and {i} at one address"
            bad_value(operation, argument, "must be distinct", got)


def _strides(tensor: Tensor) -> str:
    return f"shape {list(tensor.shape)}, strides {list(tensor.stride())}"
