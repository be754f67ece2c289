# SPDX-License-Identifier: Apache-2.0
"""What the transformers library makes of a prompt: the text to compare with, and a peer to time."""

import time

import torch
from transformers.generation.streamers import BaseStreamer

from .smollm import SmolLM


class _Clock(BaseStreamer):
    """Receives the prompt, then the tokens of every step."""

    def __init__(self):
        self.times = []
        self.counts = []

    def put(self, value):
        self.counts.append(value.numel())
        self.times.append(time.perf_counter())

    def end(self):
        pass


@torch.inference_mode()
def greedy(lm: SmolLM, prompt: list[int], max_new_tokens: int, num_draft: int = 0) -> tuple[list[int], float]:
    """The model's own greedy text, and its tokens per second after the first step.

    With `num_draft` by transformers' prompt lookup of that many tokens.
    """
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
    return text[0, len(prompt) :].tolist(), sum(clock.counts[2:]) / seconds if seconds else float("nan")
