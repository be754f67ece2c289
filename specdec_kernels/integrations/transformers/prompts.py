# SPDX-License-Identifier: Apache-2.0
"""Prompts without their padding."""

from __future__ import annotations

from collections.abc import Mapping
from operator import index
from typing import Any

import torch
from torch import Tensor

from ..._checks import INTEGERS, bad_type, bad_value, check_dtype, check_shape
from .options import mixin

_RULE = "must be integers [B, L] or a list of prompts, each a list of ints"


def prompts(
    input_ids: Any,
    attention_mask: Tensor | None = None,
    *,
    target: Any,
    config: Any,
    vocab_size: int,
    operation: str = "generate",
) -> list[list[int]]:
    """The tokens of every request.

    Args:
        input_ids: [B, L] integers, or B lists (or 1-D tensors) of ints of any length, or what a tokenizer
            returns: a mapping of `input_ids` and `attention_mask`. B >= 1.
        attention_mask: [B, L], 0 where `input_ids` is padding, at the left end, the right end or both.
            Without one, padding is inferred as transformers does: by the pad token, if it is known, occurs
            and is no end-of-sequence token. Lists have no padding.
        target: the model that is asked for transformers' inference.
        config: from `configuration`.
        vocab_size: V; tokens are in [0, V).
        operation: that messages name.

    Raises:
        TypeError: no integers.
        ValueError: wrong shapes, tokens outside the vocabulary, an empty prompt, a hole in a mask.
    """
    if isinstance(input_ids, Mapping):
        input_ids, attention_mask = _tokenized(input_ids, attention_mask, operation)
    if isinstance(input_ids, Tensor):
        check_dtype(operation, "input_ids", input_ids, INTEGERS)
        if input_ids.dim() != 2:
            bad_value(operation, "input_ids", "must have shape [B, L]", list(input_ids.shape))
        ids = input_ids.detach().cpu().long()
    else:
        rows = _lists(input_ids, operation)
        if attention_mask is not None:
            bad_value(operation, "attention_mask", "must be None for prompts in a list", "a mask")
        _check_all(rows, vocab_size, operation)
        return rows
    if attention_mask is None:
        mask = mixin(target)._prepare_attention_mask_for_generation(ids, config, {})
        cause = f"without attention_mask must hold the pad token {config.pad_token_id} at its ends only"
        argument = "input_ids"
    else:
        mask = _mask(attention_mask, ids, operation)
        cause, argument = "must be 0 at the ends of a row only", "attention_mask"
    kept = mask != 0
    found = [row[keep].tolist() for row, keep in zip(ids, kept, strict=True)]
    for request, keep in enumerate(kept):
        places = keep.nonzero()[:, 0]
        if places.numel() and int(places[-1] - places[0]) + 1 != places.numel():
            bad_value(operation, argument, cause, f"a hole in prompt {request}")
    _check_all(found, vocab_size, operation)
    return found


def _tokenized(encoded: Mapping[str, Any], attention_mask: Tensor | None, operation: str) -> tuple[Any, Any]:
    """Ids and mask of what a tokenizer returned."""
    unknown = [key for key in encoded if key not in ("input_ids", "attention_mask")]
    if "input_ids" not in encoded or unknown:
        rule = "as a mapping must hold input_ids and attention_mask only"
        bad_value(operation, "input_ids", rule, sorted(encoded))
    ids, mask = encoded["input_ids"], encoded.get("attention_mask")
    if attention_mask is not None:
        if mask is not None:
            bad_value(operation, "attention_mask", "must be None beside a mapping that holds one", "a mask")
        mask = attention_mask
    if mask is None or isinstance(ids, Tensor):
        return ids, mask
    rows = _lists(ids, operation)
    mask = mask.tolist() if isinstance(mask, Tensor) else [list(row) for row in mask]
    if [len(row) for row in mask] != [len(row) for row in rows]:
        rule = "must have the lengths of input_ids"
        bad_value(operation, "attention_mask", rule, [len(row) for row in mask])
    if all(all(row) for row in mask):
        return rows, None
    return torch.tensor(rows), torch.tensor(mask)


def _lists(given: Any, operation: str) -> list[list[int]]:
    """Prompts as lists of ints, whatever sequences they came in."""
    if isinstance(given, (str, bytes)) or not hasattr(given, "__iter__"):
        bad_type(operation, "input_ids", _RULE, type(given).__name__)
    rows = []
    for prompt in given:
        if isinstance(prompt, (str, bytes, Mapping)) or not hasattr(prompt, "__iter__"):
            bad_type(operation, "input_ids", _RULE, f"a {type(prompt).__name__} for a prompt")
        tokens = prompt.tolist() if hasattr(prompt, "tolist") else list(prompt)
        rows.append(
            [_integer(token, operation) for token in (tokens if isinstance(tokens, list) else [None])]
        )
    return rows


def _integer(token: Any, operation: str) -> int:
    try:
        if not isinstance(token, bool):
            return index(token)
    except TypeError:
        pass
    bad_type(operation, "input_ids", _RULE, f"a {type(token).__name__} in a prompt")


def _check_all(rows: list[list[int]], vocab_size: int, operation: str) -> None:
    if not rows or not all(rows):
        rule = "must hold prompts of one token or more"
        bad_value(operation, "input_ids", rule, [len(row) for row in rows])
    for request, row in enumerate(rows):
        if not 0 <= min(row) <= max(row) < vocab_size:
            wrong = next(token for token in row if not 0 <= token < vocab_size)
            rule = f"must be in [0, V) = [0, {vocab_size})"
            bad_value(operation, "input_ids", rule, f"{wrong} in prompt {request}")


def _mask(attention_mask: Any, ids: Tensor, operation: str) -> Tensor:
    if not isinstance(attention_mask, Tensor):
        rule = "must be a tensor [B, L]"
        bad_type(operation, "attention_mask", rule, type(attention_mask).__name__)
    check_shape(operation, "attention_mask", attention_mask, "[B, L]", ids.shape)
    mask = attention_mask.detach().cpu()
    if not bool(((mask == 0) | (mask == 1)).all()):
        bad_value(operation, "attention_mask", "must hold 0 and 1", "other values")
    return mask
