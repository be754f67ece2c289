# SPDX-License-Identifier: Apache-2.0
"""What the rules work with: one request, its tree, and the rows of its nodes."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .arguments import Draft, Scratch, Target
from .chances import load_coin
from .tree import Tree, next_child, node_of, proposal_of, token_of


class Context(NamedTuple):
    """One request under verification."""

    target: Target
    draft: Draft
    scratch: Scratch
    tree: Tree
    request: tl.tensor  # int64
    first: tl.tensor  # int64, row of its root
    greedy: tl.tensor
    has_cuts: tl.tensor
    width: tl.tensor  # most nodes of a path
    draft_count: tl.tensor  # rows of the draft's logits
    seed: tl.tensor  # -> int64: kept in a register, it would be one with its schedule of keys
    position: tl.tensor  # -> int64


class Child(NamedTuple):
    """A drafted node, seen from its parent."""

    key: tl.tensor  # int64: ascends in sibling order; -1 = none
    node: tl.tensor  # int32
    token: tl.tensor  # int64
    proposal: tl.tensor  # int32


@triton.jit
def child_with(ctx, key):
    """The node with a key. Without one (-1) it is the root, which nobody asks for."""
    node = tl.minimum(tl.maximum(node_of(key), 0), ctx.tree.count - 1)
    word = tl.load(ctx.tree.nodes + node)
    return Child(key, node, token_of(word), proposal_of(word))


@triton.jit
def coin_of(ctx, node):
    """The acceptance coin of a node, float64."""
    return load_coin(ctx.scratch, ctx.first + node)


@triton.jit
def first_child(ctx, index, depth):
    """The key of a node's first child, as long as a path may be longer; -1 = none."""
    key = tl.full([], -1, tl.int64)
    if depth + 1 < ctx.width:
        key = next_child(ctx.tree, index, key)
    return key
