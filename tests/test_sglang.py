# SPDX-License-Identifier: Apache-2.0
"""The plugin for SGLang: what it fills, with which law, and when it leaves the step to SGLang."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import sglang_stand_in as stand_in
import torch
from gtest import LEAST_P, MUTANT_P, choose, g_test
from synchronisation import Counted, no_synchronisation

import specdec_kernels as sdk
from specdec_kernels.integrations import sglang as plugin
from specdec_kernels.integrations.sglang import sample

GREEDY = 1  # SGLang writes temperature 0 as top_k = 1


@pytest.fixture
def engine(monkeypatch):
    """SGLang with the plugin switched on. Its `eagle_sample` is the one that workers call."""
    stand_in.install(monkeypatch)
    monkeypatch.setenv("SPECDEC_SGLANG", "1")
    plugin.register()
    sys.modules["sglang.srt.plugins.hook_registry"].HookRegistry.apply_hooks()
    yield SimpleNamespace(
        eagle_sample=sys.modules["sglang.srt.speculative.ngram_worker"].eagle_sample,
        eagle=sys.modules["sglang.srt.speculative.eagle_worker_common"].eagle_sample,
        plugin=plugin._active,
    )


def verify(engine, tree, logits, info, lens=None, **more):
    batch = stand_in.schedule_batch(info, lens)
    return engine.eagle_sample(tree, batch, stand_in.logits_output(logits), **more)


def greedy(batch: int) -> SimpleNamespace:
    return stand_in.sampling_info(batch, top_ks=torch.full((batch,), GREEDY, dtype=torch.int32))


def test_metadata_names_the_plugin():
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    entry = re.search(r'^\[project\.entry-points\."sglang\.srt\.plugins"\]\nspecdec = "(.*)"$', text, re.M)
    module, name = entry[1].split(":")
    assert getattr(sys.modules[module], name) is plugin.register


@pytest.mark.parametrize("switch", [None, "", "0", "yes"])
def test_nothing_changes_unless_asked_for(monkeypatch, caplog, switch):
    if switch is None:
        monkeypatch.delenv("SPECDEC_SGLANG", raising=False)
    else:
        monkeypatch.setenv("SPECDEC_SGLANG", switch)
    plugin.register()
    assert "sglang" not in sys.modules  # it was not even imported
    stand_in.install(monkeypatch)
    plugin.register()
    modules = {
        name: sys.modules[f"sglang.srt.{name}"]
        for name in ("plugins.hook_registry", "speculative.ngram_worker")
    }
    assert modules["plugins.hook_registry"].HookRegistry.hooks == []
    assert modules["speculative.ngram_worker"].eagle_sample is stand_in.eagle_sample
    assert plugin.statistics() is None
    assert len(caplog.records) == (2 if switch == "yes" else 0)


def test_workers_call_the_plugin(engine):
    registry = sys.modules["sglang.srt.plugins.hook_registry"].HookRegistry
    assert registry.hooks == [(plugin.TARGET, engine.plugin, stand_in.HookType.REPLACE)]
    assert plugin.TARGET.startswith("sglang.srt.speculative.eagle_utils.")
    assert engine.plugin.own is stand_in.eagle_sample
    assert engine.eagle is not stand_in.eagle_sample is not engine.eagle_sample


@pytest.mark.parametrize("change", ["parameters", "module"])
def test_another_sglang_is_left_alone(monkeypatch, caplog, change):
    stand_in.install(monkeypatch)
    monkeypatch.setenv("SPECDEC_SGLANG", "1")
    if change == "parameters":
        utils = sys.modules["sglang.srt.speculative.eagle_utils"]
        monkeypatch.setattr(utils, "eagle_sample", lambda verify_input, batch: None)
    else:
        monkeypatch.delattr(sys.modules["sglang.srt.runtime_context"], "get_spec")
    plugin.register()
    assert sys.modules["sglang.srt.plugins.hook_registry"].HookRegistry.hooks == []
    assert "SGLang keeps its own verification" in caplog.text


# Two requests of six nodes: 0 has the children 1 and 2, 1 has 3 and 4, 4 has 5.
PARENTS = [-1, 0, 0, 1, 1, 4]
CANDIDATES = [[0, 3, 5, 2, 6, 1], [4, 3, 5, 2, 6, 1]]
ARGMAX = [[3, 6, 0, 0, 1, 7], [5, 6, 7, 0, 1, 7]]  # at every node: the path 0 1 4 5, and the path 0 2


def one_hot(tokens: list[list[int]], vocab: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(tokens), vocab).float().flatten(0, 1) * 5


def test_literals(engine):
    tree = stand_in.verify_input(torch.tensor(CANDIDATES), PARENTS, width=4)
    assert tree.retrieve_next_token[0].tolist() == [1, 3, -1, -1, 5, -1]
    assert tree.retrieve_next_sibling[0].tolist() == [-1, 2, -1, 4, -1, -1]
    predict, lens, index = verify(engine, tree, one_hot(ARGMAX, 8), greedy(2))
    assert predict.tolist() == [3, 6, 0, 0, 1, 7] + [5, 0, 7, 0, 0, 0]
    assert lens.tolist() == [4, 2]
    assert index.tolist() == [[0, 1, 4, 5], [6, 8, -1, -1]]
    assert {part.dtype for part in (predict, lens, index)} == {torch.int32}
    assert plugin.statistics() == (1, {})


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("nodes", "topk"), [(5, 1), (6, 2)])
def test_results_lie_as_kernels_want_them(engine, batch, nodes, topk):
    """Contiguous, and at 16 bytes: SGLang's Triton kernels would be compiled again for others."""
    tree = stand_in.verify_input(torch.zeros(batch, nodes).long(), range(-1, nodes - 1), 5, tree_topk=topk)
    for part in verify(engine, tree, torch.randn(batch * nodes, 4), greedy(batch)):
        assert part.is_contiguous() and part.data_ptr() % 16 == 0


