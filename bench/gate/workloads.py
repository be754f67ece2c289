# SPDX-License-Identifier: Apache-2.0
"""What compute-sanitizer and ncu look at: some calls of every operator, in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import specdec_kernels as sdk

from . import problems
from .device import Device


def run(name: str, device: Device) -> None:
    WORKLOADS[name](device)
    device.synchronize()


def every_operator(device: Device) -> None:
    """At a vocabulary of several splits that is no multiple of anything."""
    dry = not device.real
    rules = ("match",) if dry else ("match", "token", "traversal", sdk.Typical())
    for rule in rules:
        for tree in problems.TREES[1 if dry else 0 : 2 if dry else None]:
            given = device.put(problems.verify(tree, 69 if dry else 1501))
            for cuts in list(problems.CUTS.values())[: 1 if dry else None]:
                sdk.verify(**given, sampling=cuts, rule=rule, return_logprobs=not dry, backend="triton")
    logits = device.put(torch.randn(3, 69 if dry else 1501))
    sdk.sample(logits, sdk.SamplingParams(0.8), return_logprobs=True, backend="triton")
    if not dry:
        sdk.sample(logits, sdk.SamplingParams(0.8, 50, 0.9), backend="triton")
        sdk.sample_children(logits, 4, backend="triton")
        text = device.put(torch.randint(5, (3, 3000)))
        lengths = device.put(torch.tensor([3000, 0, 17]))
        sdk.ngram_draft(text, lengths, 8, match="frequent", backend="triton")
        sdk.ngram_tree(text, lengths, 32, backend="triton")
    caches_and_attention(device)


def caches_and_attention(device: Device) -> None:
    given, tree = device.put(problems.caches()), device.put(problems.verify("point", 69)["tree"])
    path = device.put(torch.tensor([[0, 2, 3, 4], [0, 1, -1, -1], [-1, -1, -1, -1]]).int())
    where = (given["block_table"], given["prefix_lens"])
    sdk.commit_kv(given["caches"], path, tree, *where, page_size=4, backend="triton")
    dtypes = (torch.float32,) if not device.real else (torch.float32, torch.bfloat16)
    for dtype in dtypes:
        query, caches = given["query"].to(dtype), [cache.to(dtype) for cache in given["caches"]]
        sdk.tree_attention(query, *caches, tree, *where, backend="triton")


def timed(device: Device) -> None:
    """Some cases of the tables of times, once."""
    from . import times_attention, times_verify

    cases = [*times_verify.cases(device.real), *times_attention.cases(device.real)]
    for case in cases if not device.real else [case for case in cases if case.name in PROFILED]:
        case.prepare(device).call()


PROFILED = [f"{name}, B = 8" for name in ("token", "traversal", "match", "token, top-k 50, top-p 0.9")]
PROFILED += ["token, top-p 0.95, flat rows, B = 8", "tree of 64, WITHOUT_REPLACEMENT, B = 1"]
PROFILED += [f"32/8/128, B = 8, N = {nodes}, 8192" for nodes in (1, 8, 64)]
PROFILED += ["32/1/128, B = 1, N = 1, 8192", "MLA 16/1/576, B = 1, N = 1, 8192"]
WORKLOADS: dict[str, Callable[[Device], Any]] = {"every operator": every_operator, "timed": timed}
