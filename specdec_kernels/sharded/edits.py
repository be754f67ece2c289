# SPDX-License-Identifier: Apache-2.0
"""Penalties, biases, bans and forced tokens in the columns of one process. They need no collective: what is
counted is the same in every process."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .._ops.calls import EditTensors
from ..edits import OFF, Unpacked
from .nodes import Nodes
from .shard import VocabShard


class Text(NamedTuple):
    """What was drafted before each row."""

    requests: Tensor  # [n] int64
    depths: Tensor  # [n] int64, of the row's node
    path: Tensor  # [n, D + 1] int64, the token of the node or ancestor at each depth from 1 on; -1 = none


def no_text(batch: int, device: torch.device) -> Text:
    """Of rows of requests without a tree."""
    request = torch.arange(batch, device=device)
    return Text(request, torch.zeros_like(request), torch.full((batch, 1), -1, device=device))


def text_of(nodes: Nodes, request: Tensor, node: Tensor, max_depth: int) -> Text:
    """Of the rows of a batch of trees, whose requests and nodes are these, [R] int64."""
    batch, count = nodes.tokens.shape
    above = nodes.above & nodes.live[:, :, None] & nodes.tested[:, None, :]
    places = torch.where(above, nodes.depths[:, None, :], 0)
    path = torch.full((batch, count, max_depth + 1), -1, device=request.device)
    path.scatter_(2, places, torch.where(above, nodes.tokens[:, None, :], -1))
    path[:, :, 0].fill_(-1)  # the root's token is counted already
    node = node.clamp(0, count - 1)
    return Text(request, nodes.depths[request, node].clamp_max(max_depth), path[request, node])


class Edits:
    """The edits of a batch.

    Attributes:
        overflowed: [B] bool: the request's slot of counts has overflowed.
    """

    def __init__(self, shard: VocabShard, edits: Unpacked, batch: int, text: Text) -> None:
        tensors, self.numbers = edits
        self.tensors, self.shard, self.text = EditTensors(*tensors), shard, text
        device = text.requests.device
        slots = self.tensors.slots
        self.slots = torch.arange(batch, device=device) if slots is None else slots
        self.overflowed = torch.zeros(batch, dtype=torch.bool, device=device)
        if self.tensors.counts_tokens is not None and self.tensors.counts_sizes is not None:
            sizes = self.tensors.counts_sizes
            inside = self._inside(sizes)
            size = sizes[torch.where(inside, self.slots, 0)] if len(sizes) else torch.zeros_like(self.slots)
            self.overflowed = inside & (size > self.tensors.counts_tokens.shape[1])

    def made_in(self, rows: Tensor) -> Tensor:
        """Float32 rows [n, size], edited."""
        rows = self._penalized(rows)
        rows = self._biased(rows)
        rows = torch.where(self._banned(rows) & ~rows.isnan(), -math.inf, rows)
        return self._forced(rows)

    def _inside(self, counted: Tensor) -> Tensor:
        return (self.slots >= 0) & (self.slots < counted.shape[0])

    def _places(self, tokens: Tensor, wanted: Tensor) -> Tensor:
        """Where tokens [n, m] stand in rows; one more column takes what is not wanted or elsewhere."""
        place = tokens - self.shard.start
        return torch.where(wanted & (place >= 0) & (place < self.shard.size), place, self.shard.size)

    def _zeros(self, rows: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros((rows, self.shard.size + 1), dtype=dtype, device=self.slots.device)

    def _penalty(self, name: str, place: int) -> Tensor:
        """[n, 1] float32 for each row; one that is out of range is off."""
        given, off = getattr(self.tensors, name), list(OFF.values())[place]
        if given is None:
            given = torch.full((len(self.slots),), self.numbers[place], device=self.slots.device)
        usable = given.isfinite() & ((given > 0) | (name != "repetition"))
        return torch.where(usable, given, off)[self.text.requests][:, None]

    def _penalized(self, rows: Tensor) -> Tensor:
        tensors, request, path = self.tensors, self.text.requests, self.text.path
        tokens, sizes = tensors.counts_tokens, tensors.counts_sizes
        if tokens is None or sizes is None or tensors.counts_prompt is None or tensors.counts_output is None:
            return rows
        prompt, output = (self._zeros(len(self.slots), torch.int64) for _ in range(2))
        if len(sizes):
            inside = self._inside(sizes) & ~self.overflowed
            slot = torch.where(inside, self.slots, 0)
            used = torch.arange(tokens.shape[1], device=slot.device) < sizes[slot][:, None]
            places = self._places(tokens[slot].long(), used & inside[:, None])
            prompt.scatter_(1, places, tensors.counts_prompt[slot].long().clamp_min(0))
            output.scatter_(1, places, tensors.counts_output[slot].long().clamp_min(0))
        prompt, output = prompt[request], output[request]
        output.scatter_add_(1, self._places(path, path >= 0), torch.ones_like(path))
        prompt, output = prompt[:, : self.shard.size], output[:, : self.shard.size]
        count = output + prompt if self.numbers[3] else output
        repetition = self._penalty("repetition", 0)
        seen = prompt + output > 0
        changed = torch.where(seen, torch.where(rows > 0, rows / repetition, rows * repetition), rows)
        lowered = changed - self._penalty("frequency", 1) * count.float()
        changed = torch.where(count > 0, lowered, changed)
        changed = torch.where(count > 0, changed - self._penalty("presence", 2), changed)
        return torch.where(self.overflowed[request][:, None], rows, changed)

    def _biased(self, rows: Tensor) -> Tensor:
        tokens, values = self.tensors.bias_tokens, self.tensors.bias_values
        if tokens is None or values is None:
            return rows
        bias = torch.zeros_like(values)
        for i in range(tokens.shape[1]):  # repeated tokens add up in order
            bias = torch.where(tokens == tokens[:, i : i + 1], bias + values[:, i : i + 1], bias)
        places, size = self._places(tokens, tokens >= 0), self.shard.size
        dense = self._zeros(len(tokens), torch.float32).scatter_(1, places, bias)
        has = self._zeros(len(tokens), torch.bool).scatter_(1, places, torch.ones_like(tokens).bool())
        dense, has = dense[self.text.requests, :size], has[self.text.requests, :size]
        biased = torch.where(has, rows + dense, rows)
        return torch.where(has & (dense == -math.inf) & ~rows.isnan(), -math.inf, biased)

    def _banned(self, rows: Tensor) -> Tensor:
        """Which tokens may not come next, [n, size] bool."""
        tensors, text = self.tensors, self.text
        banned = self._zeros(len(rows), torch.bool)
        if tensors.banned_tokens is not None:
            wanted = torch.ones_like(text.depths, dtype=torch.bool)
            if tensors.banned_until is not None:
                wanted = text.depths < tensors.banned_until[text.requests]
            self._ban(banned, tensors.banned_tokens[text.requests], wanted[:, None])
        if tensors.bad_words is not None:
            words = tensors.bad_words[text.requests]  # [n, words, L]
            self._ban(banned, words[:, :, -1], self._written(words[:, :, :-1]))
        return banned[:, : self.shard.size]

    def _ban(self, banned: Tensor, tokens: Tensor, wanted: Tensor) -> None:
        banned.scatter_(1, self._places(tokens, wanted), torch.ones_like(tokens, dtype=torch.bool))

    def _written(self, words: Tensor) -> Tensor:
        """Whether the tokens [n, m, L - 1] of each word, padded on the left, stand last in the text."""
        length = words.shape[2]
        back = torch.arange(length - 1, -1, -1, device=words.device)  # how far from the end of the text
        depth = self.text.depths[:, None] - back  # of a drafted token, 0 and less before the draft
        text = self.text.path.gather(1, depth.clamp_min(0))
        recent = self.tensors.counts_recent
        if recent is not None and len(recent) and recent.shape[1]:
            slot = torch.where(self._inside(recent), self.slots, 0)[self.text.requests]
            place = recent.shape[1] - 1 + depth
            known = (place >= 0) & self._inside(recent)[self.text.requests][:, None]
            before = recent[slot].gather(1, place.clamp(0, recent.shape[1] - 1))
            text = torch.where(depth > 0, text, torch.where(known, before, -1))
        padding = (words < 0).long().cumprod(2).bool()
        return (padding | ((words == text[:, None, :]) & (words >= 0))).all(2)

    def _forced(self, rows: Tensor) -> Tensor:
        forced, text = self.tensors.forced_tokens, self.text
        if forced is None:
            return rows
        last = forced.shape[1] - 1
        token = forced[text.requests].gather(1, text.depths[:, None].clamp_max(last))
        inside = (text.depths[:, None] <= last) & (token >= 0) & (token < self.shard.vocab_size)
        place = self.shard.start + torch.arange(self.shard.size, device=rows.device)
        return torch.where(inside, torch.where(place == token, 0.0, -math.inf), rows)
