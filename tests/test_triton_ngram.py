# SPDX-License-Identifier: Apache-2.0
"""Prompt lookup as Triton kernels against the reference, bit for bit: texts of several splits, votes with
many candidates, large trees, and what the emulator counts."""

from __future__ import annotations

import pytest
import torch
from each import BACKENDS, DEVICE

if "triton" not in BACKENDS:
    pytest.skip("needs Triton", allow_module_level=True)

import specdec_kernels as sdk
from specdec_kernels.triton import launch

SPLIT = launch.NGRAM_SPLIT


def drafts(tokens, lengths, count, **options):
    """Those of the Triton kernels, which are those of the reference."""
    got, expected = (
        sdk.ngram_draft(tokens, lengths, count, **options, backend=backend)
        for backend in ("triton", "reference")
    )
    assert torch.equal(got, expected), options
    return got


def trees(tokens, lengths, nodes, **options):
    (tree, scores), (other, expected) = (
        sdk.ngram_tree(tokens, lengths, nodes, **options, backend=backend)
        for backend in ("triton", "reference")
    )
    assert torch.equal(tree.tokens, other.tokens), options
    assert torch.equal(tree.parents, other.parents), options
    assert torch.equal(scores, expected), options
    return tree, scores


def texts(seed, count, width, letters):
    """Random texts of all lengths, over few letters, half of them repeating themselves now and then."""
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(letters, (count, width), generator=g)
    for row in tokens[::2]:
        for _ in range(width // 20):
            begin, to, length = torch.randint(width, (3,), generator=g).tolist()
            piece = row[begin : begin + min(length, width - to)].clone()
            row[to : to + len(piece)] = piece
    return tokens, torch.randint(width + 1, (count,), generator=g)


@pytest.mark.parametrize("cyclic", [False, True])
@pytest.mark.parametrize("letters", [2, 5])
def test_many_texts(letters, cyclic):
    for seed, (shortest, longest) in enumerate([(1, 4), (3, 3), (2, 70)]):
        given = texts(seed, 60, 60, letters)
        options = dict(min_ngram=shortest, max_ngram=longest, cyclic=cyclic)
        for match in ("latest", "frequent"):
            drafts(*given, 9, match=match, **options)
        trees(*given, 20, max_depth=7, branches=5, **options)


@pytest.mark.parametrize("match", ["latest", "frequent"])
def test_the_first_and_the_last_place_of_every_split_is_searched(match):
    width = 3 * SPLIT
    for place in (0, SPLIT - 1, SPLIT, 2 * SPLIT - 1, 2 * SPLIT, width - 2):
        tokens = torch.arange(width)[None].clone()
        tokens[0, -1] = place
        drafted = drafts(tokens, torch.tensor([width]), 1, match=match)
        assert drafted.tolist() == [[place + 1 if place < width - 2 else place]]


def test_the_longest_repeat_wins_over_splits_and_the_most_recent_of_equals():
    g = torch.Generator().manual_seed(5)
    tokens = torch.randint(3, 9, (6, 3 * SPLIT + 77), generator=g)
    phrase = torch.tensor([0, 1, 2, 1, 0])
    tokens[:, -5:] = phrase
    for row, places in enumerate([(10,), (SPLIT - 2,), (900, 2 * SPLIT + 3), (5, 3000), (2 * SPLIT - 4, 7)]):
        for place in places:
            tokens[row, place : place + 5] = phrase
    lengths = torch.full((6,), tokens.shape[1])
    drafted = drafts(tokens, lengths, 6, max_ngram=5)
    assert drafted[2].tolist() == tokens[2, 2 * SPLIT + 8 : 2 * SPLIT + 14].tolist()
    drafts(tokens, lengths, 6, max_ngram=3, match="frequent")
    trees(tokens, lengths, 30, branches=4)


def test_votes_are_counted_whatever_the_tokens():
    """Tokens that share the bins in which they are counted, all different tokens, and the extreme ones."""
    g = torch.Generator().manual_seed(6)
    shared = torch.randint(1, 9, (400,), generator=g) * launch.NGRAM_BINS
    ties = torch.arange(400) % 200 + 5
    edges = torch.tensor([2**63 - 1, -(2**63), -1, 2**32, -(2**32)])[torch.randint(5, (400,), generator=g)]
    few = torch.randint(2, (400,), generator=g)
    followers = torch.stack([shared, ties, edges, few, torch.arange(400) + 9])
    tokens = torch.stack([torch.full_like(followers, 3), followers], dim=2).flatten(1)  # 3 x 3 y 3 z ...
    tokens = torch.cat([tokens, torch.full((5, 1), 3)], dim=1)
    for length in (801, 800, 501):
        lengths = torch.full((5,), length)
        drafted = drafts(tokens, lengths, 3, max_ngram=1, match="frequent")
    assert drafted[4].tolist() == [258, 3, -1]  # the most recent of tokens that came once


def test_a_vote_over_more_places_than_are_looked_at_together():
    tokens = torch.randint(40, (1, 33 * SPLIT), generator=torch.Generator().manual_seed(7))
    drafts(tokens, torch.tensor([tokens.shape[1]]), 5, min_ngram=2, max_ngram=2, match="frequent")


def test_trees_of_many_branches_and_nodes():
    tokens, _ = texts(8, 2, 2 * SPLIT + 50, 3)
    lengths = torch.tensor([tokens.shape[1], 1500])
    trees(tokens, lengths, 300, max_depth=12, branches=180, max_ngram=9)  # more than are compared together
    tokens[0] = torch.arange(5).repeat(500)[: tokens.shape[1]]
    trees(tokens, lengths, 130, branches=3, cyclic=True)


def test_chances_that_vanish_or_stay_whole():
    tokens, lengths = texts(9, 8, 90, 2)
    tree, scores = trees(tokens, lengths, 60, trust=[1e-40], branches=3)
    assert (tree.tokens.view(8, 60)[:, 30:] == -1).all() and float(scores[0].amin()) == -float("inf")
    trees(tokens, lengths, 40, trust=[1.0], branches=4)
    trees(tokens, lengths, 40, trust=[5e-324, 0.1, 1.0], branches=4)  # the least of all chances


@pytest.mark.parametrize("chance, last", [(0.29, 4), (0.85, 3)])
def test_products_and_differences_of_chances_are_rounded_one_by_one(chance, last):
    """The last node that is kept is 3 with the chance (t - t t) t or 4 with (1 - t) t t; rounded once less,
    t - t t would make it the other one."""
    text = torch.tensor([[9, 1, 3, 9, 2, 4, 9, 1, 5, 9]])
    tree, _ = trees(text, torch.tensor([10]), 5, max_depth=2, max_ngram=1, trust=[chance])
    assert set(tree.tokens.tolist()) == {9, 1, 5, 2, last}


@pytest.mark.skipif(DEVICE != "cpu", reason="text of the emulator's")
def test_the_compiler_must_not_fuse_them():
    """The emulator does not fuse float64, whatever the text says."""
    import ptx_emulator

    with ptx_emulator.count() as launches:
        sdk.ngram_tree(torch.tensor([[1, 1]]), torch.tensor([2]), 4, backend="triton")
    products = {line.split()[0] for line in launches[1].ptx.splitlines() if "mul" in line and ".f64" in line}
    assert products == {"mul.rn.f64"}  # "mul.f64" may be fused


@pytest.mark.skipif(DEVICE != "cpu", reason="counted by the emulator")
def test_two_launches_the_first_of_which_shares_out_the_text():
    import ptx_emulator

    tokens, lengths = torch.zeros((1, 100_001), dtype=torch.int64), torch.tensor([100_001])
    for run in (
        lambda: sdk.ngram_draft(tokens, lengths, 4, backend="triton"),
        lambda: sdk.ngram_draft(tokens, lengths, 4, match="frequent", backend="triton"),
        lambda: sdk.ngram_tree(tokens, lengths, 16, backend="triton"),
    ):
        with ptx_emulator.active(80, compile_only=True), ptx_emulator.count() as launches:
            run()
        assert [launch.grid[:2] for launch in launches] == [(1, 98), (1, 1)]
