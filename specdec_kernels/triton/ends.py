# SPDX-License-Identifier: Apache-2.0
"""Where requests end: which nodes no token may follow, and what becomes of stop tokens and limits after a
step."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .._ops.calls import VerifyCall
from ..ends import Finish
from .dispatch import given

STOP, LENGTH = tl.constexpr(int(Finish.STOP)), tl.constexpr(int(Finish.LENGTH))
CONTEXT, DRAFTED = tl.constexpr(int(Finish.CONTEXT)), tl.constexpr(int(Finish.DRAFTED))
_STOPS = tl.constexpr(32)  # looked through together
_MANY = tl.constexpr(2**31 - 1)


class Ends(NamedTuple):
    """Optional tensors, none of which is there where requests do not end."""

    stop_tokens: tl.tensor  # [B, S]
    stop_count: tl.tensor  # S, 0 without stop tokens
    new_tokens_left: tl.tensor  # [B]
    context_left: tl.tensor  # [B]
    finished: tl.tensor  # [B]
    finish: tl.tensor  # [B]


NO_ENDS = Ends(None, 0, None, None, None, None)


def ends_of(call: VerifyCall) -> Ends:
    if call.out_finish is None:
        return NO_ENDS
    stops = call.stop_tokens
    return Ends(
        stops, 0 if stops is None else stops.shape[1], call.new_tokens_left, call.context_left,
        call.finished, call.out_finish,
    )  # fmt: skip


@triton.jit
def _is_stop(ends, request, token):
    """Whether a token is a stop token of a request (int64)."""
    found = tl.full([], 0, tl.int32)
    first = ends.stop_tokens + request * ends.stop_count
    for begin in range(0, ends.stop_count, _STOPS):
        place = begin + tl.arange(0, _STOPS)
        stop = tl.load(first + place, mask=place < ends.stop_count, other=-1)
        found = tl.maximum(found, tl.max((stop == token).to(tl.int32)))
    return (found > 0) & (token >= 0)


@triton.jit
def _has_ended(ends, request):
    return tl.load(ends.finished + request, mask=given(ends.finished), other=0) != 0


@triton.jit
def _nothing_left(left_ptr, request, depth):
    return tl.load(left_ptr + request, mask=given(left_ptr), other=_MANY) <= depth


@triton.jit
def ends_at(ends, batch, place):
    """Whether no token may follow a node, or one above it, and of the root whether the request has ended."""
    request = place.request.to(tl.int64)
    ended = _has_ended(ends, request)
    node, depth = place.node, tl.full([], 0, tl.int32)
    while node > 0:
        ended = ended | _is_stop(ends, request, tl.load(batch.tokens + place.first + node))
        parent = tl.load(batch.parents + place.first + node)
        node = tl.where(parent < node, parent, 0)
        depth += 1
    ended = ended | _nothing_left(ends.new_tokens_left, request, depth)
    return ended | _nothing_left(ends.context_left, request, depth)


@triton.jit
def _lower(left_ptr, request, count, bit):
    """Lowers what is left to a request. Returns the bit where nothing is left."""
    left = tl.load(left_ptr + request, mask=given(left_ptr), other=_MANY) - count
    tl.store(left_ptr + request, left, mask=given(left_ptr))
    return tl.where(left <= 0, bit, 0)


@triton.jit
def finish_request(ends, request, count, token, drafted):
    """Of a request with nodes, which has emitted so many tokens and then this last one."""
    finish = tl.full([], 0, tl.int32)
    if not _has_ended(ends, request):
        stops = (count > 0) & _is_stop(ends, request, token)
        finish = tl.where(stops, STOP, 0)
        finish |= _lower(ends.new_tokens_left, request, count, LENGTH)
        finish |= _lower(ends.context_left, request, count, CONTEXT)
        tl.store(ends.finished + request, 1, mask=given(ends.finished) & (finish != 0))
        finish |= tl.where(drafted, DRAFTED, 0)
    tl.store(ends.finish + request, finish)
