# SPDX-License-Identifier: Apache-2.0
"""The plugin for vLLM, over stand-ins; `make test-vllm` runs it in vLLM's engine."""

from __future__ import annotations

import logging
import re
import sys
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import vllm_stand_ins as stand_ins
from gtest import LEAST_P, MUTANT_P, Model, draft_tree, g_test, rows_of
from synchronisation import no_synchronisation

import specdec_kernels as sdk
from specdec_kernels.integrations import vllm as plugin
from specdec_kernels.integrations.vllm import serving

PAGE = (Path(__file__).parent.parent / "docs" / "vllm.md").read_text(encoding="utf-8")
PROJECT = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
GREEDY = stand_ins.SamplingMetadata(temperature=None, all_greedy=True, all_random=False)
I = sdk.Proposal.INDEPENDENT  # noqa: E741


def entry() -> EntryPoint:
    group = re.search(r'^\[project.entry-points."vllm.general_plugins"\]\n(\w+) = "(.+)"\n', PROJECT, re.M)
    return EntryPoint(group[1], group[2], "vllm.general_plugins")


def methods(classes: SimpleNamespace) -> list:
    return [dict(vars(cls)) for cls in vars(classes).values()]


@pytest.fixture
def vllm(monkeypatch):
    """Stand-ins with the plugin in them."""
    classes = stand_ins.install(monkeypatch)
    monkeypatch.setenv("SPECDEC_VLLM", "1")
    monkeypatch.setattr(serving, "steps", serving.Counter())
    entry().load()()
    return classes


@pytest.fixture
def sampler(vllm):
    return vllm.RejectionSampler1(vllm.Sampler1())


def random(batch: int, **values) -> stand_ins.SamplingMetadata:
    return stand_ins.SamplingMetadata(torch.ones(batch), all_greedy=False, all_random=True, **values)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Switched on and off


@pytest.mark.parametrize("value", [None, "", "0", "true"])
def test_nothing_changes_where_the_variable_is_not_1(monkeypatch, caplog, value):
    classes = stand_ins.install(monkeypatch)
    monkeypatch.delenv("SPECDEC_VLLM", raising=False)
    if value is not None:
        monkeypatch.setenv("SPECDEC_VLLM", value)
    before = methods(classes)
    entry().load()()
    assert methods(classes) == before
    assert ("SPECDEC_VLLM must be 0 or 1, got 'true'" in caplog.text) == (value == "true")


def test_nothing_of_vllm_is_imported_where_the_variable_is_not_1(monkeypatch):
    monkeypatch.delenv("SPECDEC_VLLM", raising=False)
    monkeypatch.setitem(sys.modules, "vllm", None)  # an import of it fails
    entry().load()()
    monkeypatch.setenv("SPECDEC_VLLM", "1")
    with pytest.raises(ImportError):
        entry().load()()


def test_methods_are_replaced_once(vllm):
    before = methods(vllm)
    assert vllm.RejectionSampler1.forward.is_specdec and vllm.RejectionSampler2._verify.is_specdec
    plugin.register()
    assert methods(vllm) == before


@pytest.mark.parametrize("owner, name", [("RejectionSampler1", "forward"), ("RejectionSampler2", "_verify")])
@pytest.mark.parametrize("other", [lambda self, metadata, more: None, None])
def test_other_signatures_stay(monkeypatch, caplog, owner, name, other):
    classes = stand_ins.install(monkeypatch)
    if other:
        monkeypatch.setattr(getattr(classes, owner), name, other)
    else:
        monkeypatch.delattr(getattr(classes, owner), name)
    monkeypatch.setenv("SPECDEC_VLLM", "1")
    before = dict(vars(getattr(classes, owner)))
    entry().load()()
    assert dict(vars(getattr(classes, owner))) == before
    assert f"{owner}.{name} has parameters" in caplog.text
    assert not hasattr(classes.Sampler2._sample_random, "is_specdec") == (name == "_verify")


def test_the_example_of_the_page_is_short():
    code = re.findall(r"^```python example\n(.*?)^```", PAGE, re.S | re.M)
    assert len(code) == 1 and len(code[0].splitlines()) <= 40
    compile(code[0], "docs/vllm.md", "exec")


# Runner 1


