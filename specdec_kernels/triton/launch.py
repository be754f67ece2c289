"""Launch configurations: pure functions of shapes and of the target."""

from __future__ import annotations

from dataclasses import dataclass

from triton import next_power_of_2


def shared_memory(backend: str, arch: int | str) -> int:
    """Bytes that one program may have; `backend` and `arch` as in Triton's target."""
    if backend != "cuda":
        return 64 * 1024
    return {80: 163, 87: 163, 90: 227, 100: 227, 103: 227}.get(arch, 99) * 1024


# --- tree_attention ----------------------------------------------------------------------------------------

ATTENTION_SPLIT = 128  # positions of the shortest split: below, its prologue and its partial result dominate
ATTENTION_MAX_SPLITS = 32  # of one prefix: bounds the memory of partial results
ATTENTION_WARPS = 512  # that keep a chip busy: about one for each of its schedulers


@dataclass(frozen=True)
class AttentionLaunch:
    """Block sizes of the two kernels of `tree_attention`."""

    block_head: int  # elements of a key in the first product; a power of two
    block_rest: int  # the other elements, 0 = none: 80 = 64 + 16 and 576 = 512 + 64 need little padding
    block_value: int
    block_rows: int  # packed rows (nodes x query heads of a group) of a program over a split
    block_keys: int  # positions of a tile of the prefix
    warps: int
    stages: int
    block_heads: int  # query heads of a program that merges the splits of one node
    merge_warps: int


def attention_launch(
    backend: str,
    arch: int | str,
    query_heads: int,
    head: int,
    value: int,
    rows: int,
    *,
    bytes_per_element: int,
    plain: bool,
    deterministic: bool,
) -> AttentionLaunch:
    """Of keys with `head` and values with `value` elements, chosen so that no register spills.

    Args:
        rows: packed rows of an average request.
        bytes_per_element: of the operands of the products.
        plain: the cache holds those operands, and scores are neither capped nor windowed: else registers are
            needed for more than the products.
        deterministic: nothing may depend on the batch.
    """
    block_head, block_rest = _attention_parts(head)
    block_value = max(next_power_of_2(value), 16)
    width = max(block_head + block_rest, block_value)
    rows = 64 if deterministic else max(next_power_of_2(rows), 16)
    memory = shared_memory(backend, arch)
    stages = 2
    if bytes_per_element == 4:  # no tensor cores: a thread holds rows of both operands
        block_rows, block_keys, warps = 16, 16, 8
        stages = 2 if width <= 256 else 1
    elif width <= 128:
        most = 128 if plain and block_rest == 0 and backend == "cuda" else 64
        block_rows, block_keys = min(rows, most), 64
        warps = 8 if block_rows == 128 or (block_rows == 64 and memory == 99 * 1024) else 4
    elif width <= 256:
        block_rows, block_keys, warps = min(rows, 32), 32, 4
    else:
        block_rows = min(rows, 32 if memory >= 96 * 1024 else 16)
        block_keys, warps = 32 if memory >= 160 * 1024 else 16, 8
    if deterministic:  # with the products of a path, 16 rows at least
        block_heads, merge_warps = 16, 4 if width <= 128 else 8
    else:  # 32 numbers a thread
        block_heads = min(max(4096 // block_value, 1), next_power_of_2(query_heads))
        merge_warps = max(block_heads * block_value // 1024, 1)
    return AttentionLaunch(
        block_head, block_rest, block_value, block_rows, block_keys, warps, stages, block_heads, merge_warps
    )


def attention_splits(positions: int, warps: int, deterministic: bool) -> int:
    """The most splits of a prefix of up to `positions`, where `warps` run for each split.

    The splits of a request follow from this bound and its own prefix.
    """
    wanted = ATTENTION_MAX_SPLITS
    if not deterministic:
        wanted = min(max(-(-ATTENTION_WARPS // max(warps, 1)), 1), ATTENTION_MAX_SPLITS)
    return max(min(wanted, -(-positions // ATTENTION_SPLIT)), 1)


def _attention_parts(head: int) -> tuple[int, int]:
    """A power of two for most of `head` elements and one for the rest, if that saves any padding."""
    whole = max(next_power_of_2(head), 16)
    if whole == head or whole == 16:
        return whole, 0
    rest = max(next_power_of_2(head - whole // 2), 16)
    return (whole, 0) if rest >= whole // 2 else (whole // 2, rest)
