# SPDX-License-Identifier: Apache-2.0
"""LMDeploy's verification step by `verify`, for a patch: LMDeploy has no hook for a verifier.

Names, shapes and meanings are those of LMDeploy 0.18.0 (2026-09-28).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._checks import check_shape
from .._kept import kept
from ..sampling import PLAIN, SamplingParams
from ..verification import verify
from .steps import chain_of_step, outputs_of_step

_GREEDY = SamplingParams(temperature=0.0)


def rejection_sample(
    target_logits: Tensor,
    draft_token_ids: Tensor,
    expanded_sampling_inputs: Any,
    draft_probs: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What `lmdeploy.pytorch.spec_decode.reject_sampler.RejectionSampler.forward` computes.

    Args:
        target_logits: [B, K + 1, V], after LMDeploy's logits processors: penalties, temperature, bad words
            and the grammar.
        draft_token_ids: [B, K] int64; -1 = no draft.
        expanded_sampling_inputs: `SamplingInputs` of B * (K + 1) rows. Read are `max_top_k`, `has_greedy`,
            `top_k`, `top_p`, `min_p`, `random_seeds` and `random_offsets`. top_k = 1 is greedy.
        draft_probs: [B, K, V] of the tokens' proposal, if they were sampled from it.

    Returns:
        output_token_ids [B, K + 1] int64, accepted tokens and the next one, then -1; num_rejected_tokens [B]
        int64; last_token_ids [B] int64, the last of every request.

    Raises:
        ValueError: wrong shapes.
        TypeError: wrong dtypes or devices.

    Notes:
        Rule `match` without `draft_probs`, otherwise `traversal`. A request's seed and offset key its random
        numbers. So with `match` its text does not depend on drafts or on the batch. Never synchronises. Trees
        and what `verify` fills are kept for every size: the steps of a thread have to follow each other in
        one stream.

    Example:
        >>> from types import SimpleNamespace
        >>> inputs = SimpleNamespace(max_top_k=1)
        >>> logits = torch.eye(4)[torch.tensor([[2, 3, 1]])]
        >>> rejection_sample(logits, torch.tensor([[2, 0]]), inputs)
        (tensor([[ 2,  3, -1]]), tensor([1]), tensor([3]))
    """
    batch, stride = target_logits.shape[:2]
    drafted, starts, ends = _places(batch, stride, target_logits.device)
    law, seeds, positions = _of_requests(expanded_sampling_inputs, starts, batch * stride)
    out = outputs_of_step(batch, stride, target_logits.device)
    verify(
        target_logits,
        chain_of_step(draft_token_ids),
        draft_probs,
        draft_sampling=None if draft_probs is None else "probs",
        sampling=law,
        seeds=seeds,
        positions=positions,
        out=out.verified,
    )
    found = out.without_paths.long()
    tokens = found.as_strided((batch, stride), (stride, 1))
    rejected = drafted - found.as_strided((batch,), (1,), batch * stride)
    return tokens, rejected, found.take(ends - rejected)


@kept
def _places(batch: int, stride: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """[1], the number of drafted tokens; [B] each, the first and the last rows of requests."""
    starts = torch.arange(batch, device=device) * stride
    return torch.full((1,), stride - 1, dtype=torch.int64, device=device), starts, starts + stride - 1


def _of_requests(
    inputs: Any, starts: Tensor, count: int
) -> tuple[SamplingParams, Tensor | None, Tensor | None]:
    """The law, seeds and positions of requests that begin at rows `starts`, of `count` in all."""

    def rows(name: str) -> Tensor | None:
        value: Tensor | None = getattr(inputs, name)
        if value is None:
            return None
        check_shape("rejection_sample", name, value, "[B * (K + 1)]", (count,))
        return value.index_select(0, starts)

    if inputs.max_top_k == 1:
        return _GREEDY, None, None
    law = PLAIN
    if inputs.top_k is not None or inputs.top_p is not None or inputs.min_p is not None:
        top_k, top_p, min_p = rows("top_k"), rows("top_p"), rows("min_p")
        law = SamplingParams(
            temperature=(top_k != 1).float() if inputs.has_greedy and top_k is not None else 1.0,
            top_k=0 if top_k is None else top_k,
            top_p=1.0 if top_p is None else top_p,
            min_p=0.0 if min_p is None else min_p,
            order="min_p_last",
        )
    seeds, offsets = rows("random_seeds"), rows("random_offsets")
    if seeds is None or offsets is None:
        return law, None, None
    return law, seeds.long(), offsets.long()
