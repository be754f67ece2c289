# SPDX-License-Identifier: Apache-2.0
"""What parts ask of a GPU: `card.py` has one, and `emulated.py` its stand-in for dry runs."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).parents[2]
Call = Callable[[], Any]


@dataclass(frozen=True)
class Launch:
    """A kernel as it was launched."""

    name: str
    grid: tuple[int, ...]
    threads: int  # of a block
    registers: int  # of a thread
    seconds: float

    def __str__(self) -> str:
        registers = f" {self.registers}r" if self.registers else ""
        return f"{self.name} {'x'.join(map(str, self.grid))} x {self.threads}t{registers}"


def form(launches: Sequence[Launch]) -> str:
    """Which kernels were launched, and how: what every figure says of itself."""
    return "; ".join(map(str, launches)) or "unknown"


def tensors(value: Any) -> list[torch.Tensor]:
    """Those of a result, in order."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def same_bits(a: Any, b: Any) -> bool:
    """NaN equals NaN."""
    return all(
        x.shape == y.shape and torch.equal(x.contiguous().view(torch.uint8), y.contiguous().view(torch.uint8))
        for x, y in zip(tensors(a), tensors(b), strict=True)
        if x.numel() or y.numel()
    )


class Device:
    """`real` is False where figures are made up."""

    real: bool
    kind: str  # of torch's devices
    name: str

    def put(self, value: Any) -> Any:
        """A copy here of tensors on the host, and of whatever holds some."""
        from device import Crossing  # of the tests

        return Crossing("cpu", self.kind)(value)

    def facts(self) -> dict[str, Any]:
        """Name, processors, memory, versions."""
        raise NotImplementedError

    def synchronize(self) -> None:
        """Waits for all that was launched."""

    def graph(self, call: Call) -> tuple[Call, Any]:
        """Captures a call: what replays it, and the result that every replay fills."""
        raise NotImplementedError

    def seconds(self, call: Call, cold: bool = False) -> float:
        """The median time of a captured call; `cold`: after the L2 cache was overwritten."""
        raise NotImplementedError

    def eager_seconds(self, call: Call) -> float:
        """The median time of a call that cannot be captured, with the L2 cache overwritten before."""
        raise NotImplementedError

    def launches(self, call: Call) -> list[Launch]:
        """What a call launches."""
        raise NotImplementedError

    def no_synchronisation(self) -> contextlib.AbstractContextManager[None]:
        """Inside, a call that would wait for the device raises."""
        raise NotImplementedError

    def together(self, calls: Sequence[Call]) -> list[Any]:
        """Results of calls, each on a stream of its own."""
        raise NotImplementedError

    def thrash(self) -> None:
        """Keeps another stream busy for a while, with more memory than the caches hold."""

    def host_seconds(self, call: Call) -> float:
        """The median time after which an eager call returns."""
        raise NotImplementedError

    def which(self, tool: str) -> str | None:
        """The path of a tool, if it is here."""
        return shutil.which(tool) or shutil.which(tool, path="/usr/local/cuda/bin")

    def tool(self, command: Sequence[str], workload: str) -> tuple[int, str]:
        """Runs a workload under a tool: its exit status and what was printed."""
        raise NotImplementedError


def open_device(dry: bool) -> Device:
    """The card, or for a dry run the emulator."""
    from .card import Card
    from .emulated import Emulated

    return Emulated() if dry else Card()
