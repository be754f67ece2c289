# SPDX-License-Identifier: Apache-2.0
"""Several continuations of a text as one tree.

search  (B, splits)   of every split of a text: its best occurrences, as in ngram.py
tree    (B, pieces)   the tree of their continuations, of which every program writes a piece

An occurrence adds a chain of nodes to the tree: of its continuation, what the occurrences before it do not
have in common with it. So a chain is known by its stem, the chain that it leaves (-1 at the root), by the
level of the node where it does, and by the chance of its first node; every further node has the `trust` of
its level of the chance before it.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

from .._ops.calls import NgramTreeCall
from .arguments import compiler_options
from .dispatch import Launch, current, device_of
from .launch import NGRAM_LISTED, NGRAM_NODES, ngram_branches
from .ngram import best_below, search, text_length, token_after


@cache
def _kernel(
    device: Any, tokens: torch.dtype, lengths: torch.dtype, cyclic: bool, trusted: int, branches: int
) -> Launch:
    """trusted: how many numbers `trust` has, which the kernel is compiled for."""
    block_branches, block_depths, warps = ngram_branches(branches)
    constants = dict(
        CYCLIC=cyclic,
        LISTED=NGRAM_LISTED,
        BRANCHES=block_branches,
        DEPTHS=block_depths,
        NODES=NGRAM_NODES,
    )
    with current(device):
        options = compiler_options(warps)
    return Launch(
        _ngram_tree_kernel,
        device,
        constants,
        aligned=("listed_ptr",),
        num_warps=warps,
        **options,
        enable_fp_fusion=False,  # chances have the bits of the reference
    )


def ngram_tree(call: NgramTreeCall) -> None:
    """Fill the outputs, in two launches."""
    batch, max_nodes = call.out_tokens.shape
    if batch == 0:
        return
    packed = struct.pack(f"{len(call.trust)}d", *call.trust)
    bits = tuple(2**62 + bits for (bits,) in struct.iter_unpack("q", packed))
    listed, _ = search(call, branches=call.branches, places=False)
    launch = _kernel(
        device_of(call.tokens),
        call.tokens.dtype,
        call.lengths.dtype,
        call.cyclic,
        len(bits),
        ngram_branches(call.branches)[0],
    )
    launch(
        (batch, triton.cdiv(max_nodes, NGRAM_NODES), 1),
        call.tokens, call.lengths, listed, call.out_tokens, call.out_parents, call.out_scores, bits,
        call.tokens.shape[1], listed.shape[1], call.branches, min(call.max_depth, max_nodes - 1), max_nodes,
    )  # fmt: skip


@triton.jit
def _ngram_tree_kernel(
    tokens_ptr,  # [B, width]
    lengths_ptr,  # [B]
    listed_ptr,  # [B, splits, branches]
    out_tokens_ptr,  # [B, max_nodes]
    out_parents_ptr,  # [B, max_nodes]
    out_scores_ptr,  # [B, max_nodes]
    trust_bits,  # tuple of 2^62 + the bits of a float64, which arguments cannot be
    width,
    splits,
    branches,
    max_depth,
    max_nodes,
    CYCLIC: tl.constexpr,
    LISTED: tl.constexpr,
    BRANCHES: tl.constexpr,
    DEPTHS: tl.constexpr,
    NODES: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    tokens_ptr += b * width
    listed_ptr += b * splits * branches
    length = text_length(lengths_ptr, b, width)

    # What each occurrence is, the best first, and how many tokens go on from it.
    lane = tl.arange(0, BRANCHES)
    occurrences = tl.full([BRANCHES], -1, tl.int64)
    best = tl.full([], 2**63 - 1, tl.int64)
    for branch in range(branches):
        best = best_below(best, listed_ptr, splits * branches, LISTED)
        occurrences = tl.where(lane == branch, best, occurrences)
    ends = occurrences.to(tl.int32)
    n = (occurrences >> 32).to(tl.int32)
    counts = tl.zeros([BRANCHES], tl.int32) + max_depth
    if not CYCLIC:
        counts = tl.minimum(counts, length - 1 - ends)
    counts = tl.where(occurrences >= 0, counts, 0)

    # The chain of each, in turn. Ranks are those of chains in the order of numbers.
    stems = tl.full([BRANCHES], -1, tl.int32)
    levels = tl.zeros([BRANCHES], tl.int32)
    ranks = tl.zeros([BRANCHES], tl.int32)
    chances = tl.zeros([BRANCHES], tl.float64)  # of first nodes
    rests = tl.zeros([BRANCHES], tl.float64)  # what the chain leaves of its chance to who comes after it
    for branch in range(branches):
        before = lane < branch
        common = _common_depths(tokens_ptr, length, ends, counts, before, branch, CYCLIC, DEPTHS)
        level = tl.maximum(tl.max(common), 0)
        through = common == level  # the node that the chain leaves is on their paths
        stem = tl.where(level > 0, tl.min(tl.where(through, lane, BRANCHES)), -1)
        rank = tl.max(tl.where(through, ranks, -1)) + 1  # behind all that is below that node
        ranks = tl.where(before & (ranks >= rank), ranks + 1, ranks)
        siblings = before & (stems == stem) & (levels == level) & (counts > levels)
        sibling = tl.max(tl.where(siblings, lane, -1))
        rest = tl.full([], 1.0, tl.float64)
        if sibling >= 0:
            rest = _at(rests, sibling)
        elif level > 0:
            rest = _at(chances, stem)
            repeated = _at(n, stem)
            for above in range(_at(levels, stem) + 1, level):
                rest *= _trust(trust_bits, repeated + above)
            if _at(counts, stem) > level:
                rest -= rest * _trust(trust_bits, repeated + level)
        chance = rest * _trust(trust_bits, _at(n, branch) + level)
        here = lane == branch
        stems, levels = tl.where(here, stem, stems), tl.where(here, level, levels)
        ranks = tl.where(here, rank, ranks)
        chances, rests = tl.where(here, chance, chances), tl.where(here, rest - chance, rests)

    # Chances fall along a chain: the best nodes are merged from the heads of the chains.
    taken = tl.zeros([BRANCHES], tl.int32)
    heads = tl.where(counts > levels, chances, 0.0)
    nodes, top = 1, tl.max(heads)
    while (nodes < max_nodes) & (top > 0):
        first = lane == tl.min(tl.where(heads == top, lane, BRANCHES))
        taken += first.to(tl.int32)
        trusts = _trust(trust_bits, n + levels + taken)
        heads = tl.where(first, tl.where(levels + taken < counts, heads * trusts, 0.0), heads)
        top = tl.max(heads)
        nodes += 1

    starts = tl.full([BRANCHES], 1, tl.int32)  # numbers of first nodes
    for branch in range(branches):
        starts += tl.where(ranks > _at(ranks, branch), _at(taken, branch), 0)
    root = tl.load(tokens_ptr + length - 1, mask=length > 0, other=-1)
    node = tl.program_id(1) * NODES + tl.arange(0, NODES)
    there = node < nodes
    parents = tl.where(node == 0, -1, 0)
    node_ends = tl.full([NODES], -1, tl.int32)
    places = tl.zeros([NODES], tl.int32)  # in the continuation
    steps = tl.zeros([NODES], tl.int32)  # from the first node of the chain
    node_chances = tl.full([NODES], 1.0, tl.float64)
    repeats = tl.zeros([NODES], tl.int32)  # tokens of the first node's n-gram
    for branch in range(branches):
        start, stem, level = _at(starts, branch), _at(stems, branch), _at(levels, branch)
        parent = tl.where(level > 0, _at(starts, stem) + level - _at(levels, stem) - 1, 0)
        inside = (node >= start) & (node < start + _at(taken, branch))
        parents = tl.where(inside, tl.where(node == start, parent, node - 1), parents)
        node_ends = tl.where(inside, _at(ends, branch), node_ends)
        places = tl.where(inside, level + node - start, places)
        steps = tl.where(inside, node - start, steps)
        node_chances = tl.where(inside, _at(chances, branch), node_chances)
        repeats = tl.where(inside, _at(n, branch) + level, repeats)
    for step in range(1, tl.max(steps) + 1):
        trusts = _trust(trust_bits, repeats + step)
        node_chances = tl.where(step <= steps, node_chances * trusts, node_chances)
    tokens = token_after(tokens_ptr, length, node_ends, places, there & (node > 0), CYCLIC)
    tokens = tl.where(node == 0, root, tl.where(there, tokens, -1))
    scores = tl.where(there, tl.log(node_chances).to(tl.float32), float("-inf"))
    out = b * max_nodes + node
    tl.store(out_tokens_ptr + out, tokens, mask=node < max_nodes)
    tl.store(out_parents_ptr + out, parents, mask=node < max_nodes)
    tl.store(out_scores_ptr + out, scores, mask=node < max_nodes)


@triton.jit
def _trust(trust_bits, n):
    """What a repeated n-gram is believed, float64; of n beyond the last number as of the last."""
    trust = tl.zeros_like(n).to(tl.float64)
    for i in tl.static_range(len(trust_bits)):
        trust = tl.where(n > i, (trust_bits[i] - 2**62).to(tl.float64, bitcast=True), trust)
    return trust


@triton.jit
def _at(values, place):
    """One of some values, as a scalar."""
    return tl.sum(tl.where(tl.arange(0, values.shape[0]) == place, values, 0))


@triton.jit
def _common_depths(
    tokens_ptr, length, ends, counts, before, branch, CYCLIC: tl.constexpr, DEPTHS: tl.constexpr
):
    """How many tokens each continuation and that of `branch` begin with in common; -1 of those not `before`
    it."""
    end, count = _at(ends, branch), _at(counts, branch)
    most = tl.minimum(counts, count)
    common = tl.where(before, 0, -1)
    first = 0
    while (first < count) & (tl.max(common) == first):
        asked = common == first
        i = first + tl.arange(0, DEPTHS)
        there = asked[:, None] & (i[None, :] < most[:, None])
        own = token_after(tokens_ptr, length, end, i, i < count, CYCLIC)
        others = token_after(tokens_ptr, length, ends[:, None], i[None, :], there, CYCLIC)
        same = there & (others == own[None, :])
        first += DEPTHS
        common = tl.where(asked, tl.min(tl.where(same, first, i[None, :]), axis=1), common)
    return common
