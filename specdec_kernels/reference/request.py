# SPDX-License-Identifier: Apache-2.0
"""One request during verification: its tree, the laws at its nodes, and its noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .._random import Purpose
from ..tree import Proposal
from .ends import Ending
from .law import IMPOSSIBLE, point
from .random import Noise

Answer = tuple[int, int]
"""The last kept node, and the token after it."""


class Tree(NamedTuple):
    """One tree, as lists over its nodes."""

    tokens: list[int]
    parents: list[int]
    proposals: list[int]
    first_child: list[int] | None = None
    next_sibling: list[int] | None = None


class Trace:
    """A record for tests of the thresholds and masses of a verification; nan if a node had none.

    Attributes:
        thresholds: [R] float64, the probability with which the row's node was accepted when its coin was
            tossed: `min(1, P(x) / Q(x))` under token, the final weight under traversal.
        masses: [R] float64, the residual mass after the node was rejected: the sum of `[P - Q]+` under token
            and of `[w P - Q]+` under traversal.
        impossible: [R] bool, whether the node was tested although its token has no probability under the law
            of its proposal.
    """

    def __init__(self, rows: int) -> None:
        self.thresholds: Tensor = torch.full((rows,), torch.nan, dtype=torch.float64)
        self.masses: Tensor = torch.full((rows,), torch.nan, dtype=torch.float64)
        self.impossible: Tensor = torch.zeros(rows, dtype=torch.bool)


class Request:
    """The request as a rule sees it.

    Args:
        tree: the nodes of the request.
        vocab_size: V.
        target: node -> the target's law [V] at the node, and the status bits of its row.
        draft: node -> the draft's law [>= V] from which its children were drawn, or None.
        noise: makes the random decisions.
        max_depth: deeper nodes are never visited.
        unscaled: node -> the law that Typical and Relaxed test against, if that is not `target`.
        trace, start: the record of thresholds and masses, and the row of node 0 in it.
        has_row: node -> whether the target has a row of it.
        bonus: the token after the chain, already drawn; None if there is none.
        ending: the stop tokens and limits of the request.

    Attributes:
        last_drafted: whether the walk ended with a drafted token as the next one.
    """

    def __init__(
        self,
        tree: Tree,
        vocab_size: int,
        target: Callable[[int], tuple[Tensor, int]],
        draft: Callable[[int], Tensor | None],
        noise: Noise,
        max_depth: int,
        unscaled: Callable[[int], tuple[Tensor, int]] | None = None,
        trace: Trace | None = None,
        start: int = 0,
        has_row: Callable[[int], bool] = lambda node: True,
        bonus: int | None = None,
        ending: Ending | None = None,
    ) -> None:
        self.tree = tree
        self.vocab_size = vocab_size
        self.noise = noise
        self.status: int = 0
        self._target, self._draft, self._unscaled = target, draft, unscaled
        self._targets: dict[int, Tensor] = {}
        self._drafts: dict[int, Tensor | None] = {}
        self._max_depth = max_depth
        self._trace, self._start = trace, start
        self._has_row, self._bonus = has_row, bonus
        self._ending = ending or Ending()
        self.last_drafted: bool = False

    def token(self, node: int) -> int:
        return self.tree.tokens[node]

    def path(self, node: int) -> list[int]:
        """The nodes from the root to `node`."""
        path = [node]
        while path[-1] != 0:
            path.append(self.tree.parents[path[-1]])
        return path[::-1]

    def depth(self, node: int) -> int:
        return len(self.path(node)) - 1

    def target(self, node: int) -> Tensor:
        """p at a node. A call marks the node's row as visited."""
        if node not in self._targets:
            self._targets[node], status = self._target(node)
            self.status |= status
        return self._targets[node]

    def test_law(self, node: int) -> Tensor:
        """The law that Typical and Relaxed use at a node: at temperature 0, that of the unscaled logits."""
        p = self.target(node)
        return p if self._unscaled is None else self._unscaled(node)[0]

    def draft(self, node: int) -> Tensor | None:
        """q at a node, or None if the node has no draft row."""
        if node not in self._drafts:
            self._drafts[node] = self._draft(node)
        return self._drafts[node]

    def children(self, node: int) -> list[int]:
        """The children of a node in the order of verification, without children that have no token. Without
        the node's row none can be tested."""
        if self.depth(node) >= self._max_depth or not self.has_row(node):
            return []
        return [child for child in self._linked(node) if self.token(child) >= 0]

    def _linked(self, node: int) -> list[int]:
        tree, count = self.tree, len(self.tree.tokens)
        if tree.first_child is None or tree.next_sibling is None:
            return [child for child in range(node + 1, count) if tree.parents[child] == node]
        linked: list[int] = []
        child = tree.first_child[node]
        while node < child < count and tree.parents[child] == node and child not in linked:
            linked.append(child)
            child = tree.next_sibling[child]
        return linked

    def proposal(self, child: int) -> Proposal:
        """The child's proposal. A sampled child without a draft law counts as POINT."""
        kind = self.tree.proposals[child]
        if kind not in tuple(Proposal) or self.draft(self.tree.parents[child]) is None:
            return Proposal.POINT
        return Proposal(kind)

    def proposal_law(self, child: int) -> Tensor:
        """Q of a child on [0, V): the declared law of its token given its earlier siblings.

        A rule calls this once, to test the child. If a token of the vocabulary has no probability under Q, it
        cannot have been drawn as declared, and the trace records it.
        """
        parent = self.tree.parents[child]
        if self.proposal(child) == Proposal.POINT:
            return point(self.token(child), self.vocab_size)
        q = self.draft(parent)
        assert q is not None  # otherwise the child would count as POINT
        if self.proposal(child) == Proposal.WITHOUT_REPLACEMENT:
            q = q.clone()
            q[[token for token in self.removed(child) if token < q.numel()]] = 0.0
        if self.token(child) < self.vocab_size and not q[self.token(child)] > 0:
            self.status |= IMPOSSIBLE
            if self._trace is not None:
                self._trace.impossible[self._start + child] = True
        if self.proposal(child) == Proposal.INDEPENDENT:
            return q[: self.vocab_size]
        if q.sum() > 0:
            return (q / q.sum())[: self.vocab_size]
        return point(self.token(child), self.vocab_size)  # no other token is left in the law

    def removed(self, child: int) -> list[int]:
        """The tokens that a WITHOUT_REPLACEMENT child could not be: those of all its POINT siblings, and of
        its earlier WITHOUT_REPLACEMENT siblings."""
        siblings = self.children(self.tree.parents[child])
        earlier = siblings[: siblings.index(child)]
        points = [s for s in siblings if self.proposal(s) == Proposal.POINT]
        kin = [s for s in earlier if self.proposal(s) == Proposal.WITHOUT_REPLACEMENT]
        return [self.token(s) for s in points + kin]

    def at(self, law: Tensor, child: int) -> float:
        """The probability of the child's token under the law; 0 outside the vocabulary."""
        return float(law[self.token(child)]) if self.token(child) < self.vocab_size else 0.0

    def accepts(self, node: int, p: float, q: float = 1.0) -> bool:
        """Toss the node's coin: True with probability `min(1, p / q)`."""
        if self._trace is not None:
            self._trace.thresholds[self._start + node] = ratio(p, q)
        return self.noise.accepts(node, p, q)

    def rejected(self, node: int, mass: float) -> None:
        """Record the residual mass after a rejection."""
        if self._trace is not None:
            self._trace.masses[self._start + node] = mass

    def draw(self, weights: Tensor, purpose: Purpose, node: int) -> int:
        """Draw the token after `node`."""
        return self.noise.draw(weights, purpose, self.depth(node))

    def ends(self, node: int) -> bool:
        """Whether the request ends with a node's token; at the root, whether it has ended."""
        return self._ending.at(self.depth(node), self.token(node))

    def has_row(self, node: int) -> bool:
        """Whether a node may be kept for the target's row of it. One that ends the request may not."""
        return not self.ends(node) and self._has_row(node)

    def bonus(self, node: int) -> int | None:
        """The token after `node` if the caller has drawn it: after the last node of a chain, or after one
        without a row at which the chain ends; never where the request ends."""
        tokens = self.tree.tokens
        if self.ends(node):
            return None
        if node + 1 == len(tokens) or (not self.has_row(node) and tokens[node + 1] < 0):
            return self._bonus
        return None

    def can_keep(self, node: int) -> bool:
        """Whether the token after a node can be told."""
        return self.has_row(node) or self.bonus(node) is not None

    def end(self, node: int, P: Tensor | None = None) -> Answer:
        """The last node that is kept and the token after it, where a walk that accepted `node` ends there. P
        is what is left of the node's law, by default all of it."""
        bonus = self.bonus(node)
        if bonus is not None:
            return node, bonus
        if not self.has_row(node):
            self.last_drafted = True
            return self.tree.parents[node], self.token(node)
        return node, self.draw(self.target(node) if P is None else P, Purpose.RESIDUAL, node)


def ratio(p: float, q: float) -> float:
    """`min(1, p / q)`, and 0 if p = 0, even if q = 0."""
    return 1.0 if p >= q and p > 0 else p / q if q > 0 else 0.0
