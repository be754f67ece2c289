# SPDX-License-Identifier: Apache-2.0
"""Runs programs: all threads of a batch of CTAs together, in groups of threads that stand at the same place.

A group executes a block as a whole. Where its threads disagree on a branch it splits, and groups that meet
merge again; the group that is furthest behind goes first. Barriers open when all threads of the batch that
have not returned wait at one.
"""

from __future__ import annotations

import math
from functools import cached_property, lru_cache

import numpy as np

from .asynchronous import AsyncCopies, AsyncProxy, joined
from .counts import Tally
from .errors import PTXError
from .memory import BASE, PROCESS, GlobalMemory, LocalMemory, Places, Races
from .program import Block, Program
from .source import NOBODY, function
from .values import TYPES, raw


@lru_cache(maxsize=64)
def thread_numbers(ctas: int, per_cta: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each thread of a batch: its number, its CTA, its number there."""
    thread = np.arange(ctas * per_cta)
    return thread, thread // per_cta, (thread % per_cta).astype(np.uint32)


class Batch:
    """CTAs that run together, and what they share."""

    def __init__(self, program: Program, ctas: int, shared: int, memory: GlobalMemory, races: bool):
        self.per_cta = program.kernel.threads
        self.ctas, self.threads = ctas, ctas * self.per_cta
        self.memory = memory
        self.shared = LocalMemory(ctas, shared, "shared")
        self.local = LocalMemory(self.threads, program.kernel.local_bytes, "local")
        self.copies = AsyncCopies(self.threads)
        self.epoch = 0  # barriers passed
        self.races = Races(ctas * self.shared.pitch) if races else None
        self.proxy = None
        if program.has_wgmma:
            self.proxy = AsyncProxy(self.threads, self.per_cta, ctas * self.shared.pitch)
        self.tally: Tally | None = None

    def barrier(self) -> None:
        """All threads have met."""
        self.epoch += 1
        if self.proxy:
            self.proxy.barrier()

    def check_race(self, thread: np.ndarray, place: np.ndarray, size: int, write: bool) -> None:
        if self.races:
            self.races.access(place, size, self.epoch, thread % self.per_cta >> 5, write)


class Group:
    """Threads of a batch, ascending, that stand before the same block."""

    def __init__(self, batch: Batch, threads: np.ndarray, registers: list, block: int):
        self.batch, self.threads, self.registers, self.block = batch, threads, registers, block
        self.size = len(threads)

    @cached_property
    def cta(self) -> np.ndarray:
        if self.size == self.batch.threads:
            return thread_numbers(self.batch.ctas, self.batch.per_cta)[1]
        return self.threads // self.batch.per_cta

    @cached_property
    def whole_warps(self) -> bool:
        if self.size % 32:
            return False
        if self.size == self.batch.threads:
            return True
        by_warp = self.threads.reshape(-1, 32)
        return bool(((by_warp[:, 0] & 31 == 0) & (by_warp[:, 31] - by_warp[:, 0] == 31)).all())

    @cached_property
    def warps(self) -> int:
        return self.size // 32 if self.whole_warps else len(np.unique(self.threads >> 5))

    def full(self, value: np.ndarray) -> np.ndarray:
        return value if value.ndim else np.full(self.size, value)

    def pick(self, value: np.ndarray, lanes: np.ndarray | None) -> np.ndarray:
        return value if lanes is None or value.ndim == 0 else value[lanes]

    def where(self, guard: np.ndarray) -> np.ndarray | None | object:
        """The lanes where a guard holds: None if everywhere."""
        if guard.ndim == 0:
            return None if guard else NOBODY
        lanes = guard.nonzero()[0]
        if len(lanes) == self.size:
            return None
        return lanes if len(lanes) else NOBODY

    def places(self, threads: np.ndarray) -> np.ndarray:
        """Where threads of the batch are in this group; -1 where they are not."""
        table = np.full(self.batch.threads, -1)
        table[self.threads] = np.arange(self.size)
        return table[threads]

    def tally(self, name: str, number: int) -> None:
        if self.batch.tally:
            self.batch.tally.counts[name] += number

    def reach(
        self,
        space: str,
        lanes: np.ndarray | None,
        address: np.ndarray,
        size: int,
        kind: str,
        pointers: frozenset[str] = frozenset(),
    ) -> Places:
        """Check and count accesses of `size` bytes by these lanes (kind: ld, st, atom; copy: a store that
        arrives later). One global address for all lanes is one place."""
        batch = self.batch
        if space == "global":
            chosen = self.pick(address, lanes).reshape(-1)
            batch.memory.check(chosen, size, pointers)
            if batch.tally:
                thread = self.pick(self.threads, lanes)
                every = np.broadcast_to(chosen, thread.shape)
                batch.tally.global_access(kind, size, every, thread >> 5)
            return PROCESS, chosen - BASE
        chosen, thread = self.pick(self.full(address), lanes), self.pick(self.threads, lanes)
        memory = getattr(batch, space)
        owner = self.pick(self.cta, lanes) if space == "shared" else thread
        found = memory.places(chosen, owner, size)
        if batch.tally:
            batch.tally.local_access(space, kind, size, len(thread))
        if space == "shared" and kind in ("ld", "st"):
            batch.check_race(thread, found, size, kind == "st")
        if space == "shared" and batch.proxy:
            if kind == "copy":
                batch.proxy.start(found)
            elif kind != "ld":
                batch.proxy.write(thread, found)
        return memory.bytes, found

    def part(self, chosen: np.ndarray, block: Block | None, index: int) -> Group:
        """Some of the threads, before another block, with the registers that it needs."""
        registers: list = [None] * len(self.registers)
        for slot in block.live if block else ():
            value = self.registers[slot]
            registers[slot] = value[chosen] if value.ndim else value
        return Group(self.batch, self.threads[chosen], registers, index)


def merged(groups: list[Group], block: Block) -> Group:
    """One group of several before the same block."""
    first = groups[0]
    threads = np.concatenate([group.threads for group in groups])
    order = np.argsort(threads)
    registers: list = [None] * len(first.registers)
    for slot in block.live:
        values = [group.registers[slot] for group in groups]
        if all(value.ndim == 0 and value == values[0] for value in values):
            registers[slot] = values[0]
        else:
            values = [group.full(value) for group, value in zip(groups, values, strict=True)]
            registers[slot] = joined(values)[order]
    return Group(first.batch, threads[order], registers, first.block)


class Machine:
    """Launches of one program."""

    def __init__(
        self,
        program: Program,
        shared: int = 0,
        *,
        races: bool = False,
        batch_threads: int = 16384,
        max_blocks: int = 1_000_000,
    ):
        """
        Args:
            shared: bytes of shared memory of a CTA.
            races: check shared memory for races.
            batch_threads: CTAs run together up to so many threads.
            max_blocks: a batch that executes more blocks is taken for endless.
        """
        self.program = program
        self.shared = max(shared, program.kernel.shared_bytes)
        self.races, self.batch_threads, self.max_blocks = races, batch_threads, max_blocks

    def launch(
        self, grid: tuple[int, int, int], arguments: list, memory: GlobalMemory, tally: Tally | None = None
    ) -> None:
        """Run a grid.

        Args:
            arguments: a number per parameter; pointers are addresses.
            tally: what counts, if anything does.
        """
        values = {
            name: _bits(value, type_)
            for (name, type_, _), value in zip(self.program.kernel.parameters, arguments, strict=True)
        }
        ctas = math.prod(grid)
        step = max(1, self.batch_threads // self.program.kernel.threads)
        with np.errstate(all="ignore"):
            for start in range(0, ctas, step):
                count = min(step, ctas - start)
                batch = Batch(self.program, count, self.shared, memory, self.races)
                batch.tally = tally
                self._run(batch, self._registers(batch, start, grid, values))

    def _registers(self, batch: Batch, start: int, grid: tuple[int, int, int], values: dict) -> list:
        """What the registers hold at the beginning; a register that is read before it is filled holds 0."""
        program, per_cta = self.program, batch.per_cta
        registers: list = [None] * len(program.slots)
        live = program.blocks[0].live
        thread, cta, tid = thread_numbers(batch.ctas, per_cta)
        zero = np.uint32(0)
        for name, slot in program.slots.items():
            if slot not in live:
                continue
            base, _, axis = name.partition(".")
            if name in values:
                registers[slot] = values[name]
            elif base == "%ctaid":
                number = start + (cta if batch.ctas > 1 else np.int64(0))
                below = math.prod(grid["xyz".index(a)] for a in "xyz"[: "xyz".index(axis)])
                registers[slot] = (number // below % grid["xyz".index(axis)]).astype(np.uint32)
            elif base == "%nctaid":
                registers[slot] = np.uint32(grid["xyz".index(axis)])
            elif base == "%ntid":
                registers[slot] = np.uint32(per_cta if axis == "x" else 1)
            elif name == "%tid.x":
                registers[slot] = tid
            elif name == "%laneid":
                registers[slot] = tid & np.uint32(31)
            elif name == "%warpid":
                registers[slot] = tid >> np.uint32(5)
            else:
                registers[slot] = zero.astype(raw(program.types[name]))
        return registers

    def _run(self, batch: Batch, registers: list) -> None:
        blocks = self.program.blocks
        ready = [Group(batch, thread_numbers(batch.ctas, batch.per_cta)[0], registers, 0)]
        waiting: list[Group] = []  # at a barrier
        for _ in range(self.max_blocks):
            if not ready:
                if not waiting:
                    return
                self._release(batch, waiting)
                ready, waiting = waiting, []
            group = ready.pop() if len(ready) == 1 else self._hindmost(ready)
            block = blocks[group.block]
            if batch.tally:
                batch.tally.enter(block, group)
            if block.run is None:
                block.run, block.at_line = function(self.program, block)
            try:
                block.run(group)
            except Exception as error:
                _explain(error, self.program, block)
                raise
            if block.exit == "barrier":
                group.block += 1
                waiting.append(group)
            elif block.exit == "next":
                group.block += 1
                self._arrive(group, ready)
            else:
                self._branch(group, block, ready)
                continue
        raise PTXError(
            f"{self.program.kernel.name}: no end after {self.max_blocks} blocks; programs that wait for "
            "other programs are not supported"
        )

    def _branch(self, group: Group, block: Block, ready: list[Group]) -> None:
        taken = None if block.guard is None else group.registers[block.guard]
        if taken is not None:
            taken = taken != block.negated
            count = int(np.count_nonzero(taken)) if taken.ndim else int(taken) * group.size
            if 0 < count < group.size:
                self._arrive(self._part(group, taken, block.target), ready)
                self._arrive(self._part(group, ~taken, block.index + 1), ready)
                return
            if not count:
                group.block = block.index + 1
                ready.append(group)
                return
        group.block = block.target
        self._arrive(group, ready)

    def _part(self, group: Group, chosen: np.ndarray, index: int) -> Group:
        blocks = self.program.blocks
        return group.part(chosen, blocks[index] if index < len(blocks) else None, index)

    def _arrive(self, group: Group, ready: list[Group]) -> None:
        """A group is before its next block, unless it has returned."""
        if group.block < len(self.program.blocks):
            ready.append(group)

    def _hindmost(self, ready: list[Group]) -> Group:
        """Take out those that stand before the first block of all, as one."""
        index = min(group.block for group in ready)
        found = [group for group in ready if group.block == index]
        ready[:] = [group for group in ready if group.block != index]
        return found[0] if len(found) == 1 else merged(found, self.program.blocks[index])

    def _release(self, batch: Batch, waiting: list[Group]) -> None:
        """All threads that have not returned wait at barriers; those of a CTA have to be at the same one."""
        if len(waiting) == 1:
            batch.barrier()
            return
        cta = np.concatenate([group.cta for group in waiting])
        block = np.concatenate([np.full(group.size, group.block) for group in waiting])
        first = np.full(batch.ctas, len(self.program.blocks))
        np.minimum.at(first, cta, block)
        if (block != first[cta]).any():
            raise PTXError(f"{self.program.kernel.name}: threads of a CTA wait at different barriers")
        batch.barrier()


def _explain(error: Exception, program: Program, block: Block) -> None:
    """Add the instruction that a block failed at to an error's message."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code is block.run.__code__:
            ins = block.at_line[trace.tb_lineno]
            error.args = (f"{error}: {ins.text} ({program.kernel.name}, {ins.source})", *error.args[1:])
        trace = trace.tb_next


def _bits(value: float | int, type_: str) -> np.generic:
    """A parameter as the bits of its register."""
    own = raw(type_)
    if TYPES[type_].kind == "f":
        return np.array(value, TYPES[type_]).view(own)[()]
    return np.array(int(value) & ((1 << 8 * own.itemsize) - 1), own)[()]
