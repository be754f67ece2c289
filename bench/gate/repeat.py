# SPDX-License-Identifier: Apache-2.0
"""The same bits, however busy the card is."""

from __future__ import annotations

import torch

from .agree_attention import TINY, WIDE
from .device import form
from .parts import Gate


def run(gate: Gate) -> None:
    from attention_cases import make

    rounds = 2 if gate.dry else 10_000
    options, sizes = (TINY["float32"], (3,)) if gate.dry else (WIDE, (16, 32))  # tiles of 64 and of 128 rows
    for nodes in sizes:
        prefixes = [9, 0] if gate.dry else [1500, 700]
        problem = make(seed=nodes, prefixes=prefixes, nodes=[nodes] * 2, **options)
        problem.arguments = gate.device.put(problem.arguments)
        first = problem.run("triton")
        wrong = torch.zeros((), dtype=torch.int64, device=gate.device.kind)
        for number in range(rounds):
            if number % 20 == 0:
                gate.device.thrash()
            out, lse = problem.run("triton")
            wrong += (out != first[0]).any() | (lse != first[1]).any()
        wrong = int(wrong)
        rows = nodes * options["group"]
        gate.record.check(
            f"{rounds} attentions of {rows} rows beside a stream that empties the caches",
            not wrong and first[0].isfinite().all(),
            f"{wrong} differ; {form(gate.device.launches(lambda p=problem: p.run('triton')))}",
        )
