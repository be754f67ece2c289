# SPDX-License-Identifier: Apache-2.0
"""Trees and paged caches, shared by benchmarks, counts and tests."""

from __future__ import annotations

import torch

import specdec_kernels as sdk

HEADS, CACHE_HEADS, HEAD, PAGE = 32, 8, 128, 16  # of attention in the benchmarks
REACH = 8


def random_parents(g: torch.Generator, nodes: int, reach: int = REACH) -> list[int]:
    """Parents of a tree; no node's parent is more than `reach` places before it."""
    return [-1] + [int(torch.randint(max(0, i - reach), i, (1,), generator=g)) for i in range(1, nodes)]


def same_trees(parents: list[int], batch: int) -> sdk.DraftTree:
    tokens = torch.zeros(batch, len(parents)).long()
    return sdk.DraftTree.from_parents(tokens, torch.tensor([parents] * batch))


def block_tables(g: torch.Generator, batch: int, pages_each: int, pages: int | None = None) -> torch.Tensor:
    """Distinct pages in random order, [B, P] int32; of as many pages as are needed, or of more."""
    chosen = torch.randperm(pages or batch * pages_each, generator=g)[: batch * pages_each]
    return chosen.view(batch, pages_each).int()


def paged_caches(
    g: torch.Generator, batch: int, length: int, dtype: torch.dtype
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Random keys and values of `length` positions for every request, and their block table."""
    width = -(-length // PAGE)
    pools = [torch.randn(batch * width, PAGE, CACHE_HEADS, HEAD, generator=g).to(dtype) for _ in range(2)]
    return pools, block_tables(g, batch, width)
