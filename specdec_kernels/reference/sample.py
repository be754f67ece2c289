# SPDX-License-Identifier: Apache-2.0
"""Plain one-token sampling."""

from __future__ import annotations

from torch import Tensor

from ..random import Purpose
from .law import allowed_tokens, params_of, target_law
from .random import Noise


def sample(
    logits: Tensor,
    sampling: list[float],
    sampling_rows: list[Tensor | None],
    seeds: Tensor,
    positions: Tensor,
    token_bitmask: Tensor | None,
    out_tokens: Tensor,
    out_logprobs: Tensor | None,
) -> None:
    """Fill the outputs, request by request. The arguments are those of the operator."""
    vocab_size = logits.shape[-1]
    for b in range(logits.shape[0]):
        allowed = None if token_bitmask is None else allowed_tokens(token_bitmask[b].cpu(), vocab_size)
        p, _ = target_law(logits[b].cpu(), params_of(sampling, sampling_rows, b), allowed)
        token = Noise(int(seeds[b]), int(positions[b])).draw(p, Purpose.NEXT, depth=0)
        out_tokens[b] = token
        if out_logprobs is not None:
            out_logprobs[b] = float(p[token].log())
