# SPDX-License-Identifier: Apache-2.0
"""The operators as PyTorch sees them: opcheck, compiled functions, outputs."""

from __future__ import annotations

import inspect

import pytest
import torch
from cases import leaves
from device import on_device
from each import QUICK
from records import opcheck, recorded

import specdec_kernels as sdk
from specdec_kernels import verify as verify_function
from specdec_kernels._ops import backends, calls

B, K, V = 2, 3, 37
REPORT = sdk.Logprobs("raw", 3, torch.tensor([[1, 2], [3, -1]]))


def problem():
    g = torch.Generator().manual_seed(3)
    return dict(
        target_logits=torch.randn(B * (K + 1), V, generator=g),
        tokens=torch.randint(0, V, (B, K), generator=g),
        draft_logits=torch.randn(B, K, V, generator=g),
        seeds=torch.tensor([5, -6]),
        positions=torch.tensor([10, 20]),
    )


def call(target_logits, tokens, draft_logits, seeds, positions, temperature=1.0, **options):
    tree = sdk.DraftTree.chain(tokens)
    sampling = sdk.SamplingParams(temperature=temperature, top_p=0.9)
    keys = dict(seeds=seeds, positions=positions)
    return sdk.verify(target_logits, tree, draft_logits, sampling=sampling, **keys, **options)


@pytest.mark.parametrize("backend", QUICK)
@pytest.mark.parametrize(
    "options",
    [
        dict(rule="traversal", return_logprobs=True),
        dict(rule="token", return_logprobs=REPORT, return_masks=sdk.Masks("ids", 50)),
        dict(rule="match", temperature=torch.tensor([0.0, 0.7])),
        dict(rule=sdk.Synthetic([0.5, 0.2]), draft_sampling="logprobs"),
        dict(rule="token", token_bitmask=torch.full((B * (K + 1), 2), -1, dtype=torch.int32)),
        dict(
            rule="token",
            target_rows=torch.tensor([0, 1, 2, -1, 2, 2, 7, 7]).int(),
            bonus_tokens=torch.tensor([3, 4]).int(),
            draft_sampling="probs",
        ),
    ],
)
def test_verify_passes_opcheck(monkeypatch, backend, options):
    opcheck(*recorded(monkeypatch, "verify", lambda: call(**problem(), **options, backend=backend)))


@pytest.mark.parametrize("backend", QUICK)
@pytest.mark.parametrize("temperature", [0.7, torch.tensor([0.0, 0.5, 1.0])])
def test_sample_passes_opcheck(monkeypatch, backend, temperature):
    sampling = sdk.SamplingParams(temperature=temperature, top_k=5)
    logits = torch.randn(3, V)
    run = lambda: sdk.sample(logits, sampling, return_logprobs=True, backend=backend)  # noqa: E731
    opcheck(*recorded(monkeypatch, "sample", run))


@pytest.mark.parametrize("backend", QUICK)
def test_verify_compiles_whole(backend):
    """test_module.py compiles it with inductor."""
    given = problem()
    temperature = torch.tensor([0.9, 0.0])

    def step(temperature, **given):
        verified = call(**given, temperature=temperature, return_logprobs=True, backend=backend)
        return verified, verified.tokens[:, 0] + 1

    expected, following = step(temperature, **given)
    compiled = on_device(torch.compile(step, fullgraph=True, backend="aot_eager"))
    verified, plus_one = compiled(temperature, **given)
    assert isinstance(verified, sdk.Verified)
    for field, value in list(expected._asdict().items())[:6]:
        torch.testing.assert_close(getattr(verified, field), value, equal_nan=True, rtol=0, atol=0)
    assert torch.equal(plus_one, following)


def test_reports_compile_whole():
    given = problem()

    def step(chosen, **given):
        report = sdk.Logprobs("temperature", 2, chosen)
        verified = call(**given, return_logprobs=report, return_masks=sdk.Masks())
        keys = dict(seeds=given["seeds"], positions=given["positions"])
        return verified, sdk.sample(given["target_logits"][:B], return_logprobs=report, **keys)

    compiled = on_device(torch.compile(step, fullgraph=True, backend="aot_eager"))
    expected = step(REPORT.chosen, **given)
    for got, wanted in zip(compiled(REPORT.chosen, **given), expected, strict=True):
        torch.testing.assert_close(leaves(got), leaves(wanted), rtol=0, atol=0, equal_nan=True)


