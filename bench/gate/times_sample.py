# SPDX-License-Identifier: Apache-2.0
"""sample from bfloat16 rows of 131072 tokens: the sizes of published tables of top-k and top-p."""

from __future__ import annotations

from functools import partial

import torch

import specdec_kernels as sdk

from . import problems
from .device import Device
from .parts import Gate
from .peers import sample_peers
from .timing import Prepared, Timed, measure

CUTS = ("no cuts", "top-k 50, top-p 0.9", "top-p 0.95")


def cases(real: bool) -> list[Timed]:
    sizes, cuts, vocab = ((1, 64, 128), CUTS, 131072) if real else ((3,), CUTS[:1], 69)
    return [
        Timed(f"{name}, {rows} rows", partial(build, law=name, rows=rows, vocab=vocab))
        for name in cuts
        for rows in sizes
    ]


def run(gate: Gate) -> None:
    measure(gate, cases(not gate.dry))


def build(device: Device, law: str, rows: int, vocab: int) -> Prepared:
    g = torch.Generator(device.kind).manual_seed(rows)
    dtype = torch.bfloat16 if device.real else torch.float32
    logits = torch.randn(rows, vocab, generator=g, device=device.kind, dtype=dtype) * 2
    keys = {name: torch.arange(rows, device=device.kind) for name in ("seeds", "positions")}
    sampling = problems.CUTS[law]
    return Prepared(
        lambda: sdk.sample(logits, sampling, **keys, backend="triton"),
        logits.nbytes,
        peers=sample_peers(sampling, logits),
    )
