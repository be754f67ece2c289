# SPDX-License-Identifier: Apache-2.0
"""Random stop tokens and limits for cases of verification, and what an uncut answer becomes with them."""

from __future__ import annotations

import torch
from cases import pick

import specdec_kernels as sdk


def random_ends(arguments: dict, seed: int, *, whole: bool = False) -> sdk.Ends:
    """Stops among the drafted tokens and out of range, limits around the depths of the trees, and requests
    that have ended. `whole`: no field is left out."""
    g = torch.Generator().manual_seed(seed)
    tree, vocab = arguments["tree"], arguments["target_logits"].shape[-1]
    batch = tree.batch_size
    drafted = torch.cat([tree.tokens, torch.tensor([0])])
    stops = drafted[torch.randint(len(drafted), (batch, 3), generator=g)]
    wild = torch.tensor([-1, -1, vocab, 2**40, -(2**50)])
    some = torch.randint(2, stops.shape, generator=g) == 0
    stops[some] = wild[torch.randint(len(wild), stops.shape, generator=g)][some]
    ends = sdk.Ends(
        stops,
        torch.randint(-1, 6, (batch,), generator=g).int(),
        torch.randint(0, 9, (batch,), generator=g).int(),
        (torch.randint(5, (batch,), generator=g) == 0).to(pick(g, (torch.uint8, torch.bool))),
    )
    if whole:
        return ends
    return sdk.Ends(*(field if pick(g, (True, True, False)) else None for field in ends))


def copied(ends: sdk.Ends) -> sdk.Ends:
    """`verify` changes them in place."""
    return sdk.Ends(*(None if field is None else field.clone() for field in ends))


def cut(uncut: sdk.Verified, ends: sdk.Ends, nodes: torch.Tensor) -> tuple[sdk.Verified, sdk.Ends]:
    """An answer without ends, cut, and what is then left; requests have so many nodes. The status is not
    known: a shorter walk reads fewer rows."""
    ends = copied(ends)
    tokens, path, logprobs = uncut.tokens.clone(), uncut.path.clone(), uncut.logprobs.clone()
    counts, finish = uncut.num_tokens.clone(), torch.zeros_like(uncut.num_tokens)
    for b in range(len(counts)):
        if nodes[b] == 0 or (ends.finished is not None and ends.finished[b]):
            count = 0
        else:
            lefts = [int(left[b]) for left in ends[1:3] if left is not None]
            stops = [] if ends.stop_tokens is None else ends.stop_tokens[b].tolist()
            count = max(min([int(counts[b]), *lefts]), 0)
            row = tokens[b, :count].tolist()
            count = next((i + 1 for i, token in enumerate(row) if token in stops), count)
            if count and row[count - 1] in stops:
                finish[b] |= sdk.Finish.STOP
            for left, bit in ((ends[1], sdk.Finish.LENGTH), (ends[2], sdk.Finish.CONTEXT)):
                if left is not None:
                    left[b] -= count
                    finish[b] |= bit if left[b] <= 0 else 0
            if ends.finished is not None and finish[b]:
                ends.finished[b] = 1
            finish[b] |= sdk.Finish.DRAFTED if 0 < count < counts[b] else 0
        tokens[b, count:], path[b, count:], logprobs[b, count:], counts[b] = -1, -1, torch.nan, count
    return sdk.Verified(tokens, counts, (counts - 1).clamp_min(0), path, logprobs, uncut.status, finish), ends


def counts_of_ends(backend):
    """A drafted stop token, then a request that has ended."""
    verifier = sdk.SpeculativeVerifier(rule="match", max_depth=3, backend=backend)
    tree = sdk.DraftTree.chain(torch.tensor([[1, 2, 3]]))
    logits = torch.full((4, 5), -50.0)
    logits[[0, 1, 2, 3], [1, 2, 4, 0]] = 50.0
    keys = dict(seeds=torch.tensor([1]), positions=torch.tensor([1]))
    verifier(logits, tree, ends=sdk.Ends(torch.tensor([[4]])), **keys)
    ends = sdk.Ends(torch.tensor([[2]]), finished=torch.tensor([False]))
    for _ in range(3):
        verifier(logits, tree, ends=ends, **keys)
    return verifier.statistics()
