# SPDX-License-Identifier: Apache-2.0
"""The draft tree of one request, seen from its nodes: who the children of a node are, and in which order."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from ..tree import Proposal

POINT = tl.constexpr(int(Proposal.POINT))
INDEPENDENT = tl.constexpr(int(Proposal.INDEPENDENT))
WITHOUT_REPLACEMENT = tl.constexpr(int(Proposal.WITHOUT_REPLACEMENT))

# Sets of proposals, as bits.
HAS_POINT = tl.constexpr(1 << POINT.value)
HAS_INDEPENDENT = tl.constexpr(1 << INDEPENDENT.value)
HAS_WITHOUT_REPLACEMENT = tl.constexpr(1 << WITHOUT_REPLACEMENT.value)

NODES = tl.constexpr(32)  # looked at together
NO_KEY = tl.constexpr(2**62)

# A node is a word: its parent in the upper 31 bits, its proposal in 2 and its token in the lower 31.
_PARENT_SHIFT = tl.constexpr(33)
_PROPOSAL_SHIFT = tl.constexpr(31)
_MOST_TOKEN = tl.constexpr(2**31 - 1)


class Tree(NamedTuple):
    """A request's tree as the walk lays it out, and how many nodes it has."""

    nodes: tl.tensor  # int64: parent, proposal and token of a drafted node; -1 = not drafted
    ranks: tl.tensor  # int32, a node's place among its siblings from 1 on; None: siblings are in index order
    count: tl.tensor


class Siblings(NamedTuple):
    """A run of nodes, of which the drafted children of one node are marked."""

    token: tl.tensor  # int64
    proposal: tl.tensor
    key: tl.tensor  # int64: ascends in sibling order; its low half is the node
    drafted: tl.tensor


@triton.jit
def request_rows(cu_nodes_ptr, request, rows):
    """First row and number of nodes of a request, inside [0, rows] whatever the offsets hold."""
    begin = tl.minimum(tl.maximum(tl.load(cu_nodes_ptr + request), 0), rows)
    end = tl.minimum(tl.maximum(tl.load(cu_nodes_ptr + request + 1), 0), rows)
    return begin, tl.maximum(end - begin, 0)


@triton.jit
def nodes_of(scratch, first):
    """-> the words of the nodes of a request whose root has that row."""
    return (scratch.words + scratch.nodes).to(tl.pointer_type(tl.int64)) + first


@triton.jit
def ranks_of(scratch, batch, first):
    """-> their ranks, or None."""
    ranks = None
    if batch.first_child is not None:
        ranks = (scratch.words + scratch.ranks).to(tl.pointer_type(tl.int32)) + first
    return ranks


@triton.jit
def clear_ranks(scratch, batch, row):
    """A launch before trees are laid out: no node is listed."""
    if batch.first_child is not None:
        tl.store((scratch.words + scratch.ranks).to(tl.pointer_type(tl.int32)) + row, 0)


@triton.jit
def _owner_of(scratch, row):
    return (scratch.words + scratch.owners).to(tl.pointer_type(tl.int32)) + row


@triton.jit
def save_owner(scratch, row, request):
    tl.store(_owner_of(scratch, row), request)


@triton.jit
def owned_rows(scratch, cu_nodes, request, rows):
    """`request_rows` of a request whose first and last row belong to it. Others have no nodes: where offsets
    are wrong and overlap, a row belongs to the shortest request that has it."""
    first, count = request_rows(cu_nodes, request, rows)
    if count > 0:
        last = tl.load(_owner_of(scratch, first + count - 1))
        mine = (tl.load(_owner_of(scratch, first)) == request) & (last == request)
        count = tl.where(mine, count, 0)
    return first, count


