# SPDX-License-Identifier: Apache-2.0
"""Bitwise the same whatever else is in the batch, wherever it stands, and on however many threads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch
from cases import RULES, all_equal, leaves, uniform_case
from hypothesis import given
from hypothesis import strategies as st

import specdec_kernels as sdk

P, I, W = sdk.Proposal.POINT, sdk.Proposal.INDEPENDENT, sdk.Proposal.WITHOUT_REPLACEMENT  # noqa: E741


def run(case, rule, rows=slice(None), backend="auto"):
    c = {k: v[rows] for k, v in case.items()}
    tree = sdk.DraftTree.from_parents(
        c["tokens"], c["parents"], proposals=c["proposals"], max_depth=5, check=False
    )
    return sdk.verify(
        c["target"],
        tree,
        c["draft"].flatten(0, 1),
        rule=rule,
        seeds=c["seeds"],
        positions=c["positions"],
        sampling=sdk.SamplingParams(temperature=c["temperature"], top_p=c["top_p"]),
        return_logprobs=True,
        backend=backend,
    )


@given(seed=st.integers(0, 10**6), vocab=st.sampled_from([5, 64, 300]), rule=st.sampled_from(RULES))
def test_batch_order_and_split(seed, vocab, rule):
    case = uniform_case(seed, 7, vocab)
    whole = run(case, rule)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
    permuted = run(case, rule, order)
    assert all_equal([x[order] for x in leaves(whole)], permuted)
    parts = [run(case, rule, slice(0, 3)), run(case, rule, slice(3, 4)), run(case, rule, slice(4, 7))]
    assert all_equal(whole, [torch.cat(xs) for xs in zip(*map(leaves, parts), strict=True)])


@given(seed=st.integers(0, 10**6), rule=st.sampled_from(RULES))
def test_padding(seed, rule):
    """Unused nodes, empty requests and rows after the last request change nothing."""
    case = uniform_case(seed, 4, 50)
    whole = run(case, rule)
    tree = sdk.DraftTree.from_parents(
        case["tokens"], case["parents"], proposals=case["proposals"], max_depth=5
    )
    pad = lambda t, n: torch.cat([t, torch.full((n, *t.shape[1:]), 3, dtype=t.dtype)])  # noqa: E731
    padded = sdk.DraftTree(
        pad(tree.tokens, 5),
        pad(tree.parents, 5),
        torch.cat([tree.cu_nodes, tree.cu_nodes[-1:]]),
        pad(tree.proposals, 5),
        tree.max_nodes,
        tree.max_depth,
    )
    got = sdk.verify(
        pad(case["target"].flatten(0, 1), 5),
        padded,
        pad(case["draft"].flatten(0, 1), 5),
        rule=rule,
        seeds=pad(case["seeds"], 1),
        positions=pad(case["positions"], 1),
        return_logprobs=True,
        sampling=sdk.SamplingParams(temperature=pad(case["temperature"], 1), top_p=pad(case["top_p"], 1)),
    )
    assert all_equal(whole, [x[:4] for x in leaves(got)]) and got.num_tokens[4] == 0


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("batch, vocab", [(1, 70_000), (5, 30_000), (3000, 40)])
def test_threads(rule, batch, vocab):
    case = uniform_case(3, batch, vocab)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            results += [run(case, rule) for _ in range(3)]
    finally:
        torch.set_num_threads(before)
    assert all(all_equal(results[0], other) for other in results[1:])


def test_calls_from_several_threads_at_once():
    case = uniform_case(4, 4, 30_000)
    alone, answers = run(case, "traversal"), []
    callers = [threading.Thread(target=lambda: answers.append(run(case, "traversal"))) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(answers) == 6 and all(all_equal(alone, answer) for answer in answers)


def test_a_forked_child_computes_the_same():
    case = uniform_case(5, 2, 60_000)
    alone = run(case, "token", backend="cpu")
    child = os.fork()
    if child == 0:
        os._exit(0 if all_equal(alone, run(case, "token", backend="cpu")) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@given(seed=st.integers(0, 10**6), vocab=st.sampled_from([3, 33, 9000]))
def test_identical_laws_accept_everything(seed, vocab):
    case = uniform_case(seed, 3, vocab)
    tokens, target = case["tokens"][:, 1:], case["target"]
    for rule in ("token", "traversal"):
        verified = sdk.verify(target, sdk.DraftTree.chain(tokens), target[:, :-1].contiguous(), rule=rule)
        assert verified.num_accepted.tolist() == [5, 5, 5]


@pytest.mark.slow
def test_every_instruction_set_gives_the_same_tokens():
    script = (
        "import torch, test_invariance as t\n"
        "out = [t.run(t.uniform_case(s, 6, v), r) for s, v in ((1, 300), (2, 20000)) for r in t.RULES]\n"
        "print([x.tokens.tolist() for x in out])"
    )
    results = [run(uniform_case(s, 6, v), rule) for s, v in ((1, 300), (2, 20000)) for rule in RULES]
    best = str([verified.tokens.tolist() for verified in results])
    for isa in ("baseline", "avx2"):
        environment = dict(os.environ, SPECDEC_ISA=isa, PYTHONPATH=os.path.dirname(__file__))
        lesser = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        assert lesser.stdout.strip() == best, isa
