"""Value checks of `SPECDEC_DEBUG=1`. They synchronise with the device."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from .errors import bad_value
from .tree import DraftTree

ENABLED = os.environ.get("SPECDEC_DEBUG", "0") not in ("", "0")  # read once, at import


def enabled() -> bool:
    """Whether the environment asked for value checks; never inside `torch.compile`."""
    return ENABLED and not torch.compiler.is_compiling()


def check_logits(operation: str, argument: str, logits: Tensor) -> None:
    """No NaN in logits with one row per request."""
    bad = logits.isnan().any(-1)
    if bool(bad.any()):
        request = int(bad.nonzero()[0])
        bad_value(operation, argument, "must not hold NaN", f"NaN at request {request}")


def check_verify(
    target_logits: Tensor, tree: DraftTree, draft_logits: Tensor | None, draft_rows: Tensor | None
) -> None:
    """No NaN in rows that belong to nodes, and no drafted token outside [0, V) but -1."""
    request, node = tree._owners
    owned = request < tree.batch_size
    vocab = target_logits.shape[-1]
    _check_rows("target_logits", target_logits.isnan().any(-1).flatten() & owned, request, node, "NaN")
    tokens = tree.tokens
    outside = (node > 0) & owned & ((tokens < -1) | (tokens >= vocab))
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        rule = f"must be -1 or in [0, V) = [0, {vocab})"
        got = f"{int(tokens[row])} at request {int(request[row])} node {int(node[row])}"
        bad_value("verify", "draft_tokens", rule, got)
    if draft_logits is None:
        return
    bad = draft_logits.isnan().any(-1)
    if bad.dim() == 2:  # a uniform chain: its last node has no row
        bad = torch.nn.functional.pad(bad, (0, 1)).flatten()
    if draft_rows is not None:
        used = (draft_rows >= 0) & (draft_rows < bad.shape[0])
        bad = (
            bad[draft_rows.long().clamp(0, max(bad.shape[0] - 1, 0))] & used if bad.shape[0] else used & False
        )
    _check_rows("draft_logits", bad & owned, request, node, "NaN")


def check_drawn(tree: DraftTree, arguments: tuple, impossible: Tensor) -> None:
    """No request [B] bool in which a drafted token was tested that cannot have been drawn as declared.

    `arguments` are those of the operator. To name the node the reference walks again.
    """
    if not bool(impossible.any()):
        return
    from .reference import verify
    from .reference.request import Trace

    request, (owner, node) = int(impossible.nonzero()[0]), tree._owners
    *given, backend = arguments
    outputs = [None if out is None else torch.empty_like(out) for out in given[-6:]]
    trace = Trace(tree.tokens.numel())
    verify(*given[:-6], *outputs, trace=trace)
    found = (trace.impossible.to(owner.device) & (owner == request)).nonzero()
    got = f"another at request {request}"  # another backend may round where the reference does not
    if found.numel():
        row = int(found[0])
        got = f"{int(tree.tokens[row])} at request {request} node {int(node[row])}"
    bad_value("verify", "draft_tokens", "must have probability under the laws of their proposals", got)


def _check_rows(argument: str, bad: Tensor, request: Tensor, node: Tensor, what: str) -> None:
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        got = f"{what} at request {int(request[row])} node {int(node[row])}"
        bad_value("verify", argument, f"must not hold {what}", got)
