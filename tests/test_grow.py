# SPDX-License-Identifier: Apache-2.0
"""Grown trees: against a plain best-first search, lossless by enumeration and at scale."""

from __future__ import annotations

import importlib
import math
import random
from collections import defaultdict

import numpy as np
import pytest
import torch
from device import on_device
from each import NATIVE
from exact import Case, Decisions, distance, outcomes
from gtest import LEAST_P, MUTANT_P, Model, choose, g_test
from hypothesis import given
from hypothesis import strategies as st

import specdec_kernels as sdk
from specdec_kernels._random import Purpose
from specdec_kernels.drafting import children, grow
from specdec_kernels.reference import children as reference
from specdec_kernels.reference.request import Request, Tree

rules = importlib.import_module("specdec_kernels.reference.verification")
native = pytest.mark.skipif(NATIVE is None, reason="needs the native extension")
P, I, W = sdk.Proposal.POINT, sdk.Proposal.INDEPENDENT, sdk.Proposal.WITHOUT_REPLACEMENT  # noqa: E741
INF = math.inf


# A plain best-first search


class Node:
    def __init__(self, token, parent=None, kind=P, score=0.0, group=()):
        self.token, self.parent, self.kind, self.score, self.group = token, parent, kind, score, group
        self.path = () if parent is None else (*parent.path, token)
        self.number = -1

    @property
    def rank(self):
        return self.score if set(self.group) == {P} else self.parent.score


def drafted(children_of, root, max_depth, width):
    """Every node in the order in which it came, and the number of places for expanded ones."""
    nodes, level, places, expanded = [Node(root)], None, 1, 0
    for depth in range(max_depth):
        level = nodes if level is None else level
        best = sorted((n for n in level if n.score > -INF), key=lambda n: -n.score)
        level, count = [], min(width, places)
        for number, parent in enumerate(best[:count]):
            parent.number = expanded + number
            group = children_of(parent.path, depth)
            for token, kind, score in group:
                score = parent.score + score if token >= 0 else -INF
                level.append(Node(token, parent, kind, score, [g[1] for g in group]))
        nodes, places, expanded = nodes + level, count * len(children_of((), depth)), expanded + count
    return nodes, expanded


def best_first(nodes, max_nodes):
    """The tree after adding, again and again, the best node that may come next."""
    kept = nodes[:1]

    def options():
        for node in nodes:
            if node not in kept and node.parent in kept and node.score > -INF:
                elder = [n for n in nodes[: nodes.index(node)] if n.parent is node.parent and n.score > -INF]
                if set(node.group) == {P} or all(n in kept for n in elder):
                    yield node

    while (best := max(options(), key=lambda n: n.rank, default=None)) and len(kept) < max_nodes:
        kept.append(best)
    if best and len(set(best.group)) > 1:
        kept = [n for n in kept if n.parent is not best.parent]
    return kept


def depth_first(nodes, kept, node):
    below = [n for n in nodes if n in kept and n.parent is node]
    return [node] + [n for child in below for n in depth_first(nodes, kept, child)]


def random_children(seed, kinds, vocab=9):
    """A drafter: a function of the path, with scores in eighths, so that sums are exact and ties are many."""

    def children_of(path, depth):
        choices = random.Random(f"{seed} {path}")
        group = [(choices.randrange(vocab), kind, -choices.randrange(1, 12) / 8) for kind in kinds[depth]]
        left = choices.choice([1.0, 0.0]) * choices.randrange(len(group) + 1)
        for place in range(int(left)):
            if kinds[depth][-1 - place] != I:
                group[-1 - place] = (-1, kinds[depth][-1 - place], -INF)
        return group

    return children_of


def expander(drafters):
    """`expand` of a batch, request b by drafters[b]."""
    paths = {}

    def expand(frontier):
        tokens, scores = [], []
        for b, children_of in enumerate(drafters):
            for number, parent, token, score in zip(
                *(
                    part[b].tolist()
                    for part in (frontier.nodes, frontier.parents, frontier.tokens, frontier.scores)
                ),
                strict=True,
            ):
                assert (token >= 0 and score > -INF) or frontier.depth == 0 or (token == -1 and score == -INF)
                paths[b, number] = () if frontier.depth == 0 else (*paths[b, parent], token)
                group = children_of(paths[b, number], frontier.depth)
                tokens.append([g[0] for g in group])
                scores.append([g[2] for g in group])
        proposals = torch.tensor([g[1] for g in group], dtype=torch.uint8)
        return torch.tensor(tokens), proposals, torch.tensor(scores)

    return expand


