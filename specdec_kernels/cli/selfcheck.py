# SPDX-License-Identifier: Apache-2.0
"""A check of seconds: the backend of a device against the reference, and its speed against that of memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import CachePlan, DraftTree, Proposal, SamplingParams, commit_kv, sample, tree_attention, verify
from .._ops.backends import choose

REQUESTS, VOCAB, LARGE_VOCAB = 8, 32000, 128256
CHAIN, TREE = (-1, 0, 1, 2, 3, 4), (-1, 0, 0, 1, 1, 2)  # the parent of each node
PAGE, HEADS, HEAD_DIM, PREFIX = 16, 8, 64, 4096
ATTENTION_ERROR = 1e-4  # of values of size 1, in float32
ROOF_BYTES = 256 << 20
ROUNDS = 9
SLOW = {"verify, token": 0.05, "tree_attention, one node": 0.25}  # of that rate: something is wrong below


@dataclass(frozen=True)
class Check:
    """One finding."""

    name: str
    state: str  # "ok", "warning" or "failed"
    detail: str


def run(device: torch.device) -> Iterator[Check]:
    """Findings one by one, those of correctness first."""
    backend = choose("verify", device.type)
    if backend == "reference":
        yield Check("agreement", "warning", f"{device.type} tensors are served by the slow reference alone")
        return
    draws = torch.Generator().manual_seed(0)
    for parents in (CHAIN, TREE):
        yield from _verification(parents, device, draws)
    yield _sampling(device, draws)
    yield from _caches(device, draws)
    yield from _speed(device)


def _uniform_tree(parents: tuple[int, ...], device: torch.device, draws: torch.Generator) -> DraftTree:
    tokens = torch.randint(VOCAB, (REQUESTS, len(parents)), generator=draws)
    links = torch.tensor(parents, dtype=torch.int32).repeat(REQUESTS, 1)
    return DraftTree.from_parents(tokens.to(device), links.to(device), proposals=Proposal.INDEPENDENT)


def _verification(parents: tuple[int, ...], device: torch.device, draws: torch.Generator) -> Iterator[Check]:
    tree = _uniform_tree(parents, device, draws)
    target = 2 * torch.randn(REQUESTS, len(parents), VOCAB, generator=draws)
    for node, parent in enumerate(parents[1:], 1):  # likely drafts, so that some are accepted
        drafted = tree.tokens.view(REQUESTS, -1)[:, node : node + 1].cpu()
        target[:, parent].scatter_(1, drafted, 10.0)
    draft = target + torch.randn(target.shape, generator=draws)
    target, draft = target.flatten(0, 1).to(device), draft.flatten(0, 1).to(device)
    law = SamplingParams(temperature=0.8, top_p=0.95)
    for rule in ("match", "token", "traversal"):
        ours, exact = (
            verify(
                target,
                tree,
                None if rule == "match" else draft,
                sampling=law,
                rule=rule,
                seeds=torch.arange(REQUESTS, device=device),
                positions=torch.arange(REQUESTS, device=device),
                backend=backend,
            )
            for backend in ("auto", "reference")
        )
        shape = "chain" if parents == CHAIN else "tree"
        same = torch.equal(ours.tokens.cpu(), exact.tokens.cpu()) and torch.equal(
            ours.path.cpu(), exact.path.cpu()
        )
        accepted = int(exact.num_accepted.sum())
        yield _agreement(f"verify, {rule}, {shape}", same, f"{accepted} drafts accepted")


def _sampling(device: torch.device, draws: torch.Generator) -> Check:
    rows = (3 * torch.randn(REQUESTS, VOCAB, generator=draws)).to(device)
    numbers = torch.arange(REQUESTS, device=device)
    law = SamplingParams(temperature=0.7, top_k=50)
    ours, exact = (
        sample(rows, law, seeds=numbers, positions=numbers, backend=backend)
        for backend in ("auto", "reference")
    )
    return _agreement("sample", torch.equal(ours.cpu(), exact.cpu()), f"{REQUESTS} tokens")


def _paged(
    device: torch.device, draws: torch.Generator, prefix: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Caches of keys and values, the table of their pages, and lengths."""
    pages = -(-(prefix + len(TREE)) // PAGE)
    key, value = torch.randn(2, pages * REQUESTS, PAGE, HEADS, HEAD_DIM, generator=draws).to(device)
    table = torch.arange(pages * REQUESTS, dtype=torch.int32, device=device).view(REQUESTS, pages)
    return key, value, table, torch.full((REQUESTS,), prefix, dtype=torch.int32, device=device)


def _caches(device: torch.device, draws: torch.Generator) -> Iterator[Check]:
    key, value, table, lengths = _paged(device, draws, 100)
    tree = _uniform_tree(TREE, device, draws)
    query = torch.randn(REQUESTS * len(TREE), HEADS, HEAD_DIM, generator=draws).to(device)
    ours, exact = (
        tree_attention(query, key, value, tree, table, lengths, backend=backend)
        for backend in ("auto", "reference")
    )
    error = float((ours.double() - exact.double()).abs().max())
    yield _agreement("tree_attention", error < ATTENTION_ERROR, f"error {error:.1e}")
    target = torch.zeros(REQUESTS, len(TREE), VOCAB, device=device)
    target.scatter_(2, tree.tokens.view(REQUESTS, -1).roll(-1, 1)[..., None], 30.0)
    verified = verify(target, tree, rule="match", sampling=SamplingParams(temperature=0.0))
    caches = [(key.clone(), value.clone()) for _ in range(2)]
    for (keys, values), backend in zip(caches, ("auto", "reference"), strict=True):
        plan = CachePlan([keys, values], page_size=PAGE)
        commit_kv(plan, verified, tree, table, lengths.clone(), backend=backend)
    same = all(torch.equal(a, b) for a, b in zip(*caches, strict=True))
    yield _agreement("commit_kv", same, "every byte")


def _agreement(name: str, same: bool, detail: str) -> Check:
    return Check(name, "ok" if same else "failed", detail if same else "differs from the reference")


def _speed(device: torch.device) -> Iterator[Check]:
    """Calls beside the rate at which a sum reads memory."""
    draws = torch.Generator().manual_seed(1)
    memory = torch.zeros(ROOF_BYTES // 4, device=device)
    roof = memory.numel() * 4 / _median_seconds(memory.sum, device)
    yield Check("memory", "ok", f"{roof / 1e9:.1f} GB/s are read by a sum, {torch.get_num_threads()} threads")
    tree = _uniform_tree(CHAIN, device, draws)
    draft = torch.randn(REQUESTS * len(CHAIN), LARGE_VOCAB, generator=draws).to(device)
    target = draft.scatter(1, tree.tokens.roll(-1)[:, None], -30.0)  # nothing is accepted
    law, numbers = SamplingParams(temperature=0.8), torch.arange(REQUESTS, device=device)
    seconds = _median_seconds(
        lambda: verify(target, tree, draft, rule="token", sampling=law, seeds=numbers, positions=numbers),
        device,
    )
    yield _share("verify, token", 4 * REQUESTS * LARGE_VOCAB * 4, seconds, roof)  # p and q of roots, twice
    key, value, table, lengths = _paged(device, draws, PREFIX)
    one = DraftTree.chain(torch.zeros(REQUESTS, 0, dtype=torch.long, device=device))
    query = torch.randn(REQUESTS, HEADS, HEAD_DIM, generator=draws).to(device)
    call = lambda: tree_attention(query, key, value, one, table, lengths)  # noqa: E731
    yield _share("tree_attention, one node", 2 * key.numel() * 4, _median_seconds(call, device), roof)


def _share(name: str, least_bytes: int, seconds: float, roof: float) -> Check:
    share = least_bytes / seconds / roof
    return Check(
        name, "ok" if share >= SLOW[name] else "warning", f"{1e6 * seconds:.0f} us, {share:.0%} of that rate"
    )


def _median_seconds(call: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(ROUNDS + 1):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begin = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return sorted(times[1:])[ROUNDS // 2]
