# SPDX-License-Identifier: Apache-2.0
"""CPU time of small calls of the native backend, B = 1, on one thread: the work, and what Python, checks and
allocations add to it.

Calls take turns. A limit is on what a call takes beyond a floor, which does the work alone. It is in
microseconds of a machine where `torch.empty` takes one. Where that takes longer at best, the limit is as many
times as long."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

import specdec_kernels as sdk

from .floor import Floor
from .report import rows

VOCAB, DRAFTED, PREFIX, LAYERS, PAGE = 32000, 5, 256, 30, 16
ROUNDS, CALLS = 150, 4
FLUSH = 48 << 20  # bytes: more than the caches of a core

Run = Callable[[], object]


@dataclass(frozen=True)
class Call:
    name: str
    run: Run
    limit: float = 0.0  # microseconds beyond `factor` times the floor; 0 = none
    floor: str = ""
    factor: float = 1.0


def _cache(heads: int, dim: int, slots: int) -> torch.Tensor:
    return torch.zeros(-(-slots // PAGE), PAGE, heads, dim)


def _attention(tree: sdk.DraftTree, prefix: int, query_heads: int, heads: int, dim: int) -> tuple[Run, Run]:
    """A call, and reads of the caches alone."""
    keys, values = (_cache(heads, dim, prefix + tree.max_nodes) for _ in range(2))
    query = torch.zeros(tree.tokens.shape[0], query_heads, dim)
    pages = torch.arange(len(keys), dtype=torch.int32)[None]
    prefix_lens = torch.tensor([prefix], dtype=torch.int32)
    return (
        lambda: sdk.tree_attention(query, keys, values, tree, pages, prefix_lens),
        lambda: (keys.sum(), values.sum()),
    )


def _step(seeds: torch.Tensor, positions: torch.Tensor, law: sdk.SamplingParams) -> Run:
    """A step whose rows and caches are so small that nearly all of its time is the host's."""
    vocab, prefix = 64, 8
    logits = torch.zeros(DRAFTED + 1, vocab)
    attend, _ = _attention(sdk.DraftTree.chain(torch.zeros(1, DRAFTED).long()), prefix, 1, 1, 16)
    caches = [_cache(1, 16, prefix + DRAFTED + 1) for _ in range(2 * LAYERS)]
    plan = sdk.CachePlan(caches, page_size=PAGE)
    pages = torch.arange(len(caches[0]), dtype=torch.int32)[None]
    prefix_lens = torch.tensor([prefix], dtype=torch.int32)

    def run() -> object:
        drafted = [
            sdk.draft_token(logits[:1], node, sampling=law, seeds=seeds, positions=positions)[0]
            for node in range(DRAFTED)
        ]
        tree = sdk.DraftTree.chain(torch.stack(drafted, 1))
        for _ in range(LAYERS):
            attend()
        given = logits[:DRAFTED][None]
        verified = sdk.verify(logits, tree, given, sampling=law, seeds=seeds, positions=positions)
        return sdk.commit_kv(plan, verified, tree, pages, prefix_lens)

    return run