def test_the_width_bounds_the_path(engine):
    tree = stand_in.verify_input(torch.tensor(CANDIDATES), PARENTS, width=3)
    _, lens, index = verify(engine, tree, one_hot(ARGMAX, 8), greedy(2))
    assert lens.tolist() == [3, 2] and index.tolist() == [[0, 1, 4], [6, 8, -1]]


def plain_greedy(tree: stand_in.VerifyInput, argmax: torch.Tensor):
    """The definition, on lists."""
    batch, nodes = tree.retrieve_index.shape
    tokens, first, after, rows = (
        part.view(batch, nodes).tolist()
        for part in (
            tree.draft_token,
            tree.retrieve_next_token,
            tree.retrieve_next_sibling,
            tree.retrieve_index,
        )
    )
    predict, index = [0] * (batch * nodes), [[-1] * tree.max_tree_depth for _ in range(batch)]
    for b in range(batch):
        node, depth = 0, 0
        while node >= 0:
            index[b][depth] = rows[b][node]
            predict[rows[b][node]] = wanted = int(argmax[b, node])
            depth += 1
            child = first[b][node] if depth < tree.max_tree_depth else -1
            while child >= 0 and tokens[b][child] != wanted:
                child = after[b][child]
            node = child
    return predict, [sum(row >= 0 for row in line) for line in index], index


def random_tree(generator: torch.Generator, batch: int, nodes: int, vocab: int) -> stand_in.VerifyInput:
    """Trees of different shapes, with repeated siblings and slots that no link reaches, as ngram trees have
    them. Their tokens are few, so that paths are long."""
    tokens = torch.randint(vocab, (batch, nodes), generator=generator)
    parents = (torch.rand(batch, nodes, generator=generator) * torch.arange(nodes)).long()
    parents[:, 0] = -1
    used = 1 + torch.randint(nodes, (batch, 1), generator=generator)
    parents[torch.arange(nodes).expand(batch, nodes) >= used] = -1
    tokens[torch.arange(nodes).expand(batch, nodes) >= used] = 0
    return stand_in.verify_input(
        tokens, parents, width=int(torch.randint(1, nodes + 1, (), generator=generator))
    )


@pytest.mark.parametrize("seed", range(8))
def test_random_trees_equal_a_plain_walk(engine, seed):
    generator = torch.Generator().manual_seed(seed)
    for batch, nodes in [(1, 1), (3, 8), (5, 17), (2, 40)]:
        vocab = 3
        tree = random_tree(generator, batch, nodes, vocab)
        logits = torch.randint(
            3, (batch * nodes, vocab), generator=generator
        ).float()  # ties: the lowest wins
        expected = plain_greedy(tree, logits.view(batch, nodes, vocab).argmax(-1))
        predict, lens, index = verify(engine, tree, logits, greedy(batch))
        assert (predict.tolist(), lens.tolist(), index.tolist()) == expected


