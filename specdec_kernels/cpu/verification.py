# SPDX-License-Identifier: Apache-2.0
"""Verification on the CPU."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .._ops.calls import VerifyCall
from . import _native
from .arguments import address, logprobs_of, masks_of, rows_of, sampling_of, stride_of
from .edits import edits_of

_RULES: Mapping[str, _native.Rule] = _native.Rule.__members__
_LOGITS, _LOGPROBS, _PROBS = _native.DraftForm


def verify(
    call: VerifyCall, trace_thresholds: Tensor | None = None, trace_masses: Tensor | None = None
) -> None:
    """Fill the outputs.

    For tests, `trace_thresholds` and `trace_masses` ([R] float64) receive what each tested node's coin was
    compared with and the residual mass that its rejection left; other entries keep what they hold.
    """
    sampling, pinned = sampling_of(call.sampling, call.sampling_rows)
    draft_sampling, draft_pinned = sampling_of(call.draft_sampling, call.draft_sampling_rows)
    draft = call.draft_logits
    _native.verify(
        torch.get_num_threads(),
        target=rows_of(call.target_logits),
        target_rows=address(call.target_rows),
        rows_end_early=call.rows_end_early,
        requests=call.cu_nodes.shape[0] - 1,
        nodes=call.tokens.shape[0],
        tokens=call.tokens.data_ptr(),
        parents=call.parents.data_ptr(),
        cu_nodes=call.cu_nodes.data_ptr(),
        proposals=call.proposals.data_ptr(),
        first_child=address(call.first_child),
        next_sibling=address(call.next_sibling),
        draft=None if draft is None else rows_of(draft),
        draft_rows=address(call.draft_rows),
        draft_chain=draft.shape[1] if draft is not None and draft.dim() == 3 else 0,
        draft_ids=address(call.draft_ids),
        draft_columns=address(call.draft_columns),
        draft_form=_LOGPROBS if call.draft_is_logprobs else _PROBS if call.draft_is_probs else _LOGITS,
        sampling=sampling,
        draft_sampling=draft_sampling,
        rule=_RULES[call.rule],
        rule_values=call.rule_values if call.rule_rates is None else call.rule_rates.tolist(),
        seeds=call.seeds.data_ptr(),
        positions=call.positions.data_ptr(),
        bitmask=address(call.token_bitmask),
        bitmask_stride=stride_of(call.token_bitmask),
        bonus_tokens=address(call.bonus_tokens),
        bonus_tokens_are_int32=call.bonus_tokens is not None and call.bonus_tokens.dtype == torch.int32,
        edits=edits_of(call.edits, call.edit_numbers) if call.edits else None,
        stop_tokens=address(call.stop_tokens),
        stop_count=0 if call.stop_tokens is None else call.stop_tokens.shape[1],
        new_tokens_left=address(call.new_tokens_left),
        context_left=address(call.context_left),
        finished=address(call.finished),
        width=call.out_tokens.shape[1],
        out_tokens=call.out_tokens.data_ptr(),
        out_tokens_are_int32=call.out_tokens.dtype == torch.int32,
        out_num_tokens=call.out_num_tokens.data_ptr(),
        out_num_accepted=call.out_num_accepted.data_ptr(),
        out_path=call.out_path.data_ptr(),
        out_logprobs=address(call.out_logprobs),
        out_status=call.out_status.data_ptr(),
        out_finish=address(call.out_finish),
        logprobs=logprobs_of(call) if call.out_report else None,
        masks=masks_of(call.out_masks) if call.out_masks else None,
        trace_thresholds=address(trace_thresholds),
        trace_masses=address(trace_masses),
    )
    del pinned, draft_pinned
