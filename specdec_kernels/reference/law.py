# SPDX-License-Identifier: Apache-2.0
"""The law a row of logits stands for, in float64."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..sampling import ORDERS, SamplingParams

NAN, EMPTY, IMPOSSIBLE = 1, 2, 4


class Params(NamedTuple):
    """The fields of `SamplingParams` as they hold for one request, out of range or not."""

    temperature: float
    top_k: float
    top_p: float
    min_p: float
    order: str


def target_law(row: Tensor, params: Params | SamplingParams, allowed: Tensor | None) -> tuple[Tensor, int]:
    """The target's law [V] and the bits of `Status` that its row [V] sets.

    NaN counts as `-inf`. A row with nothing left is the point mass at the lowest allowed token, 0 if none is.
    """
    row, status = row.detach().double(), 0
    if row.isnan().any():
        row, status = torch.where(row.isnan(), -math.inf, row), status | NAN
    if allowed is not None:
        row = torch.where(allowed, row, -math.inf)
    if (row > -math.inf).any():
        return law(row, params), status
    lowest = first(allowed) if allowed is not None and allowed.any() else 0
    return point(lowest, row.numel()), status | EMPTY


def draft_law(
    row: Tensor, params: Params | SamplingParams, is_logprobs: bool, ids: Tensor | None, vocab_size: int
) -> Tensor | None:
    """The draft's law over tokens, or None where the row [Vd] counts as no row: a NaN, or nothing left.

    Without `ids` column i is token i, and the law is as wide as the wider of row and vocabulary: columns
    beyond the vocabulary are padding, which may have been sampled and belongs to the normaliser.
    """
    row = row.detach().double()
    if row.isnan().any() or not (row > -math.inf).any():
        return None
    q = row.exp() if is_logprobs else law(row, params)
    if q.isinf().any():  # no logarithm of a law
        return None
    if ids is not None:
        return torch.zeros(vocab_size, dtype=torch.float64).index_put((ids,), q)
    return torch.nn.functional.pad(q, (0, max(vocab_size - q.numel(), 0)))


def law(row: Tensor, params: Params | SamplingParams) -> Tensor:
    """Temperature, min-p, top-k, top-p on a float64 row without NaN that has an entry above `-inf`; with
    `min_p_last`, min-p on what the others kept.

    Cuts compare values, so tied tokens are kept or dropped together.
    """
    temperature, top_k, top_p, min_p, order = params
    best = row.max()
    if not temperature > 0:
        return point(first(row == best), row.numel())
    if best == math.inf:  # these entries share all the mass; being tied they survive every cut
        weight = (row == math.inf).double()
        return weight / weight.sum()
    weight = torch.where(row > -math.inf, (row - best) / temperature, -math.inf).exp()
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
    weight = torch.where(keep, weight, 0.0)
    return weight / weight.sum()


def allowed_tokens(bitmask: Tensor, vocab_size: int) -> Tensor:
    """[V] bool from [ceil(V / 32)] int32: token x is bit `x % 32` of word `x // 32`."""
    token = torch.arange(vocab_size)
    return (bitmask[token >> 5].long() >> (token & 31) & 1).bool()


def first(mask: Tensor) -> int:
    """The lowest index where the mask is set."""
    return int(mask.nonzero()[0])


def point(token: int, vocab_size: int) -> Tensor:
    """The point mass at `token`, which is nothing at all where it lies outside the vocabulary."""
    p = torch.zeros(vocab_size, dtype=torch.float64)
    p[token : token + 1] = 1.0
    return p


def params_of(numbers: list[float], rows: list[Tensor | None], request: int) -> Params:
    """What holds for one request."""
    *numbers, last = numbers
    per_request = rows or [None] * len(numbers)
    values = (n if row is None else float(row[request]) for n, row in zip(numbers, per_request, strict=True))
    temperature, top_k, top_p, min_p = values
    return Params(temperature, top_k, top_p, min_p, ORDERS[int(last)])
