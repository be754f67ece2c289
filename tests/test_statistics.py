# SPDX-License-Identifier: Apache-2.0
"""Losslessness of the native backend by G-tests on many draws, and mutants that fail the same tests."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gtest import LEAST_P, MUTANT_P, Model, choose, draft_tree, g_test, rows_of

import specdec_kernels as sdk
from specdec_kernels._random import Purpose, philox

pytestmark = pytest.mark.slow
P, I, W = sdk.Proposal.POINT, sdk.Proposal.INDEPENDENT, sdk.Proposal.WITHOUT_REPLACEMENT  # noqa: E741
DRAWS, CHUNK = 400_000, 100_000
PLAIN = sdk.SamplingParams(temperature=0.9)
CUT = sdk.SamplingParams(temperature=1.1, top_k=5, top_p=0.93, min_p=0.02)

# parents, proposals, ranks of the POINT nodes
TREES = {
    "short": ([-1, 0], [I, I], {}),
    "chain": ([-1, 0, 1, 2], [I, I, I, I], {}),
    "independent": ([-1, 0, 0, 0, 1, 1, 2], [I, I, I, I, I, I, I], {}),
    "without_replacement": ([-1, 0, 0, 0, 1, 1, 2], [W, W, W, W, W, W, W], {}),
    "point": ([-1, 0, 0, 1, 1, 2], [P, P, P, P, P, P], {1: 0, 2: 1, 3: 0, 4: 1, 5: 2}),
    "hybrid_first": ([-1, 0, 0, 0, 1, 1], [P, W, P, P, W, P], {2: 0, 3: 1, 5: 0}),
    "hybrid_last": ([-1, 0, 0, 0, 3, 3], [P, P, P, W, P, W], {1: 0, 2: 1, 4: 1}),
    "mixed": ([-1, 0, 0, 0, 0, 2, 2], [I, I, W, P, W, I, P], {3: 2, 6: 0}),
}


def draws(
    model,
    tree,
    rule,
    sampling,
    *,
    draft_sampling=None,
    seed=0,
    mutate=None,
    draws=DRAWS,
    proposals=None,
    rowless=None,
    bonus_after=None,
):
    """First tokens, second tokens (drawn from the target where the step emitted one) and accepted counts.

    `rowless` tells of tokens whether their nodes have no row of the target; a bonus token is drawn after the
    node `bonus_after`.
    """
    parents, kinds, points = TREES[tree]
    generator = torch.Generator().manual_seed(seed)
    q = model.q(draft_sampling or sampling)
    p = torch.from_numpy(model.p(sampling))
    first, second, accepted = [], [], []
    for chunk in range(draws // CHUNK):
        tokens = draft_tree(q, parents, kinds, points, CHUNK, generator)
        target, draft = rows_of(model.target, tokens), rows_of(model.draft, tokens)
        if mutate:
            tokens, target, draft = mutate(tokens, target, draft)
        rows = torch.arange(tokens.numel()).view_as(tokens).int()
        if rowless:
            rows[:, 1:] = torch.where(rowless(tokens[:, 1:]), -1, rows[:, 1:])
        bonus = None if bonus_after is None else choose(p[tokens[:, bonus_after]], generator)
        declared = torch.tensor([int(k) for k in (proposals or kinds)], dtype=torch.uint8).expand(CHUNK, -1)
        drafted = sdk.DraftTree.from_parents(
            tokens,
            torch.tensor(parents, dtype=torch.int32).expand(CHUNK, -1),
            proposals=declared,
            max_depth=3,
            check=False,
        )
        verified = sdk.verify(
            target.flatten(0, 1),
            drafted,
            draft.flatten(0, 1),
            target_rows=rows.flatten(),
            bonus_tokens=bonus,
            sampling=sampling,
            rule=rule,
            backend="cpu",
            seeds=torch.arange(CHUNK) + chunk * CHUNK + (seed << 32),
            positions=torch.full((CHUNK,), 11),
        )
        dishonest = mutate or proposals
        assert not (verified.status & ~(sdk.Status.IMPOSSIBLE if dishonest else 0)).any()
        one, two = verified.tokens[:, 0], verified.tokens[:, 1].clone()
        two = torch.where(verified.num_tokens > 1, two, choose(p[one], generator))
        first.append(one)
        second.append(two)
        accepted.append(verified.num_accepted)
    return tuple(torch.cat(parts).numpy() for parts in (first, second, accepted))


def p_values(model, sampling, first, second):
    """p-values of the first token and of the first pair under the target's own law."""
    p, v = model.p(sampling), model.vocab
    pair = p[v][:, None] * p[:v]
    counts = np.bincount(first * v + second, minlength=v * v)
    return g_test(np.bincount(first, minlength=v), p[v]), g_test(counts, pair)


@pytest.mark.parametrize("rule", ["token", "traversal", "match"])
@pytest.mark.parametrize("tree", TREES)
def test_first_token_and_pair_follow_the_target(tree, rule):
    model = Model(7, seed=3)
    first, second, _ = draws(model, tree, rule, PLAIN, seed=5)
    assert min(p_values(model, PLAIN, first, second)) > LEAST_P


@pytest.mark.parametrize("rule", ["token", "traversal", "match"])
@pytest.mark.parametrize("tree", ["chain", "without_replacement", "hybrid_first"])
def test_with_every_cut(tree, rule):
    model = Model(9, seed=8)
    first, second, _ = draws(model, tree, rule, CUT, seed=6)
    assert min(p_values(model, CUT, first, second)) > LEAST_P


