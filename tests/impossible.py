# SPDX-License-Identifier: Apache-2.0
"""Drafts that can and that cannot have been drawn as declared, and what `Status.IMPOSSIBLE` tells of them."""

from __future__ import annotations

import torch

import specdec_kernels as sdk
from specdec_kernels.sampling import ORDERS

RULES = ("token", "traversal", sdk.Lenient(1.5))
VOCAB, WIDTH = 69, 76
P, W, S = sdk.Proposal.POINT, sdk.Proposal.WITHOUT_REPLACEMENT, sdk.Proposal.INDEPENDENT
EVERY, NONE = (True, True, True), (False, False, False)
PAD = -1  # no draft

# Of every request: the tokens, parents and proposals of the nodes below the root; the tokens that p and q may
# be at every node, evenly; whether q is sound there; and under which of RULES the status tells of it. An
# accepted token is one that is certain under p, a rejected one has p = 0.
CASES = {
    "possible": ([0], [0], [S], [5], [0, 1], NONE),
    "independent": ([7], [0], [S], [5], [0, 1], EVERY),
    "accepted for certain": ([7], [0], [S], [7], [0, 1], EVERY),
    "without replacement": ([7], [0], [W], [5], [0, 1], EVERY),
    "point": ([7], [0], [P], [5], [0, 1], NONE),
    "no draft": ([PAD, PAD], [0, 0], [S, W], [5], [0, 1], NONE),
    "padding without probability": ([VOCAB, VOCAB + 90], [0, 0], [S, W], [5], [0, 1], NONE),
    "padding with probability": ([VOCAB, VOCAB], [0, 0], [W, W], [5], [0, 1, VOCAB], NONE),
    "two draws": ([0, 0], [0, 0], [S, S], [5], [0, 1], NONE),
    "two without replacement": ([0, 1], [0, 0], [W, W], [5], [0, 1], NONE),
    "duplicate": ([0, 0], [0, 0], [W, W], [5], [0, 1], EVERY),
    "a draw after one without replacement": ([0, 0], [0, 0], [W, S], [5], [0, 1], NONE),
    "nothing left": ([0, 1, 2], [0, 0, 0], [W, W, W], [5], [0, 1], EVERY),
    "point before": ([0, 0], [0, 0], [P, W], [5], [0, 1], EVERY),
    "point after": ([0, 0], [0, 0], [W, P], [5], [0, 1], EVERY),
    "point beside": ([1, 0, 5], [0, 0, 0], [P, W, P], [6], [0, 1], NONE),
    "after an accepted sibling": ([0, 7], [0, 0], [S, S], [0], [0, 1], (False, False, True)),
    "below a rejected node": ([1, 7], [0, 1], [S, S], [5], [0, 1], NONE),
    "below an accepted node": ([0, 7], [0, 1], [S, S], [0], [0, 1], EVERY),
    "greedy": ([7], [0], [S], [5], [0, 1], (False, False, True)),
    "greedy draft": ([1], [0], [S], [5], [0, 1], EVERY),
    "greedy draft that is its argmax": ([0], [0], [W], [5], [0, 1], NONE),
    "cut": ([2], [0], [S], [5], [0, 0, 0, 1, 1, 2], EVERY),
    "not cut": ([1], [0], [S], [5], [0, 0, 0, 1, 1, 2], NONE),
    "cut by a later min-p": ([2], [0], [W], [5], [0, 0, 0, 1, 1, 2], EVERY),
    "no row": ([7], [0], [S], [5], [], NONE),
    "nan": ([7], [0], [S], [5], [float("nan")], NONE),
    "no children": ([], [], [], [5], [0, 1], NONE),
}


