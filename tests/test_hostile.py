# SPDX-License-Identifier: Apache-2.0
"""Bad data: the documented status or error, every token in range, no other request disturbed. Also run under
AddressSanitizer and UBSan by `make test-sanitized`."""

from __future__ import annotations

import ctypes
import mmap
import sys

import impossible
import pytest
import torch
from cases import RULES, both_with_traces, check_in_range, one_bad_request, random_case, rule_name
from each import BACKENDS, QUICK

import specdec_kernels as sdk
from specdec_kernels.drafting.children import METHODS


@pytest.mark.parametrize("rule", RULES, ids=rule_name)
def test_spoiled_rows_and_tokens(rule):
    differing = requests = 0
    for seed in range(1000, 1060):
        arguments = random_case(seed, hostile=True)
        (native, _), (reference, _) = both_with_traces(arguments, rule)
        check_in_range(native, arguments)
        check_in_range(reference, arguments)
        if arguments.get("draft_sampling") == "logprobs":
            continue  # spoiled log-probabilities are no law: in range is all that is promised
        same = (native.tokens == reference.tokens).all(1) & (native.status == reference.status)
        differing += int((~same).sum())
        requests += len(same)
    assert requests > 100
    assert differing <= requests * 0.002, f"{differing} of {requests} differ"


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("rule", RULES, ids=rule_name)
def test_malformed_trees_are_walked_safely(rule, backend):
    g = torch.Generator().manual_seed(9)
    for trial in range(40):
        arguments = random_case(2000 + trial, batch=3)
        tree = arguments["tree"]
        rows = tree.tokens.numel()

        def wild(rows=rows):
            return torch.randint(-3, rows + 3, (rows,), generator=g).int()

        cu_nodes = tree.cu_nodes.clone()
        if trial % 3 == 0:
            cu_nodes = torch.randint(-5, rows + 5, cu_nodes.shape, generator=g).int()
        links = (wild(), wild()) if trial % 2 else None
        arguments["tree"] = sdk.DraftTree(
            tree.tokens, wild(), cu_nodes, tree.proposals, tree.max_nodes, tree.max_depth, links
        )
        verified = sdk.verify(rule=rule, backend=backend, **arguments)
        check_in_range(verified, arguments)


def test_a_cycle_of_links_ends():
    tokens, parents = torch.tensor([-1, 1, 1, 1]), torch.tensor([-1, 0, 0, 0]).int()
    links = (torch.tensor([1, -1, -1, -1]).int(), torch.tensor([-1, 2, 3, 1]).int())
    tree = sdk.DraftTree(tokens, parents, torch.tensor([0, 4]).int(), torch.zeros(4).byte(), 4, 3, links)
    for rule in RULES:
        assert sdk.verify(torch.zeros(4, 5), tree, rule=rule).num_tokens.item() >= 1


