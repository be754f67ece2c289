# SPDX-License-Identifier: Apache-2.0
"""Children of a draft tree's nodes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._ops.calls import SampleChildrenCall
from .._random import Purpose
from .law import draft_law, params_of
from .random import Noise


def children(q: Tensor, k: int, method: str, noise: Noise, purpose: Purpose, node: int) -> list[int]:
    """At most k children, drawn or chosen from the law q [V] of their parent. A drawn child is -1 if no token
    is left to draw."""
    if method == "independent":
        drawn = [noise.race(q, 1, purpose, node, ordinal) for ordinal in range(k)]
        return [token for finishers in drawn for token in finishers]
    if method == "without_replacement":
        return noise.race(q, k, purpose, node)
    if method == "top_k":
        return likeliest(q, k)
    chosen = likeliest(q, k - 1)
    rest = q.clone()
    rest[chosen] = 0.0
    return (noise.race(rest, 1, purpose, node) or [-1]) + chosen


def likeliest(q: Tensor, k: int) -> list[int]:
    """The k tokens of largest probability, descending, ties to the lowest token."""
    order = q.argsort(descending=True, stable=True)[:k]
    return order[q[order] > 0].tolist()


def sample_children(call: SampleChildrenCall) -> None:
    """Fill the outputs, row by row."""
    call.out_tokens.fill_(-1)
    call.out_scores.fill_(-math.inf)
    count, device = call.out_tokens.shape[1], call.out_tokens.device
    for n in range(call.logits.shape[0]):
        row = call.logits[n].cpu()
        row = torch.where(row.isnan(), -math.inf, row)
        q = draft_law(row, params_of(call.sampling, call.sampling_rows, n), "logits", None, row.numel())
        if q is None:
            continue
        noise = Noise(int(call.seeds[n]), int(call.positions[n]))
        tokens = children(q, count, call.method, noise, Purpose(call.purpose), int(call.nodes[n]))
        found = torch.tensor(tokens, dtype=torch.int64)
        scores = torch.where(found >= 0, q[found].log(), -math.inf)
        call.out_tokens[n, : len(tokens)] = found.to(device)
        call.out_scores[n, : len(tokens)] = scores.float().to(device)
