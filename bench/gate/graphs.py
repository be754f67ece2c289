# SPDX-License-Identifier: Apache-2.0
"""A step of serving, captured once and replayed with other inputs, beside the same step run eagerly."""

from __future__ import annotations

from typing import Any

import torch

import specdec_kernels as sdk

from . import problems
from .device import Device, form, same_bits
from .parts import Gate

RULE = "traversal"


class Step:
    """verify, then commit_kv, then tree_attention over the caches as they are then."""

    def __init__(self, device: Device, seed: int, vocab: int, rule: str):
        self.given = device.put(problems.verify("point", vocab, seed=seed))
        self.caches, self.rule = device.put(problems.caches(seed)), rule
        self.plan = sdk.CachePlan(self.caches["caches"], page_size=4)

    def inputs(self) -> list[torch.Tensor]:
        """What changes from step to step."""
        given, caches = self.given, self.caches
        first = [given[name] for name in ("target_logits", "draft_logits", "seeds", "positions")]
        rest = [caches[name] for name in ("query", "block_table", "prefix_lens")]
        return [*first, given["tree"].tokens, *rest, *caches["caches"]]

    def load(self, other: Step, number: int) -> None:
        for mine, new in zip(self.inputs(), other.inputs(), strict=True):
            mine.copy_(new)
        self.given["seeds"].add_(number)

    def __call__(self) -> Any:
        sampling = problems.PLAIN
        verified = sdk.verify(**self.given, sampling=sampling, rule=self.rule, backend="triton")
        where = (self.caches["block_table"], self.caches["prefix_lens"])
        tree = self.given["tree"]
        committed = sdk.commit_kv(self.plan, verified, tree, *where, backend="triton")
        out = sdk.tree_attention(self.caches["query"], *self.caches["caches"], tree, *where, backend="triton")
        return tuple(verified), tuple(committed), out


def run(gate: Gate) -> None:
    device, record = gate.device, gate.record
    vocab, replays, rule = (69, 3, "match") if gate.dry else (32000, 1000, RULE)
    captured, eager = (Step(device, 0, vocab, rule) for _ in range(2))
    captured()  # compiled
    device.synchronize()
    with device.no_synchronisation():
        captured()
        replay, result = device.graph(captured)
    record.row("captured, synchronisation being an error", step=rule, form=form(device.launches(captured)))
    others, wrong = [Step(device, seed, vocab, rule) for seed in range(1, 3 if gate.dry else 9)], []
    for number in range(replays):
        for step in (captured, eager):
            step.load(others[number % len(others)], number)
        replay()
        expected = eager()
        if not same_bits((result, captured.inputs()), (expected, eager.inputs())):
            wrong.append(number)
    record.check(
        f"{replays} replays have the bits of eager steps", not wrong, f"{len(wrong)} differ: {wrong[:9]}"
    )
    two_streams(gate, others[:2], replays // 10 or 1)
    tree_of_paths(gate)


def tree_of_paths(gate: Gate) -> None:
    """A tree of a static topology is made on the device: its paths were copied there before the capture."""
    device = gate.device
    tokens = device.put(torch.arange(8).view(2, 4))
    paths = [(0,), (1,), (0, 0)]
    replay, parents = device.graph(lambda: sdk.DraftTree.from_paths(tokens, paths, check=False).parents)
    replay()
    gate.record.check("from_paths is captured", parents.tolist() == [-1, 0, 0, 1] * 2)


def two_streams(gate: Gate, steps: list[Step], rounds: int) -> None:
    """Steps share no memory, so what they return does not depend on what runs beside them."""
    inputs = [[each.clone() for each in step.inputs()] for step in steps]

    def restore() -> None:
        for step, kept in zip(steps, inputs, strict=True):
            for mine, old in zip(step.inputs(), kept, strict=True):
                mine.copy_(old)

    alone = [step() for step in steps]
    gate.device.synchronize()
    wrong = 0
    for _ in range(rounds):
        restore()
        wrong += not same_bits(gate.device.together(steps), alone)
    gate.record.check("two streams at once", not wrong, f"{wrong} of {rounds} rounds differ")
