# SPDX-License-Identifier: Apache-2.0
"""Prompt lookup."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

import specdec_kernels as sdk

from .tree import Tree


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
        self.lookup = partial(
            sdk.ngram_tree, branches=branches, max_ngram=max_ngram, min_ngram=min_ngram, cyclic=True
        )

    def __call__(self, contexts: Sequence[Sequence[int]]) -> list[Tree]:
        lengths = torch.tensor([len(context) for context in contexts])
        texts = torch.zeros((len(contexts), int(lengths.max())), dtype=torch.int64)
        for row, context in zip(texts, contexts, strict=True):
            row[: len(context)] = torch.tensor(context)
        drafted, scores = self.lookup(texts, lengths, self.max_nodes)
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
