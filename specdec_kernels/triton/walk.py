# SPDX-License-Identifier: Apache-2.0
"""The second launch of `verify`: one program per request walks its tree by the rule, and leaves to
`draw` what the next token is to be drawn from.

A row's law is merged from the splits that were measured. The passes that only the walk can ask for (cuts of a
visited row, residual masses, entropies) are loops of this program over the row.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .arguments import (
    PARAMS,
    Params,
    Request,
    bitmask_row,
    has_cuts,
    load_params,
    params_of,
    target_row,
)
from .cuts import BINS, row_cut
from .draw import FROM_RESIDUAL, SETTLED, UNMEASURED, Draw, draw_words, save_draw, save_kind
from .law import Law, exp2_wide, load_law, probability, store_logprob, target_law, target_scores
from .measure import TARGET, split_results
from .node import Node, Residual, load_node, nothing_rejected, ratio_of, reject, test_child, unloaded
from .race import merge_races, race_law
from .random import NEXT, coin
from .record import load, save, whole_sectors
from .row import NO_TOKEN, exponent_of, read_row
from .tracked import tracked_race
from .tree import (
    NODES,
    Tree,
    child_holding,
    lay_out,
    next_child,
    node_of,
    parent_of,
    proposal_of,
    request_rows,
    token_of,
)

_PARAMS = tl.constexpr(PARAMS)
_LEAST_BITS = tl.constexpr(-160.0)  # log2 of weights that count as 0, where -inf would make NaN


@triton.jit(do_not_specialize=["rows", "draft_count", "width"])
def verify_walk_kernel(
    target,
    draft,
    sampling,
    draft_sampling,
    tokens_ptr,  # [R]
    parents_ptr,  # [R]
    proposals_ptr,  # [R]
    first_child_ptr,  # [R] or None
    next_sibling_ptr,  # [R] or None
    cu_nodes_ptr,  # [B + 1]
    seeds_ptr,  # [B]
    positions_ptr,  # [B]
    scratch,
    out_tokens_ptr,  # [B, width]
    out_num_tokens_ptr,  # [B]
    out_num_accepted_ptr,  # [B]
    out_path_ptr,  # [B, width]
    out_logprobs_ptr,  # [B, width] or None
    out_status_ptr,  # [B]
    trace_thresholds_ptr,  # [R] or None
    trace_masses_ptr,  # [R] or None
    rows,
    draft_count,
    width,
    value0,
    value1,
    RULE: tl.constexpr,
    RATES: tl.constexpr,
    CUTS: tl.constexpr,
    DRAFT_CUTS: tl.constexpr,
    LOGPROBS: tl.constexpr,
    SPLIT: tl.constexpr,
    SPLITS: tl.constexpr,
    TILE: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    first, count = request_rows(cu_nodes_ptr, b, rows)
    draw = draw_words(scratch, b)
    save_kind(draw, SETTLED)  # unless the walk says otherwise
    out_tokens = out_tokens_ptr + b * width
    out_path = out_path_ptr + b * width
    out_logprobs = None
    if out_logprobs_ptr is not None:
        out_logprobs = out_logprobs_ptr + b * width
    depth = tl.full([], -1, tl.int32)
    if count > 0:
        params = (scratch.words + scratch.params).to(tl.pointer_type(tl.float32)) + b * (2 * _PARAMS)
        save(params, params_of(sampling, b))
        save(params + _PARAMS, params_of(draft_sampling, b))
        request = Request(
            b, first.to(tl.int64), params, params + _PARAMS, draft_count,
            seeds_ptr + b, positions_ptr + b,
            (scratch.words + scratch.bins).to(tl.pointer_type(tl.int64)) + b * BINS,
        )  # fmt: skip
        visits = scratch.words + scratch.visits + first.to(tl.int64) * _VISIT
        ranks = None
        if first_child_ptr is not None:
            ranks = (scratch.words + scratch.ranks).to(tl.pointer_type(tl.int32)) + first
        tree = Tree((scratch.words + scratch.nodes).to(tl.pointer_type(tl.int64)) + first, ranks, count)
        if first_child_ptr is not None:
            first_child_ptr += first
            next_sibling_ptr += first
        lay_out(
            tree,
            tokens_ptr + first,
            parents_ptr + first,
            proposals_ptr + first,
            first_child_ptr,
            next_sibling_ptr,
        )
        trace_thresholds = None
        trace_masses = None
        if trace_thresholds_ptr is not None:
            trace_thresholds = trace_thresholds_ptr + first
            trace_masses = trace_masses_ptr + first
        greedy = (tl.load(request.params) > 0) == 0
        if RULE == "match":
            node, depth = _match(
                target, scratch, tree, request, width,
                out_tokens, out_logprobs, out_status_ptr + b,
                CUTS, True, SPLIT, SPLITS, TILE,
            )  # fmt: skip
        elif (RULE == "token") | (RULE == "traversal"):
            if greedy:
                node, depth = _match(
                    target, scratch, tree, request, width,
                    out_tokens, out_logprobs, out_status_ptr + b,
                    CUTS, False, SPLIT, SPLITS, TILE,
                )  # fmt: skip
            elif RULE == "token":
                node, depth = _token(
                    target, draft, scratch, tree, request, width,
                    draw, out_logprobs, trace_thresholds, trace_masses,
                    CUTS, DRAFT_CUTS, LOGPROBS, SPLIT, SPLITS, TILE,
                )  # fmt: skip
            else:
                node, depth = _traversal(
                    target, draft, scratch, tree, request, width,
                    draw, visits, out_logprobs, trace_thresholds, trace_masses,
                    CUTS, DRAFT_CUTS, LOGPROBS, SPLIT, SPLITS, TILE,
                )  # fmt: skip
        else:
            node, depth = _lossy(
                target, draft, scratch, tree, request, width,
                draw, visits, out_logprobs, value0, value1,
                RULE, RATES, CUTS, DRAFT_CUTS, LOGPROBS, SPLIT, SPLITS, TILE,
            )  # fmt: skip
        _write_path(tree, node, depth, out_tokens, out_path)
    tl.store(out_num_tokens_ptr + b, depth + 1)
    tl.store(out_num_accepted_ptr + b, tl.maximum(depth, 0))
    if depth < 0:
        tl.store(out_status_ptr + b, 0)
    for begin in range(0, width, NODES):
        place = begin + tl.arange(0, NODES)
        beyond = (place > depth) & (place < width)
        tl.store(out_tokens + place, tl.full([NODES], -1, tl.int64), mask=beyond)
        tl.store(out_path + place, tl.full([NODES], -1, tl.int32), mask=beyond)
        if out_logprobs is not None:
            tl.store(out_logprobs + place, tl.full([NODES], float("nan"), tl.float32), mask=beyond)


@triton.jit
def _has_cuts(request, target):
    return has_cuts(load_params(request.params), target.vocab)


@triton.jit
def _coin(request, node):
    return coin(tl.load(request.seed), tl.load(request.position), node)


@triton.jit
def _write_path(tree, node, depth, out_tokens, out_path):
    while depth > 0:
        tl.store(out_path + depth, node)
        tl.store(out_tokens + depth - 1, token_of(tl.load(tree.nodes + node)))
        node = parent_of(tree, node)
        depth -= 1
    tl.store(out_path, 0)


# --- match, and greedy requests ----------------------------------------------------------------------------


@triton.jit
def _match(
    target, scratch, tree, request, width,
    out_tokens, out_logprobs, out_status,
    CUTS: tl.constexpr, RACE: tl.constexpr,
    SPLIT: tl.constexpr, SPLITS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Draws the target's own token at each node (the likeliest without RACE) and follows the child that
    holds it."""
    node = tl.full([], 0, tl.int32)
    depth = tl.full([], 0, tl.int32)
    child = tl.full([], 0, tl.int32)
    status = tl.full([], 0, tl.int32)
    while child >= 0:
        node = child
        row = request.first + node
        law, found = target_law(
            target, scratch, row, load_params(request.params), request.bins, CUTS, SPLIT, SPLITS, TILE
        )
        status |= found
        token = law.point
        if RACE:
            if token < 0:
                maxima, _, tokens, _, scores = split_results(
                    scratch, row, TARGET, target.vocab, SPLIT, SPLITS
                )
                scores *= tl.exp2(exponent_of(maxima, law.top, law.slope))
                _, token = merge_races(scores, tokens)
                if CUTS:
                    if _has_cuts(request, target):
                        _, token = race_law(
                            target_row(target, row), 0, target.vocab, target.vocab, bitmask_row(target, row),
                            law.top, law.slope, law.cut,
                            tl.load(request.seed), tl.load(request.position) + depth, NEXT,
                            TILE,
                        )  # fmt: skip
        token = tl.minimum(tl.maximum(token, 0), target.vocab - 1).to(tl.int64)
        store_logprob(out_logprobs, depth, target, row, law, token)
        child = tl.full([], -1, tl.int32)
        if depth + 1 < width:
            child = child_holding(tree, node, token)
        if child >= 0:
            depth += 1
        else:
            tl.store(out_tokens + depth, token)
    tl.store(out_status, status)
    return node, depth


