# SPDX-License-Identifier: Apache-2.0
"""Edits of rows: random ones, and what other projects do to whole rows."""

from __future__ import annotations

import torch
from cases import pick
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

import specdec_kernels as sdk


def counts_of(prompts, outputs, vocab, *, recent=0, capacity=None, device=None) -> sdk.TokenCounts:
    """Slot b has these lists of tokens."""
    texts = [[*prompt, *output] for prompt, output in zip(prompts, outputs, strict=True)]
    capacity = capacity or max([1, *(len(set(text)) for text in texts)])
    counts = sdk.TokenCounts(len(texts), capacity, vocab, recent=recent, device=device)
    longest = max(map(len, texts), default=0)
    padded = torch.zeros(len(texts), longest, dtype=torch.int64)
    for row, text in zip(padded, texts, strict=True):
        row[: len(text)] = torch.tensor(text, dtype=torch.int64)
    counts.set_prompt_(
        list(range(len(texts))), padded, [len(text) for text in texts], [len(output) for output in outputs]
    )
    return counts


def openai(scores, counted, frequency=0.0, presence=0.0):
    """The formula of OpenAI's documentation: mu[j] - c[j] * frequency - float(c[j] > 0) * presence."""
    scores = scores.clone()
    for j in set(counted):
        scores[j] = scores[j] - counted.count(j) * frequency - presence
    return scores


def repeated(scores, text, penalty):
    return RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([text], dtype=torch.int64), scores[None])[0]


def biased(scores, text, bias):
    processor = SequenceBiasLogitsProcessor({(token,): value for token, value in bias.items()})
    return processor(torch.tensor([text], dtype=torch.int64), scores[None])[0]


def without_bad_words(scores, text, words):
    return NoBadWordsLogitsProcessor(words)(torch.tensor([text], dtype=torch.int64), scores[None])[0]


def with_min_length(scores, text, skipped, least, stops):
    processor = MinNewTokensLengthLogitsProcessor(skipped, least, stops)
    return processor(torch.tensor([text], dtype=torch.int64), scores[None])[0]


def random_edits(seed: int, batch: int, vocab: int, *, likely=None, hostile=False) -> sdk.LogitEdits:
    """Any edits, often of tokens in `likely`, which are those that matter to a case."""
    g = torch.Generator().manual_seed(7919 * seed + 13)  # `random_case` has `seed`
    integers = lambda low, high, shape=(1,): torch.randint(low, high, shape, generator=g)  # noqa: E731
    likely = torch.arange(vocab) if likely is None or not likely.numel() else likely.clamp(0, vocab - 1)

    def tokens(*shape):
        near, any_ = likely[integers(0, len(likely), shape)], integers(0, vocab, shape)
        out = torch.where(integers(0, 2, shape) > 0, near, any_)
        if hostile:
            wild = torch.tensor([-7, vocab, vocab + 3, 2**40, -(2**60)])[integers(0, 5, shape)]
            out = torch.where(integers(0, 6, shape) == 0, wild, out)
        return torch.where(integers(0, 5, shape) == 0, -1, out)

    def penalty(low, high):
        values = torch.rand(batch, generator=g) * (high - low) + low
        return pick(g, (float(values[0]) if batch else low, values))

    slots = batch + int(integers(0, 3))
    small = seed % 3 == 2  # slots overflow
    length = pick(g, (0, 3, 40, 300)) + 5 * small
    texts = [tokens(length).clamp(0, vocab - 1).tolist() for _ in range(slots)]
    split = [int(integers(0, length + 1)) for _ in texts]
    prompts, outputs = zip(*((t[:n], t[n:]) for t, n in zip(texts, split, strict=True)), strict=True)
    widest = max([1, *(len(set(text)) for text in texts)])
    capacity = max(widest // 2, 1) if small else widest + int(integers(0, 4))
    counts = counts_of(prompts, outputs, vocab, recent=3, capacity=capacity)
    edits = sdk.LogitEdits(counts)
    if small or pick(g, (True, False)):
        edits = edits._replace(
            repetition_penalty=pick(g, (1.0, penalty(0.5, 2.0), penalty(0.5, 2.0))),
            frequency_penalty=pick(g, (0.0, penalty(-1.0, 1.0), penalty(-1.0, 1.0))),
            presence_penalty=pick(g, (0.0, penalty(-1.0, 1.0), penalty(-1.0, 1.0))),
            penalize_prompt=pick(g, (True, False)),
        )
    if pick(g, (True, False)):
        values = torch.randn(batch, 7, generator=g) * 2
        values[integers(0, 9, (batch, 7)) == 0] = -float("inf")
        edits = edits._replace(bias_tokens=tokens(batch, 7), bias_values=values)
    if pick(g, (True, False)):
        until = integers(-1, 4, (batch,)).int()
        edits = edits._replace(banned_tokens=tokens(batch, 3), banned_until=pick(g, (None, until)))
    if pick(g, (True, False)):
        words = tokens(batch, 6, 3)
        words[:, ::2, :1] = -1
        words[:, ::3, :2] = -1
        edits = edits._replace(bad_words=words)
    if pick(g, (True, False, False)):
        edits = edits._replace(
            forced_tokens=torch.where(integers(0, 3, (batch, 3)) > 0, -1, tokens(batch, 3))
        )
    if pick(g, (True, False)):
        edits = edits._replace(slots=torch.randperm(slots, generator=g)[:batch])
        if hostile and batch:
            edits.slots[0] = pick(g, (-1, slots, 2**40, -(2**60)))
    if hostile:
        _spoil(counts, edits, g)
    return edits


def _spoil(counts, edits, g) -> None:
    """What the device may hold by mistake."""
    integers = lambda low, high, shape: torch.randint(low, high, shape, generator=g)  # noqa: E731
    sizes = torch.tensor([-(2**31), -1, 0, counts.capacity, counts.capacity + 1, 2**31 - 1]).int()
    some = integers(0, 4, counts.sizes.shape) == 0
    counts.sizes[some] = sizes[integers(0, 6, counts.sizes.shape)][some]
    for tensor in (counts.tokens, counts.prompt, counts.output):
        wild = torch.tensor([-(2**31), -1, 2**31 - 1, 0, 5]).int()[integers(0, 5, tensor.shape)]
        some = integers(0, 9, tensor.shape) == 0
        tensor[some] = wild[some]
    for name in ("repetition_penalty", "frequency_penalty", "presence_penalty"):
        penalty = getattr(edits, name)
        if isinstance(penalty, torch.Tensor) and penalty.numel():
            penalty[0] = pick(g, (float("nan"), float("inf"), 0.0, -3.0, 1e38))
    if edits.bias_values is not None and edits.bias_values.numel():
        edits.bias_values[0, :3] = pick(g, (float("nan"), float("inf"), 3e38, -float("inf")))
