# SPDX-License-Identifier: Apache-2.0
"""What happens later than the instruction that asks for it: copies to shared memory by `cp.async`, products
of `wgmma`, and what these see of shared memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .errors import PTXError

WARPGROUP = 128  # threads that multiply together
UNIT = 16  # bytes of shared memory that are watched as one


class AsyncCopies:
    """cp.async: bytes arrive when the thread that copied them waits for their group."""

    def __init__(self, threads: int):
        self.group = np.zeros(threads, np.int64)  # the number of groups that each thread has committed
        self.pending: list[tuple[np.ndarray, ...]] = []  # thread, group, place, words [n, words]

    def start(self, thread: np.ndarray, place: np.ndarray, data: np.ndarray) -> None:
        self.pending.append((thread, self.group[thread], place, data))

    def commit(self, thread: np.ndarray) -> None:
        self.group[thread] += 1

    def arrive(self, waiting: np.ndarray, ahead: int) -> list[tuple[np.ndarray, ...]]:
        """The copies of waiting threads (a flag per thread), but for their last `ahead` groups (-1: nor do
        they need to be committed), as (thread, place, words)."""
        arrived, kept = [], []
        for thread, group, place, data in self.pending:
            done = waiting[thread] & (group < self.group[thread] - ahead)
            if done.any():
                arrived.append((thread[done], place[done], data[done]))
            if not done.all():
                kept.append((thread[~done], group[~done], place[~done], data[~done]))
        self.pending = kept
        return arrived


class InFlight:
    """What a register will hold when its `wgmma` is complete. Until then only another `wgmma`, which adds to
    it, may use the register."""

    ndim = 1

    def __init__(self, values: np.ndarray, group: np.ndarray):
        self.values = values  # an element per thread
        self.group = group  # of each thread: the number of the group to wait for, -1 = complete

    def __getitem__(self, chosen: np.ndarray) -> InFlight:
        return InFlight(self.values[chosen], self.group[chosen])

    def used(self, *_, **__):
        raise PTXError("a register is used while wgmma fills it; wgmma.wait_group has to come first")

    __getattr__ = __array_ufunc__ = __array__ = __eq__ = __ne__ = __invert__ = used  # type: ignore[assignment]


def joined(values: Sequence[np.ndarray | InFlight]) -> np.ndarray | InFlight:
    """One register of several groups' of threads."""
    if not any(isinstance(value, InFlight) for value in values):
        return np.concatenate(values)
    both = [
        (value.values, value.group) if isinstance(value, InFlight) else (value, np.full(len(value), -1))
        for value in values
    ]
    return InFlight(*(np.concatenate(part) for part in zip(*both, strict=True)))


class AsyncProxy:
    """What `wgmma` sees of shared memory, and who may write there.

    A write by a thread is seen if a `fence.proxy.async` lies between: of the writer, before a barrier; or of
    the readers, after a barrier. What `wgmma` reads may be written again after its warpgroup has waited for
    it, and a barrier.

    Times are numbers that each barrier and fence raises; 0 is never.
    """

    def __init__(self, threads: int, per_cta: int, shared: int):
        units, warpgroups = -(-shared // UNIT), threads // WARPGROUP
        self.units_of_cta = units * per_cta // threads
        self.now = 1
        self.barrier_at = 0  # the latest
        self.wrote = np.zeros(units, np.int64)  # when a thread wrote last
        self.writer = np.zeros(units, np.int32)
        self.landing = np.zeros(units, np.int32)  # copies on their way
        self.fenced = np.zeros(threads, np.int64)  # when each thread's last fence was
        self.published = self.fenced  # its last one before the latest barrier
        self.seen = np.zeros(threads, np.int64)  # the latest barrier before its last fence
        self.committed = np.zeros(warpgroups, np.int64)  # groups of wgmma
        self.complete = np.zeros(warpgroups, np.int64)  # that were waited for
        self.released = self.complete  # before the latest barrier
        self.reading = np.full((units, per_cta // WARPGROUP), -1)  # each warpgroup's last group that reads it

    def fence(self, thread: np.ndarray) -> None:
        self.now += 1
        self.fenced[thread] = self.now
        self.seen[thread] = self.barrier_at

    def barrier(self) -> None:
        self.now += 1
        self.barrier_at = self.now
        self.published, self.released = self.fenced.copy(), self.complete.copy()

    def start(self, place: np.ndarray) -> None:
        """Copies are on their way."""
        self._check_writable(place // UNIT)
        np.add.at(self.landing, place // UNIT, 1)

    def arrive(self, thread: np.ndarray, place: np.ndarray) -> None:
        np.subtract.at(self.landing, place // UNIT, 1)
        self.write(thread, place)

    def write(self, thread: np.ndarray, place: np.ndarray) -> None:
        unit = place // UNIT
        self._check_writable(unit)
        self.wrote[unit] = self.now
        self.writer[unit] = thread

    def _check_writable(self, unit: np.ndarray) -> None:
        released = self.released.reshape(-1, self.reading.shape[1])[unit // self.units_of_cta]
        if (self.reading[unit] >= released).any():
            raise PTXError(
                "shared memory is written that wgmma may still read; "
                "wgmma.wait_group and a barrier have to come first"
            )

    def read(self, warpgroup: np.ndarray, place: np.ndarray) -> None:
        """Warpgroups [n] begin to read at places [n, many]."""
        unit = place // UNIT
        if self.landing[unit].any():
            raise PTXError("wgmma reads shared memory before cp.async has filled it")
        wrote = self.wrote[unit]
        if (wrote >= max(self.barrier_at, 1)).any():
            raise PTXError("wgmma reads shared memory that was written after the last barrier")
        seen = self.seen.reshape(-1, WARPGROUP)[warpgroup].min(1)[:, None]
        if ((wrote >= seen) & (wrote >= self.published[self.writer[unit]]) & (wrote > 0)).any():
            raise PTXError("wgmma reads shared memory that was written, with no fence.proxy.async after that")
        cta_warpgroups = self.reading.shape[1]
        self.reading[unit, warpgroup[:, None] % cta_warpgroups] = self.committed[warpgroup][:, None]
