# SPDX-License-Identifier: Apache-2.0
"""The laws of measured rows, merged from their splits, as one record of scalars each.

Where cuts leave a threshold open, two more launches find it (`select.py`).
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .arguments import has_cuts
from .cuts import settle_cut
from .launch import RowPasses
from .law import EMPTY, NAN, Law, load_law
from .measure import load_listed
from .record import load, save, whole_sectors
from .row import exponent_of, lowest_allowed, merge_first, slope_of
from .select import (
    BRACKET,
    COLLECTED,
    SUMS,
    collect,
    expect,
    load_bracket,
    nothing_open,
    save_bracket,
    select,
    sum_words,
)


class Settled(NamedTuple):
    """What is known of a row besides its law, int32."""

    status: tl.tensor  # status bits; of a draft row anything but 0 says that it is no law
    token: tl.tensor  # the likeliest, of greedy requests; under `match` what was drawn
    arrivals: tl.tensor  # under `match`, programs of the row's race


# Float64 words: the law, and then what else is known.
LAW = whole_sectors(len(Law._fields) + 2)
_FACTS = tl.constexpr(len(Law._fields))
_LAW, _BRACKET, _COLLECTED = tl.constexpr(LAW), tl.constexpr(BRACKET), tl.constexpr(COLLECTED)


def settling_of(rows: int, passes: RowPasses, cuts: bool, sides: int = 1) -> dict[str, int]:
    """Parts of the scratch, for the laws of so many rows."""
    count, splits = rows * sides, passes.splits.padded
    parts = dict(laws=count * LAW)
    if cuts:
        parts |= dict(
            listed=count * 3 * splits * passes.lanes // 2,
            brackets=count * BRACKET,
            sums=count * passes.collect.padded * SUMS,
            collected=count * passes.collect.padded * COLLECTED // 2,
        )
    return parts


@triton.jit
def _place(scratch, row, side):
    return row * scratch.sides + side


@triton.jit
def _law_words(scratch, row, side):
    return scratch.words + scratch.laws + _place(scratch, row, side) * _LAW


@triton.jit
def _bracket_words(scratch, row, side):
    return scratch.words + scratch.brackets + _place(scratch, row, side) * _BRACKET


@triton.jit
def _facts(words):
    return (words + _FACTS).to(tl.pointer_type(tl.int32))


@triton.jit
def load_settled(scratch, row, side):
    """The law of a row, and what else is known of it."""
    words = _law_words(scratch, row, side)
    law, number = load_law(words), tl.full([], 0, tl.int32)
    return law, Settled(*load(_facts(words), (number, number, number)))


@triton.jit
def law_of(scratch, row, side):
    """The law of a row alone."""
    return load_law(_law_words(scratch, row, side))


@triton.jit
def settle_row(
    scratch, row, measured, scores, results, params,
    SPLIT: tl.constexpr, LANES: tl.constexpr, GREEDY: tl.constexpr,
):  # fmt: skip
    """The law of a row, what else is known of it, and the thresholds that its cuts leave open. Its `scores`
    are a Row; its splits have these results, and listed under the side `measured`. Cuts are looked at with
    LANES > 0. With GREEDY a request of temperature 0 has its likeliest token for certain, else the law at
    temperature 1."""
    greedy = (params.temperature > 0) == 0
    slope = slope_of(tl.where(greedy, 1.0, params.temperature))
    top = tl.max(results.max)
    mass = tl.sum((results.mass * tl.exp2(exponent_of(results.max, top, slope))).to(tl.float64))
    status = tl.max(results.flags) * NAN
    token = tl.minimum(merge_first(results.max, results.token, top), scores.size - 1)
    point = tl.full([], -1, tl.int32)
    cut = tl.full([], float("-inf"), tl.float32)
    bracket = nothing_open()
    cutting = (top < float("inf")) & has_cuts(params, scores.size)
    if GREEDY:
        cutting = cutting & (not greedy)
        point = tl.where(greedy, token, point)
    if top == float("-inf"):
        status |= EMPTY
        token = lowest_allowed(scores, 1024)  # 32 tokens a lane of one warp
        point = token
    elif LANES > 0:
        if cutting:
            listed = load_listed(scratch, row, measured, scores.size, results.floor, SPLIT, LANES)
            total = mass.to(tl.float32)
            cuts = settle_cut(listed, scores, slope, top, total, params)
            if cuts.counting | cuts.summing | (not cuts.known):
                bracket = expect(scores, top, slope, total, cuts, params)
            else:
                cut = cuts.cut
                mass = cuts.mass.to(tl.float64)
    law = Law(top, slope, cut, tl.where(point >= 0, 1.0, mass), point)
    return law, Settled(status, token, tl.full([], 0, tl.int32)), bracket


@triton.jit
def save_settled(scratch, row, side, law, settled, bracket):
    words = _law_words(scratch, row, side)
    save(words, law)
    save(_facts(words), settled)
    if bracket is not None:
        save_bracket(_bracket_words(scratch, row, side), bracket)


@triton.jit
def likeliest_law(law, token):
    """Of a greedy request, whose law was settled at temperature 1."""
    point = tl.where(law.point >= 0, law.point, token)
    return Law(law.top, law.slope, law.cut, tl.full([], 1.0, tl.float64), point)


@triton.jit
def close_row(scratch, row, side):
    """Of a row that was not measured: nothing of it is open."""
    save_bracket(_bracket_words(scratch, row, side), nothing_open())


@triton.jit
def is_open(scratch, row, side):
    return load_bracket(_bracket_words(scratch, row, side)).open > 0


@triton.jit
def save_token(scratch, row, side, token):
    words = _law_words(scratch, row, side)
    tl.store(_facts(words) + 1, token)


@triton.jit
def arrives_last_at(scratch, row, side, programs):
    """Whether all other programs of a launch that work at a row have arrived, with what they wrote."""
    words = _law_words(scratch, row, side)
    arrivals = _facts(words) + 2
    tl.debug_barrier()
    last = tl.atomic_add(arrivals, 1, sem="acq_rel") == programs - 1
    if last:
        tl.store(arrivals, 0)
    return last


@triton.jit
def collect_row(scratch, row, side, scores, split, SPLIT: tl.constexpr, SPLITS: tl.constexpr):
    """The part of a split in settling a row that is open."""
    sums, collected = _collected(scratch, row, side, SPLITS)
    bracket = load_bracket(_bracket_words(scratch, row, side))
    collect(scores, split, law_of(scratch, row, side), bracket, sums, collected, SPLIT)


@triton.jit
def select_row(scratch, row, side, scores, params, SPLIT: tl.constexpr, SPLITS: tl.constexpr):
    """Settles a row that was open, and returns its law."""
    words, bracket = _law_words(scratch, row, side), load_bracket(_bracket_words(scratch, row, side))
    sums, collected = _collected(scratch, row, side, SPLITS)
    law, splits = load_law(words), tl.cdiv(scores.size, SPLIT)
    cut, mass = select(scores, law, params, bracket, sums, collected, splits, SPLITS)
    law = Law(law.top, law.slope, cut, mass.to(tl.float64), law.point)
    save(words, law)
    return law


@triton.jit
def _collected(scratch, row, side, SPLITS: tl.constexpr):
    """Where the splits of a row leave what they summed, and the scores."""
    scores = (scratch.words + scratch.collected).to(tl.pointer_type(tl.float32))
    place = _place(scratch, row, side)
    return sum_words(scratch, place, SPLITS), scores + place * (SPLITS * _COLLECTED)
