# SPDX-License-Identifier: Apache-2.0
"""Children of draft nodes: their declared laws, their noise, the backends' agreement, and what is refused."""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from device import on_device
from each import QUICK
from exact import Decisions
from gtest import LEAST_P, MUTANT_P, g_test, law_of
from hypothesis import given
from hypothesis import strategies as st
from records import opcheck, recorded

import specdec_kernels as sdk
from specdec_kernels._random import Purpose, race_keys
from specdec_kernels.drafting import children
from specdec_kernels.reference import children as reference
from specdec_kernels.reference.request import Request, Tree

METHODS = children.METHODS
CUT = sdk.SamplingParams(temperature=1.1, top_k=5, top_p=0.93, min_p=0.02)


def keys(rows, seed=0):
    g = torch.Generator().manual_seed(seed)
    return dict(
        seeds=torch.randint(-(2**62), 2**62, (rows,), generator=g),
        positions=torch.randint(2**40, (rows,), generator=g),
        nodes=torch.randint(300, (rows,), generator=g),
    )


def draws(q, k, method):
    """Every (tokens, probability) of the reference's children of a node with law q."""
    scripts = [()]
    while scripts:
        noise = Decisions(scripts.pop())
        yield reference.children(q, k, method, noise, Purpose.DRAFT, 3), noise
        scripts += noise.others


def declared_probability(q, tokens, proposals):
    """Of the tokens, by the laws that the verifier takes their proposals for."""
    count = len(tokens)
    tree = Tree([-1, *tokens], [-1] + [0] * count, [0, *proposals])
    request = Request(tree, len(q), lambda node: (q, 0), lambda node: q, None, 1)
    return math.prod(
        request.at(request.proposal_law(c), c) for c in range(1, count + 1) if tokens[c - 1] >= 0
    )


