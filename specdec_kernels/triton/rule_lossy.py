# SPDX-License-Identifier: Apache-2.0
"""The lossy rules but `threshold` and `ensemble`. Every drafted node is tested against the unchanged p; the
deepest that passes with all its ancestors is kept, the lowest index among equals."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .context import child_with, first_child, look_up
from .dispatch import given
from .end import draws_at, end_walk, law_drawn_from
from .law import exp2_wide, store_logprob, target_scores
from .logarithm import LN2
from .node import load_laws, load_node, test_child, unloaded, with_law
from .residual import nothing_rejected
from .rule_traversal import visit_words
from .settle import law_of
from .sums import load_sums
from .tree import next_child
from .wanted import BAR


class Bars(NamedTuple):
    """What p of a child must exceed, or reach, and its score reach; under `deferred`, the entropy of p."""

    p: tl.tensor  # float64
    score: tl.tensor  # float32


class Rates(NamedTuple):
    """Of `Synthetic`, per depth, where they are not constants."""

    data: tl.tensor  # [count] float32, or None
    count: tl.tensor


@triton.jit
def lossy(
    ctx, out, value0, value1, rates,
    RULE: tl.constexpr, RATES: tl.constexpr, LOGPROBS: tl.constexpr, SUMS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The first word of a node's visit is 1 + its depth if it passed; under `deferred` the second word is
    how many tokens have to match after it."""
    best = tl.full([], 0, tl.int32)
    best_depth = tl.full([], 0, tl.int32)
    status = ctx.status
    for index in range(0, ctx.tree.count):
        tl.store(visit_words(ctx, index), tl.where(index == 0, 1.0, 0.0).to(tl.float64))
        if RULE == "deferred":
            tl.store(visit_words(ctx, index) + 1, tl.full([], 0.0, tl.float64))
    for index in range(0, ctx.tree.count):
        tl.debug_barrier()
        depth = tl.load(visit_words(ctx, index)).to(tl.int32) - 1
        key = tl.full([], -1, tl.int64)
        here = look_up(ctx, index, key)
        if depth >= 0:
            key = first_child(ctx, here, depth)
            kept = depth > best_depth
            if RULE == "deferred":
                kept = kept & (tl.load(visit_words(ctx, index) + 1) == 0)
            if kept:
                best = index
                best_depth = depth
        if key >= 0:
            node = unloaded(ctx, index)
            if RULE != "synthetic":
                laws = load_laws(ctx, index, LOGPROBS)
                summed: tl.constexpr = SUMS if RULE == "lenient" else None
                node, found = load_node(ctx, here, laws, key >= 0, LOGPROBS, summed, TILE)
                status |= found
            bars = _bars(ctx, node, value0, value1, RULE, SUMS)
            while key >= 0:
                child = child_with(ctx, key)
                passes = child.token < ctx.target.vocab
                if RULE == "synthetic":
                    passes = passes & (child.coin < _rate(depth, rates, RATES))
                elif RULE == "lenient":
                    p, q, _, found = test_child(ctx, node, nothing_rejected(), child)
                    status |= found
                    passes = passes & (child.coin * q / value0 < p)
                else:
                    p = child.p
                    if RULE == "typical":
                        passes = passes & (p > bars.p)
                    elif RULE == "deferred":
                        # The bar is the entropy. A law that is a point has p > 0 for its token alone.
                        before = tl.load(visit_words(ctx, index) + 1)
                        x = target_scores(ctx.target, node.row, child.token, passes)
                        matches = (node.p.point >= 0) | (x >= node.p.top)
                        passes = passes & (p > 0) & (matches | ((before == 0) & (bars.p >= value0)))
                        after = tl.where(matches, tl.maximum(before - 1.0, 0.0), value1.to(tl.float64))
                        if passes:
                            tl.store(visit_words(ctx, child.node) + 1, after)
                    else:
                        x = target_scores(ctx.target, node.row, child.token, passes)
                        passes = passes & (p > 0) & (p >= bars.p) & (x >= bars.score)
                if passes:
                    tl.store(visit_words(ctx, child.node), (depth + 2).to(tl.float64))
                key = next_child(ctx.tree, index, key)
    node = unloaded(ctx, best)
    loaded = (ctx.greedy | ctx.has_cuts) & draws_at(ctx, best)
    if loaded:
        law, found = law_drawn_from(ctx, best, RULE)
        status |= found
        node = with_law(node, law)
    kept = end_walk(ctx, out, node, nothing_rejected(), best_depth, loaded, status, RULE)
    index = best
    for up in range(0, best_depth):
        here = look_up(ctx, index, tl.full([], -1, tl.int64))
        place = best_depth - 1 - up
        tl.store(out.tokens + place, here.token)
        tl.store(out.path + place + 1, index)
        if given(out.logprobs):
            law, _ = law_drawn_from(ctx, here.parent, RULE)
            store_logprob(out.logprobs, place, ctx.target, ctx.first + here.parent, law, here.token)
        index = here.parent
    return kept


@triton.jit
def _bars(ctx, node, value0, value1, RULE: tl.constexpr, SUMS: tl.constexpr):
    bar = tl.full([], 0.0, tl.float64)
    score = tl.full([], float("-inf"), tl.float32)
    if (RULE == "typical") | (RULE == "deferred"):
        bits = tl.full([], 0.0, tl.float64)
        if node.p.point < 0:
            amounts, _ = load_sums(ctx.scratch, node.row, tl.cdiv(ctx.target.vocab, SUMS[0]), SUMS[1])
            bits = tl.log2(node.p.mass.to(tl.float32)) - tl.sum(amounts) / node.p.mass
        if RULE == "typical":
            bar = tl.minimum(value0.to(tl.float64), value1 * exp2_wide(-bits))
        else:
            bar = bits * LN2
    elif RULE == "relaxed":
        if node.p.point < 0:
            bar = 1.0 / node.p.mass - value1
            law = law_of(ctx.scratch, node.row, BAR)
            score = law.cut
    return Bars(bar, score)


@triton.jit
def _rate(depth, rates, RATES: tl.constexpr):
    if rates.data is not None:
        rate = tl.load(rates.data + tl.minimum(depth, rates.count - 1))
    else:
        rate = tl.full([], RATES[len(RATES) - 1], tl.float32)
        for i in tl.static_range(len(RATES)):
            rate = tl.where(depth == i, RATES[i], rate)
    return rate