def test_rows_and_bonus_tokens_compile_whole():
    given, rows = problem(), torch.tensor([0, 1, 1, -1, 4, -1, 6, 7]).int()

    def step(rows, bonus, **given):
        return call(**given, target_rows=rows, bonus_tokens=bonus, draft_sampling="logprobs").tokens

    compiled = on_device(torch.compile(step, fullgraph=True, backend="aot_eager"))
    bonus = torch.tensor([3, 4])
    assert torch.equal(compiled(rows, bonus, **given), step(rows, bonus, **given))


@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="torch 2.6 compiles no `_replace`")
def test_sampling_params_compile_whole():
    """Made inside, changed inside, and given; the order is a constant of the graph."""
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log().repeat(64, 1)
    keys = torch.arange(64)

    def step(logits, keys, given):
        last = sdk.SamplingParams(top_k=4, top_p=0.55, min_p=0.6, order="min_p_last")
        first = last._replace(order="min_p_first", min_p=torch.full((64,), 0.6))
        laws = (last, first, given)
        return [sdk.sample(logits, law, seeds=keys, positions=keys) for law in laws]

    given = sdk.SamplingParams(temperature=torch.ones(64), top_p=0.55, min_p=0.6, order="min_p_last")
    compiled = on_device(torch.compile(step, fullgraph=True, backend="aot_eager"))
    for law in (given, given._replace(order="min_p_first")):
        tokens = compiled(logits, keys, law)
        assert all(torch.equal(a, b) for a, b in zip(tokens, step(logits, keys, law), strict=True))
        expected = [{0, 1}, {0}, {0, 1} if law is given else {0}]
        assert [set(each.tolist()) for each in tokens] == expected


def test_sample_and_trees_compile_whole():
    logits, parents = torch.randn(4, V), torch.tensor([[-1, 0, 0, 1]])

    def step(logits, parents, seeds):
        tokens = sdk.sample(logits, sdk.SamplingParams(temperature=0.5), seeds=seeds, positions=seeds)
        tree = sdk.DraftTree.from_parents(tokens.unsqueeze(0), parents, max_depth=2)
        return sdk.verify(logits, tree, rule="match", seeds=seeds[:1], positions=seeds[:1]).tokens

    seeds = torch.arange(4)
    compiled = on_device(torch.compile(step, fullgraph=True, backend="aot_eager"))
    assert torch.equal(compiled(logits, parents, seeds), step(logits, parents, seeds))


def test_compiled_functions_take_batches_of_any_size():
    def step(target_logits, tree):
        return sdk.verify(target_logits, tree, rule="match").num_tokens, tree.ancestor_bits

    compiled = on_device(torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True))
    for batch in (2, 3, 5):
        tree = sdk.DraftTree.chain(torch.zeros((batch, K), dtype=torch.int64))
        counts, bits = compiled(torch.zeros(batch * (K + 1), V), tree)
        assert counts.shape == (batch,) and torch.equal(bits, tree.ancestor_bits)


def verified(target_logits, tokens, seeds):
    tree = sdk.DraftTree.chain(tokens)
    return sdk.verify(target_logits, tree, rule="match", seeds=seeds, positions=seeds).num_tokens + 1


def committed(path, tokens, table, lengths, caches):
    tree = sdk.DraftTree.chain(tokens)
    return sdk.commit_kv(caches, path, tree, table, lengths, page_size=4).lengths + 1


@pytest.mark.parametrize("step", [verified, committed])
def test_one_graph_serves_one_request_and_another_all_larger_batches(step):
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = on_device(torch.compile(step, fullgraph=True, backend=keep, dynamic=True))
    path, pages = torch.arange(K + 1).int().repeat(9, 1), torch.arange(63).view(9, 7).int()
    prefix, caches = torch.full((9,), 3).int(), [torch.zeros(63, 4, 11), torch.zeros(63, 4, 11)]
    for batch in (5, 6, 9, 1, 8, 1):  # no size of another dimension, which tracers would take for the same
        tokens = torch.zeros((batch, K), dtype=torch.int64)
        if step is verified:
            given = torch.zeros(batch * (K + 1), V), tokens, torch.zeros(batch, dtype=torch.int64)
        else:
            given = path[:batch], tokens, pages[:batch], prefix[:batch], caches
        assert torch.equal(compiled(*given), step(*given))
    assert len(graphs) == 2


