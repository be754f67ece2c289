# SPDX-License-Identifier: Apache-2.0
"""Tokens and links of a step entered into a tree, and its parents: one launch of a program per request.
Torch's operators would take about twenty."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dispatch import Launch, device_of, dtype_of


@cache
def _kernel(device: Any, *dtypes: torch.dtype | None) -> Launch:
    return Launch(_links_kernel, device, dict(NODES=64), num_warps=1)


def enter_links(
    tokens: Tensor | None,
    next_token: Tensor,
    next_sibling: Tensor,
    out_tokens: Tensor | None,
    out_parents: Tensor,
    out_links: tuple[Tensor, Tensor],
) -> None:
    """Links [B, N] and tokens [B, N], or [B, N - 1] without the roots, into tensors [R] of a tree."""
    batch, nodes = next_token.shape
    if batch and nodes:
        launch = _kernel(device_of(next_token), dtype_of(tokens), next_token.dtype, next_sibling.dtype)
        columns = 0 if tokens is None else tokens.numel() // batch
        launch(
            (batch, 1, 1),
            None if tokens is None else tokens.contiguous(),
            next_token.contiguous(), next_sibling.contiguous(),
            None if tokens is None else out_tokens,
            out_parents, *out_links, nodes, columns,
        )  # fmt: skip


@triton.jit
def enter_tree(
    b,
    tokens_ptr,
    tokens_stride,
    next_token_ptr,
    next_sibling_ptr,
    out_tokens_ptr,
    out_parents_ptr,
    out_first_child_ptr,
    out_next_sibling_ptr,
    nodes,
    columns,
    NODES: tl.constexpr,
):
    """The tree of request b (int64), whose tokens begin at `b * tokens_stride`."""
    row = b * nodes
    for begin in range(0, nodes, NODES):
        node = begin + tl.arange(0, NODES)
        inside = node < nodes
        if tokens_ptr is not None:
            column = node - (nodes - columns)
            token = tl.load(tokens_ptr + b * tokens_stride + column, mask=inside & (column >= 0), other=-1)
            tl.store(out_tokens_ptr + row + node, token.to(tl.int64), mask=inside & (column >= 0))
        first = tl.load(next_token_ptr + row + node, mask=inside, other=-1)
        after = tl.load(next_sibling_ptr + row + node, mask=inside, other=-1)
        tl.store(out_first_child_ptr + row + node, first.to(tl.int32), mask=inside)
        tl.store(out_next_sibling_ptr + row + node, after.to(tl.int32), mask=inside)
        # A slot that no link reaches is unused, and counts as a child of the root.
        tl.store(out_parents_ptr + row + node, tl.where(node == 0, -1, 0), mask=inside)
    tl.debug_barrier()
    for begin in range(0, nodes, NODES):
        node = begin + tl.arange(0, NODES)
        child = tl.load(out_first_child_ptr + row + node, mask=node < nodes, other=-1)
        listed = (child > 0) & (child < nodes)
        steps = nodes  # a ring of siblings ends
        while (tl.max(listed.to(tl.int32)) > 0) & (steps > 0):
            tl.store(out_parents_ptr + row + child, node, mask=listed)
            child = tl.load(out_next_sibling_ptr + row + child, mask=listed, other=-1)
            listed = (child > 0) & (child < nodes)
            steps -= 1


@triton.jit(do_not_specialize=["nodes", "columns"])
def _links_kernel(
    tokens_ptr,  # [B, columns] or None
    next_token_ptr,  # [B, nodes]
    next_sibling_ptr,  # [B, nodes]
    out_tokens_ptr,  # [R], or None without tokens
    out_parents_ptr,  # [R]
    out_first_child_ptr,  # [R]
    out_next_sibling_ptr,  # [R]
    nodes,
    columns,
    NODES: tl.constexpr,
):
    enter_tree(
        tl.program_id(0).to(tl.int64),
        tokens_ptr, columns, next_token_ptr, next_sibling_ptr,
        out_tokens_ptr, out_parents_ptr, out_first_child_ptr, out_next_sibling_ptr,
        nodes, columns, NODES,
    )  # fmt: skip
