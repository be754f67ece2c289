# SPDX-License-Identifier: Apache-2.0
"""The calls whose times are predicted: how each is counted for a batch of requests.

What is counted is small. Other batches are taken to be as much of everything: programs, bytes, instructions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest import mock

import torch

import specdec_kernels as sdk
from specdec_kernels.triton import attention, attention_launch

from .. import inputs
from ..paging import CACHE_HEADS, HEAD, HEADS, PAGE, random_parents, same_trees
from ..verify import BRANCHING
from . import facts
from .cases import commit_kv
from .model import Facts

VOCAB = 128256
SCALE = 0.4355  # of the noise with which sum min(p, q) is 0.70 where nothing is cut
SINGLE = 4  # calls with one request, whose mean time is taken

Counted = dict[int, dict[int, list[list[Facts]]]]  # target -> batch -> calls, whose mean time is meant


@dataclass(frozen=True)
class VerifyCall:
    """A call of `verify`; so many requests are counted, and one by one for a batch of one."""

    name: str
    rule: str = "token"
    top_k: int = 0
    top_p: float = 1.0
    flat: bool = False  # the logits divided by four: a nucleus of most of the vocabulary
    tree: bool = False
    point: bool = False  # no draft logits
    requests: int = 8

    def build(self) -> inputs.Inputs:
        case = inputs.Workload(
            batch=self.requests, vocab=VOCAB, dtype="bfloat16", top_k=self.top_k, top_p=self.top_p,
            branching=BRANCHING if self.tree else (),
        )  # fmt: skip
        given = inputs.build(case, sets=1, scale=SCALE)
        if self.flat:
            given = replace(given, target=given.target / 4, draft=given.draft / 4)
        return given

    def call(self, given: inputs.Inputs, chosen: slice) -> Callable[[], object]:
        case, count = given.case, len(range(*chosen.indices(given.case.batch)))
        tokens, target, draft = given.tokens[0, chosen], given.target[chosen], given.draft[chosen]
        options = {}
        if self.tree:
            kind = sdk.Proposal.POINT if self.point else sdk.Proposal.WITHOUT_REPLACEMENT
            parents = torch.tensor(case.parents, dtype=torch.int32).expand(count, -1)
            tree = sdk.DraftTree.from_parents(tokens, parents, proposals=kind, max_nodes=len(case.parents))
            places = torch.full((count, len(case.parents)), -1, dtype=torch.int32)
            places[:, given.inner] = torch.arange(count * len(given.inner), dtype=torch.int32).view(count, -1)
            options["draft_rows"] = None if self.point else places.flatten()
            draft = draft.flatten(0, 1)
        else:
            tree = sdk.DraftTree.chain(tokens[:, 1:])
        sampling = sdk.SamplingParams(case.temperature, top_k=self.top_k, top_p=self.top_p)
        return lambda: sdk.verify(
            target.flatten(0, 1), tree, None if self.point else draft, sampling=sampling, rule=self.rule,
            seeds=given.seeds[0, chosen], positions=given.positions[0, chosen], backend="triton", **options,
        )  # fmt: skip

    def count(self, archs: Sequence[int], batches: Sequence[int]) -> Counted:
        given = self.build()
        several = facts.of_call(self.call(given, slice(None)), archs)
        counted: Counted = {
            arch: {batch: [_scaled(several[arch], batch / self.requests)] for batch in batches}
            for arch in archs
        }
        if 1 in batches:
            each = (slice(b, b + 1) for b in range(min(SINGLE, self.requests)))
            single = [facts.of_call(self.call(given, one), archs) for one in each]
            for arch in archs:
                counted[arch][1] = [one[arch] for one in single]
        return counted


@dataclass(frozen=True)
class AttentionCall:
    """A call of `tree_attention` by requests of one length, each with a cache of its own.

    One request is counted, with its prefix split as a launch for the whole batch splits it. A batch is as
    much of everything as it has requests.
    """

    name: str
    nodes: int
    prefix: int
    cache_heads: int = CACHE_HEADS

    def call(self) -> object:
        tree = same_trees(random_parents(torch.Generator().manual_seed(0), self.nodes), 1)
        width = -(-(self.prefix + self.nodes) // PAGE)
        pools = [torch.full((width, PAGE, self.cache_heads, HEAD), 0.5, dtype=torch.bfloat16) for _ in "kv"]
        query = torch.zeros(self.nodes, HEADS, HEAD, dtype=torch.bfloat16)
        table, prefixes = torch.arange(width)[None].int(), torch.tensor([self.prefix], dtype=torch.int32)
        return sdk.tree_attention(
            query, *pools, tree, table, prefixes, max_prefix_len=self.prefix, backend="triton"
        )

    def count(self, archs: Sequence[int], batches: Sequence[int]) -> Counted:
        counted: Counted = {arch: {} for arch in archs}
        for batch in batches:
            with _split_for(batch):
                one = facts.of_call(self.call, archs)
            for arch in archs:
                counted[arch][batch] = [_scaled(one[arch], batch)]
        return counted


@contextmanager
def _split_for(batch: int) -> Iterator[None]:
    """One request is split as if it came with so many like it."""

    def launch(target: object, problem: attention_launch.Problem) -> attention_launch.AttentionLaunch:
        of_batch = replace(problem, rows=batch * problem.rows, requests=batch * problem.requests)
        return attention_launch.attention_launch(target, of_batch)

    with mock.patch.object(attention, "attention_launch", launch):
        yield


@dataclass(frozen=True)
class CommitCall:
    """`commit_kv` of 64 caches by a plan: three of four kept rows of each request move."""

    name: str
    requests: int = 8

    def count(self, archs: Sequence[int], batches: Sequence[int]) -> Counted:
        several = facts.of_call(commit_kv(batch=self.requests).run, archs)
        return {
            arch: {batch: [_scaled(several[arch], batch / self.requests)] for batch in batches}
            for arch in archs
        }


def _scaled(launches: Sequence[Facts], share: float) -> list[Facts]:
    return [launch.times(share) for launch in launches]


Call = VerifyCall | AttentionCall | CommitCall

CUT = dict(top_k=50, top_p=0.9)
VERIFY: tuple[Call, ...] = (
    VerifyCall("token"),
    VerifyCall("traversal", rule="traversal"),
    VerifyCall("match", rule="match"),
    VerifyCall("token k50 p.9", **CUT),
    VerifyCall("traversal k50 p.9", rule="traversal", **CUT),
    VerifyCall("match k50 p.9", rule="match", **CUT),
    VerifyCall("token p.95 flat rows", top_p=0.95, flat=True),
    VerifyCall("tree of 64 POINT token", tree=True, point=True, requests=2),
    VerifyCall("tree of 64 WITHOUT_REPLACEMENT token", tree=True, requests=2),
)
ATTENTION: tuple[Call, ...] = (
    AttentionCall("attention 32/8/128 8k N = 1", 1, 8192),
    AttentionCall("attention 32/8/128 8k N = 8", 8, 8192),
    AttentionCall("attention 32/8/128 8k N = 64", 64, 8192),
    AttentionCall("attention 32/1/128 8k N = 1", 1, 8192, cache_heads=1),
    CommitCall("commit_kv of 64 caches"),
)
