# SPDX-License-Identifier: Apache-2.0
"""How much to draft: as much as past steps predict to pay, and never more than the credit covers.

These are plain numbers and pure functions on the host. They do not depend on a model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import cast

import numpy as np

from .._checks import (
    bad_type,
    bad_value,
    check_int,
    check_ints,
    check_list,
    check_number,
    check_numbers,
    check_type,
)

BUCKETS = 8  # promises are sorted into buckets, one for each power of two of the odds
USELESS = 4  # steps in a row without a drafted node, after which a drafter is called seldom
CALLS = 0.01  # share of plain decoding's time that these calls take at most


@dataclass(frozen=True)
class Calibration:
    """Corrects the chances that a drafter gives the nodes of one request, by what was accepted before.

    Every node of a draft tree has a chance: the drafter's probability of its path, or any guess. The
    promise of a node is its chance divided by its parent's. Promises of similar size share a bucket.
    `believe` corrects a promise by the share of its bucket that was accepted. Recent steps count most.

    Args:
        promised, kept: per bucket, the decayed sum of tested promises, and that of accepted nodes.
        decay: factor on these sums per step, in (0, 1]. A draft whose failure is forgotten is tried again.
        prior: weight of the drafter's promise at first, in expected acceptances, > 0.

    Trees are sequences over nodes, parents first, with the root: `chances` have 1 for the root and 0 for
    unused nodes, like `scores.exp()` of `ngram_tree` and `grow_tree`; `parents` have -1 for the root.

    Example:
        >>> calibration, chances, parents = Calibration(), [1.0, 0.8, 0.64], [-1, 0, 1]
        >>> for _ in range(20):
        ...     calibration = calibration.after(chances, parents, path=[0, 1])
        >>> [round(chance, 2) for chance in calibration.believe(chances, parents)]
        [1.0, 0.51, 0.26]
    """

    promised: tuple[float, ...] = (0.0,) * BUCKETS
    kept: tuple[float, ...] = (0.0,) * BUCKETS
    decay: float = 0.97
    prior: float = 1.0

    def __post_init__(self) -> None:
        for name in ("promised", "kept"):
            count = len(check_numbers("Calibration", name, getattr(self, name)))
            if count != BUCKETS:
                bad_value("Calibration", name, f"must hold {BUCKETS} numbers", count)
        for name, most in (("decay", 1.0), ("prior", math.inf)):
            if not 0.0 < check_number("Calibration", name, getattr(self, name)) <= most:
                rule = "must be in (0, 1]" if name == "decay" else "must be > 0"
                bad_value("Calibration", name, rule, getattr(self, name))

    def believe(self, chances: Sequence[float], parents: Sequence[int]) -> list[float]:
        """The corrected chances. No node has a larger chance than its parent.

        Raises:
            ValueError: negative chances, parents that are no earlier nodes.
            TypeError: no sequences of numbers.
        """
        chances, parents = _checked("Calibration.believe", chances, parents)
        believed: list[float] = []
        for promise, parent in zip(_promises(chances, parents), parents, strict=True):
            kind = _kind(promise)
            share = (self.kept[kind] + self.prior) / (self.promised[kind] + self.prior)
            believed.append(1.0 if parent < 0 else believed[parent] * min(promise * share, 1.0))
        return believed

    def after(self, chances: Sequence[float], parents: Sequence[int], path: Sequence[int]) -> Calibration:
        """The calibration after a step that accepted the nodes `path` of this tree, the root included.

        Raises:
            ValueError: negative chances, parents that are no earlier nodes.
            TypeError: no sequences of numbers.
        """
        chances, parents = _checked("Calibration.after", chances, parents)
        promised = [self.decay * value for value in self.promised]
        kept = [self.decay * value for value in self.kept]
        accepted = set(check_ints("Calibration.after", "path", path, -1))
        for node, promise in enumerate(_promises(chances, parents)):
            if parents[node] in accepted and promise > 0:
                promised[_kind(promise)] += promise
                kept[_kind(promise)] += node in accepted
        return replace(self, promised=tuple(promised), kept=tuple(kept))


@dataclass(frozen=True)
class Budget:
    """Chooses the nodes that give the most tokens per second, among choices that the credit covers.

    A step over n rows of the target takes `costs[n]`. Costs are interpolated between the given sizes and
    extrapolated beyond. Drafting is paid from a credit. The credit grows by `allowance` times the time of
    plain decoding, and by the time that accepted drafts save. A choice never costs more than the credit. So
    by the cost curve a run never takes longer than `1 + allowance` times plain decoding plus the initial
    credit, however bad the drafts are. With useless drafts only a few trials are made: when calibrations
    have forgotten old failures, or after `patience` steps without a draft. `TextCredit` bounds what short
    texts and uneven batches lose.

    Args:
        costs: time of a step, by the number of rows of the target; at least for 1 row; any unit.
        credit: time that may be lost at once, in that unit; default: one step over one row. If infinite,
            every choice is affordable. If negative, it is a debt: plain decoding pays it back first.
        allowance: share of plain decoding's time that may be lost on trials.
        max_credit: upper limit of the credit, so that a good past cannot pay for many bad steps; default:
            four steps over one row.
        idle_steps: number of steps since the last one that drafted.
        patience: steps of plain decoding before a trial is made without any sign that it pays, >= 1.

    Raises:
        ValueError: numbers out of range, no time of 1 row.
        TypeError: no numbers.

    Example:
        >>> budget = Budget({1: 1.0, 4: 1.2, 16: 2.0})
        >>> budget.choose([[1.0, 0.9, 0.8, 0.05], [1.0, 0.03]])
        [[0, 1, 2], [0]]
        >>> budget = budget.after(4, [4])  # four rows brought four tokens
        >>> round(budget.credit, 2)
        3.88
    """

    costs: Mapping[int, float]
    credit: float = cast(float, None)  # if not given, set below
    allowance: float = 0.02
    max_credit: float = cast(float, None)
    idle_steps: int = 0
    patience: int = 50

    def __post_init__(self) -> None:
        check_costs("Budget", self.costs)
        for name, default, least in (("credit", 1.0, -math.inf), ("max_credit", 4.0, 0)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default * self.costs[1])
            check_number("Budget", name, getattr(self, name), least, infinite=True)
        check_number("Budget", "allowance", self.allowance, 0)
        check_int("Budget", "idle_steps", self.idle_steps, 0)
        check_int("Budget", "patience", self.patience, 1)

    def cost(self, rows: float | Sequence[float] | np.ndarray) -> np.ndarray:
        """Times of steps with the given numbers of rows.

        Raises:
            ValueError: negative rows.
            TypeError: neither a number of rows nor a sequence of them.
        """
        rows = _as_rows(rows)
        sizes = sorted(self.costs)
        times = [self.costs[size] for size in sizes]
        slope = (times[-1] - times[-2]) / (sizes[-1] - sizes[-2]) if len(sizes) > 1 else times[0]
        cost: np.ndarray = np.interp(rows, sizes, times) + max(slope, 0.0) * np.maximum(rows - sizes[-1], 0.0)
        return cost

    def choose(
        self, chances: Sequence[Sequence[float]], weights: Sequence[float] | None = None
    ) -> list[list[int]]:
        """Which nodes of each request's tree to verify, ascending, the root included.

        Args:
            chances: for each request the corrected chances of its nodes, parents first, 1 for the root, 0
                for unused nodes. No node has a larger chance than its parent.
            weights: for each request what a drafted token is worth, where a token of plain decoding is worth
                1, see `TextCredit.weights`; default: 1. What a choice may cost does not depend on it.

        Every further node adds the same cost to the step, whichever request it belongs to. So the nodes of
        all requests are taken in the order of their chances, times the weights.

        Raises:
            ValueError: negative chances or weights, weights of another number of requests.
            TypeError: no sequences of numbers.
        """
        chances = [
            check_numbers("Budget.choose", f"chances[{b}]", each)
            for b, each in enumerate(check_list("Budget.choose", "chances", chances, "sequences of numbers"))
        ]
        if weights is not None:
            weights = check_numbers("Budget.choose", "weights", weights)
            if len(weights) != len(chances):
                bad_value(
                    "Budget.choose",
                    "weights",
                    f"must have as many entries as chances, {len(chances)}",
                    len(weights),
                )
            chances = [
                [1.0, *(weight * chance for chance in each[1:])]
                for weight, each in zip(weights, chances, strict=True)
            ]
        if not chances:
            return []
        nodes = [
            (b, node) for b, tree in enumerate(chances) for node in range(1, len(tree)) if tree[node] > 0
        ]
        nodes.sort(key=lambda place: -chances[place[0]][place[1]])
        tokens = len(chances) + np.cumsum([0.0, *(chances[b][node] for b, node in nodes)])
        kept = [[0] for _ in chances]
        for b, node in nodes[: self._best(tokens, self.cost(len(chances) + np.arange(len(nodes) + 1)))]:
            kept[b].append(node)
        return [sorted(each) for each in kept]

    def depth(self, chances: Sequence[float], draft_cost: float, width: int = 1) -> int:
        """How deep to draft for one request, if every level costs the drafter `draft_cost`.

        Args:
            chances: the expected number of accepted tokens at depth 1, 2, ..., which is the share of steps
                that accept a token there.
            draft_cost: time of a level, in the unit of `costs`.
            width: number of nodes per level.

        Raises:
            ValueError: negative numbers, a width below 1.
            TypeError: no numbers.
        """
        chances = check_numbers("Budget.depth", "chances", chances)
        draft_cost = check_number("Budget.depth", "draft_cost", draft_cost, 0)
        width = check_int("Budget.depth", "width", width, 1)
        levels = np.arange(len(chances) + 1)
        tokens = 1.0 + np.cumsum([0.0, *chances])
        return self._best(tokens, self.cost(1 + width * levels) + draft_cost * levels)

    def worth_drafting(self, requests: int, drafting: float) -> bool:
        """Whether to call a drafter before a step of this many requests, if the call takes the time
        `drafting`.

        The credit has to cover the call and a row of what it drafts. If no node was drafted of late,
        only so many calls are made that they take 1 % of the time of plain decoding.

        Raises:
            ValueError: no request, negative numbers.
            TypeError: no numbers.
        """
        requests = check_int("Budget.worth_drafting", "requests", requests, 1)
        drafting = check_number("Budget.worth_drafting", "drafting", drafting, 0)
        plain, more = self.cost([requests, requests + 1]).tolist()
        if drafting + more - plain > self.credit:
            return False
        rest = max(math.ceil(drafting / (CALLS * plain)), 1)
        return self.idle_steps < USELESS or self.idle_steps % rest == 0

    def after(self, rows: int, tokens: Sequence[int], drafting: float = 0.0) -> Budget:
        """The budget after a step over `rows` rows, with the tokens that it emitted for each request and the
        time of `drafting`, or any other that the costs do not tell.

        Raises:
            ValueError: negative rows or tokens.
            TypeError: no numbers.
        """
        rows = check_int("Budget.after", "rows", rows, 0)
        tokens = check_ints("Budget.after", "tokens", tokens, 0)
        drafting = check_number("Budget.after", "drafting", drafting)
        if not tokens:
            return self
        plain = float(self.cost(len(tokens))) * sum(tokens) / len(tokens)
        credit = self.credit + (1.0 + self.allowance) * plain - float(self.cost(rows)) - drafting
        idle_steps = self.idle_steps + 1 if rows <= len(tokens) else 0
        return replace(self, credit=min(credit, self.max_credit), idle_steps=idle_steps)

    def _best(self, tokens: np.ndarray, costs: np.ndarray) -> int:
        """The choice with the most tokens per time among those that the credit covers. The first choice is
        plain decoding. After `patience` steps of it, the best of the other choices is taken."""
        rates = np.where(costs - costs[0] <= self.credit, tokens / costs, 0.0)
        if self.idle_steps >= self.patience and rates[1:].any():
            return 1 + int(np.argmax(rates[1:]))
        return int(np.argmax(rates))


def check_costs(call: str, costs: Mapping[int, float]) -> None:
    """Raise unless these are times of steps by their numbers of rows, that of 1 row among them."""
    check_type(call, "costs", costs, Mapping, "a mapping of rows to times")
    for size in costs:
        check_number(call, "rows in costs", size, 1)
        check_number(call, f"costs[{size}]", costs[size])
    if 1 not in costs or min(costs.values()) <= 0:
        bad_value(call, "costs", "must hold positive times of 1 row and of more", dict(costs))


def _checked(
    operation: str, chances: Sequence[float], parents: Sequence[int]
) -> tuple[list[float], list[int]]:
    """A tree, parents first."""
    chances = check_numbers(operation, "chances", chances)
    parents = check_ints(operation, "parents", parents, -1)
    if len(parents) != len(chances):
        rule = f"must have as many entries as chances, {len(chances)}"
        bad_value(operation, "parents", rule, len(parents))
    for node, parent in enumerate(parents):
        if parent >= node:
            bad_value(operation, "parents", "must be -1 or earlier nodes", f"{parent} at node {node}")
    return chances, parents


def _as_rows(rows: object) -> np.ndarray:
    """One or several numbers of rows, checked."""
    if isinstance(rows, np.ndarray):
        if rows.dtype.kind not in "iuf":
            bad_type("Budget.cost", "rows", "must hold numbers", rows.dtype)
        if not (rows >= 0).all():
            bad_value("Budget.cost", "rows", "must be >= 0", rows.min())
        return rows.astype(float)
    if isinstance(rows, Real):
        return np.asarray(check_number("Budget.cost", "rows", rows, 0))
    return np.array(check_numbers("Budget.cost", "rows", rows), dtype=float)


def _promises(chances: Sequence[float], parents: Sequence[int]) -> list[float]:
    """The chance of every node, given that its parent was accepted."""
    above = (chances[parent] if parent >= 0 else 1.0 for parent in parents)
    return [chance / least if least > 0 else 0.0 for chance, least in zip(chances, above, strict=True)]


def _kind(promise: float) -> int:
    """The bucket of a promise, by the logarithm of its odds."""
    odds = min(max(promise, 1e-6), 1.0 - 1e-6)
    kind = BUCKETS // 2 + round(math.log2(odds / (1.0 - odds)))
    return min(max(kind, 0), BUCKETS - 1)
