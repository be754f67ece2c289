# SPDX-License-Identifier: Apache-2.0
"""Penalties, biases, bans and forced tokens: changes of a few scores of a row, which know the row's path."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _debug, _ops
from ._checks import (
    FLOATS,
    bad_value,
    check_bool,
    check_device,
    check_dim,
    check_dtype,
    check_number,
    check_shape,
    check_tensor,
    check_type,
    what,
)
from ._memory import check_last_stride
from ._ops.calls import EditLogitsCall, EditTensors
from .counts import TokenCounts
from .tree import DraftTree

Unpacked = tuple[list[Tensor | None], list[float]]
SMALLEST, LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
OFF = {"repetition_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0}
TOKENS = (torch.int64,)


class LogitEdits(NamedTuple):
    """Changes of single scores, made where a row is read: the rows stay as they are.

    At node i of a request a token counts as often as it stands in the prompt, in the output, and on the path
    to i: the tokens of the ancestors of i and its own, but not the root's, which is part of the output. So
    the law at a node is the one that plain decoding would have there. A score is changed in this order, in
    float32 (float64 for float64 rows):

    1. repetition, once for a token that was counted at all: `x / r` if x > 0, otherwise `x * r`
    2. frequency: `x - f * count`
    3. presence, if count > 0: `x - p`
    4. bias: `x + bias`, repeated tokens added up
    5. bans: `-inf`
    6. a forced token: 0, and `-inf` for every other

    Then come bitmask, temperature and cuts. In 2 and 3 the count is that of output and path, and of the
    prompt too with `penalize_prompt`.

    Args:
        counts: what is counted; needed for penalties, and for bad words of several tokens.
        repetition_penalty: r > 0, 1 = off.
        frequency_penalty, presence_penalty: f and p, 0 = off.
        penalize_prompt: whether f and p count the prompt.
        bias_tokens, bias_values: [B, n] int64, -1 = none, and [B, n] float32, which may be -inf.
        banned_tokens: [B, n] int64, -1 = none.
        banned_until: [B] int32: a node of depth d has the bans if d < `banned_until`, so the next
            `banned_until` tokens are none of the banned ones. Default: always.
        bad_words: [B, n, L] int64, with -1 on the left: the last token is banned after the others.
        forced_tokens: [B, F] int64, -1 = none: the token after a node of depth d < F.
        slots: [B] int64, the slot of `counts` that a request has. Default: request b has slot b. Out of range
            = nothing counted but the path.

    Each penalty is a number or a [B] tensor of floats. On the device, a penalty that is not finite and a
    repetition penalty <= 0 are off; tokens outside [0, V) are none. A slot that has overflowed turns the
    penalties of its request off, its path's too, and `verify` sets `Status.OVERFLOW`.

    Example:
        >>> counts = TokenCounts(slots=1, capacity=4, vocab_size=3)
        >>> counts.update_(torch.tensor([2]))
        >>> edits = LogitEdits(counts, presence_penalty=1.5, bias_tokens=torch.tensor([[0]]),
        ...                    bias_values=torch.tensor([[0.25]]))
        >>> edit_logits_(torch.tensor([[1.0, 2.0, 3.0]]), edits)
        tensor([[1.2500, 2.0000, 1.5000]])
    """

    counts: TokenCounts | None = None
    repetition_penalty: float | Tensor = 1.0
    frequency_penalty: float | Tensor = 0.0
    presence_penalty: float | Tensor = 0.0
    penalize_prompt: bool = False
    bias_tokens: Tensor | None = None
    bias_values: Tensor | None = None
    banned_tokens: Tensor | None = None
    banned_until: Tensor | None = None
    bad_words: Tensor | None = None
    forced_tokens: Tensor | None = None
    slots: Tensor | None = None


def edit_logits_(
    logits: Tensor,
    edits: LogitEdits,
    tree: DraftTree | None = None,
    *,
    target_rows: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Make the edits in the rows themselves, as `verify` and `sample` would read them.

    For drafters, so that they draft from laws with the same edits, and for other samplers.

    Args:
        logits: [B, V], row b of request b; or with a tree [R, V] or [B, N, V], the row of a node, or [Rt, V]
            with `target_rows`. float32 | bfloat16 | float16, last stride 1. Edited scores are rounded to this
            dtype.
        edits: the edits.
        tree: the tree as far as it is drafted. A node's path is counted as by `verify`.
        target_rows: [R] int32, row of `logits` per node, -1 = none. No two nodes share a row.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        `logits`.

    Raises:
        ValueError: wrong shapes, numbers out of range, before anything changes.
        TypeError: wrong dtypes or devices.
        BackendUnavailable: the named backend cannot serve the call.

    Notes:
        Never synchronises. Touches only the entries concerned, but for rows with a forced token. NaN stays
        NaN. Float64 rows are served by the reference.

    Example:
        >>> tree = DraftTree.chain(torch.tensor([[2, 0]]))
        >>> edits = LogitEdits(TokenCounts(slots=1, capacity=4, vocab_size=3), frequency_penalty=1.0)
        >>> edit_logits_(torch.zeros(3, 3), edits, tree)
        tensor([[ 0.,  0.,  0.],
                [ 0.,  0., -1.],
                [-1.,  0., -1.]])
    """
    call = "edit_logits_"
    check_dtype(call, "logits", logits, FLOATS)
    check_type(call, "edits", edits, LogitEdits, "a LogitEdits")
    device = logits.device
    if tree is None:
        if target_rows is not None:
            bad_value(call, "target_rows", "must be None without a tree", what(target_rows))
        check_dim(call, "logits", logits, 2, "[B, V]")
        batch = logits.shape[0]
    else:
        check_type(call, "tree", tree, DraftTree, "a DraftTree")
        check_device(call, "tree", tree.tokens, device)
        batch = tree.batch_size
        _check_rows(call, logits, tree, target_rows)
    check_last_stride(call, "logits", logits)
    tensors, numbers = unpack_edits(call, edits, batch, logits.shape[-1], device)
    if not tensors:
        return logits
    arguments = EditLogitsCall(
        logits=logits,
        tokens=None if tree is None else tree.tokens.contiguous(),
        parents=None if tree is None else tree.parents.contiguous(),
        cu_nodes=None if tree is None else tree.cu_nodes.contiguous(),
        target_rows=None if target_rows is None else target_rows.contiguous(),
        edits=tensors,
        edit_numbers=numbers,
    )
    _ops.edit_logits(arguments, backend)
    return logits


