# SPDX-License-Identifier: Apache-2.0
"""G-tests (log-likelihood ratio) of draws against an exact law, and drafts drawn in bulk for them."""

from __future__ import annotations

import numpy as np
import torch

import specdec_kernels as sdk

# Seeds are fixed, so a test either always passes or never does. A true law fails with this probability at
# most, and the mutants must fall below it by far.
LEAST_P = 1e-5
MUTANT_P = 1e-12


def g_test(counts: np.ndarray, law: np.ndarray) -> float:
    """p-value of `counts` under `law`; cells with an expectation below 5 are taken together."""
    counts, expected = np.ravel(counts).astype(float), np.ravel(law) * counts.sum()
    rare = expected < 5
    if rare.any():
        counts = np.append(counts[~rare], counts[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    if ((expected < 1e-9) & (counts > 0)).any():
        return 0.0
    counts, expected = counts[expected > 1e-9], expected[expected > 1e-9]
    seen = counts > 0
    g = 2 * (counts[seen] * np.log(counts[seen] / expected[seen])).sum()
    half = torch.tensor([max(len(counts) - 1, 1), g], dtype=torch.float64) / 2  # degrees of freedom, and g
    return float(torch.special.gammaincc(*half))


class Model:
    """A target and a drafter over a small vocabulary. Rows depend on the last token only (V = the start)."""

    def __init__(self, vocab: int, seed: int, closeness: float = 1.0):
        generator = torch.Generator().manual_seed(seed)
        self.vocab = vocab
        self.target = torch.randn(vocab + 1, vocab, generator=generator) * 1.5
        self.draft = self.target + torch.randn(vocab + 1, vocab, generator=generator) * closeness

    def p(self, sampling: sdk.SamplingParams) -> np.ndarray:
        return law_of(self.target, sampling)

    def q(self, sampling: sdk.SamplingParams) -> np.ndarray:
        return law_of(self.draft, sampling)


def law_of(logits: torch.Tensor, sampling: sdk.SamplingParams) -> np.ndarray:
    """The processed law of every row, float64, written independently of the package."""
    p = torch.softmax(logits.double() / sampling.temperature, -1)
    p = torch.where(p >= sampling.min_p * p.amax(-1, keepdim=True) * (1 - 1e-12), p, 0.0)
    if 0 < sampling.top_k < p.shape[-1]:
        p = torch.where(p >= p.topk(sampling.top_k, -1).values[:, -1:], p, 0.0)
    p = p / p.sum(-1, keepdim=True)
    above = torch.where(p.unsqueeze(-2) > p.unsqueeze(-1), p.unsqueeze(-2), 0.0).sum(-1)
    p = torch.where(above < sampling.top_p, p, 0.0)
    return (p / p.sum(-1, keepdim=True)).numpy()


def choose(law: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One index from every row of [n, V] probabilities."""
    u = torch.rand(len(law), 1, generator=generator, dtype=torch.float64)
    return torch.searchsorted(law.cumsum(-1) * (1 - 1e-15), u).clamp_max(law.shape[-1] - 1).squeeze(1)


def draft_tree(
    q: np.ndarray, parents: list[int], proposals: list[int], points: dict[int, int], n: int, generator
) -> torch.Tensor:
    """Tokens [n, N] of a tree drafted as its proposals declare; `points` maps POINT nodes to ranks under q.

    Every POINT child is the token of its rank at its parent, whatever was sampled beside it.
    """
    law = torch.from_numpy(q)
    tokens = torch.full((n, len(parents)), -1)
    for node in range(1, len(parents)):
        before = tokens[:, parents[node]] if parents[node] > 0 else torch.full((n,), len(q) - 1)
        row = law[before].clone()
        if proposals[node] == sdk.Proposal.POINT:
            tokens[:, node] = row.argsort(-1, descending=True)[:, points[node]]
            continue
        if proposals[node] == sdk.Proposal.WITHOUT_REPLACEMENT:
            for other in range(1, len(parents)):
                if parents[other] != parents[node] or other == node:
                    continue
                if proposals[other] == sdk.Proposal.POINT:
                    row.scatter_(1, law[before].argsort(-1, descending=True)[:, points[other], None], 0.0)
                elif other < node and proposals[other] == sdk.Proposal.WITHOUT_REPLACEMENT:
                    row.scatter_(1, tokens[:, other, None], 0.0)
            row = row / row.sum(-1, keepdim=True)
        tokens[:, node] = choose(row, generator)
    return tokens


def rows_of(table: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """[n, N, V]: the row of each node, a function of its token; the root stands for the start."""
    before = tokens.clone()
    before[:, 0] = len(table) - 1
    return table[before.clamp(0, len(table) - 1)]
