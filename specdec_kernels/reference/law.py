# SPDX-License-Identifier: Apache-2.0
"""The law of a row of logits, in float64."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..sampling import ORDERS, SamplingParams

NAN, EMPTY, IMPOSSIBLE, OVERFLOW = 1, 2, 4, 8


class Params(NamedTuple):
    """The fields of `SamplingParams` for one request. Values may be out of range."""

    temperature: float
    top_k: float
    top_p: float
    min_p: float
    order: str


def target_law(row: Tensor, params: Params | SamplingParams, allowed: Tensor | None) -> tuple[Tensor, int]:
    """The target's law [V] and the bits of `Status` that its row [V] sets."""
    z, status = target_exponents(row, params, allowed)
    return normalised(z), status


def target_exponents(
    row: Tensor, params: Params | SamplingParams, allowed: Tensor | None
) -> tuple[Tensor, int]:
    """The same law as `exponents`.

    NaN counts as `-inf`. A row without a possible token gives the point mass at the lowest allowed token, or
    at 0 if none is allowed.
    """
    row, status = row.detach().double(), 0
    if row.isnan().any():
        row, status = torch.where(row.isnan(), -math.inf, row), status | NAN
    if allowed is not None:
        row = torch.where(allowed, row, -math.inf)
    if (row > -math.inf).any():
        return exponents(row, params), status
    lowest = first(allowed) if allowed is not None and allowed.any() else 0
    return point(lowest, row.numel()).log(), status | EMPTY


def draft_law(
    row: Tensor, params: Params | SamplingParams, form: str, ids: Tensor | None, vocab_size: int
) -> Tensor | None:
    """The draft's law over tokens. None if the row [Vd] has a NaN or no possible token: it counts as no row.
    Its `form` is "logits", or "logprobs" or "probs" if it is the law itself.

    Without `ids` column i is token i, and the law is as wide as the wider of row and vocabulary. Columns
    beyond the vocabulary are padding. They may have been sampled, so they count in the normalisation.
    """
    row = row.detach().double()
    if row.isnan().any() or not (row > (0 if form == "probs" else -math.inf)).any():
        return None
    if form == "logits":
        q = law(row, params)
    else:
        q = row.exp() if form == "logprobs" else row.clamp_min(0.0)
    if q.isinf().any():  # the row is not the logarithm of a law
        return None
    if ids is not None:
        return torch.zeros(vocab_size, dtype=torch.float64).index_put((ids,), q)
    return torch.nn.functional.pad(q, (0, max(vocab_size - q.numel(), 0)))


def law(row: Tensor, params: Params | SamplingParams) -> Tensor:
    """Apply temperature, min-p, top-k and top-p to a float64 row without NaN that has an entry above `-inf`.
    With `min_p_last` min-p is applied last.

    Cuts compare values, so tied tokens are kept or dropped together.
    """
    return normalised(exponents(row, params))


def normalised(z: Tensor) -> Tensor:
    """The law with these exponents."""
    weight = z.exp()
    return weight / weight.sum()


def exponents(row: Tensor, params: Params | SamplingParams) -> Tensor:
    """The same law as logarithms of weights: 0 for the likeliest tokens, `-inf` for what is dropped."""
    temperature, top_k, top_p, min_p, order = params
    best = row.max()
    if not temperature > 0:
        return point(first(row == best), row.numel()).log()
    if best == math.inf:  # the infinite entries share all the mass; they are tied, so every cut keeps them
        return (row == math.inf).double().log()
    z = torch.where(row > -math.inf, (row - best) / temperature, -math.inf)
    weight = z.exp()
    keep = row > -math.inf
    likely = weight >= min(min_p, 1.0) if min_p > 0 else keep.clone()  # the largest weight is 1
    if order == "min_p_first":
        keep &= likely
    if 1 <= top_k < int(keep.sum()):
        keep &= row >= row[keep].topk(int(top_k)).values[-1]
    if top_p < 1:
        value, index = row[keep].unique(return_inverse=True)  # ascending
        mass = torch.zeros_like(value).index_add(0, index, weight[keep])
        greater = mass.flip(0).cumsum(0).flip(0) - mass
        greater[-1] = 0.0
        kept = (greater < top_p * mass.sum()) | (value == value[-1])
        keep[keep.clone()] = kept[index]
    if order == "min_p_last":
        keep &= likely
    return torch.where(keep, z, -math.inf)


def allowed_tokens(bitmask: Tensor, vocab_size: int) -> Tensor:
    """[V] bool from [ceil(V / 32)] int32: token x is bit `x % 32` of word `x // 32`."""
    token = torch.arange(vocab_size)
    return (bitmask[token >> 5].long() >> (token & 31) & 1).bool()


def first(mask: Tensor) -> int:
    """The lowest index where the mask is set."""
    return int(mask.nonzero()[0])


def point(token: int, vocab_size: int) -> Tensor:
    """The point mass at `token`; all zeros if the token lies outside the vocabulary."""
    p = torch.zeros(vocab_size, dtype=torch.float64)
    p[token : token + 1] = 1.0
    return p


def params_of(numbers: list[float], rows: list[Tensor | None], request: int) -> Params:
    """The parameters of one request."""
    *numbers, last = numbers
    per_request = rows or [None] * len(numbers)
    values = (n if row is None else float(row[request]) for n, row in zip(numbers, per_request, strict=True))
    temperature, top_k, top_p, min_p = values
    return Params(temperature, top_k, top_p, min_p, ORDERS[int(last)])
