# SPDX-License-Identifier: Apache-2.0
"""Committing recurrent states after verification: copied from snapshots, or replayed from nodes' inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _ops
from ._checks import (
    FLOATS,
    bad_type,
    bad_value,
    check_device,
    check_dim,
    check_dtype,
    check_list,
    check_shape,
    check_tensor,
    check_type,
    name_of,
)
from ._memory import check_distinct, check_no_overlap, check_row
from ._ops.calls import CommitStateCall, ReplayConvCall, ReplayGatedDeltaCall, ReplayMamba2Call
from .commit import check_path
from .tree import DraftTree
from .verification import Verified


def commit_state(
    verified: Verified | Tensor,
    tree: DraftTree,
    slots: Tensor,
    *,
    states: Sequence[Tensor],
    snapshots: Sequence[Tensor],
    backend: str = "auto",
) -> None:
    """Set the recurrent states of every request to those after its last kept node, in place.

    `states[l][slots[b]] = snapshots[l][row of the last kept node of request b]`, for all layers in one call.
    States may be of any kind: states of state-space or linear-attention layers, convolution windows. They are
    moved as bytes, never converted.

    Args:
        verified: what `verify` returned, or its path, [B, max_depth + 1] int32.
        tree: the drafted tree.
        slots: [B] int32 or int64, the slot of each request's states; out of range (-1) = no slot. If two
            requests share one, the reference and the CPU take them one after the other; on a GPU what the
            slot then holds is not specified.
        states: for each layer a tensor [slots, ...] of any dtype; the bytes of a slot must be contiguous.
        snapshots: for each layer the state after each node, [R, ...], of the dtype of its states.
        backend: "auto", "reference", "cpu" or "triton".

    Raises:
        ValueError: wrong shapes, rows that are not contiguous; before anything has moved.
        TypeError: wrong dtypes or devices.
        BackendUnavailable: the named backend cannot serve the call.

    Notes:
        Never synchronises with the device. Moves each kept state once. The states of requests that keep
        nothing (padding slots) and all other slots do not change. If a snapshot per node takes too much
        memory, use `replay_gated_delta`, `replay_mamba2` and `replay_conv`, which need only the inputs of
        each node.

    Example:
        >>> state, snapshots = torch.zeros(2, 3), torch.arange(9.0).view(3, 3)
        >>> tree = DraftTree.from_parents(torch.tensor([[-1, 5, 6]]), torch.tensor([[-1, 0, 0]]))
        >>> path = torch.tensor([[0, 2]], dtype=torch.int32)
        >>> commit_state(path, tree, torch.tensor([1]), states=[state], snapshots=[snapshots])
        >>> state.tolist()
        [[0.0, 0.0, 0.0], [6.0, 7.0, 8.0]]
    """
    call = "commit_state"
    states, (snapshots,) = _lists(call, "states", states, snapshots=snapshots)
    path, slots = _requests(call, verified, tree, slots, states[0].device)
    for i, (state, snapshot) in enumerate(zip(states, snapshots, strict=True)):
        check_row(call, f"states[{i}]", state, range(1, state.dim()))
        _check_copied(
            call, "snapshots", i, snapshot, state, "[R, ...] with the state's row", state.shape[1:], tree
        )
        check_row(call, f"snapshots[{i}]", snapshot, range(1, snapshot.dim()))
    kept = _kept(path, tree, slots)
    _ops.commit_state(CommitStateCall(states=states, snapshots=snapshots, **kept), backend)


def replay_conv(
    verified: Verified | Tensor,
    tree: DraftTree,
    slots: Tensor,
    *,
    windows: Sequence[Tensor],
    inputs: Sequence[Tensor],
    backend: str = "auto",
) -> None:
    """Shift the inputs of the kept nodes into the windows of causal convolutions, in place.

    A window holds the latest inputs of each channel. The inputs of the kept nodes are appended to the old
    window, and its last W columns are the new window. Values are moved as bytes.

    Args:
        verified, tree, slots: as for `commit_state`.
        windows: for each layer [slots, C, W] of any dtype, the latest input last; any strides. A window that
            is stored as [slots, W, C] is passed as `window.transpose(1, 2)`.
        inputs: for each layer the convolution's input at each node, [R, C], of the dtype of its windows.
        backend: as for `commit_state`.

    Raises:
        ValueError, TypeError, BackendUnavailable: as for `commit_state`.

    Example:
        >>> window, inputs = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[4.0], [5.0], [6.0]])
        >>> tree = DraftTree.from_parents(torch.tensor([[-1, 5, 6]]), torch.tensor([[-1, 0, 0]]))
        >>> path = torch.tensor([[0, 2]], dtype=torch.int32)
        >>> replay_conv(path, tree, torch.tensor([0]), windows=[window], inputs=[inputs])
        >>> window.tolist()
        [[[3.0, 4.0, 6.0]]]
    """
    call = "replay_conv"
    windows, (inputs,) = _lists(call, "windows", windows, inputs=inputs)
    path, slots = _requests(call, verified, tree, slots, windows[0].device)
    for i, (window, given) in enumerate(zip(windows, inputs, strict=True)):
        check_dim(call, f"windows[{i}]", window, 3, "[slots, C, W]")
        _check_copied(call, "inputs", i, given, window, "[R, C]", window.shape[1:2], tree)
    kept = _kept(path, tree, slots)
    _ops.replay_conv(ReplayConvCall(windows=windows, inputs=inputs, **kept), backend)


def replay_gated_delta(
    verified: Verified | Tensor,
    tree: DraftTree,
    slots: Tensor,
    *,
    states: Sequence[Tensor],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    log_decay: Sequence[Tensor],
    beta: Sequence[Tensor],
    backend: str = "auto",
) -> None:
    """Apply the kept nodes to the states of gated delta rule layers, in place.

    With a = exp(log_decay), for each kept node in order and each head

        S = a S + k (beta (v - a S^T k))^T,

    which is the transpose of S = a S (I - beta k k^T) + beta v k^T. A node keeps only its inputs, O(Dk + Dv)
    numbers per head. A snapshot has Dk * Dv numbers.

    Args:
        verified, tree, slots: as for `commit_state`. Floating-point tensors below may mix dtypes.
        states: for each layer [slots, H, Dk, Dv], the state before the root; any strides. States that are
            stored as [slots, H, Dv, Dk] are passed as `state.transpose(2, 3)`.
        keys: for each layer [R, Hk, Dk], as the recurrence uses them (normalised, if the model does so). H is
            a multiple of Hk; neighbouring heads share a key.
        values: for each layer [R, H, Dv].
        log_decay: for each layer [R, H], logarithm of the decay.
        beta: for each layer [R, H].
        backend: as for `commit_state`.

    Raises:
        ValueError, TypeError, BackendUnavailable: as for `commit_state`.

    Notes:
        Never synchronises with the device. Arithmetic is float32 (float64 in the reference). A state is read
        and written once, so narrower dtypes are rounded once per step. Float64 is served by the reference.

    Source: Yang et al. 2024, Gated Delta Networks, equation 10.

    Example:
        >>> state, one = torch.zeros(1, 1, 2, 2), torch.ones(1, 1)
        >>> k, v = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[3.0, 4.0]]])
        >>> tree = DraftTree.chain(torch.zeros(1, 0, dtype=torch.int64))
        >>> path = torch.tensor([[0]], dtype=torch.int32)
        >>> replay_gated_delta(
        ...     path, tree, torch.tensor([0]),
        ...     states=[state], keys=[k], values=[v], log_decay=[0 * one], beta=[one],
        ... )
        >>> state.tolist()
        [[[[3.0, 4.0], [0.0, 0.0]]]]
    """
    call = "replay_gated_delta"
    names = dict(keys=keys, values=values, log_decay=log_decay, beta=beta)
    states, given = _lists(call, "states", states, **names)
    path, slots = _requests(call, verified, tree, slots, states[0].device)
    for i, (state, key, value, decay, rate) in enumerate(zip(states, *given, strict=True)):
        heads, rows, columns = _matrix(call, i, state, "[slots, H, Dk, Dv]")
        _check_vectors(call, f"keys[{i}]", key, "[R, Hk, Dk]", rows, heads, state, tree, shared=True)
        _check_vectors(call, f"values[{i}]", value, "[R, H, Dv]", columns, heads, state, tree)
        for name, scalar in (("log_decay", decay), ("beta", rate)):
            shape = (tree.tokens.shape[0], heads)
            check_tensor(call, f"{name}[{i}]", scalar, "[R, H]", shape, FLOATS, state.device)
    layers: dict[str, Any] = dict(zip(names, given, strict=True))
    record = ReplayGatedDeltaCall(states=states, **layers, **_kept(path, tree, slots))
    _ops.replay_gated_delta(record, backend)


def replay_mamba2(
    verified: Verified | Tensor,
    tree: DraftTree,
    slots: Tensor,
    *,
    states: Sequence[Tensor],
    x: Sequence[Tensor],
    B: Sequence[Tensor],
    dt: Sequence[Tensor],
    A: Sequence[Tensor],
    backend: str = "auto",
) -> None:
    """Apply the kept nodes to the states of Mamba-2 layers, in place.

    For each kept node in order and each head, S = exp(dt A) S + dt x B^T. A node keeps only its inputs,
    O(P + N) numbers per head. A snapshot has P * N numbers.

    Args:
        verified, tree, slots: as for `commit_state`. Floating-point tensors below may mix dtypes.
        states: for each layer [slots, H, P, N], the state before the root; any strides.
        x: for each layer [R, H, P], after the convolution.
        B: for each layer [R, G, N]. H is a multiple of G; neighbouring heads share a group.
        dt: for each layer [R, H], as the recurrence uses it (bias and softplus applied).
        A: for each layer [H], negative.
        backend: as for `commit_state`.

    Raises:
        ValueError, TypeError, BackendUnavailable: as for `commit_state`.

    Notes:
        As for `replay_gated_delta`.

    Source: Dao and Gu 2024, Transformers are SSMs, section 7.

    Example:
        >>> state, one = torch.ones(1, 1, 1, 2), torch.ones(1, 1)
        >>> tree = DraftTree.chain(torch.zeros(1, 0, dtype=torch.int64))
        >>> path = torch.tensor([[0]], dtype=torch.int32)
        >>> x, B = torch.full((1, 1, 1), 3.0), torch.tensor([[[1.0, 2.0]]])
        >>> layer = dict(states=[state], x=[x], B=[B], dt=[one], A=[torch.zeros(1)])
        >>> replay_mamba2(path, tree, torch.tensor([0]), **layer)
        >>> state.tolist()
        [[[[4.0, 7.0]]]]
    """
    call = "replay_mamba2"
    names = dict(x=x, B=B, dt=dt, A=A)
    states, given = _lists(call, "states", states, **names)
    path, slots = _requests(call, verified, tree, slots, states[0].device)
    for i, (state, x_i, B_i, dt_i, A_i) in enumerate(zip(states, *given, strict=True)):
        heads, rows, columns = _matrix(call, i, state, "[slots, H, P, N]")
        _check_vectors(call, f"x[{i}]", x_i, "[R, H, P]", rows, heads, state, tree)
        _check_vectors(call, f"B[{i}]", B_i, "[R, G, N]", columns, heads, state, tree, shared=True)
        shape = (tree.tokens.shape[0], heads)
        check_tensor(call, f"dt[{i}]", dt_i, "[R, H]", shape, FLOATS, state.device)
        check_tensor(call, f"A[{i}]", A_i, "[H]", (heads,), FLOATS, state.device)
    layers: dict[str, Any] = dict(zip(names, given, strict=True))
    _ops.replay_mamba2(ReplayMamba2Call(states=states, **layers, **_kept(path, tree, slots)), backend)


def _kept(path: Tensor, tree: DraftTree, slots: Tensor) -> dict[str, Any]:
    """The arguments that tell a backend which nodes of which request were kept."""
    return dict(path=path, cu_nodes=tree.cu_nodes.contiguous(), rows=tree.tokens.shape[0], slots=slots)


def _lists(
    operation: str, name: str, states: Sequence[Tensor], **given: Sequence[Tensor]
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Check that there are equally many tensors of each kind, and that the states can be written in place."""
    states = check_list(operation, name, states, "tensors")
    if not states:
        bad_value(operation, name, "must hold at least one tensor", "none")
    for i, state in enumerate(states):
        check_type(operation, f"{name}[{i}]", state, Tensor, "a tensor")
        check_device(operation, f"{name}[{i}]", state, states[0].device)
        if state.dim() < 1:
            bad_value(operation, f"{name}[{i}]", "must have shape [slots, ...]", list(state.shape))
        check_no_overlap(operation, f"{name}[{i}]", state)
    check_distinct(operation, name, states)
    lists = []
    for argument, tensors in given.items():
        lists.append(check_list(operation, argument, tensors, "tensors"))
        if len(lists[-1]) != len(states):
            rule = f"must hold a tensor for each of {len(states)} layers"
            bad_value(operation, argument, rule, len(lists[-1]))
    return states, lists


