# SPDX-License-Identifier: Apache-2.0
"""Edits of rows, and counts of tokens, on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from .._ops.calls import CountTokensCall, EditLogitsCall, EditTensors
from . import _native
from .arguments import address, rows_of


def edits_of(tensors: list[Tensor | None], numbers: list[float]) -> _native.Edits:
    """What the core takes. The tensors must outlive the call."""
    e = EditTensors(*tensors)
    repetition, frequency, presence, penalize_prompt = numbers
    counted = e.counts_recent if e.counts_tokens is None else e.counts_tokens
    return _native.Edits(
        count_tokens=address(e.counts_tokens),
        count_prompt=address(e.counts_prompt),
        count_output=address(e.counts_output),
        count_sizes=address(e.counts_sizes),
        recent=address(e.counts_recent),
        slots=0 if counted is None else counted.shape[0],
        capacity=0 if e.counts_tokens is None else e.counts_tokens.shape[1],
        recent_width=0 if e.counts_recent is None else e.counts_recent.shape[1],
        request_slots=address(e.slots),
        repetition=(repetition, address(e.repetition)),
        frequency=(frequency, address(e.frequency)),
        presence=(presence, address(e.presence)),
        penalize_prompt=bool(penalize_prompt),
        bias_tokens=address(e.bias_tokens),
        bias_values=address(e.bias_values),
        bias_count=_columns(e.bias_tokens),
        banned_tokens=address(e.banned_tokens),
        banned_count=_columns(e.banned_tokens),
        banned_until=address(e.banned_until),
        bad_words=address(e.bad_words),
        bad_word_count=_columns(e.bad_words),
        bad_word_length=0 if e.bad_words is None else e.bad_words.shape[2],
        forced_tokens=address(e.forced_tokens),
        forced_count=_columns(e.forced_tokens),
    )


def _columns(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.shape[1]


def edit_logits(call: EditLogitsCall) -> None:
    """Edit the rows in place."""
    _native.edit_logits(
        torch.get_num_threads(),
        logits=rows_of(call.logits),
        requests=call.logits.shape[0] if call.cu_nodes is None else call.cu_nodes.shape[0] - 1,
        nodes=0 if call.tokens is None else call.tokens.shape[0],
        tokens=address(call.tokens),
        parents=address(call.parents),
        cu_nodes=address(call.cu_nodes),
        target_rows=address(call.target_rows),
        edits=edits_of(call.edits, call.edit_numbers),
    )


def count_tokens(call: CountTokensCall) -> None:
    """Count what was emitted."""
    slots, capacity = call.counts_tokens.shape
    _native.count_tokens(
        torch.get_num_threads(),
        requests=call.tokens.shape[0],
        width=call.tokens.shape[1],
        vocab=call.vocab_size,
        tokens=call.tokens.data_ptr(),
        tokens_are_int32=call.tokens.dtype == torch.int32,
        num_tokens=address(call.num_tokens),
        request_slots=address(call.slots),
        slots=slots,
        capacity=capacity,
        recent_width=call.counts_recent.shape[1],
        count_tokens=call.counts_tokens.data_ptr(),
        count_prompt=call.counts_prompt.data_ptr(),
        count_output=call.counts_output.data_ptr(),
        count_sizes=call.counts_sizes.data_ptr(),
        recent=call.counts_recent.data_ptr(),
    )
