# SPDX-License-Identifier: Apache-2.0
"""The budget by simulation: it loses next to nothing on what cannot be guessed, and finds what pays."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import specdec_kernels as sdk

CURVES = {
    "cpu": {1: 1.0, 2: 1.09, 3: 1.17, 4: 1.65, 8: 2.17, 16: 2.21, 32: 2.89, 64: 4.41},
    "flat": {1: 1.0, 16: 1.02, 64: 1.1},
    "steep": {1: 1.0, 8: 6.0},
}
DEPTH = 15


def chain(claimed, depth=DEPTH):
    """Chances and parents of a chain, root included, whose drafter claims `claimed` of each token."""
    return [claimed**d for d in range(depth + 1)], list(range(-1, depth))


def simulate(curve, claimed, accepts, steps, start=None):
    """Time and tokens of a request whose drafter offers a chain of DEPTH tokens and claims `claimed` of each.

    `accepts(step, depth)` says whether the text goes on with the draft.
    """
    budget, calibration = start or (sdk.Budget(CURVES[curve]), sdk.Calibration())
    chances, parents = chain(claimed)
    time = tokens = 0.0
    for step in range(steps):
        (nodes,) = budget.choose([calibration.believe(chances, parents)])
        rows = len(nodes)
        assert nodes == list(range(rows))
        accepted = next((d for d in range(rows - 1) if not accepts(step, d)), rows - 1)
        calibration = calibration.after(chances[:rows], parents[:rows], range(1 + accepted))
        budget = budget.after(rows, [1 + accepted])
        time, tokens = time + float(budget.cost(rows)), tokens + 1 + accepted
    return time, tokens, (budget, calibration)


def best_fixed(curve, rate):
    """Tokens per time of the best draft length, where every test accepts with probability `rate`."""
    cost = sdk.Budget(CURVES[curve]).cost
    return max(sum(rate**d for d in range(n + 1)) / float(cost(1 + n)) for n in range(DEPTH + 1))


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("claimed", [0.15, 0.5, 0.8, 0.95, 0.999])
def test_drafts_that_never_hit_cost_next_to_nothing(curve, claimed):
    for steps in (100, 300, 1000):
        time, tokens, _ = simulate(curve, claimed, lambda step, depth: False, steps)
        assert tokens == steps
        assert time <= 1.03 * tokens


@pytest.mark.parametrize("curve", CURVES)
@given(seed=st.integers(0, 10**6), claimed=st.floats(0.05, 0.99))
def test_whatever_the_text_does_the_loss_is_bounded(curve, seed, claimed):
    """Texts that turn from good to bad at random, and one that rejects whatever was believed in."""
    choices, phases = random.Random(seed), []
    while len(phases) < 400:
        phases += [choices.choice([0.0, 0.1, 0.9, 1.0])] * choices.randrange(1, 80)
    state = None
    total_time = total_tokens = 0.0
    for step in range(400):
        time, tokens, state = simulate(
            curve, claimed, lambda _, depth, rate=phases[step]: choices.random() < rate, 1, state
        )
        total_time, total_tokens = total_time + time, total_tokens + tokens
        assert total_time <= 1.02 * total_tokens + 1.0 + 1e-9


def test_a_drafter_that_finds_nothing_is_called_seldom():
    budget, calls = sdk.Budget(CURVES["cpu"]), 0
    for _ in range(100):
        calls += budget.worth_drafting(1, 0.05)
        budget = budget.after(1, [1])
    assert calls == 4 + 19  # then one in five
    assert not replace(budget, credit=0.1).worth_drafting(1, 0.05)  # no row could be paid after that


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5, 0.7, 0.9, 0.98])
@pytest.mark.parametrize(
    "curve, claimed",
    # A drafter that believes in nothing is not tried often enough where drafting costs that much.
    [pair for pair in itertools.product(CURVES, [0.3, 0.8, 0.95]) if pair != ("steep", 0.3)],
)
def test_it_comes_near_the_best_fixed_length(curve, rate, claimed):
    choices = random.Random(3)
    time, tokens, _ = simulate(curve, claimed, lambda step, depth: choices.random() < rate, 3000)
    assert tokens / time >= 0.93 * best_fixed(curve, rate)


@pytest.mark.parametrize("curve", ["cpu", "flat"])
def test_it_tries_again_when_the_text_turns(curve):
    _, _, state = simulate(curve, 0.8, lambda step, depth: False, 500)
    choices = random.Random(4)
    time, tokens, state = simulate(curve, 0.8, lambda step, depth: choices.random() < 0.9, 200, state)
    assert tokens / time > 0.8 * best_fixed(curve, 0.9)
    time, tokens, _ = simulate(curve, 0.8, lambda step, depth: False, 500, state)
    assert time <= 1.03 * tokens  # what was earned before is not counted here


def test_nodes_go_to_the_requests_that_use_them():
    budget = sdk.Budget({1: 1.0, 8: 1.4, 32: 2.0})
    calibrations, counts = [sdk.Calibration(), sdk.Calibration()], []
    (chances, parents), choices = chain(0.8, 4), random.Random(5)
    for _ in range(300):
        drafted = [len(nodes) for nodes in budget.choose([c.believe(chances, parents) for c in calibrations])]
        accepted = [
            next((d for d in range(rows - 1) if choices.random() > rate), rows - 1)
            for rows, rate in zip(drafted, (0.9, 0.0), strict=True)
        ]
        calibrations = [
            each.after(chances[:rows], parents[:rows], range(1 + hits))
            for each, rows, hits in zip(calibrations, drafted, accepted, strict=True)
        ]
        budget = budget.after(sum(drafted), [1 + hits for hits in accepted])
        counts.append(drafted)
    good, bad = (sum(pair[i] for pair in counts[50:]) / 250 for i in (0, 1))
    assert good > 4.5 and bad < 1.5


@st.composite
def trees(draw):
    """Chances of a tree, root included, and its parents."""
    chances, parents = [1.0], [-1]
    for node in range(1, draw(st.integers(1, 5))):
        parents.append(draw(st.integers(0, node - 1)))
        chances.append(chances[parents[-1]] * draw(st.sampled_from([0.0, 0.1, 0.4, 0.7, 1.0])))
    return chances, parents


@given(
    batch=st.lists(trees(), min_size=1, max_size=3),
    curve=st.sampled_from(sorted(CURVES)),
    credit=st.floats(0, 3),
)
def test_the_choice_is_the_best_of_all(batch, curve, credit):
    budget, plain = sdk.Budget(CURVES[curve], credit=credit), len(batch)
    chosen = budget.choose([chances for chances, _ in batch])

    def rate(kept):
        tokens = sum(chances[node] for (chances, _), nodes in zip(batch, kept, strict=True) for node in nodes)
        return tokens / float(budget.cost(sum(map(len, kept))))

    def subtrees(parents):
        for bits in itertools.product((False, True), repeat=len(parents) - 1):
            nodes = [0, *(node for node, bit in enumerate(bits, 1) if bit)]
            if all(parents[node] in nodes for node in nodes[1:]):
                yield nodes

    affordable = [
        list(kept)
        for kept in itertools.product(*(subtrees(parents) for _, parents in batch))
        if float(budget.cost(sum(map(len, kept))) - budget.cost(plain)) <= credit
    ]
    assert chosen in affordable
    assert rate(chosen) == pytest.approx(max(map(rate, affordable)), rel=1e-12)


def test_depth_weighs_the_drafter_s_own_time():
    budget = sdk.Budget(CURVES["flat"], credit=math.inf)
    chances = [0.8**d for d in range(1, 9)]
    assert budget.depth(chances, 0.0) == 8
    assert 1 <= budget.depth(chances, 0.2) <= 4
    assert budget.depth(chances, 1.0) == 0
    assert budget.depth(chances, 0.2, width=8) <= budget.depth(chances, 0.2)
    assert sdk.Budget(CURVES["flat"], credit=0.1).depth(chances, 0.2) == 0  # not before it is earned


def test_costs_go_on_beyond_what_was_measured():
    budget = sdk.Budget({1: 1.0, 2: 1.5, 4: 2.0})
    assert budget.cost([1, 3, 4, 8]).tolist() == [1.0, 1.75, 2.0, 3.0]
    assert sdk.Budget({1: 2.0}).cost([1, 3]).tolist() == [2.0, 6.0]


@given(tree=trees(), seed=st.integers(0, 1000))
def test_beliefs_start_from_the_drafter_s_word_and_never_exceed_the_parent_s(tree, seed):
    chances, parents = tree
    assert sdk.Calibration().believe(chances, parents) == pytest.approx(chances)
    calibration, choices = sdk.Calibration(), random.Random(seed)
    for _ in range(30):
        path = [0]
        while below := [
            n for n, parent in enumerate(parents) if parent == path[-1] and choices.random() < 0.7
        ]:
            path.append(choices.choice(below))
        calibration = calibration.after(chances, parents, [*path, -1, -1])
    believed = calibration.believe(chances, parents)
    assert all(believed[n] <= believed[parent] for n, parent in enumerate(parents) if parent >= 0)
    for _ in range(500):
        calibration = calibration.after([1.0], [-1], [0])
    assert calibration.believe(chances, parents) == pytest.approx(chances, rel=1e-2)


def test_only_promises_put_to_the_test_count():
    (chances, parents), calibration = chain(0.8, 3), sdk.Calibration()
    for _ in range(200):
        calibration = calibration.after(chances, parents, [0])  # always rejected at once
    first, second = calibration.believe(chances, parents)[1:3]
    assert first < 0.05 and second == pytest.approx(first**2)


def test_mutant_without_a_ledger_loses():
    """An unlimited credit: the bound above is the credit's doing."""
    start = (sdk.Budget(CURVES["cpu"], credit=1e9, max_credit=1e9), sdk.Calibration())
    time, tokens, _ = simulate("cpu", 0.95, lambda step, depth: False, 100, start)
    assert time > 1.03 * tokens


