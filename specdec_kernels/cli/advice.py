# SPDX-License-Identifier: Apache-2.0
"""What speculation can gain, from acceptance and costs: arithmetic on the host, no measurement."""

from __future__ import annotations

import heapq
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..drafting import Budget

MOST_DEPTH = 64


@dataclass(frozen=True)
class Draft:
    """The best tree of a number of drafted tokens, and what a step with it gives."""

    parents: tuple[int, ...]
    """Of the drafted nodes, -1 = the root; parents come first."""
    depth: int
    """Passes of the drafter."""
    tokens: float
    """Expected tokens of a step, the next token included."""
    cost: float
    """Of a step, in steps of plain decoding."""

    @property
    def speedup(self) -> float:
        return self.tokens / self.cost

    @property
    def shape(self) -> str:
        """`chain of 4`, or nodes by depth: `tree 2+2+1`."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent < 0 else depths[parent] + 1)
        if len(set(depths)) == len(depths):
            return f"chain of {self.depth}" if depths else "no draft"
        return "tree " + "+".join(str(depths.count(depth)) for depth in range(1, self.depth + 1))


def best_drafts(
    ranks: Sequence[float], draft_cost: float, costs: Mapping[int, float], max_nodes: int, max_depth: int
) -> list[Draft]:
    """The fastest draft of 0, 1, ... `max_nodes` tokens, if acceptance is alike at every node.

    Args:
        ranks: at index i, the probability that verification keeps the drafter's i-th guess at a node, where
            the node is reached. They add up to at most 1.
        draft_cost: time of a pass of the drafter, one depth, in steps of plain decoding.
        costs: time of a step of the target by its rows (drafted tokens and the root), in any unit.
        max_nodes: most drafted tokens.
        max_depth: longest path.

    Returns:
        At index n, the draft of n tokens; fewer where no more have a chance.

    Example:
        >>> best = best_drafts([0.7, 0.1], 0.05, {1: 1.0, 8: 1.1}, max_nodes=7, max_depth=8)
        >>> best[3].shape, round(best[3].tokens, 3), best[7].shape
        ('chain of 3', 2.533, 'tree 2+3+1+1')
    """
    by_depth = [likeliest(ranks, draft_cost, costs, max_nodes, depth) for depth in range(1, max_depth + 1)]
    return [
        max((found[n] for found in by_depth if n < len(found)), key=lambda draft: draft.speedup)
        for n in range(max(map(len, by_depth)))
    ]


def likeliest(
    ranks: Sequence[float], draft_cost: float, costs: Mapping[int, float], max_nodes: int, max_depth: int
) -> list[Draft]:
    """As `best_drafts`, with the likeliest nodes down to `max_depth`, whatever their depth costs.

    Notes:
        The tree of n nodes has the n likeliest paths, which are found one after the other: a path's
        probability is the product of its nodes'. With one rank it is a chain.
    """
    target = Budget(costs)
    one = float(target.cost(1))
    found = [Draft((), 0, 1.0, 1.0)]
    parents: list[int] = []
    depths: list[int] = []
    tokens = 1.0
    waiting = [(-share, 0, -1, 0, 1.0) for share in ranks[:1] if share > 0]
    made = 0  # candidates; the earlier of two that are alike comes first
    while waiting and len(parents) < max_nodes:
        negative, _, parent, rank, above = heapq.heappop(waiting)
        path, node = -negative, len(parents)
        depth = 1 if parent < 0 else depths[parent] + 1
        parents.append(parent)
        depths.append(depth)
        tokens += path
        candidates = [(above, parent, rank + 1)]
        if depth < max_depth:
            candidates.append((path, node, 0))
        for over, under, place in candidates:
            if place < len(ranks) and ranks[place] > 0:
                made += 1
                heapq.heappush(waiting, (-over * ranks[place], made, under, place, over))
        cost = max(depths) * draft_cost + float(target.cost(1 + len(parents))) / one
        found.append(Draft(tuple(parents), max(depths), tokens, cost))
    return found


def break_even(draft_cost: float, costs: Mapping[int, float], depth: int) -> float | None:
    """The acceptance of every token at which a chain of `depth` is as fast as plain decoding; None where even
    full acceptance is slower.

    Example:
        >>> round(break_even(0.1, {1: 1.0, 8: 1.0}, 4), 3)
        0.287
    """

    def gain(acceptance: float) -> float:
        chain = likeliest([acceptance], draft_cost, costs, depth, depth)
        return chain[-1].speedup - 1 if len(chain) == depth + 1 else -1.0

    low, high = 0.0, 1.0
    if gain(high) < 0:
        return None
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if gain(middle) < 0 else (low, middle)
    return high


def acceptance_of(text: str) -> tuple[list[int], list[int]]:
    """How many steps tested and accepted a draft at each depth, from a trace.

    Args:
        text: a line for each step of a request: accepted and drafted tokens, as `2 4`, or as JSON with
            `accepted` and `drafted`.

    Raises:
        ValueError: a line that is neither, or more accepted than drafted.

    Example:
        >>> acceptance_of('2 4\\n0 4\\n{"accepted": 1, "drafted": 1}')
        ([3, 1, 1], [2, 1, 0])
    """
    tested: list[int] = []
    accepted: list[int] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            if line.lstrip().startswith("{"):
                record = json.loads(line)
                kept, drafted = int(record["accepted"]), int(record["drafted"])
            else:
                kept, drafted = map(int, line.replace(",", " ").split())
        except (ValueError, KeyError, TypeError):
            rule = "must have accepted and drafted tokens, as '2 4' or as JSON"
            raise ValueError(f"advise: line {number} of the trace {rule}, got {line[:60]!r}") from None
        if not 0 <= kept <= drafted <= MOST_DEPTH:
            rule = f"must have 0 <= accepted <= drafted <= {MOST_DEPTH}"
            raise ValueError(f"advise: line {number} of the trace {rule}, got {kept} and {drafted}")
        reached = min(kept + 1, drafted)
        for counts, depth in ((tested, reached), (accepted, kept)):
            counts += [0] * (reached - len(counts))
            for place in range(depth):
                counts[place] += 1
    return tested, accepted
