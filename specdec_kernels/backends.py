"""Which backend serves a call, and why."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import lru_cache
from types import ModuleType

import torch

from .errors import BackendUnavailable, bad_value

NAMES = ("auto", "reference", "cpu", "triton")
OPERATIONS = (
    "verify",
    "sample",
    "tree_attention",
    "commit_kv",
    "commit_state",
    "replay_conv",
    "replay_gated_delta",
    "replay_mamba2",
)
_NO_TRITON = "it is not part of this release"


def load(backend: str, operation: str, device_type: str, dtypes: Sequence[torch.dtype]) -> ModuleType:
    """The module that serves `operation` for rows of `dtypes` on `device_type`.

    A named backend serves or raises; only `"auto"` chooses.

    Raises:
        ValueError: `backend` is no name of a backend.
        BackendUnavailable: the named backend cannot serve the call.
    """
    name, _ = choose(operation, device_type, dtypes) if backend == "auto" else (backend, "")
    if name == "reference":
        return importlib.import_module("specdec_kernels.reference")
    if name not in NAMES:
        bad_value(operation, "backend", f"must be one of {', '.join(NAMES)}", repr(name))
    reason = _why_not(name, operation, device_type, dtypes)
    if reason:
        raise BackendUnavailable(f"{operation}: backend {name!r} cannot serve this call: {reason}")
    return _native()[0]


def choose(operation: str, device_type: str, dtypes: Sequence[torch.dtype] = ()) -> tuple[str, str]:
    """The backend that `"auto"` takes, and the reason."""
    reason = _why_not("cpu", operation, device_type, dtypes)
    if reason is None:
        return "cpu", "native kernels for cpu tensors"
    return "reference", f"backend 'cpu' cannot: {reason}; backend 'triton' cannot: {_NO_TRITON}"


def _why_not(backend: str, operation: str, device_type: str, dtypes: Sequence[torch.dtype]) -> str | None:
    if backend == "triton":
        return _NO_TRITON
    if device_type != "cpu":
        return f"it serves tensors on cpu, got {device_type}"
    if torch.float64 in dtypes:
        return "it serves float32 | bfloat16 | float16 rows, got float64"
    module, reason = _native()
    if module is None:
        return reason
    return None if hasattr(module, operation) else f"it has no {operation}"


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


def explain() -> str:
    """Which backend `"auto"` takes for every kind of device and operation, and why; as text to print.

    Example:
        >>> "cpu" in explain()
        True
    """
    module, reason = _native()
    lines = []
    if module is None:
        lines.append(f"native extension: missing: {reason}")
    else:
        describe = getattr(module, "instruction_set", None)
        level = f", instruction set {describe()}" if describe else ""
        lines.append(f"native extension: importable{level}")
    lines.append(f"triton: missing: {_NO_TRITON}")
    for device in ("cpu", "cuda", "other devices"):
        for operation in OPERATIONS:
            name, why = choose(operation, device)
            lines.append(f"{operation} on {device}: {name}: {why}")
    lines.append("float64 rows: reference on every device: the other backends serve 32 and 16 bit rows")
    return "\n".join(lines)
