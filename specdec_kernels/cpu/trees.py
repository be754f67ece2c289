# SPDX-License-Identifier: Apache-2.0
"""Trees of what engines keep, on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _native
from .arguments import address


def enter_chains(
    drafts: Tensor, cu_drafts: Tensor, out_tokens: Tensor, out_parents: Tensor, out_cu_nodes: Tensor
) -> None:
    """Drafted tokens [S] or [B, K] and sums of their numbers [B], into tokens and parents [S + B], offsets
    [B + 1]."""
    drafts, sums = _integers(drafts), _integers(cu_drafts)
    _native.enter_chains(
        1,
        drafts=drafts.data_ptr(),
        drafts_are_int32=drafts.dtype == torch.int32,
        draft_count=drafts.numel(),
        cu_drafts=sums.data_ptr(),
        cu_drafts_are_int32=sums.dtype == torch.int32,
        requests=sums.shape[0],
        out_tokens=out_tokens.data_ptr(),
        out_parents=out_parents.data_ptr(),
        out_cu_nodes=out_cu_nodes.data_ptr(),
    )


def uniform_chains(drafts: Tensor, kind: int) -> list[Tensor]:
    """Tokens [R], parents [R], offsets [B + 1] and proposals [R] of chains of drafted tokens [B, K]."""
    (batch, depth), drafts = drafts.shape, _integers(drafts)
    arrays = _native.uniform_chains(drafts.data_ptr(), drafts.dtype == torch.int32, batch, depth, kind)
    return [*map(torch.from_numpy, arrays)]


def enter_links(
    tokens: Tensor | None,
    next_token: Tensor,
    next_sibling: Tensor,
    out_tokens: Tensor | None,
    out_parents: Tensor,
    out_links: tuple[Tensor, Tensor],
) -> None:
    """Links [B, N] and tokens [B, N], or [B, N - 1] without the roots, into tensors [R] of a tree."""
    requests, nodes = next_token.shape
    tokens = None if tokens is None else _integers(tokens)
    first, after = _integers(next_token), _integers(next_sibling)
    if first.dtype != after.dtype:
        first, after = first.long(), after.long()
    _native.enter_links(
        1,
        tokens=address(tokens),
        tokens_are_int32=tokens is not None and tokens.dtype == torch.int32,
        columns=0 if tokens is None else tokens.numel() // max(requests, 1),
        next_token=first.data_ptr(),
        next_sibling=after.data_ptr(),
        links_are_int32=first.dtype == torch.int32,
        requests=requests,
        nodes=nodes,
        out_tokens=address(out_tokens),
        out_parents=out_parents.data_ptr(),
        out_first_child=out_links[0].data_ptr(),
        out_next_sibling=out_links[1].data_ptr(),
    )


def _integers(values: Tensor) -> Tensor:
    """Contiguous, of one of two widths."""
    if values.dtype not in (torch.int64, torch.int32):
        values = values.long()
    return values.contiguous()
