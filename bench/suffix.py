# SPDX-License-Identifier: Apache-2.0
"""`python -m bench suffix`: tokens per second, bytes for each token and drafts of `SuffixIndex`, beside
`ngram_tree` on the same text. CPU time of one thread, medians of interleaved rounds."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch

import specdec_kernels as sdk
from specdec_kernels.drafting.ngram import TRUST

VOCAB, NODES, BATCH, STEP = 32_000, 32, 8, 6


def text(size: int, seed: int) -> torch.Tensor:
    """Random phrases of 5 to 40 tokens, which come again as often as words do."""
    random = np.random.default_rng(seed)
    phrases = [random.integers(VOCAB, size=random.integers(5, 41)) for _ in range(2000)]
    ranks = np.minimum(random.zipf(1.2, size=size // 5 + 1), len(phrases)) - 1
    return torch.from_numpy(np.concatenate([phrases[rank] for rank in ranks])[:size].copy())


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def main(quick: bool) -> int:
    torch.set_num_threads(1)
    size, rounds = (20_000, 3) if quick else (100_000, 9)
    corpus = text(size * 10, 0).numpy().astype(np.int32)
    context, running = text(size, 1), text(size // BATCH * BATCH, 2).view(BATCH, -1)
    context[-12:] = context[:12]  # which is found again, so that the draft is full
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        bytes_each = one_round(corpus, context, running, times)
    print("| | us |\n|---|---|")
    for name, values in times.items():
        print(f"| {name} | {1e6 * median(values):.3g} |")
    print("\nBytes for each token: corpus {:.1f}, texts {:.1f}.".format(*bytes_each))
    return 0


def search(index: sdk.SuffixIndex, request: int) -> Callable[[], object]:
    """100 native calls, which make arrays and no tensors."""
    trust = list(TRUST)

    def call() -> None:
        for _ in range(100):
            index._native.draft(1, [request], NODES, NODES - 1, 64, 2, trust)

    return call


def one_round(
    corpus: np.ndarray, context: torch.Tensor, running: torch.Tensor, times: dict[str, list[float]]
) -> tuple[float, float]:
    """Adds seconds, of one token or draft each. Returns the bytes for each token."""
    static, live = sdk.SuffixIndex(), sdk.SuffixIndex()
    lengths, batch = torch.tensor([len(context)]), list(range(BATCH))
    for request in batch:
        live.add(request)

    def extend() -> None:
        for begin in range(0, running.shape[1], STEP):
            live.extend(batch, running[:, begin : begin + STEP])

    def drafts(requests: list[int]) -> Callable[[], object]:
        return lambda: [live.draft(requests, NODES) for _ in range(100)]

    calls: list[tuple[str, int, Callable[[], object]]] = [
        ("corpus, a token", len(corpus), lambda: static.load(corpus)),
        (f"texts of {BATCH} requests, {STEP} tokens of each a call, a token", running.numel(), extend),
        (f"a text of {len(context)} tokens, a token", len(context), lambda: live.add(BATCH, context)),
        (f"draft of {NODES} nodes for that text", 100, drafts([BATCH])),
        ("the search of that draft alone", 100, search(live, BATCH)),
        (f"a tensor of {NODES} numbers, to compare", 100, lambda: [torch.empty(NODES) for _ in range(100)]),
        (f"drafts of {NODES} nodes for {BATCH} requests", 100, drafts(batch)),
        (
            "ngram_tree, that text",
            3,
            lambda: [sdk.ngram_tree(context[None], lengths, NODES) for _ in range(3)],
        ),
    ]
    for name, count, call in calls:
        times.setdefault(name, []).append(seconds(call) / count)
    return static.nbytes / len(corpus), live.nbytes / (len(context) + running.numel())
