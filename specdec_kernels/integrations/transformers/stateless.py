# SPDX-License-Identifier: Apache-2.0
"""Whether a logits processor answers equal calls equally."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..._checks import bad_value


def check_stateless(
    operation: str, argument: str, processor: Any, call: Callable[[], Tensor], shape: tuple[int, int]
) -> Tensor:
    """Call a processor twice with equal arguments; refuse it where answers or attributes differ.

    Attributes are compared after the first call, since a table that it prepares changes nothing later.

    Returns:
        The answer.

    Raises:
        ValueError: the processor is stateful. Speculation would call it for texts that are never written.
    """
    rule = "must be a function of its arguments"
    name = getattr(processor, "__name__", type(processor).__name__)
    answer = call()
    if not isinstance(answer, Tensor) or answer.shape != shape:
        got = list(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        bad_value(operation, argument, f"must return scores [B, V] = {list(shape)}", f"{got} from {name}")
    kept, before = answer.clone(), attributes(processor)
    again = call()
    if not torch.equal(kept.nan_to_num(1.5), again.nan_to_num(1.5)):
        bad_value(operation, argument, rule, f"{name}, which answers two equal calls differently")
    if attributes(processor) != before:
        bad_value(operation, argument, rule, f"{name}, whose attributes change between two equal calls")
    return kept


def _holds(cell: types.CellType) -> bool:
    """Whether a variable of a closure has a value yet."""
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def attributes(value: Any, depth: int = 12) -> Any:
    """A copy of an object's data that can be compared: its numbers, tensors, containers and attributes, the
    variables of a closure, the object of a method. Global variables are ignored."""
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return repr(value)
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().flatten()
        return (value.dtype, value.device, value.shape, flat.view(torch.uint8).numpy().tobytes())
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if isinstance(value, torch.nn.Module) or depth == 0:
        return id(value)
    if isinstance(value, types.MethodType):
        return [id(value.__func__), attributes(value.__self__, depth - 1)]
    if isinstance(value, functools.partial):
        return [attributes(one, depth - 1) for one in (value.func, value.args, value.keywords)]
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _holds(cell)]
        return [id(value), attributes(cells, depth - 1), attributes(vars(value), depth - 1)]
    if isinstance(value, dict):
        return [(attributes(key, 1), attributes(one, depth - 1)) for key, one in value.items()]
    if isinstance(value, (list, tuple)):
        return [attributes(one, depth - 1) for one in value]
    if isinstance(value, (set, frozenset)):
        return sorted(repr(attributes(one, 1)) for one in value)
    if hasattr(value, "tolist"):
        return repr(value.tolist())
    inside = getattr(value, "__dict__", None)
    slots = {name: getattr(value, name, None) for name in getattr(type(value), "__slots__", ()) or ()}
    if isinstance(inside, dict) and not isinstance(value, type) or slots:
        return [id(type(value)), attributes({**(inside or {}), **slots}, depth - 1)]
    return id(value)
