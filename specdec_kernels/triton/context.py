# SPDX-License-Identifier: Apache-2.0
"""What the rules work with: one request, its tree, and the rows of its nodes."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .arguments import Draft, Scratch, Target
from .chances import load_chance, load_coin
from .dispatch import given
from .tree import Tree, family_of, key_of, node_of, parent_of, proposal_of, token_of
from .wanted import DRAFT, TARGET


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
    bonus: tl.tensor  # -> the token after its chain, or None
    status: tl.tensor  # int32, what was known before its walk


class Child(NamedTuple):
    """A node, as a child of its parent and as a parent."""

    key: tl.tensor  # int64: ascends in sibling order
    node: tl.tensor  # int32
    parent: tl.tensor  # int32
    token: tl.tensor  # int64
    proposal: tl.tensor  # int32
    p: tl.tensor  # float64, of its token under the law of the target at its parent
    q: tl.tensor  # float64, the same of the draft, where it was drawn from that
    coin: tl.tensor  # float64
    following: tl.tensor  # int64, key of its next child; -1 = none
    proposals: tl.tensor  # int32, of all its children: a set; -1 without a row of the target


@triton.jit
def look_up(ctx, node, after):
    """A node, and its first child whose key is above `after`. All that is known of it is under way at once.
    Where there is no node (-1) it is the root, which nobody asks for."""
    node = tl.minimum(tl.maximum(node, 0), ctx.tree.count - 1)
    row = ctx.first + node
    word = tl.load(ctx.tree.nodes + node)
    key = key_of(ctx.tree, node)
    p = load_chance(ctx.scratch, row, TARGET)
    q = tl.full([], 0.0, tl.float64)
    if ctx.draft.data is not None:
        q = load_chance(ctx.scratch, row, DRAFT)
    coin = load_coin(ctx.scratch, row)
    following, proposals = family_of(ctx.tree, node, after)
    if given(ctx.target.rows):
        if tl.load(ctx.target.rows + row) < 0:  # no child is tested
            following, proposals = following * 0 - 1, proposals * 0 - 1
    return Child(
        key, node, parent_of(word), token_of(word), proposal_of(word), p, q, coin, following, proposals
    )


@triton.jit
def root_of(ctx):
    return look_up(ctx, tl.full([], 0, tl.int32), tl.full([], -1, tl.int64))


@triton.jit
def child_with(ctx, key):
    """The node with a key, and its first child."""
    return look_up(ctx, node_of(key), tl.full([], -1, tl.int64))


@triton.jit
def first_child(ctx, here, depth):
    """The key of a node's first child, as long as a path may be longer; -1 = none."""
    return tl.where(depth + 1 < ctx.width, here.following, -1)