def test_mutant_without_forgetting_never_tries_again():
    start = (sdk.Budget(CURVES["cpu"], patience=10**9), sdk.Calibration(decay=1.0))
    _, _, state = simulate("cpu", 0.8, lambda step, depth: False, 500, start)
    time, tokens, _ = simulate("cpu", 0.8, lambda step, depth: True, 50, state)
    assert tokens / time < 0.5 * best_fixed("cpu", 1.0)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(costs={}), "Budget: costs must hold positive times of 1 row and of more, got {}"),
        (dict(costs={2: 1.0}), "Budget: costs must hold positive times of 1 row and of more, got {2: 1.0}"),
        (dict(costs={1: -1.0}), "Budget: costs must hold positive times"),
        (dict(costs={1: 1.0}, max_credit=-1.0), "Budget: max_credit must be >= 0, got -1.0"),
        (dict(costs={1: 1.0}, allowance=-0.1), "Budget: allowance must be finite and >= 0, got -0.1"),
    ],
)
def test_it_refuses(options, message):
    with pytest.raises(ValueError) as error:
        sdk.Budget(**options)
    assert message in str(error.value)


def test_costs_of_arrays_are_checked():
    budget = sdk.Budget({1: 1.0, 4: 2.0})
    assert budget.cost(np.array([1, 4])).tolist() == [1.0, 2.0]
    with pytest.raises(TypeError, match="^Budget.cost: rows must hold numbers, got bool$"):
        budget.cost(np.array([True]))
    with pytest.raises(ValueError, match="^Budget.cost: rows must be >= 0, got -1$"):
        budget.cost(np.array([2, -1]))


def test_parents_come_before_their_children():
    rule = "parents must be -1 or earlier nodes, got 2 at node 1"
    with pytest.raises(ValueError, match=f"^Calibration.believe: {rule}$"):
        sdk.Calibration().believe([1.0, 0.5, 0.5], [-1, 2, 0])
