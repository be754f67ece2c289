# SPDX-License-Identifier: Apache-2.0
"""What the transformers library makes of a prompt: the text to compare with, and a loop to time."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from transformers.generation.streamers import BaseStreamer

from .smollm import SmolLM


class Generation(NamedTuple):
    tokens: list[int]
    rate: float  # tokens per second after the first step


class _Clock(BaseStreamer):  # type: ignore[misc]  # transformers is not typed here
    """Receives the prompt, then the tokens of every step."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.counts: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        self.counts.append(value.numel())
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


@torch.inference_mode()
def generate(lm: SmolLM, prompt: list[int], max_new_tokens: int, num_draft: int = 0) -> Generation:
    """The model's own greedy text; with `num_draft` by transformers' prompt lookup of that many tokens."""
    clock = _Clock()
    ids = torch.tensor([prompt])
    lookup = {"prompt_lookup_num_tokens": num_draft} if num_draft else {}
    text = lm.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        streamer=clock,
        **lookup,
    )
    seconds = clock.times[-1] - clock.times[1]
    rate = sum(clock.counts[2:]) / seconds if seconds else float("nan")
    return Generation(text[0, len(prompt) :].tolist(), rate)
