# SPDX-License-Identifier: Apache-2.0
"""What this machine can do at best: rates that every time of a run can be compared with."""

from __future__ import annotations

import torch

from .suite import Rounds
from .timing import interleave

READ_BYTES = 256 << 20  # more than any cache holds
SQUARE = 1024
NAMES = {"read": "reads {:.1f} GB/s", "float32": "float32 products {:.0f} GFLOP/s"}
NAMES |= {"bfloat16": "bfloat16 products {:.0f} GFLOP/s"}


def measure(threads: int, rounds: Rounds) -> dict[str, float]:
    """Bytes read, and operations of PyTorch's matrix products in two dtypes, in 10^9 a second."""
    torch.set_num_threads(threads)
    data, square = torch.ones(READ_BYTES // 4), torch.randn(SQUARE, SQUARE)
    half = square.bfloat16()
    runs = {
        "read": lambda _: data.sum(),
        "float32": lambda _: square @ square,
        "bfloat16": lambda _: half @ half,
    }
    seconds = interleave(runs, 1, rounds).medians
    work = {"read": READ_BYTES, "float32": 2 * SQUARE**3, "bfloat16": 2 * SQUARE**3}
    return {name: work[name] / seconds[name] / 1e9 for name in runs}


def describe(roofs: dict[str, dict[str, float]]) -> str:
    """One sentence for each number of threads."""
    return " ".join(
        f"Roofs of this machine, {threads} thread{'s' * (threads != '1')}: "
        f"{', '.join(text.format(rates[name]) for name, text in NAMES.items())}."
        for threads, rates in roofs.items()
    )
