# SPDX-License-Identifier: Apache-2.0
"""What texts may lose that are decoded together, on the host."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise, zip_longest
from typing import Any

import numpy as np

from .._checks import bad_value, check_bool, check_int, check_ints, check_number, check_numbers, check_type


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
    k requests that are ahead count as what k rows fewer save in any case: the smallest of c[m] - c[m - k]
    for m from k to the most requests that there were, since in plain decoding any of them may still be there.
    A request that takes the place of one that has left takes over by how much it was ahead.

    Args:
        share: of plain decoding's time.
        least_tokens: what a text is taken to write at least, if it may write as much; >= 1.
        awaited: whether the batch is done when its slowest request is done.

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
    """

    def __init__(self, share: float = 0.03, least_tokens: int = 64, awaited: bool = True) -> None:
        self.share: float = check_number("TextCredit", "share", share, 0)
        self.least_tokens: int = check_int("TextCredit", "least_tokens", least_tokens, 1)
        check_bool("TextCredit", "awaited", awaited)
        self.awaited = awaited
        self._advanced = 0.0  # what texts got when they joined, and has not been earned yet
        self._saved: list[float] = []  # at least, by 1, 2, ... rows fewer
        self._leads: dict[Any, int] = {}  # by how many tokens each is ahead of the slowest request
        self._gone: list[int] = []  # the same of those that have left, and whose place nobody took

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
        counted = float(times[-1]) * sum(counts) / len(counts)
        worth = self._worth(times, tokens) if self.awaited else counted
        earned = self.share * worth
        repaid = min(earned / 2, self._advanced)
        self._advanced -= repaid
        return earned - repaid + worth - counted

    def _worth(self, times: np.ndarray, tokens: Mapping[Any, int]) -> float:
        """The time of plain decoding that these tokens stand for, where the batch is awaited."""
        gone = sorted([*self._gone, *(lead for key, lead in self._leads.items() if key not in tokens)])
        fresh = [key for key in tokens if key not in self._leads]
        taken: dict[Any, int] = dict(zip(fresh, gone, strict=False))
        gone = gone[len(fresh) :]
        before: list[int] = [self._leads.get(key, taken.get(key, 0)) for key in tokens]
        after = [lead + count for lead, count in zip(before, tokens.values(), strict=True)]
        least = min(after)
        self._leads = {key: lead - least for key, lead in zip(tokens, after, strict=True)}
        self._gone = [lead - least for lead in gone if lead > least]
        rows = np.array([0.0, *times[1:]])
        saved = [float(min(rows[k:] - rows[: len(rows) - k])) for k in range(1, len(rows))]
        self._saved = [min(pair) for pair in zip_longest(saved, self._saved, fillvalue=math.inf)]
        return _of_places(after + gone, self._saved) - _of_places(before + gone, self._saved)


def _times(call: str, costs: Sequence[float], requests: int) -> np.ndarray:
    """Of steps over 0, 1, ..., requests rows."""
    times = check_numbers(call, "costs", costs)
    if len(times) <= requests:
        bad_value(call, "costs", f"must have the times of up to {requests} rows", f"{len(times)} entries")
    return np.array(times[: requests + 1])


def _of_places(leads: Sequence[int], saved: Sequence[float]) -> float:
    """The worth of all places: k requests have filled as many as the k-th longest lead, and each is worth
    `saved[k - 1]`."""
    ordered = [*sorted(leads, reverse=True), 0]
    return sum(value * (lead - less) for value, (lead, less) in zip(saved, pairwise(ordered), strict=False))
