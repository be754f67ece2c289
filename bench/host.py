# SPDX-License-Identifier: Apache-2.0
"""Host time of eager calls of the Triton backend: what a call costs before its kernels run.

This is no GPU timing: the driver library is a stub, launches do nothing, and tensors lie on the host."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

import specdec_kernels as sdk

from . import engines
from .stub import launches_do_nothing

BATCH, DRAFTED, VOCAB = 8, 5, 32000
ROUNDS, CALLS = 200, 20  # so few that some rounds are not disturbed by what else runs


@dataclass(frozen=True)
class Limit:
    """In microseconds, or in launches of the yardstick in the same run."""

    micros: float
    launches: float = 0.0

    def __str__(self) -> str:
        return f"{self.micros:g} us" + (f" or {self.launches:g} launches" if self.launches else "")


@dataclass(frozen=True)
class Call:
    name: str
    run: Callable[[], object]
    limit: Limit | None = None
    beyond: str = ""  # the limit is on what it takes beyond the call of this name


@triton.jit
def _three_kernel(a, b, n):
    if n == 0:
        tl.store(a, tl.load(b))


def calls() -> list[Call]:
    g = torch.Generator().manual_seed(0)
    rows = BATCH * (DRAFTED + 1)
    tokens = torch.randint(0, VOCAB, (BATCH, DRAFTED), generator=g)
    target, draft = torch.zeros(rows, VOCAB).bfloat16(), torch.zeros(BATCH, DRAFTED, VOCAB).bfloat16()
    keys = dict(seeds=torch.arange(BATCH), positions=torch.arange(BATCH), backend="triton")
    cuts = sdk.SamplingParams(0.8, 50, 0.9)
    tensors = sdk.SamplingParams(
        torch.full((BATCH,), 0.8), torch.full((BATCH,), 50), torch.full((BATCH,), 0.9)
    )
    chain = sdk.DraftTree.chain(tokens)
    a, b = torch.zeros(4), torch.zeros(4)
    heads, dim, page = 8, 128, 16
    pages = torch.arange(BATCH * 64).view(BATCH, 64).int()
    prefix = torch.full((BATCH,), 512).int()
    caches = [torch.zeros(BATCH * 64, page, 1, 16).bfloat16() for _ in range(64)]
    plan = sdk.CachePlan(caches, page_size=page)
    path = torch.zeros(BATCH, DRAFTED + 1).int()
    query = torch.zeros(rows, 4 * heads, dim).bfloat16()
    keys_cache = torch.zeros(BATCH * 64, page, heads, dim).bfloat16()
    states = [torch.zeros(BATCH, 64) for _ in range(24)]
    snapshots = [torch.zeros(rows, 64) for _ in range(24)]
    verifier = sdk.SpeculativeVerifier(rule="token", backend="triton", sampling=sdk.SamplingParams(0.8))

    def verify(rule: str, sampling: sdk.SamplingParams) -> Callable[[], object]:
        given = None if rule == "match" else draft
        return lambda: sdk.verify(target, chain, given, rule=rule, sampling=sampling, **keys)

    def attend() -> object:
        return sdk.tree_attention(
            query, keys_cache, keys_cache, chain, pages, prefix, max_prefix_len=512, backend="triton"
        )

    def adapters() -> Iterator[Call]:
        steps = map(engines.on_triton, (*engines.vllm(), *engines.tensorrt_llm_trees()))
        # On the CPU: LMDeploy's gathers by what `verify` found, and launches find nothing here.
        for step in (*engines.sglang("triton"), *steps, *engines.lmdeploy_chains()):
            compared = f"verify of {step.name}"
            yield Call(compared, step.verify)
            yield Call(step.name, step.run, Limit(30, 4), beyond=compared)

    numbers, seeded = sdk.SamplingParams(0.8), dict(seeds=keys["seeds"], positions=keys["positions"])
    verifying, sampling, attending = Limit(60, 8), Limit(50, 6.5), Limit(50, 6.5)
    laws = {"numbers": numbers, "cuts": cuts, "tensors": tensors}
    return [
        Call("a launch of three arguments", lambda: _three_kernel[(1,)](a, b, 3)),
        *(
            Call(f"verify {rule}, {name}", verify(rule, law), verifying)
            for rule in ("token", "traversal", "match")
            for name, law in laws.items()
        ),
        *(
            Call(f"sample, {name}", lambda law=law: sdk.sample(target[:BATCH], law, **keys), sampling)
            for name, law in laws.items()
        ),
        Call("tree_attention", attend, attending),
        Call(
            "commit_kv, plan of 64 caches",
            lambda: sdk.commit_kv(plan, path, chain, pages, prefix, backend="triton"),
            Limit(25, 3.5),
        ),
        Call(
            "commit_kv, list of 64 caches",
            lambda: sdk.commit_kv(caches, path, chain, pages, prefix, page_size=page, backend="triton"),
        ),
        Call(
            "commit_state, 24 layers",
            lambda: sdk.commit_state(
                path, chain, keys["seeds"], states=states, snapshots=snapshots, backend="triton"
            ),
        ),
        Call("DraftTree.chain", lambda: sdk.DraftTree.chain(tokens, check=False), Limit(15, 2)),
        Call(
            "SpeculativeVerifier.forward",
            lambda: verifier(target, chain, draft, **seeded),
            Limit(10),
            beyond="verify token, numbers",
        ),
        *adapters(),
    ]


def times(some: list[Call], rounds: int = ROUNDS, count: int = CALLS) -> dict[str, float]:
    """Microseconds of the thread for each call: the least of several rounds, in which calls take turns."""
    best: dict[str, float] = {}
    for call in some:
        call.run()  # compiles
    for _ in range(rounds):
        for call in some:
            run, begin = call.run, time.thread_time_ns()
            for _ in range(count):
                run()
            took = (time.thread_time_ns() - begin) / count / 1000
            best[call.name] = min(best.get(call.name, took), took)
    return best


def table(some: list[Call], took: dict[str, float]) -> tuple[list[str], bool]:
    """Lines of Markdown, and whether a limit was missed. The first call is the yardstick."""
    lines, missed = ["| call | us | launches | limit |", "|---|---|---|---|"], False
    yardstick = took[some[0].name]
    for call in some:
        value = took[call.name] - took.get(call.beyond, 0)
        verdict = ""
        if call.limit:
            met = value <= call.limit.micros or value <= call.limit.launches * yardstick
            missed |= not met
            verdict = f"{call.limit}: {'met' if met else 'MISSED'}"
        name = f"{call.name}, beyond {call.beyond}" if call.beyond else call.name
        lines.append(f"| {name} | {value:.1f} | {value / yardstick:.1f} | {verdict} |")
    return lines, missed


def main(patterns: str = "", quick: bool = False) -> int:
    """Print the table of the calls with one of the comma-separated `patterns` in their names."""
    torch.set_num_threads(1)
    parts = patterns.split(",")
    with launches_do_nothing():
        yardstick, *rest = calls()
        some = [yardstick, *(call for call in rest if any(part in call.name for part in parts))]
        some = [call for call in some if not call.beyond or call.beyond in {other.name for other in some}]
        lines, missed = table(some, times(some, 2 if quick else ROUNDS))
    print(f"Host time of eager calls, Triton {triton.__version__}, PyTorch {torch.__version__}.")
    print("The driver library is a stub, and launches do nothing: this is no GPU timing.\n")
    print("\n".join(lines))
    return int(missed)
