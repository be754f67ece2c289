# SPDX-License-Identifier: Apache-2.0
"""Committing on the CPU: tables of addresses for the native core."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cache_table import cache_table, new_rows
from . import _native


def commit_kv(
    caches, table, new, path, cu_nodes, rows, block_table, prefix_lens, page_size, layout,
    out_lengths, out_pages_kept,
):  # fmt: skip
    """The operator `specdec_kernels::commit_kv`."""
    # A tracer may hand over copies of the caches that the plan was made for.
    if caches and (table is None or table[:, 0].tolist() != [cache.data_ptr() for cache in caches]):
        table = cache_table(caches, layout)
    fresh = torch.tensor(new_rows(new, layout), dtype=torch.int64)
    _native.commit_kv(
        table.data_ptr(),
        fresh.data_ptr() if new else 0,
        table.shape[0],
        paths(path, cu_nodes, rows),
        block_table.data_ptr(),
        block_table.shape[1],
        prefix_lens.data_ptr(),
        page_size,
        out_lengths.data_ptr(),
        out_pages_kept.data_ptr(),
        torch.get_num_threads(),
    )


def paths(path: Tensor, cu_nodes: Tensor, rows: int) -> tuple[int, int, int, int, int]:
    return path.data_ptr(), path.shape[1], cu_nodes.data_ptr(), rows, path.shape[0]
