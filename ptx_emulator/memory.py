# SPDX-License-Identifier: Apache-2.0
"""The memory spaces a program sees, and the checks on every access.

Global memory is the process's own memory: an access is checked against the extents of the tensors that the
launch may touch, and then made in place.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from .errors import PTXError
from .values import RAW

BASE = 4096  # the first page is never mapped
_space = (ctypes.c_uint8 * ((1 << 47) - BASE)).from_address(BASE)
PROCESS = {width: np.ndarray((((1 << 47) - BASE) // width,), RAW[width], _space) for width in RAW}

Places = tuple[dict[int, np.ndarray], np.ndarray]  # memory by width of access, byte offsets into it


class Region(NamedTuple):
    """Bytes [start, end) that a launch may touch."""

    start: int
    end: int
    name: str


def aligned(address: np.ndarray, size: int) -> bool:
    return size == 1 or not int(np.bitwise_or.reduce(address)) & (size - 1)


class GlobalMemory:
    """What one launch may touch: regions by the parameter they came in with, and others, which are reached
    through addresses found in memory. `find` is asked once for an address in none of them."""

    def __init__(
        self,
        parameters: dict[str, Region],
        others: Iterable[Region] = (),
        find: Callable[[int], Region | None] | None = None,
    ):
        self.parameters = parameters
        self.regions = [region for region in (*parameters.values(), *others) if region.end > region.start]
        self.find = find
        self._spans: dict[frozenset[str], tuple[np.ndarray, np.ndarray]] = {}

    def check(self, address: np.ndarray, size: int, pointers: frozenset[str]) -> None:
        """Every [address, address + size) must lie in one region: of `pointers`, if they are known."""
        if not aligned(address, size):
            raise PTXError(f"misaligned global access of {size} bytes")
        first, last = int(address.min()), int(address.max()) + size
        for region in self._allowed(pointers):
            if region.start <= first and last <= region.end:
                return
        while not (inside := self._inside(address, size, pointers)).all():
            lost = int(address[~inside][0])
            region = None if pointers or self.find is None else self.find(lost)
            if region is None or lost + size > region.end:
                names = [f"{r.name} [{r.start:#x}, {r.end:#x})" for r in self._allowed(pointers)]
                raise PTXError(
                    f"out-of-bounds global access of {size} bytes at {lost:#x}; "
                    f"it may touch {', '.join(names) or 'nothing'}"
                )
            self.regions.append(region)
            self._spans.clear()

    def _allowed(self, pointers: frozenset[str]) -> list[Region]:
        return [self.parameters[name] for name in pointers] if pointers else self.regions

    def _inside(self, address: np.ndarray, size: int, pointers: frozenset[str]) -> np.ndarray:
        if pointers not in self._spans:
            self._spans[pointers] = _disjoint(self._allowed(pointers))
        starts, ends = self._spans[pointers]
        address = address.view(np.uint64)
        end = ends[np.searchsorted(starts, address, side="right") - 1]
        return (address < end) & (end - address >= size)


def _disjoint(regions: list[Region]) -> tuple[np.ndarray, np.ndarray]:
    """Starts, ascending, and ends of regions, overlapping ones as one; an empty one comes before all."""
    spans = [[0, 0]]
    for region in sorted(regions):
        if region.start < spans[-1][1]:
            spans[-1][1] = max(spans[-1][1], region.end)
        else:
            spans.append([region.start, region.end])
    starts, ends = zip(*spans, strict=True)
    return np.array(starts, np.uint64), np.array(ends, np.uint64)


class LocalMemory:
    """A block of bytes per owner: shared memory, owned by CTAs, or local memory, owned by threads."""

    def __init__(self, owners: int, size: int, name: str):
        self.size, self.name = size, name
        self.pitch = -(-size // 16) * 16
        whole = np.zeros(owners * self.pitch, np.uint8)
        self.bytes = {width: whole.view(RAW[width]) for width in RAW}

    def places(self, address: np.ndarray, owner: np.ndarray, size: int) -> np.ndarray:
        """Offsets of addresses into the whole block."""
        if len(address) and (int(address.min()) < 0 or int(address.max()) + size > self.size):
            raise PTXError(f"out-of-bounds {self.name} access of {size} bytes, of {self.size}")
        if not aligned(address, size):
            raise PTXError(f"misaligned {self.name} access of {size} bytes")
        return address + owner * self.pitch


class Races:
    """Who touched each byte of shared memory last, and in which epoch; barriers separate epochs. Two warps
    that touch a byte in one epoch, one of them writing, race."""

    MANY = 255  # several warps read it

    def __init__(self, size: int):
        self.wrote = np.full(size, -1, np.int64)  # epoch << 8 | warp
        self.read = np.full(size, -1, np.int64)

    def access(self, place: np.ndarray, size: int, epoch: int, warp: np.ndarray, write: bool) -> None:
        key = ((epoch << 8) | warp)[:, None]
        place = place[:, None] + np.arange(size)
        race = self._other(self.wrote[place], key)
        readers = self._other(self.read[place], key)
        if write:
            race |= readers
        if race.any():
            raise PTXError(f"shared-memory race: two warps {'write or ' * write}read without a barrier")
        if write:
            self.wrote[place] = key
            return
        self.read[place] = np.where(readers, key | self.MANY, key)
        shared = self._other(self.read[place], key)  # another warp reads it by the same instruction
        self.read[place[shared]] = np.broadcast_to(key | self.MANY, place.shape)[shared]

    @staticmethod
    def _other(last: np.ndarray, key: np.ndarray) -> np.ndarray:
        return ((last >> 8) == (key >> 8)) & (last != key)
