# SPDX-License-Identifier: Apache-2.0
"""Which backend serves a call, and why."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

import torch
from torch import Tensor

from .._checks import BackendUnavailable
from .._kept import traced
from .calls import OPERATORS

NAMES = ("auto", "reference", "cpu", "triton")
OPERATIONS = tuple(OPERATORS)
_KERNELS = {"cpu": "native kernels", "triton": "Triton kernels"}
_PLAIN = frozenset((Tensor, type(None)))


def load(backend: str, operation: str, device_type: str, dtypes: Sequence[torch.dtype]) -> ModuleType:
    """The module that serves `operation` for rows of `dtypes` on `device_type`.

    A named backend serves or raises; only `"auto"` chooses.

    Raises:
        BackendUnavailable: the named backend cannot serve the call.
    """
    name = choose(operation, device_type, dtypes) if backend == "auto" else backend
    if name == "reference":
        return importlib.import_module("specdec_kernels.reference")
    module = _module(name)[0]
    reason = None if backend == "auto" else _why_not(name, operation, device_type, dtypes)
    if module is None or reason:
        raise BackendUnavailable(f"{operation}: backend {name!r} cannot serve this call: {reason}")
    return module


def serving(backend: str, operation: str, rows: Sequence[Tensor]) -> ModuleType:
    """The module that serves `operation` for these rows, as `load` finds it."""
    native = _on_cpu(backend, operation, rows[0])
    if native is not None and torch.float64 not in [row.dtype for row in rows]:
        return native
    return load(backend, operation, rows[0].device.type, [row.dtype for row in rows])


def _on_cpu(backend: str, operation: str, tensor: Tensor) -> ModuleType | None:
    """The native backend, if it may serve a tensor on the CPU. From cold caches the name of a device takes as
    long to get as the rest of a search."""
    if not tensor.is_cpu or backend not in ("auto", "cpu"):
        return None
    module = _native()[0]
    return module if hasattr(module, operation) else None


def kernels(operation: str, backend: str, device_type: str) -> ModuleType | None:
    """The Triton backend if it serves this operation for `backend`, outside any tracer; otherwise None."""
    if traced():
        return None
    name = choose(operation, device_type) if backend == "auto" else backend
    return _triton()[0] if name == "triton" else None


def filler(operation: str, backend: str, *given: Tensor | None) -> ModuleType | None:
    """The native or the Triton backend, if it verifies trees of these tensors and has the operation, which
    fills arrays in one call: `enter_chains`, `enter_links`, `enter_path` or `begin_dynamic_trees`. None where
    operators of torch have to: inside of tracers, of other devices, of subclasses."""
    if traced():
        return None
    if not _PLAIN.issuperset(map(type, given)):
        return None
    tensor = next(tensor for tensor in given if tensor is not None)
    native = _on_cpu(backend, operation, tensor)
    if native is not None:
        return native
    device_type = tensor.device.type
    name = choose("verify", device_type) if backend == "auto" else backend
    if name == "reference" or (name == backend and _why_not(name, operation, device_type, ())):
        return None
    module = _module(name)[0]
    return module if hasattr(module, operation) else None


def choose(operation: str, device_type: str, dtypes: Sequence[torch.dtype] = ()) -> str:
    """The backend that `"auto"` takes."""
    for name in _KERNELS:
        if _why_not(name, operation, device_type, dtypes) is None:
            return name
    return "reference"


def _why_not(backend: str, operation: str, device_type: str, dtypes: Sequence[torch.dtype]) -> str | None:
    module, reason = _module(backend)
    if module is None:
        return reason
    try:
        served = module.device_type()
    except RuntimeError as error:
        return str(error)
    if device_type != served:
        return f"it serves tensors on {served}, got {device_type}"
    if torch.float64 in dtypes:
        return "it serves float32 | bfloat16 | float16 rows, got float64"
    return None if hasattr(module, operation) else f"it has no {operation}"


def _module(backend: str) -> tuple[ModuleType | None, str]:
    """The module of a backend that may be missing; or None and the reason."""
    return _native() if backend == "cpu" else _triton()


@lru_cache(maxsize=1)
def _native() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("specdec_kernels.cpu"), ""
    except ModuleNotFoundError as error:
        if error.name != "specdec_kernels.cpu._native":
            raise
        return None, "the native extension was not built (SPECDEC_NO_CPP=1 at installation leaves it out)"
    except ImportError as error:
        return None, f"the native extension does not load ({error})"


@lru_cache(maxsize=1)
def _triton() -> tuple[ModuleType | None, str]:
    try:
        found = version("triton")
    except PackageNotFoundError:
        return None, "triton is not installed"
    if tuple(map(int, found.split(".")[:2])) < (3, 4):  # tuples as arguments of kernels, `triton.knobs`
        return None, f"it needs triton >= 3.4, got {found}"
    return importlib.import_module("specdec_kernels.triton"), ""


def _reason(operation: str, device_type: str) -> str:
    """The backend that `"auto"` takes, and why."""
    name = choose(operation, device_type)
    if name != "reference":
        return f"{name}: {_KERNELS[name]} for {device_type} tensors"
    reasons = {other: _why_not(other, operation, device_type, ()) for other in _KERNELS}
    return "reference: " + "; ".join(f"backend {other!r} cannot: {why}" for other, why in reasons.items())


def explain() -> str:
    """Which backend `"auto"` takes for every kind of device and operation, and why; as text to print.

    Example:
        >>> "cpu" in explain()
        True
    """
    lines = []
    for name in ("cpu", "triton"):
        module, reason = _module(name)
        lines.append(f"{name}: {module.describe() if module else f'missing: {reason}'}")
    for device in ("cpu", "cuda", "other devices"):
        chosen = {operation: _reason(operation, device) for operation in OPERATIONS}
        for why in dict.fromkeys(chosen.values()):
            served = [operation for operation in OPERATIONS if chosen[operation] == why]
            which = "every operation" if len(served) == len(OPERATIONS) else ", ".join(served)
            lines.append(f"{which} on {device}: {why}")
    lines.append("float64 rows: reference on every device: the other backends serve 32 and 16 bit rows")
    return "\n".join(lines)
