"""Launch configurations: pure functions of shapes. Nothing is tuned at run time."""

from __future__ import annotations


def numbers_per_launch(count: int) -> int:
    """Arguments of a launch that brings so many numbers to the device: a power of two, so that few kernels
    serve all counts, and at most 2 KB of the 4 KB that every target takes."""
    return min(256, power_of_two(max(count, 16)))


# Committing

COMMIT_CACHES = 2
"""Caches in which a program of `commit_kv` moves rows, as the keys and values of a layer: what is looked up
for a row serves both, and both rows are in flight together."""

COMMIT_UNITS = 128
"""Pieces of a row that such a program moves together, 2 KB where they are 16 bytes. It is one warp, since
much of its work is looking up places, which every thread repeats."""

STATE_UNITS = 512
"""Pieces of 16 bytes of a snapshot that a program of four warps copies: four a thread."""

CONV_CHANNELS = 128


def commit_splits(programs: int) -> int:
    """Programs that share wide rows, where there are so many for requests and caches: at least one for each
    multiprocessor of a large chip, and no more, since most rows are one piece."""
    return max(1, min(8, 128 // max(programs, 1)))


def state_tile(rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of a state that a program of four warps replays, powers of two. It has all rows, over
    which it sums, and as many columns as make 4096 float32, 32 registers a thread, that stay where they are
    for the whole path."""
    rows = power_of_two(max(rows, 16))
    return rows, min(power_of_two(max(columns, 16)), max(1, 4096 // rows))


def power_of_two(n: int) -> int:
    """The smallest that is not below n, at least 1."""
    return 1 << max(n - 1, 0).bit_length()
