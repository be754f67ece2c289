# SPDX-License-Identifier: Apache-2.0
"""The result of `generate`, in its own form and in that of transformers."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._checks import bad_value
from ...drafting.acceptance import AcceptanceStats


class Generated(NamedTuple):
    """What `generate` wrote, in the order of the requests; those of one prompt stand side by side.

    Attributes:
        tokens: without the prompt; a stop token is the last one.
        statistics: of all steps, over what was written.
        finish_reasons: "stop" (a stop token), "stop_string", "criteria" (a stopping criterion), "length" or
            "cancelled" (by the callback).
        scores: None, or [n, V] float32 of every request: the processed logits, divided by the temperature,
            cut tokens at `-inf`, whose softmax is the law each token was drawn from; greedy requests are
            neither divided nor cut.
        logits: None, or [n, V] float32: the target's raw logits.
        logprobs: None, or [n] float32: log-probabilities of the written tokens under the sampled law.
        cache: None, or the caches with which the same texts can be continued.
        texts: None without a tokenizer, or what was written as strings, without special tokens. A text that
            ended with a stop string is cut where the string begins; its tokens are not.

    Example:
        `generated.finish_reasons[0] == "length"` where request 0 has written all it might.
    """

    tokens: list[list[int]]
    statistics: AcceptanceStats
    finish_reasons: list[str]
    scores: list[Tensor] | None = None
    logits: list[Tensor] | None = None
    logprobs: list[Tensor] | None = None
    cache: Any = None
    texts: list[str] | None = None


def sequences(input_ids: Tensor, generated: Generated, pad: int | None) -> Tensor:
    """The prompts [B, L] with what was written behind them, [B, L + T], shorter texts padded at their end."""
    longest = max(map(len, generated.tokens))
    if pad is None and longest > min(map(len, generated.tokens)):
        rule = "must be set where texts end at different lengths"
        bad_value("custom_generate", "generation_config.pad_token_id", rule, None)
    rows = [[*tokens, *[pad] * (longest - len(tokens))] for tokens in generated.tokens]
    return torch.cat([input_ids, torch.tensor(rows, dtype=input_ids.dtype, device=input_ids.device)], 1)


def model_output(input_ids: Tensor, generated: Generated, pad: int | None, cache: Any) -> Any:
    """A `GenerateDecoderOnlyOutput` of prompts [B, L].

    Scores and logits are tuples of one [B, V] for every new column of the sequences. Behind the end of a
    request its rows are those of a certain pad token: 0 there and `-inf` elsewhere.
    """
    from transformers.generation.utils import GenerateDecoderOnlyOutput

    fields = {field.name for field in dataclasses.fields(GenerateDecoderOnlyOutput)}
    return GenerateDecoderOnlyOutput(
        sequences=sequences(input_ids, generated, pad),
        scores=_steps(generated.scores, pad),
        logits=_steps(generated.logits, pad),
        **{"cache" if "cache" in fields else "past_key_values": cache},
    )


def _steps(rows: list[Tensor] | None, pad: int | None) -> tuple[Tensor, ...] | None:
    if rows is None:
        return None
    longest = max(row.shape[0] for row in rows)
    table = rows[0].new_full((longest, len(rows), rows[0].shape[1]), -torch.inf)
    for request, row in enumerate(rows):
        table[: row.shape[0], request] = row
        if row.shape[0] < longest:
            table[row.shape[0] :, request, pad] = 0.0
    return table.unbind(0)