# --- token -------------------------------------------------------------------------------------------------


@triton.jit
def _token(
    target, draft, scratch, tree, request, width,
    draw, out_logprobs, trace_thresholds, trace_masses,
    CUTS: tl.constexpr, DRAFT_CUTS: tl.constexpr, LOGPROBS: tl.constexpr,
    SPLIT: tl.constexpr, SPLITS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Leviathan et al. 2023 on a chain, recursive rejection on a tree."""
    index = tl.full([], 0, tl.int32)
    depth = tl.full([], 0, tl.int32)
    status = tl.full([], 0, tl.int32)
    walking = tl.full([], 1, tl.int32)
    while walking > 0:
        node = unloaded(request.first + index)
        state = nothing_rejected()
        key = _first_child(tree, index, depth, width)
        loaded = key >= 0
        if CUTS:
            loaded = loaded | _has_cuts(request, target)
        if loaded:
            node, found = load_node(
                target, draft, scratch, tree, request, index,
                CUTS, DRAFT_CUTS, LOGPROBS, SPLIT, SPLITS, TILE,
            )  # fmt: skip
            status |= found
        walking = tl.full([], 0, tl.int32)
        while key >= 0:
            child = node_of(key)
            word = tl.load(tree.nodes + child)
            token = token_of(word)
            proposal = proposal_of(word)
            left, q, state, found = test_child(target, draft, tree, index, node, state, key, token, proposal)
            status |= found
            if trace_thresholds is not None:
                tl.store(trace_thresholds + child, _acceptance(left, q))
            if _coin(request, child).to(tl.float64) * q < left:
                store_logprob(out_logprobs, depth, target, node.row, node.p, token)
                index = child
                depth += 1
                walking = tl.full([], 1, tl.int32)
                key = tl.full([], -1, tl.int64)
            else:
                following = next_child(tree, index, key)
                state, mass = reject(
                    target, draft, tree, index, node, state, key, proposal,
                    left, tl.full([], 1.0, tl.float64), following < 0, trace_masses is not None, TILE,
                )  # fmt: skip
                if trace_masses is not None:
                    tl.store(trace_masses + child, mass)
                key = following
        if walking == 0:
            _leave_draw(
                draw, target, draft, tree, request, index, depth, node, state, loaded, status,
            )  # fmt: skip
    return index, depth


@triton.jit
def _first_child(tree, index, depth, width):
    key = tl.full([], -1, tl.int64)
    if depth + 1 < width:
        key = next_child(tree, index, key)
    return key


@triton.jit
def _acceptance(p, q):
    """min(1, p / q), and 0 where p is 0."""
    return tl.where(p < q, p / q, tl.where(p > 0, 1.0, 0.0))


@triton.jit
def _leave_draw(words, target, draft, tree, request, index, depth, node, state, loaded, status):
    """Where and from what the next token is to be drawn."""
    ratio = tl.full([], 0.0, tl.float32)
    tracked = tl.full([], 0, tl.int32)
    score = ratio
    p_score = ratio
    token = tl.full([], NO_TOKEN, tl.int32)
    p_token = token
    if (state.b > 0) | (state.last > state.since):
        ratio = ratio_of(node, state)
        tracked = node.tracked
        if tracked > 0:
            score, token, p_score, p_token = tracked_race(
                target,
                draft,
                tree,
                index,
                node,
                state,
                tl.load(request.seed),
                tl.load(request.position) + depth,
            )
    draw = Draw(
        node.p, node.q, index, depth, status, node.drawn_from, tracked, ratio, node.rest_top,
        score, token, p_score, p_token,
    )  # fmt: skip
    save_draw(words, tl.where(loaded, FROM_RESIDUAL, UNMEASURED), draw)


# --- traversal ---------------------------------------------------------------------------------------------


class Visit(NamedTuple):
    """What is known of a node on the way before its rows are looked at."""

    w: tl.tensor  # float64, the weight that reaches it
    left: tl.tensor  # float64, P of the child under test
    key: tl.tensor  # int64, of the child under test
    following: tl.tensor  # int64, key of the child after it; -1 = none
    loaded: tl.tensor  # int32, > 0: what its rows show was saved behind


# Float64 words: behind the visit come p, q, the other fields of the node and the residual.
VISIT = whole_sectors(
    len(Visit._fields) + 2 * len(Law._fields) + len(Node._fields[2:]) + len(Residual._fields)
)
_VISIT = tl.constexpr(VISIT)
_NODE = tl.constexpr(len(Visit._fields))


@triton.jit
def _first_visit(w, following):
    return Visit(
        w, tl.full([], 1.0, tl.float64), tl.full([], -1, tl.int64), following, tl.full([], 0, tl.int32)
    )


@triton.jit
def _save_node(words, node, state):
    words += _NODE
    save(words, node.p)
    save(words + len(node.p), node.q)
    save(words + len(node.p) + len(node.q), node[2:])
    save(words + len(node.p) + len(node.q) + len(node[2:]), state)


@triton.jit
def _load_visit(words, row):
    one = tl.full([], 1.0, tl.float64)
    visit = Visit(*load(words, _first_visit(one, tl.full([], -1, tl.int64))))
    node = unloaded(row)
    state = nothing_rejected()
    if visit.loaded > 0:
        words += _NODE
        p, q = load_law(words), load_law(words + len(node.p))
        words += len(node.p) + len(node.q)
        state = Residual(*load(words + len(node[2:]), state))
        node = Node(p, q, *load(words, node[2:]))
    return visit, node, state


@triton.jit
def _traversal(
    target, draft, scratch, tree, request, width,
    draw, visits, out_logprobs, trace_thresholds, trace_masses,
    CUTS: tl.constexpr, DRAFT_CUTS: tl.constexpr, LOGPROBS: tl.constexpr,
    SPLIT: tl.constexpr, SPLITS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Traversal verification (Weng et al. 2025): block verification's tree form, the deepest nodes first.

    Of every node on the way `visits` keeps the weight w that reaches it, the child under test and the one
    after it.
    """
    index = tl.full([], 0, tl.int32)
    depth = tl.full([], 0, tl.int32)
    status = tl.full([], 0, tl.int32)
    rejected = tl.full([], 0, tl.int32)  # the child under test
    walking = tl.full([], 1, tl.int32)
    one = tl.full([], 1.0, tl.float64)
    save(visits, _first_visit(one, _first_child(tree, index, depth, width)))
    steps = 3 * tree.count + 3  # more than a sound tree needs
    while (walking > 0) & (steps > 0):
        steps -= 1
        tl.debug_barrier()
        row = request.first + index
        words = visits + index * _VISIT
        visit, node, state = _load_visit(words, row)
        w, left, key, following, loaded = visit.w, visit.left, visit.key, visit.following, visit.loaded > 0
        tl.debug_barrier()
        failed = index < 0
        if rejected > 0:
            # A rejection never raises w. Where the coin fails already and no sibling is left, the residual
            # is not needed.
            u = _coin(request, index)
            failed = (following < 0) & (depth > 0) & (u.to(tl.float64) >= w)
            if not failed:
                child = tl.minimum(node_of(key), tree.count - 1)
                state, mass = reject(
                    target, draft, tree, index, node, state, key, proposal_of(tl.load(tree.nodes + child)),
                    left, w, following < 0, trace_masses is not None, TILE,
                )  # fmt: skip
                if trace_masses is not None:
                    tl.store(trace_masses + child, mass)
                if mass > 0:
                    w = mass / (mass + (1.0 - w))
                else:
                    failed = w < 1
            rejected = tl.full([], 0, tl.int32)
        ready = (not failed) & (following < 0)  # all children were rejected, or there are none
        if ready & (depth > 0):
            if trace_thresholds is not None:
                tl.store(trace_thresholds + index, w)
            failed = not (_coin(request, index).to(tl.float64) < w)
        if failed:
            index = tl.maximum(parent_of(tree, index), 0)
            depth = tl.maximum(depth - 1, 0)
            rejected = tl.full([], 1, tl.int32)
        else:
            wanted = following >= 0
            if CUTS:
                wanted = wanted | _has_cuts(request, target)
            if wanted & (not loaded):
                node, found = load_node(
                    target, draft, scratch, tree, request, index,
                    CUTS, DRAFT_CUTS, LOGPROBS, SPLIT, SPLITS, TILE,
                )  # fmt: skip
                status |= found
            loaded = loaded | wanted
            if ready:
                walking = tl.full([], 0, tl.int32)
                _leave_draw(
                    draw, target, draft, tree, request, index, depth, node, state, loaded, status,
                )  # fmt: skip
            else:
                key = following
                child = tl.minimum(node_of(key), tree.count - 1)
                following = next_child(tree, index, key)
                word = tl.load(tree.nodes + child)
                left, q, state, found = test_child(
                    target, draft, tree, index, node, state, key, token_of(word), proposal_of(word)
                )
                status |= found
                down = _acceptance(w * left, q)
                save(words, Visit(w, left, key, following, loaded.to(tl.int32)))
                _save_node(words, node, state)
                if (down > 0) & (depth + 1 < width):
                    index = child
                    depth += 1
                    first_child = _first_child(tree, index, depth, width)
                    save(visits + index * _VISIT, _first_visit(down, first_child))
                else:
                    rejected = tl.full([], 1, tl.int32)  # nothing below can be accepted
    if out_logprobs is not None:
        node_index = index
        for up in range(0, depth):
            parent = parent_of(tree, node_index)
            store_logprob(
                out_logprobs, depth - 1 - up, target, request.first + parent,
                load_law(visits + parent * _VISIT + _NODE), token_of(tl.load(tree.nodes + node_index)),
            )  # fmt: skip
            node_index = parent
    return index, depth


# --- lossy rules -------------------------------------------------------------------------------------------


@triton.jit
def _lossy(
    target, draft, scratch, tree, request, width,
    draw, visits, out_logprobs, value0, value1,
    RULE: tl.constexpr, RATES: tl.constexpr,
    CUTS: tl.constexpr, DRAFT_CUTS: tl.constexpr, LOGPROBS: tl.constexpr,
    SPLIT: tl.constexpr, SPLITS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Every drafted node is tested against the unchanged p; the deepest that passes with all its ancestors
    is kept, the lowest index among equals. The first word of `visits` is 1 + the depth of a node that
    passed."""
    for begin in range(0, tree.count, NODES):
        place = begin + tl.arange(0, NODES)
        tl.store(
            visits + place * _VISIT, tl.where(place == 0, 1.0, 0.0).to(tl.float64), mask=place < tree.count
        )
    best = tl.full([], 0, tl.int32)
    best_depth = tl.full([], 0, tl.int32)
    status = tl.full([], 0, tl.int32)
    for index in range(0, tree.count):
        tl.debug_barrier()
        depth = tl.load(visits + index * _VISIT).to(tl.int32) - 1
        key = tl.full([], -1, tl.int64)
        if depth >= 0:
            key = _first_child(tree, index, depth, width)
            if depth > best_depth:
                best = index
                best_depth = depth
        if key >= 0:
            row = request.first + index
            node = unloaded(row)
            bar = tl.full([], 0.0, tl.float64)
            score_bar = tl.full([], float("-inf"), tl.float32)
            if RULE == "lenient":
                node, found = load_node(
                    target, draft, scratch, tree, request, index,
                    CUTS, DRAFT_CUTS, LOGPROBS, SPLIT, SPLITS, TILE,
                )  # fmt: skip
                status |= found
            elif RULE != "synthetic":
                # At temperature 0 the law at temperature 1 is tested.
                params = load_params(request.params)
                temperature = tl.where(params.temperature > 0, params.temperature, 1.0)
                testing = Params(temperature, params.top_k, params.top_p, params.min_p, params.min_p_last)
                law, found = target_law(
                    target, scratch, row, testing, request.bins, CUTS, SPLIT, SPLITS, TILE
                )
                status |= found
                node = Node(
                    law, node.q, row, node.drawn_from, node.tracked, node.rest_top, node.rest_scale, node.rest
                )
                if RULE == "typical":
                    bar = tl.minimum(
                        value0.to(tl.float64), value1 * exp2_wide(-_entropy(target, row, law, TILE))
                    )
                elif law.point < 0:
                    bar = 1.0 / law.mass - value1
                    if law.top < float("inf"):
                        one = tl.full([], 1.0, tl.float32)
                        score_bar, _ = row_cut(
                            target_row(target, row), target.vocab, bitmask_row(target, row), request.bins,
                            law.slope, law.top, law.mass.to(tl.float32),
                            value0.to(tl.float32), one, 0.0 * one, 0.0 * one, TILE,
                        )  # fmt: skip
            while key >= 0:
                child = node_of(key)
                word = tl.load(tree.nodes + child)
                token = token_of(word)
                u = _coin(request, child)
                passes = token < target.vocab
                if RULE == "synthetic":
                    rate = tl.full([], RATES[len(RATES) - 1], tl.float32)
                    for i in tl.static_range(len(RATES)):
                        rate = tl.where(depth == i, RATES[i], rate)
                    passes = passes & (u < rate)
                elif RULE == "lenient":
                    p, q, _, found = test_child(
                        target, draft, tree, index, node, nothing_rejected(), key, token, proposal_of(word)
                    )
                    status |= found
                    passes = passes & (u.to(tl.float64) * q / value0 < p)
                else:
                    x = target_scores(target, row, token, passes)
                    p = probability(node.p, x, token)
                    if RULE == "typical":
                        passes = passes & (p > bar)
                    else:
                        passes = passes & (p > 0) & (p >= bar) & (x >= score_bar)
                if passes:
                    tl.store(visits + child * _VISIT, (depth + 2).to(tl.float64))
                key = next_child(tree, index, key)
    row = request.first + best
    node = unloaded(row)
    loaded = (tl.load(request.params) > 0) == 0
    if CUTS:
        loaded = loaded | _has_cuts(request, target)
    if loaded:
        law, found = target_law(
            target, scratch, row, load_params(request.params), request.bins, CUTS, SPLIT, SPLITS, TILE
        )
        status |= found
        node = Node(
            law, node.q, row, node.drawn_from, node.tracked, node.rest_top, node.rest_scale, node.rest
        )
    state = nothing_rejected()
    _leave_draw(draw, target, draft, tree, request, best, best_depth, node, state, loaded, status)
    if out_logprobs is not None:
        index = best
        for up in range(0, best_depth):
            parent = parent_of(tree, index)
            row = request.first + parent
            law, _ = target_law(
                target, scratch, row, load_params(request.params), request.bins, CUTS, SPLIT, SPLITS, TILE
            )
            store_logprob(
                out_logprobs, best_depth - 1 - up, target, row, law, token_of(tl.load(tree.nodes + index))
            )
            index = parent
    return best, best_depth


@triton.jit
def _entropy(target, row, law, TILE: tl.constexpr):
    """In bits."""
    bits = tl.full([], 0.0, tl.float64)
    if law.point < 0:
        acc = tl.zeros([TILE], tl.float32)
        for begin in range(0, target.vocab, TILE):
            x = read_row(
                target_row(target, row), begin + tl.arange(0, TILE), target.vocab, bitmask_row(target, row)
            )
            t = exponent_of(tl.where((x == x) & (x >= law.cut), x, float("-inf")), law.top, law.slope)
            acc += tl.exp2(t) * tl.maximum(t, _LEAST_BITS)
        mean = tl.sum(acc.to(tl.float64)) / law.mass
        bits = tl.log2(law.mass.to(tl.float32)) - mean
    return bits
