# SPDX-License-Identifier: Apache-2.0
"""Lookup of what followed the same tokens before: in the text itself, or in the texts of all requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

import specdec_kernels as sdk

from .tree import Tree

Search = Callable[[Tensor, Tensor], sdk.NgramTree]  # of texts [B, L] and their lengths [B]


class Lookup:
    """Draft what a search finds. Nodes of a chance below min_chance are left out."""

    def __init__(self, search: Search, max_nodes: int, min_chance: float = 0.05):
        self.search = search
        self.max_nodes = max_nodes
        self.min_chance = min_chance

    def __call__(self, contexts: Sequence[Sequence[int]]) -> list[Tree]:
        lengths = torch.tensor([len(context) for context in contexts])
        texts = torch.zeros((len(contexts), int(lengths.max())), dtype=torch.int64)
        for row, context in zip(texts, contexts, strict=True):
            row[: len(context)] = torch.tensor(context)
        drafted, scores = self.search(texts, lengths)
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


class TreeLookup(Lookup):
    """Draft what followed earlier occurrences of the texts' ends; with one branch the trees are chains."""

    def __init__(
        self,
        max_nodes: int = 16,
        branches: int = 4,
        max_ngram: int = 10,
        min_ngram: int = 1,
        min_chance: float = 0.05,
    ):
        # Where a continuation reaches the end of the text it goes on with itself: a repetition repeats.
        search = partial(
            sdk.ngram_tree,
            max_nodes=max_nodes,
            branches=branches,
            max_ngram=max_ngram,
            min_ngram=min_ngram,
            cyclic=True,
        )
        super().__init__(search, max_nodes, min_chance)


class SuffixLookup(Lookup):
    """Draft what followed the texts' ends in any text of an index, which keeps these texts, too."""

    def __init__(self, index: sdk.SuffixIndex, max_nodes: int = 16):
        super().__init__(sdk.SuffixDrafter(index, max_nodes), max_nodes)
