# SPDX-License-Identifier: Apache-2.0
"""Launch configurations of `tree_attention`: pure functions of shapes, of the target and of Triton's version.

Nothing here looks at data, so what is launched never depends on it. docs/triton.md has the reasons.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import triton
from triton import next_power_of_2
from triton.backends.compiler import GPUTarget

PROCESSORS = 132  # of an H100; other chips have about as many
MOST_SPLITS = 32  # of a prefix, where nothing may depend on the batch
LEAST_SPLIT = 128  # positions of each


@dataclass(frozen=True)
class Problem:
    """What a launch depends on."""

    query_heads: int
    kv_heads: int
    head_dim: int  # elements of a key
    value_dim: int
    rows: int  # nodes of all requests
    requests: int
    bytes_per_element: int  # of the operands of the products
    plain: bool  # the cache holds those operands, and scores are neither capped nor windowed
    deterministic: bool  # nothing may depend on the batch

    @property
    def packed(self) -> int:
        """Rows of an average request, nodes x query heads of a group."""
        return -(-self.rows // max(self.requests, 1)) * (self.query_heads // self.kv_heads)


@dataclass(frozen=True)
class AttentionLaunch:
    """Block sizes of the two kernels of `tree_attention`, and how a prefix is split."""

    block_head: int  # elements of a key in the first product, a power of two; less than all: as many products
    block_rest: int  # the other elements, 0 = none: 80 = 64 + 16 and 576 = 512 + 64 need little padding
    block_value: int
    block_rows: int  # packed rows of a program over a split
    block_keys: int  # positions of a tile of the prefix
    warps: int
    stages: int
    splits: int  # of a prefix, at most
    least: int  # positions of a split


def shared_memory(target: GPUTarget) -> int:
    """Bytes that one program may have."""
    if target.backend != "cuda":
        return 64 * 1024
    return {80: 163, 87: 163, 90: 227, 100: 227, 103: 227}.get(target.arch, 99) * 1024


def fences_copies(version: str) -> bool:
    """Whether a Triton of this version orders asynchronous copies before the products of sm_90 that read
    shared memory by themselves (wgmma). Before 3.7.1 it does not (triton#9610)."""
    return _numbers_of(version) >= (3, 7, 1)


def _numbers_of(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


@lru_cache(maxsize=1024)
def attention_launch(
    target: GPUTarget, problem: Problem, version: str = triton.__version__
) -> AttentionLaunch:
    """Chosen so that no register spills.

    Args:
        version: of Triton.
    """
    cuda, memory = target.backend == "cuda", shared_memory(target)
    block_head, block_rest = _key_parts(problem.head_dim)
    block_value = max(next_power_of_2(problem.value_dim), 16)
    width = max(block_head + block_rest, block_value)
    busy = not problem.plain or block_rest > 0
    rows = 64 if problem.deterministic else max(next_power_of_2(problem.packed), 16)
    if cuda and target.arch == 90 and not fences_copies(version):
        rows = min(rows, 32)  # fewer than wgmma takes
    stages = 3 if cuda else 2
    if problem.bytes_per_element == 4:  # no tensor cores: a thread holds rows of both operands
        block_rows, block_keys, warps, stages = 16, 16, 8, 2
        if width > 256:
            block_head, block_rest, stages = 128, 0, 1
    elif width <= 128:
        block_rows = min(rows, 128 if cuda and not busy else 64)
        wgmma = target.arch in (90, 100, 103)  # four warps multiply 64 rows together
        eight = block_rows == 128 or (busy and block_rows in ((16, 32) if wgmma else (16, 64)))
        warps = 8 if cuda and eight else 4
        small = block_rows >= 64 and memory < 160 * 1024
        block_keys = 32 if (small if cuda else busy) else 64
        if cuda and block_keys == 32:
            stages = 4  # as many positions ahead
    elif width <= 256:
        block_rows, block_keys = min(rows, 32), 32 if cuda or not busy else 16
        warps = 8 if cuda and (busy or block_rows == 32) else 4
        stages = stages if memory >= 160 * 1024 else 2
    else:
        block_rows = min(rows, 32 if memory >= 96 * 1024 else 16)
        block_keys, warps = 32 if memory >= 160 * 1024 else 16, 8 if cuda else 4
        stages = stages if memory >= 160 * 1024 else 2
    splits, least = MOST_SPLITS, LEAST_SPLIT
    if not problem.deterministic:
        tiles = -(-problem.packed // block_rows) * problem.requests * problem.kv_heads
        splits = splits_that_fill(tiles, PROCESSORS * (2 if width <= 128 and block_rows <= 64 else 1))
        least = max(64, 2 * block_rows)  # with half as many bytes in its result as in its keys and values
    return AttentionLaunch(
        block_head=block_head,
        block_rest=block_rest,
        block_value=block_value,
        block_rows=block_rows,
        block_keys=block_keys,
        warps=warps,
        stages=stages,
        splits=splits,
        least=least,
    )


def splits_that_fill(tiles: int, places: int) -> int:
    """Splits of every tile. Programs come in as few turns as keep three quarters of the places for them at
    work, of which a chip has so many, and there are as many splits as these turns hold."""
    tiles = max(tiles, 1)
    splits = max(3 * places // (4 * tiles), 1)
    while 4 * tiles * splits < 3 * places * -(-tiles * splits // places):
        splits += 1
    return -(-tiles * splits // places) * places // tiles


def split_length(positions: int, splits: int, least: int) -> int:
    """Positions of a split of a prefix: its own length, and nothing else of its request, decides."""
    return max(-(-positions // (64 * splits)) * 64, least)


def most_splits(positions: int, splits: int, least: int) -> int:
    """Of any prefix of up to so many positions."""
    return max(min(splits, -(-positions // least)), 1)


def merge_blocks(launch: AttentionLaunch, splits: int) -> tuple[int, int, int]:
    """Splits and heads whose results a program reads at once, and columns of them: up to 64 numbers a thread.
    A program has a warp for 16 splits, and where there are more, four warps for 64."""
    at_once = min(next_power_of_2(splits), 16) if splits <= 16 else 64
    return at_once, min(max(16 // at_once, 1), 8), min(launch.block_value, 128)


def path_blocks(target: GPUTarget, launch: AttentionLaunch) -> tuple[int, int]:
    """Query heads of a program that follows the path of a node (a product has 16 rows), and warps."""
    width = max(launch.block_head + launch.block_rest, launch.block_value)
    return 16, 4 if width <= 128 or target.backend != "cuda" else 8


def attention_registers(
    target: GPUTarget, launch: AttentionLaunch, widened: bool, version: str = triton.__version__
) -> dict[str, int]:
    """Options of the compiler: where elements of the cache are widened, along a path, and on sm_100, ptxas
    spills some registers to have more blocks resident, unless told that it may take all. So it does on sm_90
    for heads of 256 elements in 16 bits. From Triton 3.9 on, two blocks of these need no spills."""
    if target.backend != "cuda":
        return {}
    width = max(launch.block_head + launch.block_rest, launch.block_value)
    large = 128 < width <= 256 and launch.block_keys == 32 and launch.warps == 8
    if target.arch == 90 and large and not widened:
        return {"maxnreg": 128 if _numbers_of(version) >= (3, 9) else 255}
    return {"maxnreg": 255} if widened or target.arch in (100, 103) else {}


def _key_parts(head_dim: int) -> tuple[int, int]:
    """A power of two for most of `head_dim` elements and one for the rest, if that saves any padding."""
    whole = max(next_power_of_2(head_dim), 16)
    if whole == head_dim or whole == 16:
        return whole, 0
    rest = max(next_power_of_2(head_dim - whole // 2), 16)
    return (whole, 0) if rest >= whole // 2 else (whole // 2, rest)
