# SPDX-License-Identifier: Apache-2.0
"""The native backend against the float64 reference: results, thresholds and masses, over every option."""

from __future__ import annotations

import pytest
import torch
from cases import MAY_DIFFER, RULES, both_with_traces, random_case

import specdec_kernels as sdk
from specdec_kernels.sampling import ORDERS

pytestmark = pytest.mark.slow

# Thresholds and masses are ratios and sums of float32 weights: a score x of up to 40 powers of two below its
# row's largest is off by 40 roundings of 2^-24 in its exponent, and a mass may be a small difference of two.


def rule_name(rule):
    return rule if isinstance(rule, str) else rule.name


@pytest.mark.parametrize("rule", RULES, ids=rule_name)
def test_results_thresholds_and_masses_agree(rule):
    requests = differing = traced = 0
    for seed in range(100):
        (native, ours), (reference, theirs) = both_with_traces(random_case(seed), rule)
        same = (native.tokens == reference.tokens).all(1) & (native.path == reference.path).all(1)
        requests += len(same)
        differing += int((~same).sum())
        assert torch.equal(native.status[same], reference.status[same]), seed
        assert torch.equal(native.num_tokens[same], reference.num_tokens[same])
        assert torch.equal(native.num_accepted[same], reference.num_accepted[same])
        torch.testing.assert_close(
            native.logprobs[same], reference.logprobs[same], rtol=1e-4, atol=1e-4, equal_nan=True
        )
        if not same.all() or rule not in ("token", "traversal"):
            continue
        for a, b in ((ours.thresholds, theirs.thresholds), (ours.masses, theirs.masses)):
            both = ~a.isnan() & ~b.isnan()
            traced += int(both.sum())
            torch.testing.assert_close(a[both], b[both], **MAY_DIFFER, msg=lambda m, s=seed: f"case {s}: {m}")
    assert requests > 200
    assert differing <= requests * 0.002, f"{differing} of {requests} requests differ"
    assert rule not in ("token", "traversal") or traced > 100


@pytest.mark.parametrize("rule", ["match", "token", "traversal"])
def test_large_vocabularies_agree(rule):
    for seed, vocab in ((1, 8192), (2, 8193), (3, 20000), (4, 40960)):
        (native, _), (reference, _) = both_with_traces(random_case(seed, vocab=vocab), rule)
        assert torch.equal(native.tokens, reference.tokens), seed
        assert torch.equal(native.status, reference.status)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cuts_agree_where_values_tie(dtype):
    """Integer logits: every cut falls on ties, all of which are kept."""
    g = torch.Generator().manual_seed(1)
    for trial in range(60):
        vocab = (7, 64, 3000, 9000)[trial % 4]
        logits = torch.randint(-3, 4, (4, vocab), generator=g).to(dtype)
        sampling = sdk.SamplingParams(
            temperature=0.7,
            top_k=(0, 1, 5, 100, 2000, vocab - 1)[trial % 6],
            top_p=(1.0, 0.77, 0.0, 0.31)[trial % 4],
            min_p=(0.0, 0.013, 1.0)[trial % 3],
            order=ORDERS[trial // 12 % 2],
        )
        keys = dict(seeds=torch.arange(4), positions=torch.full((4,), trial), return_logprobs=True)
        native, reference = (sdk.sample(logits, sampling, backend=b, **keys) for b in ("cpu", "reference"))
        assert torch.equal(native[0], reference[0]), (trial, vocab, sampling)
        torch.testing.assert_close(native[1], reference[1], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("top_k", [0, 600, 1024, 1025, 5000])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.9999])
def test_wide_cuts_agree(top_k, top_p):
    """Cuts wider than the candidate list, which fall to the histogram."""
    logits = torch.randn(3, 30_000, generator=torch.Generator().manual_seed(top_k)) * 1.3
    keys = dict(seeds=torch.arange(3), positions=torch.arange(3), return_logprobs=True)
    for min_p, order in ((0.0, ORDERS[0]), (2e-3, ORDERS[0]), (2e-3, ORDERS[1])):
        sampling = sdk.SamplingParams(1.2, top_k, top_p, min_p, order)
        native, reference = (sdk.sample(logits, sampling, backend=b, **keys) for b in ("cpu", "reference"))
        assert torch.equal(native[0], reference[0])
        torch.testing.assert_close(native[1], reference[1], rtol=1e-5, atol=5e-6)


def test_a_law_of_one_token_beside_nothing():
    """Float32 cannot hold 1 - q(x) here; the rest of q is summed directly."""
    q = torch.tensor([[40.0, 0.0, 0.5, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    p = torch.tensor([[0.0, 2.0, 1.0, 0.0]] * 3)
    tree = sdk.DraftTree.from_parents(
        torch.tensor([[-1, 0, 3]]), torch.tensor([[-1, 0, 0]]), proposals=sdk.Proposal.WITHOUT_REPLACEMENT
    )
    for seed in range(40):
        arguments = dict(
            target_logits=p,
            tree=tree,
            draft_logits=q,
            seeds=torch.tensor([seed]),
            positions=torch.tensor([0]),
        )
        (native, ours), (reference, theirs) = both_with_traces(arguments, "token")
        assert torch.equal(native.tokens, reference.tokens)
        torch.testing.assert_close(ours.thresholds, theirs.thresholds, rtol=1e-5, atol=0.0, equal_nan=True)
