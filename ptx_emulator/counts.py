# SPDX-License-Identifier: Apache-2.0
"""What launches did: instructions, and bytes and 32-byte sectors of memory. Counts, never times."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .program import Block, Program

SECTOR = 32
PAGE_BITS = 15  # sectors of a page, as a power of 2: a mebibyte


class Touched:
    """The distinct sectors touched: a row of flags for each page of the address space in use."""

    def __init__(self):
        self.pages = np.zeros(0, np.int64)  # ascending
        self.rows = np.zeros(0, np.int64)  # the row of each page
        self.flags = np.zeros((0, 1 << PAGE_BITS), bool)

    def add(self, address: np.ndarray) -> None:
        sector = address >> 5
        sector = sector[np.flatnonzero(np.diff(sector, prepend=-1))]  # neighbours share sectors
        page = sector >> PAGE_BITS
        at = np.searchsorted(self.pages, page)
        known = at < len(self.pages)
        known[known] = self.pages[at[known]] == page[known]
        if not known.all():
            self._admit(np.unique(page[~known]))
            at = np.searchsorted(self.pages, page)
        self.flags[self.rows[at], sector & ((1 << PAGE_BITS) - 1)] = True

    def _admit(self, pages: np.ndarray) -> None:
        old, new = len(self.pages), len(self.pages) + len(pages)
        order = np.argsort(np.concatenate([self.pages, pages]))
        self.pages = np.concatenate([self.pages, pages])[order]
        self.rows = np.concatenate([self.rows, np.arange(old, new)])[order]
        if new > len(self.flags):
            grown = np.zeros((max(new, 2 * old), 1 << PAGE_BITS), bool)
            grown[:old] = self.flags[:old]
            self.flags = grown

    def sectors(self) -> int:
        return int(np.count_nonzero(self.flags))


def requested_sectors(warp: np.ndarray, address: np.ndarray) -> int:
    """Sectors that each warp asks for, each counted once per instruction."""
    key = (warp << 43) | (address >> 5)
    step = np.diff(key)
    if (step < 0).any():
        step = np.diff(np.sort(key))
    return 1 + int(np.count_nonzero(step))


class Tally:
    """Counts while a launch runs."""

    def __init__(self, program: Program):
        self.program = program
        self.counts: Counter[str] = Counter()
        self.warps_through = Counter()  # block -> warps
        self.touched = {"ld": Touched(), "st": Touched()}

    def enter(self, block: Block, group: Any) -> None:
        """A group of the machine's is about to execute a block. Of guarded instructions `guarded` tells."""
        self.warps_through[block.index] += group.warps
        self.counts["thread_insts"] += block.unguarded * group.size

    def guarded(self, threads: int, guard: np.ndarray, negated: bool) -> None:
        taken = int(np.count_nonzero(guard)) if guard.ndim else int(guard) * threads
        self.counts["thread_insts"] += threads - taken if negated else taken

    def global_access(self, kind: str, size: int, address: np.ndarray, warp: np.ndarray) -> None:
        self.counts[f"global_{kind}_bytes"] += size * len(address)
        self.counts[f"global_{kind}_sectors"] += requested_sectors(warp, address)
        if kind == "atom":
            self.counts["atomics"] += len(address)
        for touch in ("ld", "st") if kind == "atom" else (kind,):
            self.touched[touch].add(address)

    def local_access(self, space: str, kind: str, size: int, threads: int) -> None:
        if space == "local":
            self.counts["local_bytes"] += size * threads
            return
        self.counts[f"shared_{'st' if kind == 'copy' else kind}_bytes"] += size * threads
        if kind == "atom":
            self.counts["atomics"] += threads

    def finish(self, warps: int) -> tuple[Counter, Counter]:
        """The counts, and warp instructions by name."""
        names: Counter[str] = Counter()
        for index, through in self.warps_through.items():
            for ins in self.program.blocks[index].instructions:
                names[ins.name] += through
        self.counts["warp_insts"] = names.total()
        self.counts["warps"] = warps
        for kind, touched in self.touched.items():
            self.counts[f"unique_{kind}_bytes"] = SECTOR * touched.sectors()
        return self.counts, names


@dataclass
class Launch:
    """A launch, and its counts by name: see `docs/ptx_emulator.md`."""

    name: str
    num_warps: int
    grid: tuple[int, int, int]
    shared: int  # bytes of a CTA
    ptx: str = field(repr=False)
    n: Counter = field(default_factory=Counter)
    ops: Counter = field(default_factory=Counter, repr=False)  # warp instructions by name
    tally: Tally | None = field(default=None, repr=False)  # what counted it

    def __str__(self) -> str:
        counts = " ".join(f"{name}={value}" for name, value in self.n.items() if value)
        return f"{self.name}{list(self.grid)} warps={self.num_warps} shared={self.shared} {counts}"


class Launches(list):
    """The launches made inside `with count() as launches`."""

    def __init__(self, tally: type[Tally] = Tally):
        super().__init__()
        self.tally = tally

    def total(self) -> Counter:
        return sum((launch.n for launch in self), Counter())

    def bytes(self) -> int:
        """Global bytes requested."""
        total = self.total()
        return sum(total[f"global_{kind}_bytes"] for kind in ("ld", "st", "atom"))

    def sectors(self) -> int:
        """Sectors requested, as if there were no cache."""
        total = self.total()
        return sum(total[f"global_{kind}_sectors"] for kind in ("ld", "st", "atom"))

    def moved(self) -> int:
        """Bytes of the distinct sectors that each launch reads and writes."""
        total = self.total()
        return total["unique_ld_bytes"] + total["unique_st_bytes"]

    def __str__(self) -> str:
        return "\n".join(map(str, self))


counting: list[Launches] = []


@contextlib.contextmanager
def count(tally: type[Tally] = Tally) -> Iterator[Launches]:
    """Collect the launches made inside, and count what they do.

    Args:
        tally: what counts; of nested calls the innermost decides.
    """
    launches = Launches(tally)
    counting.append(launches)
    try:
        yield launches
    finally:
        counting[:] = [other for other in counting if other is not launches]