def _check_rows(operation: str, logits: Tensor, tree: DraftTree, target_rows: Tensor | None) -> None:
    rows, batch = tree.tokens.shape[0], tree.batch_size
    if target_rows is not None:
        check_tensor(operation, "target_rows", target_rows, "[R]", (rows,), (torch.int32,), logits.device)
        check_dim(operation, "logits", logits, 2, "[Rt, V] with target_rows")
    elif logits.dim() == 3:
        if logits.shape[0] != batch or batch * logits.shape[1] != rows:
            rule = f"must have shape [B, N, V] with B = {batch} and B * N = R = {rows}"
            bad_value(operation, "logits", rule, list(logits.shape))
    else:
        check_dim(operation, "logits", logits, 2, "[R, V] or [B, N, V]")
        check_shape(operation, "logits", logits, "[R, V]", (rows, logits.shape[1]))


def unpack_edits(
    operation: str, edits: LogitEdits | None, batch: int, vocab: int, device: torch.device
) -> Unpacked:
    """The tensors in the order of `EditTensors`, and the numbers; both empty if nothing is edited. Reads no
    values."""
    if edits is None:
        return [], []
    check_type(operation, "edits", edits, LogitEdits, "a LogitEdits")
    check_bool(operation, "edits.penalize_prompt", edits.penalize_prompt)
    numbers, penalties = _penalties(operation, edits, batch, device)
    penalized = any(penalty is not None for penalty in penalties) or numbers != list(OFF.values())
    given = _checked(operation, edits, batch, device)
    words = given["bad_words"]
    history = 0 if words is None else words.shape[2] - 1
    counts = edits.counts
    if counts is not None:
        check_type(operation, "edits.counts", counts, TokenCounts, "a TokenCounts")
        counts._check_tensors(operation, "edits.counts", vocab, device)
        counts._check_named(operation, "edits.slots", edits.slots, batch)
        if history > counts.recent.shape[1]:
            rule = f"must have recent >= L - 1 = {history} for bad words"
            bad_value(operation, "edits.counts", rule, counts.recent.shape[1])
    elif penalized or history or edits.slots is not None:
        why = "penalties" if penalized else "bad words of several tokens" if history else "slots"
        bad_value(operation, "edits.counts", f"must be a TokenCounts for {why}", "None")
    if not penalized and all(tensor is None for tensor in given.values()):
        return [], []
    counted: list[Tensor | None] = [None] * 5
    if counts is not None and penalized:
        counted[:4] = counts.tokens, counts.prompt, counts.output, counts.sizes
    if counts is not None and history:
        counted[4] = counts.recent
    slotted = edits.slots is not None and any(tensor is not None for tensor in counted)
    slots = [edits.slots.contiguous() if slotted else None]  # type: ignore[union-attr]
    tensors = EditTensors(*counted, *slots, *penalties, **given)
    if _debug.enabled():
        _debug.check_edits(operation, tensors, vocab)
    return list(tensors), [*numbers, float(edits.penalize_prompt)]


