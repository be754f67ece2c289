# SPDX-License-Identifier: Apache-2.0
"""The kept path of each request."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor


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
