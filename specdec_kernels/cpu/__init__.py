"""The native CPU backend: operators on addresses, written in C++ (see csrc/)."""

from __future__ import annotations

import torch

from . import _native

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_RULES = {name: i for i, name in enumerate(
    ("match", "token", "traversal", "typical", "relaxed", "lenient", "synthetic")
)}
_NO_ROWS = (0, 0, 0, 0, 1, 0, 0)


def instruction_set() -> str:
    """The instruction set in use: "avx512", "avx2" or "baseline" (SPECDEC_ISA asks for a lesser one)."""
    return _native.instruction_set()


def _rows(operation: str, name: str, rows: torch.Tensor | None):
    if rows is None:
        return _NO_ROWS
    if rows.dtype not in _DTYPES:
        raise TypeError(
            f"{operation}: {name} must be float32, bfloat16 or float16 on the cpu backend, got {rows.dtype}"
        )
    if rows.dim() == 2:
        groups, group, group_stride, row_stride = 1, max(rows.shape[0], 1), 0, rows.stride(0)
    else:
        groups, group, group_stride, row_stride = rows.shape[0], max(rows.shape[1], 1), rows.stride(0), rows.stride(1)
    count = rows.shape[0] if rows.dim() == 2 else groups * rows.shape[1]
    return (rows.data_ptr(), _DTYPES[rows.dtype], count, rows.shape[-1], group, group_stride, row_stride)


class _Pins:
    """Addresses of tensors in the dtype and layout the core reads; keeps any copies alive until the call is over."""

    def __init__(self):
        self.kept = []

    def __call__(self, tensor: torch.Tensor | None, dtype: torch.dtype) -> int:
        if tensor is None:
            return 0
        if tensor.dtype != dtype or not tensor.is_contiguous():
            tensor = tensor.to(dtype).contiguous()
        self.kept.append(tensor)
        return tensor.data_ptr()

    def sampling(self, numbers, rows):
        addresses = [self(row, torch.float64) for row in rows] if rows else [0, 0, 0, 0]
        return list(numbers), addresses


class _Outputs:
    """Addresses of tensors to be written; those the core cannot write in place are copied back at the end."""

    def __init__(self):
        self.copies = []

    def __call__(self, tensor: torch.Tensor | None) -> int:
        if tensor is None:
            return 0
        if not tensor.is_contiguous():
            copy = torch.empty_like(tensor, memory_format=torch.contiguous_format)
            self.copies.append((tensor, copy))
            tensor = copy
        return tensor.data_ptr()

    def finish(self):
        for tensor, copy in self.copies:
            tensor.copy_(copy)


def _bitmask(bitmask: torch.Tensor | None):
    return (0, 0) if bitmask is None else (bitmask.data_ptr(), bitmask.stride(0))


def verify(
    target_logits, tokens, parents, cu_nodes, proposals, first_child, next_sibling,
    draft_logits, draft_rows, draft_ids, draft_columns,
    sampling, sampling_rows, draft_sampling, draft_sampling_rows, draft_is_logprobs,
    rule, rule_values, seeds, positions, token_bitmask,
    out_tokens, out_num_tokens, out_num_accepted, out_path, out_logprobs, out_status,
    trace=(None, None),
):  # fmt: skip
    """The operator `specdec_kernels::verify`; `trace` takes two float64 [R] tensors for thresholds and masses."""
    pin, out = _Pins(), _Outputs()
    _native.verify(
        _rows("verify", "target_logits", target_logits),
        [
            pin(tokens, torch.int64), pin(parents, torch.int32), pin(cu_nodes, torch.int32),
            pin(proposals, torch.uint8), pin(first_child, torch.int32), pin(next_sibling, torch.int32),
        ],
        cu_nodes.shape[0] - 1,
        _rows("verify", "draft_logits", draft_logits),
        pin(draft_rows, torch.int32),
        draft_logits.shape[1] if draft_logits is not None and draft_logits.dim() == 3 and draft_rows is None else 0,
        pin(draft_ids, torch.int64),
        pin(draft_columns, torch.int32),
        draft_is_logprobs,
        pin.sampling(sampling, sampling_rows),
        pin.sampling(draft_sampling, draft_sampling_rows),
        _RULES[rule],
        rule_values,
        pin(seeds, torch.int64),
        pin(positions, torch.int64),
        _bitmask(token_bitmask),
        out_tokens.shape[1],
        [out(t) for t in (out_tokens, out_num_tokens, out_num_accepted, out_path, out_logprobs, out_status)],
        [out(t) for t in trace],
        torch.get_num_threads(),
    )  # fmt: skip
    out.finish()


def sample(logits, sampling, sampling_rows, seeds, positions, token_bitmask, out_tokens, out_logprobs):
    """The operator `specdec_kernels::sample`."""
    pin, out = _Pins(), _Outputs()
    _native.sample(
        _rows("sample", "logits", logits),
        pin.sampling(sampling, sampling_rows),
        pin(seeds, torch.int64),
        pin(positions, torch.int64),
        _bitmask(token_bitmask),
        out(out_tokens),
        out(out_logprobs),
        torch.get_num_threads(),
    )
    out.finish()