def calls() -> list[Call]:
    g = torch.Generator().manual_seed(0)
    target = 3 * torch.randn(DRAFTED + 1, VOCAB, generator=g)
    draft = target[:DRAFTED] + 0.5 * torch.randn(DRAFTED, VOCAB, generator=g)
    tokens = torch.multinomial(draft.softmax(-1), 1, generator=g).view(1, DRAFTED)
    chain, law, floor = sdk.DraftTree.chain(tokens), sdk.SamplingParams(0.8), Floor()
    seeds, positions, nodes = torch.tensor([1]), torch.tensor([7]), torch.tensor([0])
    keys = dict(seeds=seeds, positions=positions)
    attend, read = _attention(sdk.DraftTree.chain(torch.zeros(1, 0).long()), PREFIX, 8, 2, 64)

    def verify(rule: str) -> Run:
        given = None if rule == "match" else draft[None]
        return lambda: sdk.verify(target, chain, given, rule=rule, sampling=law, **keys)

    return [
        Call("`torch.empty`", lambda: torch.empty((1, DRAFTED + 1), dtype=torch.int64)),
        Call("floor, target rows", lambda: floor(target, 0.8)),
        Call("floor, one row", lambda: floor(target[:1], 0.8)),
        Call("reads of prefix 256", read),
        *(
            Call(f"verify {rule}", verify(rule), 30, "floor, target rows", 1.3)
            for rule in ("match", "token", "traversal")
        ),
        Call("sample", lambda: sdk.sample(target[:1], law, **keys), 30, "floor, one row", 1.3),
        Call(
            "sample_children, 4",
            lambda: sdk.sample_children(target[:1], 4, sampling=law, nodes=nodes, **keys),
            30,
            "floor, one row",
            1.3,
        ),
        Call("draft_token", lambda: sdk.draft_token(target[:1], 0, sampling=law, **keys)),
        Call("DraftTree.chain", lambda: sdk.DraftTree.chain(tokens), 15),
        Call("tree_attention, one node", attend, 40, "reads of prefix 256"),
        Call("a step with 30 layers, V = 64", _step(seeds, positions, law), 1500),
    ]


def times(some: list[Call], rounds: int, before: Run | None = None) -> dict[str, float]:
    """Median microseconds of the thread, of calls that take turns, each after `before`."""
    samples: dict[str, list[int]] = {call.name: [] for call in some}
    for _ in range(rounds):
        for call in some:
            if before:
                before()
            begin = time.thread_time_ns()
            call.run()
            samples[call.name].append(time.thread_time_ns() - begin)
    return {name: statistics.median(taken) / 1000 for name, taken in samples.items()}


def best(call: Call, rounds: int) -> float:
    """The least microseconds of a call that follows itself."""
    least = float("inf")
    for _ in range(rounds):
        begin = time.thread_time_ns()
        for _ in range(CALLS):
            call.run()
        least = min(least, (time.thread_time_ns() - begin) / CALLS / 1000)
    return least


def table(some: list[Call], *measured: Mapping[str, float]) -> list[str]:
    """Lines of Markdown of microseconds: at best, in turns, and after a flush. Limits are on calls that take
    turns. The first call is the unit."""
    least, turns, cold = measured
    unit = least[some[0].name]
    heads = ("us at best", "us, in turns", f"us, after {FLUSH >> 20} MB")
    cells = [("call", *heads, "limit", "beyond the floor", "")]
    for call in some:
        limit = beyond = verdict = ""
        if call.limit:
            over = turns[call.name] - call.factor * turns.get(call.floor, 0.0)
            limit = f"{call.factor:g} x {call.floor} + " * bool(call.floor) + f"{call.limit:g}"
            beyond = f"{over:.0f} us, {over / unit:.0f} x `torch.empty`"
            verdict = "met" if over <= call.limit * max(unit, 1) else "MISSED"
        times = (f"{least[call.name]:.1f}", f"{turns[call.name]:.0f}", f"{cold[call.name]:.0f}")
        cells.append((call.name, *times, limit, beyond, verdict))
    return rows(cells)


def main(quick: bool = False) -> int:
    torch.set_num_threads(1)
    some, rounds = calls(), 3 if quick else ROUNDS
    data = torch.ones(FLUSH // 4)
    gc.disable()
    times(some, 2)
    turns = times(some, rounds)
    least = {call.name: best(call, rounds) for call in some}
    cold = times(some, max(rounds // 3, 1), data.sum)
    gc.enable()
    lines = table(some, least, turns, cold)
    print(f"CPU time of small calls, B = 1, V = {VOCAB}, one thread, PyTorch {torch.__version__}.\n")
    print("\n".join(lines))
    return int(any("MISSED" in line for line in lines))
