# SPDX-License-Identifier: Apache-2.0
"""Launch configurations: pure functions of shapes and of the target.

Nothing here looks at data, so what is launched never depends on it. How a row is divided does not depend on
the batch either, so that a request's result never depends on the other requests.
"""

from __future__ import annotations

from dataclasses import dataclass

from triton import next_power_of_2
from triton.backends.compiler import GPUTarget

# --- rows of logits ----------------------------------------------------------------------------------------

RACED_SPLIT = 1024  # tokens of a split whose race is run as it is measured


@dataclass(frozen=True)
class Splits:
    """How rows are split over programs."""

    length: int  # tokens per program
    count: int  # programs per row
    padded: int  # the power of two that holds their results
    race_tile: int  # tokens per step of a race
    warps: int


def _splits(row: int, length: int, warps: int) -> Splits:
    """Of rows of so many tokens. A race takes steps of 256, two calls of Philox a lane: 512 would save 1 % of
    the instructions of a draw."""
    count = -(-row // length)
    return Splits(length, count, padded=1 << (count - 1).bit_length(), race_tile=256, warps=warps)


@dataclass(frozen=True)
class RowPasses:
    """How rows of V logits are read."""

    splits: Splits
    lanes: int  # of a split, each of which lists its largest scores
    collect: Splits

    @property
    def select_warps(self) -> int:
        """Of the programs that hold what all splits of a row collected, with up to 32 scores a lane."""
        return max(self.collect.padded, 8)

    @property
    def settle_warps(self) -> int:
        """Of the programs that look for cuts in the lists and in a sample of 4096, with 32 scores a lane."""
        return 8


def _lanes(splits: Splits) -> int:
    """As many as list 8192 scores of a row, four places each."""
    return min(32 * splits.warps, max(2048 // splits.padded, 8))


def _collected(row: int, warps: int = 4) -> Splits:
    """At most 16, or one program could not hold what all collected."""
    return _splits(row, max(8192, next_power_of_2(-(-row // 16))), warps)


def row_passes(vocab_size: int) -> RowPasses:
    """The configuration for rows of `vocab_size` tokens.

    | number | reason |
    |---|---|
    | splits of 1024 | one request's 32768 tokens make 32 programs, 128256 make 126: enough for a chip |
    | 1 warp | it reduces by shuffles alone; 32 scores a lane keep enough loads in flight |
    """
    splits = _splits(vocab_size, RACED_SPLIT, warps=1)
    return RowPasses(splits, _lanes(splits), _collected(vocab_size))


# --- edits -------------------------------------------------------------------------------------------------

EDIT_SPLIT = 2048  # tokens of a program of one warp: 63 programs for 128256 tokens
EDIT_ENTRIES = 128  # tokens that it edits together, four a lane


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


# --- verify ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VerifyLaunch:
    """How the launches of `verify` read rows."""

    rows: RowPasses
    sums: Splits
    sum_tile: int  # tokens per step of a sum
    walk_tile: int  # tokens per step where the walk reads a whole row
    walk_warps: int
    draw: Splits


def verify_launch(
    vocab_size: int, longest: int, rule: str, edited: bool = False, mapped: bool = False
) -> VerifyLaunch:
    """The configuration for target rows of `vocab_size` tokens; no row of the draft has more than `longest`.
    mapped: rows have a bitmask, and the draft a vocabulary of its own.

    | number | reason |
    |---|---|
    | splits of 8192, 4 warps | 64 scores a lane, read once and kept; many share its program's other work |
    | splits of 1024, 1 warp | under `match`, as in `sample`, whose races these are |
    | sums of 8192, 4 warps | four steps of 16 scores a lane of each row: 16 programs for 128256 tokens |
    | walk_tile 2048, 8 warps | whole rows, which trees need: 8 scores a lane of each row on the way at once |
    | walk_tile 256, 1 warp | `match` and other rules that read no row: a handful of scalars |
    | 2 warps | `lenient`, which compares tokens of siblings in pairs: 16 a thread leave no spills |
    | draws of 512, 1 warp | two steps, one after the other; 251 programs for 128256 tokens |
    | 8 warps, walk_tile 1024, with edits | half the scores a lane, as words of edits take registers too |
    | walk_tile 1024, if mapped | on sm_120 the walk of `traversal` would spill |
    """
    collect_warps = 8 if edited else 4
    split, warps = (RACED_SPLIT, 1) if rule == "match" else (8192, collect_warps)
    splits = _splits(longest, split, warps)
    sequential = rule in ("token", "traversal", "ensemble", "threshold")  # with fewer warps it spills
    return VerifyLaunch(
        rows=RowPasses(splits, _lanes(splits), _collected(longest, collect_warps)),
        sums=_splits(longest, 8192, warps=4),
        sum_tile=2048,
        walk_tile=2048 if sequential and not (edited or mapped) else 1024,
        walk_warps=8 if sequential else 2 if rule == "lenient" else 1,
        draw=_splits(vocab_size, 512, warps=1),
    )


def report_splits(vocab_size: int) -> Splits:
    """Of rows of emitted tokens: 32 scores a lane, of which the likeliest are taken one after the other; 32
    programs for 128256 tokens, whose lists of up to 20 one program merges."""
    return _splits(vocab_size, 4096, warps=4)


# --- ngram_draft and ngram_tree ----------------------------------------------------------------------------

NGRAM_SPLIT = 1024  # places that a program of one warp searches: of 100 000 tokens 98 programs
NGRAM_LISTED = 512  # results of splits that are compared together
NGRAM_WORDS = 512  # words of 32 places that a vote looks at together, two a thread: more would spill
NGRAM_BINS = 1024  # tokens that a vote can count at once
NGRAM_VOTE_WARPS = 8
NGRAM_NODES = 64  # of a tree, or tokens of a draft, that a warp writes together: two a lane


def ngram_splits(width: int) -> int:
    """Programs that share a text of up to `width` tokens, whose last one is no place to be searched."""
    return max(1, -(-(width - 1) // NGRAM_SPLIT))


def ngram_branches(branches: int) -> tuple[int, int, int]:
    """Lanes for so many continuations, tokens of each that are compared together, and warps: 128 tokens to a
    warp leave no spills."""
    block = max(next_power_of_2(branches), 8)
    return block, max(128 // block, 1), min(max(block // 32, 1), 8)


# --- budgets -----------------------------------------------------------------------------------------------

BUDGET_MOST_NODES = 1024  # of a batch, padded, that one program orders


def budget_warps(lanes: int) -> int:
    """Two nodes a thread: with eight, or with 64 registers for 32 warps, what orders them spills."""
    return min(max(lanes // 64, 1), 16)


def registers(target: GPUTarget, warps: int) -> dict[str, int]:
    """Options of the compiler for kernels of many scalars: 168 registers of a thread, or as many as a
    processor has for so many warps. Left alone, ptxas takes 255, or spills some to have more warps
    resident."""
    return {"maxnreg": min(168, 2048 // warps)} if target.backend == "cuda" else {}
