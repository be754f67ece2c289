# SPDX-License-Identifier: Apache-2.0
"""Checks of the arguments of `verify`, which read no values."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from ._checks import (
    FLOATS,
    bad_value,
    check_device,
    check_dim,
    check_dtype,
    check_shape,
    check_tensor,
    check_type,
    what,
)
from ._kept import traced
from ._memory import check_last_stride
from .sampling import DraftVocab, SamplingParams
from .tree import DraftTree

TOKENS = (torch.int64, torch.int32)


def check_draft_sampling(operation: str, value: object) -> None:
    """Raise unless `value` is a `SamplingParams`, "logprobs", "probs" or None."""
    wanted = "a SamplingParams, 'logprobs' or 'probs'"
    if isinstance(value, str):
        if value not in ("logprobs", "probs"):
            bad_value(operation, "draft_sampling", f"must be {wanted}", repr(value))
    elif value is not None:
        check_type(operation, "draft_sampling", value, SamplingParams, wanted)


def check_target(
    target_logits: Tensor, tree: DraftTree, target_rows: Tensor | None, bonus_tokens: Tensor | None
) -> bool:
    """Check the target's rows and what says whose they are. Returns whether last nodes have none."""
    rows, batch, device = tree.tokens.shape[0], tree.batch_size, target_logits.device
    early = False
    if target_rows is not None:
        check_tensor("verify", "target_rows", target_rows, "[R]", (rows,), (torch.int32,), device)
        check_dim("verify", "target_logits", target_logits, 2, "[Rt, V] with target_rows")
    else:
        early = _check_target_shape(target_logits, rows, batch, bonus_tokens is not None)
    check_last_stride("verify", "target_logits", target_logits)
    if bonus_tokens is not None:
        check_tensor("verify", "bonus_tokens", bonus_tokens, "[B]", (batch,), TOKENS, device)
        if not tree._is_chain:
            _refuse_tree(tree)
    return early


def _refuse_tree(tree: DraftTree) -> NoReturn:
    """Of bonus tokens."""
    rule, got = "must be a chain with bonus_tokens", "another tree"
    if traced():  # where only bounds say what a chain is
        rule += ", which inside torch.compile has max_nodes <= max_depth + 1"
        got = f"max_nodes {tree.max_nodes} and max_depth {tree.max_depth}"
    bad_value("verify", "tree", rule, got)


def _check_target_shape(target_logits: Tensor, rows: int, batch: int, bonus: bool) -> bool:
    shape = target_logits.shape
    dims, fewer = len(shape), rows - batch
    if dims == 2:
        early = bonus and shape[0] == fewer != rows
        if not early and shape[0] != rows:
            rule = f"must have shape [R, V] = {[rows, shape[1]]}"
            rule += f" or [R - B, V] = {[fewer, shape[1]]}" if bonus else ""
            bad_value("verify", "target_logits", rule, list(shape))
    elif dims == 3:
        early = bonus and shape[0] * shape[1] == fewer != rows
        if shape[0] != batch or (not early and batch * shape[1] != rows):
            rule = f"must have shape [B, N, V] with B = {batch} and B * N = R = {rows}"
            rule += f" or B * N = R - B = {fewer}" if bonus else ", rows of the root and of each draft"
            bad_value("verify", "target_logits", rule, list(shape))
    else:
        bad_value("verify", "target_logits", "must have shape [R, V] or [B, N, V]", list(shape))
    return early


def check_draft(
    draft_logits: Tensor | None,
    draft_rows: Tensor | None,
    draft_vocab: DraftVocab | None,
    tree: DraftTree,
    vocab: int,
    device: torch.device,
) -> None:
    rows, batch = tree.tokens.shape[0], tree.batch_size
    if draft_vocab is not None:
        check_type("verify", "draft_vocab", draft_vocab, DraftVocab, "a DraftVocab")
    if draft_logits is None:
        if draft_rows is not None:
            bad_value("verify", "draft_rows", "must be None without draft_logits", what(draft_rows))
        return
    check_dtype("verify", "draft_logits", draft_logits, FLOATS)
    check_device("verify", "draft_logits", draft_logits, device)
    if draft_logits.dim() == 3:
        if draft_rows is not None:
            bad_value(
                "verify", "draft_logits", "must have shape [Rq, Vd] with draft_rows", list(draft_logits.shape)
            )
        depth = draft_logits.shape[1]
        if draft_logits.shape[0] != batch or batch * (depth + 1) != rows:
            rule = f"must have shape [B, K, Vd] with B = {batch} and B * (K + 1) = R = {rows}"
            bad_value("verify", "draft_logits", rule, list(draft_logits.shape))
    elif draft_logits.dim() != 2:
        bad_value(
            "verify", "draft_logits", "must have shape [Rq, Vd] or [B, K, Vd]", list(draft_logits.shape)
        )
    elif draft_rows is None:
        if draft_logits.shape[0] != rows:
            rule = f"must have shape {_draft_shapes(rows, batch, draft_logits.shape[1])}"
            bad_value("verify", "draft_logits", rule, list(draft_logits.shape))
    else:
        check_tensor("verify", "draft_rows", draft_rows, "[R]", (rows,), (torch.int32,), device)
    check_last_stride("verify", "draft_logits", draft_logits)
    if draft_vocab is not None:
        check_device("verify", "draft_vocab", draft_vocab.ids, device)
        if draft_vocab.vocab_size != vocab:
            bad_value("verify", "draft_vocab", f"must have vocab_size V = {vocab}", draft_vocab.vocab_size)
        width = draft_vocab.ids.shape[0]
        shape = (*draft_logits.shape[:-1], width)
        check_shape("verify", "draft_logits", draft_logits, f"[..., Vd], Vd = {width} of draft_vocab,", shape)


def _draft_shapes(rows: int, batch: int, width: int) -> str:
    """The shapes that draft logits may have, for a message."""
    chain = "[B, K, Vd] for chains of one length"
    if batch and rows > batch and rows % batch == 0:
        chain = f"[B, K, Vd] = {[batch, rows // batch - 1, width]} for chains of one length"
    return f"[R, Vd] = {[rows, width]}, {chain}, or [Rq, Vd] with draft_rows"
