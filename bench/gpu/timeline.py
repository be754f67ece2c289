# SPDX-License-Identifier: Apache-2.0
"""How many cycles each program of a launch waits and issues: a scoreboard beside the emulator.

A warp issues its instructions in order, each when its operands are there. A result is there after the
latency of its instruction. Loads of rows are reckoned with each of `LATENCIES` at once, so that `model` can
interpolate to the latency of a card. Within a block instructions are sorted as an assembler would sort them,
loads as early as their addresses are known. Nothing else runs on the processor; what programs take from each
other there is the model's part.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ptx_emulator.counts import Tally
from ptx_emulator.program import Action, Block, Program

if TYPE_CHECKING:
    from ptx_emulator.machine import Batch, Group

from . import sass
from .model import LATENCIES

TARGET = 90  # whose machine code says how many instructions an instruction of PTX becomes
ALONE, SHARED_ISSUE = 2.0, 1.25  # cycles between machine instructions of a warp; of warps of one scheduler
ALU, BRANCH, BARRIER = 5.0, 12.0, 30.0
SCHEDULERS = 4  # of a multiprocessor: so many warps issue side by side
SHARED, SHUFFLE, SPECIAL, DOUBLE, MATRIX = 30.0, 24.0, 24.0, 10.0, 34.0
DIVISION, WIDE_DIVISION, ATOMIC, ORDERED, FENCE = 40.0, 120.0, 400.0, 700.0, 300.0
FUNCTIONS = ("ex2", "lg2", "rcp", "sqrt", "rsqrt", "tanh", "sin", "cos")


def latency_of(name: str) -> float | None:
    """Cycles until the result of an instruction of PTX can be used; None: those of a load of a row."""
    opcode, *modifiers = name.split(".")
    wide = "f64" in modifiers
    if opcode in ("ld", "ldu", "atom", "red"):
        if "param" in modifiers:
            return ALU
        if "shared" in modifiers or "local" in modifiers:
            return SHARED if opcode.startswith("ld") else 2 * SHARED
        if opcode.startswith("ld"):
            return None if _reads_rows(modifiers) else LATENCIES[0]
        return ORDERED if {"acq_rel", "acquire", "release"} & set(modifiers) else ATOMIC
    if opcode in ("div", "rem", "sqrt", "rcp") and "approx" not in modifiers:
        return WIDE_DIVISION if wide else DIVISION
    if opcode in FUNCTIONS or (opcode == "cvt" and wide):
        return SPECIAL
    known = {"fence": FENCE, "membar": FENCE, "shfl": SHUFFLE, "redux": SHUFFLE, "vote": SHUFFLE}
    known |= {"mma": MATRIX, "ldmatrix": MATRIX}
    return known.get(opcode, DOUBLE if wide else ALU)


def _reads_rows(modifiers: list[str]) -> bool:
    """Whether a load is of rows or caches. Scalars of four or eight bytes are parameters, scratch and tables,
    which some program has brought to the second-level cache."""
    return bool({"v2", "v4", "v8"} & set(modifiers)) or modifiers[-1][1:] in ("8", "16")


class Cost(NamedTuple):
    """Of an instruction: the places of its operands and results, and when the results are there."""

    reads: tuple[int, ...]
    fills: tuple[int, ...]
    latency: float | None
    copy: str = ""  # "start", "commit" or "wait", of cp.async
    ahead: int = 0  # groups of copies that a wait leaves in flight

    @property
    def late(self) -> bool:
        """Whether a later block may have to wait for the results."""
        return self.latency is None or self.latency > ALU


@functools.lru_cache(maxsize=256)
def schedule(program: Program) -> list[list[Cost]]:
    """The instructions of each block in the order in which they are issued."""
    costs = [[_cost(program, action) for action in block.body] for block in program.blocks]
    late = {slot for block in costs for cost in block if cost.late for slot in cost.fills}
    return [_sorted(block, late) for block in costs]


def _cost(program: Program, action: Action) -> Cost:
    ins = action.ins
    fills = {program.slot(operand) for operand, _ in action.step.results if operand != "_"}
    copy, ahead = "", 0
    if ins.opcode == "cp":
        waits = ins.one_of("wait_group", "wait_all")
        copy = "wait" if waits else "commit" if "commit_group" in ins.modifiers else "start"
        ahead = int(ins.operands[0]) if waits == "wait_group" else 0
    return Cost(tuple(action.reads), tuple(fills), latency_of(ins.name), copy, ahead)


def _sorted(costs: list[Cost], late: set[int]) -> list[Cost]:
    """By the earliest cycle of each; what may be late as the block begins is expected a little later. Copies
    keep their order."""
    ready: dict[int, float] = {}
    starts, copied = [], 0.0
    for cost in costs:
        known = (ready.get(slot, 50.0 if slot in late else 0.0) for slot in cost.reads)
        start = max(known, default=0.0)
        if cost.copy:
            start = copied = max(start, copied)
        starts.append(start)
        ready.update(dict.fromkeys(cost.fills, start + (cost.latency or LATENCIES[0])))
    return [costs[place] for place in sorted(range(len(costs)), key=lambda place: (starts[place], place))]


Warps = slice | np.ndarray


class Copies:
    """When the groups of cp.async that warps have in flight arrive."""

    MOST = 8  # groups in flight

    def __init__(self, warps: int):
        self.open = np.zeros((len(LATENCIES), warps), np.float32)  # copies not yet committed
        self.groups = np.zeros((self.MOST, len(LATENCIES), warps), np.float32)  # the latest first

    def start(self, warps: Warps, there: np.ndarray) -> None:
        self.open[:, warps] = np.maximum(self.open[:, warps], there)

    def commit(self, warps: Warps) -> None:
        arriving = self.groups[..., warps]
        self.groups[..., warps] = np.concatenate([self.open[None, :, warps], arriving[:-1]])
        self.open[:, warps] = 0

    def arrival(self, warps: Warps, ahead: int) -> np.ndarray:
        return self.groups[ahead:, :, warps].max(0)


class Timeline(Tally):
    """Counts, and beside them how far each warp of a batch is."""

    def __init__(self, program: Program):
        super().__init__(program)
        self.costs = schedule(program)
        self.warps = program.kernel.threads // 32
        machine = len(sass.listing(program.ptx, TARGET)) / sum(map(len, self.costs))
        self.issue = machine * max(ALONE, SHARED_ISSUE * self.warps / SCHEDULERS)
        self.finished: list[np.ndarray] = []
        self.batch: Batch | None = None

    def enter(self, block: Block, group: Group) -> None:
        super().enter(block, group)
        if group.batch is not self.batch:
            self._begin(group.batch)
        elif group.batch.epoch != self.epoch:
            self._pass_barrier()
        whole = group.size == self.batch.threads
        warps = slice(None) if whole else np.unique(group.threads >> 5)
        self._run(block, warps)
        if block.exit == "barrier":
            self.waiting[warps] = True

    def _begin(self, batch: Batch) -> None:
        self._end()
        self.batch, self.epoch = batch, batch.epoch
        self.clock = np.zeros((len(LATENCIES), batch.threads // 32), np.float32)
        self.waiting = np.zeros(batch.threads // 32, bool)  # at a barrier
        self.ready: dict[int, np.ndarray] = {}  # when late registers are there, of all warps
        self.copies = Copies(batch.threads // 32)

    def _pass_barrier(self) -> None:
        """The warps of a program go on together."""
        self.epoch = self.batch.epoch
        shape = (-1, self.warps)
        opened = self.waiting.reshape(shape).any(1)
        by_program = self.clock.reshape(len(LATENCIES), *shape)
        by_program[:, opened] = by_program[:, opened].max(2, keepdims=True) + BARRIER
        self.waiting[:] = False

    def _end(self) -> None:
        if self.batch is not None:
            self.finished.append(self.clock.reshape(len(LATENCIES), -1, self.warps).max(2))

    def _run(self, block: Block, warps: Warps) -> None:
        now = self.clock[:, warps]
        begin = now
        local: dict[int, np.ndarray] = {}
        memory = np.array(LATENCIES, np.float32)[:, None]
        for cost in self.costs[block.index]:
            now = now + self.issue
            for slot in cost.reads:
                there = local.get(slot)
                if there is None and slot in self.ready:
                    local[slot] = there = self.ready[slot][:, warps]
                if there is not None:
                    now = np.maximum(now, there)
            if cost.copy:
                now = self._copy(cost, warps, now)
            there = now + (memory if cost.latency is None else cost.latency)
            for slot in cost.fills:
                local[slot] = there
                if cost.late:
                    self._keep(slot, warps, there)
                elif slot in self.ready:
                    self._keep(slot, warps, begin)
        if block.guard is not None and block.guard in local:
            now = np.maximum(now, local[block.guard])
        if block.exit == "branch":
            now = now + BRANCH
        self.clock[:, warps] = now

    def _copy(self, cost: Cost, warps: Warps, now: np.ndarray) -> np.ndarray:
        if cost.copy == "start":
            self.copies.start(warps, now + np.array(LATENCIES, np.float32)[:, None])
        elif cost.copy == "commit":
            self.copies.commit(warps)
        else:
            now = np.maximum(now, self.copies.arrival(warps, cost.ahead))
        return now

    def _keep(self, slot: int, warps: Warps, there: np.ndarray) -> None:
        if isinstance(warps, slice):
            self.ready[slot] = there
            return
        kept = self.ready.get(slot)
        kept = np.zeros_like(self.clock) if kept is None else kept.copy()
        kept[:, warps] = there
        self.ready[slot] = kept

    @functools.cached_property
    def programs(self) -> np.ndarray:
        """Cycles of each program, [latencies, programs]."""
        self._end()
        return np.concatenate(self.finished, 1)
