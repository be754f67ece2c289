# SPDX-License-Identifier: Apache-2.0
"""Depths, child lists and ancestor sets, computed from the parents of a batch of trees.

Everything is vectorised over the rows of the batch and never synchronises. A row is an index into the batch,
a node an index within its request.
"""

from __future__ import annotations

import torch
from torch import Tensor


def owners(cu_nodes: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Request and node of every row, both [R] int64; rows from `cu_nodes[B]` on get request B."""
    row = torch.arange(rows, device=cu_nodes.device)
    request = torch.searchsorted(cu_nodes[1:].contiguous(), row.to(cu_nodes.dtype), right=True)
    return request, row - cu_nodes.long()[request]


def parent_rows(parents: Tensor, node: Tensor) -> Tensor:
    """Row of every row's parent, [R] int64; its own row if the parent is not valid (0 <= parent < node)."""
    row = torch.arange(parents.numel(), device=parents.device)
    parent = parents.long()
    return torch.where((parent >= 0) & (parent < node), row - node + parent, row)


def depths(up: Tensor, bound: int) -> Tensor:
    """Number of steps to the root, [R] int64, by pointer doubling; `bound` >= the largest depth."""
    depth = (up != torch.arange(up.numel(), device=up.device)).long()
    for _ in range(max(bound - 1, 0).bit_length()):
        depth = depth + depth[up]
        up = up[up]
    return depth


def ancestor_bits(up: Tensor, node: Tensor, bound: int, max_nodes: int) -> Tensor:
    """[R, ceil(max_nodes / 64)] int64: bit j of word j // 64 says that node j is the row's node or its
    ancestor."""
    count = max(1, (max_nodes + 63) // 64)
    word = (node >> 6).clamp(0, count - 1).unsqueeze(1)
    bits = torch.zeros((node.numel(), count), dtype=torch.int64, device=node.device)
    bits.scatter_(1, word, torch.ones_like(word) << (node & 63).unsqueeze(1))
    for _ in range(bound.bit_length()):
        bits = bits | bits[up]
        up = up[up]
    return bits


def child_links(up: Tensor, node: Tensor) -> tuple[Tensor, Tensor]:
    """First child and next sibling of every row in index order, [R] int32 nodes, -1 = none."""
    rows = up.numel()
    row = torch.arange(rows, device=up.device)
    key = torch.where(up == row, rows, up)
    first_child = torch.full((rows + 1,), rows, dtype=torch.int64, device=up.device)
    first_child.scatter_reduce_(0, key, node, "amin")
    first_child = first_child[:rows]
    order = torch.argsort(key, stable=True)  # the children of one parent become neighbours, in index order
    key = key[order]
    siblings = (key[1:] == key[:-1]) & (key[1:] < rows)
    next_sibling = torch.full_like(up, -1)
    next_sibling[order[:-1]] = torch.where(siblings, node[order[1:]], -1)
    return torch.where(first_child == rows, -1, first_child).int(), next_sibling.int()


def parents_from_mask(mask: Tensor) -> Tensor:
    """Parents [B, N] int32: the last earlier node that is an ancestor in the mask, -1 if there is none."""
    node = torch.arange(mask.shape[-1], dtype=torch.int32, device=mask.device)
    return torch.where(mask.tril(-1), node, -1).amax(-1)


def parents_from_links(tokens: Tensor, next_token: Tensor, next_sibling: Tensor) -> Tensor:
    """Parents [B, N] int32 from first-child / next-sibling links [B, N] int64.

    A node that no link reaches gets -1, or 0 if its token is negative, which marks an unused slot.
    """
    batch, nodes = tokens.shape
    node = torch.arange(nodes, device=tokens.device).expand(batch, nodes)

    def inverse(link: Tensor) -> Tensor:
        target = torch.where((link >= 0) & (link < nodes), link, nodes)
        return torch.full((batch, nodes + 1), -1, device=link.device).scatter_(1, target, node)[:, :nodes]

    parent, elder = inverse(next_token), inverse(next_sibling)
    head = torch.where(elder >= 0, elder, node)
    for _ in range(nodes.bit_length()):
        head = head.gather(1, head)
    parent = parent.gather(1, head)
    unused = (parent < 0) & (tokens < 0) & (node > 0)
    return torch.where(unused, 0, parent).int()
