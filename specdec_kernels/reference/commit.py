# SPDX-License-Identifier: Apache-2.0
"""Committing caches, row by row."""

from __future__ import annotations

import torch
from torch import Tensor

from .path import kept_paths


@torch.no_grad()
def commit_kv(
    caches: list[Tensor],
    table: Tensor | None,
    new: list[Tensor],
    path: Tensor,
    cu_nodes: Tensor,
    rows: int,
    block_table: Tensor,
    prefix_lens: Tensor,
    page_size: int,
    layout: str,
    out_lengths: Tensor,
    out_pages_kept: Tensor,
) -> None:
    """The operator; see `specdec_kernels.ops`. The caches speak for themselves, so `table` is not read."""
    largest = torch.iinfo(torch.int32).max
    pages_of, prefixes = block_table.tolist(), prefix_lens.tolist()
    for b, (start, kept) in enumerate(kept_paths(path, cu_nodes, rows)):
        prefix, pages = prefixes[b], pages_of[b]
        if prefix < 0:
            prefix, kept = 0, []
        length = prefix + len(kept)
        out_lengths[b] = min(length, largest)
        out_pages_kept[b] = min(-(-length // page_size), largest)
        for j, node in enumerate(kept):
            for i, cache in enumerate(caches):
                to = _slot(cache, pages, prefix + j, page_size, layout)
                row = new[i][start + node] if new else _slot(cache, pages, prefix + node, page_size, layout)
                if to is not None and row is not None and not (node == j and not new):
                    to.copy_(row)


def _slot(cache: Tensor, pages: list[int], slot: int, page_size: int, layout: str) -> Tensor | None:
    """The row of a slot, a view; None where it lies outside the request's pages or the cache."""
    index, offset = divmod(slot, page_size)
    if not (index < len(pages) and 0 <= pages[index] < cache.shape[0]):
        return None
    page = cache[pages[index]]
    return page[offset] if layout == "NHD" else page[:, offset]
