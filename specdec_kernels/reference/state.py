# SPDX-License-Identifier: Apache-2.0
"""Recurrent states, one request and one node at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .path import kept_paths


@torch.no_grad()
def commit_state(
    states: list[Tensor], snapshots: list[Tensor], path: Tensor, cu_nodes: Tensor, rows: int, slots: Tensor
) -> None:
    """state = the snapshot of the last kept node."""
    for state, snapshot in zip(states, snapshots, strict=True):
        for row, nodes in _kept(state, path, cu_nodes, rows, slots):
            row.copy_(snapshot[nodes[-1]])


@torch.no_grad()
def replay_conv(
    windows: list[Tensor], inputs: list[Tensor], path: Tensor, cu_nodes: Tensor, rows: int, slots: Tensor
) -> None:
    """The last inputs of the window followed by those of the kept nodes."""
    for layer, window in enumerate(windows):
        for row, nodes in _kept(window, path, cu_nodes, rows, slots):
            row.copy_(torch.cat([row, inputs[layer][nodes].T], 1)[:, len(nodes) :])


@torch.no_grad()
def replay_gated_delta(
    states: list[Tensor],
    keys: list[Tensor],
    values: list[Tensor],
    log_decay: list[Tensor],
    beta: list[Tensor],
    path: Tensor,
    cu_nodes: Tensor,
    rows: int,
    slots: Tensor,
) -> None:
    """S = a S + k (beta (v - a S^T k))^T in every head."""
    for layer, state in enumerate(states):
        for row, nodes in _kept(state, path, cu_nodes, rows, slots):
            S = row.double()
            for node in nodes:
                k = _by_head(keys[layer][node], S.shape[0])
                v = values[layer][node].double()
                S = S * log_decay[layer][node].double().exp().view(-1, 1, 1)
                d = beta[layer][node].double().view(-1, 1) * (v - torch.einsum("hkv,hk->hv", S, k))
                S = S + k.unsqueeze(2) * d.unsqueeze(1)
            row.copy_(S)


@torch.no_grad()
def replay_mamba2(
    states: list[Tensor],
    x: list[Tensor],
    B: list[Tensor],
    dt: list[Tensor],
    A: list[Tensor],
    path: Tensor,
    cu_nodes: Tensor,
    rows: int,
    slots: Tensor,
) -> None:
    """S = exp(dt A) S + dt x B^T in every head."""
    for layer, state in enumerate(states):
        for row, nodes in _kept(state, path, cu_nodes, rows, slots):
            S = row.double()
            for node in nodes:
                step = dt[layer][node].double().view(-1, 1, 1)
                S = S * (step * A[layer].double().view(-1, 1, 1)).exp()
                b = _by_head(B[layer][node], S.shape[0])
                S = S + step * x[layer][node].double().unsqueeze(2) * b.unsqueeze(1)
            row.copy_(S)


def _kept(
    state: Tensor, path: Tensor, cu_nodes: Tensor, rows: int, slots: Tensor
) -> Iterator[tuple[Tensor, list[int]]]:
    """The state, a view, and the rows of the kept nodes of every request that has both."""
    for slot, (start, kept) in zip(slots.tolist(), kept_paths(path, cu_nodes, rows), strict=True):
        if kept and 0 <= slot < state.shape[0]:
            yield state[slot], [start + node for node in kept]


def _by_head(shared: Tensor, heads: int) -> Tensor:
    """[groups, size] -> [heads, size]: neighbouring heads share."""
    return shared.double().repeat_interleave(heads // shared.shape[0], 0)
