# SPDX-License-Identifier: Apache-2.0
"""The contenders on a tree: the token and the traversal rule in PyTorch, for one request.

Siblings are drawn without replacement. Each rule comes twice: with every target row through one softmax, as
it is written for a GPU, and lazily, where a node's law is made when the walk gets there, which suits a CPU.
Both keep scalars beside unnormalised laws, which spares two passes over the vocabulary per rejected sibling.
"""

import random
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .inputs import Inputs
from .peers import Verifier, inverse_cdf
from .suite import Run

Row = Callable[[int], Tensor]


class Walk:
    """What both rules need of one request's tree."""

    def __init__(self, inputs: Inputs, lazy: bool) -> None:
        self.tokens = inputs.tokens.tolist()
        parents = inputs.case.parents
        self.children = [[c for c, parent in enumerate(parents) if parent == v] for v in range(len(parents))]
        self._inputs, self._lazy = inputs, lazy
        self._draft_row = {node: row for row, node in enumerate(inputs.inner)}

    def start(self) -> None:
        """What comes before the walk."""
        if not self._lazy:
            self._rows = torch.softmax(self._inputs.target[0].float() / self._inputs.case.temperature, -1)

    def p(self, node: int) -> Tensor:
        """The target's law at a node, to be overwritten."""
        if not self._lazy:
            return self._rows[node].clone()
        scaled = self._inputs.target[0, node].float() / self._inputs.case.temperature
        return scaled.sub_(scaled.max()).exp_()  # unnormalised: one row is quicker so than through a softmax

    def q(self, node: int) -> Tensor:
        """The draft's law at a node, to be overwritten."""
        return self._inputs.probs[0, self._draft_row[node]].to(torch.float32, copy=True)


def token(inputs: Inputs, lazy: bool = False) -> Run:
    """Recursive rejection, the residual updated after every rejected sibling."""
    walk = Walk(inputs, lazy)

    def run(i: int) -> tuple[Tensor, Tensor]:
        walk.start()
        tokens, node = walk.tokens[i][0], 0
        while True:
            p, accepted = walk.p(node), None
            mass, left = p.sum(), 1.0
            q = walk.q(node) if walk.children[node] else None
            for child in walk.children[node]:
                x = tokens[child]
                if random.random() * (q[x] / left) < p[x] / mass:
                    accepted = child
                    break
                p.sub_(q, alpha=float(mass / left)).clamp_(min=0)
                mass = p.sum()
                if mass <= 0:
                    p = walk.p(node)
                    mass = p.sum()
                q[x] = 0
                left = q.sum()
            if accepted is None:
                return torch.tensor([node]), inverse_cdf(p)[None]
            node = accepted

    return run


def traversal(inputs: Inputs, lazy: bool = False) -> Run:
    """Depth first; a node is tried after all its children have failed, with what weight they left it."""
    walk = Walk(inputs, lazy)

    def run(i: int) -> tuple[Tensor, Tensor]:
        walk.start()
        tokens = walk.tokens[i][0]

        def visit(node: int, weight: float) -> tuple[Tensor, Tensor] | None:
            if weight == 0:  # the residual left nothing of this token: nothing below it can be accepted
                return None
            p = walk.p(node)
            mass, left = float(p.sum()), 1.0
            q = walk.q(node) if walk.children[node] else None
            for child in walk.children[node]:
                x = tokens[child]
                ratio = float(p[x]) * left / (mass * float(q[x]))
                found = visit(child, min(1.0, weight * ratio))
                if found:
                    return found
                p.sub_(q, alpha=mass / (weight * left)).clamp_(min=0)
                rest = float(p.sum())
                if rest > 0:
                    scaled = weight * rest / mass
                    weight, mass = scaled / (scaled + (1 - weight)), rest
                elif weight < 1:
                    return None
                else:
                    p = walk.p(node)
                    weight, mass = 1.0, float(p.sum())
                q[x] = 0
                left = float(q.sum())
            if random.random() < weight:
                return torch.tensor([node]), inverse_cdf(p)[None]
            return None

        return visit(0, 1.0)

    return run


TREE = (
    Verifier("torch token", token),
    Verifier("torch traversal", traversal, rule="traversal"),
    Verifier("torch token, lazy", partial(token, lazy=True)),
    Verifier("torch traversal, lazy", partial(traversal, lazy=True), rule="traversal"),
)
