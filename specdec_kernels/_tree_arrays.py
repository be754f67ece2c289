# SPDX-License-Identifier: Apache-2.0
"""Arrays of trees of what engines keep: filled in one call of a backend where there is one."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _topology as topology
from ._kept import kept, traced
from ._ops import backends
from ._tree_checks import uniform_offsets

Links = tuple[Tensor, Tensor]


def chains(drafts: Tensor, cu_drafts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [R] int64, parents [R] int32 and row offsets [B + 1] int32 of chains: roots of -1, and drafted
    tokens [S] in the order of the requests, whose numbers have the inclusive sums [B]."""
    filler = backends.filler("enter_chains", "auto", drafts, cu_drafts)
    if filler is None:
        tokens, cu_nodes, node = topology.with_roots(drafts.long(), cu_drafts)
        return tokens, (node - 1).int(), cu_nodes
    batch, device = cu_drafts.shape[0], drafts.device
    rows = drafts.shape[0] + batch
    tokens = torch.empty(rows, dtype=torch.int64, device=device)
    parents = torch.empty(rows, dtype=torch.int32, device=device)
    cu_nodes = torch.empty(batch + 1, dtype=torch.int32, device=device)
    filler.enter_chains(drafts, cu_drafts, tokens, parents, cu_nodes)
    return tokens, parents, cu_nodes


def uniform_chains(drafts: Tensor, kind: int) -> list[Tensor]:
    """Tokens [R] int64 with roots of -1, parents [R], offsets [B + 1] and proposals [R] of chains of drafted
    tokens [B, K]."""
    native = backends.filler("uniform_chains", "auto", drafts) if drafts.is_cpu else None
    if native is not None:
        made: list[Tensor] = native.uniform_chains(drafts, kind)
        return made
    (batch, depth), device = drafts.shape, drafts.device
    roots, parents, offsets, kinds = chain_parts(batch, depth, kind, device)
    tokens = torch.cat((roots, drafts.long()), 1).view(-1)
    if drafts.is_cpu or traced():
        return [tokens, parents.clone(), offsets.clone(), kinds.clone()]
    return [tokens, *copied_at_once(batch, depth, kind, device)]


@kept
def chain_parts(batch: int, depth: int, kind: int, device: torch.device) -> tuple[Tensor, ...]:
    """Tokens of roots [B, 1], parents, offsets and proposals."""
    return (
        torch.full((batch, 1), -1, dtype=torch.int64, device=device),
        torch.arange(-1, depth, dtype=torch.int32, device=device).repeat(batch),
        uniform_offsets(batch, depth + 1, device),
        torch.full((batch * (depth + 1),), kind, dtype=torch.uint8, device=device),
    )


def copied_at_once(batch: int, depth: int, kind: int, device: torch.device) -> list[Tensor]:
    """Copies of parents, offsets and proposals by one launch."""
    parts = chain_parts(batch, depth, kind, device)[1:]
    sizes = [part.nbytes for part in parts]
    copies = _chain_bytes(batch, depth, kind, device).clone().split_with_sizes(sizes)
    return [copy.view(part.dtype) for copy, part in zip(copies, parts, strict=True)]


@kept
def _chain_bytes(batch: int, depth: int, kind: int, device: torch.device) -> Tensor:
    parts = chain_parts(batch, depth, kind, device)[1:]
    return torch.cat([part.view(torch.uint8) for part in parts])


def linked(next_token: Tensor, next_sibling: Tensor) -> tuple[Tensor, Links]:
    """Parents [R] int32 of trees that are given by links [B, N], and copies of the links, [R] int32 each."""
    filler = backends.filler("enter_links", "auto", next_token, next_sibling)
    if filler is None:
        parents = topology.parents_from_links(next_token, next_sibling).int().flatten()
        return parents, (_copied(next_token), _copied(next_sibling))
    count, device = next_token.numel(), next_token.device
    parents, first, after = (torch.empty(count, dtype=torch.int32, device=device) for _ in range(3))
    filler.enter_links(None, next_token, next_sibling, None, parents, (first, after))
    return parents, (first, after)


def _copied(link: Tensor) -> Tensor:
    """[R] int32, never the caller's own memory."""
    return link.to(torch.int32, copy=True).flatten()
