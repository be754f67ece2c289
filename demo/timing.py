# SPDX-License-Identifier: Apache-2.0
"""Timing of the engine: what a step costs, and requests decoded in several ways, in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

import specdec_kernels as sdk

from .engine import Engine, Progress, Request, pages_for
from .llama import Batch, Llama, PagedCache
from .ways import MAX_NODES, Way

PAGE_SIZE = 16
MOST_ROWS = 512  # whose cost is asked for
ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 64)


@dataclass
class Run:
    """One engine at work on all requests. Reading their prompts is not timed."""

    engine: Engine
    requests: list[Request]
    steps: list[list[Progress]] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        for request in self.requests:
            self.engine.add(request)

    @property
    def written(self) -> int:
        return sum(len(request.tokens) for request in self.requests)

    @property
    def texts(self) -> list[list[int]]:
        return [request.tokens for request in self.requests]

    def advance(self) -> None:
        self.engine.admit()
        start = time.perf_counter()
        self.steps.append(self.engine.step())
        self.seconds += time.perf_counter() - start

    def progress(self, request: Request) -> list[Progress]:
        return [progress for step in self.steps for progress in step if progress.request is request]


Race = dict[str, Run]  # of the same requests, by way


def rates(requests: Iterable[Sequence[Race]], ways: Iterable[str] | None = None) -> dict[str, float]:
    """Tokens per second of each way, or of some ways: over the rounds of every request the median time."""
    rounds = list(requests)
    return {
        way: sum(races[0][way].written for races in rounds)
        / sum(statistics.median(race[way].seconds for race in races) for races in rounds)
        for way in (rounds[0][0] if ways is None else ways)
    }


@torch.inference_mode()
def step_costs(model: Llama, repeats: int = 5, sizes: Sequence[int] = ROWS) -> sdk.CostCurve:
    """The cost of a step by the number of rows it feeds to the model, from a few steps of every size."""
    prefix = 256
    pages = pages_for(prefix + max(sizes), PAGE_SIZE)
    cache = PagedCache(model.shape, pages, PAGE_SIZE)
    table = torch.arange(pages, dtype=torch.int32).unsqueeze(0)
    prefix_lens = torch.tensor([prefix], dtype=torch.int32)

    def seconds(rows: int) -> float:
        drafted = torch.arange(rows - 1).unsqueeze(0)
        tree = sdk.DraftTree.chain(drafted, proposal=sdk.Proposal.POINT)
        tree.tokens.clamp_(min=0)  # the root's, which is read here
        start = time.perf_counter()
        logits = model.logits(model.forward(Batch(tree, table, prefix_lens), cache))
        sdk.verify(logits, tree, sampling=sdk.SamplingParams(temperature=0.0))
        return time.perf_counter() - start

    for rows in sizes:
        seconds(rows)
    curve = sdk.CostCurve({1: 1.0, MOST_ROWS: 1.0 + MOST_ROWS / 16}, MOST_ROWS)
    # Each size is measured between steps over one row, so that passing load hits both.
    for _ in range(repeats):
        for rows in sizes[1:]:
            curve.observe(1, seconds(1))
            curve.observe(rows, seconds(rows))
    return curve


def race(
    model: Llama,
    eos_id: int,
    ways: Mapping[str, Way],
    requests: Sequence[dict[str, Any]],
    at_once: int,
    on_step: Callable[[str, list[Progress]], object] | None = None,
) -> Race:
    """Decode the requests in every way. The ways advance in turn, whichever has written less.

    The pool holds the first `at_once` of the requests; the others join as pages come free.
    """
    runs = {}
    for name, way in ways.items():
        fresh = [Request(**request) for request in requests]
        slots = [request.most_slots + MAX_NODES for request in fresh]
        pages = max(sum(pages_for(n, PAGE_SIZE) for n in slots[:at_once]), pages_for(max(slots), PAGE_SIZE))
        engine = Engine(
            model,
            way.draft,
            rule=way.rule,
            eos_id=eos_id,
            pages=pages,
            page_size=PAGE_SIZE,
            max_nodes=MAX_NODES,
            observe=way.observe,
        )
        runs[name] = Run(engine, fresh)
    while busy := [name for name, run in runs.items() if run.engine.running or run.engine.waiting]:
        name = min(busy, key=lambda name: runs[name].written)
        runs[name].advance()
        if on_step is not None:
            on_step(name, runs[name].steps[-1])
    return runs