GROUPS = st.sampled_from([[P], [P, P], [P, P, P], [W, W], [I, I, I], [W, P, P], [P, W], [W, W, W]])


@given(
    seed=st.integers(0, 10**6),
    kinds=st.lists(GROUPS, min_size=1, max_size=4),
    width=st.integers(1, 5),
    max_nodes=st.integers(1, 20),
)
def test_it_is_a_best_first_search(seed, kinds, width, max_nodes):
    drafters = [random_children((seed, b), kinds) for b in range(2)]
    tree, draft_rows, scores = sdk.grow_tree(
        expander(drafters), torch.tensor([100, 101]), max_nodes, max_depth=len(kinds), width=width
    )
    assert tree.max_nodes == max_nodes and int(tree.depths.max()) <= tree.max_depth
    got = [
        part.view(2, max_nodes).tolist() for part in (tree.tokens, tree.parents, tree.proposals, draft_rows)
    ]
    for b, children_of in enumerate(drafters):
        nodes, expanded = drafted(children_of, 100 + b, len(kinds), width)
        order = depth_first(nodes, best_first(nodes, max_nodes), nodes[0])
        unused = max_nodes - len(order)
        tokens, parents, proposals, rows = (part[b] for part in got)
        assert tokens == [n.token for n in order] + [-1] * unused
        assert parents == [order.index(n.parent) if n.parent else -1 for n in order] + [0] * unused
        assert proposals[: len(order)] == [n.kind for n in order]
        assert rows == [n.number + b * expanded if n.number >= 0 else -1 for n in order] + [-1] * unused
        assert scores[b].tolist() == [n.score for n in order] + [-INF] * unused


def test_the_likeliest_path_is_numbered_first():
    logits = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))

    def expand(frontier):
        rows = logits[(frontier.tokens % 3).flatten()]
        return sdk.sample_children(rows, 3, method="top_k")

    tree, _, scores = sdk.grow_tree(expand, torch.tensor([0, 1]), 12, max_depth=4, width=4)
    tokens, parents = tree.tokens.view(2, 12), tree.parents.view(2, 12)
    for b in range(2):
        token, node = b, 0
        while node + 1 in (below := [n for n in range(12) if parents[b, n] == node and tokens[b, n] >= 0]):
            assert max(below, key=lambda n: float(scores[b, n])) == node + 1
            token, node = int(logits[token % 3].argmax()), node + 1
            assert int(tokens[b, node]) == token
        assert node >= 2


# Lossless by enumeration: every draft of an adaptive tree, and every way the verifier can decide


def grown_drafts(case, method, k, max_nodes, width, declared=None):
    """Every (tree, prefixes of its nodes, probability) of a request drafted by `method`.

    `declared` says otherwise of the children while the tree grows: a mutant, which prunes as if it were so.
    """
    true = children._proposals(method, k, False, torch.device("cpu"))
    scripts = [()]
    while scripts:
        noise = Decisions(scripts.pop())
        prefixes = {}

        def expand(frontier, noise=noise, prefixes=prefixes):
            tokens, scores = [], []
            for number, parent, token in zip(
                *(part[0].tolist() for part in (frontier.nodes, frontier.parents, frontier.tokens)),
                strict=True,
            ):
                prefix = prefixes[number] = (*prefixes[parent], token) if frontier.depth else ()
                if token < 0 and frontier.depth:
                    tokens.append([-1] * k)
                    scores.append([-INF] * k)
                    continue
                q = case.q(prefix)
                drawn = reference.children(q, k, method, noise, Purpose.DRAFT, number)
                tokens.append(drawn + [-1] * (k - len(drawn)))
                scores.append([float(q[x].log()) if x >= 0 else -INF for x in tokens[-1]])
            kinds = true if declared is None else torch.full_like(true, declared)
            return torch.tensor(tokens), kinds, torch.tensor(scores)

        tree, rows, _ = sdk.grow_tree(expand, torch.tensor([0]), max_nodes, max_depth=case.depth, width=width)
        scripts += noise.others
        tokens, parents = tree.tokens.tolist(), tree.parents.tolist()
        above = [()]
        for node in range(1, max_nodes):
            above.append((*above[parents[node]], tokens[node]))
        if declared is None:
            kinds = tree.proposals.tolist()
        else:
            assert len(set(true.tolist())) == 1
            kinds = [int(true[0])] * max_nodes
        yield Tree(tokens, parents, kinds), above, rows.tolist(), noise.probability


