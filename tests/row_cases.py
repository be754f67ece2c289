# SPDX-License-Identifier: Apache-2.0
"""Cases of verification with rows of the target by number, bonus tokens and drafts of probabilities."""

from __future__ import annotations

import torch
from cases import RULES, pick

import specdec_kernels as sdk

EVERY = (*RULES, sdk.Threshold(0.7, 0.8), sdk.Ensemble(0.7), sdk.Deferred(0.8, 1))


def choose_rows(arguments, seed, *, hostile=False):
    """The case with rows of its target shared, shuffled, missing, or with `hostile` out of range."""
    g = torch.Generator().manual_seed(seed)
    target, rows = arguments["target_logits"], arguments["tree"].tokens.shape[0]
    count = pick(g, (rows, max(rows // 2, 1), rows + 3))
    numbers = torch.randint(max(count, 1), (rows,), generator=g)
    numbers[torch.randint(6, (rows,), generator=g) == 0] = -1
    if hostile:
        wild = torch.tensor([count, 2**31 - 1, -2, -(2**31)])
        some = torch.randint(3, (rows,), generator=g) == 0
        numbers[some] = wild[torch.randint(4, (rows,), generator=g)][some]
    shared = target[torch.randint(max(rows, 1), (count,), generator=g)] if rows else target[:0]
    return dict(arguments, target_logits=shared, target_rows=numbers.int())


def as_probabilities(arguments):
    """The case with a draft of probabilities, where it has one."""
    if "draft_logits" not in arguments:
        return arguments
    probs = torch.softmax(arguments["draft_logits"].float(), -1).to(arguments["draft_logits"].dtype)
    return dict(arguments, draft_logits=probs, draft_sampling="probs")


def chains(seed, *, vocab=50, batch=5, hostile=False):
    """Ragged chains with a bonus token; some end early, and some have no bonus token."""
    g = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 6, (batch,), generator=g)
    cu_nodes = torch.cat([torch.zeros(1).long(), sizes.cumsum(0)]).int()
    rows = int(cu_nodes[-1])
    draft = torch.randn(rows, vocab, generator=g) * 2
    target = draft + 0.5 * torch.randn(rows, vocab, generator=g)
    tokens = draft.argsort(-1, descending=True)[:, 0].roll(1)
    tokens[torch.randint(10, (rows,), generator=g) == 0] = -1
    bonus = torch.randint(vocab, (batch,), generator=g)
    bonus[torch.randint(6, (batch,), generator=g) == 0] = -1
    if hostile:
        bonus[::2] = torch.tensor([-7, vocab, 2**40])[: len(bonus[::2])]
    return dict(
        target_logits=target,
        tree=sdk.DraftTree.chain(tokens, cu_nodes=cu_nodes),
        draft_logits=draft,
        bonus_tokens=bonus,
        seeds=torch.randint(2**40, (batch,), generator=g),
        positions=torch.randint(2**20, (batch,), generator=g),
        sampling=sdk.SamplingParams(
            temperature=torch.rand(batch, generator=g) * (torch.arange(batch) % 4 > 0)
        ),
        return_logprobs=True,
    )


def without_last_rows(arguments):
    """The case with the rows of last nodes left out."""
    ends = arguments["tree"].cu_nodes[1:].long() - 1
    others = torch.ones(arguments["tree"].tokens.shape[0], dtype=torch.bool)
    others[ends] = False
    return dict(arguments, target_logits=arguments["target_logits"][others])
