# SPDX-License-Identifier: Apache-2.0
"""Kernels launched directly: what Triton's own path does in every launch is done once for every *form*.

A form is all that a compiled kernel depends on: the device, the dtypes of tensors and which arguments are
None, whether the numbers named `aligned` are multiples of 16, and the constants. An operator looks its forms
up by a key of its own, which must tell all of them apart, and keeps a `Launch` for each kernel:

    @cache
    def _kernel_of(device, dtype, aligned, masked, vocab):      # the key
        names = ("x_ptr", "x_stride") if aligned else ()
        return Launch(_kernel, device, dict(SPLIT=1024), aligned=names, num_warps=4)

    launch = _kernel_of(device_of(x), x.dtype, multiples_of_16(x), mask is not None, x.shape[-1])
    launch((rows, splits, 1), x, x.stride(0), mask)             # the grid; arguments in the kernel's order

Rules of a kernel that is launched so:

- Its constexprs come last. Arguments are given by position, NamedTuples among them.
- No other scalar is specialised, unless it is `fixed`: 1 and multiples of 16 get no code of their own. A
  scalar is 64 bits wide if its name, or its field's in a NamedTuple, has `stride` in it, or if it was so in
  the first launch. Else it must fit into 32 bits.
- `aligned` names the arguments and fields (tensors and scalars) that are multiples of 16 in this form: bytes
  of an address, elements of a stride. All others may have any value.
- A tensor that is None is compiled for as such, unless `optional` names it: then one kernel serves calls with
  it and without, and asks `given`.

`Launch.checked = True` compares every launch with the first one of its form, and is for tests: a key that is
not complete would launch a kernel on arguments that it was not compiled for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

INTERPRETED = knobs.runtime.interpret  # as it was when kernels were decorated
_INT32 = 2**31


def device_of(tensor: Tensor) -> Any:
    """What tells devices apart: the tensor's index, or what the driver says where tensors have none."""
    index = tensor.get_device()
    return index if index >= 0 or INTERPRETED else driver.active.get_current_device()


def multiples_of_16(tensor: Tensor, *strides: int) -> bool:
    """Whether the address is one, in bytes, and all the numbers."""
    for stride in strides:
        if stride % 16:
            return False
    return tensor.data_ptr() % 16 == 0


@contextlib.contextmanager
def current(device: Any) -> Iterator[None]:
    """Inside, a device is the current one, whose target and streams Triton's driver speaks of."""
    before = device if INTERPRETED else driver.active.get_current_device()
    if before == device:
        yield
        return
    driver.active.set_current_device(device)
    try:
        yield
    finally:
        driver.active.set_current_device(before)


def dtype_of(tensor: Tensor | None) -> torch.dtype | None:
    """Of an argument that may be left out."""
    return None if tensor is None else tensor.dtype


@triton.jit
def given(tensor):
    """Whether a call has an optional tensor."""
    return tensor.to(tl.int64) != 0


@dataclass(frozen=True)
class _Pointer:
    """What a compiler asks of a tensor."""

    dtype: torch.dtype
    address: int

    def data_ptr(self) -> int:
        return self.address


