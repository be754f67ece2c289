"""The backends that can serve tensors on `DEVICE` here, for tests of operators to run over."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.util import find_spec

import torch

from specdec_kernels.backends import OPERATIONS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = ["reference"]
if DEVICE == "cpu" and find_spec("specdec_kernels.cpu._native"):
    BACKENDS.append("cpu")
if find_spec("triton"):
    BACKENDS.append("triton")


def emulate_gpu() -> None:
    """Where there is no GPU, Triton's kernels run from their PTX on CPU tensors. Those of an operator may
    touch its arguments, and any tensor that lives: caches are reached through a table of their addresses."""
    if DEVICE == "cpu" and "triton" in BACKENDS:
        import ptx_emulator
        from specdec_kernels import triton

        ptx_emulator.activate(80, reach="live")
        for name in set(OPERATIONS) & set(dir(triton)):
            setattr(triton, name, _with_arguments_mapped(getattr(triton, name)))


def _with_arguments_mapped(operation: Callable[..., None]) -> Callable[..., None]:
    """So that the search among all that lives, which is slow, is for the rest."""
    from ptx_emulator import mapped

    @functools.wraps(operation)
    def run(*args: object) -> None:
        flat = [value for arg in args for value in (arg if isinstance(arg, list) else [arg])]
        with mapped(*(value for value in flat if isinstance(value, torch.Tensor))):
            operation(*args)

    return run
