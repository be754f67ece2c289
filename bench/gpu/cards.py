# SPDX-License-Identifier: Apache-2.0
"""What the model of time takes a card to be.

Sources: NVIDIA's whitepapers and data sheets of A100, H100 (SXM5) and B200 for clocks, processors, caches and
bandwidths; the table of arithmetic throughput in the CUDA C++ Programming Guide for rates; Luo et al.,
arXiv:2402.13499 and 2501.12084, for the latencies of A100 and H800. Figures without a public source are
estimates, and marked so.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    name: str
    arch: int
    processors: int
    clock: float  # GHz, under load
    dram: float  # GB/s, peak
    l2: float  # GB/s of reads that hit; estimates after published microbenchmarks
    l2_bytes: int
    l2_latency: float  # cycles
    dram_latency: float  # cycles
    rates: dict[str, float]  # warp instructions per cycle of a processor, by pipe
    warps: int = 64  # resident on a processor
    blocks: int = 32
    shared: int = 228 << 10
    registers: int = 65536

    def seconds(self, cycles: float) -> float:
        return cycles / (self.clock * 1e9)


# Lanes a cycle of a processor over 32. `issue` is what its four schedulers issue together, `tensor` counts
# products of 16 x 8 x 16 by mma.sync: an estimate on H100 and B200, whose peaks need wgmma and tcgen05.
AMPERE = {"issue": 4, "fma": 2, "imad": 2, "alu": 2, "special": 0.5, "double": 1, "memory": 1, "tensor": 0.5}
HOPPER = AMPERE | {"fma": 4, "double": 2, "tensor": 0.62}

A100 = Card("A100", 80, 108, 1.41, 2039, 4700, 40 << 20, 262, 466, AMPERE, shared=164 << 10)  # SXM4, 80 GB
H100 = Card("H100", 90, 132, 1.755, 3352, 5600, 50 << 20, 263, 479, HOPPER)  # SXM5
B200 = Card("B200", 100, 148, 1.85, 8000, 9000, 126 << 20, 320, 700, HOPPER)  # latencies: estimates

CARDS = (H100, A100, B200)
