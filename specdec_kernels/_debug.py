# SPDX-License-Identifier: Apache-2.0
"""Value checks of `SPECDEC_DEBUG=1`. They synchronise with the device."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from ._checks import INF, bad_value
from ._ops.backends import load
from ._ops.calls import OPERATORS, EditTensors, VerifyCall
from .tree import DraftTree

ENABLED = os.environ.get("SPECDEC_DEBUG", "0") not in ("", "0")  # read once, at import


def enabled() -> bool:
    """Whether the environment asked for value checks; never inside `torch.compile`."""
    return ENABLED and not torch.compiler.is_compiling()


def check_logits(operation: str, argument: str, logits: Tensor) -> None:
    """Raise if logits with one row per request hold a NaN."""
    bad = logits.isnan().any(-1)
    if bool(bad.any()):
        request = int(bad.nonzero()[0])
        bad_value(operation, argument, "must not hold NaN", f"NaN at request {request}")


def check_range(operation: str, argument: str, values: Tensor, low: float, high: float) -> None:
    """Raise unless the values per request are finite and in [low, high]."""
    bad = ~((values >= low) & (values <= high) & values.isfinite())
    if bool(bad.any()):
        request = int(bad.nonzero()[0])
        rule = f"must be in [{low}, {high}]" if high < INF else f"must be finite and >= {low}"
        bad_value(operation, argument, rule, f"{values[request].item()} at request {request}")


def check_rates(operation: str, rates: Tensor) -> None:
    """Raise unless the rates [D] of depths are in [0, 1]."""
    bad = ~((rates >= 0) & (rates <= 1))
    if bool(bad.any()):
        depth = int(bad.nonzero()[0]) + 1
        rule = "must be in [0.0, 1.0]"
        bad_value(operation, "rule.rate", rule, f"{rates[depth - 1].item()} at depth {depth}")


def check_verify(tree: DraftTree, call: VerifyCall) -> None:
    """Raise for a NaN in a row that belongs to a node, a drafted token outside [0, V), a row that is neither
    -1 nor there, an empty request where the rows after it are counted by requests, a bonus token that is
    neither -1 nor in [0, V), and draft probabilities that do not sum to 1."""
    request, node = tree._owners
    owned, vocab = request < tree.batch_size, call.target_logits.shape[-1]
    if call.finished is not None:  # what an ended request holds is not read
        owned = owned & (torch.nn.functional.pad(call.finished, (0, 1))[request] == 0)
    count = call.target_logits.shape[:-1].numel()
    rows = _target_rows(call, request)
    if call.target_rows is not None:
        _check_row_numbers("target_rows", "Rt", rows, count, owned, request, node)
    if call.rows_end_early:
        nodes = tree.cu_nodes.diff()
        later = nodes.flip(0).cumsum(0).flip(0) - nodes
        rule = "must have its empty requests last where target_logits have no rows of last nodes"
        _check_requests("verify", "tree", rule, (nodes == 0) & (later > 0), nodes)
    bad = _at(call.target_logits.isnan().any(-1).flatten(), rows)
    _check_rows("target_logits", bad & owned, request, node, "NaN")
    tokens = tree.tokens
    outside = (node > 0) & owned & ((tokens < -1) | (tokens >= vocab))
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        rule = f"must be -1 or in [0, V) = [0, {vocab})"
        got = f"{int(tokens[row])} at request {int(request[row])} node {int(node[row])}"
        bad_value("verify", "tree.tokens", rule, got)
    if call.bonus_tokens is not None:
        bonus, rule = call.bonus_tokens, f"must be -1 or in [0, V) = [0, {vocab})"
        _check_requests("verify", "bonus_tokens", rule, (bonus < -1) | (bonus >= vocab), bonus)
        sibling = (tree.parents != node - 1) & owned
        _check_rows("tree", sibling, request, node, "siblings with bonus_tokens")
    if call.draft_logits is not None:
        _check_draft(tree, call, call.draft_logits, owned)


def _check_draft(tree: DraftTree, call: VerifyCall, draft: Tensor, owned: Tensor) -> None:
    request, node = tree._owners
    rows, count = torch.arange(owned.numel(), device=owned.device), draft.shape[:-1].numel()
    if call.draft_rows is not None:
        rows = call.draft_rows.long()
        _check_row_numbers("draft_rows", "Rq", rows, count, owned, request, node)
    elif draft.dim() == 3:  # a uniform chain: its last node has no row
        rows = torch.where(node < draft.shape[1], request * draft.shape[1] + node, -1)
    bad = _at(draft.isnan().any(-1).flatten(), rows)
    _check_rows("draft_logits", bad & owned, request, node, "NaN")
    if call.draft_is_probs:
        sampled = owned & (node > 0) & (tree.proposals > 0) & (tree.tokens >= 0)
        drawn_from = torch.zeros_like(owned)
        drawn_from[tree._up[sampled]] = True
        rounding = torch.finfo(draft.dtype).eps / 2
        off = ((draft.double().sum(-1) - 1).abs() > 1e-3 + rounding) | (draft < 0).any(-1)
        bad = _at(off.flatten(), rows) & drawn_from
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            probs = draft.flatten(0, -2)[rows[row]].double()
            got = f"a sum of {float(probs.sum()):g} and a least of {float(probs.min()):g}"
            got += f" at request {int(request[row])} node {int(node[row])}"
            bad_value("verify", "draft_logits", "must hold probabilities, >= 0 and of sum 1", got)


def _target_rows(call: VerifyCall, request: Tensor) -> Tensor:
    """[R] row of every node, -1 = none."""
    if call.target_rows is not None:
        return call.target_rows.long()
    rows = torch.arange(request.numel(), device=request.device)
    if not call.rows_end_early:
        return rows
    last = torch.ones_like(request, dtype=torch.bool)
    last[:-1] = request[1:] != request[:-1]
    return torch.where(last, -1, rows - request)


def _at(flags: Tensor, rows: Tensor) -> Tensor:
    """The flags of rows; False where there is no such row."""
    if flags.shape[0] == 0:
        return torch.zeros_like(rows, dtype=torch.bool)
    return flags[rows.clamp(0, flags.shape[0] - 1)] & (rows >= 0) & (rows < flags.shape[0])


def _check_row_numbers(
    argument: str, symbol: str, rows: Tensor, count: int, owned: Tensor, request: Tensor, node: Tensor
) -> None:
    outside = ((rows < -1) | (rows >= count)) & owned
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        rule = f"must be -1 or in [0, {symbol}) = [0, {count})"
        got = f"{int(rows[row])} at request {int(request[row])} node {int(node[row])}"
        bad_value("verify", argument, rule, got)


def before(call: VerifyCall) -> VerifyCall:
    """A call with copies of what it changes in place, as that was before the call."""
    return call._replace(
        new_tokens_left=_copied(call.new_tokens_left),
        context_left=_copied(call.context_left),
        finished=_copied(call.finished),
    )


def _copied(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.clone()


def check_drawn(tree: DraftTree, call: VerifyCall, impossible: Tensor) -> None:
    """Raise if a request is `impossible` [B] bool: a tested token cannot have been drawn as declared.

    To name the node, the reference verifies the request again.
    """
    if not bool(impossible.any()):
        return
    request, (owner, node) = int(impossible.nonzero()[0]), tree._owners
    written = OPERATORS["verify"].written
    outputs = {name: out for name in written if (out := getattr(call, name)) is not None}
    others: dict[str, Any] = {
        name: out.clone() if isinstance(out, Tensor) else [] for name, out in outputs.items()
    }
    reference = load("reference", "verify", owner.device.type, ())
    trace = reference.Trace(tree.tokens.numel())
    reference.verify(call._replace(**others), trace=trace)
    found = (trace.impossible.to(owner.device) & (owner == request)).nonzero()
    got = f"another at request {request}"  # the backend may have rounded differently from the reference
    if found.numel():
        row = int(found[0])
        got = f"{int(tree.tokens[row])} at request {request} node {int(node[row])}"
    bad_value("verify", "tree.tokens", "must have probability under the laws of their proposals", got)


def _check_rows(argument: str, bad: Tensor, request: Tensor, node: Tensor, what: str) -> None:
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        got = f"{what} at request {int(request[row])} node {int(node[row])}"
        bad_value("verify", argument, f"must not hold {what}", got)


def check_pages(
    operation: str,
    tree: DraftTree,
    block_table: Tensor,
    prefix_lens: Tensor,
    page_size: int,
    pages: int,
    *,
    in_cache: bool,
    window: int | None,
    max_prefix_len: int,
) -> None:
    """Raise unless every position that the nodes see in the cache has a slot. These are the positions of the
    prefix inside the window, and with `in_cache` the nodes up to the last one that holds a token."""
    request, node = tree._owners
    batch, owned = tree.batch_size, request < tree.batch_size
    there = owned & ((node == 0) | (tree.tokens >= 0))
    nodes = torch.zeros(batch + 1, dtype=torch.int64, device=request.device)
    nodes = nodes.scatter_reduce(0, request, torch.where(there, node + 1, 0), "amax")[:batch]
    prefix = prefix_lens.long()
    used = nodes > 0
    _check_requests(operation, "prefix_lens", "must be >= 0", used & (prefix < 0), prefix)
    end = torch.where(used, prefix + (nodes if in_cache else 0), 0)
    what = "the prefix and the tree" if in_cache else "the prefix"
    _check_slots(operation, what, end, block_table, page_size)
    rule = f"must be <= max_prefix_len = {max_prefix_len}"
    _check_requests(operation, "prefix_lens", rule, used & (prefix > max_prefix_len), prefix)
    first = (prefix - window + 1).clamp_min(0) if window else torch.zeros_like(prefix)
    start = torch.arange(block_table.shape[1], device=prefix.device) * page_size
    seen = (start < end.unsqueeze(1)) & (start + page_size > first.unsqueeze(1))
    _check_table(operation, block_table, seen, pages)


def check_kept(
    operation: str,
    path: Tensor,
    block_table: Tensor,
    prefix_lens: Tensor,
    page_size: int,
    pages: int,
    *,
    in_cache: bool,
) -> None:
    """Raise unless kept nodes have slots to move to, and with `in_cache` slots that they come from."""
    prefix, kept = prefix_lens.long().unsqueeze(1), path >= 0
    used = kept.any(1)
    _check_requests(operation, "prefix_lens", "must be >= 0", used & (prefix_lens < 0), prefix_lens)
    place = torch.arange(path.shape[1], device=path.device).expand_as(path)
    slots = torch.where(kept, prefix + (torch.maximum(path.long(), place) if in_cache else place), -1)
    _check_slots(operation, "the kept nodes", slots.amax(1) + 1, block_table, page_size)
    if block_table.shape[1] == 0:
        return
    seen = torch.zeros(block_table.shape, dtype=torch.int64, device=path.device)
    for where in (place, path) if in_cache else (place,):
        column = torch.where(kept, (prefix + where) // page_size, 0)
        seen.scatter_add_(1, column, kept.long())
    _check_table(operation, block_table, seen > 0, pages)


def check_edits(operation: str, edits: EditTensors, vocab: int) -> None:
    """Raise for penalties out of range, and for tokens that are neither -1 nor in [0, V)."""
    for name, low in (("repetition", 0.0), ("frequency", -INF), ("presence", -INF)):
        penalty = getattr(edits, name)
        if penalty is not None:
            rule = "must be finite" + (" and > 0" if low == 0 else "")
            _check_edit(operation, f"{name}_penalty", rule, ~penalty.isfinite() | (penalty <= low), penalty)
    for name in ("bias_tokens", "banned_tokens", "bad_words", "forced_tokens"):
        tokens = getattr(edits, name)
        if tokens is not None:
            rule = f"must be -1 or in [0, V) = [0, {vocab})"
            _check_edit(operation, name, rule, (tokens < -1) | (tokens >= vocab), tokens)


def _check_edit(operation: str, name: str, rule: str, bad: Tensor, values: Tensor) -> None:
    if bool(bad.any()):
        got = f"{values[bad][0].item()} at request {int(bad.nonzero()[0, 0])}"
        bad_value(operation, f"edits.{name}", rule, got)


def check_lengths(operation: str, lengths: Tensor, longest: int) -> None:
    """Raise unless the lengths of texts [B] are in [0, L]."""
    bad = (lengths < 0) | (lengths > longest)
    _check_requests(operation, "lengths", f"must be in [0, L] = [0, {longest}]", bad, lengths)


def _check_slots(operation: str, what: str, end: Tensor, block_table: Tensor, page_size: int) -> None:
    columns = block_table.shape[1]
    rule = f"must have slots for {what}, at most P * page_size = {columns} * {page_size}"
    _check_requests(operation, "block_table", rule, end > columns * page_size, end)


def _check_table(operation: str, block_table: Tensor, seen: Tensor, pages: int) -> None:
    bad = seen & ((block_table < 0) | (block_table >= pages))
    if bool(bad.any()):
        request, column = bad.nonzero()[0].tolist()
        got = f"{int(block_table[request, column])} at request {request} column {column}"
        bad_value(operation, "block_table", f"must hold pages in [0, {pages}) where slots are used", got)


def _check_requests(operation: str, argument: str, rule: str, bad: Tensor, values: Tensor) -> None:
    if bool(bad.any()):
        request = int(bad.nonzero()[0])
        bad_value(operation, argument, rule, f"{int(values[request])} at request {request}")
