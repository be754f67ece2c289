# SPDX-License-Identifier: Apache-2.0
"""What texts may lose that are decoded together, on the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .._checks import bad_value, check_bool, check_int, check_ints, check_number, check_numbers, check_type

HASTE = 4  # the power of a request's share of the most steps left
RECENT = 0.9  # of the pace so far, after a step


class TextCredit:
    """The credit that texts bring to a budget: drafts may lose `share` of the time that plain decoding takes
    for them, wherever those end that have `least_tokens` or more.

    A text may end long before its largest length. So its credit does not depend on that length beyond
    `least_tokens`. Half of the share of these is there when the text joins, the other half is earned by
    writing them, and the share of all further tokens by writing those. A text that ends earlier may lose more
    than the share. With few of them drafts begin late, where steps over more rows cost much.

    `Budget.after` and `BatchBudget.update_` count every token of n requests as 1 / n of a plain step. This is
    right where other requests wait for the place of each. Where a batch is awaited, it is too much for
    tokens that some requests have and others lack: plain decoding makes the step for the others anyway, and
    saves only rows. So a step is counted when the slowest request has made it, too. Until then, the tokens of
    k requests that are ahead count as the k cheapest rows of the steps that plain decoding would still make,
    which are over those of the batch and those that have left ahead of the slowest one: where the cost of
    n rows is c[n], the n-th row costs c[n] - c[n - 1]. A request that takes the place of one that has left
    takes over by how much it was ahead.

    Drafts for requests that end early save no step of an awaited batch. `weights` says what a token of each
    is worth by the steps that it has left.

    Args:
        share: of plain decoding's time.
        least_tokens: what a text is taken to write at least, if it may write as much; >= 1.
        awaited: whether the batch is done when its slowest request is done. An attribute, which may change
            between steps: False while other requests wait for the places.

    Raises:
        ValueError: a negative share, no tokens.
        TypeError: wrong types.

    Notes:
        Deterministic. The budget beside it has no credit and no allowance of its own.

    Example:
        >>> credit, costs = TextCredit(share=0.03, least_tokens=16), [0.0, 1.0, 1.2]
        >>> round(credit.join(costs, [64, 64], requests=2), 3)  # of 8 steps over two rows
        0.288
        >>> round(credit.after(costs, {"a": 1, "b": 1}), 3)  # half of the share of this step
        0.018
        >>> credit = TextCredit(share=0.0)
        >>> round(credit.after(costs, {"a": 5, "b": 1}), 3)  # 4 rows of "a" are saved, not 2 steps
        -1.6
        >>> round(credit.after(costs, {"a": 1, "b": 5}), 3)  # now 4 steps are
        1.6
        >>> [round(weight, 2) for weight in credit.weights({"a": 10, "b": 20})]
        [0.07, 1.0]
    """

    def __init__(self, share: float = 0.03, least_tokens: int = 64, awaited: bool = True) -> None:
        self.share: float = check_number("TextCredit", "share", share, 0)
        self.least_tokens: int = check_int("TextCredit", "least_tokens", least_tokens, 1)
        check_bool("TextCredit", "awaited", awaited)
        self.awaited = awaited
        self._advanced = 0.0  # what texts got when they joined, and has not been earned yet
        self._times: list[float] = [0.0]  # of steps over 0, 1, ... rows, the last that were given
        self._value = 0.0  # what was counted for those that are ahead
        self._leads: dict[Any, int] = {}  # by how many tokens each is ahead of the slowest request
        self._gone: list[int] = []  # the same of those that have left, and whose place nobody took
        self._pace: dict[Any, float] = {}  # tokens of each request in a step, of late
        self._last = 1.0  # tokens of a request in the last step

    @property
    def pace(self) -> float:
        """Tokens of a request in a step, of late or in the last step, whichever is more; 1 before any."""
        return max(self._last, sum(self._pace.values()) / max(len(self._pace), 1))

    def weights(self, tokens_left: Mapping[Any, float]) -> list[float]:
        """What a drafted token of each request is worth, for `Budget.choose` and `BatchBudget.select`.

        Args:
            tokens_left: for each request how many tokens it may still write.

        Returns:
            1 for the requests that have the most steps left by their pace, and less for those that will be
            done sooner: the fourth power of the ratio of steps left. Without `awaited`, 1 for all.

        Raises:
            ValueError: negative numbers.
            TypeError: no mapping of requests to numbers.
        """
        call = "TextCredit.weights"
        check_type(call, "tokens_left", tokens_left, Mapping, "a mapping of requests to numbers of tokens")
        steps = [
            check_number(call, f"tokens_left[{key!r}]", left, 0) / max(self._pace.get(key, 1.0), 1.0)
            for key, left in tokens_left.items()
        ]
        most = max(steps, default=0.0)
        return [(each / most) ** HASTE if self.awaited and most else 1.0 for each in steps]

    def join(self, costs: Sequence[float], tokens: Sequence[int], requests: int) -> float:
        """What to add to the credit when texts join a batch.

        Args:
            costs: at index n the time of a step over n rows, for n up to `requests`.
            tokens: for each text that joins its largest number of tokens.
            requests: number of texts in the batch, with those that join.

        Raises:
            ValueError: costs of fewer rows than requests, numbers out of range.
            TypeError: no numbers.
        """
        call = "TextCredit.join"
        requests = check_int(call, "requests", requests, 1)
        tokens = check_ints(call, "tokens", tokens, 0)
        step = float(_times(call, costs, requests)[requests])
        credit = self.share / 2 * step * sum(min(each, self.least_tokens) for each in tokens) / requests
        self._advanced += credit
        return credit

    def after(self, costs: Sequence[float], tokens: Mapping[Any, int]) -> float:
        """What to add to the credit after a step, beside what `Budget.after` or `BatchBudget.update_` adds.

        Add it before, since these hold the credit below its upper limit: as `drafting` of `Budget.after`,
        negative, or to `BatchBudget.credit`.

        Args:
            costs: at index n the time of a step over n rows, for n up to the number of requests.
            tokens: how many tokens the step emitted for each request that took part. Requests that are not
                named have left.

        Returns:
            The share of what plain decoding would have taken, without what was advanced, and the
            difference of what these tokens are worth to what they count. It is often negative.

        Raises:
            ValueError: costs of fewer rows than requests, negative numbers.
            TypeError: no numbers, no mapping.
        """
        call = "TextCredit.after"
        check_type(call, "tokens", tokens, Mapping, "a mapping of requests to numbers of tokens")
        counts = [check_int(call, f"tokens[{key!r}]", count, 0) for key, count in tokens.items()]
        times = _times(call, costs, len(counts))
        if not counts:
            return 0.0
        self._last = sum(counts) / len(counts)
        self._pace = {
            key: RECENT * self._pace.get(key, 1.0) + (1.0 - RECENT) * count for key, count in tokens.items()
        }
        counted = float(times[-1]) * sum(counts) / len(counts)
        worth = self._worth(times, tokens) if self.awaited else counted
        earned = self.share * worth
        repaid = min(earned / 2, self._advanced)
        self._advanced -= repaid
        return earned - repaid + worth - counted

    def _worth(self, times: np.ndarray, tokens: Mapping[Any, int]) -> float:
        """The time of plain decoding that these tokens stand for, where the batch is awaited."""
        gone = sorted([*self._gone, *(lead for key, lead in self._leads.items() if key not in tokens)])
        gone = [lead for lead in gone if lead > 0]
        fresh = [key for key in tokens if key not in self._leads]
        leads = self._leads | dict(zip(fresh, gone, strict=False))
        gone = gone[len(fresh) :]
        after = [leads.get(key, 0) + count for key, count in tokens.items()]
        least = min(after)
        self._times[: len(times)] = [0.0, *times[1:]]
        value = self._worth_of([*after, *gone])
        self._leads = {key: lead - least for key, lead in zip(tokens, after, strict=True)}
        self._gone = [lead - least for lead in gone if lead > least]
        before, self._value = self._value, self._worth_of([*self._leads.values(), *self._gone])
        return value - before

    def _worth_of(self, leads: Sequence[int]) -> float:
        """What plain decoding saves at least for requests that are ahead: the longest lead saves the cheapest
        row of each step, the next one the second cheapest."""
        rows = sorted(np.diff(self._times[: len(leads) + 1]).tolist())
        return sum(row * lead for row, lead in zip(rows, sorted(leads, reverse=True), strict=True))


def _times(call: str, costs: Sequence[float], requests: int) -> np.ndarray:
    """Of steps over 0, 1, ..., requests rows."""
    times = check_numbers(call, "costs", costs)
    if len(times) <= requests:
        bad_value(call, "costs", f"must have the times of up to {requests} rows", f"{len(times)} entries")
    return np.array(times[: requests + 1])
