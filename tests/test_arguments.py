# SPDX-License-Identifier: Apache-2.0
"""Wrong arguments, generated for every parameter of every public callable: each is refused by `TypeError` or
`ValueError` in the one form of message, `operation: argument rule, got what came`."""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_grammar import Toy

import specdec_kernels as sdk

B, K, V = 2, 3, 5
N = K + 1
R = B * N
NAN, INF = float("nan"), float("inf")

# Made by the operations, not by callers; enumerations; an exception.
RESULTS = {
    "Children", "Committed", "Drafts", "ForcedDraft", "Frontier", "Generated", "GrownTree", "NgramTree",
    "Sampled", "SamplingMasks", "SelectedNodes", "TreeBitmask", "Verdict", "Verified", "Warmup",
}  # fmt: skip
OTHERS = {
    "BackendUnavailable", "Ends", "Finish", "Heads", "LogitEdits", "Logprobs", "Masks", "Matcher", "Proposal",
    "Status",
}  # fmt: skip
# Whose methods are called by operations, with tokens that they checked, and by Prometheus.
CALLED = {"AcceptanceCollector", "AfterToken", "LLGuidanceMatcher", "SuffixDrafter"}
COMPILING = {"warmup"}  # refuses in test_triton_warmup.py
FILES = {"SuffixIndex.load", "SuffixIndex.open", "SuffixIndex.save"}  # refuse in test_suffix.py
INTEGRATIONS = {"AssistantDrafter", "custom_generate", "explain_model", "generate"}


class Case(NamedTuple):
    """A valid call. The operations are those that messages may name, by default the callable's own.

    What does not fit the anchors, which fix shapes and device, is named in their place.
    """

    name: str
    call: Callable
    make: Callable[[], dict]
    anchors: tuple[str, ...] = ()
    operations: tuple[str, ...] = ()


def long(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int64)


def short(*shape: int) -> Tensor:
    return long(*shape).int()


def chain() -> sdk.DraftTree:
    return sdk.DraftTree.chain(torch.ones((B, K), dtype=torch.int64))


def kept_tree(links: bool = False) -> sdk.DraftTree:
    if links:
        first = torch.tensor([[1, 2, 3, -1]] * B)
        return sdk.DraftTree.from_links(long(B, N), first, long(B, N) - 1, max_depth=N)
    return sdk.DraftTree.from_parents(long(B, N), PARENTS.clone(), max_depth=N)


def keys(rows: int = B) -> dict:
    return dict(seeds=long(rows), positions=long(rows), backend="reference")


def edits() -> sdk.LogitEdits:
    return sdk.LogitEdits(
        sdk.TokenCounts(B, 3, V, recent=1), 1.5, torch.ones(B), 0.5, True, long(B, 1), torch.zeros(B, 1),
        long(B, 1), short(B), long(B, 1, 2), long(B, 1), long(B),
    )  # fmt: skip


def index() -> sdk.SuffixIndex:
    """With a finished text and two that are running."""
    made = sdk.SuffixIndex()
    for request in range(3):
        made.add(request, [request])
    made.finish(2)
    made.load(np.zeros(3, dtype=np.int32))
    return made


def indexed(method: str) -> Callable:
    """A method of an index that was made for the call."""

    def call(**given: object) -> object:
        return getattr(index(), method)(**given)

    call.__signature__ = inspect.signature(getattr(index(), method))
    return call


def verifying() -> dict:
    out = sdk.Verified(long(B, N), short(B), short(B), short(B, N), torch.zeros(B, N), short(B), short(B))
    ends = sdk.Ends(long(B, 1) - 1, short(B) + 5, short(B) + 5, torch.zeros(B, dtype=torch.bool))
    options = dict(sampling=sdk.SamplingParams(), draft_sampling=sdk.SamplingParams(top_k=3))
    return keys() | options | dict(
        target_logits=torch.zeros(R, V),
        tree=chain(),
        target_rows=torch.arange(R).int(),
        bonus_tokens=long(B),
        draft_logits=torch.zeros(R, V),
        draft_rows=torch.arange(R).int(),
        draft_vocab=sdk.DraftVocab(torch.arange(V), V),
        rule="token",
        token_bitmask=short(R, 1) - 1,
        edits=edits(),
        return_logprobs=True,
        return_masks=None,
        ends=ends,
        out=out,
    )  # fmt: skip


def reporting() -> dict:
    """`verify` with all that it can report of tokens."""
    given = verifying()
    ids = sdk.SamplingMasks(None, long(9), long(R + 1), short(B, N), torch.zeros(B, N))
    out = given["out"]._replace(
        top_logprobs=torch.zeros(B, N, 2), top_tokens=long(B, N, 2), ranks=short(B, N),
        chosen_logprobs=torch.zeros(B, N, 3), masks=ids,
    )  # fmt: skip
    asked = dict(return_logprobs=sdk.Logprobs("raw", 2, long(B, 3)), return_masks=sdk.Masks("ids", 9))
    return given | asked | dict(out=out)


def forwarding() -> dict:
    given = verifying() | dict(slots=torch.arange(B))
    return {name: given[name] for name in inspect.signature(sdk.SpeculativeVerifier().forward).parameters}


