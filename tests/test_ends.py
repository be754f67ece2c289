# SPDX-License-Identifier: Apache-2.0
"""Stop tokens and limits: the uncut answer, cut; backends agree; ended requests; bad values.
test_ends_exact.py has the law."""

from __future__ import annotations

import pytest
import torch
from cases import all_equal, check_in_range, random_case, rule_name
from each import QUICK
from ends_cases import copied, counts_of_ends, cut, random_ends
from row_cases import EVERY, chains, choose_rows, without_last_rows

import specdec_kernels as sdk
from specdec_kernels import Finish
from specdec_kernels import _debug as debug

# They decide from the root down, so what is below an end changes nothing above it.
DOWNWARD = ["match", "token", sdk.Threshold(0.7, 0.8), sdk.Ensemble(0.7)]


def nodes_of(arguments):
    return arguments["tree"].cu_nodes.diff()


@pytest.mark.parametrize("backend", QUICK)
@pytest.mark.parametrize("rule", DOWNWARD, ids=rule_name)
def test_the_answer_is_the_uncut_one_cut(rule, backend):
    """Bitwise, log-probabilities included."""
    ended = 0
    for seed in range(40):
        arguments = random_case(seed) if seed % 4 else chains(seed)
        ends = random_ends(arguments, seed)
        uncut = sdk.verify(**arguments, rule=rule, backend=backend)
        want, left = cut(uncut, ends, nodes_of(arguments))
        got = sdk.verify(**arguments, ends=ends, rule=rule, backend=backend)
        assert not bool((got.status & ~uncut.status).any())
        assert all_equal(got, want._replace(status=got.status)), seed
        assert all_equal(ends, left), seed
        ended += int((got.finish & ~Finish.DRAFTED != 0).sum())
    assert ended > 30


@pytest.mark.parametrize("backend", QUICK)
def test_greedy_requests_are_cut_too(backend):
    for seed in range(12):
        arguments = random_case(seed) | dict(sampling=sdk.SamplingParams(temperature=0.0))
        ends = random_ends(arguments, seed)
        uncut = sdk.verify(**arguments, rule="traversal", backend=backend)
        want, left = cut(uncut, ends, nodes_of(arguments))
        got = sdk.verify(**arguments, ends=ends, rule="traversal", backend=backend)
        assert all_equal(got, want._replace(status=got.status)) and all_equal(ends, left), seed


def check_finish(got, before, after, nodes):
    """What was emitted, why it ends, and what is left say the same."""
    for b, (count, finish) in enumerate(zip(got.num_tokens.tolist(), got.finish.tolist(), strict=True)):
        finished = bool(before.finished[b])
        stops, row = before.stop_tokens[b].tolist(), got.tokens[b, :count].tolist()
        assert not any(token in stops for token in row[:-1])
        assert count <= max(min(int(before.new_tokens_left[b]), int(before.context_left[b])), 0)
        lefts = [int(after.new_tokens_left[b]), int(after.context_left[b])]
        assert lefts == [int(before.new_tokens_left[b]) - count, int(before.context_left[b]) - count]
        bits = Finish(0)
        if not finished and nodes[b]:
            bits |= Finish.STOP if row and row[-1] in stops else 0
            bits |= (Finish.LENGTH if lefts[0] <= 0 else 0) | (Finish.CONTEXT if lefts[1] <= 0 else 0)
        assert finish & ~Finish.DRAFTED == bits and (count == 0 or not finished)
        assert bool(after.finished[b]) == (finished or bits != 0)


def agree(backend, rule, cases):
    differing = requests = 0
    for seed, arguments in cases:
        before = random_ends(arguments, seed, whole=True)
        ours, theirs = copied(before), copied(before)
        got = sdk.verify(**arguments, ends=ours, rule=rule, backend=backend)
        want = sdk.verify(**arguments, ends=theirs, rule=rule, backend="reference")
        check_in_range(got, arguments)
        check_finish(got, before, ours, nodes_of(arguments))
        same = (got.tokens == want.tokens).all(1) & (got.path == want.path).all(1)
        for one, other in zip(got[:7], want[:7], strict=True):
            torch.testing.assert_close(one[same], other[same], rtol=1e-4, atol=1e-4, equal_nan=True)
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one[same], other[same]) if one.dim() == 1 else torch.equal(one, other)
        differing, requests = differing + int((~same).sum()), requests + len(same)
    assert differing <= 1 + requests * 0.002, f"{differing} of {requests} differ"


@pytest.mark.parametrize("backend", QUICK)
@pytest.mark.parametrize("rule", EVERY, ids=rule_name)
def test_backends_agree(rule, backend):
    """Trees, hostile ones, rows by number, and chains with bonus tokens."""
    cases = [(seed, random_case(seed, hostile=seed % 3 == 0)) for seed in range(100, 112)]
    cases += [(seed, choose_rows(random_case(seed), seed, hostile=seed % 2 == 0)) for seed in range(8)]
    cases += [(seed, chains(seed)) for seed in range(4)]
    cases += [(seed, without_last_rows(chains(seed))) for seed in range(4)]
    agree(backend, rule, cases)


