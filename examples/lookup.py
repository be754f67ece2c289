"""Prompt lookup: the text so far is the draft model. Chains of one continuation, trees of several."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

# How often the token after a repeated n-gram is the one that followed it before. Counted on texts that this
# model wrote for prompts other than the demo's; longer repeats count as the last entry.
TRUST = {1: 0.15, 2: 0.4, 3: 0.55, 4: 0.65, 5: 0.8, 6: 0.95}


class PromptLookup:
    """Draft what followed the most recent earlier occurrence of the context's longest repeated suffix.

    Suffixes of max_ngram tokens down to min_ngram are considered; where none occurred before, nothing is
    drafted. Given step_costs, the duration of a step by the number of tokens it feeds to the model, a draft
    is only as long as it is expected to pay: after a short repeat that may be not at all.
    """

    def __init__(
        self,
        num_draft: int = 15,
        max_ngram: int = 6,
        min_ngram: int = 2,
        step_costs: Mapping[int, float] | None = None,
    ):
        self.num_draft = num_draft
        self.max_ngram = max_ngram
        self.min_ngram = min_ngram
        self.lengths = {
            matched: num_draft if step_costs is None else _best_length(matched, num_draft, step_costs)
            for matched in range(min_ngram, max_ngram + 1)
        }

    def __call__(self, context: Sequence[int]) -> list[int]:
        tokens = np.asarray(context)
        ends = np.flatnonzero(tokens[:-1] == tokens[-1])  # where an earlier occurrence of the suffix ends
        matched = 1 if ends.size else 0
        while 0 < matched < self.max_ngram:
            longer = ends[ends >= matched]
            longer = longer[tokens[longer - matched] == tokens[-1 - matched]]
            if not longer.size:
                break
            ends = longer
            matched += 1
        if matched < self.min_ngram:
            return []
        # Where the continuation reaches the end of the context it goes on with itself: a repetition repeats.
        return np.resize(tokens[ends[-1] + 1 :], self.lengths[matched]).tolist()


class Tree(NamedTuple):
    """Tokens and the node each follows, parents first. Node 0 is the last token of the text."""

    tokens: list[int]
    parents: list[int]
    chances: Sequence[float] = ()  # that the text goes on to the node, as far as the drafter can tell

    @classmethod
    def chain(cls, tokens: Sequence[int]) -> "Tree":
        return cls(list(tokens), list(range(-1, len(tokens) - 1)))

    def likely(self, least: float) -> "Tree":
        """The nodes of at least this chance; no node has a better one than its parent."""
        kept = [node for node, chance in enumerate(self.chances) if chance >= least]
        place = {node: index for index, node in enumerate(kept)}
        return Tree(
            [self.tokens[node] for node in kept],
            [place.get(self.parents[node], -1) for node in kept],
            [self.chances[node] for node in kept],
        )


class TreeLookup:
    """Draft what followed the earlier occurrences of the context's suffix, as branches of one tree.

    Occurrences come by the length of the suffix they repeat, the most recent of equals first, and the first
    one's continuation is numbered first. A continuation is believed as far as TRUST goes in what the ones
    before it have left over, and drafted until that falls below min_chance. With one branch the tree is a
    chain.
    """

    def __init__(
        self,
        max_nodes: int = 16,
        branches: int = 4,
        max_ngram: int = 6,
        min_ngram: int = 1,
        min_chance: float = 0.05,
    ):
        self.max_nodes = max_nodes
        self.branches = branches
        self.max_ngram = max_ngram
        self.min_ngram = min_ngram
        self.min_chance = min_chance

    def __call__(self, context: Sequence[int]) -> Tree:
        text = np.asarray(context)
        tree = Tree([int(text[-1])], [-1], [1.0])
        left = [1.0]  # of each node: the chance that the text reaches it and none of its children so far
        children = {}
        for matched, end in self._occurrences(text):
            trust = TRUST[min(matched, max(TRUST))]
            node = 0
            for token in np.resize(text[end + 1 :], self.max_nodes).tolist():
                if (node, token) not in children:
                    chance = trust * left[node]
                    if chance < self.min_chance or len(left) == self.max_nodes:
                        break
                    children[node, token] = len(left)
                    tree.tokens.append(token)
                    tree.parents.append(node)
                    tree.chances.append(chance)
                    left[node] -= chance
                    left.append(chance)
                node = children[node, token]
        return tree

    def _occurrences(self, text: np.ndarray) -> list[tuple[int, int]]:
        """Length and end of the best earlier matches of the text's suffix."""
        ends = np.flatnonzero(text[:-1] == text[-1])
        matched = np.ones_like(ends)
        for length in range(1, min(self.max_ngram, len(text))):
            longer = (matched == length) & (ends >= length)
            longer &= text[ends - length] == text[-1 - length]
            matched += longer
        found = sorted(zip(matched.tolist(), ends.tolist(), strict=True), reverse=True)
        return [pair for pair in found if pair[0] >= self.min_ngram][: self.branches]


class SharedBudget:
    """Draft for a whole batch the nodes that are expected to bring the most tokens per second.

    A node more costs what it adds to the step, whoever it belongs to; so the likeliest nodes of all trees
    come first. step_costs is the duration of a step by the number of rows it feeds to the model.
    """

    def __init__(self, lookup: TreeLookup, step_costs: Mapping[int, float]):
        self.lookup = lookup
        self.sizes, self.costs = list(step_costs), list(step_costs.values())

    def __call__(self, contexts: Sequence[Sequence[int]]) -> list[Tree]:
        trees = [self.lookup(context) for context in contexts]
        chances = np.array(sorted((chance for tree in trees for chance in tree.chances), reverse=True))
        costs = np.interp(np.arange(1, len(chances) + 1), self.sizes, self.costs)
        rates = np.cumsum(chances) / costs  # the roots have chance 1: that many tokens come in any case
        best = len(trees) - 1 + int(np.argmax(rates[len(trees) - 1 :]))
        return [tree.likely(chances[best]) for tree in trees]


def no_drafts(contexts: Sequence[Sequence[int]]) -> list[Tree]:
    """Roots alone: plain decoding."""
    return [Tree.chain(context[-1:]) for context in contexts]


def _best_length(matched: int, num_draft: int, step_costs: Mapping[int, float]) -> int:
    """The draft length with the most expected tokens per second."""
    trust = TRUST[min(matched, max(TRUST))]
    lengths = np.arange(num_draft + 1)
    expected_tokens = np.cumsum(trust**lengths)
    costs = np.interp(lengths + 1, list(step_costs), list(step_costs.values()))
    return int(np.argmax(expected_tokens / costs))