def test_chains_equal_a_plain_walk(engine):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(2, (40, 5), generator=generator)
    tree = stand_in.verify_input(tokens, range(-1, 4), width=5, tree_topk=1)
    logits = torch.randn(200, 2, generator=generator)
    predict, lens, index = verify(engine, tree, logits, greedy(40))
    expected = plain_greedy(tree, logits.view(40, 5, 2).argmax(-1))
    assert (predict.tolist(), lens.tolist(), index.tolist()) == expected
    assert set(lens.tolist()) >= {1, 2, 3}


def emitted(predict, lens, index) -> list[list[int]]:
    return [[int(predict[row]) for row in line[:count]] for line, count in zip(index, lens, strict=True)]


def test_seeded_text_depends_on_nothing_but_the_request(engine):
    """Not on the drafts, nor on the batch: it is what `sample` draws one token at a time."""
    generator = torch.Generator().manual_seed(1)
    batch, nodes, vocab = 6, 12, 4
    tree = random_tree(generator, batch, nodes, vocab)
    tree.max_tree_depth = nodes
    table = torch.randn(vocab, vocab, generator=generator)
    logits = table[tree.draft_token]
    lens = torch.arange(batch) * 5
    law = dict(
        temperatures=torch.linspace(0.5, 2, batch).view(-1, 1),
        top_ks=torch.tensor([GREEDY, 2, 3, 1 << 30, 3, 4], dtype=torch.int32),
        top_ps=torch.tensor([1, 0.9, 1, 0.5, 0.8, 1]),
        min_ps=torch.tensor([0, 0, 0.3, 0, 0.1, 0]),
        sampling_seed=torch.arange(batch) + 100,
    )
    texts = emitted(*verify(engine, tree, logits, stand_in.sampling_info(batch, **law), lens))
    assert max(map(len, texts)) > 2
    for b, text in enumerate(texts):
        temperature = 0.0 if law["top_ks"][b] == GREEDY else float(law["temperatures"][b])
        top_k = int(law["top_ks"][b]) if law["top_ks"][b] < 1 << 30 else 0
        params = sdk.SamplingParams(
            temperature, top_k, float(law["top_ps"][b]), float(law["min_ps"][b]), "min_p_last"
        )
        before = tree.draft_token[b * nodes]
        for depth, token in enumerate(text):
            position = lens[b : b + 1] + depth
            drawn = sdk.sample(
                table[before].view(1, -1), params, seeds=law["sampling_seed"][b : b + 1], positions=position
            )
            assert token == int(drawn)
            before = token


def pairs(engine, tree, table, info, generator) -> np.ndarray:
    """How often each pair of first tokens was emitted. Where one came, plain torch draws the second."""
    predict, lens, index = verify(engine, tree, table[tree.draft_token], info)
    first = predict[index[:, 0].long()].long()
    second = choose(law_of(table, info)[first], generator)
    second = torch.where(lens > 1, predict[index[:, 1].long()].long(), second)
    counts = np.zeros((len(table), len(table)))
    np.add.at(counts, (first.numpy(), second.numpy()), 1)
    return counts


def law_of(table: torch.Tensor, info) -> torch.Tensor:
    """All requests have the same parameters: temperature, then top-k."""
    p = torch.softmax(table.double() / float(info.temperatures[0]), -1)
    k = min(int(info.top_ks[0]), p.shape[-1])
    p = torch.where(p >= p.topk(k, -1).values[:, -1:], p, 0.0)
    return p / p.sum(-1, keepdim=True)


VOCAB, ROOT = 6, 2


def sampled(batch: int) -> SimpleNamespace:
    return stand_in.sampling_info(
        batch, temperatures=torch.full((batch, 1), 0.7), top_ks=torch.full((batch,), 4, dtype=torch.int32)
    )


def law_case(drafts: str, draws: int, generator: torch.Generator):
    """A target, and requests whose tokens may have been sampled from their draft probabilities."""
    table = torch.randn(VOCAB, VOCAB, generator=generator)
    tokens = torch.full((draws, 5), ROOT)
    if drafts == "tree":
        tokens[:, 1:] = torch.tensor([0, 1, 3, 0])
        return table, stand_in.verify_input(tokens, [-1, 0, 0, 1, 2], width=3)
    q = torch.softmax(table + torch.randn(VOCAB, VOCAB, generator=generator), -1)
    for node in range(1, 5):
        tokens[:, node] = choose(q.double()[tokens[:, node - 1]], generator)
    given = q[tokens[:, :-1]] if drafts != "chain" else None
    return table, stand_in.verify_input(tokens, range(-1, 4), width=5, tree_topk=1, draft_probs=given)


