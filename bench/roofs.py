# SPDX-License-Identifier: Apache-2.0
"""What this machine can do at best: rates that every time of a run can be compared with."""

from __future__ import annotations

import torch

from .suite import Rounds
from .timing import interleave

READ_BYTES = 256 << 20  # more than any cache holds
SQUARE, QUICK_SQUARE = 1024, 256  # rows of a product; 1024 in bfloat16 take seconds without its instructions
ROUNDS, QUICK_ROUNDS = Rounds(5, 8.0), Rounds(1, 0.5, warmup=1)
NAMES = {"read": "reads {:.1f} GB/s", "float32": "float32 products {:.0f} GFLOP/s"}
NAMES |= {"bfloat16": "bfloat16 products {:.0f} GFLOP/s"}


def measure(threads: int, quick: bool = False) -> dict[str, float]:
    """Bytes read, and operations of PyTorch's matrix products in two dtypes, in 10^9 a second."""
    torch.set_num_threads(threads)
    size = QUICK_SQUARE if quick else SQUARE
    data, square = torch.ones(READ_BYTES // 4), torch.randn(size, size)
    half = square.bfloat16()
    runs = {
        "read": lambda _: data.sum(),
        "float32": lambda _: square @ square,
        "bfloat16": lambda _: half @ half,
    }
    seconds = interleave(runs, 1, QUICK_ROUNDS if quick else ROUNDS).medians
    work = {"read": READ_BYTES, "float32": 2 * size**3, "bfloat16": 2 * size**3}
    return {name: work[name] / seconds[name] / 1e9 for name in runs}


def describe(roofs: dict[str, dict[str, float]]) -> str:
    """One sentence for each number of threads."""
    return " ".join(
        f"Roofs of this machine, {threads} thread{'s' * (threads != '1')}: "
        f"{', '.join(text.format(rates[name]) for name, text in NAMES.items())}."
        for threads, rates in roofs.items()
    )
