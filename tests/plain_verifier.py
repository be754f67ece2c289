# SPDX-License-Identifier: Apache-2.0
"""Verifiers for the referee: ours, and some in plain torch, right or with one known mistake."""

from __future__ import annotations

import torch

import specdec_kernels as sdk

TREE_TRAPS = ("residual not updated", "duplicates skipped")
CHAIN_TRAPS = (
    "noise of drafts",
    "bonus row off by one",
    "impossible accepted",
    "-1 read as a token",
    "other law than drawn from",
    "drafts dropped after sampling",
    "wrong residual",
)


def ours(case, rule, backend="auto"):
    laws = None if case.draft_logits is None or rule == "match" else case.draft_logits.flatten(0, 1)
    seeds = torch.randint(1 << 40, (len(case.tokens),), generator=case.generator)
    given = dict(rule=rule, seeds=seeds, positions=seeds, backend=backend)
    verified = sdk.verify(case.target_logits.flatten(0, 1), case.tree, laws, **given)
    counts = verified.num_tokens.tolist()
    return [row[:n] for row, n in zip(verified.tokens.tolist(), counts, strict=True)]


def token_by_token(case, trap=None):
    """Recursive rejection over the children of the node that was reached, in their order; on a chain,
    speculative sampling. Children come after their parents, and siblings in their order."""
    p, q = (logits.double().softmax(-1) for logits in (case.target_logits, case.draft_logits))
    requests, vocab = torch.arange(len(p)), p.shape[-1]
    random = case.generator
    if trap == "other law than drawn from":
        q = (q**0.7) / (q**0.7).sum(-1, keepdim=True)
    node, law = torch.zeros(len(p), dtype=torch.long), p[:, 0]
    emitted = torch.full((len(p), len(case.parents)), -1)
    depth = torch.zeros(len(p), dtype=torch.long)
    for child, parent in enumerate(case.parents[1:], 1):
        drafted = case.tokens[:, child]
        tested = node == parent
        if trap == "-1 read as a token":
            drafted = drafted % vocab
        else:
            tested = tested & (drafted >= 0)
        if trap == "drafts dropped after sampling":
            tested = tested & (q[requests, parent, drafted] > 0.2)
        if trap == "duplicates skipped":
            earlier = [i for i in range(1, child) if case.parents[i] == parent]
            for sibling in earlier:
                tested = tested & (case.tokens[:, sibling] != drafted)
        coins = torch.rand(len(p), dtype=torch.float64, generator=random)
        chance = law[requests, drafted.clamp(min=0)]
        if trap == "impossible accepted":
            chance = chance.clamp(min=0.01)
        kept = tested & (coins * q[requests, parent, drafted.clamp(min=0)] < chance)
        emitted[requests[kept], depth[kept]] = drafted[kept]
        depth, node = depth + kept, torch.where(kept, child, node)
        rest = (law - q[:, parent]).clamp(min=0)
        if trap == "wrong residual":
            rest = law.clone().scatter_(1, drafted.clamp(min=0)[:, None], 0.0)
        if trap == "residual not updated" and child > 1 and case.parents[child - 1] == parent:
            rest = law
        rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, law)
        rest = rest / rest.sum(-1, keepdim=True)
        after = p[:, parent if trap == "bonus row off by one" else child]
        law = torch.where(kept[:, None], after, torch.where(tested[:, None], rest, law))
    if trap == "noise of drafts":
        random = torch.Generator().manual_seed(
            case.draft_seed
        )  # whose first draw was that of the first drafts
    last = torch.multinomial(law, 1, generator=random)
    return [
        row[:n] + end for row, n, end in zip(emitted.tolist(), depth.tolist(), last.tolist(), strict=True)
    ]


def block(case, trap=None):
    """Block verification of chains; `trap="token-wise residual"` draws as token-by-token verification."""
    p, q = (logits.double().softmax(-1) for logits in (case.target_logits, case.draft_logits))
    requests, random = torch.arange(len(p)), case.generator
    weight = torch.ones(len(p), dtype=torch.float64)
    kept = torch.zeros(len(p), dtype=torch.long)
    weights = [weight]
    depth = len(case.parents) - 1
    whole = torch.ones(len(p), dtype=torch.bool)
    for place in range(depth):
        drafted = case.tokens[:, place + 1]
        whole = whole & (drafted >= 0)
        x = drafted.clamp(min=0)
        weight = (weight * p[requests, place, x] / q[requests, place, x]).clamp(max=1.0)
        weights.append(weight)
        is_last = (case.tokens[:, place + 2] < 0) if place + 2 <= depth else torch.ones_like(whole)
        rest = (weight[:, None] * p[:, place + 1] - q[:, place + 1]).clamp(min=0).sum(-1)
        accept = torch.where(is_last, weight, rest / (rest + 1.0 - weight))
        accept = torch.where((rest == 0) & (weight == 1) & ~is_last, 1.0, accept)
        coins = torch.rand(len(p), dtype=torch.float64, generator=random)
        kept = torch.where(whole & (coins < accept), place + 1, kept)
    weight = torch.stack(weights, 1)[requests, kept]
    ended = (case.tokens[:, 1:] >= 0).sum(1) == kept
    if trap == "token-wise residual":
        weight = torch.ones_like(weight)
    rest = (weight[:, None] * p[requests, kept] - q[requests, kept]).clamp(min=0)
    law = torch.where(ended[:, None] | (rest.sum(-1, keepdim=True) == 0), p[requests, kept], rest)
    last = torch.multinomial(law, 1, generator=random)
    drafts = case.tokens[:, 1:].tolist()
    return [row[:n] + end for row, n, end in zip(drafts, kept.tolist(), last.tolist(), strict=True)]
