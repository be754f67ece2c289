# SPDX-License-Identifier: Apache-2.0
"""Rows of the target by number, bonus tokens, draft probabilities and int32 tokens as Triton kernels, against
the reference. Cases are brought into one form, as in test_triton_verify.py, and to compile few kernels a rule
stands for others; `make test-rows` has all of them."""

from __future__ import annotations

import os

import pytest
import torch
from cases import (
    all_equal,
    cases_of,
    check_agreement,
    leaves,
    rule_name,
    with_trace,
)
from row_cases import EVERY, as_probabilities, chains, choose_rows, without_last_rows

import specdec_kernels as sdk

ALL = os.environ.get("SPECDEC_TEST_RULES") == "all"


def outcome(arguments, rule, backend):
    """Results, with int32 tokens, and traces."""
    tree = arguments["tree"]
    grid, line = (tree.batch_size, tree.max_depth + 1), tree.batch_size
    numbers = [torch.empty(shape, dtype=torch.int32) for shape in (grid, line, line, grid)]
    out = sdk.Verified(*numbers, torch.empty(grid), torch.empty(line, dtype=torch.int32))
    return with_trace(dict(arguments, out=out), rule, backend)


def trees(count):
    """Random trees with rows shared, missing and out of range, or none at all. Rows of the mask belong to
    nodes."""
    for place, (seed, arguments) in enumerate(cases_of("rows", count)):
        arguments = choose_rows(arguments, seed, hostile=place % 2 == 1)
        if place == count - 1:
            arguments["target_logits"] = arguments["target_logits"][:0]
        yield seed, arguments


@pytest.mark.parametrize("rule", EVERY if ALL else ["traversal"], ids=rule_name)
def test_rows_of_trees_agree(rule):
    for seed, arguments in trees(8):
        check_agreement(arguments, rule, seed, outcome)


@pytest.mark.parametrize("rule", EVERY if ALL else ["match"], ids=rule_name)
def test_bonus_tokens_agree(rule):
    """With probabilities; with all rows, and without the last ones; and each request alone is the same."""
    for seed in range(4):
        arguments = as_probabilities(chains(seed, vocab=69, hostile=seed == 3))
        check_agreement(arguments, rule, seed, outcome)
        check_agreement(without_last_rows(arguments), rule, seed, outcome)
    whole, _ = outcome(arguments, rule, "triton")
    ends = arguments["tree"].cu_nodes.tolist()
    for b, (start, end) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
        one = {name: arguments[name][b : b + 1].clone() for name in ("bonus_tokens", "seeds", "positions")}
        tree = sdk.DraftTree.chain(
            arguments["tree"].tokens[start:end].clone(),
            cu_nodes=torch.tensor([0, end - start]).int(),
            max_nodes=arguments["tree"].max_nodes,
        )
        rows = {name: arguments[name][start:end] for name in ("target_logits", "draft_logits")}
        law = sdk.SamplingParams(arguments["sampling"].temperature[b : b + 1].clone())
        alone, _ = outcome(dict(arguments, **one, **rows, tree=tree, sampling=law), rule, "triton")
        assert all_equal([part[b : b + 1] for part in leaves(whole)], alone), b
