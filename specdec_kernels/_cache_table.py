# SPDX-License-Identifier: Apache-2.0
"""Paged caches as addresses and strides in bytes, from which a kernel finds a row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FIELDS = ("address", "pages", "page_stride", "slot_stride", "heads", "head_stride", "row_bytes")
SLOT_DIM = {"NHD": 1, "HND": 2}
"""The dimension of slots: [pages, page_size, ...] and [pages, Hkv, page_size, ...]."""


def row_dims(cache: Tensor, layout: str) -> range:
    """The dimensions whose bytes must be contiguous: those after the dimension of slots."""
    return range(SLOT_DIM[layout] + 1, cache.dim())


def cache_rows(caches: Sequence[Tensor], layout: str) -> list[tuple[int, ...]]:
    """The `FIELDS` of each cache."""
    rows: list[tuple[int, ...]] = []
    for cache in caches:
        size, slot = cache.element_size(), SLOT_DIM[layout]
        heads, head_stride = (cache.shape[1], cache.stride(1) * size) if slot == 2 else (1, 0)
        row_bytes = cache.shape[slot + 1 :].numel() * size
        strides = (cache.stride(0) * size, cache.stride(slot) * size)
        rows.append((cache.data_ptr(), cache.shape[0], *strides, heads, head_stride, row_bytes))
    return rows


def cache_table(caches: Sequence[Tensor], layout: str) -> Tensor:
    """[len(caches), len(FIELDS)] int64 on the device of the caches. Synchronises, unless that is the CPU."""
    rows = cache_rows(caches, layout)
    return torch.tensor(rows, dtype=torch.int64, device=caches[0].device).view(-1, len(FIELDS))


def new_rows(new: Sequence[Tensor], layout: str) -> list[tuple[int, ...]]:
    """For each tensor of rows that are not in a cache yet: its address, and its strides of rows and heads in
    bytes."""
    rows: list[tuple[int, ...]] = []
    for fresh in new:
        size = fresh.element_size()
        head_stride = fresh.stride(1) * size if layout == "HND" else 0
        rows.append((fresh.data_ptr(), fresh.stride(0) * size, head_stride))
    return rows
