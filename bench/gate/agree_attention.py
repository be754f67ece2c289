# SPDX-License-Identifier: Apache-2.0
"""tree_attention beside dense attention in float64, in units of its error budget."""

from __future__ import annotations

from typing import Any

import torch

from .device import same_bits
from .parts import Gate

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
WIDE = dict(heads=2, group=4, head=128, page_size=16, dtype=BF16)
KINDS: dict[str, dict[str, Any]] = {
    "bfloat16": WIDE,
    "float16": WIDE | dict(dtype=torch.float16),
    "float32": WIDE | dict(dtype=torch.float32, head=64),
    "fp8 cache": WIDE | dict(cache=FP8),
    "int8 cache": WIDE | dict(cache=torch.int8),
    "MLA": WIDE | dict(heads=1, group=16, head=576, latent=512),
    "MLA, fp8 cache": WIDE | dict(heads=1, group=16, head=576, latent=512, cache=FP8),
    "window, soft cap, sinks": WIDE | dict(window=70, softcap=9.0, sinks=True),
    "new keys": WIDE | dict(new=True),
    "HND, head of 80": WIDE | dict(layout="HND", head=80),
}
TINY = {"float32": dict(heads=2, group=2, head=16, page_size=4)}


def run(gate: Gate) -> None:
    gate.each(check, list(TINY if gate.dry else KINDS))


def check(gate: Gate, kind: str) -> None:
    from attention_cases import excess, make

    prefixes, sizes = ([9, 0], (3,)) if gate.dry else ([1100, 0, 64, 300], (1, 8, 16, 64))
    options = (TINY if gate.dry else KINDS)[kind]
    for nodes in sizes:
        problem = make(seed=nodes, prefixes=prefixes, nodes=[nodes] * len(prefixes), **options)
        host, problem.arguments = problem.arguments, gate.device.put(problem.arguments)
        for deterministic in (False, True):
            first, again = (problem.run("triton", deterministic=deterministic) for _ in range(2))
            gate.device.synchronize()
            where = f"{kind}, N = {nodes}" + ", deterministic" * deterministic
            gate.record.check(f"{where}: the same bits twice", same_bits(first, again))
            got, device = [result.cpu() for result in first], problem.arguments
            problem.arguments = host
            rounded = host["query"].dtype if host["query"].dtype != torch.float32 else None
            error = excess(problem, got, weights=rounded)
            problem.arguments = device
            gate.record.check(where, error <= 1, f"{error:.3f} of the budget")
