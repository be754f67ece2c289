# SPDX-License-Identifier: Apache-2.0
"""A table of n-grams as a drafter: which tokens the model wrote after the last few, and how surely."""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from ..drafters.lookup import Tree, TreeLookup

ORDERS = (4, 3, 2, 1)  # tokens looked back at, longest first
BEST = 2  # continuations kept of each
BITS = 16  # of a token: four of them make a key


WEIGHTS = Path(__file__).with_name("ngrams.safetensors")


class Ngrams:
    """Continuations of n-grams.

    keys: of each order, ascending: the n tokens, the last one lowest, `BITS` bits each.
    tokens, chances: [entries, BEST] the likeliest next tokens, and in percent how often such entries were
    right in text that the table had not seen.
    """

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.arrays = arrays

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> "Ngrams":
        return cls(load_file(path))

    def save(self, path: Path) -> None:
        save_file(self.arrays, path)

    def after(self, context: Sequence[int]) -> list[tuple[int, float]]:
        """Likely next tokens with their chances, from the longest n-gram that the table knows."""
        key = 0
        keys = {}
        for order in range(1, min(ORDERS[0], len(context)) + 1):
            key |= int(context[-order]) << BITS * (order - 1)
            keys[order] = key
        for order in ORDERS:
            known = self.arrays[f"keys{order}"]
            if order not in keys or not len(known):
                continue
            key = np.uint64(keys[order])
            place = int(np.searchsorted(known, key))
            if place < len(known) and known[place] == key:
                tokens = self.arrays[f"tokens{order}"][place].tolist()
                chances = self.arrays[f"chances{order}"][place].tolist()
                return [(t, c / 100) for t, c in zip(tokens, chances, strict=True) if c]
        return []


class NgramLookup:
    """Prompt lookup, and the table where lookup leaves room: what chance a node's children from the text have
    left over goes to those from the table. The best `max_nodes` nodes are kept."""

    def __init__(self, table: Ngrams, lookup: TreeLookup):
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
        path = []
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


def count(texts: Iterable[tuple[Sequence[int], Sequence[int]]]) -> dict[int, dict[int, Counter]]:
    """By order and key, how often each token came next in the answers; prompts are context alone."""
    counts = {order: defaultdict(Counter) for order in ORDERS}
    for prompt, answer in texts:
        text = [*prompt[-ORDERS[0] :], *answer]
        for place in range(len(text) - len(answer), len(text)):
            key = 0
            for order in range(1, min(ORDERS[0], place) + 1):
                key |= text[place - order] << BITS * (order - 1)
                counts[order][key][text[place]] += 1
    return counts


def bucket(order: int, counter: Counter, rank: int) -> tuple:
    """What an entry's chance is estimated from: order, place, and how often and how mostly it was seen."""
    total = sum(counter.values())
    seen = counter.most_common(BEST)[rank][1]
    return order, rank, min(total, 8).bit_length(), min(seen, 8).bit_length(), round(4 * seen / total)


def distil(
    texts: Sequence[tuple[Sequence[int], Sequence[int]]], folds: int = 4, least: float = 0.1
) -> tuple[Ngrams, float]:
    """The table of some texts, and the share of next tokens that its first guess hits in texts left out.

    Chances are those of a table of the other texts, on each fold in turn. Entries whose chance is below
    `least` are left out.
    """
    hits, cases, right, all_cases = Counter(), Counter(), 0, 0
    for fold in range(folds):
        counts = count([text for number, text in enumerate(texts) if number % folds != fold])
        for prompt, answer in texts[fold::folds]:
            text = [*prompt[-ORDERS[0] :], *answer]
            for place in range(len(text) - len(answer), len(text)):
                found = _longest(counts, text[:place])
                all_cases += 1
                if found is None:
                    continue
                order, counter = found
                for rank, (token, _) in enumerate(counter.most_common(BEST)):
                    cases[bucket(order, counter, rank)] += 1
                    hits[bucket(order, counter, rank)] += token == text[place]
                right += counter.most_common(1)[0][0] == text[place]
    chance = {key: (hits[key] + 0.5) / (cases[key] + 5) for key in cases}
    arrays = {}
    for order, entries in count(texts).items():
        rows = []
        for key, counter in sorted(entries.items()):
            best = counter.most_common(BEST)
            shares = [chance.get(bucket(order, counter, rank), 0.0) for rank in range(len(best))]
            if shares[0] >= least:
                pairs = [
                    (token, share if share >= least / 2 else 0.0)
                    for (token, _), share in zip(best, shares, strict=True)
                ]
                rows.append((key, [*pairs, (0, 0.0)][:BEST]))
        arrays[f"keys{order}"] = np.array([key for key, _ in rows], dtype=np.uint64)
        arrays[f"tokens{order}"] = np.array(
            [[t for t, _ in pairs] for _, pairs in rows], dtype=np.uint16
        ).reshape(-1, BEST)
        arrays[f"chances{order}"] = np.array(
            [[round(100 * c) for _, c in pairs] for _, pairs in rows], dtype=np.uint8
        ).reshape(-1, BEST)
    return Ngrams(arrays), right / max(all_cases, 1)


def _longest(counts: dict[int, dict[int, Counter]], context: Sequence[int]) -> tuple[int, Counter] | None:
    for order in ORDERS:
        if len(context) < order:
            continue
        key = sum(context[-back] << BITS * (back - 1) for back in range(1, order + 1))
        if key in counts[order]:
            return order, counts[order][key]
    return None
