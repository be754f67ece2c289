# SPDX-License-Identifier: Apache-2.0
"""Paths in trees: kept nodes, and the tokens on the way to a node."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor


def tokens_to(tokens: list[int], parents: list[int], node: int) -> list[int]:
    """The tokens of a node and its ancestors, topmost first, without the root's. A path ends at a parent that
    is no node before its child."""
    path: list[int] = []
    while node > 0:
        path.append(tokens[node])
        if not 0 <= parents[node] < node:
            break
        node = parents[node]
    return path[::-1]


def kept_paths(path: Tensor, cu_nodes: Tensor, rows: int) -> Iterator[tuple[int, list[int]]]:
    """First row and kept nodes of every request.

    A path ends at the first entry that is no node of the request or not larger than its predecessor.
    """
    ends = [min(max(end, 0), rows) for end in cu_nodes.tolist()]
    for start, end, nodes in zip(ends[:-1], ends[1:], path.tolist(), strict=True):
        kept: list[int] = []
        for node in nodes:
            if not (kept[-1] if kept else -1) < node < end - start:
                break
            kept.append(node)
        yield start, kept
