# SPDX-License-Identifier: Apache-2.0
"""`python -m bench siblings`: how many drafted tokens are accepted, by how siblings were drawn.

Trees of equal shapes are drawn by every method of `sample_children` behind the same texts. For each tree the
accepted tokens are an expectation over the coins of a rule: no coin is tossed, no time is measured. Target:
the demo's model. Draft: its head after fewer layers; and rows of random numbers for both.

`ByClass` is no rule of the package. It is here to be compared.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor

import specdec_kernels as sdk
from specdec_kernels.reference.random import Noise
from specdec_kernels.reference.request import Request, Tree, ratio

from .draft_rows import RandomRows, Rows, model_rows


class Shape(NamedTuple):
    """Arguments of `grow_tree`: the children of a node by its depth, and limits."""

    children: tuple[int, ...]
    width: int
    max_nodes: int


SHAPES = {
    "4": Shape((4,), 1, 5),
    "2, 2, 2": Shape((2, 2, 2), 4, 15),
    "3, 2, 1, 1": Shape((3, 2, 1, 1), 6, 22),
    "3 each, the best 21": Shape((3, 3, 3, 3), 4, 22),
}
TEMPERATURES = (0.3, 0.7, 1.0)
METHODS = ("top_k", "independent", "without_replacement", "hybrid")
PROMPTS = ("chat_soup", "json_extend", "chat_weekend")
EVERY = 3  # a tree stands behind every third token that was written
LAYERS = 30  # of the model


class ByClass(Request):
    """Independent siblings, of which the first one of the best class is tested first.

    The class of a token is floor(log(p / q)). The first draw of the best class of K has the law
    q(y) (F_c^K - F_{c-1}^K) / q(c), where F_c is the mass of the classes up to c under q. Draws before it are
    of lower classes, draws after it of no higher one.
    """

    @cached_property
    def classes(self) -> dict[int, Tensor]:
        """[V] float64 of the nodes whose siblings were looked at."""
        return {}

    def _classes(self, node: int) -> Tensor:
        if node not in self.classes:
            q = self.draft(node)
            assert q is not None
            classes = (self.target(node) / q).log().floor()
            self.classes[node] = classes.nan_to_num(-math.inf, neginf=-math.inf)
        return self.classes[node]

    def children(self, node: int) -> list[int]:
        drawn = super().children(node)
        if len(drawn) < 2:
            return drawn
        classes = self._classes(node)[[self.token(child) for child in drawn]]
        return [drawn.pop(int(classes.argmax())), *drawn]

    def proposal_law(self, child: int) -> Tensor:
        parent = self.tree.parents[child]
        siblings, q = self.children(parent), self.draft(parent)
        if len(siblings) < 2:
            return super().proposal_law(child)
        assert q is not None
        classes, count = self._classes(parent), len(siblings)
        if child == siblings[0]:
            values, places = classes.unique(return_inverse=True)
            upto = q.new_zeros(len(values)).index_add_(0, places, q).cumsum(0)
            below = torch.cat([upto.new_zeros(1), upto[:-1]])
            shares = sum(upto**j * below ** (count - 1 - j) for j in range(count))
            return q * torch.as_tensor(shares)[places]
        best = classes[self.token(siblings[0])]
        law = torch.where(classes <= best if child > siblings[0] else classes < best, q, 0.0)
        return law / law.sum()


def accepted(request: Request, rule: str) -> float:
    """Expected number of accepted tokens of a drafted tree under `token` or `traversal`."""

    def visit(node: int, w: float) -> tuple[float, float]:
        """How likely a walk that reaches the node with weight w ends at it or below, and the depth of the end
        times this chance."""
        P, ended, depth = None, 0.0, 0.0
        for child in request.children(node):
            P = request.target(node) if P is None else P
            Q = request.proposal_law(child)
            chance = ratio(w * request.at(P, child), request.at(Q, child))
            coin, weight = (1.0, chance) if rule == "traversal" else (chance, 1.0)
            if chance > 0:
                below, deeper = visit(child, weight)
                depth += (1.0 - ended) * coin * deeper
                ended += (1.0 - ended) * coin * below
            R = (w * P - Q).clamp_min(0.0)
            S = float(R.sum())
            if S > 0:
                w, P = S / (S + (1.0 - w)), R / S
            elif w < 1:
                return ended, depth
            else:  # S = 0 can only come from rounding
                P = request.target(node)
        left = (1.0 - ended) * w
        return ended + left, depth + left * request.depth(node)

    return visit(0, 1.0)[1]


class Drawn(NamedTuple):
    """A drafted tree, as `Tree` has it, and which of `Rows` belong to its nodes; -1 for leaves."""

    temperature: float
    tokens: list[int]
    parents: list[int]
    proposals: list[int]
    numbers: list[int]

    def request(self, rows: Rows, cls: type[Request] = Request) -> Request:
        def law(logits: Tensor, node: int) -> Tensor:
            return (logits[self.numbers[node]].double() / self.temperature).softmax(0)

        return cls(
            Tree(self.tokens, self.parents, self.proposals),
            rows.target.shape[1],
            target=lambda node: (law(rows.target, node), 0),
            draft=partial(law, rows.draft),
            noise=Noise(0, 0),
            max_depth=len(self.tokens),
        )


def draw(rows: Rows, shape: Shape, method: str) -> Iterator[Drawn]:
    """A tree for every temperature."""
    batch = len(TEMPERATURES)
    numbers: list[list[int]] = [[] for _ in TEMPERATURES]  # of the rows of expanded nodes

    def expand(frontier: sdk.Frontier) -> sdk.Children:
        width = frontier.tokens.shape[1]
        places = enumerate(frontier.parents.flatten().tolist())
        above = [numbers[i // width][parent] for i, parent in places if parent >= 0]
        tokens = frontier.tokens.clamp_min(0).flatten().tolist()
        found = rows.extend(list(zip(above, tokens, strict=True))) if above else [0] * batch
        for i, number in enumerate(found):
            numbers[i // width].append(number)
        return sdk.sample_children(
            rows.draft[found],
            shape.children[frontier.depth],
            method=method,
            sampling=sdk.SamplingParams(torch.tensor(TEMPERATURES).repeat_interleave(width)),
            seeds=torch.full((len(found),), rows.seed),
            positions=torch.arange(batch).repeat_interleave(width),
            nodes=frontier.nodes.flatten(),
        )

    grown = sdk.grow_tree(
        expand,
        torch.zeros(batch, dtype=torch.int64),
        shape.max_nodes,
        max_depth=len(shape.children),
        width=shape.width,
    )
    tree = grown.tree
    columns = (tree.tokens, tree.parents, tree.proposals, grown.draft_rows)
    for b, temperature in enumerate(TEMPERATURES):
        nodes = slice(b * shape.max_nodes, (b + 1) * shape.max_nodes)
        tokens, parents, proposals, expanded = (column[nodes].tolist() for column in columns)
        first = b * len(numbers[b])
        own = [numbers[b][row - first] if row >= 0 else -1 for row in expanded]
        yield Drawn(temperature, tokens, parents, proposals, own)


Column = tuple[str, str]  # method and rule
BY_CLASS = ("by class", "traversal")
INDEPENDENT, WITHOUT, HYBRID = ((method, "traversal") for method in METHODS[1:])
COLUMNS = (
    ("top_k", "token"),
    *((method, rule) for method in METHODS[1:] for rule in ("token", "traversal")),
    BY_CLASS,
)
COMPARED = ((HYBRID, WITHOUT), (BY_CLASS, INDEPENDENT), (BY_CLASS, WITHOUT), (BY_CLASS, HYBRID))
Figures = dict[tuple[float, str, Column], list[float]]


def measure(rows: Rows, figures: Figures, classes: list[int]) -> None:
    """Add the accepted tokens of trees of every kind behind one text, and the classes of their nodes."""
    for name, shape in SHAPES.items():
        drawn = {method: list(draw(rows, shape, method)) for method in METHODS}
        for method, rule in COLUMNS:
            by_class = method == BY_CLASS[0]
            for tree in drawn["independent" if by_class else method]:
                request = tree.request(rows, ByClass if by_class else Request)
                figures[tree.temperature, name, (method, rule)].append(accepted(request, rule))
                if isinstance(request, ByClass):
                    classes += [len(values.unique()) for values in request.classes.values()]


def table(figures: Figures) -> str:
    names = [f"{method.replace('_', ' ')}, {rule}" for method, rule in COLUMNS]
    lines = ["| temperature | children | " + " | ".join(names) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for temperature in TEMPERATURES:
        for shape in SHAPES:
            means = [torch.tensor(figures[temperature, shape, column]).mean() for column in COLUMNS]
            cells = [str(temperature), shape, *(f"{mean:.2f}" for mean in means)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def gain(figures: Figures, one: Column, other: Column) -> str:
    """The mean of the differences of two columns over all trees, and its standard error."""

    def accepted_tokens(column: Column) -> Tensor:
        return torch.tensor([figures[t, shape, column] for t in TEMPERATURES for shape in SHAPES])

    means = (accepted_tokens(one) - accepted_tokens(other)).mean(0)  # of a text, behind which trees are alike
    return f"{means.mean():+.3f} ({means.std() / len(means) ** 0.5:.3f})"


def sources(quick: bool) -> Iterator[tuple[str, Iterator[Rows]]]:
    count = 4 if quick else 100
    names, every = (PROMPTS[:1], 16) if quick else (PROMPTS, EVERY)
    for error in (0.5, 1.5):
        yield f"random rows, errors of {error}", (RandomRows(seed, error) for seed in range(count))
    for layers in (29, 26):
        yield f"{layers} of {LAYERS} layers", model_rows(layers, names, every)


def main(quick: bool) -> int:
    for name, source in sources(quick):
        figures: Figures = defaultdict(list)
        classes: list[int] = []
        for rows in source:
            measure(rows, figures, classes)
        print(f"{name}, {len(next(iter(figures.values())))} texts\n\n{table(figures)}\n")
        for one, other in COMPARED:
            print(f"{', '.join(one)} - {', '.join(other)}: {gain(figures, one, other)}")
        print(f"Classes of a node: {sum(classes) / len(classes):.0f}, at most {max(classes)}.\n", flush=True)
    return 0
