"""Launch configurations: pure functions of shapes. Nothing is tuned at run time."""

from __future__ import annotations

NUMBERS_PER_LAUNCH = 256  # 2 KB of arguments; every target takes 4 KB

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


def state_columns(rows: int, columns: int) -> int:
    """Columns of a state of so many rows that one program replays, a power of two. A program of four warps
    keeps 4096 float32, 32 registers a thread: what it adds up over rows never leaves it."""
    return min(power_of_two(columns), max(1, 4096 // power_of_two(rows)))


def power_of_two(n: int) -> int:
    """The smallest that is not below n, at least 1."""
    return 1 << max(n - 1, 0).bit_length()
