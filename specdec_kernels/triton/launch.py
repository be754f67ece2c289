"""Launch configurations: pure functions of shapes and of the target.

Nothing here looks at data: what is launched never depends on it. How a row is divided does not depend on the
batch either, so that a request's result never depends on its company.
"""

from __future__ import annotations

from dataclasses import dataclass

from triton import next_power_of_2

# --- rows of logits ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowPasses:
    """How rows of V logits are read."""

    split: int  # tokens per program where a row is split over programs
    splits: int  # programs per row
    padded_splits: int  # the power of two that holds their partial results
    split_warps: int
    race_tile: int  # tokens per step of a race
    row_tile: int  # tokens per step where one program reads a whole row
    row_warps: int


def row_passes(vocab_size: int) -> RowPasses:
    """The configuration for rows of `vocab_size` tokens.

    | number | reason |
    |---|---|
    | split 1024 | one request's 32768 tokens make 32 programs, 128256 make 126: enough for a chip |
    | split_warps 1 | a warp reduces by shuffles alone; 32 scores a lane keep enough loads in flight |
    | race_tile 256 | two calls of Philox a lane; smaller tiles need fewer logarithms, but reduce more often |
    | row_tile 2048 | 8 scores a lane, a 16-byte load of 16-bit logits; groups enough for top_k of 100 |
    | row_warps 8 | one program has a processor to itself: many loads in flight, few warps to reduce over |
    """
    splits = -(-vocab_size // 1024)
    return RowPasses(
        split=1024,
        splits=splits,
        padded_splits=1 << (splits - 1).bit_length(),
        split_warps=1,
        race_tile=256,
        row_tile=2048,
        row_warps=8,
    )


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
    which it sums, and as many columns as make 4096 float32: 32 registers a thread, which hold the state for
    the whole path."""
    rows = next_power_of_2(max(rows, 16))
    return rows, min(next_power_of_2(max(columns, 16)), max(1, 4096 // rows))
