# SPDX-License-Identifier: Apache-2.0
"""The law of a row, and the edges of the rules that enumeration does not reach, on every backend at hand."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
import torch
from each import QUICK
from hypothesis import given
from hypothesis import strategies as st
from records import recorded

import specdec_kernels as sdk
from specdec_kernels import Proposal, SamplingParams, Status
from specdec_kernels._random import Purpose, coin, race_keys
from specdec_kernels.reference.law import allowed_tokens, draft_law, law, target_law
from specdec_kernels.reference.request import Trace
from specdec_kernels.sampling import ORDERS

NAN, INF = math.nan, math.inf
on_every_backend = pytest.mark.parametrize("backend", QUICK)
LOSSLESS = ["match", "token", "traversal"]
LOSSY = [sdk.Typical(), sdk.Relaxed(), sdk.Lenient(2.0), sdk.Synthetic(0.7)]


def plain_law(row, temperature, top_k, top_p, min_p, order):
    """The same law in loops, token by token."""
    p = np.exp((np.array(row) - max(row)) / temperature)
    p /= p.sum()
    likely = [x for x in range(len(row)) if p[x] >= min_p * max(p)]
    kept = likely if order == "min_p_first" else list(range(len(row)))
    if top_k >= 1:
        last = sorted((row[x] for x in kept), reverse=True)[: int(top_k)][-1]
        kept = [x for x in kept if row[x] >= last]
    total, best = sum(p[x] for x in kept), max(row[x] for x in kept)
    mass = {x: sum(p[y] for y in kept if row[y] > row[x]) for x in kept}
    if top_p < 1:
        kept = [x for x in kept if mass[x] < top_p * total or row[x] == best]
    kept = [x for x in kept if x in likely]
    out = np.zeros(len(row))
    out[kept] = p[kept] / p[kept].sum()
    return out


@given(
    st.lists(st.sampled_from([-3.0, -1.0, 0.0, 0.5, 0.5, 1.0, 2.0]), min_size=1, max_size=9),
    st.sampled_from([0.3, 1.0, 2.5]),
    st.sampled_from([-1, 0, 1, 2, 3, 100]),
    st.sampled_from([0.0, 0.1, 0.55, 0.9, 1.0]),
    st.sampled_from([0.0, 0.05, 0.4, 1.0]),
    st.sampled_from(ORDERS),
)
def test_law_is_what_is_written(row, temperature, top_k, top_p, min_p, order):
    params = (temperature, top_k, top_p, min_p, order)
    p = law(torch.tensor(row, dtype=torch.float64), SamplingParams(*params))
    np.testing.assert_allclose(p.numpy(), plain_law(row, *params), atol=1e-12)


def test_min_p_comes_before_top_k_and_top_p():
    row = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64).log()
    cut = law(row, SamplingParams(min_p=0.25, top_p=0.8))  # 0.5 / 0.95 < 0.8 <= 0.8 / 0.95
    np.testing.assert_allclose(cut.numpy(), [0.625, 0.375, 0, 0], atol=1e-12)
    after = law(row, SamplingParams(top_k=3, top_p=0.53))  # 0.5 / 0.95 = 0.526 < 0.53
    np.testing.assert_allclose(after.numpy(), [0.625, 0.375, 0, 0], atol=1e-12)


def test_min_p_last_comes_after_top_k_and_top_p():
    row = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()
    for top_k, top_p, first, last in (
        (0, 0.55, [1, 0, 0, 0], [4 / 7, 3 / 7, 0, 0]),  # 0.4 / 0.7 >= 0.55 > 0.4
        (3, 0.5, [1, 0, 0, 0], [4 / 7, 3 / 7, 0, 0]),  # 0.4 / 0.9 < 0.5
        (1, 1.0, [1, 0, 0, 0], [1, 0, 0, 0]),
        (0, 1.0, [4 / 7, 3 / 7, 0, 0], [4 / 7, 3 / 7, 0, 0]),
    ):
        for order, expected in zip(ORDERS, (first, last), strict=True):
            p = law(row, SamplingParams(1.0, top_k, top_p, 0.6, order))
            np.testing.assert_allclose(p.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("backend", [None, *QUICK])
def test_min_p_last_is_the_order_of_transformers(backend):
    """Rows without ties. Of a backend the log-probabilities of many draws show the law."""
    warpers = pytest.importorskip("transformers.generation.logits_process")
    g = torch.Generator().manual_seed(4)
    unlike = 0
    for trial in range(80):
        rows = torch.randn(1, 40, generator=g).double()
        temperature, top_k = (0.5, 0.8, 1.3)[trial % 3], (2, 8, 20, 40)[trial % 4]
        top_p, min_p = (0.3, 0.7, 0.9, 0.99)[trial // 2 % 4], (0.05, 0.2, 0.4, 0.7)[trial // 3 % 4]
        scores = rows
        for warper in (
            warpers.TemperatureLogitsWarper(temperature),
            warpers.TopKLogitsWarper(top_k),
            warpers.TopPLogitsWarper(top_p),
            warpers.MinPLogitsWarper(min_p),
        ):
            scores = warper(None, scores)
        params = SamplingParams(temperature, top_k, top_p, min_p, "min_p_last")
        expected = scores[0].softmax(-1)
        if backend is None:
            np.testing.assert_allclose(law(rows[0], params).numpy(), expected.numpy(), atol=1e-12)
            unlike += not torch.allclose(law(rows[0], params._replace(order=ORDERS[0])), expected)
        else:
            logits = rows.float().expand(5, -1).contiguous()
            tokens, logprobs = sdk.sample(logits, params, **keys(5), return_logprobs=True, backend=backend)
            torch.testing.assert_close(logprobs.double(), expected[tokens].log(), rtol=1e-5, atol=1e-5)
    assert backend or unlike > 5


@on_every_backend
def test_children_are_drawn_from_the_law_of_either_order(backend):
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    for order, likeliest in zip(ORDERS, ([0, -1, -1], [0, 1, -1]), strict=True):
        params = SamplingParams(top_p=0.55, min_p=0.6, order=order)
        for method in ("top_k", "without_replacement"):
            tokens, _, scores = sdk.sample_children(
                logits, 3, method=method, sampling=params, backend=backend
            )
            assert sorted(tokens[0].tolist()) == sorted(likeliest)
            kept = len(likeliest) - likeliest.count(-1)
            assert math.isclose(float(scores[0, :kept].exp().sum()), 1.0, rel_tol=1e-5)


@on_every_backend
@pytest.mark.parametrize("rule", LOSSLESS)
def test_verify_takes_each_law_in_its_own_order(backend, rule):
    """Token 1 has probability under one order alone, as a target's and as a draft's."""
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().expand(80, 2, 4).contiguous()
    tree = sdk.DraftTree.chain(torch.ones(40, 1, dtype=torch.int64))
    first, last = (SamplingParams(top_p=0.55, min_p=0.6, order=order) for order in ORDERS)
    for sampling, draft_sampling in ((first, first), (first, last), (last, first), (last, last)):
        verified = sdk.verify(
            logits[:40], tree, logits[:40, :1], sampling=sampling, draft_sampling=draft_sampling, rule=rule,
            **keys(40), backend=backend,
        )  # fmt: skip
        assert set(verified.tokens[:, 0].tolist()) == (
            {0} if sampling is first else {0, 1} if rule == "match" else {1}
        )
        told = rule != "match" and draft_sampling is first
        assert set(verified.status.tolist()) == {int(Status.IMPOSSIBLE) if told else 0}


@on_every_backend
def test_a_padding_token_thins_the_law_of_its_later_siblings_under_lenient(backend):
    q = torch.tensor([0.1, 0.0, 0.9]).log().expand(400, -1)
    p = torch.tensor([0.5, 0.5]).log().expand(400, -1)
    tree = sdk.DraftTree.from_parents(
        torch.tensor([[-1, 2, 0, -1]] * 100),
        torch.tensor([[-1, 0, 0, 0]] * 100),
        proposals=Proposal.WITHOUT_REPLACEMENT,
    )
    given = dict(rule=sdk.Lenient(1.0), **keys(100), backend=backend)
    verified = sdk.verify(p, tree, q, draft_sampling="logprobs", **given)
    expected = [coin(b, 0, 2) < 0.5 for b in range(100)]  # Q = 0.1 / (1 - 0.9)
    assert (verified.num_accepted == 1).tolist() == expected


@pytest.mark.parametrize(
    "row, allowed, expected, status",
    [
        ([1.0, NAN, 1.0], None, [0.5, 0, 0.5], Status.NAN),
        ([1.0, INF, INF], None, [0, 0.5, 0.5], 0),
        ([1.0, INF, NAN], [1, 0, 1], [1, 0, 0], Status.NAN),
        ([-INF, -INF, -INF], None, [1, 0, 0], Status.EMPTY),
        ([NAN, NAN, NAN], None, [1, 0, 0], Status.NAN | Status.EMPTY),
        ([1.0, 2.0, -INF], [0, 0, 1], [0, 0, 1], Status.EMPTY),
        ([1.0, 2.0, 3.0], [0, 0, 0], [1, 0, 0], Status.EMPTY),
        ([1.0, 1.0, 3.0], [1, 1, 0], [0.5, 0.5, 0], 0),
    ],
)
def test_rows_that_are_not_logits(row, allowed, expected, status):
    allowed = None if allowed is None else torch.tensor(allowed).bool()
    p, got = target_law(torch.tensor(row), SamplingParams(), allowed)
    assert (p.tolist(), got) == (expected, status)
    assert law(torch.tensor([1.0, 4.0, 4.0]).double(), SamplingParams(0.0)).tolist() == [0, 1, 0]
    assert law(torch.tensor([1.0, INF, INF]).double(), SamplingParams(0.0)).tolist() == [0, 1, 0]


def test_draft_rows_that_are_no_law():
    for row in ([1.0, NAN], [-INF, -INF]):
        assert draft_law(torch.tensor(row), SamplingParams(), "logits", None, 2) is None
    q = draft_law(torch.tensor([0.0, 0.0, 0.0, 0.0]), SamplingParams(), "logits", None, 2)
    assert q.tolist() == [0.25] * 4  # columns beyond the vocabulary belong to the normaliser
    narrow = draft_law(torch.tensor([0.0, 0.0]), SamplingParams(), "logits", None, 4)
    assert narrow.tolist() == [0.5, 0.5, 0, 0]
    ids = draft_law(
        torch.tensor([0.5, 0.25, 0.25]).log(), SamplingParams(2.0), "logprobs", torch.tensor([3, 0, 1]), 4
    )
    np.testing.assert_allclose(ids.numpy(), [0.25, 0.25, 0, 0.5], atol=1e-7)


def test_bitmask_is_32_tokens_a_word():
    words = torch.tensor([1 << 3, -(2**31), 1], dtype=torch.int32)
    assert allowed_tokens(words, 65).nonzero().flatten().tolist() == [3, 63, 64]


def test_draft_vocab_keeps_both_maps():
    vocab = sdk.DraftVocab.from_offsets(torch.tensor([1, 1, 2]), 6)
    assert (vocab.ids.tolist(), vocab.columns.tolist()) == ([1, 2, 4], [-1, 0, 1, -1, 2, -1])
    assert (vocab.ids.dtype, vocab.columns.dtype) == (torch.int64, torch.int32)


# From here on through the public functions.


def keys(batch, seed=0, position=0):
    return dict(seeds=torch.arange(batch) + seed, positions=torch.full((batch,), position))


def random_tree(batch, nodes, vocab, seed=0, **options):
    g = torch.Generator().manual_seed(seed)
    parents = torch.tensor(
        [[-1, *(int(torch.randint(0, n, (), generator=g)) for n in range(1, nodes))]] * batch
    )
    tokens = torch.randint(0, vocab, (batch, nodes), generator=g)
    return sdk.DraftTree.from_parents(tokens, parents, **options)


@on_every_backend
def test_sample_is_the_race_it_says(backend):
    logits = torch.randn(6, 23)
    sampling = SamplingParams(temperature=torch.tensor([0.0, 0.5, 1.0, 1.5, 0.0, 2.0]), top_k=7)
    tokens, logprobs = sdk.sample(
        logits, sampling, **keys(6, position=40), return_logprobs=True, backend=backend
    )
    for b in range(6):
        p = law(logits[b].double(), SamplingParams(float(sampling.temperature[b]), 7))
        assert int(tokens[b]) == int((p / race_keys(b, 40, Purpose.NEXT, 23)).argmax())
        assert math.isclose(float(logprobs[b]), float(p[tokens[b]].log()), rel_tol=1e-5, abs_tol=1e-6)


@on_every_backend
def test_match_emits_what_sample_would(backend):
    vocab, depth = 4, 5
    model = torch.randn(vocab + 1, vocab)  # the law after each token; row -1 after the start
    for trial in range(20):
        seeds, start = torch.tensor([trial]), 100
        expected = [-1]
        for step in range(depth + 1):
            positions = torch.tensor([start + step])
            row = model[expected[-1]].unsqueeze(0)
            expected.append(int(sdk.sample(row, seeds=seeds, positions=positions, backend=backend)))
        tree = random_tree(1, 12, vocab, seed=trial, max_depth=11)
        rows = model[[-1, *tree.tokens[1:].tolist()]]
        keyed = dict(seeds=seeds, positions=torch.tensor([start]))
        verified = sdk.verify(rows, tree, rule="match", **keyed, backend=backend)
        count = min(int(verified.num_tokens[0]), depth + 1)
        assert verified.tokens[0, :count].tolist() == expected[1 : count + 1]


@on_every_backend
@pytest.mark.parametrize("rule", LOSSLESS)
def test_greedy_requests_follow_the_first_child_that_is_the_argmax(backend, rule):
    parents = torch.tensor([[-1, 0, 0, 0, 2, 3]] * 2)
    tokens = torch.tensor([[-1, 4, 1, 1, 3, 2]] * 2)
    target = torch.zeros(12, 5)
    target[[0, 2, 3, 4, 5], [1, 3, 2, 2, 4]] = 9.0
    tree = sdk.DraftTree.from_parents(tokens, parents, proposals=Proposal.INDEPENDENT)
    sampling = SamplingParams(temperature=torch.tensor([0.0, 1.0]))
    verified = sdk.verify(
        target, tree, torch.randn(12, 5), rule=rule, sampling=sampling, return_logprobs=True, backend=backend
    )
    assert verified.tokens[0].tolist() == [1, 3, 2]  # node 2, not its duplicate, and then node 4
    assert verified.path[0].tolist() == [0, 2, 4]
    assert verified.logprobs[0].tolist() == [0.0, 0.0, 0.0]
    assert verified.num_tokens[0] == 3 and verified.num_accepted[0] == 2


@on_every_backend
@pytest.mark.parametrize("rule", [*LOSSLESS, *LOSSY])
def test_rows_of_any_values_emit_tokens_of_the_vocabulary(backend, rule):
    g = torch.Generator().manual_seed(5)
    for trial in range(40):
        vocab = (1, 3, 40)[trial % 3]
        tree = random_tree(3, 6, vocab + 2, trial, proposals=torch.randint(0, 3, (3, 6), generator=g))
        target, draft = torch.randn(18, vocab, generator=g), torch.randn(18, vocab + 1, generator=g)
        for rows in (target, draft):
            for value in (NAN, INF, -INF):
                rows[torch.rand(rows.shape, generator=g) < 0.2] = value
        mask = torch.randint(-(2**31), 2**31, (18, (vocab + 31) // 32), generator=g).int()
        sampling = SamplingParams(temperature=torch.tensor([0.0, 0.7, 1.0]), top_p=0.9)
        verified = sdk.verify(
            target, tree, draft, rule=rule, sampling=sampling, token_bitmask=mask, return_logprobs=True,
            **keys(3, trial), backend=backend,
        )  # fmt: skip
        assert_well_formed(verified, tree, vocab)


def assert_well_formed(verified, tree, vocab):
    for b in range(tree.batch_size):
        count, accepted = int(verified.num_tokens[b]), int(verified.num_accepted[b])
        assert count == accepted + 1
        tokens, path = verified.tokens[b].tolist(), verified.path[b].tolist()
        assert all(0 <= token < vocab for token in tokens[:count]) and set(tokens[count:]) <= {-1}
        assert path[0] == 0 and set(path[count:]) <= {-1}
        rows = [int(tree.cu_nodes[b]) + node for node in path[:count]]
        assert [int(tree.parents[row]) for row in rows] == [-1, *path[: count - 1]]
        assert [int(tree.tokens[row]) for row in rows[1:]] == tokens[:accepted]
        if verified.logprobs is not None:
            assert verified.logprobs[b].isnan().tolist() == [i >= count for i in range(len(tokens))]


@on_every_backend
@pytest.mark.parametrize("rule", LOSSLESS)
def test_status_speaks_of_visited_rows(backend, rule):
    target = torch.zeros(8, 3)
    target[0, 0], target[3, 1], target[4] = NAN, NAN, -INF
    tree = sdk.DraftTree.chain(torch.full((2, 3), -1))
    verified = sdk.verify(target, tree, torch.zeros(2, 3, 3), rule=rule, backend=backend)
    assert verified.status.tolist() == [Status.NAN, Status.EMPTY]
    assert int(verified.tokens[0, 0]) in (1, 2) and int(verified.tokens[1, 0]) == 0


@on_every_backend
@pytest.mark.parametrize("rule", ["token", "traversal"])
def test_draft_rows_without_a_law_count_as_none(backend, rule):
    tree = random_tree(4, 7, 9, proposals=Proposal.WITHOUT_REPLACEMENT)
    points = random_tree(4, 7, 9, proposals=Proposal.POINT)
    target, draft = torch.randn(28, 9), torch.randn(28, 9)
    expected = sdk.verify(target, points, rule=rule, **keys(4), backend=backend)
    assert torch.equal(
        sdk.verify(target, tree, rule=rule, **keys(4), backend=backend).tokens, expected.tokens
    )
    draft[:, 2] = NAN
    assert torch.equal(
        sdk.verify(target, tree, draft, rule=rule, **keys(4), backend=backend).tokens, expected.tokens
    )
    for rows in (torch.full((28,), -1).int(), torch.full((28,), 28).int()):
        given = dict(draft_rows=rows, rule=rule, **keys(4), backend=backend)
        assert torch.equal(sdk.verify(target, tree, torch.randn(28, 9), **given).tokens, expected.tokens)


@on_every_backend
@pytest.mark.parametrize("rule", ["token", "traversal"])
def test_draft_rows_may_be_laid_out_in_any_way(backend, rule):
    batch, depth, vocab = 5, 3, 11
    tree = sdk.DraftTree.chain(torch.randint(0, vocab, (batch, depth)))
    target, draft = torch.randn(batch * (depth + 1), vocab), torch.randn(batch, depth, vocab)
    given = dict(rule=rule, **keys(batch), backend=backend)
    expected = sdk.verify(target, tree, draft, **given)
    padded = torch.cat((draft, torch.zeros(batch, 1, vocab)), 1).flatten(0, 1)
    rows = torch.arange(batch * depth, dtype=torch.int32).flip(0).reshape(batch, depth)
    rows = torch.nn.functional.pad(rows, (0, 1), value=-1).flatten()
    logprobs = draft.log_softmax(-1)
    permuted = torch.randperm(vocab)
    for other in (
        sdk.verify(target, tree, padded, **given),
        sdk.verify(target, tree, draft.flatten(0, 1).flip(0), draft_rows=rows, **given),
        sdk.verify(target, tree, logprobs, draft_sampling="logprobs", **given),
        sdk.verify(target, tree, draft[..., permuted], draft_vocab=sdk.DraftVocab(permuted, vocab), **given),
    ):
        assert torch.equal(other.tokens, expected.tokens) and torch.equal(other.path, expected.path)


@on_every_backend
@pytest.mark.parametrize("rule", [*LOSSLESS, *LOSSY])
def test_a_request_does_not_depend_on_its_batch(backend, rule):
    sizes, vocab = [3, 0, 6, 1, 4], 7
    trees = [random_tree(1, size, vocab, seed=size) if size else None for size in sizes]
    rows = [torch.randn(size, vocab) for size in sizes]
    drafts = [torch.randn(size, vocab) for size in sizes]

    def flat(order, slack=0):
        tokens = torch.cat([trees[b].tokens for b in order if sizes[b]] + [torch.zeros(slack).long()])
        parents = torch.cat([trees[b].parents for b in order if sizes[b]] + [torch.full((slack,), 9).int()])
        cu_nodes = torch.tensor([0, *np.cumsum([sizes[b] for b in order])])
        tree = sdk.DraftTree.from_parents(
            tokens, parents, cu_nodes, proposals=Proposal.INDEPENDENT, max_depth=6
        )
        extra = torch.full((slack, vocab), NAN)
        seeds = torch.tensor(order)
        target, draft = (torch.cat([table[b] for b in order] + [extra]) for table in (rows, drafts))
        given = dict(rule=rule, seeds=seeds, positions=seeds + 3, backend=backend)
        return sdk.verify(target, tree, draft, **given)

    whole = flat([0, 1, 2, 3, 4], slack=2)
    for order in ([4, 2, 1, 0, 3], [2], [1], [3, 1]):
        part = flat(order)
        for field in ("tokens", "path", "num_tokens", "num_accepted", "status"):
            assert torch.equal(getattr(part, field), getattr(whole, field)[order]), field
    assert whole.num_tokens[1] == 0 and whole.num_accepted[1] == 0 and whole.status[1] == 0
    assert set(whole.tokens[1].tolist()) == set(whole.path[1].tolist()) == {-1}


@on_every_backend
@pytest.mark.parametrize("rule", [*LOSSLESS, *LOSSY])
def test_malformed_trees_are_survived(backend, rule):
    g = torch.Generator().manual_seed(2)
    for _ in range(60):
        tokens = torch.randint(-2, 7, (2, 6), generator=g)
        parents = torch.randint(-3, 8, (2, 6), generator=g)
        links = torch.randint(-3, 8, (2, 2, 6), generator=g)
        kinds = torch.randint(0, 3, (2, 6), generator=g)
        given = dict(proposals=kinds, max_depth=3, check=False)
        trees = [
            sdk.DraftTree.from_parents(tokens, parents, **given),
            sdk.DraftTree.from_links(tokens, *links, **given),
        ]
        cu_nodes = torch.randint(-5, 20, (3,), generator=g)
        given["proposals"] = kinds.flatten()
        trees.append(
            sdk.DraftTree.from_parents(tokens.flatten(), parents.flatten(), cu_nodes, max_nodes=6, **given)
        )
        for tree in trees:
            verified = sdk.verify(torch.randn(12, 5), tree, torch.randn(12, 6), rule=rule, backend=backend)
            assert bool((verified.num_tokens <= 4).all())
            for b in range(2):
                assert all(0 <= x < 5 for x in verified.tokens[b, : verified.num_tokens[b]].tolist())


@on_every_backend
@pytest.mark.parametrize("rule", ["token", "traversal", LOSSY[2]])
def test_unknown_proposals_count_as_point(backend, rule):
    parents, tokens = torch.tensor([[-1, 0, 0, 1]] * 4), torch.randint(0, 5, (4, 4))
    given = dict(rule=rule, **keys(4), backend=backend)
    target, draft = torch.randn(16, 5), torch.randn(16, 5)
    known = sdk.DraftTree.from_parents(tokens, parents, proposals=torch.tensor([[0, 0, 2, 0]] * 4))
    unknown = sdk.DraftTree.from_parents(
        tokens, parents, proposals=torch.tensor([[0, 3, 2, 255]] * 4), check=False
    )
    expected = sdk.verify(target, known, draft, **given)
    assert torch.equal(sdk.verify(target, unknown, draft, **given).tokens, expected.tokens)


@on_every_backend
@pytest.mark.parametrize("rule", [*LOSSLESS, *LOSSY])
def test_nodes_deeper_than_the_bound_are_not_visited(backend, rule):
    tokens, parents = torch.zeros((1, 5), dtype=torch.int64), torch.arange(-1, 4).unsqueeze(0)
    tree = sdk.DraftTree.from_parents(tokens, parents, max_depth=2, check=False)
    target = torch.tensor([[50.0, 0.0]]).repeat(5, 1)  # every draft passes
    verified = sdk.verify(target, tree, rule=rule, backend=backend)
    assert verified.tokens.shape == (1, 3)
    assert int(verified.num_accepted[0]) == 2 or rule in LOSSY


# Lossy rules.


def lossy_case(target, tokens, parents, rule, temperature=1.0, backend="reference", **options):
    tree = sdk.DraftTree.from_parents(torch.tensor([tokens]), torch.tensor([parents]), **options)
    sampling = SamplingParams(temperature=temperature)
    return sdk.verify(torch.tensor(target), tree, rule=rule, sampling=sampling, **keys(1), backend=backend)


@on_every_backend
def test_typical_and_relaxed_thresholds(backend):
    p = [[0.6, 0.25, 0.1, 0.05]] * 2
    rows = torch.tensor(p).log().tolist()
    entropy = -sum(x * math.log(x) for x in p[0])
    for token, x in enumerate(p[0]):
        for bound in (0.5, 2.0):
            delta = x / math.exp(-entropy) * bound
            verified = lossy_case(rows, [-1, token], [-1, 0], sdk.Typical(1.0, delta), backend=backend)
            assert bool(verified.num_accepted[0]) == (bound < 1), (token, bound)
            epsilon = min(1.0, x * bound)
            verified = lossy_case(rows, [-1, token], [-1, 0], sdk.Typical(epsilon, 1e3), backend=backend)
            assert bool(verified.num_accepted[0]) == (epsilon < x)
        for top_k in (1, 2, 3, 9):
            verified = lossy_case(rows, [-1, token], [-1, 0], sdk.Relaxed(top_k, 0.4), backend=backend)
            assert bool(verified.num_accepted[0]) == (token < top_k and 0.6 - x <= 0.4)


@on_every_backend
def test_lossy_rules_at_temperature_zero_test_the_unscaled_law_and_emit_the_argmax(backend):
    rows = torch.tensor([[0.5, 0.4, 0.1]] * 2).log().tolist()
    for rule in (sdk.Typical(0.3, 1.0), sdk.Relaxed(2, 0.2)):
        verified = lossy_case(rows, [-1, 1], [-1, 0], rule, temperature=0.0, backend=backend)
        assert verified.tokens.tolist() == [[1, 0]]


@on_every_backend
def test_lossy_rules_take_the_deepest_node_and_the_lowest_among_equals(backend):
    rows = [[5.0, 5.0, -9.0]] * 6
    tokens, parents = [-1, 0, 1, 1, 0, 2], [-1, 0, 0, 1, 2, 4]
    verified = lossy_case(rows, tokens, parents, sdk.Relaxed(2, 0.1), backend=backend)
    assert verified.path.tolist() == [[0, 1, 3, -1]]  # node 5 does not pass
    verified = lossy_case(rows, tokens, parents, sdk.Synthetic(1.0), backend=backend)
    assert verified.path.tolist() == [[0, 2, 4, 5]]


@on_every_backend
def test_synthetic_is_by_coin_and_depth(backend):
    batch, rates = 200, [0.8, 0.3]
    tree = sdk.DraftTree.chain(torch.zeros((batch, 3), dtype=torch.int64))
    given = dict(rule=sdk.Synthetic(rates), **keys(batch, 50, 9), backend=backend)
    verified = sdk.verify(torch.full((batch * 4, 2), -1.0), tree, **given)
    for b in range(batch):
        passed = [coin(50 + b, 9, node) < rates[min(node, 2) - 1] for node in (1, 2, 3)]
        assert int(verified.num_accepted[b]) == [*passed, False].index(False)
    outside = sdk.DraftTree.chain(torch.full((batch, 3), 2))
    given["rule"] = sdk.Synthetic(1.0)
    assert int(sdk.verify(torch.zeros(batch * 4, 2), outside, **given).num_accepted.sum()) == 0


def test_rules_say_whether_they_are_lossless():
    assert all(rule.lossless is False for rule in LOSSY)


def test_trace_speaks_of_rows_of_the_batch(monkeypatch):
    module = importlib.import_module("specdec_kernels.reference.verification")
    tree = sdk.DraftTree.chain(torch.tensor([[1], [0]]))
    trace = Trace(4)
    laws = torch.tensor([[0.8, 0.2], [0.0, 0.0], [0.75, 0.25], [0.0, 0.0]]).log()
    keys = dict(seeds=torch.zeros(2).long(), positions=torch.zeros(2).long())
    given = (torch.zeros(4, 2), tree, laws)
    call, _ = recorded(
        monkeypatch,
        "verify",
        lambda: sdk.verify(*given, draft_sampling="logprobs", rule="token", **keys),
    )
    module.verify(call, trace=trace)
    np.testing.assert_allclose(trace.thresholds.numpy(), [NAN, 1.0, NAN, 2 / 3], rtol=1e-7)