def attending() -> dict:
    return dict(
        query=torch.zeros(R, 2, 4),
        key_cache=torch.zeros(3, 8, 2, 4),
        value_cache=torch.zeros(3, 8, 2, 4),
        tree=chain(),
        block_table=short(B, 2),
        prefix_lens=short(B),
        new_key=torch.zeros(R, 2, 4),
        new_value=torch.zeros(R, 2, 4),
        scale=0.5,
        window=4,
        softcap=2.0,
        sinks=torch.zeros(2),
        key_scale=torch.ones(2),
        value_scale=1.0,
        max_prefix_len=8,
        layout="NHD",
        deterministic=True,
        return_lse=True,
        out=torch.zeros(R, 2, 4),
        backend="reference",
    )


def latent() -> dict:
    given = attending() | dict(value_cache=None, value_dim=4, new_key=None, new_value=None)
    return {name: given[name] for name in given if name != "value_scale"}


def caches() -> list[Tensor]:
    return [torch.zeros(3, 4, 2, 4), torch.zeros(3, 4, 2, 4)]


def paged() -> dict:
    return dict(
        verified=short(B, N),
        tree=chain(),
        block_table=short(B, 4),
        prefix_lens=short(B),
        new=[torch.zeros(R, 2, 4), torch.zeros(R, 2, 4)],
    )


def recurrent(**tensors: Tensor) -> dict:
    given = {name: [tensor] for name, tensor in tensors.items()}
    return given | dict(verified=short(B, N), tree=chain(), slots=torch.arange(B), backend="reference")


def stepped() -> dict:
    slots = dict(snapshots=[torch.zeros(R, 4)], slots=torch.arange(B))
    return paged() | slots


class Forced(Toy):
    """With a string that has to come next."""

    def find_jump_forward_string(self) -> str:
        return "a"


def matchers() -> list[sdk.Matcher]:
    return [Forced(((0,) * V,)) for _ in range(B)]


class Guidance:
    """With the methods of llguidance's matcher."""

    validate_tokens = consume_token = rollback = unsafe_compute_mask_ptr = is_accepting = lambda *_: None
    compute_ff_bytes = is_error = lambda *_: None


def verifier() -> sdk.SpeculativeVerifier:
    return sdk.SpeculativeVerifier(
        plan=sdk.CachePlan(caches(), page_size=4), states=[torch.zeros(B, 4)], backend="reference"
    )


def expand(frontier: sdk.Frontier) -> tuple[Tensor, ...]:
    return sdk.sample_children(torch.zeros(frontier.tokens.numel(), V), 2, method="top_k")


def texts(**options: object) -> dict:
    given = dict(tokens=long(B, 6), lengths=long(B) + 6, min_ngram=1, max_ngram=4, cyclic=True)
    return given | options | dict(backend="reference")


PARENTS = torch.tensor([[-1, 0, 0, 1]] * B).int()
CHANCES = [1.0, 0.5, 0.25]
BUDGET = sdk.Budget({1: 1.0, 4: 2.0})
CURVE = sdk.CostCurve({1: 1.0, 4: 2.0}, max_rows=8)
ON_DEVICE = sdk.BatchBudget(BUDGET, B, 4)
STATS = sdk.AcceptanceStats(10, 20, 20, (10, 8), (8, 4))
TREE = dict(proposals=long(B, N), max_nodes=N, max_depth=3, check=True)


def counting() -> sdk.SpeculativeVerifier:
    return sdk.SpeculativeVerifier(slots=B, backend="reference")