def emitted(case, rule, *options, **mutant):
    law, shapes = defaultdict(float), set()
    for tree, above, rows, chance in grown_drafts(case, *options, **mutant):
        shapes.add(tuple(p for p, x in zip(tree.parents, tree.tokens, strict=True) if x >= 0))

        def make(noise, tree=tree, above=above, rows=rows):
            return Request(
                tree,
                case.vocab,
                target=lambda node: (case.p(above[node]), 0),
                draft=lambda node: case.q(above[node]) if rows[node] >= 0 else None,
                noise=noise,
                max_depth=case.depth,
            )

        for output, _, probability in outcomes(rule, make):
            law[output] += chance * probability
    assert len(shapes) > 1, "the shape of the tree depends on what was drawn"
    return law


ADAPTIVE = {
    "independent": (Case((0, 1), "II"), "independent", 2, 4, 2),
    "without_replacement": (Case((0, 1), "WW"), "without_replacement", 2, 4, 2),
    "without_replacement_cut_in_two": (Case((0, 1), "WW", vocab=4), "without_replacement", 2, 6, 1),
    "without_replacement_deep": (Case((0, 1, 2), "WWW"), "without_replacement", 2, 6, 1),
    "hybrid": (Case((0, 1, 2), "WWW", vocab=4), "hybrid", 2, 7, 2),
    "hybrid_cut_in_two": (Case((0, 1, 2), "WWW", vocab=4), "hybrid", 2, 8, 2),
    "zeros": (Case((0, 1), "WW", vocab=4, zeros=True), "without_replacement", 3, 6, 2),
}


@pytest.mark.parametrize("rule", [rules.match, rules.token, rules.traversal])
@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_trees_are_lossless(name, rule):
    case, *options = ADAPTIVE[name]
    law = emitted(case, rule, *options)
    assert math.isclose(sum(law.values()), 1.0, abs_tol=1e-12)
    assert distance(case, law) < 1e-12


@pytest.mark.parametrize("rule", [rules.token, rules.traversal])
@pytest.mark.parametrize("name", ["independent", "without_replacement"])
def test_mutant_sampled_children_ranked_by_their_own_scores(name, rule):
    case, *options = ADAPTIVE[name]
    law = emitted(case, rule, *options, declared=P)
    assert distance(case, law) > 1e-3


@pytest.mark.parametrize("rule", [rules.token, rules.traversal])
def test_mutant_hybrids_cut_in_two(rule, monkeypatch):
    """A hybrid's sampled child without all of its POINT siblings."""
    whole = grow._children
    monkeypatch.setattr(grow, "_children", lambda *args: mixed_no_more(whole(*args)))
    case, *options = ADAPTIVE["hybrid_cut_in_two"]
    assert distance(case, emitted(case, rule, *options)) > 1e-3


def mixed_no_more(level):
    return level._replace(mixed=torch.zeros_like(level.mixed))


# At scale, through sample_children, grow_tree and verify of the native backend

CUT = sdk.SamplingParams(temperature=1.1, top_k=5, top_p=0.93, min_p=0.02)
N = 80_000


def decode(model, method, rule, sampling, *, k=2, coupled=False, mutant=False, chunks=2, max_nodes=6):
    """First and second tokens; the second drawn from the target where the step emitted one."""
    p, generator = torch.from_numpy(model.p(sampling)), torch.Generator().manual_seed(1)
    first, second, accepted = [], [], []
    for chunk in range(chunks):
        seeds, positions = torch.arange(N) + chunk * N, torch.full((N,), 11)
        logits = []

        def expand(frontier, seeds=seeds, positions=positions, logits=logits):
            width = frontier.tokens.shape[1]
            rows = torch.where(frontier.tokens < 0, model.vocab, frontier.tokens).flatten()
            logits.append(model.draft[rows].view(N, width, -1))
            tokens, proposals, scores = sdk.sample_children(
                model.draft[rows],
                k,
                method=method,
                sampling=sampling,
                seeds=seeds.repeat_interleave(width),
                positions=(positions + (frontier.depth if coupled else 0)).repeat_interleave(width),
                nodes=frontier.nodes.flatten(),
                coupled=coupled,
                backend="cpu",
            )
            return tokens, torch.zeros_like(proposals) if mutant else proposals, scores

        tree, draft_rows, _ = sdk.grow_tree(expand, torch.full((N,), -1), max_nodes, max_depth=2, width=2)
        if mutant:
            tree.proposals.fill_(int(W))
        nodes = torch.where(tree.tokens < 0, model.vocab, tree.tokens)
        verified = sdk.verify(
            model.target[nodes],
            tree,
            torch.cat(logits, 1).flatten(0, 1),
            draft_rows=draft_rows,
            sampling=sampling,
            rule=rule,
            seeds=seeds,
            positions=positions,
            backend="cpu",
        )
        one, two = verified.tokens[:, 0], verified.tokens[:, 1]
        first.append(one)
        second.append(torch.where(verified.num_tokens > 1, two, choose(p[one], generator)))
        accepted.append(verified.num_accepted)
    return tuple(torch.cat(parts).numpy() for parts in (first, second, accepted))


