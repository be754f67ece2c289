# SPDX-License-Identifier: Apache-2.0
"""The random decisions of one request."""

from __future__ import annotations

import torch
from torch import Tensor

from .._random import Purpose, coin, race_keys
from .law import first


class Noise:
    """Makes the random decisions of one request, keyed by its seed and the position of its first new token.

    The reference makes no other random decision, so a subclass can enumerate all outcomes.
    """

    def __init__(self, seed: int, position: int) -> None:
        self.seed = seed
        self.position = position

    def accepts(self, node: int, p: float, q: float = 1.0) -> bool:
        """True with probability `min(1, p / q)`: whether `u * q < p` for the node's coin u in (0, 1)."""
        return coin(self.seed, self.position, node) * q < p

    def first(self, node: int, bars: list[float], scale: float) -> int:
        """The first of these ascending bars that `u * scale` is below, for the node's coin u; their number if
        it is below none."""
        u = coin(self.seed, self.position, node)
        return next((i for i, bar in enumerate(bars) if u * scale < bar), len(bars))

    def draw(self, weights: Tensor, purpose: Purpose, depth: int) -> int:
        """A token drawn from `weights` for the absolute position `depth` after the first new token's.

        The exponential race: the largest weight over key wins, ties to the lowest index.
        """
        keys = race_keys(self.seed, self.position + depth, purpose, weights.numel())
        race = torch.where(weights > 0, weights / keys, -1.0)
        return first(race == race.max())

    def race(
        self, weights: Tensor, count: int, purpose: Purpose, node: int = 0, ordinal: int = 0
    ) -> list[int]:
        """The first finishers of an exponential race, at most `count`: draws without replacement."""
        keys = race_keys(self.seed, self.position, purpose, weights.numel(), node, ordinal)
        order = (weights / keys).argsort(descending=True, stable=True)[:count]
        return order[weights[order] > 0].tolist()
