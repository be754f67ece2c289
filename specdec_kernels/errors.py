# SPDX-License-Identifier: Apache-2.0
"""One form of message for every operation: operation, argument, rule in symbols and numbers, what came."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class BackendUnavailable(RuntimeError):
    """A backend was named that cannot serve the call; the message says why."""


def bad_value(operation: str, argument: str, rule: str, got: object) -> NoReturn:
    """Raise `ValueError`, e.g. `verify: seeds must have shape [B] = [4], got [3]`."""
    raise ValueError(f"{operation}: {argument} {rule}, got {got}")


def bad_type(operation: str, argument: str, rule: str, got: object) -> NoReturn:
    """Raise `TypeError` in the same words."""
    raise TypeError(f"{operation}: {argument} {rule}, got {got}")


def name_of(dtype: torch.dtype) -> str:
    """`float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def check_type(operation: str, argument: str, value: object, kind: type, noun: str) -> None:
    """Raise `TypeError` unless `value` is a `kind`."""
    if not isinstance(value, kind):
        bad_type(operation, argument, f"must be {noun}", type(value).__name__)


def check_dtype(operation: str, argument: str, value: object, dtypes: Sequence[torch.dtype]) -> None:
    """Raise `TypeError` unless `value` is a tensor of one of `dtypes`."""
    if not isinstance(value, Tensor):
        bad_type(operation, argument, "must be a tensor", type(value).__name__)
    if value.dtype not in dtypes:
        wanted = " | ".join(name_of(dtype) for dtype in dtypes)
        bad_type(operation, argument, f"must have dtype {wanted}", name_of(value.dtype))


def check_shape(operation: str, argument: str, value: Tensor, symbols: str, shape: Sequence[int]) -> None:
    """Raise `ValueError` unless `value` has `shape`; `symbols` is the shape in letters, as `[B, K]`."""
    if tuple(value.shape) != tuple(shape):
        bad_value(operation, argument, f"must have shape {symbols} = {list(shape)}", list(value.shape))


def check_device(operation: str, argument: str, value: Tensor, device: torch.device) -> None:
    """Raise `TypeError` unless `value` lies on `device`."""
    if value.device != device:
        bad_type(operation, argument, f"must be on device {device}", value.device)


def check_tensor(
    operation: str,
    argument: str,
    value: object,
    symbols: str,
    shape: Sequence[int],
    dtypes: Sequence[torch.dtype],
    device: torch.device,
) -> None:
    """Type, dtype, device and shape of one argument. Reads no values, so it never synchronises."""
    check_dtype(operation, argument, value, dtypes)
    check_device(operation, argument, value, device)
    check_shape(operation, argument, value, symbols, shape)