def test_greedy_chains_of_several_lengths(sampler):
    drafts = [[1, 2, 0], [], [3], [2, -1], [1, 2, 3]]
    metadata = stand_ins.spec_decode_metadata(drafts)
    best = [1, 2, 3, 0, 2, 0, 1, 2, 3, 0, 1, 2, 3, 0]  # of each row
    output = sampler.forward(metadata, None, torch.eye(4)[best], GREEDY)
    assert output.sampled_token_ids.tolist() == [
        [1, 2, 3, -1],  # the third drafted token is wrong
        [2, -1, -1, -1],
        [0, -1, -1, -1],
        [2, 3, -1, -1],  # a placeholder ends a draft
        [1, 2, 3, 0],
    ]
    assert output.sampled_token_ids.dtype == torch.int32 and output.logprobs_tensors is None
    assert dict(serving.steps) == {"served": 1}


def test_steps_of_many_sizes_outlive_each_other(sampler):
    """What steps share holds nothing of a step before, and no step writes into the results of another."""
    g, results = generator(1), []
    for lengths in ([2, 2], [2, 2], [3, 3, 3], [1], [2, 1, 0], [2, 2]):
        rows = torch.randint(4, (sum(lengths) + len(lengths),), generator=g)
        drafts = [torch.randint(4, (length,), generator=g).tolist() for length in lengths]
        metadata, best, expected = stand_ins.spec_decode_metadata(drafts), rows.tolist(), []
        for draft in drafts:
            mine, best = best[: len(draft) + 1], best[len(draft) + 1 :]
            kept = next((i for i, token in enumerate(draft) if token != mine[i]), len(draft)) + 1
            expected.append(mine[:kept] + [-1] * (max(lengths) + 1 - kept))
        output = sampler.forward(metadata, None, torch.eye(4)[rows], GREEDY)
        results.append((output.sampled_token_ids, expected))
    assert all(tokens.tolist() == expected for tokens, expected in results)


def test_no_drafts_at_all(sampler):
    metadata = stand_ins.spec_decode_metadata([[], []])
    laws = torch.empty(0, 4)  # torch.cat of no rows
    for metadata_of_sampling in (GREEDY, random(2, top_k=torch.tensor([1, 1], dtype=torch.int32))):
        output = sampler.forward(metadata, laws, torch.eye(4)[[3, 1]], metadata_of_sampling)
        assert output.sampled_token_ids.tolist() == [[3], [1]]


def test_rows_of_nan(sampler):
    metadata = stand_ins.spec_decode_metadata([[1, 2], [1, 2]])
    rows = torch.eye(4)[[1, 2, 3, 1, 2, 3]]
    rows[0] = float("nan")
    for sampling in (GREEDY, random(2)):
        tokens = sampler.forward(metadata, None, rows, sampling).sampled_token_ids
        assert 0 <= int(tokens[0, 0]) < 4
    assert sampler.forward(metadata, None, rows, GREEDY).sampled_token_ids[1].tolist() == [1, 2, 3]


def test_greedy_beside_sampled(sampler):
    metadata = stand_ins.spec_decode_metadata([[1, 2]] * 2)
    rows = torch.tensor([[0.0, 0.1, 0.0, 0.0], [0.0, 0.0, 0.1, 0.0], [0.0, 0.0, 0.0, 0.1]]).repeat(2, 1)
    sampling = stand_ins.SamplingMetadata(torch.tensor([0.0, 1.0]), all_greedy=False, all_random=False)
    texts = [sampler.forward(metadata, None, rows, sampling).sampled_token_ids.tolist() for _ in range(40)]
    assert all(greedy == [1, 2, 3] for greedy, _ in texts) and len({str(other) for _, other in texts}) > 4


@pytest.mark.parametrize("rates, least, most", [([1.0, 1.0], 2, 2), ([0.0, 1.0], 0, 0), ([1.0, 0.0], 1, 1)])
def test_synthetic(sampler, rates, least, most):
    sampler.synthetic_conditional_rates = torch.tensor(rates)
    metadata = stand_ins.spec_decode_metadata([[0, 0]] * 50)
    for sampling in (GREEDY, random(50)):
        tokens = sampler.forward(metadata, None, torch.eye(4)[[3] * 150], sampling).sampled_token_ids
        accepted = (tokens >= 0).sum(1) - 1
        assert int(accepted.min()) == least and int(accepted.max()) == most


def test_synthetic_accepts_no_placeholder(sampler):
    sampler.synthetic_conditional_rates = torch.tensor([1.0])
    metadata = stand_ins.spec_decode_metadata([[-1], [0]])
    tokens = sampler.forward(metadata, None, torch.eye(4)[[3] * 4], GREEDY).sampled_token_ids
    assert tokens.tolist() == [[3, -1], [0, 3]]


