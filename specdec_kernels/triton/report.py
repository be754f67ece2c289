# SPDX-License-Identifier: Apache-2.0
"""What is reported of emitted tokens: log-probabilities, the likeliest tokens, ranks, and sampling masks.

report    (B W, splits)   after all other launches: what the splits know of the row of every emitted token;
                          the last program of a position merges them. Bits of masks are written here
ids       (B W, splits)   with masks as ids: writes these

A position is that of a token in its request. Its row is that of the node before it, whose law is in the
scratch. In place of a law that is not the processed one, that of the row as it was given is found here.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from .._ops.calls import SampleCall, VerifyCall
from .arguments import (
    OPTIONAL,
    RowsForm,
    Sampling,
    SamplingForm,
    Scratch,
    Target,
    bitmask_of,
    compiler_options,
    edits_of,
    number_of,
    rows_form,
    sampling_form,
    target_data,
    target_row,
)
from .dispatch import Launch, current, device_of
from .edited import edited
from .launch import Splits, report_splits
from .law import OVERFLOW, Law, log_probability
from .record import load_shared, save
from .row import NO_TOKEN, Row, allowed, exponent_of, slope_of
from .settle import arrives_last_at, likeliest_law, load_settled
from .wanted import TARGET

_NOTHING = tl.constexpr(float("-inf"))
_CHOSEN = tl.constexpr(32)  # tokens looked up together
_COUNTS = tl.constexpr(1024)  # positions whose counts are summed together
PROCESSED = tl.constexpr(0)
RAW = tl.constexpr(1)
TEMPERATURE = tl.constexpr(2)
_KINDS = dict(processed=0, raw=1, temperature=2)


class Place(NamedTuple):
    """Where emitted tokens are, and where what is reported of them goes. W = width."""

    cu_nodes: tl.tensor  # [B + 1], or None: request b has one position, with row b
    path: tl.tensor  # [B, W] or None
    num_tokens: tl.tensor  # [B] or None
    tokens: tl.tensor  # [B, W]
    chosen: tl.tensor  # [B, m] or None
    width: tl.tensor
    chosen_count: tl.tensor  # m


class ReportOut(NamedTuple):
    """Outputs, each of which may be None."""

    logprobs: tl.tensor  # [B, W]
    top_logprobs: tl.tensor  # [B, W, top]
    top_tokens: tl.tensor  # [B, W, top]
    ranks: tl.tensor  # [B, W]
    chosen_logprobs: tl.tensor  # [B, W, m]
    counts: tl.tensor  # [B, W]
    mass: tl.tensor  # [B, W]
    bits: tl.tensor  # [B, W, ceil(V / 32)]


class _Part(NamedTuple):
    """What a split knows. In memory, in this order, and then scores and tokens of its likeliest."""

    max: tl.tensor  # float32, of the row as the kind of law has it
    mass: tl.tensor  # float32, relative to it
    above: tl.tensor  # int32, scores above that of the emitted token
    kept: tl.tensor  # int32, tokens that were left
    whole_max: tl.tensor  # float32, of the row after its bitmask
    whole: tl.tensor  # float32, its mass


PART = 8  # float32
_PART = tl.constexpr(PART)


class _Kernels(NamedTuple):
    """In one form, and how they read rows."""

    report: Launch
    ids: Launch
    splits: Splits


@cache
def _kernels(
    device: Any, target: tuple[RowsForm, int], sampling: SamplingForm, kind: int | None, top: int,
    unscaled: bool, given: tuple[Any, ...],
) -> _Kernels:  # fmt: skip
    """Of rows of so many tokens. given: dtypes of tokens, and what may be left out."""
    rows, vocab = target
    splits = report_splits(vocab)
    shared = dict(TOP=top, UNSCALED=unscaled, SPLIT=splits.length, SPLITS=splits.padded)
    reporting = dict(KIND=kind, LEAST=1 << (top - 1).bit_length() if top else 1, **shared)

    def launch(kernel: Any, constants: dict[str, Any]) -> Launch:
        with current(device):
            options = compiler_options(splits.warps)
        options |= dict(num_warps=splits.warps)
        optional = dict(rows=OPTIONAL["rows"])
        return Launch(kernel, device, constants, aligned=rows.names, optional=optional, **options)

    return _Kernels(launch(report_kernel, reporting), launch(ids_kernel, shared), splits)


def report(
    call: VerifyCall | SampleCall, target: Target, sampling: Sampling, scratch: Scratch, unscaled: bool
) -> None:
    """Fill the outputs of `Logprobs` and of `Masks`, after all others. The scratch has the laws of the rows
    that tokens were drawn from; `unscaled`: greedy requests have that of temperature 1."""
    width, trees, masks = 1, (None, None, None), []
    if isinstance(call, VerifyCall):
        width, trees, masks = call.out_tokens.shape[-1], _trees(call), call.out_masks
    reported, kind, chosen, positions = call.out_report, None, call.chosen_tokens, call.out_tokens.numel()
    top = count = 0
    outputs: list[Any] = [None] * 5
    if reported:
        kind, top, count = _KINDS[call.logprobs_kind], reported[1].shape[-1], reported[3].shape[-1]
        own = None if kind == 0 else call.out_logprobs
        outputs = [own, *reported[:2], reported[2], reported[3]] if top else [own, None, None, *reported[2:]]
        outputs[4] = outputs[4] if chosen is not None else None
    counts, mass = masks[:2] or (None, None)
    if mass is not None and mass.numel() == 0:  # it is computed all the same, and dropped
        mass = torch.empty(positions, dtype=torch.float32, device=mass.device)
    out = ReportOut(*outputs, counts, mass, masks[2] if len(masks) == 3 else None)
    place = Place(*trees, call.out_tokens, chosen, width, count)
    given = call.out_tokens.dtype, trees[0] is None, chosen is None, tuple(o is None for o in out)
    kernels = _kernels(
        device_of(target.data), (rows_form(target), target.vocab),
        sampling_form(sampling), kind, top, unscaled, given,
    )  # fmt: skip
    splits, rows = kernels.splits, 0 if trees[0] is None else call.tokens.shape[0]
    size = positions * splits.padded * (PART + 2 * top)
    parts = torch.empty(size, dtype=torch.float32, device=target.data.device)
    grid = positions, splits.count, 1
    kernels.report(grid, target, sampling, scratch, place, parts, out, rows)
    if len(masks) == 4 and isinstance(call, VerifyCall):
        counts, _, ids, offsets = masks
        kernels.ids(
            grid, target, sampling, scratch, place, parts, counts, ids, offsets, call.out_status,
            rows, positions, ids.shape[0],
        )  # fmt: skip


def _trees(call: VerifyCall) -> tuple[Any, Any, Any]:
    return call.cu_nodes, call.out_path, call.out_num_tokens


@triton.jit
def _position_row(target, place, rows):
    """The request and the row of the position of this program, and whether there is one."""
    b, i = tl.program_id(0) // place.width, tl.program_id(0) % place.width
    row = b.to(tl.int64)
    there = tl.full([], True, tl.int1)
    if place.path is not None:
        node = tl.load(place.path + b.to(tl.int64) * place.width + i)
        first = tl.minimum(tl.maximum(tl.load(place.cu_nodes + b), 0), rows)
        row = (first + tl.maximum(node, 0)).to(tl.int64)
        there = (i < tl.load(place.num_tokens + b)) & (node >= 0)
        if there:
            there = target_row(target, row) >= 0
    return b, row, there


@triton.jit
def _processed_law(target, scratch, row, sampling, b, UNSCALED: tl.constexpr):
    """The law that was drawn from, and the least score with a probability."""
    law, settled = load_settled(scratch, row, TARGET)
    if UNSCALED:
        if (number_of(sampling.temperatures, sampling.temperature, b) > 0) == 0:
            law = likeliest_law(law, settled.token)
    return law


@triton.jit
def _possible(x, offsets, law):
    """Scores of a processed law: -inf where a token has no probability, 0 at a point."""
    least = tl.where(law.top == float("inf"), float("inf"), law.cut)
    x = tl.where((x >= least) & (x == x), x, _NOTHING)
    return tl.where(law.point >= 0, tl.where(offsets == law.point, 0.0, _NOTHING), x)


@triton.jit
def _read(target, row, offsets, inside, MASKED: tl.constexpr):
    """Scores of tokens of a row, without NaN."""
    data = target_data(target, row)
    x = tl.load(data + offsets, mask=inside, other=_NOTHING).to(tl.float32)
    if MASKED:
        if target.edits is not None:
            x = edited(Row(data, target.vocab, None, edits_of(target, row)), x, offsets, inside)
    x = tl.where(x == x, x, _NOTHING)
    if MASKED:
        if target.bitmask is not None:
            x = tl.where(allowed(bitmask_of(target, row), offsets, inside), x, _NOTHING)
    return x


@triton.jit
def _mass_of(x, max, slope):
    return tl.sum(tl.exp2(exponent_of(x, max, slope)))


@triton.jit(do_not_specialize=["rows"])
def report_kernel(
    target,
    sampling,
    scratch,
    place,
    parts_ptr,  # [B, W, splits, part_size]
    out,
    rows,
    KIND: tl.constexpr,  # of the law of log-probabilities, or None: only masks are asked for
    TOP: tl.constexpr,
    LEAST: tl.constexpr,  # a power of two, >= TOP
    UNSCALED: tl.constexpr,
    SPLIT: tl.constexpr,
    SPLITS: tl.constexpr,
):
    position, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    b, row, there = _position_row(target, place, rows)
    SIZE: tl.constexpr = _PART + 2 * TOP
    part_ptr = parts_ptr + position * (SPLITS * SIZE)
    if there:
        processed = _processed_law(target, scratch, row, sampling, b, UNSCALED)
        temperature = number_of(sampling.temperatures, sampling.temperature, b)
        token = tl.load(place.tokens + position).to(tl.int32)
        offsets = split * SPLIT + tl.arange(0, SPLIT)
        inside = offsets < target.vocab
        masked = _read(target, row, offsets, inside, True)
        kept = _possible(masked, offsets, processed)
        count = tl.full([], 0, tl.int32)
        above = count
        max = tl.full([], _NOTHING, tl.float32)
        mass = tl.full([], 0.0, tl.float32)
        whole_max = max
        whole = mass
        if out.counts is not None:
            count = tl.sum((kept > _NOTHING).to(tl.int32))
            if processed.cut > _NOTHING:
                whole_max = tl.max(masked)
                whole = _mass_of(masked, whole_max, processed.slope)
            if out.bits is not None:
                words = tl.cdiv(target.vocab, 32)
                bits = tl.reshape((kept > _NOTHING).to(tl.int32), [SPLIT // 32, 32])
                bits = tl.sum(bits << tl.arange(0, 32)[None, :], 1)
                word = split * (SPLIT // 32) + tl.arange(0, SPLIT // 32)
                tl.store(out.bits + position * words + word, bits, mask=word < words)
        if KIND is not None:
            if KIND == PROCESSED:
                x = kept
                score = _score(target, row, token, processed, KIND)
            else:
                slope = _slope(temperature, KIND)
                x = _read(target, row, offsets, inside, False)
                score = _score(target, row, token, processed, KIND)
                max = tl.max(x)
                mass = _mass_of(x, max, slope)
            above = tl.sum((x > score).to(tl.int32))
            _list_likeliest(part_ptr + split * SIZE + _PART, x, offsets, TOP)
        save(part_ptr + split * SIZE, _Part(max, mass, above, count, whole_max, whole))
        if arrives_last_at(scratch, row, TARGET, tl.num_programs(1)):
            splits = tl.num_programs(1)
            zero = tl.full([], 0.0, tl.float32)
            none = tl.full([], 0, tl.int32)
            lowest = tl.full([], _NOTHING, tl.float32)
            many = tl.arange(0, SPLITS)
            like = _Part(lowest, zero, none, none, lowest, zero)
            found = _Part(*load_shared(part_ptr + many * SIZE, like, many < splits))
            if out.counts is not None:
                _store_mask(out, position, processed, found)
            if KIND is not None:
                law = processed
                above = tl.sum(found.above)
                if KIND != PROCESSED:
                    law, above = _given_law(target, row, token, found, _slope(temperature, KIND))
                _store_report(target, place, out, position, b, row, token, law, above, KIND)
                _store_likeliest(out, position, law, part_ptr + _PART, splits, TOP, LEAST, SPLITS)
    elif split == 0:
        _store_nothing(target, place, out, position, TOP, LEAST)


@triton.jit
def _slope(temperature, KIND: tl.constexpr):
    if KIND == TEMPERATURE:
        slope = slope_of(tl.where(temperature > 0, temperature, 1.0))
    else:
        slope = slope_of(tl.full([], 1.0, tl.float32))
    return slope


@triton.jit
def _score(target, row, token, law, KIND: tl.constexpr):
    """Of the emitted token; -inf where it has no probability."""
    inside = (token >= 0) & (token < target.vocab)
    x = _read(target, row, token, inside, KIND == PROCESSED)
    if KIND == PROCESSED:
        x = _possible(x, token, law)
    return x


@triton.jit
def _given_law(target, row, token, found, slope):
    """The law of the row as it was given, and how many tokens are likelier than the emitted one."""
    top = tl.max(found.max)
    mass = tl.sum((found.mass * tl.exp2(exponent_of(found.max, top, slope))).to(tl.float64))
    point = tl.where(top == _NOTHING, 0, -1).to(tl.int32)
    above = tl.sum(found.above)
    score = _score(target, row, token, Law(top, slope, _NOTHING, mass, point), RAW)
    # Infinite entries share all the mass; a row with nothing left is its token 0.
    above = tl.where((top == float("inf")) & (score < top), mass.to(tl.int32), above)
    above = tl.where(point >= 0, (token != point).to(tl.int32), above)
    cut = tl.full([], _NOTHING, tl.float32)
    return Law(top, slope, cut, tl.where(point >= 0, 1.0, mass), point), above


@triton.jit
def _list_likeliest(list_ptr, x, offsets, TOP: tl.constexpr):
    """Writes the likeliest of a split: scores and tokens by turns, the lowest token first among equals."""
    for k in tl.static_range(TOP):
        best = tl.max(x)
        token = tl.full([], NO_TOKEN, tl.int32)
        if best > _NOTHING:
            token = tl.min(tl.where(x == best, offsets, NO_TOKEN))
        tl.store(list_ptr + 2 * k, best)
        tl.store((list_ptr + 2 * k + 1).to(tl.pointer_type(tl.int32)), token)
        x = tl.where(offsets == token, _NOTHING, x)


@triton.jit
def _store_likeliest(
    out, position, law, list_ptr, splits, TOP: tl.constexpr, LEAST: tl.constexpr, SPLITS: tl.constexpr
):
    """Merges the lists of all splits."""
    if TOP > 0:
        SIZE: tl.constexpr = _PART + 2 * TOP
        place = tl.arange(0, SPLITS * LEAST)
        split, k = place // LEAST, place % LEAST
        inside = (split < splits) & (k < TOP)
        at = list_ptr + split * SIZE + 2 * k
        x = tl.load(at, mask=inside, other=_NOTHING, cache_modifier=".cg")
        tokens = tl.load(
            (at + 1).to(tl.pointer_type(tl.int32)), mask=inside, other=NO_TOKEN, cache_modifier=".cg"
        )
        for k in tl.static_range(TOP):
            best = tl.max(x)
            token = tl.min(tl.where(x == best, tokens, NO_TOKEN))
            x = tl.where(tokens == token, _NOTHING, x)
            # A law that is a point has no score: its token alone is listed.
            point = law.point >= 0
            if point:
                token = law.point
            listed = (best > _NOTHING) & ((law.top < float("inf")) | (best == law.top) | point)
            listed = tl.where(point, k == 0, listed)
            logprob = tl.where(listed, log_probability(law, best, token), float("nan"))
            tl.store(out.top_logprobs + position * TOP + k, logprob)
            tl.store(out.top_tokens + position * TOP + k, tl.where(listed, token, -1).to(tl.int64))


@triton.jit
def _store_report(target, place, out, position, b, row, token, law, above, KIND: tl.constexpr):
    """Log-probabilities of the emitted token and of the chosen ones, and its rank."""
    tl.store(out.ranks + position, 1 + above)
    if out.logprobs is not None:
        score = _read(target, row, token, (token >= 0) & (token < target.vocab), KIND == PROCESSED)
        tl.store(out.logprobs + position, log_probability(law, score, token))
    if place.chosen is not None:
        for begin in range(0, place.chosen_count, _CHOSEN):
            j = begin + tl.arange(0, _CHOSEN)
            inside = j < place.chosen_count
            chosen = tl.load(place.chosen + b.to(tl.int64) * place.chosen_count + j, mask=inside, other=-1)
            known = (chosen >= 0) & (chosen < target.vocab)
            x = _read(target, row, tl.where(known, chosen, 0).to(tl.int32), known, KIND == PROCESSED)
            logprob = tl.where(known, log_probability(law, x, chosen), float("nan"))
            tl.store(out.chosen_logprobs + position * place.chosen_count + j, logprob, mask=inside)


@triton.jit
def _store_mask(out, position, law, found):
    mass = tl.full([], 1.0, tl.float32)
    if (law.point < 0) & (law.cut > _NOTHING):
        top = tl.max(found.whole_max)
        scales = tl.exp2(exponent_of(found.whole_max, top, law.slope))
        whole = tl.sum((found.whole * scales).to(tl.float64))
        mass = tl.minimum((law.mass / whole).to(tl.float32), 1.0)
    tl.store(out.counts + position, tl.sum(found.kept))
    tl.store(out.mass + position, mass)


@triton.jit
def _store_nothing(target, place, out, position, TOP: tl.constexpr, LEAST: tl.constexpr):
    """Of a position at which nothing was emitted, or whose row is not there."""
    nan = tl.full([], float("nan"), tl.float32)
    if out.logprobs is not None:
        tl.store(out.logprobs + position, nan)
    if out.ranks is not None:
        tl.store(out.ranks + position, 0)
    if TOP > 0:
        k = tl.arange(0, LEAST)
        tl.store(
            out.top_logprobs + position * TOP + k, tl.full([LEAST], float("nan"), tl.float32), mask=k < TOP
        )
        tl.store(out.top_tokens + position * TOP + k, tl.full([LEAST], -1, tl.int64), mask=k < TOP)
    if place.chosen is not None:
        for begin in range(0, place.chosen_count, _CHOSEN):
            j = begin + tl.arange(0, _CHOSEN)
            nothing = tl.full([_CHOSEN], float("nan"), tl.float32)
            inside = j < place.chosen_count
            tl.store(out.chosen_logprobs + position * place.chosen_count + j, nothing, mask=inside)
    if out.counts is not None:
        tl.store(out.counts + position, 0)
        tl.store(out.mass + position, nan)
    if out.bits is not None:
        words = tl.cdiv(target.vocab, 32)
        for begin in range(0, words, _COUNTS):
            word = begin + tl.arange(0, _COUNTS)
            zero = tl.full([_COUNTS], 0, tl.int32)
            tl.store(out.bits + position * words + word, zero, mask=word < words)


@triton.jit(do_not_specialize=["rows", "positions", "capacity"])
def ids_kernel(
    target,
    sampling,
    scratch,
    place,
    parts_ptr,
    counts_ptr,  # [B, W]
    ids_ptr,  # [capacity]
    offsets_ptr,  # [B * W + 1]
    status_ptr,  # [B]
    rows,
    positions,  # B W
    capacity,
    TOP: tl.constexpr,
    UNSCALED: tl.constexpr,
    SPLIT: tl.constexpr,
    SPLITS: tl.constexpr,
):
    position, split = tl.program_id(0), tl.program_id(1)
    b, row, there = _position_row(target, place, rows)
    # What comes before this position, what its request has, and all that there is.
    first, last = b * place.width, (b + 1) * place.width
    before = tl.full([], 0, tl.int64)
    end = before
    total = before
    for begin in range(0, positions, _COUNTS):
        other = begin + tl.arange(0, _COUNTS)
        counts = tl.load(counts_ptr + other, mask=other < positions, other=0).to(tl.int64)
        before += tl.sum(tl.where(other < position, counts, 0))
        end += tl.sum(tl.where(other < last, counts, 0))
        total += tl.sum(counts)
    if split == 0:
        tl.store(offsets_ptr + position, before)
        if position == positions - 1:
            tl.store(offsets_ptr + positions, total)
        if position == first:
            if (end > before) & (end > capacity):
                tl.store(status_ptr + b, tl.load(status_ptr + b) | OVERFLOW)
    programs = tl.num_programs(0) * tl.num_programs(1)
    for begin in range(position * tl.num_programs(1) + split, tl.cdiv(capacity, _COUNTS), programs):
        other = begin.to(tl.int64) * _COUNTS + tl.arange(0, _COUNTS)
        nothing = tl.full([_COUNTS], -1, tl.int64)
        tl.store(ids_ptr + other, nothing, mask=(other >= total) & (other < capacity))
    if there & (before < capacity):
        SIZE: tl.constexpr = _PART + 2 * TOP
        many = tl.arange(0, SPLITS)
        part_ptr = parts_ptr + position.to(tl.int64) * (SPLITS * SIZE) + 3
        kept_ptr = (part_ptr + many * SIZE).to(tl.pointer_type(tl.int32))
        kept = tl.load(kept_ptr, mask=many < tl.num_programs(1), other=0)
        if tl.sum(tl.where(many == split, kept, 0)) > 0:
            at = before + tl.sum(tl.where(many < split, kept, 0))
            law = _processed_law(target, scratch, row, sampling, b, UNSCALED)
            tokens = split * SPLIT + tl.arange(0, SPLIT)
            x = _read(target, row, tokens, tokens < target.vocab, True)
            here = (_possible(x, tokens, law) > _NOTHING).to(tl.int32)
            at += tl.cumsum(here, 0) - here
            tl.store(ids_ptr + at, tokens.to(tl.int64), mask=(here > 0) & (at < capacity))
