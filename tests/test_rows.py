# SPDX-License-Identifier: Apache-2.0
"""Rows of the target by number, bonus tokens, draft probabilities and int32 tokens: backends agree, and bad
numbers do no harm. test_rows_exact.py has the law."""

from __future__ import annotations

import pytest
import torch
from cases import MAY_DIFFER, RULES, all_equal, both_with_traces, check_in_range, random_case, rule_name
from each import QUICK
from row_cases import EVERY, as_probabilities, chains, choose_rows, without_last_rows

import specdec_kernels as sdk
from specdec_kernels import _debug as debug


def compare(arguments, rule, backend):
    """How many requests there are, and in how many a backend differs from the reference."""
    (ours, our_trace), (theirs, their_trace) = both_with_traces(arguments, rule, backend)
    check_in_range(ours, arguments)
    same = (ours.tokens == theirs.tokens).all(1) & (ours.path == theirs.path).all(1)
    assert torch.equal(ours.status[same], theirs.status[same])
    assert torch.equal(ours.num_tokens[same], theirs.num_tokens[same])
    torch.testing.assert_close(
        ours.logprobs[same], theirs.logprobs[same], rtol=1e-4, atol=1e-4, equal_nan=True
    )
    if same.all() and rule in ("token", "traversal"):
        for a, b in ((our_trace.thresholds, their_trace.thresholds), (our_trace.masses, their_trace.masses)):
            both = ~a.isnan() & ~b.isnan()
            torch.testing.assert_close(a[both], b[both], **MAY_DIFFER)
    return len(same), int((~same).sum())


def agree(cases, rule, backend="cpu"):
    requests, differing = zip(*(compare(case, rule, backend) for case in cases), strict=True)
    assert sum(differing) <= 1 + sum(requests) * 0.002, f"{sum(differing)} of {sum(requests)} differ"


@pytest.mark.slow
@pytest.mark.parametrize("rule", EVERY, ids=rule_name)
def test_backends_agree_on_rows(rule):
    agree([choose_rows(random_case(seed), seed) for seed in range(40)], rule)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["token", "traversal", sdk.Lenient(1.5)], ids=rule_name)
def test_backends_agree_on_probabilities(rule):
    agree([as_probabilities(random_case(seed)) for seed in range(40)], rule)


@pytest.mark.parametrize("rule", EVERY, ids=rule_name)
def test_backends_agree_on_bonus_tokens(rule):
    cases = [chains(seed) for seed in range(20)]
    agree([*cases, *map(without_last_rows, cases)], rule)


@pytest.mark.parametrize("backend", QUICK)
@pytest.mark.parametrize("rule", EVERY, ids=rule_name)
def test_numbers_out_of_range_are_no_rows(rule, backend):
    for seed in range(8):
        arguments = choose_rows(random_case(3000 + seed), seed, hostile=True)
        got = sdk.verify(**arguments, rule=rule, backend=backend)
        check_in_range(got, arguments)
        numbers, count = arguments["target_rows"], arguments["target_logits"].shape[0]
        arguments["target_rows"] = torch.where((numbers < 0) | (numbers >= count), -1, numbers)
        assert all_equal(got, sdk.verify(**arguments, rule=rule, backend=backend))


@pytest.mark.parametrize("backend", QUICK)
@pytest.mark.parametrize("rule", RULES, ids=rule_name)
def test_rows_by_number_are_the_rows(rule, backend):
    for seed in range(6):
        arguments = random_case(4000 + seed)
        rows = arguments["tree"].tokens.shape[0]
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
        numbered = dict(
            arguments, target_logits=arguments["target_logits"][order], target_rows=order.argsort().int()
        )
        whole = sdk.verify(**arguments, rule=rule, backend=backend)
        assert all_equal(whole, sdk.verify(**numbered, rule=rule, backend=backend))


@pytest.mark.parametrize("backend", QUICK)
@pytest.mark.parametrize("rule", RULES, ids=rule_name)
def test_bonus_tokens_out_of_range_are_none(rule, backend):
    for seed in range(5):
        arguments = chains(seed, hostile=True)
        bonus = arguments["bonus_tokens"]
        none = dict(arguments, bonus_tokens=torch.where((bonus < 0) | (bonus >= 50), -1, bonus))
        for one, other in ((arguments, none), (without_last_rows(arguments), without_last_rows(none))):
            got = sdk.verify(**one, rule=rule, backend=backend)
            check_in_range(got, one)
            assert all_equal(got, sdk.verify(**other, rule=rule, backend=backend))


@pytest.mark.parametrize("backend", QUICK)
@pytest.mark.parametrize("rule", RULES, ids=rule_name)
def test_the_layouts_of_bonus_tokens_are_one(rule, backend):
    """Without last rows; numbered; int32 tokens; stacked."""
    for seed in range(5):
        arguments = chains(seed)
        want = sdk.verify(**arguments, rule=rule, backend=backend)
        ends, rows = arguments["tree"].cu_nodes[1:].long() - 1, arguments["target_logits"].shape[0]
        numbers = torch.arange(rows).int()
        numbers[ends] = -1
        numbered = sdk.verify(**arguments, target_rows=numbers, rule=rule, backend=backend)
        fewer = without_last_rows(arguments)
        fewer["bonus_tokens"] = fewer["bonus_tokens"].int()
        assert all_equal(numbered, sdk.verify(**fewer, rule=rule, backend=backend))
        same = arguments["bonus_tokens"] >= 0
        for field in ("tokens", "num_tokens", "path", "status"):
            assert torch.equal(getattr(want, field)[same], getattr(numbered, field)[same]), field


