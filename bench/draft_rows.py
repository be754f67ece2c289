# SPDX-License-Identifier: Apache-2.0
"""Logits of a target and a draft after the nodes of trees: those of the demo's model, and random ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

TOKENS = 33  # written behind each prompt


class Rows:
    """Logits of target and draft after the nodes of trees behind one text. Node 0 is its last token.

    `seed` is that of the drafts.
    """

    def __init__(self, seed: int, target: Tensor, draft: Tensor) -> None:
        self.seed, self.target, self.draft = seed, target[None], draft[None]
        self.numbers: dict[tuple[int, int], int] = {}  # of nodes, by parent and token

    def extend(self, nodes: Sequence[tuple[int, int]]) -> list[int]:
        """The numbers of nodes, given as parent and token. Those that are new are added."""
        new = [node for node in dict.fromkeys(nodes) if node not in self.numbers]
        if new:
            parents, tokens = zip(*new, strict=True)
            target, draft = self.after(tokens, parents)
            self.numbers.update(zip(new, range(len(self.target), len(self.target) + len(new)), strict=True))
            self.target, self.draft = torch.cat([self.target, target]), torch.cat([self.draft, draft])
        return [self.numbers[node] for node in nodes]

    def after(self, tokens: Sequence[int], parents: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The rows of new nodes."""
        raise NotImplementedError


class ModelRows(Rows):
    """A text that begins a longer one, whose keys and values are in the cache. Nodes stand behind these."""

    def __init__(self, model: Any, layers: int, cache: Any, position: int, rows: tuple[Tensor, Tensor]):
        super().__init__(position, *rows)
        self.model, self.layers, self.cache = model, layers, cache
        self.position, self.first = position, cache.get_seq_length()
        self.sees = torch.zeros(1, 0, dtype=torch.bool)  # [nodes, nodes without the root]
        self.depths = [0]

    def after(self, tokens: Sequence[int], parents: Sequence[int]) -> tuple[Tensor, Tensor]:
        count = len(tokens)
        before = torch.zeros(self.first, dtype=torch.bool)
        before[: self.position + 1] = True
        sees = torch.cat([self.sees[list(parents)], torch.eye(count, dtype=torch.bool)], 1)
        mask = torch.cat([before.expand(count, -1), sees], 1)
        self.sees = torch.cat([torch.nn.functional.pad(self.sees, (0, count)), sees])
        depths = [self.depths[parent] + 1 for parent in parents]
        self.depths += depths
        return forward(
            self.model,
            self.layers,
            torch.tensor([tokens]),
            attention_mask=torch.zeros(mask.shape).masked_fill_(~mask, -torch.inf)[None, None],
            position_ids=torch.tensor([depths]) + self.position,
            past_key_values=self.cache,
        )


@torch.inference_mode()
def forward(model: Any, layers: int, tokens: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Logits [n, V] of the target, and of the draft: what the head reads after `layers` layers."""
    body = model.model
    states = body(tokens, output_hidden_states=True, **options).hidden_states
    return model.lm_head(states[-1][0]), model.lm_head(body.norm(states[layers][0]))


def model_rows(layers: int, prompts: Sequence[str], every: int) -> Iterator[Rows]:
    """Behind texts that the target has written at temperature 0.7."""
    import transformers

    from . import generate

    model, prompt = generate.load()
    for name in prompts:
        torch.manual_seed(0)
        ids = torch.tensor([prompt(name)])
        text = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=TOKENS,
            do_sample=True,
            temperature=0.7,
            top_k=0,
            pad_token_id=model.config.eos_token_id,
        )
        cache = transformers.DynamicCache(config=model.config)
        target, draft = forward(model, layers, text, past_key_values=cache)
        for position in range(ids.shape[1] - 1, text.shape[1] - 1, every):
            yield ModelRows(model, layers, cache, position, (target[position], draft[position]))
            cache.crop(text.shape[1] - cache.get_seq_length())  # as many as a negative number says


class RandomRows(Rows):
    """Normal target logits, and a draft with errors of deviation `error`."""

    def __init__(self, seed: int, error: float, vocab: int = 1000, spread: float = 2.5):
        self.generator, self.size = torch.Generator().manual_seed(seed), (vocab, spread, error)
        target, draft = self.after([0], [-1])
        super().__init__(seed, target[0], draft[0])

    def after(self, tokens: Sequence[int], parents: Sequence[int]) -> tuple[Tensor, Tensor]:
        vocab, spread, error = self.size
        noise = torch.randn(2, len(tokens), vocab, generator=self.generator)
        return spread * noise[0], spread * noise[0] + error * noise[1]
