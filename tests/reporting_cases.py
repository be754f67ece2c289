# SPDX-License-Identifier: Apache-2.0
"""Trees to verify, and what to report of their tokens."""

from __future__ import annotations

import torch

import specdec_kernels as sdk

KINDS = ("processed", "raw", "temperature")
V = 40


def problem(seed=0, vocab=V, dtype=torch.float32, **options):
    """Trees of seven nodes, with everything that changes a law."""
    g = torch.Generator().manual_seed(seed)
    parents = torch.tensor([[-1, 0, 0, 1, 1, 3, 5]] * 4)
    target = torch.randn(4, 7, vocab, generator=g) * 2
    tokens = torch.cat([torch.zeros(4, 1), target.topk(2).indices[:, :, 0][:, [0, 0, 1, 1, 3, 5]]], 1).long()
    tokens[:, 2] = target[:, 0].topk(2).indices[:, 1]
    tokens[:, 4] = target[:, 1].topk(2).indices[:, 1]
    words = -(-vocab // 32)
    return dict(
        target_logits=target.view(28, vocab).to(dtype),
        tree=sdk.DraftTree.from_parents(tokens, parents),
        sampling=sdk.SamplingParams(
            torch.tensor([0.7, 1.3, 0.0, 0.4]), top_k=12, top_p=0.95, min_p=0.01, **options
        ),
        token_bitmask=torch.randint(-(2**31), 2**31, (28, words), generator=g).int() | 0x0F0F,
        seeds=torch.arange(4) + 10 * seed,
        positions=torch.tensor([5, 0, 7, 2**40]),
    )


def asked(kind="processed", top=5, form="bits"):
    chosen = torch.tensor([[0, 3], [5, 39], [7, 8], [1, 2]])
    masks = sdk.Masks(form, capacity=0 if form == "bits" else 400)
    return dict(return_logprobs=sdk.Logprobs(kind, top, chosen), return_masks=masks)
