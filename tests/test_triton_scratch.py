# SPDX-License-Identifier: Apache-2.0
"""What one launch of `verify` leaves to the next: results do not depend on what scratch held before, on the
order in which programs run, or on other requests' offsets."""

from __future__ import annotations

import pytest
import torch

import specdec_kernels as sdk
from specdec_kernels.triton import verification

V = 40


@pytest.fixture
def poison(monkeypatch):
    """What scratch holds before, as bits of every 32."""
    bits = [0]
    allocate = verification.scratch_of

    def filled(device, layout):
        scratch = allocate(device, layout)
        scratch.words.view(torch.int32).fill_(bits[0])
        return scratch

    monkeypatch.setattr(verification, "scratch_of", filled)
    return bits


def agree(poison, target, tree, draft=None, requests=slice(None), **options):
    """With the reference, whatever scratch held."""
    batch = tree.cu_nodes.numel() - 1
    options.update(seeds=torch.arange(batch), positions=torch.zeros(batch, dtype=torch.int64))
    wanted = sdk.verify(target, tree, draft, backend="reference", **options)
    for poison[0] in (0, 1, 0x3F800000, 0x7FFFFFFF):
        got = sdk.verify(target, tree, draft, backend="triton", **options)
        for field in ("tokens", "path", "num_tokens", "status"):
            assert torch.equal(getattr(got, field)[requests], getattr(wanted, field)[requests]), field


@pytest.mark.parametrize("seed", [0, 1])
def test_programs_of_a_row_may_sum_one_after_the_other(poison, monkeypatch, seed):
    """Those of the first split, and then all: no program of a launch reads what another one writes."""
    kernels = verification._kernels

    def split_by_split(form):
        found = kernels(form)

        def launch(grid, *arguments):
            found.sum((grid[0], 1, 1), *arguments)
            found.sum(grid, *arguments)

        return found._replace(sum=launch)

    monkeypatch.setattr(verification, "_kernels", split_by_split)
    g = torch.Generator().manual_seed(seed)
    target, draft = (torch.randn(4, 8256, generator=g) * 0.2 for _ in range(2))
    tree = sdk.DraftTree.from_parents(
        torch.tensor([[0, 5, 8253, 77]]),
        torch.tensor([[-1, 0, 1, 2]]),
        proposals=sdk.Proposal.WITHOUT_REPLACEMENT,
    )
    agree(poison, target, tree, draft, rule="traversal")


def likely(*tokens):
    """Rows whose likeliest token is all but certain; None: of no matter."""
    rows = torch.full((len(tokens), V), -5.0)
    for row, token in zip(rows, tokens, strict=True):
        if token is not None:
            row[token] = 20.0
    return rows


def test_nodes_that_nobody_lists_are_no_children(poison):
    first = torch.tensor([[1, -1, -1, 2, -1, -1]])
    following = torch.tensor([[-1, 3, 5, -1, -1, -1]])
    tokens = torch.tensor([[-1, 1, 9, 3, 4, 5]])
    tree = sdk.DraftTree.from_links(tokens, first, following, check=False, max_depth=3)
    agree(poison, likely(3, 8, None, 5, None, 8), tree, rule="match")


def test_a_ring_of_siblings_ends_where_it_began(poison):
    first, following = torch.tensor([[1, -1, -1, -1]]), torch.tensor([[-1, 2, 3, 1]])
    tokens = torch.tensor([[-1, 2, 2, 2]])
    tree = sdk.DraftTree.from_links(tokens, first, following, check=False, max_depth=1)
    agree(poison, likely(2, 7, 8, 9), tree, rule="match")


@pytest.mark.parametrize(
    "offsets, sound",
    [((0, 4, 8, 12), [0, 1, 2]), ((0, 100, 8, 12), [2]), ((0, 4, 2, 12), [0]), ((0, 4, 100, 12), [0])],
)
@pytest.mark.parametrize("rule", ["token", "match"])
def test_wrong_offsets_disturb_no_sound_request(poison, offsets, sound, rule):
    g = torch.Generator().manual_seed(0)
    target, draft = (torch.randn(12, V, generator=g) for _ in range(2))
    tree = sdk.DraftTree(
        torch.tensor([-1, 1, 2, 3] * 3),
        torch.tensor([-1, 0, 1, 2] * 3).int(),
        torch.tensor(offsets).int(),
        torch.ones(12).byte(),
        4,
        3,
    )
    sampling = sdk.SamplingParams(torch.tensor([1.0, 0.0, 1.0]))
    agree(poison, target, tree, draft, requests=sound, rule=rule, sampling=sampling)


@pytest.mark.parametrize("rule", ["traversal", sdk.Lenient(1.5)])
def test_what_is_no_proposal_counts_as_point_beside_others(poison, rule):
    g = torch.Generator().manual_seed(4)
    target, draft = (torch.randn(4, V, generator=g) for _ in range(2))
    tree = sdk.DraftTree.from_parents(
        torch.tensor([[-1, 1, 4, 9]]),
        torch.tensor([[-1, 0, 0, 0]]),
        proposals=torch.tensor([[0, 2, 7, 2]]).byte(),
        check=False,
    )
    agree(poison, target, tree, draft, rule=rule)


def test_a_top_k_is_whole():
    """Per request it may be a float."""
    logits = torch.randn(8, V, generator=torch.Generator().manual_seed(5))
    options = dict(seeds=torch.arange(8), positions=torch.arange(8), return_logprobs=True)
    sampling = sdk.SamplingParams(torch.ones(8), torch.full((8,), 2.5))
    got, wanted = (sdk.sample(logits, sampling, backend=name, **options) for name in ("triton", "reference"))
    assert torch.equal(got[0], wanted[0]) and torch.allclose(got[1], wanted[1], atol=1e-5)
