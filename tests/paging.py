# SPDX-License-Identifier: Apache-2.0
"""Random trees, kept paths and caches in one buffer, shared by the tests of committing."""

from __future__ import annotations

import torch

import specdec_kernels as sdk


def integer(g, low, high):
    """In [low, high)."""
    return int(torch.randint(low, high, (1,), generator=g))


def random_tree(g, batch, most=9, empty=0.2):
    """A ragged batch of trees, some of them empty, and a kept path of each, [B, max_depth + 1]."""
    sizes = [0 if torch.rand(1, generator=g) < empty else integer(g, 1, most + 1) for _ in range(batch)]
    parents = [p for n in sizes for p in [-1, *(integer(g, 0, i) for i in range(1, n))][:n]]
    cu_nodes = torch.tensor([0, *sizes]).cumsum(0).int()
    tokens = torch.randint(0, 99, (sum(sizes),), generator=g)
    tree = sdk.DraftTree.from_parents(tokens, torch.tensor(parents, dtype=torch.int32), cu_nodes)
    path = torch.full((batch, tree.max_depth + 1), -1, dtype=torch.int32)
    for b, (start, n) in enumerate(zip(cu_nodes.tolist(), sizes, strict=False)):
        if n:
            nodes, node = [], integer(g, 0, n)
            while node >= 0:
                nodes, node = [node, *nodes], parents[start + node]
            path[b, : len(nodes)] = torch.tensor(nodes, dtype=torch.int32)
    return tree, path


class Pool:
    """Caches in one buffer of random bytes with gaps between them, so that any stray write shows."""

    def __init__(self, g, specs, page_size, layout):
        """`specs`: (pages, heads, size, dtype, gap) each; `gap` bytes lie between rows and between pages."""
        views, offset = [], 64
        for pages, heads, size, dtype, gap in specs:
            item = dtype.itemsize
            gap = -(-gap // item) * item
            row = size * item + gap if layout == "HND" else heads * size * item + gap
            if layout == "HND":
                shape, strides = (pages, heads, page_size, size), (page_size * row + gap, row)
                strides = (heads * strides[0] + gap, *strides, item)
            else:
                shape = (pages, page_size, heads, size)
                strides = (page_size * row + gap, row, size * item, item)
            views.append((offset, shape, tuple(s // item for s in strides), dtype))
            offset += -(-(pages * strides[0]) // 64) * 64 + 64
        self.bytes = torch.randint(0, 256, (offset,), dtype=torch.uint8, generator=g)
        self.views = views

    def clone(self):
        other = object.__new__(Pool)
        other.bytes, other.views = self.bytes.clone(), self.views
        return other

    @property
    def caches(self):
        return [self._view(*view) for view in self.views]

    def _view(self, offset, shape, strides, dtype):
        usable = len(self.bytes) // dtype.itemsize * dtype.itemsize
        return self.bytes[:usable].view(dtype).as_strided(shape, strides, offset // dtype.itemsize)
