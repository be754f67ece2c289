# SPDX-License-Identifier: Apache-2.0
"""Tensors as the native core takes them: addresses, dtypes, sizes and strides, by name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .._ops.calls import SampleCall, VerifyCall
from . import _native

DTYPES = {
    torch.float32: _native.DType.float32,
    torch.bfloat16: _native.DType.bfloat16,
    torch.float16: _native.DType.float16,
    torch.int8: _native.DType.int8,
    torch.float8_e4m3fn: _native.DType.float8_e4m3fn,
}
_KINDS: Mapping[str, _native.LawKind] = _native.LawKind.__members__
_NO_ADDRESSES = [0, 0, 0, 0]


def address(tensor: Tensor | None) -> int:
    """0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def rows_of(logits: Tensor) -> _native.Rows:
    """Rows of [R, V] or of [G, N, V]."""
    if len(logits.shape) == 2:
        groups, group, group_stride = 1, 0, 0
        rows, size = logits.shape
        row_stride = logits.stride()[0]
    else:
        groups, rows, size = logits.shape
        group_stride, row_stride, _ = logits.stride()
        group = rows
    return _native.Rows(
        data=logits.data_ptr(),
        dtype=DTYPES[logits.dtype],
        count=groups * rows,
        size=size,
        group=group,
        group_stride=group_stride,
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


def logprobs_of(call: VerifyCall | SampleCall) -> _native.Logprobs:
    """What is reported of emitted tokens."""
    top_logprobs, top_tokens, ranks, chosen_logprobs = call.out_report
    return _native.Logprobs(
        kind=_KINDS[call.logprobs_kind],
        top=top_tokens.shape[-1],
        chosen=address(call.chosen_tokens),
        chosen_count=chosen_logprobs.shape[-1],
        out_top_logprobs=top_logprobs.data_ptr(),
        out_top_tokens=top_tokens.data_ptr(),
        out_ranks=ranks.data_ptr(),
        out_chosen_logprobs=chosen_logprobs.data_ptr(),
    )


def masks_of(masks: list[Tensor]) -> _native.Masks:
    """The sampling masks, as a call has them."""
    counts, mass, tokens, *offsets = masks
    return _native.Masks(
        out_bits=0 if offsets else tokens.data_ptr(),
        out_ids=tokens.data_ptr() if offsets else 0,
        capacity=tokens.shape[0] if offsets else 0,
        out_offsets=offsets[0].data_ptr() if offsets else 0,
        out_counts=counts.data_ptr(),
        out_mass=mass.data_ptr() if mass.numel() else 0,
    )