def test_debug_tells_of_empty_requests_between_others(monkeypatch):
    """Without rows of last nodes the rows after them would be those of other nodes."""
    monkeypatch.setattr(debug, "ENABLED", True)
    bonus = torch.tensor([1, 1, 1])
    for ends, last in (([0, 3, 6, 6], True), ([0, 3, 3, 6], False)):
        tree = sdk.DraftTree.chain(torch.ones(7).long(), cu_nodes=torch.tensor(ends))
        if last:
            sdk.verify(torch.zeros(4, 5), tree, bonus_tokens=bonus)
        else:
            with pytest.raises(ValueError, match="must have its empty requests last .* got 0 at request 1"):
                sdk.verify(torch.zeros(4, 5), tree, bonus_tokens=bonus)


def test_a_chain_that_was_refreshed_to_a_tree_takes_no_bonus_token():
    tree = sdk.DraftTree.chain(torch.tensor([[1, 2]]))
    given = dict(target_logits=torch.zeros(3, 4), tree=tree, bonus_tokens=torch.tensor([3]))
    for parents, chain in ((None, True), ([[-1, 0, 0]], False), ([[-1, 0, 1]], True)):
        tree.refresh_(torch.tensor([[-1, 1, 1]]), parents=None if parents is None else torch.tensor(parents))
        if chain:
            sdk.verify(**given)
        else:
            with pytest.raises(ValueError, match="tree must be a chain with bonus_tokens"):
                sdk.verify(**given)


def test_inside_torch_compile_a_chain_is_known_by_its_bounds():
    """A chain that claims more nodes than depths is refused, with a message that says so."""
    given = dict(target_logits=torch.zeros(3, 4), bonus_tokens=torch.tensor([3]), backend="reference")
    compiled = torch.compile(lambda tree: sdk.verify(**given, tree=tree), backend="eager")
    compiled(sdk.DraftTree.chain(torch.tensor([[1, 2]])))
    loose = sdk.DraftTree.chain(torch.tensor([[1, 2]]), max_nodes=9)
    sdk.verify(**given, tree=loose)
    rule = r"inside torch.compile has max_nodes <= max_depth \+ 1, got max_nodes 9 and max_depth 2"
    with pytest.raises(Exception, match=rule):
        torch.compile(lambda tree: sdk.verify(**given, tree=tree), backend="eager", fullgraph=True)(loose)


@pytest.mark.parametrize("backend", QUICK)
@pytest.mark.parametrize("rule", RULES, ids=rule_name)
def test_int32_tokens_are_the_tokens(rule, backend):
    arguments = random_case(5, batch=4)
    want = sdk.verify(**arguments, rule=rule, backend=backend)
    out = want._replace(tokens=torch.empty_like(want.tokens, dtype=torch.int32))
    got = sdk.verify(**arguments, rule=rule, backend=backend, out=out)
    assert got is out and out.tokens.dtype == torch.int32
    assert all_equal(want, out._replace(tokens=out.tokens.long()))


@pytest.mark.parametrize("backend", QUICK)
def test_probabilities_are_the_law(backend):
    """What their logarithms give, in every dtype."""
    for seed in range(12):
        arguments = as_probabilities(random_case(6000 + seed))
        if "draft_logits" not in arguments:
            continue
        logs = dict(
            arguments, draft_logits=arguments["draft_logits"].float().log(), draft_sampling="logprobs"
        )
        for rule in ("token", "traversal", sdk.Lenient(1.5)):
            by_probs = sdk.verify(**arguments, rule=rule, backend=backend)
            by_logs = sdk.verify(**logs, rule=rule, backend=backend)
            assert torch.equal(by_probs.tokens, by_logs.tokens), (seed, rule)


@pytest.mark.parametrize("backend", QUICK)
@pytest.mark.parametrize("rule", ["token", "traversal", sdk.Lenient(1.5)], ids=rule_name)
def test_probabilities_that_are_none_do_no_harm(rule, backend):
    g = torch.Generator().manual_seed(8)
    wild = torch.tensor([float("nan"), float("inf"), -float("inf"), -1.0, 3e38, 0.0])
    for seed in range(10):
        arguments = as_probabilities(random_case(7000 + seed))
        if "draft_logits" not in arguments:
            continue
        draft = arguments["draft_logits"] = arguments["draft_logits"].clone()
        some = torch.randint(4, draft.shape, generator=g) == 0
        draft[some] = wild[torch.randint(len(wild), draft.shape, generator=g)][some].to(draft.dtype)
        check_in_range(sdk.verify(**arguments, rule=rule, backend=backend), arguments)


