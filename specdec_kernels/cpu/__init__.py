# SPDX-License-Identifier: Apache-2.0
"""The native CPU backend: operators on addresses, written in C++ (see csrc/)."""

from __future__ import annotations

import torch
from torch import Tensor

import specdec_kernels.cpu._native as _native

from .attention import tree_attention  # noqa: F401
from .commit import commit_kv  # noqa: F401
from .ngram import ngram_draft, ngram_tree  # noqa: F401
from .state import commit_state, replay_conv, replay_gated_delta, replay_mamba2  # noqa: F401

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_METHODS = ("independent", "without_replacement", "top_k", "hybrid")
_RULES = ("match", "token", "traversal", "typical", "relaxed", "lenient", "synthetic")


def device_type() -> str:
    """The kind of device whose tensors it serves."""
    return "cpu"


def describe() -> str:
    """One line about this backend here. The instruction set is "avx512", "avx2" or "baseline"; SPECDEC_ISA
    asks for a lesser one."""
    return f"native extension, instruction set {_native.instruction_set()}"


def verify(
    target_logits, tokens, parents, cu_nodes, proposals, first_child, next_sibling,
    draft_logits, draft_rows, draft_ids, draft_columns,
    sampling, sampling_rows, draft_sampling, draft_sampling_rows, draft_is_logprobs,
    rule, rule_values, seeds, positions, token_bitmask,
    out_tokens, out_num_tokens, out_num_accepted, out_path, out_logprobs, out_status,
    trace_thresholds=None, trace_masses=None,
):  # fmt: skip
    """The operator `specdec_kernels::verify`.

    For tests, `trace_thresholds` and `trace_masses` ([R] float64) receive what each tested node's coin was
    compared with and the residual mass that its rejection left; other entries keep what they hold.
    """
    target_law, pinned = _sampling(sampling, sampling_rows)
    draft_law, draft_pinned = _sampling(draft_sampling, draft_sampling_rows)
    chain = draft_logits is not None and draft_logits.dim() == 3
    _native.verify(
        _rows("verify", "target_logits", target_logits),
        [_address(t) for t in (tokens, parents, cu_nodes, proposals, first_child, next_sibling)],
        cu_nodes.shape[0] - 1,
        _rows("verify", "draft_logits", draft_logits),
        _address(draft_rows),
        draft_logits.shape[1] if chain else 0,
        _address(draft_ids),
        _address(draft_columns),
        draft_is_logprobs,
        target_law,
        draft_law,
        _RULES.index(rule),
        rule_values,
        _address(seeds),
        _address(positions),
        _bitmask(token_bitmask),
        out_tokens.shape[1],
        [
            _address(t)
            for t in (out_tokens, out_num_tokens, out_num_accepted, out_path, out_logprobs, out_status)
        ],
        [_address(trace_thresholds), _address(trace_masses)],
        torch.get_num_threads(),
    )  # fmt: skip
    del pinned, draft_pinned


def sample(logits, sampling, sampling_rows, seeds, positions, token_bitmask, out_tokens, out_logprobs):
    """The operator `specdec_kernels::sample`."""
    numbers, pinned = _sampling(sampling, sampling_rows)
    _native.sample(
        _rows("sample", "logits", logits),
        numbers,
        _address(seeds),
        _address(positions),
        _bitmask(token_bitmask),
        _address(out_tokens),
        _address(out_logprobs),
        torch.get_num_threads(),
    )
    del pinned


def sample_children(
    logits, method, sampling, sampling_rows, seeds, positions, nodes, purpose, out_tokens, out_scores
):
    """The operator `specdec_kernels::sample_children`."""
    numbers, pinned = _sampling(sampling, sampling_rows)
    _native.sample_children(
        _rows("sample_children", "logits", logits),
        out_tokens.shape[1],
        _METHODS.index(method),
        numbers,
        [_address(t) for t in (seeds, positions, nodes)],
        purpose,
        [_address(t) for t in (out_tokens, out_scores)],
        torch.get_num_threads(),
    )
    del pinned


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _rows(operation: str, name: str, rows: Tensor | None) -> tuple[int, ...]:
    """Address, dtype, number of rows, their length, rows per group, strides of groups and of rows."""
    if rows is None:
        return (0, 0, 0, 0, 1, 0, 0)
    if rows.dtype not in _DTYPES:
        raise TypeError(f"{operation}: {name} must be float32 | bfloat16 | float16, got {rows.dtype}")
    head, count = (rows.data_ptr(), _DTYPES[rows.dtype]), rows.shape[0]
    if rows.dim() == 2:
        return (*head, count, rows.shape[1], max(count, 1), 0, rows.stride(0))
    group = rows.shape[1]
    return (*head, count * group, rows.shape[2], max(group, 1), rows.stride(0), rows.stride(1))


def _sampling(numbers: list[float], rows: list[Tensor | None]):
    """The core's argument, and the tensors that must outlive the call."""
    pinned = [None if row is None else row.to(torch.float64) for row in rows] or [None] * 4
    return (numbers, [_address(row) for row in pinned]), pinned


def _bitmask(bitmask: Tensor | None) -> tuple[int, int]:
    return (0, 0) if bitmask is None else (bitmask.data_ptr(), bitmask.stride(0))
