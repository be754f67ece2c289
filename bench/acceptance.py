# SPDX-License-Identifier: Apache-2.0
"""`python -m bench acceptance`: how many tokens a step writes, by rule, by the shape of the draft and by the
overlap of draft and target.

A simulation: `verify` itself judges drafts that are drawn from known laws. No time is measured.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch

import specdec_kernels as sdk

VOCAB, LAWS, REQUESTS = 64, 64, 2500
OVERLAPS = (0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97)
SHAPES = {  # children of each node, by depth: 14 drafted tokens
    "chain of 14": (1,) * 14,
    "2 chains of 7": (2, *(1,) * 6),
    "2, 2, 2": (2, 2, 2),
    "14 siblings": (14,),
}
RULES = ("match", "token", "traversal")


class Mean(NamedTuple):
    tokens: float  # of a step
    error: float  # one standard deviation of it


def laws(overlap: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of LAWS targets and of their drafters, whose laws overlap by sum(min(p, q)) in the mean."""
    draws = torch.Generator().manual_seed(0)
    target, noise = (2.5 * torch.randn(LAWS, VOCAB, generator=draws) for _ in range(2))
    p, low, high = target.softmax(-1), 0.0, 20.0
    for _ in range(40):
        scale = (low + high) / 2
        found = torch.minimum(p, (target + scale * noise).softmax(-1)).sum(-1).mean()
        low, high = (scale, high) if found > overlap else (low, scale)
    return target, target + low * noise


def tokens_per_step(rule: str, shape: tuple[int, ...], overlap: float) -> Mean:
    """Of REQUESTS trees. Under `match` the likeliest tokens are drafted, else siblings without replacement.

    The laws after a node are those of its place in the tree, moved on from request to request.
    """
    target, draft = laws(overlap)
    parents = [-1]
    level = [0]
    for children in shape:
        level = [len(parents) + place for place in range(children * len(level))]
        above = [len(parents) - len(level) // children + place // children for place in range(len(level))]
        parents += above
    nodes = len(parents)
    rows = (torch.arange(REQUESTS)[:, None] * 7 + torch.arange(nodes) * 13) % LAWS
    tokens = torch.full((REQUESTS, nodes), -1)
    proposals = torch.zeros(REQUESTS, nodes, dtype=torch.uint8)
    torch.manual_seed(1)
    for parent in range(nodes):
        places = [node for node in range(nodes) if parents[node] == parent]
        if places:
            method = "top_k" if rule == "match" else "without_replacement"
            found = sdk.sample_children(draft[rows[:, parent]], len(places), method=method)
            tokens[:, places], proposals[:, places] = found.tokens, found.proposals.to(torch.uint8)
    tree = sdk.DraftTree.from_parents(
        tokens, torch.tensor(parents, dtype=torch.int32).expand(REQUESTS, -1), proposals=proposals
    )
    flat = rows.flatten().int()
    verified = sdk.verify(
        target,
        tree,
        None if rule == "match" else draft,
        target_rows=flat,
        draft_rows=None if rule == "match" else flat,
        rule=rule,
    )
    counts = verified.num_tokens.double()
    return Mean(float(counts.mean()), float(counts.std()) / REQUESTS**0.5)


def main(folder: Path) -> int:
    """Every rule on every shape, as JSON."""
    found: dict[str, object] = {"vocabulary": VOCAB, "requests": REQUESTS, "overlaps": OVERLAPS}
    for name, shape in SHAPES.items():
        means = {rule: [tokens_per_step(rule, shape, overlap) for overlap in OVERLAPS] for rule in RULES}
        found[name] = {rule: [mean.tokens for mean in row] for rule, row in means.items()}
        error = max(mean.error for row in means.values() for mean in row)
        print(f"{name}: one standard deviation of a mean is at most {error:.3f} tokens")
        for rule, row in means.items():
            print(f"  {rule:10}" + "".join(f"{mean.tokens:7.2f}" for mean in row))
    (folder / "acceptance.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0
