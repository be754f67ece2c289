# SPDX-License-Identifier: Apache-2.0
"""A mode in which whatever would make the host wait for a GPU fails, though the tensors lie on the CPU; and
one that counts operators."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from torch import is_tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from specdec_kernels._ops import backends

READ_BY_HOST = (
    "tolist",
    "item",
    "numpy",
    "__array__",
    "cpu",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
)
MADE_BY_HOST = (torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, torch.Tensor.new_tensor)


class Synchronises(AssertionError):
    """A torch call that would synchronise, or whose work depends on what tensors hold."""


class _Functions(TorchFunctionMode):
    """What torch does without an operator: reading memory, and tensors out of Python's numbers."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in MADE_BY_HOST or getattr(function, "__name__", "") in READ_BY_HOST:
            raise Synchronises(f"{function.__name__} copies between host and device")
        return function(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if torch.Tag.data_dependent_output in function.tags or function is torch.ops.aten.lift_fresh.default:
            raise Synchronises(f"{function} copies between host and device")
        if torch.Tag.dynamic_output_shape in function.tags and not _indexed_by_integers(function, args):
            raise Synchronises(f"the shape of what {function} returns depends on data")
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        devices = {tensor.device for tensor in tensors if tensor.dim()}
        if (
            len(devices | ({torch.device(kwargs["device"])} if kwargs.get("device") and devices else set()))
            > 1
        ):
            raise Synchronises(f"{function} copies between devices")
        return function(*args, **kwargs)


def _indexed_by_integers(function: torch._ops.OpOverload, args: tuple) -> bool:
    if function is not torch.ops.aten.index.Tensor:
        return False
    return all(index is None or index.dtype not in (torch.bool, torch.uint8) for index in args[1])


@contextlib.contextmanager
def no_synchronisation() -> Iterator[None]:
    """Inside, operations run as they do eagerly, and `Synchronises` is raised where the host would wait.
    Chains are made by torch, as on a GPU: the native backend makes them in memory of NumPy's."""
    eager = mock.patch("specdec_kernels._kept.is_in_torch_dispatch_mode", lambda: False)
    filler = backends.filler
    by_torch = mock.patch.object(
        backends, "filler", lambda name, *given: None if name == "uniform_chains" else filler(name, *given)
    )
    with eager, by_torch, _Functions(), _Operators():
        yield


class Counted(TorchDispatchMode):
    """Operators of torch other than views, and tensors with memory of their own that they return."""

    def __enter__(self):
        self.operators = self.tensors = 0
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        returned = function(*args, **(kwargs or {}))
        if not function.is_view and function.namespace == "aten":
            self.operators += 1
            self.tensors += len(memory(returned) - memory((args, kwargs)))
        return returned


def memory(values) -> set[int]:
    return {value.untyped_storage().data_ptr() for value in tree_leaves(values) if is_tensor(value)}
