# SPDX-License-Identifier: Apache-2.0
"""What is here, and how long the first calls take."""

from __future__ import annotations

import importlib.util
import os
import platform
import time
from importlib import metadata

import torch

import specdec_kernels as sdk

from . import oracle, problems
from .device import form
from .parts import Gate

PACKAGES = ("torch", "triton", "numpy", "flashinfer-python", "vllm", "sglang", "sgl-kernel")
TOOLS = ("compute-sanitizer", "ncu", "nvcc", "g++")


def run(gate: Gate) -> None:
    record, device = gate.record, gate.device
    known = {distribution.name: distribution.version for distribution in metadata.distributions()}
    facts = {"python": platform.python_version(), "cores": os.cpu_count()} | device.facts()
    facts |= {name: known.get(name, "not here") for name in PACKAGES}
    facts |= {name: device.which(name) or "not here" for name in TOOLS}
    facts["pybind11"] = "here" if importlib.util.find_spec("pybind11") else "that of torch"
    for fact, value in facts.items():
        record.row("facts", fact=fact, value=value)

    record.note("Triton's cache was " + ("as it is: nothing started cold." if gate.dry else "empty."))
    torch.zeros(1, device=device.kind).add_(1)  # the context of the device is no matter of ours
    device.synchronize()
    vocab, rule = (128256, "token") if device.real else (69, "match")
    given = device.put(problems.verify("chain", vocab))
    for cuts in ("no cuts", "top-k 50, top-p 0.9"):
        options = dict(sampling=problems.CUTS[cuts], rule=rule, backend="triton")
        wall, cpu = time.perf_counter(), time.process_time()
        sdk.verify(**given, **options)
        device.synchronize()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        record.row(
            "the first call",
            call=f"verify, {rule}, {cuts}",
            seconds=round(wall, 2),
            **{"CPU seconds": round(cpu, 2)},
            form=form(device.launches(lambda o=options: sdk.verify(**given, **o))),
        )
    for text in sdk.explain().splitlines():
        record.note(text)
    backend, why = oracle.backend()
    record.row("facts", fact="oracle", value=f"{backend}: {why}")
    found = sdk.verify(**given, sampling=problems.PLAIN, rule=rule, backend="triton")
    record.check("verify runs on the device", found.tokens.device.type == device.kind)
