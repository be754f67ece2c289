# SPDX-License-Identifier: Apache-2.0
"""Arguments of the kernels that read rows of logits: the rows, how to sample from them, and scratch.

The host fills each NamedTuple once, and kernels take it whole. Functions at the end read them in kernels.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import driver

from .dispatch import INTERPRETED, dtype_of, given, multiples_of_16
from .launch import registers
from .logarithm import LN2
from .row import number_of


class Target(NamedTuple):
    """Rows of a [Rt, V] matrix, or of a [G, N, V] one seen as [G * N, V], and which of them belongs to a
    node."""

    data: tl.tensor
    vocab: tl.tensor  # V
    group: tl.tensor  # N
    group_stride: tl.tensor
    row_stride: tl.tensor
    bitmask: tl.tensor  # [R, ceil(V / 32)] or None
    bitmask_stride: tl.tensor
    rows: tl.tensor  # [R] row of each node, < 0 = none; optional: else those of the same number
    edits: tl.tensor  # [R, edits_stride] edited scores, see edited.py; or None: there are none
    edits_stride: tl.tensor  # or None


class Draft(NamedTuple):
    """The same of the draft's rows, and which of them belongs to a node."""

    data: tl.tensor  # or None: there are none
    size: tl.tensor  # Vd
    group: tl.tensor
    group_stride: tl.tensor
    row_stride: tl.tensor
    rows: tl.tensor  # [R] row of each node, optional
    chain: tl.tensor  # K > 0: [B, K, Vd], node i of request b has row b K + i
    ids: tl.tensor  # [Vd] token of each column or None
    columns: tl.tensor  # [V] column of each token or None
    probs: tl.tensor  # 1 where the rows are probabilities, or None


# Tensors of these names that a call may leave out, and that kernels are not compiled for.
OPTIONAL = dict(
    rows=torch.int32,
    logprobs=torch.float32,
    logprobs_ptr=torch.float32,
    stop_tokens=torch.int64,
    new_tokens_left=torch.int32,
    context_left=torch.int32,
    finished=torch.uint8,
    finish=torch.int32,
    status_ptr=torch.int32,
)

NO_DRAFT = Draft(None, 0, 1, 0, 0, None, 0, None, None, None)


class Sampling(NamedTuple):
    """Numbers, and [B] tensors or None."""

    temperature: tl.tensor
    top_k: tl.tensor
    top_p: tl.tensor
    min_p: tl.tensor
    min_p_last: tl.tensor  # 1 = after top-k and top-p, 0 = before
    temperatures: tl.tensor
    top_ks: tl.tensor
    top_ps: tl.tensor
    min_ps: tl.tensor


class Params(NamedTuple):
    """What holds for one request, float32. In memory, in this order."""

    temperature: tl.tensor
    top_k: tl.tensor
    top_p: tl.tensor
    min_p: tl.tensor
    min_p_last: tl.tensor


class Scratch(NamedTuple):
    """What one launch leaves to the next, in one allocation of float64 words. The results of the splits of
    every row and side come first; a field says where each other part begins."""

    words: tl.tensor
    sides: tl.tensor  # 2 where more is found out than the laws of the target's rows, else 1
    laws: tl.tensor  # [R, sides, LAW]
    listed: tl.tensor  # [R, sides, 3, lanes] float32: the largest scores of each lane
    brackets: tl.tensor  # [R, sides, BRACKET]: cuts that were left open
    sums: tl.tensor  # [R, sides, splits, SUMS]: of their splits
    collected: tl.tensor  # [R, sides, splits, COLLECTED] float32
    chances: tl.tensor  # [R, CHANCES]: p and q of the tokens of nodes, and their coins
    weights: tl.tensor  # [R]: that reach nodes under `traversal`
    masses: tl.tensor  # [R, splits, SUM]: sums over rows that rules ask for, see sums.py
    summed: tl.tensor  # [R, 2] int32: what is asked for, and what was summed
    owners: tl.tensor  # [R] int32: the request that a row belongs to
    visits: tl.tensor  # [R, VISIT]: nodes on the way of a walk
    nodes: tl.tensor  # [R] int64: the trees, laid out
    ranks: tl.tensor  # [R] int32: places among siblings
    draws: tl.tensor  # [B, DRAW]: what is still to be drawn
    winners: tl.tensor  # [B, SPLITS]: of the splits of the draw


class RowsForm(NamedTuple):
    """What kernels depend on in a `Target` or a `Draft`, but for numbers."""

    dtype: torch.dtype
    masked: bool
    edited: bool
    aligned: bool  # rows begin at multiples of 16 bytes and have a multiple of 16 tokens

    @property
    def names(self) -> tuple[str, ...]:
        """What `dispatch` is told to be aligned; scratch always is."""
        return ("words", *_OF_ROWS) if self.aligned else ("words",)


_OF_ROWS = ("data", "vocab", "size", "group_stride", "row_stride")
SamplingForm = tuple[torch.dtype | None, ...]


def rows_form(target: Target) -> RowsForm:
    logits = target.data
    aligned = multiples_of_16(logits, target.vocab, target.group_stride, target.row_stride)
    return RowsForm(logits.dtype, target.bitmask is not None, target.edits is not None, aligned)


def draft_form(draft: Draft) -> tuple[Any, ...]:
    """Dtypes, or None, of a draft's rows and of their vocabulary, and whether it has probabilities."""
    dtypes = dtype_of(draft.data), dtype_of(draft.ids), dtype_of(draft.columns)
    return *dtypes, draft.probs


def draft_aligned(draft: Draft) -> bool:
    """Whether its rows do not keep those of the target from being read as aligned ones."""
    if draft.data is None:
        return True
    return multiples_of_16(draft.data, draft.size, draft.group_stride, draft.row_stride)


