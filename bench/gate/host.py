# SPDX-License-Identifier: Apache-2.0
"""Microseconds until an eager call returns, what a ragged run compiles, and a second card."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton import knobs

import specdec_kernels as sdk

from ..suite import Goal
from . import problems
from .device import Device, form, same_bits
from .parts import Gate

SECONDS, STEPS = 30.0, 300  # of the ragged run, whichever ends first
# Most launches of a kernel of three arguments that a call may last, and most microseconds.
CALLS = {
    "verify, token": (8.0, 60),
    "tree_attention": (6.5, 50),
    "sample": (6.5, 50),
    "commit_kv, plan": (3.5, 25),
    "DraftTree.chain": (2.0, 15),
}
MOST = {"verify": 36, "attention": 16}  # kernels of a model


@triton.jit
def _three_kernel(source, target, count, BLOCK: tl.constexpr):
    places = tl.arange(0, BLOCK)
    tl.store(target + places, tl.load(source + places, mask=places < count), mask=places < count)


def run(gate: Gate) -> None:
    ragged_run(gate)  # first, since it counts what this process compiles
    calls_of_the_host(gate)
    second_card(gate)


def calls_of_the_host(gate: Gate) -> None:
    device, record = gate.device, gate.record
    rule, vocab = ("token", 32000) if device.real else ("match", 69)
    given, caches = device.put(problems.verify("point", vocab)), device.put(problems.caches())
    path = device.put(torch.tensor([[0, 2, 3, 4]] * 3).int())
    plan, tree = sdk.CachePlan(caches["caches"], page_size=4), given["tree"]
    where = (caches["block_table"], caches["prefix_lens"])
    tokens, logits = tree.tokens.view(3, -1), given["target_logits"]
    a, b = (torch.zeros(64, device=device.kind) for _ in range(2))
    verifying = dict(sampling=problems.PLAIN, rule=rule, backend="triton")
    verifier = sdk.SpeculativeVerifier(**verifying).to(device.kind)
    calls: dict[str, Callable[[], Any]] = {
        "a kernel of three arguments": lambda: _three_kernel[(1,)](a, b, 60, BLOCK=64),
        "verify, token": lambda: sdk.verify(**given, **verifying),
        "SpeculativeVerifier": lambda: verifier(**given),
        "tree_attention": lambda: sdk.tree_attention(
            caches["query"], *caches["caches"], tree, *where, max_prefix_len=16, backend="triton"
        ),
        "sample": lambda: sdk.sample(logits, problems.PLAIN, backend="triton"),
        "commit_kv, plan": lambda: sdk.commit_kv(plan, path, tree, *where, backend="triton"),
        "DraftTree.chain": lambda: sdk.DraftTree.chain(tokens),
    }
    known: dict[str, float] = {}
    for name, call in calls.items():
        call()
        known[name] = device.host_seconds(call) * 1e6
    launch = known["a kernel of three arguments"]
    for name, call in calls.items():
        cells = {"us": known[name], "launches of three arguments": known[name] / launch}
        record.row("host time", call=name, **cells, form=form(device.launches(call)))
    for name, (launches, most) in CALLS.items():
        # Either bound: processors differ, and so does what a launch costs.
        if known[name] > most:
            record.mark(name, Goal(name, launches, "a kernel of three arguments", ceiling=True), known)
        else:
            record.mark(name, Goal(name, most, ceiling=True, unit="us"), known)
    known["counting"] = known["SpeculativeVerifier"] - known["verify, token"]
    record.mark("SpeculativeVerifier", Goal("counting", 10, ceiling=True, unit="us"), known)


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """Names of the kernels that are compiled, or loaded for the first time, inside."""
    names: list[str] = []
    before, knobs.runtime.jit_post_compile_hook = (
        knobs.runtime.jit_post_compile_hook,
        lambda *, fn, **_: names.append(fn.name.rsplit(".", 1)[-1]),
    )
    try:
        yield names
    finally:
        knobs.runtime.jit_post_compile_hook = before


def ragged_run(gate: Gate) -> None:
    """Steps of a serving process: as many requests and drafted tokens as there happen to be."""
    device, order, steps = gate.device, random.Random(0), 0
    with compilations() as names:
        warm_up(gate)
        before = last = len(names)
        end = time.monotonic() + SECONDS
        while steps < (STEPS if device.real else 2) and time.monotonic() < end:
            there = len(names)
            ragged_step(device, order)
            steps += 1
            last = steps if len(names) > there else last
    device.synchronize()
    kinds = {kind: sum(kind in name for name in names) for kind in MOST} | {"late": len(names) - before}
    last_step = {"the last in step": last if kinds["late"] else "-"}
    gate.record.row("a ragged run", steps=steps, **kinds, **last_step)
    enough = Goal("steps", STEPS / 3, unit=f"of {STEPS} in {SECONDS:g} s")
    gate.record.mark("a ragged run", enough, {"steps": steps})
    for kind, most in (MOST | {"late": 0}).items():
        gate.record.mark(f"kernels, {kind}", Goal(kind, most, ceiling=True), kinds)


def warm_up(gate: Gate) -> None:
    """What a serving process compiles before traffic."""
    size = LARGEST if gate.device.real else Sizes()
    heads = sdk.Heads(size.heads, size.cache_heads, size.head, dtype=size.dtype, max_nodes=size.nodes)
    done = sdk.warmup(
        gate.device.kind,
        vocab_size=size.vocab,
        dtypes=[size.dtype],
        rules=RULES if gate.device.real else [size.rule],
        samplings=[problems.PLAIN],
        aligned=[gate.device.real],
        heads=[heads],
        page_size=size.page,
        processes=None if gate.device.real else 0,
    )
    gate.record.row("the warm-up", **done._asdict())


class Sizes(NamedTuple):
    """Of a step of the ragged run."""

    batch: int = 3
    nodes: int = 5
    prefix: int = 7
    rule: str = "match"
    vocab: int = 69
    pages: int = 4
    page: int = 4
    heads: int = 4
    cache_heads: int = 2
    head: int = 16
    dtype: torch.dtype = torch.float32


RULES = ("token", "traversal", "match")
LARGEST = Sizes(64, 64, 4000, "token", 32000, 300, 16, 32, 8, 128, torch.bfloat16)


def ragged_step(device: Device, order: random.Random) -> None:
    size = Sizes()
    if device.real:
        drawn = {name: order.randint(1, getattr(LARGEST, name)) for name in ("batch", "nodes", "prefix")}
        size = LARGEST._replace(rule=order.choice(RULES), **drawn)
    randn = partial(torch.randn, device=device.kind, dtype=size.dtype)
    tokens = torch.randint(size.vocab, (size.batch, size.nodes), device=device.kind)
    chain = torch.arange(-1, size.nodes - 1, dtype=torch.int32, device=device.kind).expand(size.batch, -1)
    tree = sdk.DraftTree.from_parents(tokens, chain, max_depth=size.nodes - 1, check=False)
    rows = randn(size.batch * size.nodes, size.vocab)
    keys = dict(seeds=tokens[:, 0], positions=tokens[:, 0])
    sdk.verify(rows, tree, rows, **keys, sampling=problems.PLAIN, rule=size.rule, backend="triton")
    cache = randn(size.pages, size.page, size.cache_heads, size.head)
    table = torch.zeros(size.batch, size.pages, dtype=torch.int32, device=device.kind)
    lengths = torch.full_like(table[:, 0], size.prefix)
    query = randn(size.batch * size.nodes, size.heads, size.head)
    sdk.tree_attention(query, cache, cache, tree, table, lengths, max_prefix_len=4096, backend="triton")


def second_card(gate: Gate) -> None:
    """Tensors on cuda:1 while cuda:0 is the current device."""
    if not gate.device.real or torch.cuda.device_count() < 2:
        return gate.record.missing("a second card", "there is one")
    from device import Crossing

    results = []
    for place in ("cuda:0", "cuda:1"):
        given = Crossing("cpu", place)(problems.verify("point", 1501))
        found = sdk.verify(**given, sampling=problems.PLAIN, rule="traversal", backend="triton")
        torch.cuda.synchronize(place)
        results.append([field.cpu() for field in found if field is not None])
    gate.record.check("tensors on cuda:1 while cuda:0 is current", same_bits(*results))
