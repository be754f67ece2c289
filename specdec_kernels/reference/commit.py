# SPDX-License-Identifier: Apache-2.0
"""Committing caches, row by row."""

from __future__ import annotations

import torch
from torch import Tensor

from .._ops.calls import CommitKVCall
from .path import kept_paths


@torch.no_grad()
def commit_kv(call: CommitKVCall) -> None:
    """Move the kept rows. `table` is not read, since the caches are given as well."""
    largest = torch.iinfo(torch.int32).max
    pages_of, prefixes = call.block_table.tolist(), call.prefix_lens.tolist()
    for b, (start, kept) in enumerate(kept_paths(call.path, call.cu_nodes, call.rows)):
        prefix, pages = prefixes[b], pages_of[b]
        if prefix < 0:
            prefix, kept = 0, []
        length = prefix + len(kept)
        call.out_lengths[b] = min(length, largest)
        call.out_pages_kept[b] = min(-(-length // call.page_size), largest)
        row: Tensor | None
        for j, node in enumerate(kept):
            for i, cache in enumerate(call.caches):
                to = _slot(cache, pages, prefix + j, call.page_size, call.layout)
                if call.new:
                    row = call.new[i][start + node]
                else:
                    row = _slot(cache, pages, prefix + node, call.page_size, call.layout)
                if to is not None and row is not None and (call.new or node != j):
                    to.copy_(row)


def _slot(cache: Tensor, pages: list[int], slot: int, page_size: int, layout: str) -> Tensor | None:
    """A view of the row of a slot; None if the slot lies outside the request's pages or the cache."""
    index, offset = divmod(slot, page_size)
    if not (index < len(pages) and 0 <= pages[index] < cache.shape[0]):
        return None
    page = cache[pages[index]]
    return page[offset] if layout == "NHD" else page[:, offset]
