# SPDX-License-Identifier: Apache-2.0
"""Bad data for the drafting helpers: nothing is read out of bounds, and what is documented comes out.

Also run under AddressSanitizer and UBSan by `make test-sanitized`.
"""

from __future__ import annotations

import math

import pytest
import torch
from each import BACKENDS

import specdec_kernels as sdk
from specdec_kernels.drafting import children

EDGE = 2**63 - 1
SPOILS = [math.nan, math.inf, -math.inf, 3.4e38, -3.4e38]


@pytest.mark.parametrize("method", children.METHODS)
@pytest.mark.parametrize("vocab", [1, 3, 127, 1025, 9000])
def test_children_of_spoiled_rows(method, vocab):
    g = torch.Generator().manual_seed(vocab)
    for trial in range(40):
        logits = torch.randn(4, vocab, generator=g) * 5
        for row in range(4):
            spoiled = torch.randint(vocab, (1 + trial * vocab // 40,), generator=g)
            logits[row, spoiled] = SPOILS[(trial + row) % len(SPOILS)]
        given = dict(
            method=method,
            sampling=sdk.SamplingParams(
                temperature=torch.tensor([1.0, math.nan, -3.0, 1e-30]),
                top_k=torch.tensor([0, -5, 3, vocab + 9]),
                top_p=torch.tensor([1.0, 0.5, math.nan, 2.0]),
            ),
            seeds=torch.tensor([0, -1, EDGE, -EDGE - 1]),
            positions=torch.tensor([EDGE, -EDGE - 1, 0, -1]),
            nodes=torch.tensor([0, -1, EDGE, 2**31]),
        )
        k = (1, 2, 9, 256)[trial % 4]
        tokens, _, scores = sdk.sample_children(logits, k, **given, backend="cpu")
        there = tokens >= 0
        assert bool((tokens >= -1).all() and (tokens < vocab).all())
        assert bool((scores[there] <= 1e-5).all() and (scores[~there] == -math.inf).all())
        if method != "independent":
            for row in tokens.tolist():
                found = [token for token in row if token >= 0]
                assert len(set(found)) == len(found)


def test_children_do_not_disturb_their_neighbours():
    logits = torch.randn(5, 700)
    keys = dict(seeds=torch.arange(5), positions=torch.arange(5), nodes=torch.arange(5))
    for method in children.METHODS:
        whole = sdk.sample_children(logits, 4, method=method, **keys)
        spoiled = logits.clone()
        spoiled[2] = math.nan
        tokens, _, scores = sdk.sample_children(spoiled, 4, method=method, **keys)
        others = [0, 1, 3, 4]
        assert torch.equal(tokens[others], whole[0][others]) and torch.equal(scores[others], whole[2][others])
        assert (tokens[2] == -1).all()


def test_rows_at_the_very_end_of_memory():
    """Rows that fill their tensor to the last element: the sanitizers see what lies behind."""
    for dtype in (torch.float32, torch.bfloat16):
        for vocab in (1, 127, 129, 1023, 1025, 8193):
            for method in children.METHODS:
                logits = torch.randn(2, vocab).to(dtype)
                tokens, _, _ = sdk.sample_children(logits, 3, method=method, backend="cpu")
                assert int(tokens.max()) < vocab


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [[0, 0], [-1, EDGE], [1, 2], [-EDGE - 1, 7]])
def test_wild_lengths_and_tokens(lengths, backend):
    tokens = torch.tensor([[EDGE, -EDGE - 1, EDGE, -1, -1, EDGE, -EDGE - 1], [5] * 7])
    lengths = torch.tensor(lengths)
    for width in (0, 1, 7):
        for cyclic in (False, True):
            for match in ("latest", "frequent"):
                drafted = sdk.ngram_draft(
                    tokens[:, :width], lengths, 20, max_ngram=50, match=match, cyclic=cyclic, backend=backend
                )
                assert drafted.shape == (2, 20)
            tree, _ = sdk.ngram_tree(
                tokens[:, :width], lengths, 20, branches=9, max_ngram=50, cyclic=cyclic, backend=backend
            )
            parents = tree.parents.view(2, 20)
            assert bool((parents[:, 1:] >= 0).all() and (parents < torch.arange(20)).all())


def test_drafts_of_no_request():
    none = torch.zeros((0, 5), dtype=torch.int64)
    assert sdk.ngram_draft(none, none[:, 0], 3).shape == (0, 3)
    assert sdk.ngram_tree(none, none[:, 0], 3)[1].shape == (0, 3)
    assert sdk.sample_children(torch.zeros(0, 5), 3)[0].shape == (0, 3)
