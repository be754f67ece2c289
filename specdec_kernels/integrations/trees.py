# SPDX-License-Identifier: Apache-2.0
"""Trees that live for one step of an engine. Their offsets and proposals, and the parents of chains, are
constants that all such trees share: they must be neither refreshed nor shown to a user."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _tree_arrays as arrays
from .._kept import kept
from ..tree import DraftTree, Proposal


def chain_of_step(tokens: Tensor, proposal: Proposal = Proposal.INDEPENDENT) -> DraftTree:
    """Chains of drafted tokens [B, K] integers, -1 = none."""
    batch, depth = tokens.shape
    chain, roots = _chain(batch, depth, int(proposal), tokens.device)
    return changed(chain, tokens=torch.cat((roots, tokens), 1).view(-1))


def chains_of_step(tokens: Tensor, ends: Tensor, max_depth: int, proposal: Proposal) -> DraftTree:
    """Chains of drafted tokens [S] integers that end at `ends` [B], as in `DraftTree.chain(cu_drafts=)`."""
    rows, parents, cu_nodes = arrays.chains(tokens, ends)
    kinds = _kinds(rows.shape[0], int(proposal), rows.device)
    return DraftTree._made(rows, parents, cu_nodes, kinds, max_depth + 1, max_depth)._as_chain()


def links_of_step(tokens: Tensor, next_token: Tensor, next_sibling: Tensor, max_depth: int) -> DraftTree:
    """Trees of chosen tokens [B, N - 1] integers, without roots; links [B, N] are those of `from_links`."""
    (batch, nodes), device = next_token.shape, tokens.device
    rows, parents, links = arrays.linked_tokens(tokens, next_token, next_sibling)
    flat = _flat(batch, nodes, max_depth, device)
    return changed(flat, tokens=rows, parents=parents, links=links, _cache={})


def changed(tree: DraftTree, **values: Any) -> DraftTree:
    """The tree with other values of the same shapes, which are not checked. Both share what is derived of the
    topology."""
    other: DraftTree = object.__new__(DraftTree)
    vars(other).update(vars(tree), **values)
    return other


@kept
def _chain(batch: int, depth: int, kind: int, device: torch.device) -> tuple[DraftTree, Tensor]:
    """One whose tokens are -1, and the tokens [B, 1] of its roots."""
    tokens = torch.full((batch, depth + 1), -1, dtype=torch.int64, device=device)
    return DraftTree.chain(tokens[:, 1:], proposal=Proposal(kind), check=False), tokens[:, :1]


@kept
def _kinds(rows: int, kind: int, device: torch.device) -> Tensor:
    return torch.full((rows,), kind, dtype=torch.uint8, device=device)


@kept
def _flat(batch: int, nodes: int, max_depth: int, device: torch.device) -> DraftTree:
    """One whose nodes are children of the root."""
    none = torch.full((batch, nodes), -1, dtype=torch.int64, device=device)
    return DraftTree.from_links(none, none, none, max_depth=max_depth, check=False)