@pytest.mark.parametrize("backend", QUICK)
def test_a_row_of_no_probabilities_is_no_row(backend):
    """NaN, or nothing above 0: what was drawn from it counts as POINT."""
    target = torch.tensor([[0.5, 0.3, 0.2]]).log().repeat(3, 2, 1)
    tree = sdk.DraftTree.chain(torch.tensor([[1], [1], [1]]))
    draft = torch.tensor([[0.2, 0.3, 0.5], [0.4, float("nan"), 0.6], [0.0, 0.0, 0.0]])[:, None]
    keys = dict(seeds=torch.arange(3), positions=torch.arange(3), rule="token", backend=backend)
    got = sdk.verify(target, tree, draft, draft_sampling="probs", **keys)
    point = sdk.verify(target, tree, **keys)
    assert torch.equal(got.tokens[1:], point.tokens[1:]) and not got.status.any()
    assert got.num_accepted[0] == 1  # p(1) = q(1)


@pytest.mark.parametrize("backend", QUICK)
@pytest.mark.parametrize("rule", EVERY, ids=rule_name)
def test_requests_without_anything_are_empty(rule, backend):
    """No root row, no nodes, no requests, no rows at all."""
    logits = torch.full((2, 6), float("nan"))
    tree = sdk.DraftTree.chain(torch.tensor([-1, 2, -1, 3]), cu_nodes=torch.tensor([0, 2, 2, 4]).int())
    keys = dict(rule=rule, backend=backend, return_logprobs=True)
    rows = torch.tensor([-1, 0, 5, 1]).int()
    for given in (logits, logits[:0]):
        got = sdk.verify(given, tree, target_rows=rows, **keys)
        assert got.num_tokens.tolist() == got.num_accepted.tolist() == got.status.tolist() == [0, 0, 0]
        assert bool((got.tokens == -1).all() and (got.path == -1).all() and got.logprobs.isnan().all())
    none = sdk.DraftTree.chain(torch.zeros(0, 2).long())
    no_numbers, no_tokens = torch.zeros(0).int(), torch.zeros(0).long()
    got = sdk.verify(logits, none, target_rows=no_numbers, bonus_tokens=no_tokens, **keys)
    assert got.tokens.shape == (0, 3)
    roots = sdk.DraftTree.chain(torch.zeros(2, 0).long())
    got = sdk.verify(logits[:0], roots, bonus_tokens=torch.tensor([4, 5]), **keys)
    assert got.tokens.tolist() == [[4], [5]] and got.status.tolist() == [0, 0] and got.logprobs.isnan().all()


@pytest.mark.parametrize("backend", QUICK)
@pytest.mark.parametrize("rule", ["match", "token", "traversal"])
def test_the_row_under_a_bonus_token_is_read_for_its_log_probability_alone(rule, backend):
    logits = torch.zeros(2, 2, 4)
    logits[:, 0, 3] = 40.0
    logits[0, 1], logits[1, 1, 2] = float("nan"), 1.0
    tree = sdk.DraftTree.chain(torch.tensor([[3], [3]]), proposal=sdk.Proposal.POINT)
    got = sdk.verify(
        logits, tree, bonus_tokens=torch.tensor([2, 2]), rule=rule, backend=backend, return_logprobs=True
    )
    assert got.tokens.tolist() == [[3, 2], [3, 2]] and got.status.tolist() == [0, 0]
    torch.testing.assert_close(got.logprobs[1, 1], torch.log_softmax(logits[1, 1], 0)[2])


@pytest.mark.parametrize("rule", RULES, ids=rule_name)
def test_a_request_is_the_same_alone(rule):
    """Rows of one table, bonus tokens and probabilities, whatever else is in the batch."""
    for seed in range(4):
        arguments = as_probabilities(chains(seed, batch=6))
        rows = arguments["tree"].tokens.shape[0]
        numbers = choose_rows(arguments, seed)["target_rows"].clamp_max(rows - 1)
        whole = sdk.verify(**arguments, target_rows=numbers, rule=rule)
        ends, temperature = arguments["tree"].cu_nodes.tolist(), arguments["sampling"].temperature
        for b, (start, end) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
            one = slice(b, b + 1)
            tree = sdk.DraftTree.chain(
                arguments["tree"].tokens[start:end],
                cu_nodes=torch.tensor([0, end - start]).int(),
                max_nodes=5,
            )
            alone = {name: arguments[name][one] for name in ("bonus_tokens", "seeds", "positions")}
            got = sdk.verify(
                arguments["target_logits"],
                tree,
                arguments["draft_logits"][start:end],
                target_rows=numbers[start:end],
                draft_sampling="probs",
                sampling=sdk.SamplingParams(temperature[one]),
                rule=rule,
                return_logprobs=True,
                **alone,
            )
            width = min(whole.tokens.shape[1], got.tokens.shape[1])
            for field in sdk.Verified._fields[:6]:
                value = getattr(whole, field)
                part = value[one] if value.dim() == 1 else value[one, :width]
                other = getattr(got, field)
                assert all_equal([part], [other if value.dim() == 1 else other[:, :width]]), field