DRAWS = 8000


def two_tokens(sampler, laws: bool, ragged: bool = True, shift: int = 0) -> tuple[np.ndarray, float]:
    """The joint law of the first two tokens over two rounds of steps, and accepted tokens in a step.

    `shift`: every drafted token is given the law of another one.
    """
    model = Model(6, seed=1)
    tokens = draft_tree(model.q(sdk.SamplingParams()), [-1, 0, 1], [I] * 3, {}, DRAWS, generator(0))
    kept = torch.full((DRAWS, 1), 3)
    if ragged:
        kept[::4], kept[1::4] = 1, 2  # nodes: no draft, a draft of one token
    inside = torch.arange(3) < kept
    drafts = [row[1:count].tolist() for row, count in zip(tokens, kept[:, 0].tolist(), strict=True)]
    q = torch.softmax(rows_of(model.draft, tokens), -1)[inside & (torch.arange(3) < kept - 1)].roll(shift, 0)
    rows = rows_of(model.target, tokens)[inside]
    metadata = stand_ins.spec_decode_metadata(drafts)
    found = sampler.forward(metadata, q if laws else None, rows, random(DRAWS)).sampled_token_ids
    lengths = (found >= 0).sum(1)
    # The second round: a step without drafts for all requests, whose token counts where the first gave one.
    after = stand_ins.spec_decode_metadata([[]] * DRAWS)
    more = sampler.forward(after, None, model.target[found[:, 0].long()], random(DRAWS)).sampled_token_ids
    second = torch.where(lengths > 1, found[:, 1], more[:, 0])
    counts = np.bincount((found[:, 0] * 6 + second).numpy(), minlength=36)
    return counts, float(lengths.float().mean()) - 1


def joint() -> np.ndarray:
    p = Model(6, seed=1).p(sdk.SamplingParams())
    return p[6][:, None] * p[:6]


@pytest.mark.parametrize("ragged", [False, True])
def test_the_law_with_laws_of_drafts(sampler, ragged):
    counts, accepted = two_tokens(sampler, laws=True, ragged=ragged)
    assert g_test(counts, joint()) > LEAST_P and accepted > (0.7 if ragged else 1.2)


@pytest.mark.parametrize("ragged", [False, True])
def test_the_law_without_laws_of_drafts(sampler, ragged):
    counts, accepted = two_tokens(sampler, laws=False, ragged=ragged)
    assert g_test(counts, joint()) > LEAST_P and 0.2 < accepted < 1.0


@pytest.mark.parametrize("ragged", [False, True])
def test_laws_of_other_drafts_are_noticed(sampler, ragged):
    assert g_test(two_tokens(sampler, laws=True, ragged=ragged, shift=1)[0], joint()) < MUTANT_P


def seeded(sampler, laws, order, seeds, drafts, position=10):
    """Texts of the requests `order`, which all read the same rows of logits."""
    table = torch.randn(5, 4, generator=generator(5))
    metadata = stand_ins.spec_decode_metadata([drafts[request] for request in order])
    rows = torch.cat([table[: len(drafts[request]) + 1] for request in order])
    generators = {place: generator(seeds[r]) for place, r in enumerate(order) if seeds[r] is not None}
    states = [g.get_state() for g in generators.values()]
    sampler.specdec_positions = torch.tensor([position] * len(order))
    q = torch.full((len(metadata.draft_token_ids), 4), 0.25) if laws else None
    tokens = sampler.forward(metadata, q, rows, random(len(order), generators=generators)).sampled_token_ids
    assert all(torch.equal(g.get_state(), s) for g, s in zip(generators.values(), states, strict=True))
    return {request: [t for t in tokens[place].tolist() if t >= 0] for place, request in enumerate(order)}


@pytest.mark.parametrize("laws", [False, True])
def test_seeded_tokens_depend_on_seed_and_position_alone(sampler, laws):
    seeds = [7, 2**64 - 1, None, 3]
    texts = seeded(sampler, laws, [0, 1, 2, 3], seeds, [[], [], [], []])
    for drafts in ([[1], [2, 3], [], [0, 0]], [[0, 1, 2, 3]] * 4):
        for order in ([3, 2, 1, 0], [1], [0, 3]):
            for request, text in seeded(sampler, laws, order, seeds, drafts).items():
                if seeds[request] is not None:
                    assert text[:1] == texts[request]
    firsts = {tuple(seeded(sampler, laws, [0], [s], [[1, 2, 3, 0]], p)[0]) for s in range(9) for p in (1, 2)}
    assert len(firsts) > 4


