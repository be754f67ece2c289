# SPDX-License-Identifier: Apache-2.0
"""Inputs of operators, made on the host: small enough for a dry run, or as large as is asked."""

from __future__ import annotations

from typing import Any

import torch

import specdec_kernels as sdk

PARENTS = [-1, 0, 0, 2, 3]
TREES = ("chain", "point", "without replacement")
PROPOSALS = {"point": sdk.Proposal.POINT, "without replacement": sdk.Proposal.WITHOUT_REPLACEMENT}
PLAIN = sdk.SamplingParams(0.8)
CUTS = {
    "no cuts": PLAIN,
    "top-k 50, top-p 0.9": sdk.SamplingParams(0.8, 50, 0.9),
    "top-p 0.95": sdk.SamplingParams(0.8, 0, 0.95),
    "min-p": sdk.SamplingParams(0.8, 0, 1.0, 0.02),
}


def verify(
    tree: str, vocab: int, dtype: torch.dtype = torch.float32, batch: int = 3, seed: int = 0
) -> dict[str, Any]:
    """Arguments of `verify`: a chain of 4 drafted tokens, or a tree of 5 nodes with a draft row each. Tokens
    are near the top of their parent's row, so that walks go deep."""
    g = torch.Generator().manual_seed(seed)
    chain, nodes = tree == "chain", len(PARENTS)
    parents = [*range(-1, nodes - 1)] if chain else PARENTS
    target = torch.randn(batch, nodes, vocab, generator=g) * 2
    draft = (target + 0.87 * torch.randn(batch, nodes, vocab, generator=g)).to(dtype)
    rank = torch.randint(0, 3, (batch, nodes, 1), generator=g)
    best = draft[:, [max(p, 0) for p in parents]].float().topk(3, -1).indices
    tokens = best.gather(-1, rank).squeeze(-1)
    if chain:
        drafted, draft = sdk.DraftTree.chain(tokens[:, 1:]), draft[:, :-1].contiguous()
    else:
        each = torch.tensor([parents] * batch)
        drafted = sdk.DraftTree.from_parents(tokens, each, proposals=PROPOSALS[tree])
        draft = draft.flatten(0, 1)
    return dict(
        target_logits=target.to(dtype).flatten(0, 1),
        tree=drafted,
        draft_logits=draft,
        seeds=torch.randint(2**62, (batch,), generator=g),
        positions=torch.randint(2**40, (batch,), generator=g),
    )


def caches(seed: int = 0, pages: int = 12, page: int = 4, heads: int = 2, size: int = 16) -> dict[str, Any]:
    """Arguments of `commit_kv` for the trees of `verify`, and queries for `tree_attention`."""
    g = torch.Generator().manual_seed(seed)
    batch, nodes = 3, len(PARENTS)
    pools = [torch.randn(pages, page, heads, size, generator=g) for _ in range(2)]
    return dict(
        caches=pools,
        query=torch.randn(batch * nodes, 2 * heads, size, generator=g),
        block_table=torch.randperm(pages, generator=g).view(batch, -1).int(),
        prefix_lens=torch.randint(0, pages // batch * page - nodes, (batch,), generator=g).int(),
    )
