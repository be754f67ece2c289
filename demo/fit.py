# SPDX-License-Identifier: Apache-2.0
"""How much of the demo fits into a time, on a machine of any speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

LENGTHS = (96, 64, 48, 32)  # tokens of an answer
ROUNDS = 3
Key = TypeVar("Key")


def answer_length(seconds: float, per_token: float, answers: int) -> int:
    """The longest answers that can be written in every round within some seconds, if drafts gain nothing.

    `per_token` is the time of a token in plain decoding, `answers` are those of a round, of all ways. The
    shortest are returned where none can: `Schedule` then leaves rounds and prompts out.
    """
    fitting = [length for length in LENGTHS if ROUNDS * answers * length * per_token <= seconds]
    return max(fitting, default=min(LENGTHS))


class Schedule:
    """Gives out work while there is time for it.

    A piece begins if one as long as the longest so far would end in time. The first one always begins.
    """

    def __init__(self, end: float, clock: Callable[[], float] = time.perf_counter):
        self.end = end
        self.clock = clock

    def left(self) -> float:
        return max(self.end - self.clock(), 0.0)

    def rounds(self, keys: Sequence[Key], count: int) -> Iterator[tuple[int, Key]]:
        """Every key in every round, in order."""
        longest = 0.0
        for number in range(count):
            for key in keys:
                start = self.clock()
                if longest > self.end - start:
                    return
                yield number, key
                longest = max(longest, self.clock() - start)