@triton.jit
def lay_out_node(scratch, batch, place):
    """Writes a node's word, and the ranks of its children. A node counts if it has a token and a parent of
    lower index, which must list it where there are links: a malformed tree leads neither out of bounds nor
    round in circles."""
    tree = Tree(nodes_of(scratch, place.first), ranks_of(scratch, batch, place.first), place.count)
    row = place.first + place.node
    parent = tl.load(batch.parents + row).to(tl.int64)
    proposal = tl.load(batch.proposals + row).to(tl.int64)
    proposal = tl.where(proposal > WITHOUT_REPLACEMENT, POINT, proposal)  # what is none counts as POINT
    token = tl.minimum(tl.load(batch.tokens + row), _MOST_TOKEN)
    drafted = (parent >= 0) & (parent < place.node) & (token >= 0)
    word = (parent << _PARENT_SHIFT) | (proposal << _PROPOSAL_SHIFT) | token
    tl.store(tree.nodes + place.node, tl.where(drafted, word, -1))
    if tree.ranks is not None:
        child = tl.load(batch.first_child + row)
        rank = tl.full([], 1, tl.int32)
        listed = _is_child(batch, place, child)
        while listed:
            tl.store(tree.ranks + child, rank)
            tl.debug_barrier()
            child = tl.load(batch.next_sibling + place.first + child)
            rank += 1
            listed = _is_child(batch, place, child)
            if listed:  # once: a ring of siblings ends where it began
                listed = tl.load(tree.ranks + child) == 0


@triton.jit
def _is_child(batch, place, child):
    inside = (child > place.node) & (child < place.count)
    parent = tl.load(batch.parents + place.first + tl.where(inside, child, 0))
    return inside & (parent == place.node)


@triton.jit
def token_of(word):
    return word & _MOST_TOKEN


@triton.jit
def proposal_of(word):
    return ((word >> _PROPOSAL_SHIFT) & 3).to(tl.int32)


@triton.jit
def parent_of(word):
    return (word >> _PARENT_SHIFT).to(tl.int32)


@triton.jit
def siblings(tree, parent, begin):
    """Nodes [begin, begin + NODES) as children of `parent`."""
    node = begin + tl.arange(0, NODES)
    word = tl.load(tree.nodes + node, mask=node < tree.count, other=-1)
    drafted = (word >> _PARENT_SHIFT) == parent
    key = node.to(tl.int64)
    if tree.ranks is not None:
        rank = tl.load(tree.ranks + node, mask=node < tree.count, other=0)
        drafted = drafted & (rank > 0)
        key += rank.to(tl.int64) << 32
    return Siblings(token_of(word), proposal_of(word), key, drafted)


@triton.jit
def next_child(tree, parent, after):
    """Key of the first drafted child of `parent` whose key is above `after`; -1 = none."""
    best = tl.full([], NO_KEY, tl.int64)
    begin = tl.full([], 0, tl.int32) + parent + 1
    if tree.ranks is None:
        begin = tl.maximum(begin, after.to(tl.int32) + 1)
    while begin < tree.count:
        run = siblings(tree, parent, begin)
        best = tl.minimum(best, tl.min(tl.where(run.drafted & (run.key > after), run.key, NO_KEY)))
        begin += NODES
        if tree.ranks is None:
            if best < NO_KEY:
                begin = tree.count
    return tl.where(best == NO_KEY, -1, best)


@triton.jit
def node_of(key):
    return (key & 0xFFFFFFFF).to(tl.int32)


@triton.jit
def key_of(tree, node):
    key = node.to(tl.int64)
    if tree.ranks is not None:
        key += tl.load(tree.ranks + node).to(tl.int64) << 32
    return key


@triton.jit
def _bitwise_or(a, b):
    return a | b


@triton.jit
def family_of(tree, parent, after):
    """Key of the first drafted child of `parent` whose key is above `after`, -1 = none; and the proposals
    that all its drafted children are declared with: a set."""
    best = tl.full([], NO_KEY, tl.int64)
    kinds = tl.full([], 0, tl.int32)
    for begin in range(parent + 1, tree.count, NODES):
        run = siblings(tree, parent, begin)
        best = tl.minimum(best, tl.min(tl.where(run.drafted & (run.key > after), run.key, NO_KEY)))
        kinds |= tl.reduce(tl.where(run.drafted, 1 << run.proposal, 0), 0, _bitwise_or)
    return tl.where(best == NO_KEY, -1, best), kinds


@triton.jit
def child_holding(tree, parent, token):
    """The first child with this token; -1 = none."""
    best = tl.full([], NO_KEY, tl.int64)
    for begin in range(parent + 1, tree.count, NODES):
        run = siblings(tree, parent, begin)
        best = tl.minimum(best, tl.min(tl.where(run.drafted & (run.token == token), run.key, NO_KEY)))
    return tl.where(best == NO_KEY, -1, node_of(best))