def least_p(model, sampling, first, second):
    p, v = model.p(sampling), model.vocab
    pair = p[v][:, None] * p[:v]
    counts = np.bincount(first * v + second, minlength=v * v)
    return min(g_test(np.bincount(first, minlength=v), p[v]), g_test(counts, pair))


PLAIN = sdk.SamplingParams(temperature=0.9)


@native
@pytest.mark.slow
@pytest.mark.parametrize("rule", ["token", "traversal"])
@pytest.mark.parametrize("method", children.METHODS)
@pytest.mark.parametrize("sampling", [PLAIN, CUT], ids=["plain", "cut"])
def test_drafting_and_verifying_follow_the_target(method, rule, sampling):
    model = Model(7, seed=3)
    first, second, accepted = decode(model, method, rule, sampling)
    assert least_p(model, sampling, first, second) > LEAST_P
    assert accepted.mean() > 0.5


@native
@pytest.mark.slow
@pytest.mark.parametrize("method", children.METHODS)
def test_coupled_drafts_match_more(method):
    model = Model(7, seed=3, closeness=0.3)
    first, second, coupled = decode(model, method, "match", PLAIN, coupled=True, max_nodes=7)
    assert least_p(model, PLAIN, first, second) > LEAST_P
    apart = decode(model, method, "match", PLAIN, max_nodes=7)[2]
    if method == "top_k":
        assert (coupled == apart).all()
    else:
        assert coupled.mean() > apart.mean() + 0.1


@native
@pytest.mark.parametrize("rule", ["token", "traversal"])
def test_mutant_pruned_after_sampling(rule):
    model = Model(7, seed=3)
    first, second, _ = decode(model, "without_replacement", rule, PLAIN, mutant=True)
    assert least_p(model, PLAIN, first, second) < MUTANT_P


@native
def test_mutant_shared_noise_between_parents():
    """Without the parents' numbers children of different parents are drawn alike."""
    rows, keys = (
        torch.zeros(20_000, 5),
        dict(seeds=torch.arange(20_000), positions=torch.zeros(20_000).long()),
    )
    first, second, again = (
        sdk.sample_children(rows, 1, nodes=torch.full((20_000,), node), **keys)[0].flatten().numpy()
        for node in (1, 2, 1)
    )
    law = np.full(25, 1 / 25)
    assert g_test(np.bincount(first * 5 + second, minlength=25), law) > LEAST_P
    assert g_test(np.bincount(first * 5 + again, minlength=25), law) < MUTANT_P


# What the shapes are worth


@native
def test_sampled_siblings_pay_on_a_tree_of_3_2_1_1():
    """Of drafters that share one q: without replacement more than the likeliest tokens, hybrids more, and
    traversal more than the token rule."""
    model = Model(60, seed=5, closeness=0.4)
    points, sampled, hybrid = (
        {rule: expected_accepted(model, method, rule) for rule in ("token", "traversal")}
        for method in ("top_k", "without_replacement", "hybrid")
    )
    for rule in ("token", "traversal"):
        assert points[rule] + 1 < sampled[rule] < hybrid[rule] - 0.1
    for accepted in (sampled, hybrid):
        assert accepted["token"] < accepted["traversal"] - 0.1


