"""Launch configurations: pure functions of shapes and of the target.

Nothing here looks at data or at the batch: a request's result never depends on its company.
"""

from __future__ import annotations

from dataclasses import dataclass


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


# --- verify ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VerifyLaunch:
    """How the launches of `verify` are cut up."""

    split: int  # tokens per program of `measure`
    splits: int
    padded_splits: int
    split_warps: int
    race_tile: int  # tokens per step of a race in `measure`
    row_tile: int  # tokens per step where the walk reads a whole row
    row_race_tile: int
    row_warps: int
    draw_split: int  # tokens per program of `draw`
    draw_splits: int
    padded_draw_splits: int
    draw_tile: int
    draw_warps: int


def verify_launch(vocab_size: int, measured: int, rule: str, cuts: bool) -> VerifyLaunch:
    """The configuration for target rows of `vocab_size` tokens, `measured` being the longest rows to be
    measured.

    | number | reason |
    |---|---|
    | split 8192, 4 warps | 64 scores a lane, read once and kept; its program's other work is shared by many |
    | split 1024, 1 warp | under `match`, as in `sample`, whose races these are |
    | row_tile 1024, 8 warps | the walk holds two laws in registers: 4 scores a lane leave no spills |
    | row_tile 512, 4 warps | the same under `traversal` without cuts |
    | row_tile 2048 | with cuts, as many groups as `row_cut` needs for a top_k of 100 |
    | draw_split 2048, 1 warp | half the preparations and a third fewer logarithms than with 1024 |
    """
    split, split_warps = (1024, 1) if rule == "match" else (8192, 4)
    row_tile, row_warps = (2048, 8) if cuts else (512, 4) if rule == "traversal" else (1024, 8)
    splits, draw_splits = -(-measured // split), -(-vocab_size // 2048)
    return VerifyLaunch(
        split=split,
        splits=splits,
        padded_splits=1 << (splits - 1).bit_length(),
        split_warps=split_warps,
        race_tile=256,
        row_tile=row_tile,
        row_race_tile=row_tile,
        row_warps=row_warps,
        draw_split=2048,
        draw_splits=draw_splits,
        padded_draw_splits=1 << (draw_splits - 1).bit_length(),
        draw_tile=256,
        draw_warps=1,
    )
