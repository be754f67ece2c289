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
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from .._checks import BackendUnavailable
from .calls import OPERATORS

NAMES = ("auto", "reference", "cpu", "triton")
OPERATIONS = tuple(OPERATORS)
_PLAIN = frozenset((Tensor, type(None)))


def load(backend: str, operation: str, device_type: str, dtypes: Sequence[torch.dtype]) -> ModuleType:
    """The module that serves `operation` for rows of `dtypes` on `device_type`.

    A named backend serves or raises; only `"auto"` chooses.

    Raises:
        BackendUnavailable: the named backend cannot serve the call.
    """
    name, _ = choose(operation, device_type, dtypes) if backend == "auto" else (backend, "")
    if name == "reference":
        return importlib.import_module("specdec_kernels.reference")
    module, reason = _module(name)[0], _why_not(name, operation, device_type, dtypes)
    if module is None or reason:
        raise BackendUnavailable(f"{operation}: backend {name!r} cannot serve this call: {reason}")
    return module


def kernels(operation: str, backend: str, device_type: str) -> ModuleType | None:
    """The Triton backend if it serves this operation for `backend`, outside any tracer; otherwise None."""
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
        return None
    name = choose(operation, device_type)[0] if backend == "auto" else backend
    return _triton()[0] if name == "triton" else None


def filler(operation: str, backend: str, *given: Tensor | None) -> ModuleType | None:
    """The native or the Triton backend, if it verifies trees of these tensors and has the operation, which
    fills arrays in one call: `enter_chains`, `enter_links`, `enter_path` or `begin_dynamic_trees`. None where
    operators of torch have to: inside of tracers, of other devices, of subclasses."""
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
        return None
    if not _PLAIN.issuperset(map(type, given)):
        return None
    device_type = next(tensor for tensor in given if tensor is not None).device.type
    name = choose("verify", device_type)[0] if backend == "auto" else backend
    if name == "reference" or (name == backend and _why_not(name, operation, device_type, ())):
        return None
    module = _module(name)[0]
    return module if hasattr(module, operation) else None


def choose(operation: str, device_type: str, dtypes: Sequence[torch.dtype] = ()) -> tuple[str, str]:
    """The backend that `"auto"` takes, and the reason."""
    reasons = []
    for name, kernels in (("cpu", "native kernels"), ("triton", "Triton kernels")):
        reason = _why_not(name, operation, device_type, dtypes)
        if reason is None:
            return name, f"{kernels} for {device_type} tensors"
        reasons.append(f"backend {name!r} cannot: {reason}")
    return "reference", "; ".join(reasons)


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
        chosen = {operation: choose(operation, device) for operation in OPERATIONS}
        for name, why in dict.fromkeys(chosen.values()):
            served = [operation for operation in OPERATIONS if chosen[operation] == (name, why)]
            which = "every operation" if len(served) == len(OPERATIONS) else ", ".join(served)
            lines.append(f"{which} on {device}: {name}: {why}")
    lines.append("float64 rows: reference on every device: the other backends serve 32 and 16 bit rows")
    return "\n".join(lines)