def batch() -> dict:
    """Arguments of `verify`: a request for each case."""
    sizes = [1 + len(tokens) for tokens, *_ in CASES.values()]
    rows, size = sum(sizes), len(CASES)
    target, draft = torch.full((rows, VOCAB), -torch.inf), torch.full((rows, WIDTH), -torch.inf)
    draft_rows = torch.arange(rows, dtype=torch.int32)
    tokens, parents, proposals, row = [], [], [], 0
    for (drafted, above, kinds, p, q, _), nodes in zip(CASES.values(), sizes, strict=True):
        tokens += [-1, *drafted]
        parents += [-1, *above]
        proposals += [0, *kinds]
        here = slice(row, row + nodes)
        target[here, p] = 0.0
        for token in set(q):
            draft[here, 0 if token != token else token] = torch.tensor(token * 0.0 + q.count(token)).log()
        if not q:
            draft_rows[here] = -1
        row += nodes
    law = dict.fromkeys(("temperature", "top_p"), torch.ones(size)) | dict.fromkeys(
        ("top_k", "min_p"), torch.zeros(size)
    )
    places = {name: torch.arange(size) == place for place, name in enumerate(CASES)}
    greedy = sum(places[name] for name in CASES if name.startswith("greedy draft")) > 0
    drafted_by = law | {
        "temperature": torch.where(greedy, 0.0, law["temperature"]),
        "top_k": torch.where(places["cut"] | places["not cut"], 2.0, 0.0),
        "min_p": torch.where(places["cut by a later min-p"], 0.5, 0.0),
    }
    return dict(
        target_logits=target,
        tree=sdk.DraftTree.from_parents(
            torch.tensor(tokens),
            torch.tensor(parents),
            torch.tensor([0, *sizes]).cumsum(0).int(),
            proposals=torch.tensor(proposals),
            max_nodes=8,
            max_depth=8,
        ),
        draft_logits=draft,
        draft_rows=draft_rows,
        sampling=sdk.SamplingParams(**law | {"temperature": 1.0 - places["greedy"].float()}),
        draft_sampling=sdk.SamplingParams(**drafted_by, order="min_p_last"),
        seeds=torch.arange(size),
        positions=torch.arange(size),
        return_logprobs=True,
    )


def told(verified: sdk.Verified) -> dict[str, bool]:
    """Of which cases the status tells; it says nothing else."""
    assert not (verified.status & ~sdk.Status.IMPOSSIBLE).any()
    return dict(zip(CASES, (verified.status > 0).tolist(), strict=True))


def expected(rule) -> dict[str, bool]:
    if rule not in RULES:
        return dict.fromkeys(CASES, False)
    return {name: case[-1][RULES.index(rule)] for name, case in CASES.items()}


def honest(seed: int, method: str, backend: str = "reference") -> dict:
    """Arguments of `verify`, whose drafts were drawn as declared: five requests of three children each, with
    cuts that leave few tokens."""
    g = torch.Generator().manual_seed(seed)
    target, draft = (torch.randn(5, 4, 203, generator=g) * 2 for _ in range(2))
    law = sdk.SamplingParams(
        torch.tensor([1.0, 0.7, 0.0, 1.3, 0.9]),
        torch.tensor([4, 0, 0, 3, 2]),
        torch.tensor([1.0, 0.6, 1.0, 0.9, 1.0]),
        torch.tensor([0.2, 0.0, 0.0, 0.3, 0.1]),
        ORDERS[seed % 2],
    )
    keys = dict(seeds=torch.arange(5) + seed, positions=torch.arange(5))
    tokens, proposals, _ = sdk.sample_children(
        draft[:, 0].contiguous(),
        3,
        method=method,
        sampling=law,
        nodes=torch.zeros(5).long(),
        **keys,
        backend=backend,
    )
    tree = sdk.DraftTree.from_parents(
        torch.nn.functional.pad(tokens, (1, 0), value=-1),
        torch.tensor([[-1, 0, 0, 0]] * 5),
        proposals=torch.nn.functional.pad(proposals, (1, 0)).expand(5, -1),
        max_depth=2,
    )
    target, draft = target.flatten(0, 1), draft.flatten(0, 1)
    options = dict(sampling=law, return_logprobs=True, **keys)
    return dict(target_logits=target, tree=tree, draft_logits=draft, **options)