@pytest.mark.parametrize("backend", QUICK)
@pytest.mark.filterwarnings("error::UserWarning")
def test_gradients_do_not_pass_and_do_not_hinder(backend):
    given = problem()
    expected = call(**given, return_logprobs=True, backend=backend)
    given["target_logits"].requires_grad_()
    given["draft_logits"].requires_grad_()
    verified = call(**given, return_logprobs=True, backend=backend)
    assert torch.equal(verified.tokens, expected.tokens) and not verified.logprobs.requires_grad
    with torch.inference_mode():
        assert torch.equal(call(**given, backend=backend).tokens, expected.tokens)


def test_fresh_seeds_come_from_the_default_generator():
    given = problem() | dict(seeds=None, positions=None)
    torch.manual_seed(1)
    first = call(**given, backend="reference")
    other = [call(**given, backend="reference") for _ in range(8)]
    torch.manual_seed(1)
    assert torch.equal(first.tokens, call(**given, backend="reference").tokens)
    assert any(not torch.equal(first.tokens, again.tokens) for again in other)


def test_ends_compile_whole_and_are_changed_in_place():
    given = problem()

    def step(stops, left, finished, **given):
        ends = sdk.Ends(stops, left, None, finished)
        return call(**given, ends=ends).tokens, left + 1

    compiled = on_device(torch.compile(step, fullgraph=True, backend="aot_eager"))
    results = []
    for run in (step, compiled):
        stops, left = torch.arange(B * 2).view(B, 2), torch.tensor([2, 9], dtype=torch.int32)
        finished = torch.zeros(B, dtype=torch.bool)
        for _ in range(2):
            results.append((*run(stops, left, finished, **given), left.clone(), finished.clone()))
    for one, other in zip(results[:2], results[2:], strict=True):
        assert all(map(torch.equal, one, other))
    assert results[0][2].tolist() != [2, 9]


@pytest.mark.parametrize("backend", QUICK)
def test_out_is_filled_and_returned(backend):
    given = problem()
    expected = call(**given, return_logprobs=True, backend=backend)
    out = sdk.Verified(*(None if value is None else torch.full_like(value, 77) for value in expected))
    assert call(**given, out=out, backend=backend) is out
    for value, wanted in zip(out, expected, strict=True):
        assert value is wanted is None or torch.equal(value.nan_to_num(-5), wanted.nan_to_num(-5))


@pytest.mark.parametrize("backend", QUICK)
def test_strided_arguments_are_read_where_they_lie(backend):
    given = problem()
    expected = call(**given, backend=backend)
    wide = torch.full((B * (K + 1), V + 3), 99.0)
    wide[:, :V] = given["target_logits"]
    draft = torch.full((K, B, V + 1), 99.0)
    draft[..., :V] = given["draft_logits"].transpose(0, 1)
    spread = {
        name: torch.stack((given[name], given[name] + 1), -1)[..., 0] for name in ("seeds", "positions")
    }
    strided = dict(target_logits=wide[:, :V], draft_logits=draft[..., :V].transpose(0, 1), **spread)
    assert torch.equal(call(**given | strided, backend=backend).tokens, expected.tokens)
    uniform = dict(target_logits=given["target_logits"].reshape(B, K + 1, V))
    assert torch.equal(call(**given | uniform, backend=backend).tokens, expected.tokens)


def test_public_function_and_operator_share_a_name():
    assert inspect.unwrap(sdk.verify) is verify_function
    assert "Tensor(a!) out_tokens" in str(torch.ops.specdec_kernels.verify.default._schema)


@pytest.mark.parametrize("operation", calls.OPERATORS)
def test_a_record_names_the_arguments_of_its_operator(operation):
    """And says of each what PyTorch is told: whether it is written, and its default."""
    record, written, chosen_by = calls.OPERATORS[operation]
    schema = getattr(torch.ops.specdec_kernels, operation).default._schema
    backend, *arguments = schema.arguments
    assert tuple(a.name for a in arguments) == record._fields and backend.name == "backend"
    assert {a.name for a in arguments if a.is_write} == set(written)
    assert {a.name: a.default_value for a in arguments if a.has_default_value()} == record._field_defaults
    assert set(chosen_by) <= set(record._fields)


def test_every_operation_has_a_record():
    records = {record for name, record in vars(calls).items() if name.endswith("Call")}
    assert {operator.record for operator in calls.OPERATORS.values()} == records
    assert set(calls.OPERATORS) == set(backends.OPERATIONS)
