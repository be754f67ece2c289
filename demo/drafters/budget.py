# SPDX-License-Identifier: Apache-2.0
"""How much of what was drafted is worth a place in the step."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import specdec_kernels as sdk

from .tree import Tree

if TYPE_CHECKING:
    from ..engine import Request

SHARE = 0.02  # of plain decoding's time that a text may lose, beside errors of measuring
ADVANCE = 64  # tokens at most whose share a text may lose from the start
DOUBT = 0.1  # about the cost of a step without drafts, from which on one is made
RECENT = 9  # times of drafting that are remembered
HASTE = 4  # how much more a token of the slowest request is worth: the power of the ratio of steps left
Drafter = Callable[[Sequence[Sequence[int]]], Sequence[Tree]]  # from texts to a tree for each


class SharedBudget:
    """Trees for a whole batch: the nodes that are expected to bring the most tokens per second.

    Step_costs is the duration of a step by the number of rows it feeds to the model. What became of a draft
    is read off its request's text in the next step.
    """

    def __init__(self, drafter: Drafter, step_costs: Mapping[int, float]):
        self.drafter = drafter
        self.budget = sdk.Budget(step_costs, credit=0.0, allowance=SHARE / 2)
        self.calibrations: dict[Request, sdk.Calibration] = {}
        self.pace: dict[Request, float] = {}  # tokens per step
        self.drafted: list[tuple[Request, int, Tree]] = []  # with what each had written then
        self.extra = 0.0  # what the last step cost beside its rows

    def __call__(self, requests: Sequence[Request]) -> list[Tree]:
        self._learn()
        self._welcome([request for request in requests if request not in self.calibrations], len(requests))
        fresh = sdk.Calibration()
        self.calibrations = {request: self.calibrations.get(request, fresh) for request in requests}
        self.pace = {request: self.pace.get(request, 1.0) for request in requests}
        trees = self._trees(requests)
        self.drafted = [(r, len(r.tokens), tree) for r, tree in zip(requests, trees, strict=True)]
        return trees

    def _welcome(self, requests: Sequence[Request], batch: int) -> None:
        """Each text brings half of what it may lose. The rest is earned by writing it."""
        tokens = sum(min(request.max_new_tokens / 2, ADVANCE) for request in requests)
        credit = SHARE * tokens * float(self.budget.cost(batch)) / batch
        self.budget = replace(self.budget, credit=self.budget.credit + credit)

    def _trees(self, requests: Sequence[Request]) -> list[Tree]:
        trees = self.drafter([request.context for request in requests])
        chances = [
            [
                1.0,
                *(worth * chance for chance in self.calibrations[r].believe(tree.chances, tree.parents)[1:]),
            ]
            for r, tree, worth in zip(requests, trees, self._worth(requests), strict=True)
        ]
        return [tree.keep(nodes) for tree, nodes in zip(trees, self.budget.choose(chances), strict=True)]

    def _worth(self, requests: Sequence[Request]) -> list[float]:
        """What a token of each request is worth. Where others wait, a request that is done sooner makes place
        for them. Where nobody waits, all are done when the slowest is, and the others gain nothing."""
        if requests[0].followed:
            return [1.0] * len(requests)
        left = [(r.max_new_tokens - len(r.tokens)) / self.pace[r] for r in requests]
        return [(steps / max(left)) ** HASTE for steps in left]

    def _learn(self) -> None:
        for request, before, tree in self.drafted:
            written = request.tokens[before:]
            self.pace[request] = 0.9 * self.pace[request] + 0.1 * len(written)
            path = tree.path(written)
            self.calibrations[request] = self.calibrations[request].after(tree.chances, tree.parents, path)
        self.budget = self.budget.after(
            sum(len(tree.tokens) for _, _, tree in self.drafted),
            [len(request.tokens) - before for request, before, _ in self.drafted],
            self.extra,
        )


class LearnedBudget(SharedBudget):
    """The same, where the costs are learned from the steps. Drafting is paid for, too: while it is not worth
    its own time, it rests."""

    def __init__(
        self, drafter: Drafter, curve: sdk.CostCurve, clock: Callable[[], float] = time.perf_counter
    ):
        super().__init__(drafter, curve.costs())
        self.curve = curve
        self.clock = clock
        self.recent: deque[float] = deque(maxlen=RECENT)  # seconds of drafting
        self.seconds = 0.0  # their median

    def __call__(self, requests: Sequence[Request]) -> list[Tree]:
        start = self.clock()
        trees = super().__call__(requests)
        self.extra = min(self.clock() - start, self.seconds) / self.curve.seconds(1)
        return trees

    def observe(self, rows: int, seconds: float) -> None:
        """Learn from the time of the step over these trees. What it took beyond the expected is not charged,
        nor what drafting took beyond its median: with so small an allowance one hiccup of the machine would
        end all drafts of a text."""
        self.curve.observe(min(rows, self.curve.max_rows), seconds)

    def _trees(self, requests: Sequence[Request]) -> list[Tree]:
        if self._rests(len(requests)):
            return [_root(request) for request in requests]
        start = self.clock()
        self.budget = replace(self.budget, costs=self.curve.costs())  # takes as long as drafting
        trees = super()._trees(requests)
        self.recent.append(self.clock() - start)
        self.seconds = statistics.median_low(self.recent)
        return trees

    def _rests(self, batch: int) -> bool:
        """Whether to draft nothing: if it is not worth its time, or if steps with drafts have gone on for so
        long that nobody knows any more what one without them costs."""
        rows = min(sum(len(tree.tokens) for _, _, tree in self.drafted), self.curve.max_rows)
        doubtful = rows > len(self.drafted) and self.curve.error(rows, min(batch, rows)) > DOUBT
        return doubtful or not self.budget.worth_drafting(batch, self.seconds / self.curve.seconds(1))


def _root(request: Request) -> Tree:
    return Tree(request.context[-1:], [-1], [1.0])


def no_drafts(requests: Sequence[Request]) -> list[Tree]:
    """Roots alone: plain decoding."""
    return [_root(request) for request in requests]
