# SPDX-License-Identifier: Apache-2.0
"""How much of what was drafted is worth a place in the step."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

import specdec_kernels as sdk

from .tree import Tree

if TYPE_CHECKING:
    from ..engine import Request

SHARE = 0.02  # of plain decoding's time that a text may lose, beside errors of measuring
TRIAL = 0.5  # share of the credit that a step may lose
MOST_CREDIT = 8.0  # steps over one row
RECENT = 9  # times of drafting that are remembered
RETRIED = 0.01  # share of the time that drafts may take which did not seem worth it
SLOTS = 64  # requests at once from whose drafts is learned
MOST_ROWS = 512  # of a step, where nothing else is said
Drafter = Callable[[Sequence[Sequence[int]]], Sequence[Tree]]  # from texts to a tree for each


class SharedBudget:
    """Trees for a whole batch: the nodes that are expected to bring the most tokens per second.

    Step_costs is the duration of a step by the number of rows it feeds to the model. What became of a draft
    is read off its request's text in the next step.
    """

    def __init__(self, drafter: Drafter, step_costs: Mapping[int, float], max_rows: int = MOST_ROWS):
        self.drafter = drafter
        start = sdk.Budget(step_costs, credit=0.0, allowance=0.0, max_credit=MOST_CREDIT)
        self.budget = sdk.BatchBudget(start, SLOTS, max_rows, device="cpu")
        self.text_credit = sdk.TextCredit(SHARE)
        self.slots: dict[Request, int] = {}
        self.drafted: list[tuple[Request, int, Tree]] = []  # with what each had written then
        self.selected: sdk.SelectedNodes | None = None

    def __call__(self, requests: Sequence[Request]) -> list[Tree]:
        self._learn()
        self._welcome(requests)
        self.text_credit.awaited = not requests[0].followed
        drafts = self._drafts(requests)
        trees = self._select(requests, drafts) if any(len(tree.tokens) > 1 for tree in drafts) else [*drafts]
        self.drafted = [(r, len(r.tokens), tree) for r, tree in zip(requests, trees, strict=True)]
        return trees

    def _select(self, requests: Sequence[Request], drafts: Sequence[Tree]) -> list[Tree]:
        """The nodes that are worth their places. What a step may lose is half of the credit, so that there
        are several trials."""
        sizes = [0, *(len(tree.tokens) for tree in drafts)]
        tree = sdk.DraftTree.from_parents(
            torch.tensor([token for tree in drafts for token in tree.tokens]),
            torch.tensor([parent for tree in drafts for parent in tree.parents], dtype=torch.int32),
            ends := torch.tensor(sizes).cumsum(0).int(),
            proposals=sdk.Proposal.POINT,
            max_nodes=max(sizes),
            check=False,
        )
        left = {request: request.max_new_tokens - len(request.tokens) for request in requests}
        self.budget.credit *= TRIAL
        self.selected = self.budget.select(
            tree,
            torch.tensor([chance for tree in drafts for chance in tree.chances]).log(),
            slots=torch.tensor([self.slots[request] for request in requests]),
            weights=torch.tensor(self.text_credit.weights(left)),
        )
        self.budget.credit /= TRIAL
        rows, kept = self.selected.rows.tolist(), self.selected.tree.cu_nodes.tolist()
        return [
            draft.keep([row - first for row in rows[start:end]])
            for draft, first, (start, end) in zip(drafts, ends.tolist(), pairwise(kept), strict=False)
        ]

    def _drafts(self, requests: Sequence[Request]) -> Sequence[Tree]:
        return self.drafter([request.context for request in requests])

    def _welcome(self, requests: Sequence[Request]) -> None:
        """Give each new request a slot, and the budget the credit that its text brings."""
        fresh = [request for request in requests if request not in self.slots]
        self.slots = {request: self.slots[request] for request in requests if request in self.slots}
        if not fresh:
            return
        free = sorted(set(range(SLOTS)) - set(self.slots.values()))
        free += [SLOTS] * len(fresh)  # outside the slots: nothing is learned
        self.slots |= dict(zip(fresh, free, strict=False))
        self.budget.reset_(torch.tensor([self.slots[request] for request in fresh]))
        tokens = [request.max_new_tokens for request in fresh]
        self.budget.credit += self.text_credit.join(self._costs(len(requests)), tokens, len(requests))

    def _costs(self, rows: int) -> list[float]:
        """Times of steps over up to so many rows."""
        return self.budget.costs[: rows + 1].tolist()

    def _learn(self) -> None:
        if not self.drafted:
            return
        paths, counts = [], []
        for request, before, tree in self.drafted:
            written = request.tokens[before:]
            paths.append(tree.path(written))
            counts.append(len(written))
        brought = {request: count for (request, _, _), count in zip(self.drafted, counts, strict=True)}
        self.budget.credit += self.text_credit.after(self._costs(len(counts)), brought)
        if self.selected is None:  # a plain step
            self.budget.idle_steps += 1
            return
        width = max(map(len, paths))
        path = torch.tensor([[*each, *[-1] * (width - len(each))] for each in paths], dtype=torch.int32)
        tokens = torch.tensor(counts, dtype=torch.int32)
        status = torch.zeros_like(tokens)
        self.budget.update_(self.selected, sdk.Verified(path.long(), tokens, tokens - 1, path, None, status))
        self.selected = None


class LearnedBudget(SharedBudget):
    """The same, where the costs are learned from the steps. Drafting is paid for, too: while it is not worth
    its own time, it rests. Batches may follow each other, which inherit neither credit nor times."""

    def __init__(
        self, drafter: Drafter, curve: sdk.CostCurve, clock: Callable[[], float] = time.perf_counter
    ):
        super().__init__(drafter, curve.costs(), curve.max_rows)
        self.curve = curve
        self.clock = clock
        self.recent: deque[float] = deque(maxlen=RECENT)  # seconds of drafting
        self.seconds = 0.0  # their median
        self.calls = self.rested = 0  # of the drafter, and steps without one since the last
        self.step = self.curve.seconds(1)
        self.rests = False
        self.batch, self.least = 0, 0.0  # requests of the last step, and the credit that drafting needs

    def __call__(self, requests: Sequence[Request]) -> list[Tree]:
        start = self.clock()
        trees = super().__call__(requests)
        spent = self.clock() - start
        if self.rests:
            self._forget()
        else:
            self.calls, self.rested = self.calls + 1, 0
            if self.calls > 1:  # the first one of all is often slow
                self.recent.append(spent)
                self.seconds = statistics.median_low(self.recent)
        self.budget.credit -= min(spent, self.seconds) / self.step
        return trees

    def _forget(self) -> None:
        """Drafting may be faster than it was: try again, when that is `RETRIED` of the time of all steps."""
        self.rested += 1
        if self.rested * RETRIED * self.step > self.seconds:
            self.recent.clear()
            self.seconds = self.least = 0.0

    def observe(self, rows: int, seconds: float) -> None:
        """Learn from the time of the step over these trees. What it took beyond the expected is not charged,
        nor what drafting took beyond its median: with so small an allowance one hiccup of the machine would
        end all drafts of a text."""
        self.curve.observe(min(rows, self.curve.max_rows), seconds)

    def _welcome(self, requests: Sequence[Request]) -> None:
        if not any(request in self.slots for request in requests):
            self.text_credit = sdk.TextCredit(SHARE)
            self.budget.credit.zero_()
            self.budget.idle_steps.zero_()
            self.recent.clear()
            self.seconds, self.rests = 0.0, False
        super()._welcome(requests)

    def _drafts(self, requests: Sequence[Request]) -> Sequence[Tree]:
        """Roots alone where drafting is not worth its time, or where nobody knows whether steps with drafts
        are faster than one without them. Without credit nothing else is asked, since that takes time, too."""
        batch, rows = len(requests), sum(len(tree.tokens) for _, _, tree in self.drafted)
        if self.rests and batch == self.batch and float(self.budget.credit) < self.least:
            return no_drafts(requests)
        self.curve.write_(self.budget.costs)
        self.batch, self.step = batch, self.curve.seconds(1)
        pace = self.text_credit.pace
        doubtful = rows > len(self.drafted) and self.curve.doubts(rows, min(batch, rows), pace)
        time = self.seconds / self.step
        plain, more = self.budget.costs[batch : batch + 2].tolist()
        self.least = time + more - plain
        self.rests = doubtful or not self.budget.worth_drafting(batch, time)
        return no_drafts(requests) if self.rests else super()._drafts(requests)


def no_drafts(requests: Sequence[Request]) -> list[Tree]:
    """Roots alone: plain decoding."""
    return [Tree(request.context[-1:], [-1], [1.0]) for request in requests]
