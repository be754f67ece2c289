# SPDX-License-Identifier: Apache-2.0
"""Where requests end: stop tokens and limits, as state on the device."""

from __future__ import annotations

import enum
from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import check_device, check_dim, check_dtype, check_tensor, check_type
from ._memory import check_contiguous


class Finish(enum.IntFlag):
    """Why a request ended; 0 = it goes on, or had ended before."""

    STOP = 1
    """The last emitted token is one of its stop tokens."""
    LENGTH = 2
    """No new token is left to it."""
    CONTEXT = 4
    """Its context is full."""
    DRAFTED = 8
    """The last emitted token was a drafted one. This bit alone does not end a request."""


class Ends(NamedTuple):
    """Stop tokens and limits of requests, which `verify` reads and changes in place.

    A path is cut at the first token that ends its request. That token is the last one emitted, and no bonus
    token follows it. An ended request counts as empty: `num_tokens` is 0, and nothing of it changes.

    Example:
        >>> left = torch.tensor([9, 2], dtype=torch.int32)
        >>> ends = Ends(stop_tokens=torch.tensor([[7], [7]]), new_tokens_left=left)
    """

    stop_tokens: Tensor | None = None
    """[B, S] int64, the stop tokens of each request; -1 = none. Tokens outside [0, V) are never emitted, so
    they stop nothing."""
    new_tokens_left: Tensor | None = None
    """[B] int32: how many more tokens the request may emit. `verify` lowers it by `num_tokens`."""
    context_left: Tensor | None = None
    """[B] int32: how many more tokens its context can hold. `verify` lowers it by `num_tokens`."""
    finished: Tensor | None = None
    """[B] uint8 or bool: not 0 = the request has ended. `verify` sets it."""


NO_ENDS = Ends()


def check_ends(operation: str, ends: Ends | None, batch: int, device: torch.device) -> Ends:
    """The tensors of a call: those of `ends`, `finished` as uint8."""
    if ends is None:
        return NO_ENDS
    check_type(operation, "ends", ends, Ends, "an Ends")
    stops, _, _, finished = ends
    if stops is not None:
        name = "ends.stop_tokens"
        check_dtype(operation, name, stops, (torch.int64,))
        check_device(operation, name, stops, device)
        check_dim(operation, name, stops, 2, "[B, S]")
        check_tensor(operation, name, stops, "[B, S]", (batch, stops.shape[1]), (torch.int64,), device)
        stops = stops.contiguous()
    for name, dtypes in (
        ("new_tokens_left", (torch.int32,)),
        ("context_left", (torch.int32,)),
        ("finished", (torch.uint8, torch.bool)),
    ):
        value = getattr(ends, name)
        if value is not None:
            check_tensor(operation, f"ends.{name}", value, "[B]", (batch,), dtypes, device)
            check_contiguous(operation, f"ends.{name}", value)
    if finished is not None and finished.dtype == torch.bool:
        finished = finished.view(torch.uint8)
    return Ends(stops, ends.new_tokens_left, ends.context_left, finished)