def _penalties(
    operation: str, edits: LogitEdits, batch: int, device: torch.device
) -> tuple[list[float], list[Tensor | None]]:
    """The three penalties as numbers, and as [B] float32 where they are given per request."""
    numbers: list[float] = []
    tensors: list[Tensor | None] = []
    for name, off in OFF.items():
        value, argument = getattr(edits, name), f"edits.{name}"
        if isinstance(value, Tensor):
            check_tensor(operation, argument, value, "[B]", (batch,), FLOATS, device)
            tensors.append(value.to(torch.float32).contiguous())
            numbers.append(off)
            continue
        noun = "a number or a [B] tensor"
        number = check_number(operation, argument, value, -LARGEST, LARGEST, noun=noun)
        if name == "repetition_penalty" and number < SMALLEST:
            bad_value(operation, argument, f"must be >= {SMALLEST}", value)
        numbers.append(number)
        tensors.append(None)
    return numbers, tensors


def _checked(
    operation: str, edits: LogitEdits, batch: int, device: torch.device
) -> dict[str, Any]:  # of Tensor | None
    """The tensors of biases, bans and forced tokens, checked; None for those without a column."""
    for name, other in (("bias_tokens", "bias_values"), ("bias_values", "bias_tokens")):
        if getattr(edits, name) is None and getattr(edits, other) is not None:
            bad_value(operation, f"edits.{name}", f"must be given with {other}", "None")
    if edits.banned_until is not None and edits.banned_tokens is None:
        bad_value(
            operation, "edits.banned_until", "must be None without banned_tokens", what(edits.banned_until)
        )
    given: dict[str, Any] = {}
    for name, symbols, dtypes in (
        ("bias_tokens", "[B, n]", TOKENS),
        ("bias_values", "[B, n]", (torch.float32,)),
        ("banned_tokens", "[B, n]", TOKENS),
        ("banned_until", "[B]", (torch.int32,)),
        ("bad_words", "[B, n, L]", TOKENS),
        ("forced_tokens", "[B, F]", TOKENS),
    ):
        value, argument = getattr(edits, name), f"edits.{name}"
        if value is not None:
            check_dtype(operation, argument, value, dtypes)
            check_dim(operation, argument, value, symbols.count(",") + 1, symbols)
            shape = (batch, *value.shape[1:])
            if name == "bias_values":
                shape = tuple(edits.bias_tokens.shape)  # type: ignore[union-attr]
            check_tensor(operation, argument, value, symbols, shape, dtypes, device)
            value = value.contiguous() if value.numel() or not batch else None
        given[name] = value
    if given["banned_tokens"] is None:
        given["banned_until"] = None
    return given