CASES = [
    Case("verify", sdk.verify, verifying, ("target_logits", "tree", "draft_logits", "draft_vocab")),
    Case("verify", sdk.verify, reporting, (
        "target_logits", "tree", "draft_logits", "draft_vocab", "return_logprobs", "return_masks"
    )),
    Case("sample", sdk.sample, lambda: keys() | dict(
        logits=torch.zeros(B, V), sampling=sdk.SamplingParams(), token_bitmask=short(B, 1) - 1,
        edits=edits(), return_logprobs=True,
    ), ("logits",)),
    Case("edit_logits_", sdk.edit_logits_, lambda: dict(
        logits=torch.zeros(R, V), edits=edits(), tree=chain(), target_rows=torch.arange(R).int(),
        backend="reference",
    ), ("logits", "tree", "edits"), ("edit_logits_", "edit_logits")),
    Case("TokenCounts", sdk.TokenCounts, lambda: dict(
        slots=B, capacity=3, vocab_size=V, recent=1, device="cpu"
    )),
    Case("TokenCounts.reset_", sdk.TokenCounts(B, 3, V).reset_, lambda: dict(slots=torch.arange(B))),
    Case("TokenCounts.set_prompt_", sdk.TokenCounts(B, 3, V).set_prompt_, lambda: dict(
        slots=[0, 1], tokens=long(B, 4), lengths=[4, 3], num_output=[1, 0]
    ), ("slots", "tokens", "lengths", "num_output")),
    Case("TokenCounts.update_", sdk.TokenCounts(B, 3, V).update_, lambda: dict(
        verified=long(B, 2), slots=torch.arange(B), backend="reference"
    ), ("verified", "slots"), ("TokenCounts.update_", "count_tokens")),
    Case("sample", sdk.sample, lambda: keys() | dict(
        logits=torch.zeros(B, V), return_logprobs=sdk.Logprobs("raw", 2, long(B, 3)),
    ), ("logits",)),
    Case("sample_children", sdk.sample_children, lambda: keys() | dict(
        logits=torch.zeros(B, V), k=2, method="top_k", sampling=sdk.SamplingParams(), nodes=long(B),
        coupled=False,
    ), ("logits",)),
    Case("draft_token", sdk.draft_token, lambda: keys() | dict(
        logits=torch.zeros(B, V), node=1, sampling=sdk.SamplingParams(),
        draft_vocab=sdk.DraftVocab(torch.arange(V), V),
    ), ("logits",)),
    Case("ngram_draft", sdk.ngram_draft, lambda: texts(num_draft=3, match="latest"), ("tokens",)),
    Case("ngram_tree", sdk.ngram_tree, lambda: texts(
        max_nodes=4, max_depth=3, branches=2, trust=[0.5, 1.0]
    ), ("tokens",)),
    Case("SuffixIndex", sdk.SuffixIndex, lambda: dict(max_bytes=2**21)),
    Case("SuffixIndex.add", indexed("add"), lambda: dict(
        request=5, tokens=[1, 2], namespace="a", reads=["a", "b"]
    )),
    Case("SuffixIndex.extend", indexed("extend"), lambda: dict(
        requests=[0, 1], tokens=long(2, 3), num_tokens=[3, 2]
    ), ("requests", "tokens", "num_tokens")),
    Case("SuffixIndex.finish", indexed("finish"), lambda: dict(request=1)),
    Case("SuffixIndex.remove", indexed("remove"), lambda: dict(request=1)),
    Case("SuffixIndex.unload", indexed("unload"), lambda: dict(corpus=0)),
    Case("SuffixIndex.draft", index().draft, lambda: dict(
        requests=[0, 1], max_nodes=4, max_depth=3, candidates=2, min_match=3, trust=[0.5, 1.0]
    )),
    Case("SuffixDrafter", sdk.SuffixDrafter, lambda: dict(
        index=index(), max_nodes=4, namespace="a", reads=["a"], max_depth=3, candidates=2, min_match=3
    )),
    Case("grow_tree", sdk.grow_tree, lambda: dict(
        expand=expand, roots=long(B), max_nodes=4, max_depth=2, width=2
    ), ("roots",)),
    Case("tree_attention", sdk.tree_attention, attending, ("query", "key_cache", "value_cache", "tree")),
    Case("tree_attention", sdk.tree_attention, latent, ("query", "key_cache", "tree")),
    Case("commit_kv", sdk.commit_kv, lambda: paged() | dict(
        caches=caches(), page_size=4, layout="NHD", backend="reference"
    ), ("caches", "tree")),
    Case("commit_kv", sdk.commit_kv, lambda: paged() | dict(
        caches=sdk.CachePlan(caches(), page_size=4), page_size=4, layout="NHD", backend="auto"
    ), ("caches", "tree")),
    Case("commit_state", sdk.commit_state, lambda: recurrent(
        states=torch.zeros(B, 4), snapshots=torch.zeros(R, 4)
    ), ("states", "tree")),
    Case("replay_conv", sdk.replay_conv, lambda: recurrent(
        windows=torch.zeros(B, 4, 3), inputs=torch.zeros(R, 4)
    ), ("windows", "tree")),
    Case("replay_gated_delta", sdk.replay_gated_delta, lambda: recurrent(
        states=torch.zeros(B, 2, 3, 4), keys=torch.zeros(R, 2, 3), values=torch.zeros(R, 2, 4),
        log_decay=torch.zeros(R, 2), beta=torch.zeros(R, 2),
    ), ("states", "tree")),
    Case("replay_mamba2", sdk.replay_mamba2, lambda: recurrent(
        states=torch.zeros(B, 2, 3, 4), x=torch.zeros(R, 2, 3), B=torch.zeros(R, 2, 4),
        dt=torch.zeros(R, 2), A=torch.zeros(2),
    ), ("states", "tree")),
    Case("DraftTree", sdk.DraftTree, lambda: dict(
        tokens=long(R), parents=PARENTS.flatten(), cu_nodes=torch.tensor([0, N, R]).int(),
        proposals=long(R).byte(), max_nodes=N, max_depth=3, links=(short(R), short(R)),
    ), ("tokens",)),
    Case("DraftTree.chain", sdk.DraftTree.chain, lambda: dict(
        tokens=long(B, K), lengths=long(B) + 2, proposal=sdk.Proposal.INDEPENDENT, max_nodes=N, max_depth=K,
        check=True,
    ), ("tokens",)),
    Case("DraftTree.chain", sdk.DraftTree.chain, lambda: dict(
        tokens=long(R), cu_nodes=torch.tensor([0, N, R]), proposal=sdk.Proposal.INDEPENDENT, max_nodes=N,
        max_depth=K, check=None,
    ), ("tokens",)),
    Case("DraftTree.chain", sdk.DraftTree.chain, lambda: dict(
        tokens=long(R), cu_drafts=torch.tensor([N, R]), proposal=sdk.Proposal.INDEPENDENT, max_nodes=N + 1,
        max_depth=N, check=None,
    ), ("tokens",)),
    Case("DraftTree.refresh_", kept_tree().refresh_, lambda: dict(
        tokens=long(B, N), parents=PARENTS, proposals=long(B, N), check=True
    ), ("tokens",)),
    Case("DraftTree.refresh_", kept_tree(links=True).refresh_, lambda: dict(
        tokens=long(R), next_token=torch.tensor([[1, 2, 3, -1]] * B), next_sibling=long(B, N) - 1,
        proposals=long(R), check=None,
    ), ("tokens",)),
    Case("DraftTree.from_parents", sdk.DraftTree.from_parents, lambda: TREE | dict(
        tokens=long(B, N), parents=PARENTS
    ), ("tokens",)),
    Case("DraftTree.from_parents", sdk.DraftTree.from_parents, lambda: dict(
        tokens=long(R), parents=PARENTS.flatten(), cu_nodes=torch.tensor([0, N, R]), max_nodes=N, max_depth=3,
        proposals=sdk.Proposal.POINT,
    ), ("tokens",)),
    Case("DraftTree.from_paths", sdk.DraftTree.from_paths, lambda: TREE | dict(
        tokens=long(B, N), paths=[(0,), (1,), (0, 0)]
    ), ("tokens", "paths")),
    Case("DraftTree.from_mask", sdk.DraftTree.from_mask, lambda: TREE | dict(
        tokens=long(B, N), mask=torch.ones(B, N, N).tril().bool()
    ), ("tokens",)),
    Case("DraftTree.from_links", sdk.DraftTree.from_links, lambda: TREE | dict(
        tokens=long(B, N), next_token=torch.tensor([[1, 2, 3, -1]] * B), next_sibling=long(B, N) - 1
    ), ("tokens",)),
    Case("fill_sglang", sdk.fill_sglang, lambda: dict(
        verified=verifying()["out"], tree=chain(), predicts=short(R), accept_index=short(B, N),
        accept_token_num=short(B),
    ), ("verified", "tree", "predicts", "accept_index", "accept_token_num")),
    Case("fill_tensorrt_llm", sdk.fill_tensorrt_llm, lambda: dict(
        verified=verifying()["out"], accepted_lengths=short(B), accepted_lengths_cumsum=short(B + 1),
        paths_offsets=short(B * K), accepted_tokens=short(B * K),
    ), ("verified", "paths_offsets", "accepted_tokens", "accepted_lengths", "accepted_lengths_cumsum")),
    Case("seeds_from_generators", sdk.seeds_from_generators, lambda: dict(
        generators=[torch.Generator(), None], device="cpu"
    )),
    Case("DraftVocab", sdk.DraftVocab, lambda: dict(ids=torch.arange(3), vocab_size=V)),
    Case("DraftVocab.from_offsets", sdk.DraftVocab.from_offsets, lambda: dict(d2t=long(3), vocab_size=V)),
    Case("SamplingParams", sdk.SamplingParams, lambda: dict(
        temperature=0.5, top_k=3, top_p=0.5, min_p=0.5, order="min_p_last"
    )),
    Case("CachePlan", sdk.CachePlan, lambda: dict(caches=caches(), page_size=4, layout="NHD"), ("caches",)),
    Case("Typical", sdk.Typical, lambda: dict(epsilon=0.5, delta=0.5)),
    Case("Relaxed", sdk.Relaxed, lambda: dict(top_k=2, delta=0.5)),
    Case("Lenient", sdk.Lenient, lambda: dict(factor=2.0)),
    Case("Deferred", sdk.Deferred, lambda: dict(entropy=0.5, window=2)),
    Case("Threshold", sdk.Threshold, lambda: dict(single=0.5, acc=0.5)),
    Case("Ensemble", sdk.Ensemble, lambda: dict(weight=0.5)),
    Case("Synthetic", sdk.Synthetic, lambda: dict(rate=0.5)),
    Case("Synthetic", sdk.Synthetic, lambda: dict(rate=[0.5, 0.25])),
    Case("Synthetic", sdk.Synthetic, lambda: dict(rate=torch.tensor([0.5, 0.25]))),
    Case("SpeculativeVerifier", sdk.SpeculativeVerifier, lambda: dict(
        rule="token", sampling=sdk.SamplingParams(), draft_sampling=sdk.SamplingParams(),
        draft_vocab=sdk.DraftVocab(torch.arange(V), V), return_logprobs=True, return_masks=sdk.Masks(),
        plan=sdk.CachePlan(caches(), page_size=4), states=[torch.zeros(B, 4)], max_depth=3, slots=2,
        backend="reference",
    )),
    Case("SpeculativeVerifier.forward", counting().forward, forwarding,
         ("target_logits", "tree", "draft_logits"), ("SpeculativeVerifier.forward", "verify")),
    Case("SpeculativeVerifier.commit", verifier().commit, stepped, ("tree",),
         ("SpeculativeVerifier.commit", "commit_state", "commit_kv")),
    Case("SpeculativeVerifier.statistics", counting().statistics, lambda: dict(slot=1)),
    Case("SpeculativeVerifier.statistics_by_slot", counting().statistics_by_slot, dict),
    Case("SpeculativeVerifier.reset_statistics", counting().reset_statistics, lambda: dict(
        slots=torch.arange(B)
    )),
    Case("AcceptanceStats", sdk.AcceptanceStats, lambda: dict(
        steps=2, drafted=4, passes=4, tested=(2, 1), accepted=(1, 1), seconds=0.5, plain_seconds=0.5, rows=6
    ), ("tested",)),
    Case("AcceptanceStats.expected_speedup", STATS.expected_speedup, lambda: dict(cost_ratio=0.5, depth=2)),
    Case("AcceptanceStats.measured_speedup", STATS.measured_speedup, lambda: dict(cost_ratio=0.5)),
    Case("AcceptanceStats.warning", STATS.warning, lambda: dict(cost_ratio=0.5)),
    Case("AcceptanceStats.to_dict", STATS.to_dict, dict),
    Case("AcceptanceCollector", sdk.AcceptanceCollector, lambda: dict(
        statistics=lambda: STATS, labels={"model": "m"}, prefix="vllm:"
    )),
    Case("prometheus_text", sdk.prometheus_text, lambda: dict(
        statistics=STATS, labels={"model": "m"}, prefix="vllm:"
    )),
    Case("Budget", sdk.Budget, lambda: dict(
        costs={1: 1.0, 4: 2.0}, credit=1.0, allowance=0.5, max_credit=4.0, idle_steps=2, patience=9
    )),
    Case("Budget.worth_drafting", BUDGET.worth_drafting, lambda: dict(requests=2, drafting=0.5)),
    Case("Budget.cost", BUDGET.cost, lambda: dict(rows=[1.0, 4.0])),
    Case("Budget.choose", BUDGET.choose, lambda: dict(chances=[CHANCES, CHANCES], weights=[0.5, 1.0])),
    Case("Budget.depth", BUDGET.depth, lambda: dict(chances=CHANCES, draft_cost=0.5, width=2)),
    Case("Budget.after", BUDGET.after, lambda: dict(rows=4, tokens=[2, 1], drafting=0.5)),
    Case("CostCurve", sdk.CostCurve, lambda: dict(costs={1: 1.0, 4: 2.0}, max_rows=8)),
    Case("CostCurve.observe", CURVE.observe, lambda: dict(rows=4, seconds=0.5)),
    Case("CostCurve.costs", CURVE.costs, dict),
    Case("CostCurve.write_", CURVE.write_, lambda: dict(out=torch.zeros(9, dtype=torch.float64))),
    Case("CostCurve.seconds", CURVE.seconds, lambda: dict(rows=4)),
    Case("CostCurve.error", CURVE.error, lambda: dict(rows=4, others=2)),
    Case("CostCurve.doubts", CURVE.doubts, lambda: dict(rows=4, others=2, tokens=1.5)),
    Case("TextCredit", sdk.TextCredit, lambda: dict(share=0.05, least_tokens=16, awaited=True)),
    Case("TextCredit.join", sdk.TextCredit().join, lambda: dict(
        costs=[0.0, 1.0, 2.0], tokens=[9, 8], requests=2
    )),
    Case("TextCredit.after", sdk.TextCredit().after, lambda: dict(
        costs=[0.0, 1.0, 2.0], tokens={"a": 2, "b": 1}
    )),
    Case("TextCredit.weights", sdk.TextCredit().weights, lambda: dict(tokens_left={"a": 2, "b": 1})),
    Case("StepTimer", sdk.StepTimer, lambda: dict(curve=CURVE, device="cpu", clock=time.perf_counter)),
    Case("StepTimer.step", sdk.StepTimer(CURVE).step, lambda: dict(rows=4)),
    Case("BatchBudget", sdk.BatchBudget, lambda: dict(
        budget=BUDGET, slots=B, max_rows=4, calibration=sdk.Calibration(), device="cpu"
    )),
    Case("BatchBudget.reset_", ON_DEVICE.reset_, lambda: dict(slots=torch.arange(B))),
    Case("BatchBudget.select", ON_DEVICE.select, lambda: dict(
        tree=kept_tree(), scores=torch.zeros(B, N), draft_rows=short(R), slots=torch.arange(B),
        weights=torch.ones(B), backend="reference",
    ), ("tree", "scores", "draft_rows", "slots", "weights"), ("BatchBudget.select", "select_nodes")),
    Case("BatchBudget.worth_drafting", ON_DEVICE.worth_drafting, lambda: dict(requests=2, drafting=0.5)),
    Case("BatchBudget.update_", ON_DEVICE.update_, lambda: dict(
        selected=ON_DEVICE.select(kept_tree(), torch.zeros(B, N), backend="reference"),
        verified=sdk.Verified(long(B, N), short(B), short(B), short(B, N), None, short(B)),
        backend="reference",
    ), ("selected", "verified"), ("BatchBudget.update_", "update_budget")),
    Case("Calibration", sdk.Calibration, lambda: dict(
        promised=(0.5,) * 8, kept=(0.25,) * 8, decay=0.9, prior=0.5
    )),
    Case("Calibration.believe", sdk.Calibration().believe, lambda: dict(
        chances=CHANCES, parents=[-1, 0, 1]
    ), ("chances",)),
    Case("Calibration.after", sdk.Calibration().after, lambda: dict(
        chances=CHANCES, parents=[-1, 0, 1], path=[0, 1]
    ), ("chances",)),
    Case("tree_bitmask", sdk.tree_bitmask, lambda: dict(
        matchers=matchers(), tree=chain(), vocab_size=V, active=[True, False],
        target_rows=torch.arange(R).int(), out=sdk.TreeBitmask(short(R, 1), long(R), short(R)),
    ), ("matchers", "tree", "vocab_size")),
    Case("advance_matchers", sdk.advance_matchers, lambda: dict(
        matchers=matchers(), emitted=[[1, 2], [3]], active=[True, False]
    ), ("matchers", "emitted")),
    Case("forced_draft", sdk.forced_draft, lambda: dict(
        matchers=matchers(), vocab_size=V, num_draft=2, tokenize=lambda text: [1], active=[True, False]
    ), ("matchers",)),
    Case("AfterToken", sdk.AfterToken, lambda: dict(matcher=Forced(((0,) * V,)), token=3)),
    Case("LLGuidanceMatcher", sdk.LLGuidanceMatcher, lambda: dict(matcher=Guidance(), stop_tokens=[2])),
    Case("explain", sdk.explain, dict),
]  # fmt: skip