def test_positions_are_those_of_the_runner(vllm, sampler):
    runner = vllm.GPUModelRunner()
    runner.rejection_sampler, runner.positions = sampler, torch.tensor([5, 6, 7, 20, 21, 0, 0])
    metadata = stand_ins.spec_decode_metadata([[1, 2], [3], []])
    metadata.logits_indices = torch.tensor([0, 1, 2, 3, 4, 2], dtype=torch.int32)
    assert runner._sample(None, metadata).tolist() == [6, 21, 8]
    assert sampler.specdec_positions is None  # not those of another step
    runner.positions = SimpleNamespace(gpu=runner.positions)  # where another version keeps them
    assert runner._sample(None, metadata) is None


def test_warming_up(sampler):
    """vLLM then calls the sampler with indices that are all 0."""
    metadata = stand_ins.spec_decode_metadata([[0], [0], [0]])
    for name in ("target_logits_indices", "bonus_logits_indices", "logits_indices"):
        getattr(metadata, name).zero_()
    laws = torch.full((3, 4), 0.25)
    for sampling in (GREEDY, random(3, top_k=torch.tensor([3] * 3), top_p=torch.tensor([0.99] * 3))):
        output = sampler.forward(metadata, laws, torch.randn(6, 4), sampling)
        assert output.sampled_token_ids.shape == (3, 2)


def test_seeds_without_positions_are_left_to_vllm(sampler, caplog):
    metadata = stand_ins.spec_decode_metadata([[1]])
    sampling = random(1, generators={0: generator(1)})
    for _ in range(3):
        assert sampler.forward(metadata, None, torch.eye(4)[:2], sampling) == stand_ins.OWN
    assert serving.steps == {"seeds where positions are unknown": 3}
    assert len(caplog.records) == 1 and caplog.records[0].levelno == logging.WARNING


@pytest.mark.parametrize(
    "values, served",
    [
        ({"logprob_token_ids": {0: [1]}}, False),
        ({"logitsprocs": SimpleNamespace(argmax_invariant=[object()], non_argmax_invariant=[])}, False),
        (
            {
                "logitsprocs": SimpleNamespace(
                    argmax_invariant=[SimpleNamespace(min_p_count=0)], non_argmax_invariant=[]
                )
            },
            True,
        ),
    ],
)
def test_what_is_left_to_vllm(sampler, values, served):
    metadata = stand_ins.spec_decode_metadata([[1]])
    output = sampler.forward(metadata, None, torch.eye(4)[:2], random(1, **values))
    assert (output != stand_ins.OWN) == served and ("served" in serving.steps) == served


NEEDED = [
    {"no_penalties": False},
    {"bad_words_token_ids": {0: [[1]]}},
    {"allowed_token_ids_mask": torch.zeros(1, 4, dtype=torch.bool)},
    {"thinking_budget_state_holder": SimpleNamespace(has_tracked_requests=lambda: True)},
]
NEEDED += [
    {"logitsprocs": SimpleNamespace(argmax_invariant=[], non_argmax_invariant=[processor])}
    for processor in (object(), SimpleNamespace(min_toks={0: 1}))
]
IDLE = SimpleNamespace(argmax_invariant=[], non_argmax_invariant=[SimpleNamespace(min_toks={})])


@pytest.mark.parametrize("values", NEEDED)
def test_processors_act_on_drafted_and_bonus_rows(sampler, values):
    """The stand-ins' processors favour token 1 in drafted rows, and nothing in bonus rows."""
    metadata = stand_ins.spec_decode_metadata([[1, 1]])
    rows = torch.eye(4)[[2, 2, 2]].to(torch.bfloat16)
    sampling = stand_ins.SamplingMetadata(None, all_greedy=True, all_random=False, **values)
    assert sampler.forward(metadata, None, rows, sampling).sampled_token_ids.tolist() == [[1, 1, 2]]
    assert torch.equal(rows.float(), torch.eye(4)[[2, 2, 2]])
    sampling = stand_ins.SamplingMetadata(None, all_greedy=True, all_random=False, logitsprocs=IDLE)
    assert sampler.forward(metadata, None, rows, sampling).sampled_token_ids.tolist() == [[2, -1, -1]]


