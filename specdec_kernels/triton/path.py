# SPDX-License-Identifier: Apache-2.0
"""The kept path of each request, as `csrc/path.h` has it."""

from __future__ import annotations

import triton
import triton.language as tl

_BLOCK = tl.constexpr(32)  # entries of a path looked at together


@triton.jit
def kept_nodes(path_ptr, width, count):
    """Nodes kept: entries up to the first that is not above its predecessor or is no node of the request."""
    kept, first = 0, 0
    while (kept == first) & (first < width):
        offs = first + tl.arange(0, _BLOCK)
        node = tl.load(path_ptr + offs, mask=offs < width, other=-1)
        last = tl.load(path_ptr + offs - 1, mask=(offs > 0) & (offs < width), other=-1)
        first += _BLOCK
        kept = tl.min(tl.where((node > last) & (node < count), first, offs))
    return kept