# What is taken all the same: a number of the range, a size that nothing else fixes, values that only the
# operation that is handed the object can judge.
WRONG = ("device", "dtype", "less", "list", "more", "none", "number", "string")


def unread(*fields: str, dims: int = 1) -> list[str]:
    """All that can be wrong with these fields, tensors of so many dimensions."""
    sizes = [f"size {dim}" for dim in range(dims)]
    return [f"{field} {what}" for field in fields for what in (*WRONG, *sizes)]


UNREAD = ", ".join(sorted(unread("finish", "status") + unread("logprobs", dims=2)))
OPEN = "context_left none, finished none, new_tokens_left none, stop_tokens none, stop_tokens size 1"
EDITS = (
    "bad_words none, bad_words size 1, banned_tokens size 1, banned_until none, forced_tokens none, "
    "forced_tokens size 1, frequency_penalty number, presence_penalty negative, presence_penalty zero, "
    "slots none"
)
ACCEPTED: dict[str, dict[str, str]] = {
    "AcceptanceStats": dict(
        steps="zero",
        drafted="zero",
        passes="zero",
        tested="item zero",
        accepted="item zero",
        seconds="zero",
        plain_seconds="zero",
        rows="zero",
    ),
    "AcceptanceStats.expected_speedup": dict(cost_ratio="zero", depth="fraction, zero"),
    "AcceptanceStats.measured_speedup": dict(cost_ratio="zero"),
    "AcceptanceStats.warning": dict(cost_ratio="zero"),
    "Budget": dict(
        credit="infinite, negative, zero", allowance="zero", max_credit="infinite, zero", idle_steps="zero"
    ),
    "Budget.after": dict(rows="zero", tokens="empty, item zero, longer", drafting="negative, zero"),
    "Budget.choose": dict(chances="item empty, item item zero, item longer", weights="item zero"),
    "Budget.cost": dict(rows="empty, item zero, longer, number"),
    "Budget.depth": dict(chances="empty, item zero, longer", draft_cost="zero"),
    "Budget.worth_drafting": dict(drafting="zero"),
    "BatchBudget.worth_drafting": dict(drafting="zero"),
    "CachePlan": dict(caches="item dtype, item size 0, item size 2, item size 3"),
    "CostCurve.doubts": dict(tokens="zero"),
    "CostCurve.write_": dict(out="device"),
    "TextCredit": dict(share="zero"),
    "TextCredit.after": dict(costs="item zero, longer", tokens="empty, item zero"),
    "TextCredit.weights": dict(tokens_left="empty, item zero, key"),
    "TextCredit.join": dict(costs="item zero, longer", tokens="empty, item zero, longer"),
    "Calibration": dict(promised="item zero", kept="item zero"),
    "Calibration.after": dict(
        chances="item zero", parents="item negative", path="empty, item negative, item zero, longer"
    ),
    "Calibration.believe": dict(chances="item zero", parents="item negative"),
    "DraftTree": dict(cu_nodes="size 0", max_nodes="zero", max_depth="zero"),
    "DraftTree.chain": dict(proposal="zero", tokens="size 0", cu_nodes="size 0", cu_drafts="size 0"),
    "DraftTree.from_parents": dict(cu_nodes="size 0", proposals="zero"),
    "DraftTree.from_paths": dict(paths="item item zero"),
    "DraftVocab": dict(ids="device"),
    "DraftVocab.from_offsets": dict(d2t="device, size 0"),
    "Deferred": dict(entropy="zero", window="zero"),
    "Ensemble": dict(weight="zero"),
    "Threshold": dict(single="zero", acc="zero"),
    "Relaxed": dict(delta="zero"),
    "SamplingParams": dict(
        temperature="scalar, tensor, zero",
        top_k="negative, scalar, tensor, zero",
        top_p="scalar, tensor, zero",
        min_p="scalar, tensor, zero",
    ),
    "SpeculativeVerifier": dict(
        return_masks="capacity zero",
        sampling="device of a field, dtype of a field, shape of a field",
        draft_sampling="device of a field, dtype of a field, shape of a field",
        draft_vocab="device, size",
        states="empty, item device, item dtype, item less, item more, item size 0, item size 1, longer",
        max_depth="zero",
        slots="zero",
    ),
    "SpeculativeVerifier.reset_statistics": dict(slots="size 0"),
    "SpeculativeVerifier.statistics": dict(slot="zero"),
    "SpeculativeVerifier.commit": dict(block_table="size 1"),
    "SpeculativeVerifier.forward": dict(
        target_logits="size 0", draft_logits="size 0, size 1", edits=EDITS, ends=OPEN, out="logprobs none"
    ),
    "SuffixDrafter": dict(max_depth="zero", namespace="name", reads="empty, item name, longer"),
    "SuffixIndex.add": dict(
        request="negative",
        tokens="empty, item zero, longer",
        namespace="name",
        reads="empty, item name, longer",
    ),
    "SuffixIndex.draft": dict(max_depth="zero", requests="empty, item zero, longer", trust="longer"),
    "SuffixIndex.extend": dict(requests="item zero", tokens="size 1", num_tokens="item zero"),
    "SuffixIndex.finish": dict(request="zero"),
    "SuffixIndex.remove": dict(request="zero"),
    "SuffixIndex.unload": dict(corpus="zero"),
    "BatchBudget": dict(slots="zero"),
    "BatchBudget.reset_": dict(slots="list, size 0"),
    "BatchBudget.update_": dict(
        selected=", ".join(sorted(unread("draft_rows", "rows"))),
        verified=", ".join(
            sorted(["path size 1", *unread("num_accepted", "status"), *unread("tokens", dims=2)])
        ),
    ),
    "TokenCounts": dict(slots="zero", recent="zero"),
    "TokenCounts.reset_": dict(slots="list, size 0"),
    "TokenCounts.set_prompt_": dict(slots="item zero", tokens="size 1", num_output="item zero"),
    "TokenCounts.update_": dict(verified="less, size 1"),
    "Synthetic": dict(rate="device, item zero, less, list, longer, scalar, size 0, tensor, zero"),
    "Typical": dict(epsilon="zero", delta="zero"),
    "AcceptanceCollector": dict(labels="empty", prefix="name"),
    "AfterToken": dict(token="zero"),
    "LLGuidanceMatcher": dict(stop_tokens="empty, item zero, longer"),
    "advance_matchers": dict(matchers="item none", emitted="item empty, item item zero, item longer"),
    "forced_draft": dict(matchers="item none"),
    "tree_bitmask": dict(matchers="item none"),
    "commit_kv": dict(block_table="size 1", caches="item size 0"),
    "commit_state": dict(states="item size 0"),
    "draft_token": dict(node="zero"),
    "edit_logits_": dict(logits="size 0", edits=EDITS),
    "grow_tree": dict(roots="size 0"),
    "fill_sglang": dict(verified=UNREAD, predicts="size 0"),
    "fill_tensorrt_llm": dict(verified=UNREAD),
    "prometheus_text": dict(labels="empty", prefix="name"),
    "ngram_draft": dict(tokens="size 1"),
    "ngram_tree": dict(tokens="size 1", max_depth="zero", trust="longer"),
    "replay_conv": dict(windows="item size 0, item size 2"),
    "replay_gated_delta": dict(states="item size 0"),
    "replay_mamba2": dict(states="item size 0"),
    "seeds_from_generators": dict(generators="empty, item none, longer"),
    "sample": dict(logits="size 1", edits=EDITS, return_logprobs="chosen none, chosen size 1, top zero"),
    "sample_children": dict(logits="size 1"),
    "tree_attention": dict(
        block_table="size 1",
        scale="negative, zero",
        key_scale="less, number",
        value_scale="negative, scalar, zero",
        max_prefix_len="zero",
        key_cache="size 0, size 1",
    ),
    "verify": dict(target_logits="size 0", draft_logits="size 0", edits=EDITS, ends=OPEN),
}