def _requests(
    operation: str, verified: Verified | Tensor, tree: DraftTree, slots: Tensor, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The path, and the slots as int64; both checked and contiguous."""
    path = check_path(operation, verified, tree)
    check_device(operation, "verified", path, device)
    check_tensor(operation, "slots", slots, "[B]", (tree.batch_size,), (torch.int32, torch.int64), device)
    return path, slots.long().contiguous()


def _check_copied(
    operation: str,
    argument: str,
    i: int,
    given: Tensor,
    state: Tensor,
    symbols: str,
    row: Sequence[int],
    tree: DraftTree,
) -> None:
    """Check a tensor that is copied into a state: it has the state's dtype, and one row per node."""
    name = f"{argument}[{i}]"
    check_type(operation, name, given, Tensor, "a tensor")
    if given.dtype != state.dtype:
        rule = f"must have the dtype of what it is copied to, {name_of(state.dtype)}"
        bad_type(operation, name, rule, name_of(given.dtype))
    check_device(operation, name, given, state.device)
    check_shape(operation, name, given, symbols, (tree.tokens.shape[0], *row))


def _matrix(operation: str, i: int, state: Tensor, symbols: str) -> tuple[int, int, int]:
    check_dtype(operation, f"states[{i}]", state, FLOATS)
    check_dim(operation, f"states[{i}]", state, 4, symbols)
    heads, rows, columns = state.shape[1:]
    return heads, rows, columns


def _check_vectors(
    operation: str,
    name: str,
    given: Tensor,
    symbols: str,
    size: int,
    heads: int,
    state: Tensor,
    tree: DraftTree,
    shared: bool = False,
) -> None:
    """Check a tensor [R, heads, size] of contiguous vectors. If `shared`, its heads may divide `heads`."""
    check_dtype(operation, name, given, FLOATS)
    check_device(operation, name, given, state.device)
    if shared and given.dim() == 3:
        if given.shape[1] < 1 or heads % given.shape[1]:
            rule = f"must have shape {symbols} with a number of heads that divides H = {heads}"
            bad_value(operation, name, rule, list(given.shape))
        heads = given.shape[1]
    check_shape(operation, name, given, symbols, (tree.tokens.shape[0], heads, size))
    check_row(operation, name, given, range(2, 3))
