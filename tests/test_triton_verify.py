# SPDX-License-Identifier: Apache-2.0
"""`verify` as Triton kernels against the reference: every rule and option, bad data, and invariance.

To compile few kernels, cases are brought into one form (`cases_of`).
"""

from __future__ import annotations

import impossible
import pytest
import torch
from cases import (
    RULES,
    all_equal,
    both_with_traces,
    cases_of,
    check_agreement,
    check_in_range,
    leaves,
    one_bad_request,
    rule_name,
    shared_form,
    uniform_case,
)

import specdec_kernels as sdk
from specdec_kernels.drafting.children import METHODS


def with_traces(arguments, rule):
    """What Triton's kernels return, compiled with traces as most tests here have them."""
    return both_with_traces(arguments, rule, "triton")[0][0]


@pytest.mark.parametrize("rule", RULES, ids=rule_name)
def test_results_thresholds_and_masses_agree(rule):
    traced = sum(check_agreement(arguments, rule, seed) for seed, arguments in cases_of("rows", 12))
    assert rule not in ("token", "traversal") or traced > 20


@pytest.mark.parametrize("rule, form", [("token", "vocab"), ("traversal", "logprobs")])
def test_forms_of_the_draft_agree(rule, form):
    """In one split, with the target's own cuts for the draft, or without cuts."""
    traced = 0
    for seed, arguments in cases_of(form, 8, 100, vocabs=(69, 203)):
        if form == "logprobs":
            arguments["sampling"] = sdk.SamplingParams(arguments["sampling"].temperature)
        traced += check_agreement(arguments, rule, seed)
    assert traced > 10


@pytest.mark.parametrize("rule", impossible.RULES, ids=rule_name)
def test_status_of_drafts_that_cannot_have_been_drawn(rule):
    (ours, _), (reference, _) = both_with_traces(shared_form(impossible.batch()), rule, "triton")
    assert impossible.told(ours) == impossible.expected(rule)
    assert torch.equal(ours.tokens, reference.tokens) and torch.equal(ours.path, reference.path)


@pytest.mark.parametrize("rule", ["token", "traversal"])
def test_honest_drafts_are_never_called_impossible(rule):
    for seed, method in enumerate(METHODS):
        (ours, _), _ = both_with_traces(shared_form(impossible.honest(seed, method)), rule, "triton")
        assert not ours.status.any(), method


@pytest.mark.parametrize("rule", ["match", "traversal"])
def test_spoiled_rows_and_tokens(rule):
    for seed, arguments in cases_of("rows", 10, 1000, hostile=True):
        (ours, _), (reference, _) = both_with_traces(arguments, rule, "triton")
        check_in_range(ours, arguments)
        assert torch.equal(ours.tokens, reference.tokens), seed
        assert torch.equal(ours.status, reference.status), seed


# The lossy rules walk alike.
@pytest.mark.parametrize("rule", RULES[:3])
def test_one_bad_request_disturbs_no_other(rule):
    arguments, spoiled, others = one_bad_request()
    before, after = (with_traces(shared_form(case), rule) for case in (arguments, spoiled))
    assert torch.equal(before.tokens[others], after.tokens[others])
    assert torch.equal(before.status[others], after.status[others])


def without_cuts(arguments):
    """For trees with links, which all kernels are compiled for."""
    plain = sdk.SamplingParams(arguments["sampling"].temperature)
    return dict(arguments, sampling=plain, draft_sampling=plain)


def test_malformed_trees_are_walked_safely():
    """The emulated device checks the bounds of every access."""
    g = torch.Generator().manual_seed(9)
    for seed, arguments in cases_of("rows", 10, 2000, batch=3):
        tree = arguments["tree"]
        rows = tree.tokens.numel()
        wild = [torch.randint(-3, rows + 3, (rows,), generator=g).int() for _ in range(3)]
        cu_nodes, links = tree.cu_nodes, tuple(wild[1:]) if seed % 2 else None
        if seed % 3 == 0:
            cu_nodes = torch.randint(-5, rows + 5, cu_nodes.shape, generator=g).int()
        if links:
            arguments = without_cuts(arguments)
        arguments["tree"] = sdk.DraftTree(
            tree.tokens, wild[0], cu_nodes, tree.proposals, tree.max_nodes, tree.max_depth, links
        )
        check_in_range(with_traces(arguments, "traversal"), arguments)


def test_links_order_siblings():
    tokens, g = torch.randint(0, 5, (4, 7)), torch.Generator().manual_seed(3)
    first = torch.tensor([[3, 4, -1, -1, -1, -1, -1]]).repeat(4, 1)
    following = torch.tensor([[-1, 2, -1, 1, 6, -1, 5]]).repeat(4, 1)
    tokens[:, 0] = -1
    tree = sdk.DraftTree.from_links(tokens, first, following, proposals=sdk.Proposal.WITHOUT_REPLACEMENT)
    target, draft = (torch.randn(28, 1203, generator=g) for _ in range(2))
    arguments = dict(target_logits=target, tree=tree, draft_logits=draft, return_logprobs=True)
    arguments.update(seeds=torch.arange(4), positions=torch.arange(4), sampling=sdk.SamplingParams(0.9))
    check_agreement(without_cuts(shared_form(arguments)), "traversal", "links")


def run(case, rows=slice(None)):
    c = {k: v[rows].clone() for k, v in case.items()}  # all aligned alike, whichever rows
    tree = sdk.DraftTree.from_parents(
        c["tokens"], c["parents"], proposals=c["proposals"], max_depth=5, check=False
    )
    arguments = dict(
        target_logits=c["target"].flatten(0, 1),
        tree=tree,
        draft_logits=c["draft"].flatten(0, 1),
        seeds=c["seeds"],
        positions=c["positions"],
        sampling=sdk.SamplingParams(temperature=c["temperature"], top_p=c["top_p"]),
        return_logprobs=True,
    )
    return with_traces(shared_form(arguments), "traversal")


def test_batch_order_and_split():
    case = uniform_case(7, 6, 1500)
    whole, order = run(case), torch.tensor([3, 0, 5, 1, 4, 2])
    assert all_equal([x[order] for x in leaves(whole)], run(case, order))
    parts = [run(case, rows) for rows in (slice(0, 1), slice(1, 4), slice(4, 6))]
    assert all_equal(whole, [torch.cat(xs) for xs in zip(*map(leaves, parts), strict=True)])


def chain_case(batch=8, length=5, vocab=32768):
    """A drafter that agrees with the target by sum min(p, q) = 0.70 at temperature 0.8."""
    g = torch.Generator().manual_seed(0)
    target = torch.randn(batch, length + 1, vocab, generator=g) * 2
    draft = target[:, :length] + 0.87 * torch.randn(batch, length, vocab, generator=g)
    target, draft = target.bfloat16().flatten(0, 1), draft.bfloat16()
    tokens = torch.multinomial((draft.float() / 0.8).softmax(-1).flatten(0, 1), 1, generator=g)
    return target, sdk.DraftTree.chain(tokens.view(batch, length)), draft


def test_a_vocabulary_of_many_splits_agrees():
    """test_gpu_report.py has what these launches count."""
    target, tree, draft = chain_case()
    options = dict(sampling=sdk.SamplingParams(0.8), seeds=torch.arange(8), positions=torch.arange(8))
    ours, native = (
        sdk.verify(target, tree, draft, rule="traversal", backend=b, **options) for b in ("triton", "cpu")
    )
    assert torch.equal(ours.tokens, native.tokens)
