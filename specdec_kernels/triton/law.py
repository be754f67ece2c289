# SPDX-License-Identifier: Apache-2.0
"""The law a row of scores stands for, as a few scalars, and probabilities of single tokens.

    p(x) = 2^((x - top) slope) / mass for scores x >= cut, else 0

`top` is the row's largest score; where it is +inf, its infinite entries share all the mass. A law with a
`point` >= 0 is that token for certain (greedy, or nothing left in the row).
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from ..verification import Status
from .arguments import bitmask_of, draft_logits, edits_of, row_data, target_data
from .dispatch import given
from .edited import edited
from .logarithm import LN2, LOG2E
from .record import load
from .row import Row, exponent_of

NAN = tl.constexpr(int(Status.NAN))
EMPTY = tl.constexpr(int(Status.EMPTY))
IMPOSSIBLE = tl.constexpr(int(Status.IMPOSSIBLE))
OVERFLOW = tl.constexpr(int(Status.OVERFLOW))


class Law(NamedTuple):
    top: tl.tensor  # float32
    slope: tl.tensor  # float32, log2(e) / temperature
    cut: tl.tensor  # float32
    mass: tl.tensor  # float64, of the weights 2^((x - top) slope); 1 where there is a point
    point: tl.tensor  # int32, -1 = none


@triton.jit
def exp2_wide(t):
    """2^t of float64 t <= 0; 0 below 2^-1022 and for NaN."""
    whole = tl.floor(t + 0.5)
    y = (t - whole) * LN2
    e = 1.0
    for k in tl.static_range(12, 0, -1):
        e = 1.0 + y * (1.0 / k) * e
    bits = (tl.maximum(whole, -1022.0).to(tl.int64) + 1023) << 52
    return tl.where(t >= -1022.0, e * bits.to(tl.float64, bitcast=True), 0.0)


@triton.jit
def probability(law, x, token):
    """p of tokens with these scores, -inf where a token has none: float64."""
    t = (x.to(tl.float64) - law.top) * law.slope
    p = tl.where(law.top == float("inf"), tl.where(x == float("inf"), 1.0, 0.0), exp2_wide(t)) / law.mass
    p = tl.where((x >= law.cut) & (x > float("-inf")), p, 0.0)
    return tl.where(law.point >= 0, tl.where(token == law.point, 1.0, 0.0), p)


@triton.jit
def log_probability(law, x, token):
    """Its natural logarithm, float32, exact to a few 2^-22 however small p is."""
    log2_p = (x - law.top) * law.slope
    log2_p = tl.where(law.top == float("inf"), tl.where(x == float("inf"), 0.0, float("-inf")), log2_p)
    log2_p -= tl.log2(law.mass.to(tl.float32))
    log2_p = tl.where(x >= law.cut, log2_p, float("-inf"))
    log2_p = tl.where(law.point >= 0, tl.where(token == law.point, 0.0, float("-inf")), log2_p)
    return log2_p * LN2


@triton.jit
def store_logprob(logprobs_ptr, place, target, row, law, token):
    """Writes the log-probability of a token (int64), where it is asked for."""
    if logprobs_ptr is not None:
        if given(logprobs_ptr):
            x = target_scores(target, row, token, token >= 0)
            tl.store(logprobs_ptr + place, log_probability(law, x, token))


@triton.jit
def weights(top, law, x, token):
    """The weights of a tile of tokens; `top` is the score whose weight is 1. Float32."""
    w = tl.exp2(exponent_of(x, top, law.slope))
    if law.point >= 0:
        w = tl.where(token == law.point, 1.0, 0.0)
    elif law.cut > float("-inf"):
        w = tl.where(x >= law.cut, w, 0.0)
    return w


@triton.jit
def target_scores(target, row, token, inside):
    """Scores of some tokens (int64); -inf for those outside the vocabulary, masked, or NaN."""
    inside = inside & (token >= 0) & (token < target.vocab)
    scores = Row(target_data(target, row), target.vocab, bitmask_of(target, row), edits_of(target, row))
    x = tl.load(scores.data + token, mask=inside, other=float("-inf")).to(tl.float32)
    if target.edits is not None:
        x = edited(scores, x, token, inside)
    if target.bitmask is not None:
        word = tl.load(scores.bitmask + (token >> 5), mask=inside, other=0)
        x = tl.where(((word >> (token & 31).to(tl.int32)) & 1) != 0, x, float("-inf"))
    return tl.where(x == x, x, float("-inf"))


@triton.jit
def draft_scores(draft, drawn_from, vocab, token, inside):
    """The same in a draft row; without a draft vocabulary it may have columns beyond the target's."""
    column = token
    if draft.columns is not None:
        inside = inside & (token < vocab)
        column = tl.load(draft.columns + token, mask=inside, other=-1).to(tl.int64)
    inside = inside & (column >= 0) & (column < draft.size)
    x = tl.load(
        Row(row_data(draft, drawn_from), draft.size, None, None).data + column,
        mask=inside,
        other=float("-inf"),
    ).to(tl.float32)
    x = draft_logits(draft, x)
    return tl.where(x == x, x, float("-inf"))


@triton.jit
def load_law(words):
    return Law(*load(words, logprobs_law()))


@triton.jit
def law_if(known, law):
    """A law that may not be known, and then is none."""
    none = logprobs_law()
    return Law(
        tl.where(known, law.top, none.top),
        tl.where(known, law.slope, none.slope),
        tl.where(known, law.cut, none.cut),
        tl.where(known, law.mass, none.mass),
        tl.where(known, law.point, none.point),
    )


@triton.jit
def logprobs_law():
    """Of a row that is the law's logarithm itself."""
    return Law(
        tl.full([], 0.0, tl.float32),
        tl.full([], LOG2E, tl.float32),
        tl.full([], float("-inf"), tl.float32),
        tl.full([], 1.0, tl.float64),
        tl.full([], -1, tl.int32),
    )
