# SPDX-License-Identifier: Apache-2.0
"""Recurrent states, one request and one node at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .._ops.calls import CommitStateCall, ReplayConvCall, ReplayGatedDeltaCall, ReplayMamba2Call
from .path import kept_paths

Kept = CommitStateCall | ReplayConvCall | ReplayGatedDeltaCall | ReplayMamba2Call


@torch.no_grad()
def commit_state(call: CommitStateCall) -> None:
    """state = the snapshot of the last kept node."""
    for state, snapshot in zip(call.states, call.snapshots, strict=True):
        for row, nodes in _kept(state, call):
            row.copy_(snapshot[nodes[-1]])


@torch.no_grad()
def replay_conv(call: ReplayConvCall) -> None:
    """The last inputs of the window followed by those of the kept nodes."""
    for layer, window in enumerate(call.windows):
        for row, nodes in _kept(window, call):
            row.copy_(torch.cat([row, call.inputs[layer][nodes].T], 1)[:, len(nodes) :])


@torch.no_grad()
def replay_gated_delta(call: ReplayGatedDeltaCall) -> None:
    """S = a S + k (beta (v - a S^T k))^T in every head."""
    for layer, state in enumerate(call.states):
        for row, nodes in _kept(state, call):
            S = row.double()
            for node in nodes:
                k = _by_head(call.keys[layer][node], S.shape[0])
                v = call.values[layer][node].double()
                S = S * call.log_decay[layer][node].double().exp().view(-1, 1, 1)
                d = call.beta[layer][node].double().view(-1, 1) * (v - torch.einsum("hkv,hk->hv", S, k))
                S = S + k.unsqueeze(2) * d.unsqueeze(1)
            row.copy_(S)


@torch.no_grad()
def replay_mamba2(call: ReplayMamba2Call) -> None:
    """S = exp(dt A) S + dt x B^T in every head."""
    for layer, state in enumerate(call.states):
        for row, nodes in _kept(state, call):
            S = row.double()
            for node in nodes:
                step = call.dt[layer][node].double().view(-1, 1, 1)
                S = S * (step * call.A[layer].double().view(-1, 1, 1)).exp()
                b = _by_head(call.B[layer][node], S.shape[0])
                S = S + step * call.x[layer][node].double().unsqueeze(2) * b.unsqueeze(1)
            row.copy_(S)


def _kept(state: Tensor, call: Kept) -> Iterator[tuple[Tensor, list[int]]]:
    """A view of the state, and the rows of the kept nodes, of every request that has both."""
    paths = kept_paths(call.path, call.cu_nodes, call.rows)
    for slot, (start, kept) in zip(call.slots.tolist(), paths, strict=True):
        if kept and 0 <= slot < state.shape[0]:
            yield state[slot], [start + node for node in kept]


def _by_head(shared: Tensor, heads: int) -> Tensor:
    """[groups, size] -> [heads, size]: neighbouring heads share a group."""
    return shared.double().repeat_interleave(heads // shared.shape[0], 0)
