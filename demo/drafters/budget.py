# SPDX-License-Identifier: Apache-2.0
"""How much of what was drafted is worth a place in the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import specdec_kernels as sdk

from .tree import Tree

if TYPE_CHECKING:
    from ..engine import Request

Drafter = Callable[[Sequence[Sequence[int]]], Sequence[Tree]]  # from texts to a tree for each


class SharedBudget:
    """Trees for a whole batch: the nodes that are expected to bring the most tokens per second.

    Step_costs is the duration of a step by the number of rows it feeds to the model. What became of a draft
    is read off its request's text in the next step.
    """

    def __init__(self, drafter: Drafter, step_costs: Mapping[int, float]):
        self.drafter = drafter
        self.budget = sdk.Budget(step_costs)
        self.calibrations: dict[Request, sdk.Calibration] = {}
        self.drafted: list[tuple[Request, int, Tree]] = []  # with what each had written then

    def __call__(self, requests: Sequence[Request]) -> list[Tree]:
        self._learn()
        trees = self.drafter([request.context for request in requests])
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
