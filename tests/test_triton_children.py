# SPDX-License-Identifier: Apache-2.0
"""`sample_children` as Triton kernels against the reference: every method, every cut, and bad data."""

from __future__ import annotations

import math

import pytest
import torch

import specdec_kernels as sdk
from specdec_kernels.drafting import children

# No multiples of 16, which would compile anew, to wider loads.
VOCABS = (31, 2500)
ROWS = 4


def keys(seed=1):
    g = torch.Generator().manual_seed(seed)
    return dict(
        seeds=torch.randint(-(2**62), 2**62, (ROWS,), generator=g),
        positions=torch.randint(2**40, (ROWS,), generator=g),
        nodes=torch.randint(300, (ROWS,), generator=g),
    )


def check_agreement(logits, k, **options):
    native, reference = (
        sdk.sample_children(logits, k, **options, backend=backend) for backend in ("triton", "reference")
    )
    assert torch.equal(native[0], reference[0]), (logits.shape, k, options)
    torch.testing.assert_close(native[2], reference[2], rtol=1e-4, atol=1e-5)
    return native[0]


@pytest.mark.parametrize(
    "method, dtype", [*((method, torch.float32) for method in children.METHODS), ("hybrid", torch.bfloat16)]
)
def test_tokens_and_scores_agree(method, dtype):
    g = torch.Generator().manual_seed(3)
    cut = sdk.SamplingParams(torch.tensor([1.0, 0.7, 0.0, 1.3]), top_k=torch.tensor([0, 3, 0, 40]), top_p=0.9)
    for trial, vocab in enumerate(VOCABS):
        logits = (torch.randn(ROWS, vocab, generator=g) * 2).to(dtype)
        for sampling in (sdk.SamplingParams(0.8), cut):
            check_agreement(logits, 5, method=method, sampling=sampling, **keys(trial))


@pytest.mark.parametrize("method", children.METHODS)
def test_spoiled_rows(method):
    inf = math.inf
    logits = torch.randn(ROWS, 70)
    logits[0, ::2] = math.nan
    logits[1] = -inf
    logits[2, 5] = logits[2, 60] = inf
    logits[3, 1:] = -inf
    tokens = check_agreement(logits, 5, method=method, **keys())
    assert (tokens[1] == -1).all() and set(tokens[2].tolist()) <= {5, 60, -1}


@pytest.mark.parametrize("method", ["without_replacement", "hybrid"])
def test_weights_far_below_the_largest_are_drawn_when_it_is_gone(method):
    logits = torch.tensor([[300.0, 3.0, 2.0, 1.0]]).expand(ROWS, 4).contiguous()
    assert (check_agreement(logits, 4, method=method, **keys()) >= 0).all()


@pytest.mark.parametrize("k", [1, 9])
@pytest.mark.parametrize("method", children.METHODS)
def test_numbers_of_children(method, k):
    check_agreement(torch.randn(ROWS, 31), k, method=method, coupled=k == 9, **keys())


def test_ties_go_to_the_lowest_token():
    logits = torch.zeros(ROWS, 3000)
    logits[:, 2000] = 1.0
    assert check_agreement(logits, 5, method="top_k", **keys()).tolist() == [[2000, 0, 1, 2, 3]] * ROWS