@pytest.mark.parametrize("backend", QUICK)
@pytest.mark.parametrize("rule", EVERY, ids=rule_name)
def test_nodes_below_an_end_change_nothing(rule, backend):
    """Neither their tokens nor their rows, which may hold anything."""
    logits = torch.randn(7, 9, generator=torch.Generator().manual_seed(3))
    logits[0, 4] += 3
    tokens = torch.tensor([[-1, 4, 5, 4, 6, 6, 2]])
    parents = torch.tensor([[-1, 0, 0, 1, 3, 4, 1]])
    keys = dict(rule=rule, seeds=torch.tensor([5]), positions=torch.tensor([3]), backend=backend)
    seen = set()
    for step in range(12):
        answers = []
        keys["seeds"] = torch.tensor([step])
        for below in (tokens, torch.tensor([[-1, 4, 5, 99, 2**40, 0, -5]])):
            tree = sdk.DraftTree.from_parents(below, parents, proposals=1, check=False)
            target, draft = logits.clone(), logits.roll(1, 0)
            if below is not tokens:
                target[[1, 3, 4, 5, 6]], draft[[1, 3, 4]] = float("nan"), float("nan")
            ends = sdk.Ends(stop_tokens=torch.tensor([[-1, 4]]))
            got = sdk.verify(target, tree, draft, ends=ends, return_logprobs=True, **keys)
            assert not got.status.any()
            answers.append(got)
        assert all_equal(*answers)
        seen.add(int(got.finish))
    assert Finish.STOP | Finish.DRAFTED in seen


@pytest.mark.parametrize("backend", QUICK)
@pytest.mark.parametrize("rule", ["match", "token", "traversal"])
def test_ended_requests_stay_as_they_are(rule, backend):
    """Nothing emitted, counted or committed. A slot that is written to serves another request."""
    keys = dict(rule=rule, backend=backend, seeds=torch.tensor([1, 2, 3]), positions=torch.tensor([5, 6, 7]))
    tree = sdk.DraftTree.chain(torch.tensor([[1, 2], [1, 2], [1, 2]]), proposal=sdk.Proposal.POINT)
    logits = torch.full((3, 3, 4), float("nan"))
    logits[2] = torch.randn(3, 4)
    left = torch.tensor([4, 0, 9], dtype=torch.int32)
    ends = sdk.Ends(None, left, None, torch.tensor([True, False, False]))
    got = sdk.verify(logits, tree, ends=ends, return_logprobs=True, **keys)
    assert got.num_tokens.tolist()[:2] == got.status.tolist()[:2] == [0, 0]
    assert bool(
        (got.tokens[:2] == -1).all() and (got.path[:2] == -1).all() and got.logprobs[:2].isnan().all()
    )
    assert got.finish.tolist()[:2] == [0, Finish.LENGTH] and ends.finished.tolist() == [True, True, False]
    count = int(got.num_tokens[2])
    assert left.tolist() == [4, 0, 9 - count] and count > 0
    cache = torch.arange(8.0 * 4).view(8, 4, 1, 1)
    before, table = cache.clone(), torch.arange(6).view(3, 2).int()
    committed = sdk.commit_kv(
        [cache], got, tree, table, torch.tensor([3, 4, 2]).int(), page_size=4, layout="NHD"
    )
    assert committed.lengths.tolist() == [3, 4, 2 + count]
    assert torch.equal(cache[:4], before[:4])
    ends.finished[0], left[0], logits[0] = False, 7, logits[2]
    again = sdk.verify(logits, tree, ends=ends, **keys)
    assert again.num_tokens[0] > 0 and left[0] == 7 - again.num_tokens[0]


def test_status_in_debug_mode_names_a_node_of_the_call_as_it_was(monkeypatch):
    """The reference verifies the request again with what was left before."""
    monkeypatch.setattr(debug, "ENABLED", True)
    tree = sdk.DraftTree.chain(torch.tensor([[1, 2]]))
    draft = torch.tensor([[0.0, -float("inf"), 0.0]]).repeat(3, 1)
    ends = sdk.Ends(new_tokens_left=torch.tensor([1], dtype=torch.int32), finished=torch.tensor([False]))
    with pytest.raises(ValueError, match="got 1 at request 0 node 1"):
        sdk.verify(torch.zeros(3, 3), tree, draft, ends=ends, rule="token")
    assert bool(ends.finished) and int(ends.new_tokens_left) == 0
    logits = torch.full((3, 3), float("nan"))
    assert (
        int(sdk.verify(logits, tree, ends=ends).num_tokens) == 0
    )  # rows of ended requests may hold anything


@pytest.mark.parametrize("backend", QUICK)
def test_out_serves_call_after_call(backend):
    arguments = random_case(5, batch=4)
    ends = random_ends(arguments, 5, whole=True)
    first = sdk.verify(**arguments, ends=copied(ends), backend=backend)
    out = sdk.Verified(*(torch.full_like(field, 77) for field in first[:7]))
    assert sdk.verify(**arguments, ends=ends, out=out, backend=backend) is out and all_equal(out, first)


@pytest.mark.parametrize("backend", QUICK)
def test_a_drafted_last_token_is_a_next_token_that_was_not_rejected(backend):
    """And ended requests are no steps."""
    stats = counts_of_ends(backend)
    assert (stats.steps, stats.drafted, stats.passes) == (2, 6, 6)
    assert stats.accepted == (2, 1, 0) and stats.tested == (2, 1, 1)
