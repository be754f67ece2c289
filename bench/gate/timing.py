# SPDX-License-Identifier: Apache-2.0
"""Cases timed one after another beside others' kernels, and the roof, which is measured on the card."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from .device import Call, Device, form
from .parts import Gate


@dataclass(frozen=True)
class Prepared:
    """A case on the device: what is timed, the bytes and products that it needs, and others' ways."""

    call: Call
    bytes: float
    flops: float = 0.0
    peers: Sequence[Peer] = ()


@dataclass(frozen=True)
class Peer:
    """Another way to the same result, and the package that it needs."""

    name: str
    prepare: Callable[[], Call]
    needs: str = "torch"


@dataclass(frozen=True)
class Timed:
    name: str
    prepare: Callable[[Device], Prepared]

    def __str__(self) -> str:
        return self.name


@dataclass
class Roof:
    """Rates measured on the card, per second."""

    bytes: float
    flops: float
    start: float  # seconds of an empty kernel, cold: what every cold time contains

    @staticmethod
    def measure(device: Device) -> Roof:
        large, side = (1 << 28, 8192) if device.real else (1 << 10, 16)
        source = torch.zeros(large, device=device.kind, dtype=torch.int32)
        target = torch.empty_like(source)
        square = torch.zeros(side, side, device=device.kind, dtype=torch.bfloat16)
        one = source[:1]
        return Roof(
            2 * source.nbytes / device.seconds(partial(torch.add, source, 1, out=target)),
            2 * side**3 / device.seconds(lambda: square @ square),
            device.seconds(lambda: one.add_(1), cold=True),
        )

    def ideal(self, case: Prepared) -> float:
        """Seconds, by memory or by products, whichever takes longer."""
        return max(case.bytes / self.bytes, case.flops / self.flops)


def measure(gate: Gate, cases: Sequence[Timed]) -> dict[str, float]:
    """Times cases beside their peers, a row each; microseconds by name, cold, and "NAME ideal"."""
    gate.each(compile_kernels, cases)
    record, roof = gate.record, Roof.measure(gate.device)
    record.row(
        "the roof",
        **{
            "copy, TB/s": roof.bytes / 1e12,
            "bfloat16 product, TFLOP/s": roof.flops / 1e12,
            "a graph of one empty kernel, us": roof.start * 1e6,
        },
    )
    if not h100(gate.device):
        record.note("Marks in microseconds are meant for an H100, and are not judged here.")
    known: dict[str, float] = {}
    absent: dict[str, str] = {}
    for case in cases:
        try:
            known |= measure_case(gate, case, roof, absent)
        except Exception as error:  # such as too little memory
            record.check(case.name, False, f"{type(error).__name__}: {error}")
    for peer, needs in absent.items():
        record.missing(peer, f"{needs} is not installed")
    return known


def compile_kernels(gate: Gate, case: Timed) -> None:
    """Those of all cases at once: in the process that times them they are only loaded."""
    case.prepare(gate.device).call()
    gate.device.synchronize()


def measure_case(gate: Gate, case: Timed, roof: Roof, absent: dict[str, str]) -> dict[str, float]:
    device, ready = gate.device, case.prepare(gate.device)
    cold, warm = (device.seconds(ready.call, cold) * 1e6 for cold in (True, False))
    ideal = roof.ideal(ready) * 1e6
    row: dict[str, Any] = {"cold us": cold, "warm us": warm, "MB": ready.bytes / 1e6, "ideal us": ideal}
    row["x ideal"] = cold / ideal
    losses = []
    for peer in ready.peers:
        if not importlib.util.find_spec(peer.needs):
            absent[peer.name] = peer.needs
            continue
        time = peer_time(gate, case.name, peer)
        row[f"{peer.name} us"] = time or "-"
        if time and time < cold and device.real:  # made-up times lose to nobody
            losses.append(f"{peer.name} takes {time / cold:.2f} of the time")
    kernels = device.launches(ready.call)
    gate.record.row("times", case=case.name, **row, loss="; ".join(losses), form=form(kernels))
    return {case.name: cold, f"{case.name} ideal": ideal}


def peer_time(gate: Gate, case: str, peer: Peer) -> float | None:
    """Microseconds, cold; captured where that is possible, else eager."""
    device = gate.device
    try:
        with torch.device(device.kind):
            call = peer.prepare()
            call()
            if not synchronises(device, call):
                return device.seconds(call, cold=True) * 1e6
            gate.record.note(f"{case}: {peer.name} waits for the device: its time is that of an eager call.")
            return device.eager_seconds(call) * 1e6
    except Exception as error:  # of another project's code: it is named, and the others are timed
        said = str(error).strip().splitlines()
        return gate.record.missing(f"{case}: {peer.name}", f"{type(error).__name__}: {' '.join(said[:1])}")


def synchronises(device: Device, call: Call) -> bool:
    """What does cannot be captured, and a failed capture would spoil the generator of random numbers."""
    try:
        with device.no_synchronisation():
            call()
    except RuntimeError:
        return True
    return False


def h100(device: Device) -> bool:
    """Whether bounds in microseconds are meant for this card."""
    return not device.real or "H100" in device.name or "H200" in device.name