FIELDS = (
    sdk.Ends,
    sdk.LogitEdits,
    sdk.TreeBitmask,
    sdk.Verified,
    sdk.SamplingMasks,
    sdk.SelectedNodes,
    sdk.Logprobs,
    sdk.Masks,
)  # tuples of tensors, each of which may be wrong


def wrong(value: Any, optional: bool) -> Iterator[tuple[str, Any]]:
    """Values that can hardly be meant where `value` is right, by what is wrong with them."""
    if not optional:
        yield "none", None
    if not isinstance(value, str):
        yield "string", "a"
    if isinstance(value, Tensor):
        yield "list", value.tolist()
        yield "number", 3
        yield "dtype", value.long() if value.is_floating_point() else value.double()
        yield "more", value.unsqueeze(0)
        yield "less", value[0]
        for dim, size in enumerate(value.shape):
            shape = [*value.shape[:dim], size + 1, *value.shape[dim + 1 :]]
            yield f"size {dim}", value.new_zeros(shape)
        yield "device", value.to("meta")
    elif isinstance(value, bool):
        yield from (("list", []), ("number", 2), ("tensor", torch.ones(7)))
    elif isinstance(value, (int, float)):
        yield from (("list", [[]]), ("bool", True), ("tensor", torch.ones(7)), ("scalar", torch.tensor(0.5)))
        yield from (("negative", -1), ("zero", 0), ("nan", NAN), ("infinite", INF))
        yield "huge", 10**400
        if isinstance(value, int):
            yield "fraction", 1.5
    elif isinstance(value, str):
        yield from (("name", "nonsense"), ("list", []), ("number", 3), ("tensor", torch.ones(7)))
    elif isinstance(value, (list, tuple)) and not isinstance(value, (sdk.SamplingParams, *FIELDS)):
        yield from (("number", 3), ("bool", True), ("tensor", torch.ones(7)), ("empty", value[:0]))
        yield "longer", value + value
        for what, item in wrong(value[0], False):
            yield f"item {what}", type(value)((item, *value[1:]))
    elif isinstance(value, dict):
        yield from (("number", 3), ("list", [1.0]), ("empty", {}), ("key", {"a": 1.0, 1: 1.0}))
        yield from ((f"item {what}", {1: item}) for what, item in wrong(1.0, False))
    else:
        yield from (("list", []), ("number", 3), ("tensor", torch.ones(7)))
    if isinstance(value, sdk.SamplingParams):
        yield "shape of a field", value._replace(top_p=torch.ones(B + 1))
        yield "dtype of a field", value._replace(temperature=torch.ones(B).bool())
        yield "device of a field", value._replace(min_p=torch.ones(B, device="meta"))
    if isinstance(value, FIELDS):
        for field, part in value._asdict().items():
            if part is not None:
                yield from (
                    (f"{field} {what}", value._replace(**{field: bad})) for what, bad in wrong(part, False)
                )
    if isinstance(value, sdk.DraftTree):
        yield "size", sdk.DraftTree.chain(long(B + 1, K))
        yield "device", sdk.DraftTree.chain(long(B, K).to("meta"))
    if isinstance(value, sdk.DraftVocab):
        yield "device", sdk.DraftVocab(torch.arange(V, device="meta"), V)
        yield "size", sdk.DraftVocab(torch.arange(V - 1), V - 1)


