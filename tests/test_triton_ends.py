# SPDX-License-Identifier: Apache-2.0
"""Stop tokens and limits as Triton kernels, against the reference. Cases are brought into one form, as in
test_triton_verify.py, and to compile few kernels a rule stands for others; `make test-rows` has all."""

from __future__ import annotations

import os

import pytest
import torch
from cases import cases_of, check_in_range, rule_name
from ends_cases import copied, counts_of_ends, random_ends
from row_cases import EVERY, chains, choose_rows

import specdec_kernels as sdk

ALL = os.environ.get("SPECDEC_TEST_RULES") == "all"


def check_agreement(arguments, ends, rule, case):
    results = []
    for backend in ("triton", "reference"):
        left = copied(ends)
        results.append((sdk.verify(**arguments, ends=left, rule=rule, backend=backend), left))
    (ours, our_left), (reference, left) = results
    check_in_range(ours, arguments)
    for field in ("tokens", "path", "num_tokens", "num_accepted", "status", "finish"):
        assert torch.equal(getattr(ours, field), getattr(reference, field)), (case, field)
    torch.testing.assert_close(ours.logprobs, reference.logprobs, rtol=1e-4, atol=1e-4, equal_nan=True)
    for one, other in zip(our_left, left, strict=True):
        assert one is other is None or torch.equal(one, other), case
    return {int(finish) for finish in ours.finish}


@pytest.mark.parametrize("rule", EVERY if ALL else ["traversal"], ids=rule_name)
def test_ends_in_trees_agree(rule):
    """Greedy requests among them, which walk as under `match`."""
    seen = set()
    for seed, arguments in cases_of("rows", 8, hostile=True):
        ends = random_ends(arguments, seed, whole=True)._replace(
            finished=torch.zeros(arguments["tree"].batch_size).byte()
        )
        ends.finished[::3] = 7
        seen |= check_agreement(arguments, ends, rule, seed)
    assert len(seen) > 3


@pytest.mark.parametrize("rule", EVERY if ALL else [sdk.Typical(0.3, 0.6)], ids=rule_name)
def test_stops_and_rows_by_number_agree(rule):
    for seed, arguments in cases_of("rows", 4):
        ends = sdk.Ends(random_ends(arguments, seed, whole=True).stop_tokens)
        check_agreement(choose_rows(arguments, seed), ends, rule, seed)


@pytest.mark.parametrize("rule", EVERY if ALL else ["match"], ids=rule_name)
def test_no_bonus_token_follows_an_end(rule):
    for seed in range(6):
        arguments = chains(seed, vocab=69)
        ends = random_ends(arguments, seed, whole=True)
        check_agreement(arguments, ends._replace(context_left=None), rule, seed)


def test_many_stop_tokens_are_all_looked_at():
    arguments = chains(2, vocab=69) | dict(bonus_tokens=None)
    tokens = torch.cat([torch.arange(100, 170), torch.arange(69)])
    for size in (0, 33, 139):
        ends = sdk.Ends(tokens[:size].repeat(arguments["tree"].batch_size, 1))
        check_agreement(arguments, ends, "match", size)


def test_a_module_counts_the_same():
    assert counts_of_ends("triton") == counts_of_ends("reference")
