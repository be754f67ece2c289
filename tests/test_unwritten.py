# SPDX-License-Identifier: Apache-2.0
"""Memory that nobody has written holds NaN, or the largest integer (see `conftest.py`), and so is noticed."""

from __future__ import annotations

import pytest
import torch
from cases import leaves
from each import DEVICE

import specdec_kernels as sdk
from specdec_kernels import _ops as ops
from specdec_kernels._ops.calls import OPERATORS

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="memory is filled on the CPU alone")

LOGITS = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 1.0]])
TEXT = torch.tensor([[1, 2, 5, 1, 2]]), torch.tensor([5])
ONE = torch.ones(1, dtype=torch.int32)
KEYS = dict(seeds=torch.tensor([7, 8]), positions=torch.tensor([0, 1]))


def tree():
    return sdk.DraftTree.chain(torch.tensor([[1]]))


RUNS = {
    "verify": lambda: sdk.verify(
        LOGITS, tree(), sampling=sdk.SamplingParams(0.0), return_masks=sdk.Masks("ids", 4),
        return_logprobs=sdk.Logprobs(top=2, chosen=torch.tensor([[1]])),
        ends=sdk.Ends(stop_tokens=torch.tensor([[0]])),
    ),
    "sample": lambda: sdk.sample(LOGITS, return_logprobs=sdk.Logprobs(top=2), **KEYS),
    "sample_children": lambda: sdk.sample_children(LOGITS, 2, method="top_k"),
    "ngram_draft": lambda: sdk.ngram_draft(*TEXT, 3),
    "ngram_tree": lambda: sdk.ngram_tree(*TEXT, 3),
    "select_nodes": lambda: sdk.BatchBudget(sdk.Budget({1: 1.0, 4: 1.0}), 1, 4).select(
        tree(), torch.tensor([0.0, -0.1]), draft_rows=torch.tensor([3, 4]).int()
    ),
    "tree_attention": lambda: sdk.tree_attention(
        torch.ones(2, 1, 4), *torch.ones(2, 3, 2, 1, 4), tree(), torch.tensor([[1, 2]]).int(), ONE,
        return_lse=True,
    ),
    "commit_kv": lambda: sdk.commit_kv(
        [torch.zeros(2, 4, 1)], torch.tensor([[0, 1]]).int(), tree(), torch.tensor([[1]]).int(), ONE,
        page_size=4,
    ),
}  # fmt: skip
MADE = [
    (operation, field)
    for operation, (_, written, _) in OPERATORS.items()
    for field in written
    if field.startswith("out")
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.int32, torch.uint8])
def test_new_memory_holds_nothing_plausible(dtype):
    like = torch.zeros(3, dtype=dtype)
    for memory in (torch.empty(3, dtype=dtype), torch.empty_like(like), like.new_empty(3)):
        assert memory.isnan().all() if dtype.is_floating_point else (memory == torch.iinfo(dtype).max).all()


@pytest.mark.parametrize("operation, field", MADE)
def test_an_output_that_a_backend_leaves_unwritten_is_noticed(monkeypatch, operation, field):
    expected, serve = RUNS[operation](), getattr(ops, operation)

    def mutant(call, backend):
        out = getattr(call, field)
        other = [torch.empty_like(o) for o in out] if isinstance(out, list) else torch.empty_like(out)
        serve(call._replace(**{field: other}), backend)

    torch.testing.assert_close(leaves(RUNS[operation]()), leaves(expected), equal_nan=True)
    monkeypatch.setattr(ops, operation, mutant)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(leaves(RUNS[operation]()), leaves(expected), equal_nan=True)
