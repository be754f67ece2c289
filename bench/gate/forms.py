# SPDX-License-Identifier: Apache-2.0
"""Every kernel in every form that ships, compiled for this card by all processors of the host."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

import torch

from ..gpu import report, targets, variants
from .parts import Gate


def run(gate: Gate) -> None:
    record, device = gate.record, gate.device
    processor = _processor(device.facts()["capability"])
    calls = variants.calls() if device.real else itertools.islice(variants.commit_kv(), 2)
    kernels = targets.kernels(processor, calls)
    begin = time.monotonic()
    builds = targets.build_all(kernels)
    record.note(f"{len(kernels)} forms for {processor.name} in {time.monotonic() - begin:.1f} s.")
    compiled = list(zip(kernels, builds, strict=True))
    for name in sorted({kernel.name for kernel in kernels}):
        some = [build for kernel, build in compiled if kernel.name == name]
        record.row(
            "kernels",
            kernel=name,
            forms=len(some),
            registers=max(build.registers for build in some),
            **{
                "spilled bytes": max(build.spills for build in some),
                "shared KB": max(build.shared for build in some) / 1024,
                "occupancy": min(build.occupancy for build in some),
                "binary KB": max(build.binary for build in some) / 1024,
            },
        )
    broken = list(dict.fromkeys(report.broken_rules(compiled)))
    record.check("no spills; registers and shared memory within bounds", not broken, "; ".join(broken))


def _processor(capability: str) -> targets.Processor:
    """That of this card, or of the nearest one before it, under its own name."""
    if torch.version.hip:
        return targets.PROCESSORS[-1]
    arch = int(capability.replace(".", ""))
    known = [p for p in targets.PROCESSORS if p.target.backend == "cuda" and p.target.arch <= arch]
    if not known:
        raise RuntimeError(f"no kernel is made for capability {capability}")
    if known[-1].target.arch == arch:
        return known[-1]
    target = replace(known[-1].target, arch=arch)
    return replace(known[-1], name=f"sm_{arch}", target=target)
