# SPDX-License-Identifier: Apache-2.0
"""The parts of the gate, in order of risk."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from .device import Device, open_device
from .processes import Ended, Send, spread
from .record import Record


@dataclass(frozen=True)
class Part:
    name: str
    module: str
    title: str
    seconds: float  # after which it is stopped


@dataclass
class Gate:
    """What a part works with."""

    record: Record
    folder: Path  # for what it writes
    dry: bool

    @cached_property
    def device(self) -> Device:
        """Opened when first asked for: what a process that has opened a card forks cannot use it."""
        return open_device(self.dry)

    def each(self, check: Callable[[Gate, Any], None], groups: Sequence[Any]) -> None:
        """`check(gate, group)` for all groups, each in a process of its own: their kernels are compiled at
        the same time, and a fault on the card ends one group alone."""

        def begin(group: Any, send: Send) -> None:
            torch.set_num_threads(1)  # of the oracle: all groups run at once
            check(Gate(Record(self.record.part, send, self.record.judged), self.folder, self.dry), group)

        at_once = 1 if self.dry else min(os.cpu_count() or 1, 16)
        for group, message in spread(begin, groups, at_once):
            if not isinstance(message, Ended):
                self.record.send(message)
            elif message.state != "done":
                self.record.check(str(group), False, f"{message.state}: {message.last_line}")


PARTS = (
    Part("start", "start", "Versions, and the first calls with an empty cache", 120),
    Part("forms", "forms", "Every form of every kernel compiled", 150),
    Part("agree-verify", "agree_verify", "verify equals the oracle", 210),
    Part("agree-attention", "agree_attention", "tree_attention is within its budget of float64", 60),
    Part("agree-caches", "agree_caches", "Commits and states", 60),
    Part(
        "agree-drafting",
        "agree_drafting",
        "sample, sample_children, n-grams and budgets equal the oracle",
        60,
    ),
    Part("sanitizer", "sanitizer", "compute-sanitizer finds nothing", 120),
    Part("graphs", "graphs", "Captured in a graph and replayed; two streams", 60),
    Part("repeat", "repeat", "The same bits under load", 60),
    Part("law", "law", "Draws follow the target's law", 60),
    Part("times-verify", "times_verify", "Times of verify", 120),
    Part("times-sample", "times_sample", "Times of sample", 40),
    Part("times-attention", "times_attention", "Times of tree_attention", 60),
    Part("times-commit", "times_commit", "Times of commit_kv", 30),
    Part("counters", "counters", "Counters of the hardware", 90),
    Part("host", "host", "Time of the host, compilations, a second card", 120),
)


def run(part: Part, dry: bool, folder: Path, send: Send) -> None:
    """One part, in this process."""
    gate = Gate(Record(part.name, send, judged=not dry), folder, dry)
    importlib.import_module(f".{part.module}", __package__).run(gate)
    send({"kind": "card", "name": gate.device.name})
