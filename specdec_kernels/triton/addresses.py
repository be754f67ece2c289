# SPDX-License-Identifier: Apache-2.0
"""Addresses and strides, which only the host knows, brought to where kernels can read them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._checks import name_of
from .dispatch import Launch, device_of
from .launch import commit_numbers


def on_device(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """[len(rows), len(rows[0])] int64, of numbers from 0 to 2^60.

    They travel as arguments of a launch, which neither synchronises nor keeps a captured graph from being
    replayed, as copying them from host memory would.
    """
    # Negative and of 64 bits, so that the type of none depends on its value.
    coded = [-(2**62) - number for row in rows for number in row]
    length = commit_numbers(len(coded))
    launches = triton.cdiv(len(coded), length)
    numbers = torch.empty(launches * length, dtype=torch.int64, device=device)
    coded += [-(2**62)] * (launches * length - len(coded))
    write = _kernel(device_of(numbers), length)
    for begin, some in zip(range(0, len(coded), length), numbers.split(length), strict=True):
        write((1, 1, 1), some, tuple(coded[begin : begin + length]))
    return numbers[: len(rows) * len(rows[0])].view(len(rows), -1)


@cache
def _kernel(device: Any, length: int) -> Launch:
    return Launch(_write_numbers_kernel, device, {}, num_warps=1)


def element_type(dtype: torch.dtype) -> tl.dtype:
    """What Triton calls a dtype."""
    return getattr(tl, name_of(dtype))


@triton.jit
def _write_numbers_kernel(
    out_ptr,  # [len(coded)] int64
    coded,  # tuple of integers
):
    for i in tl.static_range(len(coded)):
        tl.store(out_ptr + i, -coded[i] - 2**62)


@triton.jit
def pointer(address, DTYPE: tl.constexpr, ALIGNMENT: tl.constexpr):
    """An address as a pointer that is a multiple of `ALIGNMENT` bytes."""
    return tl.multiple_of(address.to(tl.pointer_type(DTYPE)), ALIGNMENT)


@triton.jit
def unit_words(unit, WORDS: tl.constexpr):
    """[UNITS] units of `WORDS` words -> [UNITS, WORDS] places of the words: one access per unit, where the
    pointer they are added to is a multiple of a unit."""
    return (unit * WORDS)[:, None] + tl.arange(0, WORDS)[None, :]
