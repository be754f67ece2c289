# SPDX-License-Identifier: Apache-2.0
"""Functions for engines without a hook, on stand-in tensors: LMDeploy 0.18.0 and TensorRT-LLM, 2026."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from each import BACKENDS
from gtest import LEAST_P, MUTANT_P, choose, g_test
from synchronisation import Counted, no_synchronisation

import specdec_kernels as sdk
from bench import engines
from specdec_kernels import _kept
from specdec_kernels._ops import backends
from specdec_kernels.integrations import lmdeploy, tensorrt_llm

VOCAB, ROOT, TOP_K = 6, 2, 3


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_parameters_are_those_of_the_engines():
    """`RejectionSampler.forward` without self; two functions of TensorRT-LLM, the first a method."""
    assert parameters(lmdeploy.rejection_sample) == [
        "target_logits", "draft_token_ids", "expanded_sampling_inputs", "draft_probs",
    ]  # fmt: skip
    assert parameters(tensorrt_llm.verify_dynamic_tree_rejection_out) == [
        "draft_tokens", "target_logits_tree", "retrieve_next_token", "retrieve_next_sibling", "tree_valid",
        "temperatures", "top_k", "top_p", "num_gens", "num_spec_step", "seed", "offset",
    ]  # fmt: skip
    assert parameters(tensorrt_llm.rejection_sampling_one_model) == [
        "draft_probs", "draft_token_ids", "target_probs", "deterministic", "seed", "offset",
    ]  # fmt: skip


def sampling_inputs(batch: int, rows: int, **changed) -> SimpleNamespace:
    """Of LMDeploy's `SamplingInputs`, expanded to a row for every token."""
    values = dict(max_top_k=0, has_greedy=False, top_k=None, top_p=None, min_p=None)
    values |= dict(random_seeds=None, random_offsets=None) | changed
    return SimpleNamespace(
        **{
            name: value.repeat_interleave(rows) if isinstance(value, torch.Tensor) else value
            for name, value in values.items()
        }
    )


def test_lmdeploy_literals():
    logits = torch.nn.functional.one_hot(torch.tensor([[2, 3, 1], [2, 3, 1], [0, 3, 1]]), 5).float() * 9
    drafts = torch.tensor([[2, 3], [2, 4], [-1, 3]])
    tokens, rejected, last = lmdeploy.rejection_sample(logits, drafts, sampling_inputs(3, 3, max_top_k=1))
    assert tokens.tolist() == [[2, 3, 1], [2, 3, -1], [0, -1, -1]]
    assert rejected.tolist() == [0, 1, 2] and last.tolist() == [1, 3, 0]
    assert {part.dtype for part in (tokens, rejected, last)} == {torch.int64}


def test_lmdeploy_mixes_greedy_and_sampled_requests():
    """top_k = 1 is greedy, and ties go to the lowest index."""
    inputs = sampling_inputs(2, 1, max_top_k=4, has_greedy=True, top_k=torch.tensor([1, 4]))
    logits, none = torch.zeros(2, 1, 4), torch.empty(2, 0, dtype=torch.int64)
    drawn = torch.stack([lmdeploy.rejection_sample(logits, none, inputs)[2] for _ in range(80)])
    assert set(drawn[:, 0].tolist()) == {0} and len(set(drawn[:, 1].tolist())) == 4


def test_lmdeploy_seeds_and_offsets_fix_the_text():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(VOCAB, VOCAB, generator=generator)
    drafts = torch.randint(VOCAB, (8, 3), generator=generator)
    before = torch.cat((torch.full((8, 1), ROOT), drafts), 1)
    seeds, offsets = torch.arange(8), 10 * torch.arange(8)
    inputs = sampling_inputs(8, 4, random_seeds=seeds, random_offsets=offsets)
    tokens, rejected, _ = lmdeploy.rejection_sample(table[before], drafts, inputs)
    last = before[:, 0]
    for depth in range(4):
        last = sdk.sample(table[last], seeds=seeds, positions=offsets + depth)
        kept = depth <= 3 - rejected
        assert torch.equal(tokens[:, depth][kept], last[kept])
    assert rejected.max() > rejected.min()


def law_of(table: torch.Tensor, top_k: int = VOCAB) -> torch.Tensor:
    p = torch.softmax(table.double(), -1)
    p = torch.where(p >= p.topk(top_k, -1).values[:, -1:], p, 0.0)
    return p / p.sum(-1, keepdim=True)


def p_value(tokens, counts, p, generator) -> float:
    """Of the first two tokens under the target alone. Where one came, plain torch draws the second."""
    first = tokens[:, 0].long()
    second = torch.where(counts > 1, tokens[:, 1].long(), choose(p[first], generator))
    seen = np.zeros((VOCAB, VOCAB))
    np.add.at(seen, (first.numpy(), second.numpy()), 1)
    return g_test(seen, (p[ROOT].unsqueeze(1) * p).numpy())


