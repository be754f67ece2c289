# SPDX-License-Identifier: Apache-2.0
"""The coin of every node, and p and q of its token under the laws of its parent's rows.

They are found for all nodes side by side as soon as a law is settled, so that a walk waits for one number
after the other and for nothing else."""

from __future__ import annotations

import triton
import triton.language as tl

from .law import draft_scores, probability, target_scores
from .random import coin
from .tree import NODES
from .wanted import DRAFT, TARGET

CHANCES = 4  # float64 words of a node: p, q and its coin
_CHANCES, _COIN = tl.constexpr(CHANCES), tl.constexpr(2)


@triton.jit
def _chances_of(scratch, row, side):
    return scratch.words + scratch.chances + row * _CHANCES + side


@triton.jit
def load_chance(scratch, row, side):
    """Of the token of the node with that row."""
    return tl.load(_chances_of(scratch, row, side))


@triton.jit
def load_coin(scratch, row):
    return tl.load(_chances_of(scratch, row, _COIN))


@triton.jit
def save_coin(scratch, batch, place, row):
    seed, position = tl.load(batch.seeds + place.request), tl.load(batch.positions + place.request)
    tl.store(_chances_of(scratch, row, _COIN), coin(seed, position, place.node).to(tl.float64))


@triton.jit
def _children(batch, place, begin):
    """A run of nodes: which are children of a node, their rows and their tokens."""
    child = begin + tl.arange(0, NODES)
    inside = child < place.count
    child = (place.first + child).to(tl.int64)
    mine = tl.load(batch.parents + child, mask=inside, other=-1) == place.node
    token = tl.load(batch.tokens + child, mask=mine, other=-1)
    return mine & (token >= 0), child, token


@triton.jit
def save_target_chances(target, scratch, batch, place, row, law):
    """Of the children of a node whose row has that law."""
    for begin in range(place.node + 1, place.count, NODES):
        mine, child, token = _children(batch, place, begin)
        p = probability(law, target_scores(target, row, token, mine), token)
        tl.store(_chances_of(scratch, child, TARGET), p, mask=mine)


@triton.jit
def save_draft_chances(draft, scratch, batch, place, source, vocab, law):
    """The same of the draft's row that they were drawn from."""
    for begin in range(place.node + 1, place.count, NODES):
        mine, child, token = _children(batch, place, begin)
        q = probability(law, draft_scores(draft, source, vocab, token, mine), token)
        tl.store(_chances_of(scratch, child, DRAFT), q, mask=mine)