def test_logprobs_are_made_by_vllm(sampler):
    metadata = stand_ins.spec_decode_metadata([[2, 1], []])
    rows = torch.randn(4, 4)
    top_k, temperature = torch.tensor([4, 1]), torch.tensor([0.5, 0.0])
    sampling = stand_ins.SamplingMetadata(temperature, False, False, top_k=top_k, no_penalties=False)
    assert sampler.forward(metadata, None, rows, sampling).logprobs_tensors is None
    sampling.max_num_logprobs = 3
    output = sampler.forward(metadata, None, rows, sampling)
    top, given, logits, drafted, bonus, tokens = output.logprobs_tensors
    assert (top, given) == (3, metadata) and torch.equal(logits, rows) and tokens.dtype == torch.int32
    assert torch.equal(drafted, rows[:2]) and torch.equal(bonus, rows[2:])
    sampler.is_processed_logprobs_mode = True
    *_, logits, drafted, bonus, tokens = sampler.forward(metadata, None, rows, sampling).logprobs_tensors
    favoured = torch.tensor([0.0, 100.0, 0.0, 0.0])
    assert torch.equal(logits, rows) and torch.allclose(drafted, (rows[:2] + favoured) * 2)
    assert torch.allclose(bonus[0], (rows[2] + 9) * 2) and bonus[1].tolist() == [-9.0] * 4
    sampling = stand_ins.SamplingMetadata(None, True, False, max_num_logprobs=0)
    *_, bonus, tokens = sampler.forward(metadata, None, rows, sampling).logprobs_tensors
    assert torch.equal(bonus, rows[2:])


@pytest.mark.parametrize("drafts", [[[1, 2], [3, 0]], [[1], [], [2, 3]]])
@pytest.mark.parametrize("given", [False, True])
def test_a_step_does_not_wait_for_the_device(sampler, drafts, given):
    """Once the law and the seeds of a batch are there, which are made of numbers of the host."""
    metadata = stand_ins.spec_decode_metadata(drafts)
    count, batch = len(metadata.draft_token_ids), len(drafts)
    sampler.specdec_positions = torch.arange(batch)
    sampled, seeds = random(batch), random(batch, generators={0: generator(1)})
    for sampling in (stand_ins.SamplingMetadata(None, True, False), sampled, seeds):
        step = partial(sampler.forward, metadata, torch.full((count, 4), 0.25) if given else None)
        rows = torch.randn(count + batch, 4)
        step(rows, sampling)
        with no_synchronisation():
            step(rows, sampling)


# Runner 2


class States:
    """Of six slots for requests; a batch uses some."""

    def __init__(self, temperature, seeds=None, top_k=None):
        self.temperature = SimpleNamespace(gpu=torch.tensor(temperature))
        self.seeds = SimpleNamespace(gpu=torch.tensor(seeds or list(range(len(temperature)))))
        self.explicit, self.top_k = seeds is not None, top_k

    def any_explicit_seed(self, requests):
        return self.explicit

    def get_top_k_top_p(self, requests, requests_np):
        return None if self.top_k is None else torch.tensor(self.top_k)[requests], None

    def apply_top_k_top_p(self, rows, requests, requests_np):
        return rows.mul_(2.0)


def second(vllm, states, mode="raw_logprobs", mask=False):
    """A rejection sampler whose processors add nothing and divide by the temperature."""

    def apply(logits, expanded, *_, skip_top_k_top_p):
        temperature = states.temperature.gpu[expanded]
        return logits / torch.where(temperature == 0, 1.0, temperature)[:, None]

    made = vllm.RejectionSampler2()
    made.sampler = SimpleNamespace(
        sampling_states=states, apply_sampling_params=apply, logprobs_mode=mode, return_sampling_mask=mask
    )
    return made


def step(sampler, rows, drafts, slots, draft_logits=None, start=10):
    """A call of `_verify` as runner 2 makes it, for requests in `slots`."""
    lengths = [len(tokens) + 1 for tokens in drafts]
    ends = torch.tensor([0, *lengths]).cumsum(0).int()
    tokens = torch.tensor([token for chain in drafts for token in (2, *chain)], dtype=torch.int32)
    local = torch.cat([torch.arange(length) for length in lengths])
    requests = torch.tensor(slots)
    expanded = requests.repeat_interleave(torch.tensor(lengths))
    arguments = ends, requests, requests.numpy(), expanded, local, None, tokens
    return sampler._verify(rows, draft_logits, tokens, start + local, *arguments)