def sampled_chain(draws: int, generator):
    table = torch.randn(VOCAB, VOCAB, generator=generator)
    q = torch.softmax(table + torch.randn(VOCAB, VOCAB, generator=generator), -1)
    tokens = torch.full((draws, 4), ROOT)
    for node in range(1, 4):
        tokens[:, node] = choose(q.double()[tokens[:, node - 1]], generator)
    return table, q[tokens[:, :-1]], tokens


@pytest.mark.slow
@pytest.mark.parametrize("given", [True, False])
def test_lmdeploy_law(given):
    generator = torch.Generator().manual_seed(3)
    table, q, tokens = sampled_chain(200_000, generator)
    top_k = torch.full((len(tokens),), TOP_K)

    def emit(count: int, **inputs) -> float:
        more = sampling_inputs(count, 4, max_top_k=TOP_K, **inputs)
        drafts = q[:count] if given else None
        out, rejected, _ = lmdeploy.rejection_sample(table[tokens[:count]], tokens[:count, 1:], more, drafts)
        return p_value(out, 4 - rejected, law_of(table, TOP_K), generator)

    assert emit(len(tokens), top_k=top_k) > LEAST_P
    assert emit(20_000) < MUTANT_P  # as LMDeploy 0.18.0 has it: no cut where a token was drafted


@pytest.mark.slow
def test_tensorrt_llm_chain_law():
    generator = torch.Generator().manual_seed(4)
    table, q, tokens = sampled_chain(200_000, generator)
    p = law_of(table)

    def emit(count: int, draft: torch.Tensor) -> float:
        out, kept = tensorrt_llm.rejection_sampling_one_model(
            draft[:count],
            tokens[:count, 1:].int(),
            p.float()[tokens[:count]],
            seed=torch.tensor([5]),
            offset=0,
        )
        assert out.dtype == kept.dtype == torch.int32
        return p_value(out, kept, p, generator)

    assert emit(len(tokens), q) > LEAST_P
    assert emit(20_000, q.roll(1, -1)) < MUTANT_P


def test_tensorrt_llm_greedy_rows_are_points():
    target = torch.nn.functional.one_hot(torch.tensor([[2, 3, 1], [2, 3, 1]]), 5).float()
    drafts = torch.tensor([[2, 3], [2, 4]])
    draft_probs = torch.nn.functional.one_hot(drafts, 5).float()
    tokens, count = tensorrt_llm.rejection_sampling_one_model(draft_probs, drafts, target)
    assert tokens.tolist() == [[2, 3, 1], [2, 3, -1]] and count.tolist() == [3, 2]


FIRST, AFTER = torch.tensor([1, 3, -1, -1]).int(), torch.tensor([-1, 2, -1, -1]).int()  # of 0 -> 1, 2; 1 -> 3


def tree_step(drafts, logits, valid=None, temperature=0.0, seed=0, offset=0, width=3):
    batch = len(drafts)
    return tensorrt_llm.verify_dynamic_tree_rejection_out(
        drafts, logits, FIRST.expand(batch, -1), AFTER.expand(batch, -1), valid,
        torch.full((batch,), temperature), torch.full((batch,), TOP_K), None, batch, width, seed, offset,
    )  # fmt: skip


def test_tensorrt_llm_tree_literals():
    """The third request has no tree yet. Padding is 0, from which TensorRT-LLM takes 1 for nodes."""
    argmax = torch.tensor([[4, 0, 0, 1], [3, 1, 0, 5], [3, 1, 0, 5]])
    logits = torch.nn.functional.one_hot(argmax, VOCAB).float().flatten(0, 1) * 9
    drafts = torch.tensor([[3, 4, 1]] * 3)
    index, count, tokens = tree_step(drafts, logits, torch.tensor([True, True, False]))
    assert index.tolist() == [[0, 2, 0], [0, 1, 3], [0, 0, 0]]
    assert count.tolist() == [1, 2, 0]
    assert tokens.tolist() == [[4, 0, 0], [3, 1, 5], [3, 0, 0]]
    assert {part.dtype for part in (index, count, tokens)} == {torch.int64}


@pytest.mark.slow
def test_tensorrt_llm_tree_law():
    generator = torch.Generator().manual_seed(6)
    table = torch.randn(VOCAB, VOCAB, generator=generator)

    def emit(count: int, drafts: list[int], rows: list[int]) -> float:
        logits = table[torch.tensor([ROOT, *rows])].repeat(count, 1)
        _, kept, tokens = tree_step(torch.tensor([drafts] * count), logits, temperature=1.0, seed=8)
        return p_value(tokens, kept + 1, law_of(table, TOP_K), generator)

    one, other, *_ = law_of(table, TOP_K)[ROOT].argsort(descending=True).tolist()
    assert emit(200_000, [one, other, 4], [one, other, 4]) > LEAST_P
    assert emit(20_000, [one, other, 4], [other, one, 4]) < MUTANT_P  # rows of other nodes


