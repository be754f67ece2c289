# SPDX-License-Identifier: Apache-2.0
"""Which rows of the target nodes have, and the tokens after chains that the caller has drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from ..tree import DraftTree


def rows_of_nodes(
    tree: DraftTree, logits: Tensor, target_rows: Tensor | None, ends_early: bool
) -> tuple[Tensor, Tensor]:
    """The row of every node, [R, size], and whether it has one, [R]. With `ends_early` the last node of a
    request has none."""
    logits = logits.flatten(0, -2)
    request, node = tree._owners
    row = torch.arange(len(request), device=logits.device)
    if target_rows is None and not ends_early:
        return logits, torch.ones_like(row, dtype=torch.bool)
    if target_rows is not None:
        row = target_rows.long()
        has_row = row >= 0
    else:
        request = request.clamp_max(tree.batch_size - 1)
        has_row = node + 1 < (tree.cu_nodes[1:] - tree.cu_nodes[:-1])[request]
        row = row - request
    has_row &= (row >= 0) & (row < len(logits))
    if len(logits) == 0:
        logits = logits.new_zeros((1, logits.shape[1]))
    return logits[torch.where(has_row, row, 0)], has_row


def bonus_of(bonus_tokens: Tensor | None, tree: DraftTree, vocab_size: int) -> Tensor:
    """The token after each chain that is already drawn, [B] int64; -1 = none."""
    if bonus_tokens is None:
        return torch.full((tree.batch_size,), -1, device=tree.tokens.device)
    tokens = bonus_tokens.long()
    return torch.where((tokens >= 0) & (tokens < vocab_size), tokens, -1)
