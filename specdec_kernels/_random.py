# SPDX-License-Identifier: Apache-2.0
"""Counter-based randomness: each number is a function of (seed, position, purpose, node, index) alone.

Philox4x32-10 with key = seed (64 bits) and counter = (index word, purpose + 16 * node, position low, position
high). The purposes:

| purpose | used for | position | node | index |
|---|---|---|---|---|
| NEXT | the target's own draw: `sample`, rule `match` | absolute, of that token | 0 | vocabulary id |
| RESIDUAL | residual and bonus draws of the other rules | absolute, of that token | 0 | vocabulary id |
| ACCEPT | acceptance coin | `positions[b]` of the step | the node | 0 |
| DRAFT | drafting helpers | `positions[b]` of the step | the parent node | vocabulary id, with an ordinal |

The random word of a vocabulary id is lane `id & 3` of index word `(id >> 2) + (ordinal << 24)`.

Source: Salmon et al. 2011, Parallel Random Numbers: As Easy as 1, 2, 3.
"""

from __future__ import annotations

import enum

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


class Purpose(enum.IntEnum):
    """What a random number is for; numbers of different purposes are independent."""

    NEXT = 0
    RESIDUAL = 1
    ACCEPT = 2
    DRAFT = 3


def philox(counter: Tensor, key: Tensor) -> Tensor:
    """Philox4x32-10.

    Args:
        counter: [..., 4] int64 holding 32-bit words.
        key: [..., 2] int64 holding 32-bit words; broadcasts against `counter`.

    Returns:
        [..., 4] int64 holding 32-bit words.

    Example:
        >>> zeros = torch.zeros(4, dtype=torch.int64)
        >>> [f"{word:08x}" for word in philox(zeros, zeros[:2]).tolist()]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key.unbind(-1)
    for _ in range(_ROUNDS):
        # An int64 product of two 32-bit words wraps, but keeps all 64 bits. Shift and mask read it unsigned.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> 32 & _WORD) ^ c1 ^ k0,
            product1 & _WORD,
            (product0 >> 32 & _WORD) ^ c3 ^ k1,
            product0 & _WORD,
        )
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    return torch.stack((c0, c1, c2, c3), -1)


def words(seed: int, position: int, purpose: int, node: int, index: Tensor) -> Tensor:
    """The four words of every index word: [n] int64 -> [n, 4] int64.

    Negative seeds and positions stand for their two's complement.
    """
    counter = index.new_empty((index.numel(), 4))
    counter[:, 0] = index & _WORD
    counter[:, 1] = (purpose + 16 * node) & _WORD
    counter[:, 2] = position & _WORD
    counter[:, 3] = position >> 32 & _WORD
    return philox(counter, index.new_tensor([seed & _WORD, seed >> 32 & _WORD]))


def coin(seed: int, position: int, node: int) -> float:
    """The acceptance coin of a node: `(word >> 9) * 2^-23 + 2^-24`, strictly inside (0, 1), exact in float32.

    Example:
        >>> 0.0 < coin(seed=7, position=12, node=3) < 1.0
        True
    """
    word = int(words(seed, position, Purpose.ACCEPT, node, torch.zeros(1, dtype=torch.int64))[0, 0])
    return (word >> 9) * 2.0**-23 + 2.0**-24


def race_keys(
    seed: int,
    position: int,
    purpose: Purpose,
    vocab_size: int,
    node: int = 0,
    ordinal: int = 0,
) -> Tensor:
    """Standard exponential keys of an exponential race, one for every token.

    `E = -log1p(-v)` with `v = min((word + 0.5) * 2^-32, 1 - 2^-24)`. The token of largest `weight / E` is a
    draw from the weights. Small E decide a race, and v has its finest resolution near 0.

    Returns:
        [V] float64, all positive.

    Example:
        >>> keys = race_keys(seed=7, position=12, purpose=Purpose.NEXT, vocab_size=5)
        >>> keys.shape, bool((keys > 0).all())
        (torch.Size([5]), True)
    """
    index = torch.arange((vocab_size + 3) // 4, dtype=torch.int64) + (ordinal << 24)
    word = words(seed, position, purpose, node, index).flatten()[:vocab_size]
    uniform = ((word.double() + 0.5) * 2.0**-32).clamp_max(1.0 - 2.0**-24)
    return -torch.log1p(-uniform)