def outcome(case: Case, argument: str, what: str, value: object) -> str | None:
    """None where the value was refused in the right form, "accepted", or what was wrong with the refusal."""
    given = case.make()
    named = "|".join(given) if argument in case.anchors else argument
    operation = "|".join(map(re.escape, case.operations or (case.name,)))
    try:
        case.call(**given | {argument: value})
    except (TypeError, ValueError) as error:
        if re.search(rf"^({operation}): .*\b({named})\b.*, got .+$", str(error), re.DOTALL):
            return None
        return f"{argument} {what}: {type(error).__name__}: {error}"
    except Exception as error:
        return f"{argument} {what}: {type(error).__name__}: {error}"
    return "accepted"


def named(cases: list[Case]) -> list:
    found = find_spec("prometheus_client")
    there = [case for case in cases if found or case.name != "prometheus_text"]
    return [pytest.param(case, id=f"{i}-{case.name}") for i, case in enumerate(there)]


@pytest.mark.parametrize("case", named(CASES))
def test_the_valid_call_is_valid(case):
    case.call(**case.make())


@pytest.mark.parametrize("case", named(CASES))
def test_numbers_of_numpy_are_numbers(case):
    kinds = {int: np.int64, float: np.float32}
    given = {key: kinds.get(type(value), lambda same: same)(value) for key, value in case.make().items()}
    case.call(**given)


