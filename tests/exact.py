# SPDX-License-Identifier: Apache-2.0
"""Exact laws of the reference by enumeration: every draft, and every way its random decisions can fall."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from specdec_kernels.reference.ends import Ending
from specdec_kernels.reference.request import Request, Trace, Tree, ratio
from specdec_kernels.tree import Proposal

LETTERS = {"P": Proposal.POINT, "I": Proposal.INDEPENDENT, "W": Proposal.WITHOUT_REPLACEMENT}
Prefix = tuple[int, ...]


class Decisions:
    """Noise that follows a script and notes the other ways it could have gone."""

    def __init__(self, script: tuple[int, ...]) -> None:
        self.script, self.taken, self.probability = script, (), 1.0
        self.others: list[tuple[int, ...]] = []
        self.keys: set[tuple] = set()

    def accepts(self, node, p, q=1.0):
        rate = ratio(p, q)
        return self._decide(("coin", node), [1.0 - rate, rate]) == 1

    def first(self, node, bars, scale):
        rates, chances = [0.0], []
        for bar in bars:
            rates.append(max(rates[-1], ratio(bar, scale)))
            chances.append(rates[-1] - rates[-2])
        return self._decide(("coin", node), [*chances, 1.0 - rates[-1]])

    def draw(self, weights, purpose, depth):
        return self._decide((purpose, depth), (weights / weights.sum()).tolist())

    def race(self, weights, count, purpose, node=0, ordinal=0):
        weights, tokens = weights.clone(), []
        while len(tokens) < count and weights.sum() > 0:
            key = (purpose, node, ordinal, len(tokens))
            tokens.append(self._decide(key, (weights / weights.sum()).tolist()))
            weights[tokens[-1]] = 0.0
        return tokens

    def _decide(self, key, probabilities):
        assert key not in self.keys, f"{key} drawn twice in one walk"
        self.keys.add(key)
        if len(self.taken) < len(self.script):
            choice = self.script[len(self.taken)]
        else:
            possible = [i for i, p in enumerate(probabilities) if p > 0]
            choice = possible[0]
            self.others += [(*self.taken, other) for other in possible[1:]]
        self.taken += (choice,)
        self.probability *= probabilities[choice]
        return choice


def outcomes(rule: Callable, make: Callable[[Decisions], Request]) -> Iterator[tuple[Prefix, int, float]]:
    """Every (emitted tokens, accepted count, probability) of a rule."""
    scripts = [()]
    while scripts:
        noise = Decisions(scripts.pop())
        request = make(noise)
        node, token = rule(request)
        scripts += noise.others
        path = request.path(node)
        yield (*(request.token(n) for n in path[1:]), token), len(path) - 1, noise.probability


@dataclass(frozen=True)
class Case:
    """A tree shape, how its tokens are proposed, and the laws they come from.

    `kinds` has a letter per node after the root. The laws at a node are random functions of the tokens above
    it; `point_token` is what a POINT child of given rank has, and `skip` nodes get token -1. `rowless` nodes
    have no row of the target, and with `bonus` the token after a chain is drawn beforehand. The request ends
    at one of `stops` and after `limit` tokens.
    """

    parents: tuple[int, ...]
    kinds: str
    vocab: int = 3
    draft_width: int | None = None
    zeros: bool = False  # laws without full support
    skip: tuple[int, ...] = ()
    no_row: tuple[int, ...] = ()
    reverse: bool = False  # siblings are verified from the last to the first
    duplicates: bool = False  # Proposal.POINT siblings all carry one token
    rowless: tuple[int, ...] = ()
    bonus: bool = False
    stops: frozenset[int] = frozenset()
    limit: float = math.inf
    seed: int = 0

    @property
    def depth(self) -> int:
        return max(len(self.above(node)) for node in range(len(self.parents) + 1))

    def above(self, node: int) -> list[int]:
        """The node and its ancestors below the root, topmost first."""
        path = []
        while node > 0:
            path.append(node)
            node = self.parents[node - 1]
        return path[::-1]

    @cache  # noqa: B019
    def p(self, prefix: Prefix) -> torch.Tensor:
        return _law(self.vocab, self.zeros, (self.seed, 1, *prefix))

    @cache  # noqa: B019
    def q(self, prefix: Prefix) -> torch.Tensor:
        return _law(self.draft_width or self.vocab, self.zeros, (self.seed, 2, *prefix))

    def siblings(self, parent: int) -> list[int]:
        """Children in the order of verification, those without a token left out."""
        nodes = [n for n in range(1, len(self.parents) + 1) if self.parents[n - 1] == parent]
        return [n for n in (nodes[::-1] if self.reverse else nodes) if n not in self.skip]

    def kind(self, node: int) -> int:
        return LETTERS[self.kinds[node - 1]]

    def point_token(self, prefix: Prefix, rank: int) -> int:
        return (sum(prefix) + (0 if self.duplicates else rank)) % self.vocab

    def order(self) -> list[int]:
        """Nodes parent before child and in the order of verification among siblings."""
        order = [0]
        for node in order:
            order += self.siblings(node)
        return order[1:]

    def drafts(self, sampled_from: Callable | None = None) -> Iterator[tuple[dict[int, int], float]]:
        """Every draft, node -> token, and its probability; `sampled_from` changes what is sampled from."""
        order = self.order()

        def extend(tokens: dict[int, int], index: int, probability: float):
            if index == len(order):
                yield tokens, probability
                return
            node = order[index]
            law = self._token_law(node, tokens, sampled_from)
            for token, chance in enumerate(law.tolist()):
                if chance > 0:
                    yield from extend({**tokens, node: token}, index + 1, probability * chance)

        yield from extend({node: -1 for node in self.skip}, 0, 1.0)

    def _token_law(self, node: int, tokens: dict[int, int], sampled_from: Callable | None) -> torch.Tensor:
        parent = self.parents[node - 1]
        prefix = tuple(tokens[n] for n in self.above(parent))
        siblings = self.siblings(parent)
        points = [n for n in siblings if self.kind(n) == Proposal.POINT]
        q = self.q(prefix) if sampled_from is None else sampled_from(self.q(prefix))
        alone = torch.zeros_like(q)
        if self.kind(node) == Proposal.POINT:
            alone[self.point_token(prefix, points.index(node))] = 1.0
            return alone
        if self.kind(node) == Proposal.INDEPENDENT:
            return q
        rest = q.clone()
        for rank in range(len(points)):
            rest[self.point_token(prefix, rank)] = 0.0
        for n in siblings[: siblings.index(node)]:
            if self.kind(n) == Proposal.WITHOUT_REPLACEMENT:
                rest[tokens[n]] = 0.0
        if rest.sum() > 0:
            return rest / rest.sum()
        alone[0] = 1.0  # nothing left to draw: any token, declared all the same
        return alone

    def without_rows(self, tokens: dict[int, int]) -> tuple[int, ...]:
        """Which nodes have no row of the target, after a look at the draft."""
        return self.rowless

    def bonuses(self, tokens: dict[int, int]) -> Iterator[tuple[int | None, float]]:
        """The token drawn after a chain, and its probability."""
        if not self.bonus:
            yield None, 1.0
            return
        end = min(self.skip, default=len(self.parents) + 1)
        yield from enumerate(self.p(tuple(tokens[node] for node in range(1, end))).tolist())

    def request(
        self,
        tokens: dict[int, int],
        noise: Decisions,
        trace: Trace | None = None,
        cls=Request,
        bonus: int | None = None,
    ) -> Request:
        nodes = range(1, len(self.parents) + 1)
        links = ()
        if self.reverse:
            first, after = [-1] * (len(self.parents) + 1), [-1] * (len(self.parents) + 1)
            for parent in range(len(first)):
                children = [n for n in nodes if self.parents[n - 1] == parent][::-1]
                first[parent : parent + 1] = children[:1] or [-1]
                for child, following in itertools.pairwise(children):
                    after[child] = following
            links = (first, after)
        tree = Tree(
            [-1, *(tokens.get(n, -1) for n in nodes)],
            [-1, *self.parents],
            [Proposal.POINT, *map(self.kind, nodes)],
            *links,
        )

        def prefix(node: int) -> Prefix:
            return tuple(tokens.get(n, -1) for n in self.above(node))

        rowless = self.without_rows(tokens)
        return cls(
            tree,
            self.vocab,
            has_row=lambda node: node not in rowless,
            bonus=bonus,
            ending=Ending(self.stops, self.limit),
            target=lambda node: (self.p(prefix(node)), 0),
            draft=lambda node: None if node in self.no_row else self.q(prefix(node)),
            noise=noise,
            max_depth=self.depth,
            trace=trace,
        )


def _law(size: int, zeros: bool, seed: tuple[int, ...]) -> torch.Tensor:
    rng = np.random.default_rng([value + 1 for value in seed])
    weights = rng.exponential(size=size) + 0.02
    if zeros and size > 1:
        weights[rng.integers(size)] = 0.0
    return torch.from_numpy(weights / weights.sum())


def emitted(
    case: Case, rule: Callable, *, sampled_from=None, change=None, cls=Request
) -> tuple[dict[Prefix, float], float]:
    """The exact law of the emitted tokens, and the expected number of accepted ones.

    `change` alters a draft after it was drawn.
    """
    law: dict[Prefix, float] = defaultdict(float)
    accepted = 0.0
    for tokens, chance in case.drafts(sampled_from):
        tokens = tokens if change is None else change(case, tokens)
        for bonus, weight in case.bonuses(tokens):
            for output, count, probability in outcomes(
                rule, lambda noise, t=tokens, b=bonus: case.request(t, noise, cls=cls, bonus=b)
            ):
                law[output] += chance * weight * probability
                accepted += chance * weight * probability * count
    return law, accepted


def distance(case: Case, law: dict[Prefix, float]) -> float:
    """Total variation between the emitted tokens, completed by the target itself, and the target's chain."""
    length = case.depth + 1
    total = 0.0
    for sequence in itertools.product(range(case.vocab), repeat=length):
        steps = [float(case.p(sequence[:i])[sequence[i]]) for i in range(length)]
        completed = sum(law.get(sequence[:m], 0.0) * float(np.prod(steps[m:])) for m in range(1, length + 1))
        total += abs(completed - float(np.prod(steps)))
    return total / 2
