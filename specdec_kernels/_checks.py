# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments. A message names operation, argument, rule in symbols and numbers, and what came."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NoReturn

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
INF = float("inf")
LARGEST = sys.float_info.max


class BackendUnavailable(RuntimeError):
    """The backend that the caller named cannot serve the call; the message says why."""


def bad_value(operation: str, argument: str, rule: str, got: object) -> NoReturn:
    """Raise `ValueError`, e.g. `verify: seeds must have shape [B] = [4], got [3]`."""
    raise ValueError(f"{operation}: {argument} {rule}, got {got}")


def bad_type(operation: str, argument: str, rule: str, got: object) -> NoReturn:
    """Raise `TypeError` with a message of the same form."""
    raise TypeError(f"{operation}: {argument} {rule}, got {got}")


def name_of(dtype: torch.dtype) -> str:
    """`float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def check_type(operation: str, argument: str, value: object, kind: type, noun: str) -> None:
    """Raise `TypeError` unless `value` is a `kind`."""
    if not isinstance(value, kind):
        bad_type(operation, argument, f"must be {noun}", type(value).__name__)


def what(value: object) -> object:
    """The shape of a tensor, or the type of any other object."""
    return list(value.shape) if isinstance(value, Tensor) else type(value).__name__


def check_int(
    operation: str, argument: str, value: object, least: float = -INF, most: int | None = None
) -> int:
    """The value. Raise `TypeError` unless it is an int, `ValueError` unless it is in [least, most]."""
    if isinstance(value, bool) or not isinstance(value, (int, Integral, torch.SymInt)):
        bad_type(operation, argument, "must be an int", type(value).__name__)
    number: Any = value  # type checkers do not accept a SymInt as an int
    if number < least or (most is not None and number > most):
        bounds = f">= {least}" if most is None else f"in [{least}, {most}]"
        bad_value(operation, argument, f"must be {bounds}", value)
    if number >= 2**63:
        bad_value(operation, argument, "must be < 2**63", value)
    whole: int = number if isinstance(value, (int, torch.SymInt)) else int(number)
    return whole


def check_number(
    operation: str,
    argument: str,
    value: object,
    low: float = -INF,
    high: float = INF,
    *,
    infinite: bool = False,
    noun: str = "a number",
) -> float:
    """The value as a number. Raise `TypeError` unless it is one, `ValueError` unless it is in [low, high] and
    finite. With `infinite` it may be inf."""
    if isinstance(value, bool) or not isinstance(value, (float, int, Real)):
        bad_type(operation, argument, f"must be {noun}", type(value).__name__)
    number = value if isinstance(value, int) else float(value)
    finite = abs(number) <= LARGEST  # an int may be larger than any float
    if not (low <= number <= high and (finite or (infinite and number == INF))):
        if high < INF:
            rule = f"in [{low}, {high}]"
        else:
            rule = " and ".join(["finite"] * (not infinite) + [f">= {low}"] * (low > -INF))
        bad_value(operation, argument, f"must be {rule}", value)
    return float(number)


def check_numbers(
    operation: str, argument: str, values: object, low: float = 0, high: float = INF
) -> list[float]:
    """A sequence of finite numbers in [low, high], as a list."""
    values = check_list(operation, argument, values, "numbers")
    for i, value in enumerate(values):
        if type(value) is not float or not low <= value <= min(high, LARGEST):
            values[i] = check_number(operation, f"{argument}[{i}]", value, low, high)
    return values


def check_ints(operation: str, argument: str, values: object, least: float = -INF) -> list[int]:
    """A sequence of integers from `least` on, as a list."""
    values = check_list(operation, argument, values, "ints")
    for i, value in enumerate(values):
        if type(value) is not int or not least <= value < 2**63:
            values[i] = check_int(operation, f"{argument}[{i}]", value, least)
    return values


def check_list(operation: str, argument: str, values: object, noun: str) -> list[Any]:
    """The values as a list. Raise `TypeError` unless they are a sequence; a tensor does not count as one."""
    if isinstance(values, (Tensor, str, bytes, Mapping)) or not isinstance(values, Iterable):
        bad_type(operation, argument, f"must be a sequence of {noun}", type(values).__name__)
    return list(values)


def check_bool(operation: str, argument: str, value: object) -> None:
    """Raise `TypeError` unless `value` is True or False."""
    if not isinstance(value, bool):
        bad_type(operation, argument, "must be a bool", type(value).__name__)


def check_name(operation: str, argument: str, value: object, names: Collection[str]) -> None:
    """Raise unless `value` is one of `names`."""
    if not isinstance(value, str):
        bad_type(operation, argument, f"must be one of {', '.join(names)}", type(value).__name__)
    if value not in names:
        bad_value(operation, argument, f"must be one of {', '.join(names)}", repr(value))


def check_dtype(operation: str, argument: str, value: object, dtypes: Sequence[torch.dtype]) -> None:
    """Raise `TypeError` unless `value` is a tensor of one of `dtypes`."""
    if not isinstance(value, Tensor):
        bad_type(operation, argument, "must be a tensor", type(value).__name__)
    if value.dtype not in dtypes:
        wanted = " | ".join(name_of(dtype) for dtype in dtypes)
        bad_type(operation, argument, f"must have dtype {wanted}", name_of(value.dtype))


def check_shape(operation: str, argument: str, value: Tensor, symbols: str, shape: Sequence[int]) -> None:
    """Raise `ValueError` unless `value` has `shape`; `symbols` is the shape in letters, e.g. `[B, K]`."""
    if tuple(value.shape) != tuple(shape):
        bad_value(operation, argument, f"must have shape {symbols} = {list(shape)}", list(value.shape))


def check_dim(operation: str, argument: str, value: Tensor, dim: int, symbols: str) -> None:
    """Raise `ValueError` unless `value` has `dim` dimensions."""
    if value.dim() != dim:
        bad_value(operation, argument, f"must have shape {symbols}", list(value.shape))


def check_device(operation: str, argument: str, value: Tensor, device: torch.device) -> None:
    """Raise `TypeError` unless `value` lies on `device`."""
    if value.device != device:
        bad_type(operation, argument, f"must be on device {device}", value.device)


def check_values(operation: str, argument: str, value: Tensor) -> None:
    """Raise `TypeError` if `value` has none: it lies on the device "meta"."""
    if value.is_meta:
        bad_type(operation, argument, "must have values", "a tensor on device meta")


def device_named(call: str, device: torch.device | str | None) -> torch.device:
    """The device that an argument `device` names; None is the CPU."""
    if device is not None and not isinstance(device, (torch.device, str)):
        bad_type(call, "device", "must be a torch.device, its name or None", type(device).__name__)
    try:
        return torch.device(device or "cpu")
    except RuntimeError:
        bad_value(call, "device", "must be the name of a device", repr(device))


def check_tensor(
    operation: str,
    argument: str,
    value: Any,
    symbols: str,
    shape: Sequence[int],
    dtypes: Sequence[torch.dtype],
    device: torch.device,
) -> None:
    """Check type, dtype, device and shape of one argument. Reads no values, so it never synchronises."""
    typed = isinstance(value, Tensor) and value.dtype in dtypes
    if typed and value.device == device and value.shape == shape:
        return  # in one pass, where all is well
    check_dtype(operation, argument, value, dtypes)
    check_device(operation, argument, value, device)
    check_shape(operation, argument, value, symbols, shape)
