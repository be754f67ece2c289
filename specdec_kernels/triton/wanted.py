# SPDX-License-Identifier: Apache-2.0
"""Which rows the launches of `verify` over (rows x splits) read, and for which node and request."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import OPTIONAL, Params, drawn_from, has_cuts, params_of
from .dispatch import Launch, device_of, given
from .ends import Ends, ends_at
from .tree import NODES, POINT, WITHOUT_REPLACEMENT

TARGET = tl.constexpr(0)
DRAFT = tl.constexpr(1)
BAR = tl.constexpr(1)  # of `Relaxed`: the score of the last of its top k
_REQUESTS = tl.constexpr(32)  # looked through together
_MANY = tl.constexpr(2**31 - 1)
# In the place of a row's number.
NO_ROW = tl.constexpr(-1)
ENDED = tl.constexpr(-2)  # none, and no token may follow the node


class Batch(NamedTuple):
    """The requests and their trees."""

    tokens: tl.tensor  # [R]
    parents: tl.tensor  # [R]
    proposals: tl.tensor  # [R]
    first_child: tl.tensor  # [R] or None
    next_sibling: tl.tensor  # [R] or None
    cu_nodes: tl.tensor  # [B + 1]
    seeds: tl.tensor  # [B]
    positions: tl.tensor  # [B]
    bonus: tl.tensor  # [B] or None: the token after a chain


class Place(NamedTuple):
    """Where a row belongs, int32."""

    request: tl.tensor
    first: tl.tensor  # row of the request's root
    count: tl.tensor  # nodes of the request
    node: tl.tensor  # index in its request; -1 where the row belongs to none


@triton.jit
def place_of(batch, row, rows, requests):
    """Of a row: in the shortest request that has it, of which there is one unless offsets are wrong."""
    owner, first = tl.full([], -1, tl.int32), tl.full([], 0, tl.int32)
    count = tl.full([], _MANY, tl.int32)
    for start in range(0, requests, _REQUESTS):
        request = start + tl.arange(0, _REQUESTS)
        inside = request < requests
        begin = tl.maximum(tl.load(batch.cu_nodes + request, mask=inside, other=0), 0)
        end = tl.minimum(tl.load(batch.cu_nodes + request + 1, mask=inside, other=0), rows)
        length = tl.where((begin <= row) & (row < end), end - begin, _MANY)
        shortest = tl.min(length)
        if shortest < count:
            count = shortest
            owner = tl.min(tl.where(length == shortest, request, _MANY))
            first = tl.max(tl.where(request == owner, begin, 0))
    return Place(owner, first, tl.where(owner >= 0, count, 0), tl.where(owner >= 0, row - first, -1))


@triton.jit
def children_of(batch, place):
    """Of the drafted children of a node: how many there are, whether some were sampled, and whether some
    without replacement."""
    count, proposals = tl.full([], 0, tl.int32), tl.full([], POINT, tl.int32)
    for begin in range(place.node + 1, place.count, NODES):
        child = begin + tl.arange(0, NODES)
        inside = child < place.count
        child += place.first
        mine = tl.load(batch.parents + child, mask=inside, other=-1) == place.node
        mine = mine & (tl.load(batch.tokens + child, mask=inside, other=-1) >= 0)
        proposal = tl.load(batch.proposals + child, mask=inside, other=POINT).to(tl.int32)
        proposal = tl.where(proposal > WITHOUT_REPLACEMENT, POINT, proposal)  # what is none counts as POINT
        count += tl.sum(mine.to(tl.int32))
        proposals = tl.maximum(proposals, tl.max(tl.where(mine, proposal, POINT)))
    return count, proposals > POINT, proposals == WITHOUT_REPLACEMENT


@triton.jit
def depth_of(batch, place):
    depth = tl.full([], 0, tl.int32)
    node = place.node
    while node > 0:
        parent = tl.load(batch.parents + place.first + node)
        node = tl.where(parent < node, parent, 0)
        depth += 1
    return depth


def trees_of(batch: Batch) -> Batch:
    """What the launches before the first one need of a batch: nodes, and who their parents are."""
    return Batch(batch.tokens, batch.parents, None, None, None, batch.cu_nodes, None, None, None)


@cache
def _rows_kernel(device: Any) -> Launch:
    optional = OPTIONAL | dict(given_ptr=torch.int32)
    return Launch(verify_rows_kernel, device, {}, optional=optional, num_warps=1)


def row_numbers(batch: Batch, numbers: Tensor | None, early: bool, ends: Ends, logits: Tensor) -> Tensor:
    """[R] int32: the row of every node, < 0 = none. early: last nodes have none."""
    rows, requests = batch.tokens.shape[0], batch.cu_nodes.shape[0] - 1
    found = torch.empty(rows, dtype=torch.int32, device=logits.device)
    if rows > 0:
        kernel, count = _rows_kernel(device_of(logits)), logits.shape[:-1].numel()
        kernel((rows, 1, 1), trees_of(batch), numbers, ends, found, rows, requests, count, int(early))
    return found


@triton.jit(do_not_specialize=["rows", "requests", "count", "early"])
def verify_rows_kernel(
    batch,
    given_ptr,  # [R], optional
    ends,
    out_ptr,  # [R]
    rows,
    requests,
    count,  # rows of the target
    early,  # 1 = last nodes have none
):
    """A launch before all others, where rows are numbered, last nodes have none, or requests end: the row of
    every node. Node row r has the given row, or r less, if they are `early`, the number of its request."""
    row = tl.program_id(0)
    place = place_of(batch, row, rows, requests)
    found = row - tl.where(early > 0, place.request, 0)
    found = tl.where((early > 0) & (place.node + 1 >= place.count), NO_ROW, found)
    found = tl.load(given_ptr + row, mask=given(given_ptr), other=found)
    found = tl.where((found >= 0) & (found < count), found, NO_ROW)
    if given(ends.finish) & (place.node >= 0):
        if ends_at(ends, batch, place):
            found = tl.full([], ENDED, tl.int32)
    tl.store(out_ptr + row, found)


@triton.jit
def wants_target(batch, place, number, params, vocab, RULE: tl.constexpr):
    """Whether the row of that number, of a node, is read (< 0 = it has none). Without children it is only
    drawn from, unless its law has cuts: its law is found in the same pass. Where a bonus token is given it
    may be asked for the log-probability of that."""
    wanted = number >= 0
    if wanted:
        if (RULE != "match") and (batch.bonus is None):
            if (params.temperature > 0) & (not has_cuts(params, vocab)):
                count, _, _ = children_of(batch, place)
                wanted = count > 0
    return wanted


@triton.jit
def wanted_draft_row(draft, batch, place, row, sampling, count, RULE: tl.constexpr):
    """The row of the draft's logits that a node's children were drawn from, int64; -1 = none is read."""
    source = tl.full([], -1, tl.int64)
    if place.node >= 0:
        wanted = RULE == "lenient"
        if not wanted:
            wanted = params_of(sampling, place.request).temperature > 0
        if wanted:
            _, sampled, _ = children_of(batch, place)
            if sampled:
                source = drawn_from(draft, count, place.request, row, place.node)
    return source


@triton.jit
def bar_params(params, top_k):
    """Of `Relaxed`: what makes its bar on the score a cut."""
    none = tl.full([], 0.0, tl.float32)
    return Params(params.temperature, none + top_k, none + 1.0, none, none)