@pytest.mark.parametrize("tree, rule", [("chain", "token"), ("without_replacement", "traversal")])
def test_rows_left_out_after_a_look_at_their_tokens(tree, rule):
    """What refuses tokens that are dropped, below."""
    model = Model(7, seed=3)
    rowless = lambda tokens: tokens <= 2  # noqa: E731
    first, second, _ = draws(model, tree, rule, PLAIN, seed=5, draws=DRAWS // 4, rowless=rowless)
    assert min(p_values(model, PLAIN, first, second)) > LEAST_P


@pytest.mark.parametrize("rule", ["token", "traversal"])
def test_bonus_tokens(rule):
    """On a chain of one drafted token; a bonus token drawn after the root is refused."""
    model = Model(7, seed=3)
    first, second, _ = draws(model, "short", rule, PLAIN, seed=5, draws=DRAWS // 4, bonus_after=1)
    assert min(p_values(model, PLAIN, first, second)) > LEAST_P
    assert refused("short", rule, bonus_after=0)


def test_accepted_length_of_a_chain_follows_its_exact_law():
    """Token rule: Pr(at least k accepted) = sum over paths of prod min(p, q). Traversal accepts more."""
    model = Model(7, seed=3)
    p, q, v = model.p(PLAIN), model.q(PLAIN), model.vocab
    least = np.minimum(p, q)
    reach, at_least = least[v], [1.0]
    for _ in range(3):
        at_least.append(reach.sum())
        reach = reach @ least[:v]
    law = -np.diff(np.array([*at_least, 0.0]))
    accepted = {rule: draws(model, "chain", rule, PLAIN, seed=7)[2] for rule in ("token", "traversal")}
    assert g_test(np.bincount(accepted["token"], minlength=4), law) > LEAST_P
    assert g_test(np.bincount(accepted["traversal"], minlength=4), law) < MUTANT_P
    assert accepted["traversal"].mean() > accepted["token"].mean()


def test_sample_follows_its_law_and_its_conditionals():
    model, n = Model(11, seed=4), DRAWS
    for sampling in (PLAIN, CUT):
        law = model.p(sampling)
        rows = torch.arange(n) % (model.vocab + 1)
        tokens = sdk.sample(
            model.target[rows], sampling, seeds=torch.arange(n), positions=torch.zeros(n, dtype=torch.int64)
        )
        for row in range(model.vocab + 1):
            assert g_test(np.bincount(tokens[rows == row], minlength=model.vocab), law[row]) > LEAST_P
        # Neighbouring seeds are independent draws.
        same = tokens[rows == 0].numpy()
        pairs = np.bincount(
            same[:-1:2][: len(same) // 2] * model.vocab + same[1::2], minlength=model.vocab**2
        )
        assert g_test(pairs, np.outer(law[0], law[0])) > LEAST_P


# Mutants: each spoils one thing, and the tests above would refuse it.


def refused(tree, rule, **options):
    model = Model(7, seed=3)
    first, second, _ = draws(model, tree, rule, PLAIN, seed=5, **options)
    return min(p_values(model, PLAIN, first, second)) < MUTANT_P


@pytest.mark.parametrize("rule", ["token", "traversal"])
def test_mutant_q_not_as_sampled(rule):
    assert refused("chain", rule, draft_sampling=sdk.SamplingParams(temperature=1.4))


@pytest.mark.parametrize("rule", ["token", "traversal"])
def test_mutant_drafts_dropped_after_sampling(rule):
    def drop(tokens, target, draft):
        return torch.where(tokens <= 2, -1, tokens), target, draft

    assert refused("chain", rule, mutate=drop)


@pytest.mark.parametrize("rule", ["token", "traversal", "match"])
def test_mutant_row_off_by_one(rule):
    def shift(tokens, target, draft):
        return tokens, target.roll(1, dims=1), draft

    assert refused("chain", rule, mutate=shift)


@pytest.mark.parametrize("rule", ["token", "traversal"])
@pytest.mark.parametrize("tree, declared", [("independent", W), ("without_replacement", I)])
def test_mutant_duplicates_miscounted(tree, declared, rule):
    assert refused(tree, rule, proposals=[declared] * 7)


@pytest.mark.parametrize("rule", ["token", "traversal"])
def test_mutant_siblings_sorted_after_sampling(rule):
    def by_token(tokens, target, draft):
        order = tokens[:, 1:4].sort(1)
        tokens = tokens.clone()
        tokens[:, 1:4] = order.values
        tokens[:, 4:] = -1
        return tokens, rows_of(Model(7, seed=3).target, tokens), rows_of(Model(7, seed=3).draft, tokens)

    assert refused("without_replacement", rule, mutate=by_token)


def test_mutant_residual_not_updated():
    assert refused("independent", sdk.Lenient(1.0))


def p_value_where_drafts_race_with(purpose):
    """p-value of the first token where the drafter uses the noise of `purpose` at the step's own position."""
    n, p, q = 400_000, torch.tensor([0.1, 0.4, 0.1, 0.4]), torch.tensor([0.6, 0.1, 0.1, 0.2])
    seeds, positions = torch.arange(n), torch.full((n,), 11)
    counter = torch.tensor([0, int(purpose), 11, 0]).expand(n, 4)
    words = philox(counter, torch.stack([seeds, torch.zeros_like(seeds)], -1))
    tokens = (q / -torch.log1p(-(words + 0.5) * 2.0**-32)).argmax(-1, keepdim=True)
    verified = sdk.verify(
        p.log().expand(n, 2, 4),
        sdk.DraftTree.chain(tokens),
        q.log().expand(n, 1, 4),
        rule="token",
        seeds=seeds,
        positions=positions,
    )
    return g_test(np.bincount(verified.tokens[:, 0], minlength=4), p.numpy())


def test_mutant_draft_shares_the_residual_noise():
    assert p_value_where_drafts_race_with(Purpose.DRAFT) > LEAST_P
    assert p_value_where_drafts_race_with(Purpose.RESIDUAL) < MUTANT_P
