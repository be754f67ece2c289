# SPDX-License-Identifier: Apache-2.0
"""Laws of rows of which this process has some columns: the same numbers per row in every process.

The largest score of a row is gathered first. Cuts are thresholds on the score, found by counts or masses of
the tokens at or above; masses are sums in fixed point. So no result depends on where the shards' borders are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..sampling import Numbers
from .shard import Collectives, VocabShard

NONE = -math.inf
RADIX = 4  # bits of a key that one step of a search settles
_KEY_BITS = {torch.bfloat16: 16, torch.float16: 19}  # the others of a float32 are all alike


class Params(NamedTuple):
    """The fields of `SamplingParams` for every row, each [n, 1] float64. Values may be out of range."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    min_p_last: bool
    has_top_k: bool
    has_top_p: bool


class Side(NamedTuple):
    """The rows of the target or of the draft, as this process has them.

    `last` [n] is what else is to be known of each row as the largest of all processes: any int64.
    """

    scores: Tensor  # [n, W] float32, -inf where there is nothing
    nan: Tensor  # [n] bool
    last: Tensor
    params: Params
    steps: int  # of a search for a score
    form: str = "logits"


class Law(NamedTuple):
    """A law up to its mass: p = weights / mass."""

    weights: Tensor  # [n, W] float64 in [0, 1]
    best: Tensor  # [n] float32, the largest score; 0 in rows with +inf
    nan: Tensor  # [n] bool
    empty: Tensor  # [n] bool
    infinite: Tensor  # [n] bool: the +inf entries share all the mass
    point: Tensor  # [n] int64, the only token that is possible; -1 = not known
    last: Tensor  # [n] int64


def params_of(sampling: Numbers, request: Tensor) -> Params:
    """The parameters of rows whose requests [n] are these."""
    numbers, tensors = sampling
    given = tensors or [None] * 4
    columns = [
        torch.full(request.shape, number, dtype=torch.float64, device=request.device)
        if values is None
        else values.double()[request]
        for number, values in zip(numbers, given, strict=False)
    ]
    has_top_k, has_top_p = cuts_of(sampling)
    temperature, top_k, top_p, min_p = (column[:, None] for column in columns)
    return Params(temperature, top_k, top_p, min_p, bool(numbers[4]), has_top_k, has_top_p)


def cuts_of(sampling: Numbers) -> tuple[bool, bool]:
    """Whether top-k and top-p may cut some row; no values of tensors are read."""
    numbers, tensors = sampling
    given = tensors or [None] * 4
    return given[1] is not None or numbers[1] >= 1, given[2] is not None or numbers[2] < 1


