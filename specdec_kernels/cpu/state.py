# SPDX-License-Identifier: Apache-2.0
"""Recurrent states on the CPU: tables of addresses for the native core."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _native
from .commit import paths

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def commit_state(states, snapshots, path, cu_nodes, rows, slots):
    """The operator `specdec_kernels::commit_state`."""
    _native.commit_state(
        _commits(path, cu_nodes, rows, slots),
        [(s.data_ptr(), s.shape[0], _bytes(s, 0), s.shape[1:].numel() * s.element_size()) for s in states],
        [(s.data_ptr(), _bytes(s, 0)) for s in snapshots],
        torch.get_num_threads(),
    )


def replay_conv(windows, inputs, path, cu_nodes, rows, slots):
    """The operator `specdec_kernels::replay_conv`."""
    _native.replay_conv(
        _commits(path, cu_nodes, rows, slots),
        [(w.data_ptr(), *w.shape, *(_bytes(w, dim) for dim in range(3)), w.element_size()) for w in windows],
        [(x.data_ptr(), _bytes(x, 0), _bytes(x, 1)) for x in inputs],
        torch.get_num_threads(),
    )


def replay_gated_delta(states, keys, values, log_decay, beta, path, cu_nodes, rows, slots):
    """The operator `specdec_kernels::replay_gated_delta`."""
    inputs = [[_inputs(t) for t in layer] for layer in zip(keys, values, log_decay, beta, strict=True)]
    commits = _commits(path, cu_nodes, rows, slots)
    _native.replay_gated_delta(commits, [_matrices(s) for s in states], inputs, torch.get_num_threads())


def replay_mamba2(states, x, B, dt, A, path, cu_nodes, rows, slots):
    """The operator `specdec_kernels::replay_mamba2`."""
    inputs = [
        [*(_inputs(t) for t in layer), _inputs(a.expand(rows, -1))]
        for *layer, a in zip(x, B, dt, A, strict=True)
    ]
    commits = _commits(path, cu_nodes, rows, slots)
    _native.replay_mamba2(commits, [_matrices(s) for s in states], inputs, torch.get_num_threads())


def _commits(path: Tensor, cu_nodes: Tensor, rows: int, slots: Tensor):
    return paths(path, cu_nodes, rows), slots.data_ptr()


def _bytes(tensor: Tensor, dim: int) -> int:
    return tensor.stride(dim) * tensor.element_size()


def _matrices(state: Tensor) -> tuple[int, ...]:
    return (state.data_ptr(), _DTYPES[state.dtype], *state.shape, *state.stride())


def _inputs(tensor: Tensor) -> tuple[int, ...]:
    """Of vectors [R, heads, size], or of scalars [R, heads]."""
    size = tensor.shape[2] if tensor.dim() == 3 else 1
    return (tensor.data_ptr(), _DTYPES[tensor.dtype], tensor.shape[1], size, *tensor.stride()[:2])
