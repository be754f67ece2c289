# SPDX-License-Identifier: Apache-2.0
"""Where one request ends: its stop tokens and limits, and what becomes of them after a step."""

from __future__ import annotations

import math
from typing import NamedTuple

from .._ops.calls import VerifyCall
from ..ends import Finish


class Ending(NamedTuple):
    """The stop tokens of a request, how many more tokens it may emit, and whether it has ended."""

    stops: frozenset[int] = frozenset()
    limit: float = math.inf
    finished: bool = False

    def at(self, depth: int, token: int) -> bool:
        """Whether no token may follow a node of this depth and token; depth 0 is the root."""
        return (self.finished and depth == 0) or depth >= self.limit or (depth > 0 and token in self.stops)


def ending(call: VerifyCall, request: int) -> Ending:
    """That of a request before the step."""
    stops = () if call.stop_tokens is None else call.stop_tokens[request].tolist()
    lefts = [int(left[request]) for left in (call.new_tokens_left, call.context_left) if left is not None]
    finished = call.finished is not None and bool(call.finished[request])
    return Ending(frozenset(stops), min(lefts, default=math.inf), finished)


def finish(call: VerifyCall, request: int, emitted: list[int], drafted: bool) -> None:
    """Say why a request that had not ended ends with these tokens, and lower what is left to it.

    `drafted`: the last token was a drafted one.
    """
    if call.out_finish is None:
        return
    reason = Finish(0)
    if emitted and emitted[-1] in ending(call, request).stops:
        reason |= Finish.STOP
    for left, bit in ((call.new_tokens_left, Finish.LENGTH), (call.context_left, Finish.CONTEXT)):
        if left is not None:
            left[request] -= len(emitted)
            if left[request] <= 0:
                reason |= bit
    if call.finished is not None and reason:
        call.finished[request] = 1
    call.out_finish[request] = reason | (Finish.DRAFTED if drafted else 0)