def expected_accepted(model, method, rule, n=10_000):
    seeds, positions, logits = torch.arange(n), torch.full((n,), 5), []

    def expand(frontier):
        width = frontier.tokens.shape[1]
        rows = torch.where(frontier.tokens < 0, model.vocab, frontier.tokens).flatten()
        logits.append(model.draft[rows].view(n, width, -1))
        k = (3, 2, 1, 1)[frontier.depth]
        keys = dict(seeds=seeds.repeat_interleave(width), positions=positions.repeat_interleave(width))
        return sdk.sample_children(
            model.draft[rows], k, method=method, **keys, nodes=frontier.nodes.flatten()
        )

    tree, draft_rows, _ = sdk.grow_tree(expand, torch.full((n,), -1), 22, max_depth=4, width=6)
    nodes = torch.where(tree.tokens < 0, model.vocab, tree.tokens)
    verified = sdk.verify(
        model.target[nodes], tree, torch.cat(logits, 1).flatten(0, 1), draft_rows=draft_rows, rule=rule,
        seeds=seeds, positions=positions,
    )  # fmt: skip
    return float(verified.num_accepted.double().mean())


# What it promises of shapes, and what it refuses


def expand_points(frontier):
    rows = torch.zeros(frontier.tokens.numel(), 5, device=frontier.tokens.device)
    return sdk.sample_children(rows, 3, method="top_k")


def test_it_compiles_whole_and_reads_no_values():
    def grow(roots):
        tree, draft_rows, scores = sdk.grow_tree(expand_points, roots, 7, max_depth=3, width=2)
        return tree.tokens, tree.parents, tree.proposals, draft_rows, scores

    compiled = on_device(torch.compile(grow, fullgraph=True, backend="aot_eager"))
    for value, expected in zip(compiled(torch.tensor([3, 4])), grow(torch.tensor([3, 4])), strict=True):
        assert torch.equal(value, expected)
    assert grow(torch.zeros(2, dtype=torch.int64, device="meta"))[0].shape == (14,)


def test_levels_without_children_leave_the_root():
    def expand(frontier):
        rows = frontier.tokens.numel()
        return torch.full((rows, 2), -1), torch.zeros(2, dtype=torch.uint8), torch.full((rows, 2), -INF)

    tree, draft_rows, _ = sdk.grow_tree(expand, torch.tensor([8]), 4, max_depth=3, width=2)
    assert tree.tokens.tolist() == [8, -1, -1, -1] and draft_rows.tolist() == [0, -1, -1, -1]


def spoil(place, value):
    def expand(frontier):
        parts = list(expand_points(frontier))
        parts[place] = value
        return parts

    return expand


@pytest.mark.parametrize(
    "changes, kind, message",
    [
        (dict(roots=torch.zeros(2)), TypeError, "roots must have dtype int64, got float32"),
        (dict(roots=torch.zeros(2, 1).long()), ValueError, "roots must have shape [B], got [2, 1]"),
        (dict(max_nodes=0), ValueError, "max_nodes must be >= 1, got 0"),
        (dict(max_depth=0), ValueError, "max_depth must be >= 1, got 0"),
        (dict(width=1.0), TypeError, "width must be an int, got float"),
        (dict(expand=3), TypeError, "expand must be callable, got int"),
        (
            dict(expand=lambda frontier: None),
            TypeError,
            "expand must return tokens, proposals and scores, got N",
        ),
        (
            dict(expand=lambda frontier: (1, 2)),
            TypeError,
            "expand must return tokens, proposals and scores, got tuple of 2",
        ),
        (dict(expand=spoil(0, 3)), TypeError, "tokens of expand must be a tensor, got int"),
        (
            dict(expand=spoil(0, torch.zeros(3, 3).long())),
            ValueError,
            "tokens of expand must have shape [B * W, k] = [2, k], got [3, 3]",
        ),
        (
            dict(expand=spoil(1, torch.zeros(2).byte())),
            ValueError,
            "proposals of expand must have shape [k] = [3], got [2]",
        ),
        (
            dict(expand=spoil(2, torch.zeros(2, 3).double())),
            TypeError,
            "scores of expand must have dtype float32, got float64",
        ),
    ],
)
def test_it_refuses(changes, kind, message):
    given = (
        dict(expand=expand_points, roots=torch.tensor([1, 2]), max_nodes=5, max_depth=2, width=2) | changes
    )
    with pytest.raises(kind) as error:
        sdk.grow_tree(given.pop("expand"), given.pop("roots"), given.pop("max_nodes"), **given)
    assert f"grow_tree: {message}" in str(error.value)