@pytest.mark.parametrize("backend", QUICK)
@pytest.mark.parametrize("rule", ["match", "token", "traversal"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_status_of_visited_rows(rule, backend, temperature):
    nan, inf = float("nan"), float("inf")
    target = torch.zeros(6, 2, 4)
    target[0, 0, 1] = nan
    target[1, 0] = -inf
    target[2, 0, 2] = inf
    target[3, 1] = nan  # never visited: token 3 has no mass in row 0
    target[3, 0] = torch.tensor([0.0, 0.0, 0.0, -inf])
    target[5, 0] = nan
    verified = sdk.verify(
        target,
        sdk.DraftTree.chain(torch.full((6, 1), 3), proposal=sdk.Proposal.POINT),
        rule=rule,
        backend=backend,
        sampling=sdk.SamplingParams(temperature=temperature),
        seeds=torch.arange(6),
        positions=torch.zeros(6).long(),
    )
    both = sdk.Status.NAN | sdk.Status.EMPTY
    assert verified.status.tolist() == [sdk.Status.NAN, sdk.Status.EMPTY, 0, 0, 0, both]
    assert verified.tokens[[1, 2, 5], 0].tolist() == [0, 2, 0]
    assert verified.tokens[0, 0] != 1


@pytest.mark.parametrize("backend", QUICK)
@pytest.mark.parametrize("rule", RULES, ids=rule_name)
def test_status_of_drafts_that_cannot_have_been_drawn(rule, backend):
    assert impossible.told(
        sdk.verify(**impossible.batch(), rule=rule, backend=backend)
    ) == impossible.expected(rule)


@pytest.mark.parametrize("backend", QUICK)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rule", impossible.RULES, ids=rule_name)
def test_honest_drafts_are_never_called_impossible(rule, method, backend):
    for seed in range(6):
        arguments = impossible.honest(seed, method, backend)
        assert not sdk.verify(**arguments, rule=rule, backend=backend).status.any(), seed


@pytest.mark.parametrize("backend", QUICK)
@pytest.mark.parametrize("rule", ["token", "traversal"])
def test_a_token_without_a_column_cannot_have_been_drawn(rule, backend):
    vocab = sdk.DraftVocab(torch.tensor([4, 2]), 6)
    tree = sdk.DraftTree.chain(torch.tensor([[4], [2], [3], [6]]))
    target, draft = torch.zeros(4, 2, 6), torch.tensor([[1.0, -torch.inf]]).expand(4, 1, 2).contiguous()
    verified = sdk.verify(target, tree, draft, draft_vocab=vocab, rule=rule, backend=backend)
    assert verified.status.tolist() == [0, 4, 4, 0]
    logprobs = sdk.verify(
        target, tree, draft - 1, draft_vocab=vocab, draft_sampling="logprobs", rule=rule, backend=backend
    )
    assert logprobs.status.tolist() == [0, 4, 4, 0]
    shape = torch.full((4, 2), -1).int()  # without a row nothing was declared
    points = sdk.verify(
        target, tree, draft[:, 0], draft_rows=shape.flatten(), draft_vocab=vocab, rule=rule, backend=backend
    )
    assert points.status.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("backend", QUICK)
def test_an_empty_row_emits_the_lowest_allowed_token(backend):
    logits = torch.full((3, 40), -float("inf"))
    allowed = torch.tensor([[0b1000, 0], [0, 0b10], [0, 0]]).int()
    keys = dict(seeds=torch.arange(3), positions=torch.arange(3), backend=backend)
    assert sdk.sample(logits, token_bitmask=allowed, **keys).tolist() == [3, 33, 0]


@pytest.mark.parametrize("backend", QUICK)
def test_infinite_entries_share_the_mass(backend):
    logits = torch.randn(400, 100)
    logits[:, [7, 70]] = float("inf")
    for sampling in (sdk.SamplingParams(), sdk.SamplingParams(top_k=1, top_p=0.1, min_p=0.9)):
        tokens, logprobs = sdk.sample(
            logits,
            sampling,
            seeds=torch.arange(400),
            positions=torch.zeros(400).long(),
            return_logprobs=True,
            backend=backend,
        )
        assert set(tokens.tolist()) == {7, 70}
        assert 130 < int((tokens == 7).sum()) < 270
        torch.testing.assert_close(logprobs, torch.full((400,), 0.5).log())


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_length_drafts_and_padding_slots(backend):
    logits = torch.randn(4, 9)
    tree = sdk.DraftTree.chain(torch.zeros(4, 0, dtype=torch.int64))
    keys = dict(seeds=torch.arange(4), positions=torch.arange(4), backend=backend)
    verified = sdk.verify(logits, tree, rule="match", **keys)
    assert torch.equal(verified.tokens[:, 0], sdk.sample(logits, **keys))
    tokens, cu_nodes = torch.tensor([-1, 3, -1]), torch.tensor([0, 0, 2, 2, 3]).int()
    padded = sdk.DraftTree.chain(tokens, cu_nodes=cu_nodes, max_nodes=2)
    verified = sdk.verify(logits[:3], padded, rule="match", **keys)
    assert verified.num_tokens[[0, 2]].tolist() == [0, 0]
    assert verified.tokens[0].tolist() == [-1, -1] and bool((verified.num_tokens[[1, 3]] >= 1).all())
    none = sdk.verify(logits[:0], sdk.DraftTree.chain(torch.zeros(0, 3).long()), backend=backend)
    assert none.tokens.shape == (0, 4)


@pytest.mark.parametrize("backend", QUICK)
@pytest.mark.parametrize("rule", RULES, ids=rule_name)
def test_one_bad_request_disturbs_no_other(rule, backend):
    arguments, spoiled, others = one_bad_request()
    before = sdk.verify(rule=rule, backend=backend, **arguments)
    after = sdk.verify(rule=rule, backend=backend, **spoiled)
    assert torch.equal(before.tokens[others], after.tokens[others])
    assert torch.equal(before.status[others], after.status[others])


def test_deep_and_wide_trees():
    n = 3000
    chain, star = torch.arange(-1, n - 1), torch.tensor([-1] + [0] * (n - 1))
    logits = torch.zeros(n, 8)
    for parents in (chain, star):
        for proposal in sdk.Proposal:
            tree = sdk.DraftTree.from_parents(
                torch.arange(n)[None] % 8, parents[None], proposals=proposal, max_depth=n
            )
            for rule in RULES:
                verified = sdk.verify(
                    logits, tree, logits, rule=rule, seeds=torch.tensor([1]), positions=torch.tensor([1])
                )
                assert verified.num_tokens.item() >= 1


@pytest.mark.skipif(sys.platform != "linux", reason="guard pages by mprotect")
def test_nothing_is_read_beyond_the_last_row():
    """The last row ends at a page that must not be touched: one byte beyond it ends the process."""
    page, pages = mmap.PAGESIZE, 20
    memory = mmap.mmap(-1, (pages + 1) * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(address + pages * page), page, 0) == 0
    for vocab in (1, 3, 63, 64, 65, 1023, 1025, 8191, 8193):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            size = 2 * vocab * dtype.itemsize
            logits = torch.frombuffer(memory, dtype=dtype, count=2 * vocab, offset=pages * page - size).view(
                2, vocab
            )
            logits.copy_(torch.randn(2, vocab))
            tree = sdk.DraftTree.chain(torch.zeros(1, 1, dtype=torch.int64))
            cut = sdk.SamplingParams(top_p=0.9)
            for rule in ("match", "token", "traversal", sdk.Typical()):
                verified = sdk.verify(logits, tree, logits, rule=rule, sampling=cut, backend="cpu")
                assert bool((verified.tokens[:, 0] < vocab).all())