LAWS = ["tree", "chain", "token", "block"]


def with_rule(engine, drafts: str) -> None:
    rejection, block = drafts in ("token", "block"), drafts == "block"
    engine.plugin.engine.get_spec = lambda: stand_in.spec(
        speculative_use_rejection_sampling=rejection, speculative_use_block_verification=block
    )


def p_value(engine, table, tree, generator) -> float:
    """Of the emitted pairs, under decoding with the target alone."""
    counts = pairs(engine, tree, table, sampled(tree.retrieve_index.shape[0]), generator)
    p = law_of(table, sampled(1))
    return g_test(counts, (p[ROOT].unsqueeze(1) * p).numpy())


@pytest.mark.slow
@pytest.mark.parametrize("drafts", LAWS)
def test_law_is_that_of_decoding_with_the_target_alone(engine, drafts):
    generator = torch.Generator().manual_seed(7)
    table, tree = law_case(drafts, 200_000, generator)
    with_rule(engine, drafts)
    assert p_value(engine, table, tree, generator) > LEAST_P


MUTANTS = [
    *((drafts, mutant) for drafts in LAWS for mutant in ("greedy", "no cuts")),
    ("token", "draft law"),
    ("block", "draft law"),
]


@pytest.mark.parametrize(("drafts", "mutant"), MUTANTS)
def test_mutants_have_another_law(engine, monkeypatch, drafts, mutant):
    """`greedy` is what SGLang 0.5.23 does with sampled requests on a CPU."""
    generator = torch.Generator().manual_seed(7)
    table, tree = law_case(drafts, 20_000, generator)
    with_rule(engine, drafts)
    if mutant == "greedy":
        monkeypatch.setattr(sample, "law_of", lambda info: sample.GREEDY)
    elif mutant == "no cuts":
        monkeypatch.setattr(sample, "law_of", lambda info: sdk.SamplingParams(info.temperatures.view(-1)))
    else:
        tree.draft_probs = tree.draft_probs.roll(1, -1)
    assert p_value(engine, table, tree, generator) < MUTANT_P


def test_a_greedy_request_beside_sampled_ones_takes_the_first_of_ties(engine):
    info = stand_in.sampling_info(3, top_ks=torch.tensor([GREEDY, 1 << 30, 2], dtype=torch.int32))
    tree = stand_in.verify_input(torch.zeros(3, 1).long(), [-1], width=1)
    firsts = {tuple(verify(engine, tree, torch.zeros(3, 4), info)[0].tolist()) for _ in range(60)}
    assert {first for first, _, _ in firsts} == {0}
    assert len({second for _, second, _ in firsts}) == len({third for _, _, third in firsts}) == 4


def test_min_p_is_served(engine):
    """SGLang's own verification leaves it out."""
    info = stand_in.sampling_info(1, min_ps=torch.tensor([0.5]))
    tree = stand_in.verify_input(torch.zeros(1, 1).long(), [-1], width=1)
    logits = torch.tensor([[1.0, 0.0, 0.9]])
    drawn = {int(verify(engine, tree, logits.clone(), info)[0]) for _ in range(100)}
    assert drawn == {0, 2}


