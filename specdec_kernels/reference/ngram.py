# SPDX-License-Identifier: Apache-2.0
"""Prompt lookup."""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch import Tensor

from .._ops.calls import NgramDraftCall, NgramTreeCall

Occurrence = tuple[int, int]


def occurrences(text: list[int], min_ngram: int, max_ngram: int) -> list[Occurrence]:
    """(n, end) of every earlier place `end` where the text's last n tokens end, with the largest such n."""
    found = []
    for end in range(len(text) - 1):
        n = 0
        while n < min(max_ngram, end + 1) and text[end - n] == text[-1 - n]:
            n += 1
        if n >= min_ngram:
            found.append((n, end))
    return found


def continuation(text: list[int], end: int, count: int, cyclic: bool) -> list[int]:
    """The continuation after `end`, at most `count` tokens."""
    rest = text[end + 1 :]
    return [rest[i % len(rest)] for i in range(count if cyclic else min(count, len(rest)))]


def draft(
    text: list[int], count: int, min_ngram: int, max_ngram: int, frequent: bool, cyclic: bool
) -> list[int]:
    """The drafted chain, at most `count` tokens."""
    found = occurrences(text, min_ngram, max_ngram)
    if not found:
        return []
    longest = max(found)[0]
    ends = [end for n, end in found if n == longest]
    ways = [continuation(text, end, count, cyclic) for end in (ends if frequent else ends[-1:])]
    drafted: list[int] = []
    while ways := [way for way in ways if way[: len(drafted)] == drafted and len(way) > len(drafted)]:
        votes = Counter(way[len(drafted)] for way in reversed(ways))  # most recent first, so that among
        drafted.append(votes.most_common(1)[0][0])  # equal counts the most recent token wins
    return drafted


def tree(
    text: list[int],
    max_nodes: int,
    max_depth: int,
    branches: int,
    min_ngram: int,
    max_ngram: int,
    trust: list[float],
    cyclic: bool,
) -> tuple[list[int], list[int], list[float]]:
    """Tokens, parents and chances of the kept nodes."""
    tokens, parents, chances = [text[-1] if text else -1], [-1], [1.0]
    left = [1.0]  # for each node: the chance that the text reaches it and none of its children so far
    children: dict[tuple[int, int], int] = {}
    for n, end in sorted(occurrences(text, min_ngram, max_ngram), reverse=True)[:branches]:
        node = 0
        for depth, token in enumerate(continuation(text, end, max_depth, cyclic)):
            if (node, token) not in children:
                children[node, token] = len(tokens)
                tokens.append(token)
                parents.append(node)
                chances.append(trust[min(n + depth, len(trust)) - 1] * left[node])
                left[node] -= chances[-1]
                left.append(chances[-1])
            node = children[node, token]
    best = sorted(range(len(tokens)), key=lambda node: (-chances[node], node))[:max_nodes]
    kept, stack = [], [0]  # depth first, the likeliest child first
    while stack:
        kept.append(stack.pop())
        stack += sorted((n for n in best if parents[n] == kept[-1] and chances[n] > 0), reverse=True)
    return (
        [tokens[node] for node in kept],
        [kept.index(parents[node]) if node else -1 for node in kept],
        [chances[node] for node in kept],
    )


def ngram_draft(call: NgramDraftCall) -> None:
    """Fill the output, request by request."""
    call.out.fill_(-1)
    limits = (call.min_ngram, call.max_ngram, call.frequent, call.cyclic)
    for b, text in enumerate(texts(call.tokens, call.lengths)):
        drafted = draft(text, call.out.shape[1], *limits)
        call.out[b, : len(drafted)] = torch.tensor(drafted, dtype=torch.int64)


def ngram_tree(call: NgramTreeCall) -> None:
    """Fill the outputs, request by request."""
    call.out_tokens.fill_(-1)
    call.out_parents.fill_(0)
    call.out_scores.fill_(-math.inf)
    limits = (call.max_depth, call.branches, call.min_ngram, call.max_ngram, call.trust, call.cyclic)
    for b, text in enumerate(texts(call.tokens, call.lengths)):
        kept, parents, chances = tree(text, call.out_tokens.shape[1], *limits)
        call.out_tokens[b, : len(kept)] = torch.tensor(kept, dtype=torch.int64)
        call.out_parents[b, : len(kept)] = torch.tensor(parents, dtype=torch.int32)
        call.out_scores[b, : len(kept)] = torch.tensor(chances, dtype=torch.float64).log().float()


def texts(tokens: Tensor, lengths: Tensor) -> list[list[int]]:
    """The texts: the rows, cut at their lengths."""
    return [row[: max(length, 0)] for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]