@pytest.mark.parametrize("name", sorted({case.name for case in CASES}))
def test_wrong_arguments_are_refused_in_one_form(name):
    bad, accepted = [], {}
    for case in CASES:
        if case.name != name:
            continue
        parameters = inspect.signature(case.call).parameters
        for argument, right in case.make().items():
            if right is None and argument != "check":
                continue
            optional = parameters[argument].default is None
            for what, value in wrong(right, optional):
                came = outcome(case, argument, what, value)
                if came == "accepted":
                    accepted.setdefault(argument, set()).add(what)
                elif came:
                    bad.append(came)
    assert not bad, "\n".join(bad)
    assert {key: ", ".join(sorted(found)) for key, found in accepted.items()} == ACCEPTED.get(name, {})


def public() -> dict[str, Callable]:
    """Every public function, class, and method of such a class, of the package."""
    found = {}
    for name in set(sdk.__all__) - RESULTS - OTHERS - INTEGRATIONS - COMPILING:
        value = getattr(sdk, name)
        found[name] = value
        if inspect.isclass(value) and name not in CALLED:
            found |= {
                f"{name}.{method}": getattr(value, method)
                for method, kind in vars(value).items()
                if not method.startswith("_") and isinstance(kind, (classmethod, type(lambda: 0)))
            }
    return found


def test_every_parameter_of_every_public_callable_has_a_case():
    named = set(public()) - FILES
    assert {case.name for case in CASES} == named
    for name in named:
        given = {argument for case in CASES if case.name == name for argument in case.make()}
        call = next(case.call for case in CASES if case.name == name)
        assert given == set(inspect.signature(call).parameters), name
