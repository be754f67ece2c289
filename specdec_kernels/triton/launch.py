"""Launch configurations: pure functions of shapes and of the target.

Nothing here looks at data: what is launched never depends on it.
"""

from __future__ import annotations

from triton import next_power_of_2

# --- commit_kv and commit_state ----------------------------------------------------------------------------

COMMIT_CACHES = 2  # of a program: keys and values of a layer share what is looked up, and wait together
COMMIT_UNITS = 128  # pieces of a row moved together: 2 KB where all is aligned to 16 bytes
COMMIT_WARPS = 1  # every thread looks up every place, so few threads move many bytes each
COMMIT_PROGRAMS = 128  # one for each multiprocessor; with fewer, wide rows are shared out
STATE_UNITS = 512  # pieces of 16 bytes of a snapshot in a program of four warps: four accesses in flight
CONV_CHANNELS = 128  # one a thread


def commit_splits(programs: int) -> int:
    """Programs that share the rows of a request, where there are so many requests times groups of caches."""
    return max(1, min(8, COMMIT_PROGRAMS // max(programs, 1)))


def commit_numbers(count: int) -> int:
    """Arguments of a launch that brings so many numbers to the device: a power of two, so that few kernels
    serve all counts, and at most 2 KB of the 4 KB that every target takes."""
    return min(256, next_power_of_2(max(count, 16)))


def state_tile(rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of a state that a program of four warps replays, powers of two. It has all rows, over
    which it sums, and as many columns as make 2048 float32: 16 registers a thread, which hold the state for
    the whole path."""
    rows = next_power_of_2(max(rows, 16))
    return rows, min(next_power_of_2(max(columns, 16)), max(1, 2048 // rows))
