"""Addresses and strides, which only the host knows, brought to where kernels can read them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import NUMBERS_PER_LAUNCH


def on_device(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """[len(rows), len(rows[0])] int64, numbers >= 0.

    They travel as arguments of a launch, which neither synchronises nor keeps a captured graph from being
    replayed, as copying them from host memory would.
    """
    numbers = torch.empty(len(rows), len(rows[0]), dtype=torch.int64, device=device)
    # Odd and negative, so that none is special to the compiler: one kernel serves all addresses.
    coded = [~(2 * number) for row in rows for number in row]
    for first in range(0, len(coded), NUMBERS_PER_LAUNCH):
        some = tuple(coded[first : first + NUMBERS_PER_LAUNCH])
        _write_numbers_kernel[(1,)](numbers.view(-1)[first:], some, num_warps=1)
    return numbers


@triton.jit
def _write_numbers_kernel(
    out_ptr,  # [len(coded)] int64
    coded,  # tuple of integers
):
    for i in tl.static_range(len(coded)):
        tl.store(out_ptr + i, (~coded[i]).to(tl.int64) >> 1)


@triton.jit
def pointer(address, DTYPE: tl.constexpr, ALIGNMENT: tl.constexpr):
    """An address as a pointer that is a multiple of `ALIGNMENT` bytes."""
    return tl.multiple_of(address.to(tl.pointer_type(DTYPE)), ALIGNMENT)


@triton.jit
def unit_words(unit, WORDS: tl.constexpr):
    """[UNITS] units of `WORDS` words -> [UNITS, WORDS] places of the words: one access per unit, where the
    pointer they are added to is a multiple of a unit."""
    return (unit * WORDS)[:, None] + tl.arange(0, WORDS)[None, :]
