# SPDX-License-Identifier: Apache-2.0
"""Sampling on the CPU: next tokens, and children of drafted nodes."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .._ops.calls import SampleCall, SampleChildrenCall
from . import _native
from .arguments import address, logprobs_of, rows_of, sampling_of, stride_of
from .edits import edits_of

_METHODS: Mapping[str, _native.Method] = _native.Method.__members__


def sample(call: SampleCall) -> None:
    """Fill the outputs."""
    sampling, pinned = sampling_of(call.sampling, call.sampling_rows)
    _native.sample(
        torch.get_num_threads(),
        logits=rows_of(call.logits),
        sampling=sampling,
        seeds=call.seeds.data_ptr(),
        positions=call.positions.data_ptr(),
        bitmask=address(call.token_bitmask),
        bitmask_stride=stride_of(call.token_bitmask),
        edits=edits_of(call.edits, call.edit_numbers) if call.edits else None,
        out_tokens=call.out_tokens.data_ptr(),
        out_logprobs=address(call.out_logprobs),
        logprobs=logprobs_of(call) if call.out_report else None,
    )
    del pinned


def sample_children(call: SampleChildrenCall) -> None:
    """Fill the outputs."""
    sampling, pinned = sampling_of(call.sampling, call.sampling_rows)
    _native.sample_children(
        torch.get_num_threads(),
        logits=rows_of(call.logits),
        k=call.out_tokens.shape[1],
        method=_METHODS[call.method],
        sampling=sampling,
        seeds=call.seeds.data_ptr(),
        positions=call.positions.data_ptr(),
        nodes=call.nodes.data_ptr(),
        purpose=call.purpose,
        out_tokens=call.out_tokens.data_ptr(),
        out_scores=call.out_scores.data_ptr(),
    )
    del pinned
