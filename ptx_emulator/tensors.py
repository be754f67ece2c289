# SPDX-License-Identifier: Apache-2.0
"""The extents of tensors, and the tensors of this process by address."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator

import torch

from .errors import PTXError
from .memory import Region


def region(tensor: object, name: str, bounds: str = "view") -> Region:
    """The bytes of a tensor that a kernel may touch: from the first element of the view to the last, or its
    whole storage."""
    tensor = getattr(tensor, "base", tensor) if not isinstance(tensor, torch.Tensor) else tensor
    if not isinstance(tensor, torch.Tensor):
        raise PTXError(f"argument {name}: a {type(tensor).__name__} has no extent; pass a tensor")
    if tensor.device.type != "cpu":
        raise PTXError(
            f"argument {name} is on {tensor.device}; the emulator reads the memory of this process"
        )
    if bounds == "storage":
        storage = tensor.untyped_storage()
        return Region(storage.data_ptr(), storage.data_ptr() + storage.nbytes(), name)
    start, size = tensor.data_ptr(), tensor.element_size()
    if not tensor.numel():
        return Region(start, start, name)
    if tensor.is_contiguous():
        return Region(start, start + tensor.numel() * size, name)
    low = high = 0
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        low, high = low + min(0, (length - 1) * stride), high + max(0, (length - 1) * stride)
    return Region(start + low * size, start + (high + 1) * size, name)


class LiveTensors:
    """Finds the storage that holds an address, among the tensors found before, those that the callers hold in
    variables, and at last all tensors that live: this search looks at every object."""

    def __init__(self):
        self._found: list[weakref.ref[torch.Tensor]] = []

    def find(self, address: int) -> Region | None:
        self._found = [ref for ref in self._found if ref() is not None]
        for tensors in ((ref() for ref in self._found), _of_callers(), _all()):
            for tensor in tensors:
                if tensor is None:  # gone meanwhile
                    continue
                place = region(tensor, "a live tensor", "storage")
                if place.start <= address < place.end:
                    if not any(ref() is tensor for ref in self._found):
                        self._found.append(weakref.ref(tensor))
                    return place
        return None


def _is_here(value: object) -> bool:
    """Is it a tensor with memory in this process (subclasses may have none)?"""
    return (
        type(value) in (torch.Tensor, torch.nn.Parameter)
        and value.device.type == "cpu"
        and value.layout is torch.strided
        and not torch._is_functional_tensor(value)
    )


def _of_callers() -> Iterator[torch.Tensor]:
    """Tensors in variables of the functions that are being called, and in lists and tuples there."""
    frame = sys._getframe()
    while frame is not None:
        for value in list(frame.f_locals.values()):
            yield from filter(_is_here, value if type(value) in (list, tuple) else (value,))
        frame = frame.f_back


def _all() -> Iterator[torch.Tensor]:
    yield from filter(_is_here, gc.get_objects())