class Launch:
    """Launches of one kernel in one form.

    Args:
        kernel: a Triton kernel.
        device: as `device_of` has it; launches go to its current stream, whatever the current device is.
        constants: the kernel's constexprs by name.
        aligned: names of arguments and of fields that are multiples of 16.
        fixed: names of scalars that the key contains; the compiler is shown what they are.
        optional: dtypes of tensors that calls may leave out, by the names of arguments and of fields.
        options: of the compiler: `num_warps`, `num_stages`, `maxnreg`.
    """

    checked = False
    instead: str | None = None  # of launching: "load", or only "compile"; see `warming`
    met: dict[int, Any] = {}  # all kernels that were compiled, or found in Triton's cache, by their ids

    def __init__(
        self,
        kernel: Any,
        device: Any,
        constants: dict[str, Any],
        *,
        aligned: Collection[str] = (),
        fixed: Collection[str] = (),
        optional: Mapping[str, torch.dtype] = MappingProxyType({}),
        enable_fp_fusion: bool = True,  # said in every launch: from Triton 3.10 on it is off by default
        **options: int,
    ) -> None:
        self._kernel, self._device, self._constants = kernel, device, constants
        self._aligned, self._fixed, self._optional = aligned, fixed, optional
        self._options = dict(options, enable_fp_fusion=enable_fp_fusion)
        self._compiled: Any = None
        self._run: Any = None  # the launcher of the compiled kernel, once that is loaded

    def __call__(self, grid: tuple[int, int, int], *arguments: Any) -> None:
        if (self._run is None or self.checked or self.instead) and not self._prepared(grid, arguments):
            return
        if self._current() != self._device:
            with current(self._device):
                return self(grid, *arguments)
        enter, leave, metadata = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook, None
        stream = self._stream(self._device)
        if getattr(enter, "calls", enter) or getattr(leave, "calls", leave):
            metadata = self._compiled.launch_metadata(grid, stream, *arguments, *self._values)
        else:
            enter = leave = None
        x, y, z = grid
        self._run(
            x, y, z, stream, self._function, self._packed, metadata, enter, leave, *arguments, *self._values
        )

    def _prepared(self, grid: tuple[int, int, int], arguments: tuple[Any, ...]) -> bool:
        """Compile and load what is missing. Returns whether there is something to launch."""
        if INTERPRETED:
            self._kernel[grid](*arguments, **self._constants, **self._options)
            return False
        names = self._kernel.arg_names
        if self._compiled is None:
            if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                raise RuntimeError(
                    f"{self._kernel.__name__}: must be compiled in this form before a stream is captured, "
                    "as specdec_kernels.warmup does, got its first launch during a capture"
                )
            self._names = names[: len(arguments)]
            self._first = self._described(arguments)
            self._values = tuple(self._constants[name] for name in names[len(arguments) :])
            self._current, self._stream = driver.active.get_current_device, driver.active.get_current_stream
            given = [self._standing_for(*pair) for pair in zip(self._names, arguments, strict=True)]
            with current(self._device):
                found = self._kernel.run(*given, grid=grid, warmup=True, **self._constants, **self._options)
            if found is None:  # whoever hooks Triton's compilation declined it
                return False
            self._compiled = found.result() if hasattr(found, "result") else found
            Launch.met[id(self._compiled)] = self._compiled
        if self.checked:
            self._check(arguments)
        if self._run is None and self.instead != "compile":
            with current(self._device):
                run = self._compiled.run
            self._function, self._packed = self._compiled.function, self._compiled.packed_metadata
            self._run = run
        return self.instead is None

    def _standing_for(self, name: str, value: Any) -> Any:
        """What the compiler is shown for an argument: of its type, and special only if the form says so."""
        if isinstance(value, tuple):
            fields = getattr(value, "_fields", (name,) * len(value))
            parts = [self._standing_for(*pair) for pair in zip(fields, value, strict=True)]
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        if value is None and name in self._optional:
            return _Pointer(self._optional[name], 1)
        if isinstance(value, Tensor):
            return _Pointer(value.dtype, 16 if name in self._aligned else 1)
        if type(value) is int and name not in self._fixed:
            return (2**40 if _is_wide(name, value) else 0) + (16 if name in self._aligned else 3)
        return value

    def _check(self, arguments: tuple[Any, ...]) -> None:
        name, described = self._kernel.__name__, self._described(arguments)
        if described != self._first:
            raise AssertionError(f"{name}: of one form {self._first} and {described}")
        for argument, value in _leaves(self._names, arguments):
            number = value.data_ptr() if isinstance(value, Tensor) else value
            if argument in self._aligned and number and number % 16:
                raise AssertionError(f"{name}: {argument} must be a multiple of 16 here, got {number}")

    def _described(self, arguments: tuple[Any, ...]) -> list[Any]:
        """What a compiled kernel depends on in its arguments, but for what `aligned` says."""
        described: list[Any] = []
        for name, value in _leaves(self._names, arguments):
            if value is None and name in self._optional:
                described.append(self._optional[name])
            elif isinstance(value, Tensor):
                described.append(value.dtype)
            elif type(value) is int:
                described.append(value if name in self._fixed else "wide" if _is_wide(name, value) else "int")
            else:
                described.append(None if value is None else type(value))
        return described


def _is_wide(name: str, value: int) -> bool:
    return "stride" in name or abs(value) >= _INT32


def _leaves(names: Sequence[str], values: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    for name, value in zip(names, values, strict=True):
        if isinstance(value, tuple):
            yield from _leaves(getattr(value, "_fields", (name,) * len(value)), value)
        else:
            yield name, value


@contextlib.contextmanager
def warming(instead: str) -> Iterator[None]:
    """Inside, kernels are compiled and loaded ("load"), or only compiled ("compile"), and not launched."""
    before, Launch.instead = Launch.instead, instead
    try:
        yield
    finally:
        Launch.instead = before


def target_of(device: torch.device) -> GPUTarget:
    """What kernels for a device are compiled for."""
    with current(device_of(torch.empty(0, device=device))):
        return driver.active.get_current_target()


class _Absent:
    """A driver that says there is a GPU of some target, whose tensors lie on the host; it loads nothing."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def assume(target: GPUTarget) -> None:
    """From here on, compile for a target that need not be here, and launch nothing."""
    driver.set_active(_Absent(target))
