# SPDX-License-Identifier: Apache-2.0
"""What texts may lose, by simulation: wherever they end, and however uneven a batch is."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import specdec_kernels as sdk

CURVES = {
    "cpu": {1: 1.0, 2: 1.09, 3: 1.17, 4: 1.65, 8: 2.17, 16: 2.21, 32: 2.89, 64: 4.41},
    "flat": {1: 1.0, 16: 1.02, 64: 1.1},
    "steep": {1: 1.0, 8: 6.0},
}
ENDS = ((16, 16), (16, 64), (40, 40), (40, 160), (96, 384), (512, 512))  # of a text, and its largest length
ADVERSARIES = {  # whether the draft of the token at a place is right
    "never": lambda place, drafted: False,
    "for a while": lambda place, drafted: place < 20,
    "by turns": lambda place, drafted: place // 10 % 2 == 0,
    "only while little is drafted": lambda place, drafted: drafted < 3,
    "only while much is drafted": lambda place, drafted: drafted >= 4,
}


def whole_text(curve, accepts, length, most, drafting, share=0.03, least=16):
    """Time of a text whose drafter takes `drafting` for each call, where it is worth that."""
    calibration = sdk.Calibration()
    chances, parents = [0.8**d for d in range(16)], list(range(-1, 15))
    credit, budget = sdk.TextCredit(share, least), sdk.Budget(CURVES[curve], credit=0.0, allowance=0.0)
    budget = replace(budget, credit=credit.join([0.0, 1.0], [most], 1))
    time, written = 0.0, 0
    while written < length:
        rows, spent = 1, 0.0
        if budget.worth_drafting(1, drafting):
            spent = drafting
            affordable = replace(budget, credit=budget.credit - drafting)
            rows = len(affordable.choose([calibration.believe(chances, parents)])[0])
        accepted = next((d for d in range(rows - 1) if not accepts(written + d, rows - 1)), rows - 1)
        tokens = min(1 + accepted, length - written)
        calibration = calibration.after(chances[:rows], parents[:rows], range(min(tokens, rows)))
        budget = budget.after(rows, [tokens], spent - credit.after([0.0, 1.0], {0: tokens}))
        time, written = time + float(budget.cost(rows)) + spent, written + tokens
    return time


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("drafting", [0.0, 0.02, 0.3])
def test_no_text_takes_three_percent_longer(curve, drafting):
    """Also those that end at a quarter of their largest length."""
    for (length, most), accepts in itertools.product(ENDS, ADVERSARIES.values()):
        assert whole_text(curve, accepts, length, most, drafting) <= 1.03 * length + 1e-9


def test_a_text_that_ends_before_its_least_tokens_may_lose_more():
    assert whole_text("cpu", ADVERSARIES["never"], 16, 64, 0.02, least=64) > 1.03 * 16
    assert whole_text("cpu", ADVERSARIES["never"], 64, 256, 0.02, least=64) <= 1.03 * 64


@pytest.mark.parametrize("length, most", [(64, 0.5), (96, 0.4), (256, 0.25)])
def test_two_wrong_drafts_do_not_end_all_drafts_of_a_text(length, most, monkeypatch):
    def time(share):
        return whole_text("cpu", lambda place, drafted: place >= 2, length, 4 * length, 0.02, share)

    assert time(0.03) < most * length and time(0.01) < 0.8 * length
    # A mutant that drafts as soon as the credit covers the call alone, which leaves none for a row.
    monkeypatch.setattr(
        sdk.Budget, "worth_drafting", lambda self, requests, drafting: drafting <= self.credit
    )
    assert time(0.01) > length


def plain_time(costs, lengths):
    return sum(costs[sum(length > place for length in lengths)] for place in range(max(lengths)))


def spare(credit, costs, lengths, choices):
    """Of a batch whose texts get ahead at random, with `share` 0: the least that plain decoding takes beyond
    what was counted and what is left to do, after any step and however far the texts go on."""
    written, worth, least = [0] * len(lengths), 0.0, math.inf
    while running := [b for b, length in enumerate(lengths) if written[b] < length]:
        tokens = {b: min(choices.choice([1, 1, 1, 2, 9]), lengths[b] - written[b]) for b in running}
        worth += credit.after(costs, tokens) + costs[len(running)] * sum(tokens.values()) / len(running)
        for b in running:
            written[b] += tokens[b]
        for most in (0, 1, 5, 40):
            more = [choices.randint(0, most) if b in running else 0 for b in range(len(lengths))]
            ends = [some + rest for some, rest in zip(written, more, strict=True)]
            least = min(least, plain_time(costs, ends) - plain_time(costs, more) - worth)
    return least


lengths_of_a_batch = st.lists(st.integers(1, 30), min_size=1, max_size=6)
steps_of_costs = st.lists(st.floats(0.0, 1.0), min_size=6, max_size=6)


@given(lengths=lengths_of_a_batch, steps=steps_of_costs, seed=st.integers(0, 1000))
@example(lengths=[2, 2, 3, 2, 3], steps=[0.0, 1.0, 1.0, 0.0, 0.0, 0.0], seed=4)  # those that left count, too
def test_tokens_never_count_more_than_plain_decoding_takes(lengths, steps, seed):
    """Where others end, and at any costs that grow with the rows."""
    costs = [0.0, *itertools.accumulate(steps, initial=1.0)]
    assert spare(sdk.TextCredit(0.0), costs, lengths, random.Random(seed)) >= -1e-9


def test_mutant_that_counts_all_tokens_alike():
    costs, lengths = [0.0, 1.0, 1.1, 1.2, 1.3], [30, 30, 30, 4]
    mutant = sdk.TextCredit(0.0, awaited=False)
    assert min(spare(mutant, costs, lengths, random.Random(seed)) for seed in range(20)) < -1.0


def test_who_is_alone_counts_whole_steps():
    """After the others have ended, all that it is ahead by counts, too."""
    costs, credit = [0.0, 1.0, 1.1, 1.2], sdk.TextCredit(0.0)
    credit.after(costs, dict(a=9, b=1, c=1))
    credit.after(costs, dict(a=9, b=1, c=1))
    worth = credit.after(costs, dict(a=5)) + 5 * costs[1]
    assert worth == pytest.approx(16 * (costs[1] - min(costs[1], 0.1)) + 5 * costs[1])


def test_a_batch_in_step_counts_every_step():
    costs, credit = [0.0, 1.0, 1.1, 1.5], sdk.TextCredit(0.0)
    assert credit.after(costs, dict(a=4, b=4, c=4)) == pytest.approx(0.0)
    for tokens in (dict(a=1, b=3, c=2), dict(a=2, b=1, c=1), dict(a=1, b=0, c=1)):
        credit.after(costs, tokens)
    worth = credit.after(costs, dict(a=9, b=9, c=9)) + 13.5  # all are as far again, 13 tokens on
    assert credit._leads == dict(a=0, b=0, c=0) and worth == pytest.approx(13.5)


def test_who_takes_a_place_takes_over_its_lead():
    costs, credit = [0.0, 1.0, 1.1], sdk.TextCredit(0.0)
    credit.after(costs, dict(a=5, b=1))
    credit.after(costs, dict(c=1, b=1))  # c began 4 steps earlier than in plain decoding
    assert credit._leads == dict(c=4, b=0)


def test_what_was_advanced_is_earned_once():
    credit, costs = sdk.TextCredit(0.03, 16), [0.0, 1.0]
    total = credit.join(costs, [1000], 1)
    for tokens in range(1, 100):
        total += credit.after(costs, {0: 1})
        assert total == pytest.approx(0.03 * max(tokens, 8 + tokens / 2 if tokens < 16 else tokens))


def test_it_refuses():
    for call, message in (
        (lambda: sdk.TextCredit(-0.1), "TextCredit: share must be finite and >= 0, got -0.1"),
        (
            lambda: sdk.TextCredit().after([0.0], {"a": 1}),
            "TextCredit.after: costs must have the times of up to 1 rows, got 1 entries",
        ),
        (
            lambda: sdk.TextCredit().join([0.0, 1.0], [5], 2),
            "TextCredit.join: costs must have the times of up to 2 rows, got 2 entries",
        ),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert message in str(error.value)
