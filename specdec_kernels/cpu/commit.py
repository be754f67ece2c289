# SPDX-License-Identifier: Apache-2.0
"""Committing on the CPU: tables of addresses for the native core."""

from __future__ import annotations

import torch
from torch import Tensor

from .._cache_table import FIELDS, cache_table, new_rows
from .._ops.calls import CommitKVCall
from . import _native
from .arguments import address

_CACHE_BYTES, _NEW_ROWS_BYTES = 8 * len(FIELDS), 8 * 3  # rows of these tables are the core's structs


def commit_kv(call: CommitKVCall) -> None:
    """Move the kept rows."""
    table = call.table
    # A tracer may hand over copies of the caches that the plan was made for.
    if table is None or (call.caches and table[:, 0].tolist() != [c.data_ptr() for c in call.caches]):
        table = cache_table(call.caches, call.layout)
    fresh = torch.tensor(new_rows(call.new, call.layout), dtype=torch.int64) if call.new else None
    _native.commit_kv(
        torch.get_num_threads(),
        caches=table.data_ptr(),
        new_rows=address(fresh),
        cache_count=table.shape[0],
        cache_struct_size=_CACHE_BYTES,
        new_rows_struct_size=_NEW_ROWS_BYTES,
        paths=paths_of(call.path, call.cu_nodes, call.rows),
        block_table=call.block_table.data_ptr(),
        table_width=call.block_table.shape[1],
        prefix_lens=call.prefix_lens.data_ptr(),
        page_size=call.page_size,
        out_lengths=call.out_lengths.data_ptr(),
        out_pages_kept=call.out_pages_kept.data_ptr(),
    )


def paths_of(path: Tensor, cu_nodes: Tensor, rows: int) -> _native.Paths:
    """Which rows of a request are kept."""
    return _native.Paths(
        nodes=path.data_ptr(),
        width=path.shape[1],
        cu_nodes=cu_nodes.data_ptr(),
        rows=rows,
        requests=path.shape[0],
    )
