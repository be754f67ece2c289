# SPDX-License-Identifier: Apache-2.0
"""Tensors that are made once: constants, and memory that steps fill."""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

T = TypeVar("T")
MOST_KEPT = 1024  # of one kind


def kept(make: Callable[..., T]) -> Callable[..., T]:
    """`make`, whose tensors are made once: the caller must not write to them.

    A captured CUDA graph may read them at every replay, so they are kept for ever; beyond MOST_KEPT no more
    are. What is made during a capture is there only after a replay, and is not kept; nor is a tracer's.
    """
    found_by: dict[tuple[Any, ...], T] = {}

    def value(*args: Any) -> T:
        if traced():
            return make(*args)
        found = found_by.get(args)
        if found is None:
            found = make(*args)
            capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
            if len(found_by) < MOST_KEPT and not capturing:
                found_by[args] = found
        return found

    return value


def kept_by_thread(make: Callable[..., T]) -> Callable[..., T]:
    """`make`, whose tensors are made once for every thread: the caller may write to them, in one stream."""

    @kept
    def of_thread(thread: int, *args: Any) -> T:
        with torch.inference_mode(False):  # what is made here serves with and without that mode
            return make(*args)

    def value(*args: Any) -> T:
        return of_thread(get_ident(), *args)

    return value


def traced() -> bool:
    """Whether tensors made now belong to a tracer or to a mode."""
    return torch.compiler.is_compiling() or is_in_torch_dispatch_mode()
