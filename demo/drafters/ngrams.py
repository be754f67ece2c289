# SPDX-License-Identifier: Apache-2.0
"""A table of n-grams as a drafter: which tokens the model wrote after the last few, and how surely."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .lookup import Lookup
from .tree import Tree

ORDERS = (4, 3, 2, 1)  # tokens looked back at, longest first
BEST = 2  # continuations kept of each
BITS = 16  # of a token: four of them make a key
WEIGHTS = Path(__file__).with_name("ngrams.safetensors")


def keys_of(context: Sequence[int]) -> dict[int, int]:
    """By order, longest first, the key of the last tokens: `BITS` bits each, the last one lowest."""
    keys, key = {}, 0
    for order in range(1, min(ORDERS[0], len(context)) + 1):
        key |= int(context[-order]) << BITS * (order - 1)
        keys[order] = key
    return {order: keys[order] for order in ORDERS if order in keys}


class Ngrams:
    """Continuations of n-grams.

    keys: of each order, ascending, as `keys_of` makes them.
    tokens, chances: [entries, BEST] the likeliest next tokens, and in percent how often such entries were
    right in text that the table had not seen.
    """

    def __init__(self, arrays: dict[str, np.ndarray[Any, Any]]):
        self.arrays = arrays

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> Ngrams:
        from safetensors.numpy import load_file

        return cls(load_file(path))

    def save(self, path: Path) -> None:
        from safetensors.numpy import save_file

        save_file(self.arrays, path)

    def after(self, context: Sequence[int]) -> list[tuple[int, float]]:
        """Likely next tokens with their chances, from the longest n-gram that the table knows."""
        for order, key in keys_of(context).items():
            known = self.arrays[f"keys{order}"]
            place = int(np.searchsorted(known, np.uint64(key)))
            if place < len(known) and known[place] == key:
                tokens = self.arrays[f"tokens{order}"][place].tolist()
                chances = self.arrays[f"chances{order}"][place].tolist()
                return [(t, c / 100) for t, c in zip(tokens, chances, strict=True) if c]
        return []


class NgramLookup:
    """Lookup, and the table where it leaves room: what chance a node's children from texts have
    left over goes to those from the table. The best `max_nodes` nodes are kept."""

    def __init__(self, table: Ngrams, lookup: Lookup):
        self.table = table
        self.lookup = lookup

    def __call__(self, contexts: Sequence[Sequence[int]]) -> list[Tree]:
        trees = self.lookup(contexts)
        return [self._extended(tree, context) for tree, context in zip(trees, contexts, strict=True)]

    def _extended(self, tree: Tree, context: Sequence[int]) -> Tree:
        tokens, parents, chances = list(tree.tokens), list(tree.parents), list(tree.chances)
        left = list(chances)
        for node, parent in enumerate(parents[1:], 1):
            left[parent] -= chances[node]
        edges = set(zip(parents, tokens, strict=True))
        open_nodes = [(-chance, node) for node, chance in enumerate(left)]
        heapq.heapify(open_nodes)
        while open_nodes and -open_nodes[0][0] > self.lookup.min_chance:
            chance, node = heapq.heappop(open_nodes)
            for token, share in self.table.after(self._before(node, tokens, parents, context)):
                promise = -chance * share
                if promise > self.lookup.min_chance and (node, token) not in edges:
                    heapq.heappush(open_nodes, (-promise, len(tokens)))
                    tokens.append(token)
                    parents.append(node)
                    chances.append(promise)
                    edges.add((node, token))
        return _best(Tree(tokens, parents, chances), self.lookup.max_nodes)

    @staticmethod
    def _before(node: int, tokens: list[int], parents: list[int], context: Sequence[int]) -> list[int]:
        """The last tokens up to a node."""
        path: list[int] = []
        while node > 0 and len(path) < ORDERS[0]:
            path.append(tokens[node])
            node = parents[node]
        return [*context[-ORDERS[0] :], *reversed(path)][-ORDERS[0] :]


def _best(tree: Tree, count: int) -> Tree:
    """The likeliest nodes, numbered depth first, likely children first, so that committing moves little."""
    kept = set(sorted(range(len(tree.tokens)), key=lambda node: -tree.chances[node])[:count])
    children = defaultdict(list)
    for node in sorted(kept, key=lambda node: tree.chances[node]):
        children[tree.parents[node]].append(node)  # likely ones last: they leave the stack first
    order, stack = [], [0]
    while stack:
        order.append(stack.pop())
        stack += children[order[-1]]
    place = {node: index for index, node in enumerate(order)} | {-1: -1}
    return Tree(
        [tree.tokens[node] for node in order],
        [place[tree.parents[node]] for node in order],
        [tree.chances[node] for node in order],
    )