def test_tensorrt_llm_requests_share_a_seed_and_no_noise():
    """Neither at other depths, nor in the next step, nor with another offset."""
    keys, cpu = set(), torch.device("cpu")
    places = tensorrt_llm._positions(4, 3, cpu).tolist()
    for seed, offset in ((1, 0), (2, 0), (1, 1)):
        for own, place in zip(tensorrt_llm._seeds(seed, offset, 4, cpu).tolist(), places, strict=True):
            keys |= {(own, place + depth) for depth in range(3)}
    assert len(keys) == 3 * 4 * 3


def test_nothing_synchronises():
    generator = torch.Generator().manual_seed(3)
    table, q, tokens = sampled_chain(4, generator)
    seed = torch.tensor([3])
    inputs = sampling_inputs(4, 4, max_top_k=3, has_greedy=True, top_k=torch.tensor([1, 2, 3, 3]))
    logits, p, drafts, valid = (
        table[tokens],
        law_of(table).float()[tokens],
        tokens[:, 1:],
        torch.ones(4).bool(),
    )
    with no_synchronisation():
        lmdeploy.rejection_sample(logits, drafts, inputs, q)
        tensorrt_llm.rejection_sampling_one_model(q, drafts, p, seed=seed, offset=seed)
        tree_step(drafts, logits.flatten(0, 1), valid, 1.0, seed, seed)


@pytest.mark.parametrize("most", [_kept.MOST_KEPT, 0])
def test_steps_of_many_sizes_are_those_of_fresh_trees(monkeypatch, most):
    """Other batches and depths, then the first again. Results of a step outlive the steps after it. With 0 no
    sizes are kept that were not before."""
    monkeypatch.setattr(_kept, "MOST_KEPT", most)
    if most == 0:  # as in a thread that has kept nothing
        monkeypatch.setattr(_kept, "get_ident", lambda: -1)
    g, results = torch.Generator().manual_seed(9), []
    for batch, nodes in ((3, 4), (3, 4), (1, 4), (3, 2), (2, 5), (3, 4)):
        logits, last = 3 * torch.randn(batch, nodes, VOCAB, generator=g), torch.arange(batch)
        drafts = torch.randint(VOCAB, (batch, nodes - 1), generator=g)
        seeds, offsets = torch.randint(99, (2, batch), generator=g)
        fresh = sdk.verify(logits, sdk.DraftTree.chain(drafts), seeds=seeds, positions=offsets)
        inputs = sampling_inputs(batch, nodes, random_seeds=seeds, random_offsets=offsets)
        expected = fresh.tokens, nodes - 1 - fresh.num_accepted, fresh.tokens[last, fresh.num_accepted.long()]
        results.append((lmdeploy.rejection_sample(logits, drafts, inputs), expected))
        first, after = torch.full((2, batch, nodes), -1).unbind()
        for node in reversed(range(1, nodes)):
            parent = torch.randint(node, (batch,), generator=g)
            after[:, node] = first[last, parent]
            first[last, parent] = node
        tree = sdk.DraftTree.from_links(torch.nn.functional.pad(drafts, (1, 0)), first, after)
        heat = torch.rand(batch, generator=g)
        places = dict(seeds=torch.full((batch,), 7), positions=last * nodes)
        fresh = sdk.verify(logits, tree, sampling=sdk.SamplingParams(heat), rule="match", **places)
        found = tensorrt_llm.verify_dynamic_tree_rejection_out(
            drafts,
            logits.flatten(0, 1),
            first,
            after,
            None,
            heat,
            None,
            None,
            batch,
            nodes,
            torch.tensor([7]),
        )
        few = fresh.path.shape[1]
        assert not any(bool(padding[:, few:].any()) for padding in (found[0], found[2]))
        expected = fresh.path.clamp(min=0), fresh.num_accepted, fresh.tokens.clamp(min=0)
        results.append(((found[0][:, :few], found[1], found[2][:, :few]), expected))
    for found, expected in results:
        assert all(torch.equal(part, other.long()) for part, other in zip(found, expected, strict=True))


