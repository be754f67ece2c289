# SPDX-License-Identifier: Apache-2.0
"""A model of time: what a launch would take on a card if the assumptions of docs/gpu_model.md hold.

Pure functions of the facts of a launch and of a card. Nothing here was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from .cards import Card

LATENCIES = (250.0, 750.0)  # cycles of a load of a row with which chains are reckoned
GAP = 1.3e-6  # seconds between two launches of a captured graph: an estimate
START = 300.0  # cycles until a program runs its first instruction and its place is free again: an estimate
PORT = 64  # bytes a cycle between a processor and the second-level cache
ACHIEVED = {"dram": 0.9, "l2": 0.8, "issue": 0.8}  # shares of the peaks that good kernels reach
KEPT = 0.6  # share of the second-level cache in which what one launch has read is still there for the next


@dataclass(frozen=True)
class Facts:
    """Of a launch, whatever the card but for its instruction set. Counts are of the whole launch."""

    name: str
    programs: int
    warps: int  # of a program
    registers: int  # of a thread
    shared: int  # bytes of a program
    pipes: Mapping[str, float]  # warp instructions, `issue` all of them
    chain: tuple[float, float]  # cycles of the average program alone, with each of LATENCIES
    longest: tuple[float, float]  # of the longest one
    new: int  # distinct bytes read that no launch of the operation has touched before
    again: int  # distinct bytes read that one has
    written: int  # distinct bytes
    requested: int  # bytes of the sectors asked for, by warps

    def times(self, share: float) -> Facts:
        """As much of everything, as of `share` times the requests; programs stay as long as they are."""
        pipes = {name: share * count for name, count in self.pipes.items()}
        bytes_ = {name: int(share * getattr(self, name)) for name in ("new", "again", "written", "requested")}
        return replace(self, programs=math.ceil(share * self.programs), pipes=pipes, **bytes_)


@dataclass(frozen=True)
class Time:
    """Seconds of a launch, and of what it would take if one thing alone bounded it."""

    name: str
    parts: Mapping[str, float]

    @property
    def seconds(self) -> float:
        return GAP + max(self.parts.values())

    @property
    def bound(self) -> str:
        return max(self.parts, key=self.parts.__getitem__)


def resident(facts: Facts, card: Card) -> int:
    """Programs that a processor holds at once."""
    granted = -(-max(facts.registers, 16) * 32 // 256) * 256 * facts.warps
    blocks = min(card.blocks, card.warps // facts.warps, card.registers // granted)
    return max(1, min(blocks, card.shared // (facts.shared + 1024)))


def latency(cycles: tuple[float, float], of_load: float) -> float:
    """Cycles of a chain, between those reckoned with LATENCIES."""
    near, far = LATENCIES
    return cycles[0] + (cycles[1] - cycles[0]) * (of_load - near) / (far - near)


def launch_time(facts: Facts, card: Card, kept: bool) -> Time:
    """kept: what earlier launches of the operation touched is still in the second-level cache."""
    busiest = math.ceil(facts.programs / card.processors)  # programs of the processor with most
    share = busiest / facts.programs  # of the launch, that this processor does
    waves = math.ceil(busiest / resident(facts, card))
    dram = facts.new + (0 if kept else facts.again + facts.written)
    far = facts.new + (0 if kept else facts.again)
    missing = min(1.0, far / max(facts.requested, 1))  # share of what is asked for
    load = card.l2_latency + (card.dram_latency - card.l2_latency) * missing
    chain, longest = latency(facts.chain, load) + START, latency(facts.longest, load) + START
    parts = {"latency": card.seconds((waves - 1) * chain + longest)}
    for pipe, count in facts.pipes.items():
        parts[pipe] = card.seconds(count * share / card.rates[pipe] / ACHIEVED["issue"])
    parts["port"] = card.seconds(facts.requested * share / PORT)
    parts["l2"] = facts.requested / (card.l2 * 1e9 * ACHIEVED["l2"])
    parts["dram"] = dram / (card.dram * 1e9 * ACHIEVED["dram"])
    return Time(facts.name, parts)


def operation_times(launches: Sequence[Facts], card: Card) -> list[Time]:
    """Of the launches of an operation, one after another. What it reads is in DRAM when it begins."""
    footprint = sum(facts.new + facts.written for facts in launches)
    kept = footprint <= KEPT * card.l2_bytes
    return [launch_time(facts, card, kept) for facts in launches]


def seconds(launches: Sequence[Facts], card: Card) -> float:
    return sum(time.seconds for time in operation_times(launches, card))
