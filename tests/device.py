# SPDX-License-Identifier: Apache-2.0
"""Operators run on the device under test, though tests write their tensors on the host.

Where there is a GPU, a fixture in `conftest.py` puts `on_device` around every public operator. Storages are
moved whole and each once, and views are built again as they were, so strides, gaps and overlaps stay what the
test wrote. After the call the storages are copied back, also where it raised: the test sees what was written
in place. What the call returned comes to the host in the same way.

Without a GPU, `SPECDEC_TEST_DEVICE=copy` does the same with copies on the host. A tensor that the package
makes without `device=` then lies on the meta device, and fails where it meets the others.

A call with `backend="cpu"` stays on the host. Tests that compile operators write
`on_device(torch.compile(step))`: what is compiled meets tensors that have been moved.

This has not run on a GPU yet. There, begin with `tests/test_device.py`, then `tests/test_match.py`, then the
other tests of operators, and the whole suite last.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from each import COPIED, DEVICE
from torch import Tensor

import specdec_kernels as sdk

FUNCTIONS = [
    name
    for name in sdk.__all__
    if inspect.isfunction(function := getattr(sdk, name)) and "integrations" not in function.__module__
]
METHODS = [
    (sdk.SpeculativeVerifier, "forward"),
    (sdk.SpeculativeVerifier, "commit"),
    (sdk.TokenCounts, "update_"),
    (sdk.BatchBudget, "select"),
    (sdk.BatchBudget, "update_"),
]
MOVED = DEVICE != "cpu" or COPIED
NAME = str(torch.empty(0, device=DEVICE).device)  # as messages have it
HOLDERS = (
    sdk.BatchBudget,
    sdk.CachePlan,
    sdk.DraftTree,
    sdk.DraftVocab,
    sdk.SpeculativeVerifier,
    sdk.TokenCounts,
)


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


class Crossing:
    """Takes values from one device to another: tensors, and whatever holds some."""

    def __init__(self, origin: str, target: str) -> None:
        self.origin, self.target = origin, target
        self._storages: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self._values: dict[int, tuple[Any, Any]] = {}

    def __call__(self, value: Any) -> Any:
        if id(value) not in self._values:
            self._values[id(value)] = value, self._taken(value)
        return self._values[id(value)][1]

    def _taken(self, value: Any) -> Any:
        if type(value) in (Tensor, torch.nn.Parameter):
            return self._tensor(value) if value.device.type == self.origin else value
        if isinstance(value, tuple):
            parts = [self(part) for part in value]
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        if type(value) is list:
            return [self(part) for part in value]
        if type(value) is dict:
            return {key: self(part) for key, part in value.items()}
        if isinstance(value, HOLDERS):
            taken = copy.copy(value)
            vars(taken).update({name: self(part) for name, part in vars(value).items()})
            if isinstance(taken, sdk.CachePlan):
                taken.table = taken.table.clone()  # which does not go back
                for row, cache in zip(taken.table, taken.caches, strict=True):
                    row[0].fill_(cache.data_ptr())
            return taken
        if callable(value) and not isinstance(value, type):
            return self._callback(value)
        return value

    def _tensor(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._storages:
            taken = _bytes(storage).to(self.target, copy=True).untyped_storage()
            self._storages[storage._cdata] = storage, taken
        view = torch.empty(0, dtype=tensor.dtype, device=self.target)
        view.set_(self._storages[storage._cdata][1], tensor.storage_offset(), tensor.shape, tensor.stride())
        return view.requires_grad_(tensor.requires_grad)

    def _callback(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Of a test: it lives on the side that the others leave."""

        def called(*args: Any) -> Any:
            with torch.device(self.origin):
                result = function(*Crossing(self.target, self.origin)(args))
            return Crossing(self.origin, self.target)(result)

        return called

    def copy_back(self) -> None:
        """Into every storage what its copy holds now."""
        for storage, taken in self._storages.values():
            _bytes(storage).copy_(_bytes(taken))

    @property
    def moved(self) -> bool:
        """Whether any tensor had to be."""
        return bool(self._storages)

    def back(self) -> Crossing:
        """The way back, on which what came over becomes again what it was."""
        back = Crossing(self.target, self.origin)
        back._storages = {taken._cdata: (taken, storage) for storage, taken in self._storages.values()}
        back._values = {id(taken): (taken, value) for value, taken in self._values.values()}
        return back


def to_device(value: Any) -> Any:
    """A copy on the device under test."""
    return Crossing("cpu", DEVICE)(value)


def on_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, called with its tensors on the device under test."""
    return moving(function) if MOVED else function


def moving(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same wherever the tensors lie."""

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or kwargs.get("backend") == "cpu":
            return function(*args, **kwargs)
        strict = DEVICE == "cpu" and kwargs.get("backend") == "triton"
        elsewhere = functools.partial(torch.device, "meta") if strict else contextlib.nullcontext
        over = Crossing("cpu", DEVICE)
        args, kwargs = over(args), over(kwargs)
        try:
            with elsewhere():
                result = function(*args, **kwargs)
        finally:
            over.copy_back()
        return over.back()(result) if over.moved else result

    return called