def sampling_form(sampling: Sampling) -> SamplingForm:
    """Dtypes, or None, of what is given per request."""
    _, _, _, _, _, temperatures, top_ks, top_ps, min_ps = sampling
    return dtype_of(temperatures), dtype_of(top_ks), dtype_of(top_ps), dtype_of(min_ps)


def layout(rows: Tensor) -> tuple[int, int, int]:
    """Rows per group, and the strides of groups and rows. A matrix has groups of one."""
    if rows.dim() == 2:
        return 1, rows.stride(0), 0
    return max(rows.shape[1], 1), rows.stride(0), rows.stride(1)


def target_of(logits: Tensor, token_bitmask: Tensor | None = None, rows: Tensor | None = None) -> Target:
    """Rows to sample from or to verify by."""
    stride = 0 if token_bitmask is None else token_bitmask.stride(0)
    return Target(logits, logits.shape[-1], *layout(logits), token_bitmask, stride, rows, None, None)


def sampling_of(numbers: list[float], per_request: list[Tensor | None]) -> Sampling:
    """From the lists of a call, which are in the order of the fields."""
    return Sampling(*numbers, *(per_request or (None, None, None, None)))


def compiler_options(warps: int) -> dict[str, int]:
    """Of kernels of many scalars, for the device at hand."""
    if INTERPRETED:
        return {}
    return registers(driver.active.get_current_target(), warps)


def may_cut(sampling: Sampling) -> bool:
    """Whether any request may have cuts; numbers on the device are not looked at."""
    numbers = sampling.top_k >= 1 or sampling.top_p < 1 or sampling.min_p > 0
    return numbers or not (sampling.top_ks is sampling.top_ps is sampling.min_ps is None)


@lru_cache(maxsize=4096)
def scratch_layout(results: int, sides: int = 1, **parts: int) -> tuple[int, Scratch]:
    """Words of a scratch that holds results of splits and parts of so many words, and the scratch without its
    memory. Parts begin at multiples of 16 words."""
    begins, end = dict.fromkeys(Scratch._fields[2:], 0), results
    for name, words in parts.items():
        begins[name] = -(-end // 16) * 16
        end = begins[name] + words
    if end >= 2**31:
        raise ValueError(
            f"verify, sample: scratch must have fewer than 2**31 float64 words, got {end} for this batch"
        )
    return end, Scratch(None, sides, **begins)


def scratch_of(device: torch.device, layout: tuple[int, Scratch]) -> Scratch:
    """In memory of its own."""
    words, scratch = layout
    return Scratch(torch.empty(words, dtype=torch.float64, device=device), *scratch[1:])


@triton.jit
def params_of(sampling, request):
    return Params(
        number_of(sampling.temperatures, sampling.temperature, request),
        tl.floor(number_of(sampling.top_ks, sampling.top_k, request)),
        number_of(sampling.top_ps, sampling.top_p, request),
        number_of(sampling.min_ps, sampling.min_p, request),
        tl.cast(sampling.min_p_last, tl.float32),
    )


@triton.jit
def draft_params_of(sampling, draft_sampling, request):
    """Of the draft's law, which is made as the target's if `draft_sampling` is None."""
    params = params_of(sampling, request)
    if draft_sampling is not None:
        params = params_of(draft_sampling, request)
    return params


@triton.jit
def has_cuts(params, vocab):
    top_k = (params.top_k >= 1) & (params.top_k < tl.cast(vocab, tl.float32))
    return top_k | (params.top_p < 1) | (params.min_p > 0)


@triton.jit
def _offset(rows, row):
    row = tl.cast(row, tl.int32)  # a division of 64 bits takes a hundred instructions
    group = row // rows.group
    return group.to(tl.int64) * rows.group_stride + (row - group * rows.group).to(tl.int64) * rows.row_stride


# Triton before 3.7 does not let a function return a tuple that has None in it: such tuples are made where
# they are used.


@triton.jit
def row_data(rows, row):
    """-> the first entry of a row (int64, >= 0) of the target or of the draft."""
    return rows.data + _offset(rows, row)


@triton.jit
def target_row(target, row):
    """The row of the target's logits of the node with that row, int64; < 0 = none."""
    found = row
    if target.rows is not None:
        if given(target.rows):
            found = tl.load(target.rows + row).to(tl.int64)
    return found


@triton.jit
def target_data(target, row):
    """-> the first entry of the row of the node with that row (int64), which has one if it is read."""
    return row_data(target, tl.maximum(target_row(target, row), 0))


@triton.jit
def bitmask_of(target, row):
    """-> the words of the node with that row (int64), or None."""
    bitmask = None
    if target.bitmask is not None:
        bitmask = target.bitmask + row * target.bitmask_stride
    return bitmask


@triton.jit
def edits_of(target, row):
    """-> the edited scores of the node with that row (int64), or None."""
    edits = None
    if target.edits is not None:
        edits = target.edits + row * target.edits_stride
    return edits


@triton.jit
def drawn_from(draft, count, request, row, node):
    """The row of the draft's logits that the children of a node were drawn from, int64; -1 = none."""
    found = row
    if draft.chain > 0:
        found = tl.where(node < draft.chain, request.to(tl.int64) * draft.chain + node, -1)
    if given(draft.rows):
        found = tl.load(draft.rows + row).to(tl.int64)
    return tl.where((found >= 0) & (found < count), found, -1)


@triton.jit
def draft_logits(draft, x):
    """Entries of a draft's rows as logits."""
    if draft.probs is not None:
        x = tl.log2(tl.where(x < 0, 0.0, x)) * LN2
    return x
