# SPDX-License-Identifier: Apache-2.0
"""Depths, child lists and ancestor sets, computed from the parents of a batch of trees.

Everything is vectorised over the rows of the batch and never synchronises. A row is an index into the batch,
a node an index within its request.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._kept import kept


def owners(cu_nodes: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Request and node of every row, both [R] int64; rows from `cu_nodes[B]` on get request B."""
    row = torch.arange(rows, device=cu_nodes.device)
    request = torch.searchsorted(cu_nodes[1:].contiguous(), row.to(cu_nodes.dtype), right=True)
    return request, row - cu_nodes.long()[request]


def with_roots(tokens: Tensor, cu_drafts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Chains from drafted tokens [S] without roots and the inclusive sums [B] of their numbers: tokens [R]
    with roots of -1, row offsets [B + 1] int32, and the node of every row [R] int64."""
    batch, rows = cu_drafts.shape[0], tokens.shape[0] + cu_drafts.shape[0]
    cu_nodes = torch.nn.functional.pad(cu_drafts, (1, 0)) + torch.arange(batch + 1, device=tokens.device)
    cu_nodes = cu_nodes.int()
    request, node = owners(cu_nodes, rows)
    # Where offsets are not sums, rows may count as anything, and are still read inside of `tokens`.
    place = (torch.arange(rows, device=tokens.device) - request).clamp(0, tokens.shape[0])
    drafted = torch.nn.functional.pad(tokens, (1, 0), value=-1)
    return torch.where(node == 0, -1, drafted[place]), cu_nodes, node


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


def parents_from_links(next_token: Tensor, next_sibling: Tensor) -> Tensor:
    """Parents [B, N] int64 from first-child / next-sibling links [B, N] of integers.

    A node that no link reaches, an unused slot, gets parent 0; the root and nodes of a ring get -1.
    """
    batch, nodes = next_token.shape
    table, source, child_of_root = _unlinked(batch, nodes, next_token.device)
    target = (torch.cat((next_token, next_sibling), 1).clamp_(-1, nodes) + 1).long()
    table = table.scatter(1, target, source)
    for _ in range(nodes.bit_length()):
        table = table.gather(1, table)
    return (table[:, 1 : nodes + 1] - child_of_root).clamp_(min=-1)


@kept
def _unlinked(batch: int, nodes: int, device: torch.device) -> tuple[Tensor, Tensor, int]:
    """A table of places before links are entered, and what the links of all nodes enter.

    Places 0 and N + 1 are for links that are none. Place 1 + x has an elder sibling's place, or that of "a
    child of p", which is N + 2 + p.
    """
    child_of_root = nodes + 2
    place = torch.arange(2 * nodes + 2, device=device)
    node, child_of = place[1 : nodes + 1], place[child_of_root:]
    table = torch.cat((node[:1], torch.full_like(node[1:], child_of_root), place[nodes + 1 :]))
    table = torch.nn.functional.pad(table, (1, 0))
    return table.repeat(batch, 1), torch.cat((child_of, node)).repeat(batch, 1), child_of_root