LAWS = {
    "full": [0.5, 0.25, 0.15, 0.1],
    "ties": [0.25, 0.25, 0.25, 0.25],
    "zeros": [0.0, 0.6, 0.0, 0.4],
    "one": [0.0, 0.0, 1.0, 0.0],
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("method", METHODS)
def test_tokens_have_the_law_that_their_proposals_declare(method, k, law):
    q = torch.tensor(LAWS[law], dtype=torch.float64)
    proposals = children._proposals(method, k, False, q.device).tolist()
    total = 0.0
    for tokens, noise in draws(q, k, method):
        expected = declared_probability(q, tokens, proposals)
        assert math.isclose(noise.probability, expected, rel_tol=1e-12)
        assert method != "independent" or len(tokens) == k
        total += noise.probability
    assert math.isclose(total, 1.0, rel_tol=1e-12)


def test_mutant_points_do_not_thin_an_independent_draw():
    """The hybrid declared otherwise would be refused by the test above."""
    q = torch.tensor(LAWS["full"], dtype=torch.float64)
    I, P = sdk.Proposal.INDEPENDENT, sdk.Proposal.POINT  # noqa: E741
    wrong = [
        abs(noise.probability - declared_probability(q, tokens, [I, P, P]))
        for tokens, noise in draws(q, 3, "hybrid")
    ]
    assert max(wrong) > 0.1


@pytest.mark.parametrize("sampling", [sdk.SamplingParams(temperature=0.8), CUT], ids=["plain", "cut"])
@pytest.mark.parametrize("method", METHODS)
def test_native_draws_follow_the_law(method, sampling):
    n, k, vocab = 300_000, 3, 7
    row = torch.randn(1, vocab, generator=torch.Generator().manual_seed(2)) * 1.5
    q = torch.from_numpy(law_of(row, sampling)[0])
    tokens, proposals, scores = sdk.sample_children(
        row.expand(n, vocab), k, method=method, sampling=sampling, **keys(n), backend="cpu"
    )
    counts = np.zeros([vocab] * k)
    np.add.at(counts, tuple(tokens.T.numpy()), 1)
    law = np.zeros([vocab] * k)
    for drawn, noise in draws(q, k, method):
        law[tuple(drawn)] += noise.probability
    assert g_test(counts, law) > LEAST_P
    if method in ("without_replacement", "hybrid"):
        assert g_test(counts, law.transpose(1, 0, 2)) < MUTANT_P
    torch.testing.assert_close(scores, q[tokens].log().float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", QUICK)
def test_noise_is_keyed_as_written(backend):
    vocab, k, given = 300, 5, keys(4)
    logits = torch.randn(4, vocab)
    q = logits.double().softmax(-1)
    for method in ("without_replacement", "independent"):
        tokens, _, _ = sdk.sample_children(logits, k, method=method, **given, backend=backend)
        for row in range(4):
            seed, position, node = (int(given[name][row]) for name in ("seeds", "positions", "nodes"))
            race = [
                q[row] / race_keys(seed, position, Purpose.DRAFT, vocab, node, ordinal)
                for ordinal in range(k)
            ]
            first = race[0].topk(k).indices.tolist()
            each = [int(ratio.argmax()) for ratio in race]
            assert tokens[row].tolist() == (first if method == "without_replacement" else each)


@pytest.mark.parametrize("backend", QUICK)
@pytest.mark.parametrize("method", ["independent", "without_replacement"])
def test_coupled_children_begin_with_the_target_s_own_token(method, backend):
    logits, given = torch.randn(50, 40), keys(50)
    tokens, proposals, _ = sdk.sample_children(
        logits, 3, method=method, sampling=CUT, coupled=True, **given, backend=backend
    )
    own = sdk.sample(logits, CUT, seeds=given["seeds"], positions=given["positions"], backend=backend)
    assert torch.equal(tokens[:, 0], own)
    assert proposals.tolist() == [sdk.Proposal.POINT] * 3
    apart, _, _ = sdk.sample_children(logits, 3, method=method, sampling=CUT, **given, backend=backend)
    assert not torch.equal(apart[:, 0], own)


@pytest.mark.parametrize("backend", QUICK)
def test_the_likeliest_come_in_order_and_ties_go_to_the_lowest_token(backend):
    logits = torch.tensor([[1.0, 3.0, 2.0, 3.0, -math.inf], [0.0, 0.0, 0.0, 0.0, 0.0]])
    tokens, _, scores = sdk.sample_children(logits, 5, method="top_k", backend=backend)
    assert tokens.tolist() == [[1, 3, 2, 0, -1], [0, 1, 2, 3, 4]]
    expected = logits.log_softmax(-1).gather(1, tokens.clamp_min(0))
    torch.testing.assert_close(scores[:, :4], expected[:, :4], rtol=1e-5, atol=1e-6)
    assert scores[0, 4] == -math.inf
    cut, _, _ = sdk.sample_children(
        logits, 5, method="top_k", sampling=sdk.SamplingParams(top_k=1), backend=backend
    )
    assert cut.tolist() == [[1, 3, -1, -1, -1], [0, 1, 2, 3, 4]]  # ties of the last one kept are kept


@pytest.mark.parametrize("backend", QUICK)
@pytest.mark.parametrize("method", METHODS)
def test_greedy_rows_and_rows_with_nothing_left(method, backend):
    logits = torch.tensor(
        [[0.0, 2.0, 2.0], [-math.inf] * 3, [math.nan, 1.0, -math.inf], [math.inf, 0.0, 0.0]]
    )
    sampling = sdk.SamplingParams(temperature=torch.tensor([0.0, 1.0, 1.0, 1.0]))
    tokens, _, scores = sdk.sample_children(
        logits, 2, method=method, sampling=sampling, **keys(4), backend=backend
    )
    alone = {"independent": lambda x: [x, x], "hybrid": lambda x: [-1, x]}.get(method, lambda x: [x, -1])
    assert tokens.tolist() == [alone(1), [-1, -1], alone(1), alone(0)]
    assert scores.tolist() == [[0.0 if x >= 0 else -math.inf for x in row] for row in tokens.tolist()]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_backends_agree(method):
    g = torch.Generator().manual_seed(1)
    tokens = differing = 0
    for trial in range(120):
        vocab = (1, 2, 5, 64, 200, 1500, 9000, 20_000)[trial % 8]
        dtype = (torch.float32, torch.bfloat16, torch.float16)[trial % 3]
        logits = (torch.randn(3, vocab, generator=g) * (3, 30)[trial % 2]).to(dtype)
        logits[0, ::3] = (0.5, -math.inf)[trial % 2]
        sampling = sdk.SamplingParams(
            temperature=torch.tensor([1.0, 0.4, 0.02]),
            top_k=(0, 3, 40, 2000)[trial // 8 % 4],
            top_p=(1.0, 0.9, 0.3)[trial // 2 % 3],
            min_p=(0.0, 0.01)[trial // 3 % 2],
        )
        given = dict(method=method, sampling=sampling, **keys(3, trial))
        k = (1, 4, 7, 256 if method != "independent" else 20)[trial // 5 % 4]
        native, reference = (sdk.sample_children(logits, k, **given, backend=b) for b in ("cpu", "reference"))
        assert torch.equal(native[1], reference[1])
        # Far below float32's smallest weights the native race is only run in parts.
        likely = reference[2] > -80
        same = likely & (native[0] == reference[0])
        torch.testing.assert_close(native[2][same], reference[2][same], rtol=1e-4, atol=1e-4)
        tokens, differing = tokens + int(likely.sum()), differing + int((likely & ~same).sum())
    assert tokens > 1000 and differing <= tokens * 2e-4, f"{differing} of {tokens} tokens differ"


def test_weights_far_below_the_largest_are_drawn_when_it_is_gone():
    """Next to the first token the others' weights vanish in float32; among themselves they do not."""
    logits = torch.tensor([[300.0, 3.0, 2.0, 1.0], [300.0, 3.0, -400.0, -399.0]])
    for method, k in itertools.product(("without_replacement", "hybrid"), (2, 4)):
        given = dict(method=method, **keys(2))
        native, reference = (sdk.sample_children(logits, k, **given, backend=b) for b in ("cpu", "reference"))
        assert torch.equal(native[0], reference[0]) and (native[0][:, :2] >= 0).all()


@pytest.mark.slow
@given(seed=st.integers(0, 10**6), method=st.sampled_from(METHODS))
def test_batch_threads_and_place_change_nothing(seed, method):
    given = keys(6, seed)
    logits = torch.randn(6, 30_000, generator=torch.Generator().manual_seed(seed)) * 2
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = sdk.sample_children(logits, 6, method=method, **given)
        torch.set_num_threads(2)
        again = sdk.sample_children(logits, 6, method=method, **given)
    finally:
        torch.set_num_threads(threads)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    some = {name: key[order[:4]] for name, key in given.items()}
    moved = sdk.sample_children(logits[order[:4]], 6, method=method, **some)
    for place in (0, 2):
        assert torch.equal(whole[place], again[place])
        assert torch.equal(whole[place][order[:4]], moved[place])


@pytest.mark.parametrize("backend", QUICK)
@pytest.mark.parametrize("temperature", [0.7, torch.tensor([0.0, 0.5, 1.0])])
def test_it_passes_opcheck(monkeypatch, backend, temperature):
    given = dict(method="hybrid", sampling=sdk.SamplingParams(temperature=temperature, top_k=5))
    run = partial(sdk.sample_children, torch.randn(3, 20), 2, **given, backend=backend)
    opcheck(*recorded(monkeypatch, "sample_children", run))


def test_it_compiles_whole_and_reads_no_values():
    logits, given = torch.randn(4, 30), keys(4)

    def step(logits, seeds, positions, nodes):
        tokens, proposals, scores = sdk.sample_children(
            logits, 3, method="hybrid", seeds=seeds, positions=positions, nodes=nodes
        )
        return tokens + 1, proposals, scores

    compiled = on_device(torch.compile(step, fullgraph=True, backend="aot_eager"))
    for value, expected in zip(compiled(logits, **given), step(logits, **given), strict=True):
        assert torch.equal(value, expected)
    tokens, _, scores = sdk.sample_children(torch.zeros(4, 30, device="meta"), 2)
    assert tokens.shape == scores.shape == (4, 2)


def long(*shape):
    return torch.zeros(shape, dtype=torch.int64)


@pytest.mark.parametrize(
    "changes, kind, message",
    [
        (dict(logits=torch.zeros(5)), ValueError, "logits must have shape [N, V], got [5]"),
        (dict(logits=long(2, 5)), TypeError, "logits must have dtype float32 | bfloat16 | float16 | float64"),
        (dict(logits=torch.zeros(5, 2).T), ValueError, "logits must have last stride 1, got strides [1, 2]"),
        (dict(k=0), ValueError, "k must be in [1, 256], got 0"),
        (dict(k=257), ValueError, "k must be in [1, 256], got 257"),
        (dict(k=2.0), TypeError, "k must be an int, got float"),
        (
            dict(method="best"),
            ValueError,
            "method must be one of independent, without_replacement, top_k, hyb",
        ),
        (dict(sampling=None), TypeError, "sampling must be a SamplingParams, got NoneType"),
        (dict(seeds=long(2), nodes=long(2)), ValueError, "positions must be given with seeds, got None"),
        (dict(seeds=long(2), positions=long(2)), ValueError, "nodes must be given with seeds, got None"),
        (dict(positions=long(2)), ValueError, "positions must be None without seeds, got [2]"),
        (dict(nodes=long(2)), ValueError, "nodes must be None without seeds, got [2]"),
        (
            dict(seeds=long(2), positions=long(3), nodes=long(2)),
            ValueError,
            "positions must have shape [N] = [2], got [3]",
        ),
        (
            dict(seeds=long(2), positions=long(2), nodes=long(3)),
            ValueError,
            "nodes must have shape [N] = [2], got [3]",
        ),
        (dict(nodes=torch.zeros(2)), TypeError, "nodes must have dtype int64 | int32, got float32"),
        (dict(backend="cuda"), ValueError, "backend must be one of auto, reference, cpu, triton, got 'cuda'"),
    ],
)
def test_it_refuses(changes, kind, message):
    with pytest.raises(kind) as error:
        sdk.sample_children(**(dict(logits=torch.zeros(2, 5), k=2) | changes))
    assert f"sample_children: {message}" in str(error.value)


# Chains


@pytest.mark.parametrize("backend", QUICK)
@pytest.mark.parametrize("sampling", [sdk.SamplingParams(), CUT, sdk.SamplingParams(temperature=0.0)])
def test_a_chain_draws_as_an_only_child_of_its_node(sampling, backend):
    logits, given = torch.randn(5, 30), keys(5)
    del given["nodes"]
    for node in (0, 3):
        tokens, proposal = sdk.draft_token(logits, node, sampling=sampling, backend=backend, **given)
        parents = torch.full((5,), node)
        children, proposals, _ = sdk.sample_children(
            logits, 1, method="independent", sampling=sampling, nodes=parents, backend=backend, **given
        )
        assert torch.equal(tokens, children[:, 0]) and proposals.tolist() == [proposal]


@pytest.mark.parametrize("backend", QUICK)
def test_a_chain_of_a_reduced_vocabulary_gets_tokens_of_the_target(backend):
    ids = torch.tensor([9, 4, 7])
    vocab = sdk.DraftVocab(ids, 12)
    logits = torch.randn(400, 3)
    logits[0] = -torch.inf
    given = dict(seeds=torch.arange(400), positions=torch.zeros(400).long(), backend=backend)
    columns, _ = sdk.draft_token(logits, 2, **given)
    tokens, _ = sdk.draft_token(logits, 2, draft_vocab=vocab, **given)
    assert tokens[0] == columns[0] == -1 and set(columns[1:].tolist()) == {0, 1, 2}
    assert torch.equal(tokens[1:], ids[columns[1:]])


def test_a_chain_compiles_whole_and_reads_no_values():
    logits, given = torch.randn(4, 30), keys(4)
    del given["nodes"]

    def chain(logits, seeds, positions):
        drafted = [sdk.draft_token(logits, i, seeds=seeds, positions=positions)[0] for i in range(3)]
        return torch.stack(drafted, 1)

    compiled = on_device(torch.compile(chain, fullgraph=True, backend="aot_eager"))
    assert torch.equal(compiled(logits, **given), chain(logits, **given))
    assert sdk.draft_token(torch.zeros(4, 30, device="meta"), 0)[0].shape == (4,)


@pytest.mark.parametrize(
    "changes, kind, message",
    [
        (dict(logits=torch.zeros(2, 3, 5)), ValueError, "logits must have shape [B, Vd], got [2, 3, 5]"),
        (dict(logits=long(2, 5)), TypeError, "logits must have dtype float32 | bfloat16 | float16 | float64"),
        (dict(logits=torch.zeros(5, 2).T), ValueError, "logits must have last stride 1, got strides [1, 2]"),
        (dict(node=-1), ValueError, "node must be >= 0, got -1"),
        (dict(node=True), TypeError, "node must be an int, got bool"),
        (dict(node=long(2)), TypeError, "node must be an int, got Tensor"),
        (dict(sampling=None), TypeError, "sampling must be a SamplingParams, got NoneType"),
        (
            dict(draft_vocab=sdk.DraftVocab(torch.arange(4), 9)),
            ValueError,
            "logits must have shape [B, Vd], Vd of draft_vocab, = [2, 4], got [2, 5]",
        ),
        (dict(draft_vocab=long(5)), TypeError, "draft_vocab must be a DraftVocab, got Tensor"),
        (dict(seeds=long(2)), ValueError, "positions must be given with seeds, got None"),
        (dict(positions=long(2)), ValueError, "positions must be None without seeds, got [2]"),
        (dict(seeds=long(3), positions=long(2)), ValueError, "seeds must have shape [B] = [2], got [3]"),
        (dict(seeds=long(2), positions=long(1)), ValueError, "positions must have shape [B] = [2], got [1]"),
    ],
)
def test_draft_token_refuses(changes, kind, message):
    with pytest.raises(kind) as error:
        sdk.draft_token(**(dict(logits=torch.zeros(2, 5), node=0) | changes))
    assert f"draft_token: {message}" in str(error.value)