def test_logits_are_changed_in_place_as_by_sglang(engine):
    """Penalties and biases are one row per request; the grammar has a row per node and comes last."""
    generator = torch.Generator().manual_seed(2)
    batch, nodes, vocab = 3, 4, 5
    logits = torch.randn(batch * nodes, vocab, generator=generator)
    add, bias = torch.randn(2, batch, vocab, generator=generator)
    scale = 1 + torch.rand(batch, vocab, generator=generator)
    info = stand_in.sampling_info(
        batch, acc_additive_penalties=add, acc_scaling_penalties=scale, logit_bias=bias,
        top_ks=torch.full((batch,), GREEDY, dtype=torch.int32),
    )  # fmt: skip
    expected = torch.empty_like(logits)
    for row in range(batch * nodes):
        for token in range(vocab):
            value, request = logits[row, token] + add[row // nodes, token], row // nodes
            value = value * scale[request, token] if value < 0 else value / scale[request, token]
            expected[row, token] = value + bias[request, token]
    banned = expected.argmax(-1)
    expected[torch.arange(batch * nodes), banned] = -torch.inf
    mask = SimpleNamespace(apply=lambda rows: rows.scatter_(1, banned.unsqueeze(1), -torch.inf))
    tree = stand_in.verify_input(torch.zeros(batch, nodes).long(), [-1, 0, 0, 0], width=2)
    output = stand_in.logits_output(logits)
    predict, *_ = engine.eagle_sample(tree, stand_in.schedule_batch(info), output, mask)
    assert torch.equal(output.next_token_logits, expected) and output.next_token_logits is logits
    assert predict[::nodes].tolist() == expected[::nodes].argmax(-1).tolist()


def test_thresholds_are_served_by_sglangs_rule(engine):
    """Here every drafted token has at least the probability that is asked for."""
    table, tree = law_case("chain", 50, torch.Generator().manual_seed(7))
    engine.plugin.engine.get_spec = lambda: stand_in.spec(speculative_accept_threshold_single=1e-6)
    info = stand_in.sampling_info(50)
    assert (verify(engine, tree, table[tree.draft_token], info)[1] == 5).all()
    with_rule(engine, "chain")
    assert (verify(engine, tree, table[tree.draft_token], info)[1] < 5).any()
    assert plugin.statistics() == (2, {})


def test_an_idle_step_is_sglangs(engine):
    info = stand_in.sampling_info(0)
    batch = stand_in.schedule_batch(info, idle=True)
    assert engine.eagle_sample(None, batch, stand_in.logits_output(torch.empty(0, 4))).own
    assert plugin.statistics() == (0, {})


REASONS = {
    "a watermark": dict(watermark=True),
    "simulated acceptance lengths": dict(simulates=True),
    "tensors on meta": dict(device="meta"),
    "rejection sampling without draft probabilities over the target's vocabulary": dict(
        speculative_use_rejection_sampling=True
    ),
}


@pytest.mark.parametrize("reason", REASONS)
def test_what_is_not_served_falls_back_and_is_counted(engine, caplog, reason):
    changed = dict(REASONS[reason])
    watermark = object() if changed.pop("watermark", False) else None
    device = changed.pop("device", "cpu")
    engine.plugin.engine.simulates = changed.pop("simulates", False)
    engine.plugin.engine.get_spec = lambda: stand_in.spec(**changed)
    info = stand_in.sampling_info(1, has_watermark_candidates=True)
    tree = stand_in.verify_input(torch.zeros(1, 1).long(), [-1], width=1)
    batch, output = stand_in.schedule_batch(info), stand_in.logits_output(torch.zeros(1, 4, device=device))
    for _ in range(3):
        result = engine.eagle_sample(tree, batch, output, "mask", watermark_state=watermark)
        assert result.own and result.given == (tree, batch, output, "mask")
    assert plugin.statistics() == (0, {reason: 3})
    assert [record.getMessage() for record in caplog.records] == [
        f"SGLang's own verification serves steps with {reason}"
    ]


@pytest.mark.parametrize("shape", [(4, 4, VOCAB - 1), (4, 3, VOCAB)])
def test_draft_probabilities_of_another_shape_fall_back(engine, shape):
    table, tree = law_case("token", 4, torch.Generator().manual_seed(7))
    with_rule(engine, "token")
    tree.draft_probs = torch.ones(shape)
    assert verify(engine, tree, table[tree.draft_token], sampled(4)).own
    assert sum(plugin.statistics().fallbacks.values()) == 1


@pytest.mark.parametrize("attention", [False, True])
def test_ranks_take_the_first_ranks_results(engine, attention):
    """In one broadcast, and greedy steps in none."""
    sent = []
    group = SimpleNamespace(world_size=2, broadcast=lambda buffer, src: sent.append((buffer.fill_(3), src)))
    parts = dict(tp_group=group, attn_tp_group=None)
    if attention:
        parts = dict(tp_group=None, attn_tp_group=group)
    engine.plugin.engine.get_parallel = lambda: SimpleNamespace(**parts)
    engine.plugin.engine.is_dp_attention_enabled = lambda: attention
    tree = stand_in.verify_input(torch.tensor(CANDIDATES), PARENTS, width=4)
    results = verify(engine, tree, one_hot(ARGMAX, 8), stand_in.sampling_info(2))
    assert all(bool((part == 3).all()) for part in results)
    assert [src for _, src in sent] == [0]
    verify(engine, tree, one_hot(ARGMAX, 8), greedy(2))
    assert len(sent) == 1


@pytest.mark.parametrize("drafts", LAWS)
def test_nothing_synchronises(engine, drafts):
    generator = torch.Generator().manual_seed(7)
    table, tree = law_case(drafts, 4, generator)
    with_rule(engine, drafts)
    logits, info = table[tree.draft_token], sampled(4)
    info.sampling_seed = torch.arange(4)
    with no_synchronisation():
        predict, lens, index = verify(engine, tree, logits, info)
    assert lens.min() >= 1 and index.max() < predict.numel()


@pytest.mark.parametrize("topk", [1, 2])
def test_steps_with_and_without_inference_mode(engine, topk):
    tree = stand_in.verify_input(torch.zeros(2, 3).long(), [-1, 0, 1], width=3, tree_topk=topk)
    for inference in (True, False, True):
        with torch.inference_mode(inference):
            predict, lens, _ = verify(engine, tree, one_hot([[0, 0, 3]] * 2, 4), greedy(2))
        assert lens.tolist() == [3, 3] and predict.tolist() == [0, 0, 3] * 2


def test_results_of_a_step_stay_when_the_next_comes(engine):
    tree = stand_in.verify_input(torch.tensor(CANDIDATES), PARENTS, width=4)
    results = verify(engine, tree, one_hot(ARGMAX, 8), greedy(2))
    before = [part.clone() for part in results]
    verify(engine, tree, one_hot(ARGMAX, 8).roll(1, -1), greedy(2))
    assert all(map(torch.equal, results, before))


def test_an_engine_writes_the_same_greedy_text_in_fewer_steps(engine):
    whole = stand_in.Engine("", speculative_algorithm="NGRAM", speculative_num_draft_tokens=5)
    answer = whole.generate([1, 2], {"temperature": 0, "max_new_tokens": 40})
    expected = [2]
    for _ in range(40):
        expected.append(int(whole.table[expected[-1]].argmax()))
    assert answer["output_ids"] == expected[1:]
    assert answer["meta_info"]["spec_verify_ct"] < 25


def counted_beyond_verify(engine, monkeypatch, shape, counted):
    """Count in a step, which does not synchronise, but not within `verify`. Returns the results."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    parents, width, topk = (range(-1, 4), 5, 1) if shape == "chain" else ([-1, 0, 0, 1, 1], 3, 2)
    tree = stand_in.verify_input(torch.zeros(2, 5).long(), parents, width, tree_topk=topk)
    info, logits, lens = sampled(2), torch.eye(10, VOCAB), torch.arange(2)
    info.sampling_seed = torch.arange(2)
    within = Counted()

    def counted_verify(*args, backend, **more):
        with within:
            return sdk.verify(*args, **more)

    monkeypatch.setattr(sample, "verify", counted_verify)
    verify(engine, tree, logits, info, lens)
    within.operators = within.tensors = 0
    with no_synchronisation(), counted:
        results = verify(engine, tree, logits, info, lens)
    counted.operators -= within.operators
    counted.tensors -= within.tensors
    return results


@pytest.mark.parametrize("shape", ["chain", "tree"])
def test_operators_and_memory_of_a_step_beyond_verify(engine, monkeypatch, shape):
    """docs/sglang.md has these numbers."""
    counted = Counted()
    counted_beyond_verify(engine, monkeypatch, shape, counted)
    assert (counted.operators, counted.tensors) == (7, 3)


@pytest.mark.parametrize(("shape", "launches"), [("chain", 1), ("tree", 2)])
def test_launches_of_a_step_beyond_verify_on_triton(engine, monkeypatch, shape, launches):
    """docs/sglang.md has these numbers. Results are those of torch's operators."""
    import ptx_emulator

    expected = counted_beyond_verify(engine, monkeypatch, shape, Counted())
    engine.plugin.backend, engine.plugin._arrays, counted = "triton", {}, Counted()
    counted_beyond_verify(engine, monkeypatch, shape, Counted())
    with ptx_emulator.count() as launched:
        results = counted_beyond_verify(engine, monkeypatch, shape, counted)
    assert all(map(torch.equal, results, expected))
    assert (len(launched), counted.operators, counted.tensors) == (2 * launches, 1, 1)
