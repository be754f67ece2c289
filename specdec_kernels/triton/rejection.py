# SPDX-License-Identifier: Apache-2.0
"""The rejection of a child: what is left of P."""

from __future__ import annotations

import triton
import triton.language as tl

from .residual import normalised, span_mass, subtract, whole_mass
from .sums import RESIDUAL_MASS, load_kind, load_sums


@triton.jit
def reject(ctx, node, state, child, left, w, wanted, SUMS: tl.constexpr, TILE: tl.constexpr):
    """Rejects the child under test, which had P(token) = left, with P scaled by w. Returns the state, and the
    mass S of [w P - Q]+, which, normalised, is the new P. A mass of 0 leaves P = p.

    Where S is not `wanted`, 1 is returned: the draw finds out whether anything is left."""
    first = (state.last < 0) & (state.since < 0)
    state = subtract(state, child, w)
    divisor = tl.full([], 1.0, tl.float64)
    if state.factor > 0:
        if wanted:
            divisor = whole_mass(ctx, node, state, _untracked_mass(ctx, node, state, first, SUMS, TILE))
        mass = divisor
    else:
        divisor -= left
        mass = w * divisor
    return normalised(state, divisor), tl.maximum(mass, 0.0)


@triton.jit
def _untracked_mass(ctx, node, state, first, SUMS: tl.constexpr, TILE: tl.constexpr):
    """In units of p's weights. It is at hand where the first child was rejected (`sum_rows.py`). After a
    later one this program passes over both rows."""
    known = first < 0
    amount = tl.full([], 0.0, tl.float64)
    if SUMS is not None:
        # Under way with the word that says whether it counts.
        amounts, _ = load_sums(ctx.scratch, node.row, tl.cdiv(ctx.target.vocab, SUMS[0]), SUMS[1])
        known = first & (load_kind(ctx.scratch, node.row) == RESIDUAL_MASS)
        amount = tl.sum(amounts)
    if not known:
        amount = span_mass(ctx, node, state, 0, ctx.target.vocab, TILE)
    return amount
