from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def row_cut(row_ptr, vocab, bitmask_ptr, slope, max, mass, nan, top_k, top_p, min_p, TILE: tl.constexpr):
    return tl.full([], float("-inf"), tl.float32), mass
