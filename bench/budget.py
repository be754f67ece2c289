# SPDX-License-Identifier: Apache-2.0
"""`python -m bench budget`: a step of `BatchBudget` on the CPU beside `Budget` and `Calibration`, which do
the same in Python. One thread; times of interleaved rounds of ten calls."""

from __future__ import annotations

import random
import time
from statistics import median

import torch

import specdec_kernels as sdk

BATCH, NODES, CALLS = 8, 32, 10
COSTS = {1: 1.0, 8: 1.45, 16: 2.05, 32: 3.0, 64: 4.2}
MOST = 100.0  # microseconds of `select` with weights and `update_` together


class Step:
    """Trees of a step, and what they did: the first two drafted tokens of each were accepted."""

    def __init__(self) -> None:
        choices = random.Random(0)
        self.parents = [[-1, *(choices.randrange(node) for node in range(1, NODES))] for _ in range(BATCH)]
        self.chances = [self._chances(parents, choices) for parents in self.parents]
        tokens, parents = torch.arange(BATCH * NODES).view(BATCH, NODES), torch.tensor(self.parents)
        self.tree = sdk.DraftTree.from_parents(tokens, parents)
        self.scores = torch.tensor(self.chances).log()
        self.slots, self.weights = torch.arange(BATCH), torch.ones(BATCH)
        self.path = [0, 1]
        path, count = torch.tensor([self.path] * BATCH).int(), torch.full((BATCH,), 2, dtype=torch.int32)
        self.verified = sdk.Verified(path.long(), count, count - 1, path, None, torch.zeros_like(count))
        self.selected: sdk.SelectedNodes
        self.device = sdk.BatchBudget(sdk.Budget(COSTS), BATCH, BATCH * NODES)
        self.host, self.calibrations = sdk.Budget(COSTS), [sdk.Calibration()] * BATCH

    @staticmethod
    def _chances(parents: list[int], choices: random.Random) -> list[float]:
        chances = [1.0]
        for parent in parents[1:]:
            chances.append(chances[parent] * choices.choice([0.3, 0.6, 0.9]))
        return chances

    def select(self) -> sdk.SelectedNodes:
        return self.device.select(self.tree, self.scores, slots=self.slots)

    def select_weighted(self) -> sdk.SelectedNodes:
        return self.device.select(self.tree, self.scores, slots=self.slots, weights=self.weights)

    def update(self) -> None:
        self.device.update_(self.selected, self.verified)

    def in_python(self) -> None:
        pairs = list(zip(self.calibrations, self.chances, self.parents, strict=True))
        kept = self.host.choose([each.believe(chances, parents) for each, chances, parents in pairs])
        for each, chances, parents in pairs:
            each.after(chances, parents, self.path)
        self.host.after(sum(map(len, kept)), [2] * BATCH)

    def check(self) -> None:
        """Both keep the same nodes."""
        ends = self.select().tree.cu_nodes.diff().tolist()
        kept = self.host.choose(self.chances)
        if ends != list(map(len, kept)):
            raise AssertionError(f"kept {ends} nodes, {list(map(len, kept))} in Python")


def main(quick: bool) -> int:
    torch.set_num_threads(1)
    step = Step()
    step.check()
    step.selected = step.select()
    calls = {
        "select": step.select,
        "select with weights": step.select_weighted,
        "update_": step.update,
        "Budget and Calibration": step.in_python,
        "torch.empty, to compare": lambda: torch.empty(NODES),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(4 if quick else 60):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(CALLS):
                call()
            times[name].append(1e6 * (time.perf_counter() - start) / CALLS)
    print(f"{BATCH} requests, trees of {NODES} nodes\n\n| | least, us | median, us |\n|---|---|---|")
    for name, values in times.items():
        print(f"| {name} | {min(values):.1f} | {median(values):.1f} |")
    least = min(times["select with weights"]) + min(times["update_"])
    print(f"\nA step takes {least:.0f} us at least, of {MOST:.0f}: {'ok' if least <= MOST else 'MISS'}.")
    return 0
