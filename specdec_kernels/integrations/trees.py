# SPDX-License-Identifier: Apache-2.0
"""Trees that live for one step of an engine. Their offsets and proposals, and the parents of chains, are
constants that all such trees share: they must be neither refreshed nor shown to a user."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _tree_arrays as arrays
from .. import _tree_checks as checks
from .._kept import kept
from ..tree import DraftTree, Proposal


def chain_of_step(tokens: Tensor, proposal: Proposal = Proposal.INDEPENDENT) -> DraftTree:
    """Chains of drafted tokens [B, K] integers, -1 = none."""
    (batch, depth), device = tokens.shape, tokens.device
    rows = torch.cat((checks.chain_roots(batch, device), tokens), 1).view(-1)
    constants = _chain_constants(batch, depth, int(proposal), device)
    return DraftTree._made(rows, *constants, depth + 1, depth)._as_chain()


def links_of_step(tokens: Tensor, next_token: Tensor, next_sibling: Tensor, max_depth: int) -> DraftTree:
    """Trees of chosen tokens [B, N - 1] integers, without roots; links [B, N] are those of `from_links`."""
    (batch, nodes), device = next_token.shape, tokens.device
    rows, parents, links = arrays.linked_tokens(tokens, next_token, next_sibling)
    constants = _constants(batch, nodes, int(Proposal.POINT), device)
    return DraftTree._made(rows, parents, *constants, nodes, max_depth, links)


@kept
def _chain_constants(batch: int, depth: int, kind: int, device: torch.device) -> list[Tensor]:
    return checks.chain_rows(batch, depth, kind, device)


@kept
def _constants(batch: int, nodes: int, kind: int, device: torch.device) -> tuple[Tensor, Tensor]:
    kinds = torch.full((batch * nodes,), kind, dtype=torch.uint8, device=device)
    return checks.uniform_offsets(batch, nodes, device), kinds
