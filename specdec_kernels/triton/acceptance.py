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
def _kernel(device: Any, depths: int, finish: bool) -> Launch:
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
) -> None:
    """Add to `counts`, which `SpeculativeVerifier` describes."""
    (batch, width), depths = path.shape, counts.shape[0] // 2 - 1
    if batch:
        launch = _kernel(device_of(path), depths, finish is not None)
        launch(
            (batch, 1, 1),
            tokens, parents, cu_nodes, path, num_accepted, finish, counts, tokens.shape[0], width, depths,
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
        one = tl.full([], 1, tl.int64)
        tl.atomic_add(counts_ptr, one, sem="relaxed")
        tl.atomic_add(counts_ptr + 1, tl.sum(drafted), sem="relaxed")
        tl.atomic_add(counts_ptr + 2, one * (width - 1), sem="relaxed")
        depth = tl.arange(0, DEPTHS)
        ones = tl.full([DEPTHS], 1, tl.int64)
        # If the last kept node has a drafted child, one more depth was tested than accepted.
        tested = (depth < taken + tl.max(below_last)) & (depth < depths)
        tl.atomic_add(counts_ptr + 3 + depth, ones, mask=tested, sem="relaxed")
        if finish_ptr is not None:  # a last token that was drafted is accepted, though its node is not kept
            taken += (tl.load(finish_ptr + b) & DRAFTED) // DRAFTED
        accepted = (depth < taken) & (depth < depths)
        tl.atomic_add(counts_ptr + 3 + depths + depth, ones, mask=accepted, sem="relaxed")
