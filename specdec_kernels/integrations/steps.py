# SPDX-License-Identifier: Apache-2.0
"""Trees and outputs of the steps of an engine, which are kept for every size and filled again in every step.

They hold what a step put there until the next step of that size in the same thread, whose steps follow each
other in one stream. They must not be shown to a user.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _tree_arrays as arrays
from .._kept import kept_by_thread
from .._ops import backends
from .._tree_checks import uniform_offsets
from ..tree import DraftTree, Proposal
from ..verification import Verified


def chain_of_step(tokens: Tensor, proposal: Proposal = Proposal.INDEPENDENT) -> DraftTree:
    """Chains of drafted tokens [B, K] integers, -1 = none."""
    batch, depth = tokens.shape
    chain, drafted = _chain(batch, depth, int(proposal), tokens.device)
    drafted.copy_(tokens)
    return chain


def chains_of_step(tokens: Tensor, ends: Tensor, max_depth: int, proposal: Proposal) -> DraftTree:
    """Chains of drafted tokens [S] integers that end at `ends` [B], as in `DraftTree.chain(cu_drafts=)`."""
    tree = _chains(tokens.shape[0], ends.shape[0], max_depth, int(proposal), tokens.device)
    filler = backends.filler("enter_chains", "auto", tokens, ends)
    if filler is None:
        places = tree.tokens, tree.parents, tree.cu_nodes
        for place, value in zip(places, arrays.chains(tokens, ends), strict=True):
            place.copy_(value)
    else:
        filler.enter_chains(tokens, ends, tree.tokens, tree.parents, tree.cu_nodes)
    return tree


def links_of_step(tokens: Tensor, next_token: Tensor, next_sibling: Tensor, max_depth: int) -> DraftTree:
    """Trees of chosen tokens [B, N - 1] integers, without roots; links [B, N] are those of `from_links`."""
    batch, nodes = next_token.shape
    tree = linked(batch, nodes, max_depth, tokens.device)
    filler = backends.filler("enter_links", "auto", tokens, next_token, next_sibling)
    if filler is None:
        return tree.refresh_(tokens, next_token=next_token, next_sibling=next_sibling, check=False)
    filler.enter_links(tokens, next_token, next_sibling, tree.tokens, tree.parents, tree.links)
    return tree


@kept_by_thread
def linked(batch: int, nodes: int, max_depth: int, device: torch.device) -> DraftTree:
    """One whose tokens, parents and links are to be filled. It counts as refreshed, so that it keeps nothing
    of a topology that every step changes."""
    tokens = torch.full((batch * nodes,), -1, dtype=torch.int64, device=device)
    parents, *links = torch.full((3, batch * nodes), -1, dtype=torch.int32, device=device)
    offsets = uniform_offsets(batch, nodes, device)
    kinds = torch.full_like(parents, Proposal.POINT, dtype=torch.uint8)
    tree = DraftTree._made(tokens, parents, offsets, kinds, nodes, max_depth, tuple(links))
    return changed(tree, _refreshed=True)


class Outputs(NamedTuple):
    """What `verify` fills, as parts of one buffer, so that one operator takes results out of it."""

    verified: Verified
    buffer: Tensor
    """int32: tokens [B, W], accepted tokens [B] and paths [B, W], one after the other."""
    without_paths: Tensor
    """Its first two parts."""


@kept_by_thread
def outputs_of_step(batch: int, width: int, device: torch.device) -> Outputs:
    """Of B requests with W tokens at most."""
    grid = batch * width
    sizes = grid, batch, grid
    buffer = torch.zeros(sum(sizes), dtype=torch.int32, device=device)
    lengths, status = torch.zeros((2, batch), dtype=torch.int32, device=device)
    tokens, accepted, path = buffer.split_with_sizes(sizes)
    shape = batch, width
    verified = Verified(tokens.view(shape), lengths, accepted, path.view(shape), None, status)
    return Outputs(verified, buffer, buffer[: grid + batch])


def changed(tree: DraftTree, **values: Any) -> DraftTree:
    """The tree with other values of the same shapes, which are not checked. Both share what is derived of the
    topology."""
    other: DraftTree = object.__new__(DraftTree)
    vars(other).update(vars(tree), **values)
    return other


@kept_by_thread
def _chain(batch: int, depth: int, kind: int, device: torch.device) -> tuple[DraftTree, Tensor]:
    """One, and the tokens [B, K] of its nodes but the roots."""
    tokens = torch.full((batch, depth), -1, dtype=torch.int64, device=device)
    chain = DraftTree.chain(tokens, proposal=Proposal(kind), check=False)
    return chain, chain.tokens.view(batch, depth + 1)[:, 1:]


@kept_by_thread
def _chains(drafts: int, batch: int, max_depth: int, kind: int, device: torch.device) -> DraftTree:
    """One whose tokens, parents and offsets are to be filled, and which keeps nothing of them."""
    tokens = torch.full((drafts + batch,), -1, dtype=torch.int64, device=device)
    parents = torch.full_like(tokens, -1, dtype=torch.int32)
    kinds = torch.full_like(tokens, kind, dtype=torch.uint8)
    offsets = torch.zeros(batch + 1, dtype=torch.int32, device=device)
    tree = DraftTree._made(tokens, parents, offsets, kinds, max_depth + 1, max_depth, chain=True)
    return changed(tree, _refreshed=True)