def steps_for(*dtypes: torch.dtype) -> int:
    """How many steps a search takes where rows have these dtypes."""
    return max(-(-_KEY_BITS.get(dtype, 32) // RADIX) for dtype in dtypes)


def read(scores: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
    """Float32 rows [n, W] without what is not allowed, and whether a row has a NaN [n]. Masked NaN count."""
    nan = scores.isnan()
    scores = torch.where(nan, NONE, scores) + 0.0  # -0 becomes +0: they tie
    if allowed is not None:
        scores = torch.where(allowed, scores, NONE)
    return scores, nan.any(-1)


def allowed_tokens(bitmask: Tensor, size: int) -> Tensor:
    """[n, size] bool from [n, ceil(size / 32)] int32: token x is bit `x % 32` of word `x // 32`."""
    token = torch.arange(size, device=bitmask.device)
    return (bitmask[:, token >> 5] >> (token & 31) & 1).bool()


def keys_of(scores: Tensor) -> Tensor:
    """float32 -> int64 in [0, 2^32), in the same order."""
    bits = scores.contiguous().view(torch.int32)
    return (bits ^ (bits >> 31 & 0x7FFFFFFF)).long() + 2**31


def scores_of(keys: Tensor) -> Tensor:
    """The inverse of `keys_of`."""
    bits = (keys - 2**31).int()
    return (bits ^ (bits >> 31 & 0x7FFFFFFF)).view(torch.float32)


def laws(shard: VocabShard, sides: list[Side], bits: int) -> list[Law]:
    """The laws of all rows. One gather, and for top-k and for top-p, if a side has them, a sum per step."""
    numbers = [_measured(shard, side) for side in sides]
    everyone = shard._collectives.gather(torch.cat(numbers))
    found = [
        _law(shard, side, part)
        for side, part in zip(sides, everyone.split([len(part) for part in numbers], 1), strict=True)
    ]
    keep = _cut(shard._collectives, sides, found, bits)
    return [
        law._replace(weights=torch.where(kept, law.weights, 0.0))
        for law, kept in zip(found, keep, strict=True)
    ]


def _measured(shard: VocabShard, side: Side) -> Tensor:
    """[n, 4] int64: the key of the largest score, the lowest token that has it, NaN, `last`."""
    best = side.scores.amax(-1, keepdim=True)
    place = torch.arange(side.scores.shape[1], device=best.device)
    first = torch.where(side.scores == best, place, place.numel()).amin(-1)
    return torch.stack((keys_of(best)[:, 0], first + shard.start, side.nan.long(), side.last), 1)


def _law(shard: VocabShard, side: Side, everyone: Tensor) -> Law:
    """The law before cuts, from the numbers [ranks, n, 4] of all processes."""
    key, token, nan, last = everyone.unbind(-1)
    largest = key.amax(0)
    top = torch.where(key == largest, token, 2**62).amin(0)
    best = scores_of(largest)
    params, scores = side.params, side.scores
    place = shard.start + torch.arange(scores.shape[1], device=best.device)
    if side.form == "logits":
        empty, infinite = best == NONE, best == math.inf
        greedy = ~(params.temperature[:, 0] > 0)
        scores = torch.where(infinite[:, None], torch.where(scores == math.inf, 0.0, NONE), scores)
        best = torch.where(infinite, 0.0, best)
        heat = torch.where(greedy[:, None], 1.0, params.temperature)
        shifted = (scores.double() - best.double()[:, None]) / heat
        weights = torch.where(scores > NONE, shifted, NONE).exp()
        point = torch.where(greedy, top, -1)
    else:
        weights = scores.double().exp() if side.form == "logprobs" else scores.double().clamp_min(0.0)
        whole = best.double().exp() if side.form == "logprobs" else best.double()
        empty, infinite = ~((whole > 0) & (whole < math.inf)), torch.zeros_like(nan[0], dtype=torch.bool)
        point = torch.full_like(top, -1)
    weights = torch.where((point >= 0)[:, None], (place == point[:, None]).double(), weights)
    return Law(weights, best, nan.amax(0) > 0, empty, infinite, point, last.amax(0))


def _cut(collectives: Collectives, sides: list[Side], found: list[Law], bits: int) -> list[Tensor]:
    """Which tokens every row keeps, [n, W] bool for each side."""
    keep, likely = [], []
    for side, law in zip(sides, found, strict=True):
        enough = ~(law.weights < side.params.min_p.clamp_max(1.0))  # NaN is off
        likely.append(enough)
        keep.append((law.weights > 0) & (enough | side.params.min_p_last))
    by_count = [i for i, side in enumerate(sides) if side.params.has_top_k]
    if by_count:
        counts = [keep[i].long() for i in by_count]
        bars = _select(collectives, [sides[i] for i in by_count], counts, _counted)
        for i, bar in zip(by_count, bars, strict=True):
            keep[i] = keep[i] & bar
    by_mass = [i for i, side in enumerate(sides) if side.params.has_top_p]
    if by_mass:
        masses = [(torch.where(keep[i], found[i].weights, 0.0) * 2.0**bits).long() for i in by_mass]
        bars = _select(collectives, [sides[i] for i in by_mass], masses, _covered)
        for i, bar in zip(by_mass, bars, strict=True):
            keep[i] = keep[i] & bar
    return [kept & enough for kept, enough in zip(keep, likely, strict=True)]


Goal = Callable[[Params, Tensor], Tensor]


def _counted(params: Params, count: Tensor) -> Tensor:
    """How many tokens top-k wants, [n] int64, of as many as `count`."""
    top_k = params.top_k[:, 0]
    limited = (top_k >= 1) & (top_k < count)
    return torch.where(limited, torch.where(limited, top_k, 1.0).long(), count)


def _covered(params: Params, mass: Tensor) -> Tensor:
    """The mass that top-p wants, [n] int64, of `mass`; 0 = all."""
    top_p = params.top_p[:, 0]
    wanted = (top_p.clamp(0.0, 1.0) * mass.double()).ceil().long().clamp_min(1)
    return torch.where(top_p < 1, torch.minimum(wanted, mass), 0)


def _select(collectives: Collectives, sides: list[Side], amounts: list[Tensor], goal: Goal) -> list[Tensor]:
    """Which tokens are at or above the largest score for which the amounts of such tokens reach the goal.

    The key of that score is found from its highest bits on: each step sums 16 integers for each row.
    """
    steps, bins = max(side.steps for side in sides), 2**RADIX
    keys = [keys_of(side.scores) >> (32 - RADIX * steps) for side in sides]
    rows = [len(side.scores) for side in sides]
    found = above = wanted = torch.zeros(sum(rows), dtype=torch.int64, device=keys[0].device)
    for step in range(steps):
        shift = RADIX * (steps - step - 1)
        parts = zip(keys, amounts, found.split(rows), strict=True)
        local = torch.cat([_histogram(key, amount, prefix, shift, bins) for key, amount, prefix in parts])
        reached = collectives.total(local).flip(1).cumsum(1).flip(1)  # of a bin and those above
        if step == 0:
            wholes = reached[:, 0].split(rows)
            wanted = torch.cat([goal(side.params, all_) for side, all_ in zip(sides, wholes, strict=True)])
        place = ((above[:, None] + reached >= wanted[:, None]).sum(1) - 1).clamp_min(0)
        above = above + torch.nn.functional.pad(reached, (0, 1)).gather(1, place[:, None] + 1)[:, 0]
        found = found << RADIX | place
    bars = torch.where(wanted > 0, found, 0).split(rows)
    return [key >= bar[:, None] for key, bar in zip(keys, bars, strict=True)]


def _histogram(keys: Tensor, amounts: Tensor, prefix: Tensor, shift: int, bins: int) -> Tensor:
    """[n, bins] int64: the amounts of tokens whose key begins with `prefix` [n], by what comes next."""
    sums = torch.zeros((len(keys), bins), dtype=torch.int64, device=keys.device)
    place = (keys >> shift) - prefix[:, None] * bins
    inside = (place >= 0) & (place < bins)
    row = bins * torch.arange(len(keys), device=keys.device)[:, None]
    index = torch.where(inside, row + place, 0).flatten()
    sums.view(-1).scatter_add_(0, index, torch.where(inside, amounts, 0).flatten())
    return sums