def test_runner_2_greedy_and_invalid_drafts(vllm):
    sampler = second(vllm, States([0.0] * 6))
    best = [1, 2, 3, 0, 2, 3, 0]
    rows, tokens, lengths = step(sampler, torch.eye(4)[best], [[1, 2, 0], [-1, 3]], [4, 1])
    assert tokens.tolist() == [[1, 2, 3, -1], [2, -1, -1, -1]] and lengths.tolist() == [3, 1]
    assert lengths.dtype == torch.int32 and tokens.dtype == torch.int64
    assert torch.equal(rows, torch.eye(4)[best])


@pytest.mark.parametrize("mutant", [None, "slots", "temperature"])
def test_runner_2_law(vllm, mutant):
    """Draft logits are by slot, before temperature; requests stand in other slots than in the batch."""
    model, n = Model(6, seed=1), 8000
    slots = torch.randperm(n, generator=generator(1))
    law = sdk.SamplingParams(temperature=0.7)
    tokens = draft_tree(model.q(law), [-1, 0, 1], [I] * 3, {}, n, generator(0))
    draft = torch.empty(n, 3, 6)
    draft[slots, :2] = rows_of(model.draft, tokens)[:, :2]
    draft = draft.roll(1, 0) if mutant == "slots" else draft * (0.5 if mutant == "temperature" else 1.0)
    states = States([0.7] * n)
    sampler = second(vllm, states)
    rows = rows_of(model.target, tokens).flatten(0, 1)
    _, found, lengths = step(sampler, rows, tokens[:, 1:].tolist(), slots.tolist(), draft)
    pairs = found[lengths >= 2][:, :2]
    kept = np.bincount((pairs[:, 0] * 6 + pairs[:, 1]).numpy(), minlength=36).reshape(6, 6)
    firsts = np.bincount(found[:, 0].numpy(), minlength=6)
    p = model.p(law)
    # The second token of the rest is drawn from the target's own law.
    choice = torch.multinomial(torch.from_numpy(p[:6])[found[lengths < 2][:, 0]], 1, generator=generator(2))
    np.add.at(kept, (found[lengths < 2][:, 0].numpy(), choice[:, 0].numpy()), 1)
    assert firsts.sum() == kept.sum() == n
    chance = g_test(kept, p[6][:, None] * p[:6])
    assert chance < MUTANT_P if mutant else chance > LEAST_P


def test_runner_2_cuts_and_shown_rows(vllm):
    states = States([1.0] * 6, top_k=[1, 2, 1, 1, 1, 1])
    rows = torch.randn(3, 4)
    modes = (("raw_logprobs", False, 1), ("processed_logits", False, 2), ("raw_logits", True, 2))
    for mode, mask, shown in modes:
        cut, tokens, _ = step(second(vllm, states, mode, mask), rows, [[], [], []], [5, 3, 2])
        assert tokens[:, 0].tolist() == rows.argmax(1).tolist() and torch.equal(cut, rows * shown)


def test_runner_2_seeds_with_and_without_drafts(vllm):
    """A step without drafts is another class's, which draws the same tokens."""
    states = States([1.0, 0.5, 1.0, 0.0, 1.0, 1.0], seeds=[5, -6, 7, 8, 9, 10])
    rows, slots = torch.randn(4, 4, generator=generator(3)), [4, 1, 3, 0]
    sampler = second(vllm, states)
    drafts = [[int(t)] for t in torch.randint(0, 4, (4,), generator=generator(4))]
    wide = rows.repeat_interleave(2, 0)
    _, tokens, _ = step(sampler, wide, drafts, slots, torch.randn(6, 3, 4))
    plain = vllm.Sampler2()
    plain.sampling_states = states
    scaled = rows / torch.tensor([1.0, 0.5, 1.0, 1.0])[:, None]
    arguments = torch.tensor(slots), np.array(slots), torch.full((4,), 10), None, None, False
    alone, shown = plain._sample_random(scaled, *arguments)
    assert alone.tolist() == tokens[:, 0].tolist() and shown is scaled
    assert alone[2] == rows[2].argmax()
    states.explicit = False
    assert plain._sample_random(scaled, *arguments)[0] == stand_ins.OWN


def test_runner_2_synthetic_and_watermarks(vllm):
    sampler = second(vllm, States([1.0] * 6))
    sampler.synthetic_conditional_rates = torch.tensor([1.0, 0.0])
    _, tokens, lengths = step(sampler, torch.randn(3, 4), [[0, 1]], [2])
    assert lengths.tolist() == [2] and tokens[0, 0] == 0
    sampler.watermark_key = 1
    assert step(sampler, torch.randn(3, 4), [[0, 1]], [2]) == stand_ins.OWN
    assert serving.steps == {"served": 1, "a watermark": 1}
