# SPDX-License-Identifier: Apache-2.0
"""Commits recurrent states, by copy or by replay.

Layers that lie in memory alike, as those of a model do, share a launch. A table has their addresses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .._ops.calls import CommitStateCall, ReplayConvCall, ReplayGatedDeltaCall, ReplayMamba2Call
from .addresses import element_type, on_device, pointer, unit_words
from .dispatch import Launch, device_of
from .launch import CONV_CHANNELS, STATE_UNITS, state_tile
from .path import kept_nodes
from .tree import request_rows


@cache
def _kernel(kernel: Any, device: Any, fixed: tuple[tuple[str, int], ...], **constants: Any) -> Launch:
    """fixed: scalars that tell how layers lie in memory."""
    return Launch(kernel, device, constants, fixed=[name for name, _ in fixed], num_warps=4)


def commit_state(call: CommitStateCall) -> None:
    """Copy the snapshot of each request's last kept node to its slot."""
    for addresses, (state, snapshot), alignment in _alike(call.states, call.snapshots):
        size = state.element_size()
        numbers = [n * size for n in (state[0].numel(), state.stride(0), snapshot.stride(0))]
        wide = all(n % 16 == 0 for n in (alignment, *numbers))
        units, stride, snapshot_stride = (n // 16 if wide else n for n in numbers)
        words = dict(WORD=tl.int64, WORDS=2) if wide else dict(WORD=tl.int8, WORDS=1)
        launch = _kernel(_copy_states_kernel, device_of(addresses), (), **words, UNITS=STATE_UNITS)
        grid = call.path.shape[0], addresses.shape[1], triton.cdiv(units, STATE_UNITS)
        launch(grid, addresses, *_kept(call), state.shape[0], units, stride, snapshot_stride)


def replay_conv(call: ReplayConvCall) -> None:
    """Shift each request's window by its kept nodes."""
    for addresses, (window, given), _ in _alike(call.windows, call.inputs):
        slots, channels, taps = window.shape
        fixed = dict(
            channels=channels,
            taps=taps,
            stride_slot=window.stride(0),
            stride_channel=window.stride(1),
            stride_tap=window.stride(2),
            stride_input=given.stride(0),
            stride_input_channel=given.stride(1),
        )
        launch = _kernel(
            _shift_windows_kernel,
            device_of(addresses),
            tuple(fixed.items()),
            ITEM=getattr(tl, f"int{8 * window.element_size()}"),
            CHANNELS=CONV_CHANNELS,
            TAPS=triton.next_power_of_2(taps),
        )
        grid = call.path.shape[0], addresses.shape[1], triton.cdiv(channels, CONV_CHANNELS)
        launch(grid, addresses, *_kept(call), slots, *fixed.values())


def replay_gated_delta(call: ReplayGatedDeltaCall) -> None:
    """Apply the kept nodes to each request's state by the gated delta rule."""
    layers = _alike(call.states, call.keys, call.values, call.log_decay, call.beta)
    for addresses, (state, key, value, decay, beta), alignment in layers:
        fixed = dict(
            heads=state.shape[1],
            dk=state.shape[2],
            dv=state.shape[3],
            stride_slot=state.stride(0),
            stride_head=state.stride(1),
            stride_k=state.stride(2),
            stride_v=state.stride(3),
            key_heads=key.shape[1],
            value_heads=value.shape[1],
            stride_keys_r=key.stride(0),
            stride_keys_h=key.stride(1),
            stride_values_r=value.stride(0),
            stride_values_h=value.stride(1),
            stride_decay_r=decay.stride(0),
            stride_decay_h=decay.stride(1),
            stride_beta_r=beta.stride(0),
            stride_beta_h=beta.stride(1),
        )
        types = dict(
            KEYS=element_type(key.dtype),
            VALUES=element_type(value.dtype),
            LOG_DECAY=element_type(decay.dtype),
            BETA=element_type(beta.dtype),
        )
        _replay(_gated_delta_kernel, call, addresses, state, alignment, fixed, types)


def replay_mamba2(call: ReplayMamba2Call) -> None:
    """Apply the kept nodes to each request's state by Mamba-2's recurrence."""
    layers = _alike(call.states, call.x, call.B, call.dt, call.A)
    for addresses, (state, x, B, dt, A), alignment in layers:
        fixed = dict(
            heads=state.shape[1],
            p=state.shape[2],
            n=state.shape[3],
            stride_slot=state.stride(0),
            stride_head=state.stride(1),
            stride_p=state.stride(2),
            stride_n=state.stride(3),
            x_heads=x.shape[1],
            groups=B.shape[1],
            stride_x_r=x.stride(0),
            stride_x_h=x.stride(1),
            stride_b_r=B.stride(0),
            stride_b_g=B.stride(1),
            stride_dt_r=dt.stride(0),
            stride_dt_h=dt.stride(1),
            stride_a_h=A.stride(0),
        )
        types = dict(
            X=element_type(x.dtype),
            B=element_type(B.dtype),
            DT=element_type(dt.dtype),
            A=element_type(A.dtype),
        )
        _replay(_mamba2_kernel, call, addresses, state, alignment, fixed, types)


def _replay(
    kernel: Any,
    call: ReplayGatedDeltaCall | ReplayMamba2Call,
    addresses: Tensor,
    state: Tensor,
    alignment: int,
    fixed: dict[str, int],
    types: dict[str, tl.dtype],
) -> None:
    """Launch a kernel that replays matrices, as both do."""
    slots, heads, rows, columns = state.shape
    tile = state_tile(rows, columns)
    launch = _kernel(
        kernel,
        device_of(addresses),
        tuple(fixed.items()),
        STATES=element_type(state.dtype),
        **types,
        ALIGNMENT=alignment,
        ROWS=tile[0],
        COLUMNS=tile[1],
    )
    grid = call.path.shape[0] * heads, addresses.shape[1], triton.cdiv(columns, tile[1])
    launch(grid, addresses, *_kept(call), slots, *fixed.values())


def _kept(
    call: CommitStateCall | ReplayConvCall | ReplayGatedDeltaCall | ReplayMamba2Call,
) -> tuple[Tensor, Tensor, Tensor, int, int]:
    """What tells a kernel which nodes were kept, and of whom."""
    return call.path, call.cu_nodes, call.slots, call.path.shape[1], call.rows


def _alike(*lists: Sequence[Tensor]) -> Iterator[tuple[Tensor, tuple[Tensor, ...], int]]:
    """Layers of equal dtypes, shapes and strides: addresses [kinds, layers] on the device, the tensors of one
    layer, and what divides the addresses (16 or 1)."""
    groups: dict[tuple, list[tuple[Tensor, ...]]] = {}
    for layer in zip(*lists, strict=True):
        if layer[0].numel():
            alignment = 1 if any(tensor.data_ptr() % 16 for tensor in layer) else 16
            key = alignment, *((tensor.dtype, tensor.shape, tensor.stride()) for tensor in layer)
            groups.setdefault(key, []).append(layer)
    for (alignment, *_), layers in groups.items():
        kinds = zip(*layers, strict=True)
        addresses = [[tensor.data_ptr() for tensor in tensors] for tensors in kinds]
        yield on_device(addresses, layers[0][0].device), layers[0], alignment


@triton.jit
def _tensor(addresses_ptr, kind: tl.constexpr, DTYPE: tl.constexpr, ALIGNMENT: tl.constexpr):
    """A tensor of the program's layer."""
    address = tl.load(addresses_ptr + kind * tl.num_programs(1) + tl.program_id(1))
    return pointer(address, DTYPE, ALIGNMENT)


@triton.jit
def _request(b, path_ptr, width, cu_nodes_ptr, rows, slots_ptr, slots):
    """Slot, first row and kept nodes of request b. Without a slot nothing is kept."""
    start, count = request_rows(cu_nodes_ptr, b, rows)
    slot = tl.load(slots_ptr + b)
    count = tl.where((slot >= 0) & (slot < slots), count, 0)
    return slot, start.to(tl.int64), kept_nodes(path_ptr + b * width, width, count)


@triton.jit
def _copy_states_kernel(
    addresses_ptr,  # [2, L]: states and snapshots of each layer
    path_ptr,  # [B, width]
    cu_nodes_ptr,  # [B + 1]
    slots_ptr,  # [B] int64
    width,
    rows,
    slots,
    units,  # of a state; a unit is `WORDS` words
    stride,  # in units
    snapshot_stride,
    WORD: tl.constexpr,
    WORDS: tl.constexpr,
    UNITS: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    slot, start, kept = _request(b, path_ptr, width, cu_nodes_ptr, rows, slots_ptr, slots)
    if kept > 0:
        size: tl.constexpr = WORD.primitive_bitwidth // 8 * WORDS
        row = start + tl.load(path_ptr + b * width + kept - 1)
        unit = tl.program_id(2) * UNITS + tl.arange(0, UNITS)
        mask = (unit < units)[:, None]
        state_ptr = _tensor(addresses_ptr, 0, WORD, size) + unit_words(slot * stride + unit, WORDS)
        snapshot_ptr = _tensor(addresses_ptr, 1, WORD, size) + unit_words(row * snapshot_stride + unit, WORDS)
        tl.store(state_ptr, tl.load(snapshot_ptr, mask=mask), mask=mask)


@triton.jit
def _shift_windows_kernel(
    addresses_ptr,  # [2, L]: windows and inputs of each layer
    path_ptr,  # [B, width]
    cu_nodes_ptr,  # [B + 1]
    slots_ptr,  # [B] int64
    width,
    rows,
    slots,
    channels,
    taps,
    stride_slot,
    stride_channel,
    stride_tap,
    stride_input,
    stride_input_channel,
    ITEM: tl.constexpr,
    CHANNELS: tl.constexpr,
    TAPS: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    slot, start, kept = _request(b, path_ptr, width, cu_nodes_ptr, rows, slots_ptr, slots)
    if kept > 0:
        size: tl.constexpr = ITEM.primitive_bitwidth // 8
        window_ptr = _tensor(addresses_ptr, 0, ITEM, size) + slot * stride_slot
        input_ptr = _tensor(addresses_ptr, 1, ITEM, size)
        channel = (tl.program_id(2).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS))[:, None]
        tap = tl.arange(0, TAPS)
        mask = (channel < channels) & (tap < taps)[None, :]
        window_ptr += channel * stride_channel
        come = tap + kept  # where a tap's new value stands in the window followed by the inputs
        node = tl.load(path_ptr + b * width + come - taps, mask=(come >= taps) & (tap < taps), other=0)
        input_ptr += channel * stride_input_channel + ((start + node) * stride_input)[None, :]
        stays = (come < taps)[None, :]
        old = tl.load(window_ptr + come.to(tl.int64)[None, :] * stride_tap, mask=mask & stays)
        new = tl.load(input_ptr, mask=mask & (come >= taps)[None, :])
        tl.debug_barrier()  # a tap is read and written by different threads
        tl.store(window_ptr + tap.to(tl.int64)[None, :] * stride_tap, tl.where(stays, old, new), mask=mask)


@triton.jit
def _matrix(
    state_ptr, slot, head, stride_slot, stride_head, stride_row, stride_column, rows, columns,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Pointers and mask of all rows and the program's columns of a head's state; the indices of both."""
    row, column = tl.arange(0, ROWS), tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    state_ptr += slot * stride_slot + head.to(tl.int64) * stride_head
    state_ptr += (row.to(tl.int64) * stride_row)[:, None] + (column.to(tl.int64) * stride_column)[None, :]
    return state_ptr, (row < rows)[:, None] & (column < columns)[None, :], row, column


@triton.jit
def _gated_delta_kernel(
    addresses_ptr,  # [5, L]: states, keys, values, log_decay, beta of each layer
    path_ptr,  # [B, width]
    cu_nodes_ptr,  # [B + 1]
    slots_ptr,  # [B] int64
    width,
    rows,
    slots,
    heads,
    dk,
    dv,
    stride_slot,
    stride_head,
    stride_k,
    stride_v,
    key_heads,
    value_heads,
    stride_keys_r,
    stride_keys_h,
    stride_values_r,
    stride_values_h,
    stride_decay_r,
    stride_decay_h,
    stride_beta_r,
    stride_beta_h,
    STATES: tl.constexpr,  # dtypes
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
    LOG_DECAY: tl.constexpr,
    BETA: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    b, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    slot, start, kept = _request(b, path_ptr, width, cu_nodes_ptr, rows, slots_ptr, slots)
    if kept > 0:
        state_ptr, mask, row, column = _matrix(
            _tensor(addresses_ptr, 0, STATES, ALIGNMENT), slot, head,
            stride_slot, stride_head, stride_k, stride_v, dk, dv, ROWS, COLUMNS,
        )  # fmt: skip
        key_ptr = _tensor(addresses_ptr, 1, KEYS, ALIGNMENT) + head * key_heads // heads * stride_keys_h
        value_ptr = _tensor(addresses_ptr, 2, VALUES, ALIGNMENT) + head * stride_values_h
        decay_ptr = _tensor(addresses_ptr, 3, LOG_DECAY, ALIGNMENT) + head * stride_decay_h
        beta_ptr = _tensor(addresses_ptr, 4, BETA, ALIGNMENT) + head * stride_beta_h
        state = tl.load(state_ptr, mask=mask, other=0).to(tl.float32)
        for j in range(kept):
            node = start + tl.load(path_ptr + b * width + j)
            k = tl.load(key_ptr + node * stride_keys_r + row, mask=row < dk, other=0).to(tl.float32)[:, None]
            v = tl.load(value_ptr + node * stride_values_r + column, mask=column < dv, other=0).to(tl.float32)
            a = tl.exp(tl.load(decay_ptr + node * stride_decay_r).to(tl.float32))
            beta = tl.load(beta_ptr + node * stride_beta_r).to(tl.float32)
            d = beta * (v - a * tl.sum(k * state, 0))
            state = a * state + k * d[None, :]
        tl.store(state_ptr, state.to(STATES), mask=mask)


@triton.jit
def _mamba2_kernel(
    addresses_ptr,  # [5, L]: states, x, B, dt, A of each layer
    path_ptr,  # [B, width]
    cu_nodes_ptr,  # [B + 1]
    slots_ptr,  # [B] int64
    width,
    rows,
    slots,
    heads,
    p,
    n,
    stride_slot,
    stride_head,
    stride_p,
    stride_n,
    x_heads,
    groups,
    stride_x_r,
    stride_x_h,
    stride_b_r,
    stride_b_g,
    stride_dt_r,
    stride_dt_h,
    stride_a_h,
    STATES: tl.constexpr,  # dtypes
    X: tl.constexpr,
    B: tl.constexpr,
    DT: tl.constexpr,
    A: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    b, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    slot, start, kept = _request(b, path_ptr, width, cu_nodes_ptr, rows, slots_ptr, slots)
    if kept > 0:
        state_ptr, mask, row, column = _matrix(
            _tensor(addresses_ptr, 0, STATES, ALIGNMENT), slot, head,
            stride_slot, stride_head, stride_p, stride_n, p, n, ROWS, COLUMNS,
        )  # fmt: skip
        x_ptr = _tensor(addresses_ptr, 1, X, ALIGNMENT) + head * stride_x_h
        b_ptr = _tensor(addresses_ptr, 2, B, ALIGNMENT) + head * groups // heads * stride_b_g
        dt_ptr = _tensor(addresses_ptr, 3, DT, ALIGNMENT) + head * stride_dt_h
        a = tl.load(_tensor(addresses_ptr, 4, A, ALIGNMENT) + head * stride_a_h).to(tl.float32)
        state = tl.load(state_ptr, mask=mask, other=0).to(tl.float32)
        for j in range(kept):
            node = start + tl.load(path_ptr + b * width + j)
            x = tl.load(x_ptr + node * stride_x_r + row, mask=row < p, other=0).to(tl.float32)
            in_b = tl.load(b_ptr + node * stride_b_r + column, mask=column < n, other=0).to(tl.float32)
            dt = tl.load(dt_ptr + node * stride_dt_r).to(tl.float32)
            state = tl.exp(dt * a) * state + (dt * x)[:, None] * in_b[None, :]
        tl.store(state_ptr, state.to(STATES), mask=mask)
