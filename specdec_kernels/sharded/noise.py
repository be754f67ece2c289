# SPDX-License-Identifier: Apache-2.0
"""Coins and races of many rows at once, keyed by global token ids."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._random import Purpose, philox
from .shard import VocabShard

_WORD = 0xFFFFFFFF


def _words(seeds: Tensor, positions: Tensor, tags: Tensor, index: Tensor) -> Tensor:
    """The four words of every index word: [n] int64 three times and [m] int64 -> [n, m, 4] int64."""
    counter = index.new_empty((seeds.shape[0], index.shape[0], 4))
    counter[..., 0] = index
    for word, values in enumerate((tags, positions, positions >> 32), 1):
        counter[..., word] = (values & _WORD)[:, None]
    key = torch.stack((seeds & _WORD, seeds >> 32 & _WORD), -1)
    return philox(counter, key[:, None])


def coins(seeds: Tensor, positions: Tensor, nodes: int) -> Tensor:
    """The acceptance coins of nodes [0, N): [B] int64 twice -> [B, N] float64, strictly inside (0, 1)."""
    node = torch.arange(nodes, device=seeds.device).repeat(seeds.shape[0])
    zero = torch.zeros(1, dtype=torch.int64, device=seeds.device)
    each = [values.repeat_interleave(nodes) for values in (seeds, positions)]
    words = _words(each[0], each[1], int(Purpose.ACCEPT) + 16 * node, zero)[:, 0, 0]
    return ((words >> 9).double() * 2.0**-23 + 2.0**-24).view(-1, nodes)


def race_keys(seeds: Tensor, positions: Tensor, purpose: Purpose, start: int, size: int) -> Tensor:
    """Standard exponential keys of tokens [start, start + size): [n] int64 twice -> [n, size] float64."""
    index = torch.arange(start >> 2, (start + size + 3) >> 2, device=seeds.device)
    words = _words(seeds, positions, torch.full_like(seeds, int(purpose)), index).flatten(1)
    words = words[:, start & 3 :][:, :size]
    uniform = ((words.double() + 0.5) * 2.0**-32).clamp_max(1.0 - 2.0**-24)
    return -torch.log1p(-uniform)


class Winners(NamedTuple):
    """Of races, one for each row."""

    tokens: Tensor
    """[n] int64."""
    values: Tensor
    """[n] float64, what `values` has at the tokens."""


def race(shard: VocabShard, weights: Tensor, keys: Tensor, values: Tensor) -> Winners:
    """Draws from `weights` [n, size] by races: the largest weight over key wins, ties to the lowest token.

    The winners of the shards are gathered: three numbers for each row.

    Args:
        weights, keys: [n, size] float64; a weight of 0 does not race.
        values: [n, size] float64, of which the winner's is wanted.
    """
    scores = torch.where(weights > 0, weights / keys, -1.0)
    best = scores.argmax(-1, keepdim=True)  # not always the first of equals
    score = scores.gather(1, best)
    place = torch.arange(shard.size, device=weights.device)
    best = torch.where(scores == score, place, shard.size).amin(1, keepdim=True)
    numbers = torch.cat((score, values.gather(1, best)), 1).view(torch.int64)  # bits, which cross unchanged
    everyone = shard._collectives.gather(torch.cat((numbers, best + shard.start), 1))
    score, value = everyone[..., :2].contiguous().view(torch.float64).unbind(-1)
    token = everyone[..., 2]
    leads = score == score.amax(0)
    winner = torch.where(leads, token, shard.vocab_size).amin(0)
    return Winners(winner, torch.where(leads & (token == winner), value, 0.0).sum(0))