def beyond_verify(monkeypatch, module, step) -> tuple[int, int]:
    """Operators and tensors of a step that does not synchronise, without those of `verify`."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    within = Counted()

    def counted_verify(*args, **more):
        with within:
            return sdk.verify(*args, **more)

    monkeypatch.setattr(module, "verify", counted_verify)
    step.run()
    within.operators = within.tensors = 0
    with no_synchronisation(), Counted() as counted:
        step.run()
    return counted.operators - within.operators, counted.tensors - within.tensors


def test_operators_and_memory_of_lmdeploy_beyond_verify(monkeypatch):
    """docs/patched_engines.md has these numbers."""
    for step in engines.lmdeploy_chains():
        assert beyond_verify(monkeypatch, lmdeploy, step) == (7, 6)


@pytest.fixture
def by_kernels(monkeypatch):
    """What fills arrays in one launch, in the emulator."""
    triton = pytest.importorskip("specdec_kernels.triton")
    monkeypatch.setattr(backends, "filler", lambda *given: triton)


@pytest.mark.skipif("triton" not in BACKENDS, reason="needs the emulator")
def test_launches_of_tensorrt_llm_beyond_verify_on_triton(monkeypatch, by_kernels):
    """docs/patched_engines.md has these numbers."""
    import ptx_emulator

    for step in engines.tensorrt_llm_trees():
        with ptx_emulator.count() as launches:
            assert beyond_verify(monkeypatch, tensorrt_llm, step) == (3, 3)
        assert len(launches) == 2 * 2


def dynamic_steps():
    """Sizes, dtypes, strides and noise of steps of TensorRT-LLM, and the first again."""
    g = torch.Generator().manual_seed(11)
    seed, offset = torch.tensor([5]), torch.tensor([3])
    for batch, nodes, width, dtype, noise in (
        (2, 5, 4, torch.int64, (seed, offset)),
        (3, 70, 68, torch.int32, (seed.int(), 0)),
        (1, 1, 1, torch.int64, (2**32 - 1, 2)),
        (0, 4, 3, torch.int32, (seed, 0)),
        (2, 5, 4, torch.int64, (seed + 1, offset)),
    ):
        first, after = torch.full((2, batch, nodes), -1, dtype=dtype).unbind()
        for node in reversed(range(1, nodes)):
            parent = torch.randint(max(node - 3, 0), node, (batch,), generator=g)
            after[:, node] = first[range(batch), parent]
            first[range(batch), parent] = node
        tokens = torch.randint(VOCAB, (batch, nodes), generator=g).to(dtype)[:, 1:]  # strided
        heat = torch.tensor([1e-4, 1.1e-4, 0.7])[:batch]
        logits = 4 * torch.randn(batch * nodes, VOCAB, generator=g)
        yield tokens, logits, first, after, None, heat, None, None, batch, width, *noise


def written(monkeypatch, given) -> list[torch.Tensor]:
    """What a step of TensorRT-LLM returns, and what it hands to `verify`."""
    seen = []

    def seen_verify(logits, tree, *, sampling, seeds, positions, **more):
        seen.extend(part.clone() for part in (tree.tokens, tree.parents, *tree.links, tree.depths))
        seen.extend(part.clone() for part in (sampling.temperature, seeds, positions))
        return sdk.verify(logits, tree, sampling=sampling, seeds=seeds, positions=positions, **more)

    monkeypatch.setattr(tensorrt_llm, "verify", seen_verify)
    return [*tensorrt_llm.verify_dynamic_tree_rejection_out(*given), *seen]


@pytest.mark.skipif("triton" not in BACKENDS, reason="needs the emulator")
def test_steps_of_tensorrt_llm_on_triton_are_those_of_torch(monkeypatch, request):
    expected = [written(monkeypatch, given) for given in dynamic_steps()]
    request.getfixturevalue("by_kernels")
    for given, parts in zip(dynamic_steps(), expected, strict=True):
        for ours, theirs in zip(written(monkeypatch, given), parts, strict=True):
            assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype


def test_arrays_of_other_shapes_are_refused():
    """Before anything reads them."""
    inputs = sampling_inputs(2, 2, random_seeds=torch.arange(2), random_offsets=torch.arange(2))
    rule = r"^rejection_sample: random_seeds must have shape \[B \* \(K \+ 1\)\] = \[6\], got \[4\]"
    with pytest.raises(ValueError, match=rule):
        lmdeploy.rejection_sample(torch.zeros(2, 3, 4), torch.zeros(2, 2).long(), inputs)
    _, step = engines.tensorrt_llm_trees()
    arguments = ("draft_tokens", "", "retrieve_next_token", "retrieve_next_sibling", "", "temperatures")
    for place, name in enumerate((*arguments, "", "", "", "", "seed")):
        if not name:
            continue
        given = list(step.run.args)
        given[place] = given[place][:-1]
        with pytest.raises(ValueError, match=rf"^verify_dynamic_tree_rejection_out: {name} must have shape"):
            step.run.func(*given)
