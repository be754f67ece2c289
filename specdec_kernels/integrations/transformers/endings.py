# SPDX-License-Identifier: Apache-2.0
"""The conditions that end a request: as callers give them, as the configuration does, and as criteria."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import index
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from ..._checks import bad_type, bad_value

T = TypeVar("T")


class Ending(NamedTuple):
    """The conditions that end one request.

    Attributes:
        limit: most new tokens, >= 1.
        stops: tokens that end it.
        criteria: transformers' stopping criteria beyond length and stop tokens.
    """

    limit: int
    stops: frozenset[int]
    criteria: list[Any]


def stop_string_criterion(tokenizer: Any, stop_strings: Any, operation: str) -> Any:
    """transformers' criterion for strings at the end of a text."""
    from transformers import StopStringCriteria

    strings = strings_of(stop_strings, None, 1, operation)[0]
    if strings is None:
        bad_value(operation, "stop_strings", "must not be empty", stop_strings)
    if tokenizer is None:
        bad_value(operation, "tokenizer", "must be given with stop_strings", None)
    return StopStringCriteria(tokenizer, list(strings))


def ends_of(criteria: Sequence[Any], length: int, default: Ending) -> Ending:
    """Lengths and stop tokens among the criteria replace the default; they need no calls."""
    limits, stops, rest = [], [], []
    for criterion in criteria:
        cls = type(criterion)
        name = cls.__name__ if cls.__module__ == "transformers.generation.stopping_criteria" else ""
        if name == "MaxLengthCriteria":
            limits.append(max(criterion.max_length - length, 1))
        elif name == "EosTokenCriteria":
            stops += criterion.eos_token_id.flatten().tolist()
        else:
            rest.append(criterion)
    return Ending(min(limits, default=default.limit), frozenset(stops or default.stops), rest)


def stops_of(given: Any, config: Any, batch: int, operation: str) -> list[list[int]]:
    """Stop tokens of every request."""
    if given is None:
        eos = config._eos_token_tensor
        return [[] if eos is None else eos.tolist()] * batch
    rule = "must be a collection of ints, or one such collection per request"
    return _collections(given, batch, _token, "stop_tokens", rule, operation)


def strings_of(given: Any, config: Any, batch: int, operation: str) -> list[tuple[str, ...] | None]:
    """Stop strings of every request, None where it has none."""
    given = config.stop_strings if given is None else given
    if given is None:
        return [None] * batch
    rule = "must be a string, a collection of strings, or one such collection per request"
    given = [given] if isinstance(given, str) else given
    return [
        tuple(one) or None for one in _collections(given, batch, _string, "stop_strings", rule, operation)
    ]


def _collections(
    given: Any, batch: int, read: Callable[[Any], T | None], argument: str, rule: str, operation: str
) -> list[list[T]]:
    """One list per request, of a collection for all of them or one collection for each."""
    if isinstance(given, Tensor):
        given = given.tolist()
    if isinstance(given, (str, bytes, dict)) or not hasattr(given, "__iter__"):
        bad_type(operation, argument, rule, type(given).__name__)
    given = [one.tolist() if isinstance(one, Tensor) else one for one in given]
    nested = [not isinstance(one, (str, bytes, dict)) and hasattr(one, "__iter__") for one in given]
    if not any(nested):
        found = []
        for one in given:
            if (value := read(one)) is None:
                bad_type(operation, argument, rule, f"a {type(one).__name__} in it")
            found.append(value)
        return [found] * batch
    if not all(nested):
        bad_type(operation, argument, rule, "a mixture of both")
    if len(given) != batch:
        bad_value(operation, argument, f"per request must be B = {batch} collections", len(given))
    return [_collections(one, 1, read, argument, rule, operation)[0] for one in given]


def _token(value: Any) -> int | None:
    try:
        return None if isinstance(value, bool) else index(value)
    except TypeError:
        return None


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def limits_of(
    given: Any, config: Any, own: Any, prompts: Sequence[Sequence[int]], operation: str
) -> list[int]:
    """Most new tokens of every request."""
    given = config.max_new_tokens if given is None else given
    if given is not None:
        rule = "must be an int, or one int per request"
        limits = given.tolist() if isinstance(given, Tensor) else given
        if hasattr(limits, "__iter__") and not isinstance(limits, (str, bytes, dict, set, frozenset)):
            limits = list(limits)
            if len(limits) != len(prompts):
                bad_value(operation, "max_new_tokens", f"must have length B = {len(prompts)}", len(limits))
        else:
            limits = [limits] * len(prompts)
        found = []
        for limit in limits:
            if (value := _token(limit)) is None:
                bad_type(operation, "max_new_tokens", rule, limit)
            found.append(value)
        if min(found) < 1:
            bad_value(operation, "max_new_tokens", "must be >= 1", min(found))
        return found
    longest = max(map(len, prompts))
    if config.max_length is not None:
        if longest >= config.max_length:
            rule = f"must be shorter than generation_config.max_length = {config.max_length}"
            bad_value(operation, "input_ids", rule, f"a prompt of {longest}")
        return [config.max_length - len(prompt) for prompt in prompts]
    most = own.generation_config._get_default_generation_params()["max_length"]
    positions = getattr(own.config, "max_position_embeddings", None)
    if positions is None:
        return [most] * len(prompts)
    if longest >= positions:
        bad_value(operation, "input_ids", f"must be shorter than the model's {positions} positions", longest)
    return [min(most, positions - len(prompt)) for prompt in prompts]
