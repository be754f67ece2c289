# SPDX-License-Identifier: Apache-2.0
"""Recurrent states on the CPU: addresses, sizes and strides for the native core."""

from __future__ import annotations

import torch
from torch import Tensor

from .._ops.calls import CommitStateCall, ReplayConvCall, ReplayGatedDeltaCall, ReplayMamba2Call
from . import _native
from .arguments import DTYPES
from .commit import paths_of


def commit_state(call: CommitStateCall) -> None:
    """Copy snapshots."""
    states = [
        _native.States(
            data=state.data_ptr(),
            slots=state.shape[0],
            slot_stride=_bytes(state, 0),
            row_bytes=state.shape[1:].numel() * state.element_size(),
        )
        for state in call.states
    ]
    snapshots = [_native.Snapshots(data=s.data_ptr(), row_stride=_bytes(s, 0)) for s in call.snapshots]
    _native.commit_state(
        torch.get_num_threads(),
        paths=paths_of(call.path, call.cu_nodes, call.rows),
        slots=call.slots.data_ptr(),
        states=states,
        snapshots=snapshots,
    )


def replay_conv(call: ReplayConvCall) -> None:
    """Shift windows."""
    windows = [
        _native.Windows(
            data=window.data_ptr(),
            slots=window.shape[0],
            channels=window.shape[1],
            taps=window.shape[2],
            slot_stride=_bytes(window, 0),
            channel_stride=_bytes(window, 1),
            tap_stride=_bytes(window, 2),
            item_bytes=window.element_size(),
        )
        for window in call.windows
    ]
    inputs = [
        _native.WindowInputs(data=x.data_ptr(), row_stride=_bytes(x, 0), channel_stride=_bytes(x, 1))
        for x in call.inputs
    ]
    _native.replay_conv(
        torch.get_num_threads(),
        paths=paths_of(call.path, call.cu_nodes, call.rows),
        slots=call.slots.data_ptr(),
        windows=windows,
        inputs=inputs,
    )


def replay_gated_delta(call: ReplayGatedDeltaCall) -> None:
    """Apply kept nodes."""
    layers = zip(call.keys, call.values, call.log_decay, call.beta, strict=True)
    _native.replay_gated_delta(
        torch.get_num_threads(),
        paths=paths_of(call.path, call.cu_nodes, call.rows),
        slots=call.slots.data_ptr(),
        states=[_matrices(s) for s in call.states],
        inputs=[_inputs(t) for layer in layers for t in layer],
    )


def replay_mamba2(call: ReplayMamba2Call) -> None:
    """Apply kept nodes."""
    layers = zip(call.x, call.B, call.dt, call.A, strict=True)
    _native.replay_mamba2(
        torch.get_num_threads(),
        paths=paths_of(call.path, call.cu_nodes, call.rows),
        slots=call.slots.data_ptr(),
        states=[_matrices(s) for s in call.states],
        inputs=[_inputs(t) for *layer, A in layers for t in (*layer, A.expand(call.rows, -1))],
    )


def _bytes(tensor: Tensor, dim: int) -> int:
    return tensor.stride(dim) * tensor.element_size()


def _matrices(state: Tensor) -> _native.Matrices:
    slot_stride, head_stride, row_stride, column_stride = state.stride()
    slots, heads, rows, columns = state.shape
    return _native.Matrices(
        data=state.data_ptr(),
        dtype=DTYPES[state.dtype],
        slots=slots,
        heads=heads,
        rows=rows,
        columns=columns,
        slot_stride=slot_stride,
        head_stride=head_stride,
        row_stride=row_stride,
        column_stride=column_stride,
    )


def _inputs(tensor: Tensor) -> _native.NodeInputs:
    """Of vectors [R, heads, size], or of scalars [R, heads]."""
    _, heads, *size = tensor.shape
    row_stride, head_stride, *_ = tensor.stride()
    return _native.NodeInputs(
        data=tensor.data_ptr(),
        dtype=DTYPES[tensor.dtype],
        heads=heads,
        size=size[0] if size else 1,
        row_stride=row_stride,
        head_stride=head_stride,
    )
