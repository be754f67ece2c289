# SPDX-License-Identifier: Apache-2.0
"""Counts what verification accepted, for `SpeculativeVerifier`: one launch of a program per request."""

from __future__ import annotations

from functools import cache
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .dispatch import Launch, device_of
from .ends import DRAFTED
from .tree import request_rows


@cache
def _kernel(device: Any, depths: int, finish: bool, slots: bool) -> Launch:
    constants = dict(NODES=64, DEPTHS=triton.next_power_of_2(max(depths, 1)))
    return Launch(_acceptance_kernel, device, constants, num_warps=1)


def count_accepted(
    tokens: Tensor,
    parents: Tensor,
    cu_nodes: Tensor,
    path: Tensor,
    num_accepted: Tensor,
    finish: Tensor | None,
    counts: Tensor,
    slots: Tensor | None = None,
    slot_counts: Tensor | None = None,
) -> None:
    """Add to `counts` and, with slots [B], to the rows of `slot_counts`: `SpeculativeVerifier` describes
    them."""
    (batch, width), depths = path.shape, counts.shape[0] // 2 - 1
    if batch:
        launch = _kernel(device_of(path), depths, finish is not None, slots is not None)
        launch(
            (batch, 1, 1),
            tokens, parents, cu_nodes, path, num_accepted, finish, counts, slots, slot_counts,
            0 if slot_counts is None else slot_counts.shape[0], tokens.shape[0], width, depths,
        )  # fmt: skip


@triton.jit
def _acceptance_kernel(
    tokens_ptr,  # [R]
    parents_ptr,  # [R]
    cu_nodes_ptr,  # [B + 1]
    path_ptr,  # [B, width]
    num_accepted_ptr,  # [B]
    finish_ptr,  # [B] or None
    counts_ptr,  # [3 + 2 * depths]: steps, drafted, passes, tested, accepted
    slots_ptr,  # [B] or None
    slot_counts_ptr,  # [num_slots, 3 + 2 * depths] or None
    num_slots,
    rows,
    width,
    depths,
    NODES: tl.constexpr,
    DEPTHS: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    first, count = request_rows(cu_nodes_ptr, b, rows)
    if (count > 0) & (tl.load(path_ptr + b * width) >= 0):
        taken = tl.load(num_accepted_ptr + b)
        last = tl.load(path_ptr + b * width + taken)
        drafted = tl.zeros([NODES], tl.int64)
        below_last = tl.zeros([NODES], tl.int32)
        for begin in range(0, count, NODES):
            node = begin + tl.arange(0, NODES)
            inside = (node > 0) & (node < count)
            token = tl.load(tokens_ptr + first + node, mask=inside, other=-1)
            parent = tl.load(parents_ptr + first + node, mask=inside, other=-1)
            drafted += (token >= 0).to(tl.int64)
            below_last |= ((token >= 0) & (parent == last)).to(tl.int32)
        depth = tl.arange(0, DEPTHS)
        accepted = (depth < taken) & (depth < depths)
        # If the last kept node has a drafted child, one more depth was tested than accepted.
        untaken = tl.max(below_last)
        if finish_ptr is not None:  # unless that was the last token, which was not rejected
            untaken = tl.where((tl.load(finish_ptr + b) & DRAFTED) != 0, 0, untaken)
        tested = (depth < taken + untaken) & (depth < depths)
        _add(counts_ptr, tl.sum(drafted), width - 1, tested, accepted, depths)
        if slots_ptr is not None:
            slot = tl.load(slots_ptr + b)
            if (slot >= 0) & (slot < num_slots):
                own_ptr = slot_counts_ptr + slot * (3 + 2 * depths)
                _add(own_ptr, tl.sum(drafted), width - 1, tested, accepted, depths)


@triton.jit
def _add(counts_ptr, drafted, passes, tested, accepted, depths):
    """Add a step to one line of counts."""
    one = tl.full([], 1, tl.int64)
    depth = tl.arange(0, tested.shape[0])
    ones = tl.full([tested.shape[0]], 1, tl.int64)
    tl.atomic_add(counts_ptr, one, sem="relaxed")
    tl.atomic_add(counts_ptr + 1, drafted, sem="relaxed")
    tl.atomic_add(counts_ptr + 2, one * passes, sem="relaxed")
    tl.atomic_add(counts_ptr + 3 + depth, ones, mask=tested, sem="relaxed")
    tl.atomic_add(counts_ptr + 3 + depths + depth, ones, mask=accepted, sem="relaxed")
