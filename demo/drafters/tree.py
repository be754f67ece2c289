# SPDX-License-Identifier: Apache-2.0
"""One request's draft as lists, before the engine flattens a batch of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


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
