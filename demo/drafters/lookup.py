# SPDX-License-Identifier: Apache-2.0
"""Prompt lookup for the engine, as much of it as pays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

import specdec_kernels as sdk

if TYPE_CHECKING:
    from ..engine import Request


class Tree(NamedTuple):
    """Tokens and the node each follows, parents first. Node 0 is the last token of the text."""

    tokens: list[int]
    parents: list[int]
    chances: Sequence[float] = ()  # that the text goes on to the node, as far as the drafter can tell

    @classmethod
    def chain(cls, tokens: Sequence[int]) -> Tree:
        return cls(list(tokens), list(range(-1, len(tokens) - 1)))

    def keep(self, nodes: Sequence[int]) -> Tree:
        """The tree of these nodes, ascending; every one's parent is among them."""
        place = {node: index for index, node in enumerate(nodes)}
        return Tree(
            [self.tokens[node] for node in nodes],
            [place.get(self.parents[node], -1) for node in nodes],
            [self.chances[node] for node in nodes],
        )

    def path(self, text: Sequence[int]) -> list[int]:
        """The nodes along which the text goes on from the root, the root included."""
        edges = zip(self.parents, self.tokens, strict=True)
        children = {edge: node for node, edge in enumerate(edges)}
        path = [0]
        for token in text:
            if (path[-1], token) not in children:
                break
            path.append(children[path[-1], token])
        return path


class TreeLookup:
    """Draft what followed earlier occurrences of the texts' ends; with one branch the trees are chains.

    Nodes of a chance below min_chance are left out.
    """

    def __init__(
        self,
        max_nodes: int = 16,
        branches: int = 4,
        max_ngram: int = 10,
        min_ngram: int = 1,
        min_chance: float = 0.05,
    ):
        self.max_nodes = max_nodes
        self.min_chance = min_chance
        # Where a continuation reaches the end of the text it goes on with itself: a repetition repeats.
        self.options = dict(branches=branches, max_ngram=max_ngram, min_ngram=min_ngram, cyclic=True)

    def __call__(self, contexts: Sequence[Sequence[int]]) -> list[Tree]:
        lengths = torch.tensor([len(context) for context in contexts])
        texts = torch.zeros((len(contexts), int(lengths.max())), dtype=torch.int64)
        for row, context in zip(texts, contexts, strict=True):
            row[: len(context)] = torch.tensor(context)
        drafted, scores = sdk.ngram_tree(texts, lengths, self.max_nodes, **self.options)
        shape = (len(contexts), self.max_nodes)
        rows = zip(
            drafted.tokens.view(shape).tolist(),
            drafted.parents.view(shape).tolist(),
            scores.exp().tolist(),
            strict=True,
        )
        trees = [Tree(*row) for row in rows]
        return [
            tree.keep([0] + [n for n in range(1, self.max_nodes) if tree.chances[n] > self.min_chance])
            for tree in trees
        ]


class SharedBudget:
    """Trees for a whole batch: the nodes that are expected to bring the most tokens per second.

    Step_costs is the duration of a step by the number of rows it feeds to the model. What became of a draft
    is read off its request's text in the next step.
    """

    def __init__(self, lookup: TreeLookup, step_costs: Mapping[int, float]):
        self.lookup = lookup
        self.budget = sdk.Budget(step_costs)
        self.calibrations: dict[Request, sdk.Calibration] = {}
        self.drafted: list[tuple[Request, int, Tree]] = []  # with what each had written then

    def __call__(self, requests: Sequence[Request]) -> list[Tree]:
        self._learn()
        trees = self.lookup([request.context for request in requests])
        fresh = sdk.Calibration()
        self.calibrations = {request: self.calibrations.get(request, fresh) for request in requests}
        believed = [
            self.calibrations[request].believe(tree.chances, tree.parents)
            for request, tree in zip(requests, trees, strict=True)
        ]
        kept = [tree.keep(nodes) for tree, nodes in zip(trees, self.budget.choose(believed), strict=True)]
        self.drafted = [(r, len(r.tokens), tree) for r, tree in zip(requests, kept, strict=True)]
        return kept

    def _learn(self) -> None:
        for request, before, tree in self.drafted:
            path = tree.path(request.tokens[before:])
            self.calibrations[request] = self.calibrations[request].after(tree.chances, tree.parents, path)
        self.budget = self.budget.after(
            sum(len(tree.tokens) for _, _, tree in self.drafted),
            [len(request.tokens) - before for request, before, _ in self.drafted],
        )


def no_drafts(requests: Sequence[Request]) -> list[Tree]:
    """Roots alone: plain decoding."""
    return [Tree.chain(request.context[-1:]) for request in requests]
