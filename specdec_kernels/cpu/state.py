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
        _native.StateRows(
            address=state.data_ptr(),
            slots=state.shape[0],
            slot_stride=_bytes(state, 0),
            row_bytes=state.shape[1:].numel() * state.element_size(),
        )
        for state in call.states
    ]
    snapshots = [_native.Snapshots(address=s.data_ptr(), row_stride=_bytes(s, 0)) for s in call.snapshots]
    _native.commit_state(_commits(call), states, snapshots, torch.get_num_threads())


def replay_conv(call: ReplayConvCall) -> None:
    """Shift windows."""
    windows = [
        _native.Windows(
            address=window.data_ptr(),
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
        _native.WindowInputs(address=x.data_ptr(), row_stride=_bytes(x, 0), channel_stride=_bytes(x, 1))
        for x in call.inputs
    ]
    _native.replay_conv(_commits(call), windows, inputs, torch.get_num_threads())


def replay_gated_delta(call: ReplayGatedDeltaCall) -> None:
    """Apply kept nodes."""
    layers = zip(call.keys, call.values, call.log_decay, call.beta, strict=True)
    inputs = [[_inputs(t) for t in layer] for layer in layers]
    _native.replay_gated_delta(
        _commits(call), [_matrices(s) for s in call.states], inputs, torch.get_num_threads()
    )


def replay_mamba2(call: ReplayMamba2Call) -> None:
    """Apply kept nodes."""
    layers = zip(call.x, call.B, call.dt, call.A, strict=True)
    inputs = [[*(_inputs(t) for t in layer), _inputs(A.expand(call.rows, -1))] for *layer, A in layers]
    _native.replay_mamba2(
        _commits(call), [_matrices(s) for s in call.states], inputs, torch.get_num_threads()
    )


def _commits(
    call: CommitStateCall | ReplayConvCall | ReplayGatedDeltaCall | ReplayMamba2Call,
) -> _native.Commits:
    paths = paths_of(call.path, call.cu_nodes, call.rows)
    return _native.Commits(paths=paths, slots=call.slots.data_ptr())


def _bytes(tensor: Tensor, dim: int) -> int:
    return tensor.stride(dim) * tensor.element_size()


def _matrices(state: Tensor) -> _native.Matrices:
    slot_stride, head_stride, row_stride, column_stride = state.stride()
    slots, heads, rows, columns = state.shape
    return _native.Matrices(
        address=state.data_ptr(),
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
        address=tensor.data_ptr(),
        dtype=DTYPES[tensor.dtype],
        heads=heads,
        size=size[0] if size else 1,
        row_stride=row_stride,
        head_stride=head_stride,
    )
