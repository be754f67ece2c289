# SPDX-License-Identifier: Apache-2.0
"""Verification: decide which drafted tokens are kept, and draw the token after them."""

from __future__ import annotations

import enum
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from . import _debug, _ops, rules
from . import _verify_checks as checks
from ._checks import FLOATS, bad_value, check_device, check_dtype, check_tensor, check_type, what
from ._memory import check_contiguous
from ._ops.calls import VerifyCall
from .edits import LogitEdits, unpack_edits
from .ends import Ends, check_ends
from .reporting import (
    Logprobs,
    Masks,
    SamplingMasks,
    check_logprobs,
    check_masks,
    check_reported,
    check_sampling_masks,
    in_call,
    reported,
    sampling_masks,
)
from .rules import Rule
from .sampling import PLAIN, DraftVocab, SamplingParams, check_bitmask, noise_keys, unpack
from .tree import DraftTree


class Status(enum.IntFlag):
    """What verification found in a request; 0 = nothing to report."""

    NAN = 1
    """A target row had a NaN, which counted as `-inf`."""
    EMPTY = 2
    """A target row had no possible token. Its lowest allowed token was taken, or 0 if none is allowed."""
    IMPOSSIBLE = 4
    """A tested token in [0, V) has no probability under the law of its proposal. It was not drawn as
    declared, so a lossless rule may not be lossless here. The bit changes nothing else in the result.
    docs/verification.md says which children are tested."""
    OVERFLOW = 8
    """A capacity was too small. The slot of `TokenCounts` that the request has needs more distinct tokens
    than it has room for, and the request's penalties were off. Or ids of its sampling masks did not fit."""


class Verified(NamedTuple):
    """The result of `verify`, one row per request."""

    tokens: Tensor
    """[B, max_depth + 1] int64: accepted tokens, the next token, then -1. `out` may have int32."""
    num_tokens: Tensor
    """[B] int32: `num_accepted + 1`; 0 for an empty request, for one whose root has no row, and for one that
    has ended."""
    num_accepted: Tensor
    """[B] int32."""
    path: Tensor
    """[B, max_depth + 1] int32: 0 (the root), the accepted nodes in order, then -1."""
    logprobs: Tensor | None
    """[B, max_depth + 1] float32 of `tokens` under the processed target law, or the kind of law that
    `Logprobs` names; nan beyond."""
    status: Tensor
    """[B] int32, bits of `Status`."""
    finish: Tensor | None = None
    """[B] int32, bits of `Finish`: why a request ended; with `ends`."""
    top_logprobs: Tensor | None = None
    """[B, max_depth + 1, top] float32, descending; nan where there are fewer tokens. With `Logprobs.top`."""
    top_tokens: Tensor | None = None
    """[B, max_depth + 1, top] int64, whose these are; -1 where there are fewer."""
    ranks: Tensor | None = None
    """[B, max_depth + 1] int32 of `tokens`: 1 + how many tokens are likelier; 0 beyond. With `Logprobs`."""
    chosen_logprobs: Tensor | None = None
    """[B, max_depth + 1, m] float32 of `Logprobs.chosen`; nan beyond, and for what is no token."""
    masks: SamplingMasks | None = None
    """With `return_masks`."""


def verify(
    target_logits: Tensor,
    tree: DraftTree,
    draft_logits: Tensor | None = None,
    *,
    target_rows: Tensor | None = None,
    bonus_tokens: Tensor | None = None,
    draft_rows: Tensor | None = None,
    draft_vocab: DraftVocab | None = None,
    sampling: SamplingParams = PLAIN,
    draft_sampling: SamplingParams | Literal["logprobs", "probs"] | None = None,
    rule: Rule = "auto",
    seeds: Tensor | None = None,
    positions: Tensor | None = None,
    token_bitmask: Tensor | None = None,
    edits: LogitEdits | None = None,
    return_logprobs: bool | Logprobs = False,
    return_masks: Masks | None = None,
    ends: Ends | None = None,
    out: Verified | None = None,
    backend: str = "auto",
) -> Verified:
    """Verify drafted trees against the target: keep a path of drafted tokens and draw the token after it.

    Let p_v be the target's processed law at node v, and q_v the draft's. The lossless rules emit tokens whose
    joint law is the target's own, whatever q is:

    - `"match"` draws y ~ p_v at each node and follows the first child that equals y. The emitted tokens are
      those that `sample` would emit one at a time with the same seeds and positions.
    - `"token"` begins with P = p_v. It accepts child x with probability `min(1, P(x) / Q(x))`, and after
      every rejection sets `P = norm([P - Q]+)`.
    - `"traversal"` tests the deepest nodes first, with weights `w_c = min(1, w P(x) / Q(x))` and residuals
      `[w P - Q]+`. On a chain it is block verification. It accepts at least as much as `"token"`.

    As `tree.proposals` declares, Q is the point mass at x, or q_v, or q_v without the tokens of removed
    siblings. A sampled child counts as POINT if its parent has no draft row, or one with a NaN or without a
    possible token. Requests with temperature 0 are verified greedily under every lossless rule, `Threshold`
    and `Ensemble`.

    Args:
        target_logits: [R, V], or [B, N, V] for uniform trees; float32 | bfloat16 | float16, last stride 1.
            The row of a node is the law of the token after it. [Rt, V] with `target_rows`; with
            `bonus_tokens` also [R - B, V] or [B, N - 1, V], without the rows of last nodes; then empty
            requests come last.
        tree: the drafted tokens, R rows of B requests.
        draft_logits: [R, Vd], where the row of node i is the law from which its children were drawn; or
            [Rq, Vd] with `draft_rows`; or [B, K, Vd] for a uniform chain of K drafted tokens.
        target_rows: [R] int32, row of `target_logits` per node, -1 = none. Nodes may share rows. A node
            without a row is tested, but never kept: if the rule accepts it, its token is the next token. If a
            root has no row, the request counts as empty. Numbers out of range count as -1.
        bonus_tokens: [B] int64 or int32, only for chains: the token after the last node, which the caller has
            drawn from the target's law there. That node needs no row. The log-probability of the token is nan
            without the row. Tokens outside [0, V) count as none. Inside
            `torch.compile` a chain is known by its bounds, `max_nodes <= max_depth + 1`.
        draft_rows: [R] int32, row of `draft_logits` per node, -1 = none.
        draft_vocab: the tokens of the columns of `draft_logits`; without it column i is token i, and columns
            from V on are padding.
        sampling: turns a target row into a law.
        draft_sampling: what the drafter applied to `draft_logits`; default: as `sampling`. `"probs"`: the
            rows are the probabilities of the law itself; `"logprobs"`: their logarithms. Both are taken on
            trust.
        rule: `"auto"` (traversal if `draft_logits` is given, otherwise match), `"match"`, `"token"`,
            `"traversal"`, or a lossy rule: `Typical`, `Relaxed`, `Lenient`, `Deferred`, `Threshold`,
            `Ensemble`, `Synthetic`.
        seeds: [B] int64; default: fresh seeds from the default generator of the device.
        positions: [B] int64, the index in its sequence of the first new token; only with `seeds`.
        token_bitmask: [R, ceil(V / 32)] int32, bit `x % 32` of word `x // 32` set = token x allowed. It
            applies to the target's law only.
        edits: penalties, biases, bans and forced tokens, made in each target row where it is read, with what
            stands on the path to its node.
        return_logprobs: fill `Verified.logprobs`; a `Logprobs` says under which law, and which tokens'
            log-probabilities and ranks are returned with them.
        return_masks: fill `Verified.masks` with the tokens that bitmask and cuts left.
        ends: stop tokens and limits. A path ends at the first token that ends its request; `Verified.finish`
            says why, and the tensors of `ends` are changed in place.
        out: a `Verified` of contiguous tensors to fill and return; its logprobs are filled if present, and
            what `Logprobs` and `Masks` ask for has to be there. Its tokens may be int64 or int32. It has a
            `finish` with `ends`, and only then.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        `Verified`. Every emitted token is in [0, V), for every input.

    Raises:
        ValueError: wrong shapes, numbers out of range, seeds without positions or positions without seeds.
        TypeError: wrong dtypes or devices.
        BackendUnavailable: the named backend cannot serve the call.

    Notes:
        Never synchronises with the device. Every random number is a function of (seed, position, purpose,
        index). So with seeds the result of a request does not depend on the batch, on its place there, or on
        the number of threads. A lossless rule is lossless only for drafts that were drawn as declared, after
        temperature and cuts, with noise that is new in every step and that `verify` does not use.
        `draft_token` and `sample_children` with this call's `seeds` and `positions` draw in this way;
        `sample` with the positions of the drafted tokens does not. NaN and empty rows raise no error but set
        `Verified.status`. So does a child that was tested under `"token"`, `"traversal"`, `Lenient` or
        `Ensemble` and has Q(x) = 0 (`Status.IMPOSSIBLE`). `SPECDEC_DEBUG=1` in the environment adds checks of
        values that raise errors, and synchronise. Float64 rows are served by the reference.

    Source: token: Leviathan et al. 2023, Fast Inference from Transformers via Speculative Decoding, algorithm
        1, and Miao et al. 2024, SpecInfer, algorithm 2, on trees. Traversal: Weng et al. 2025, Traversal
        Verification for Speculative Tree Decoding, and Sun et al. 2024, Block Verification Accelerates
        Speculative Decoding, on chains.

    Example:
        >>> target = torch.tensor([[0.0, 9.0, 0.0], [0.0, 0.0, 9.0], [9.0, 0.0, 0.0]])
        >>> tree = DraftTree.chain(torch.tensor([[1, 0]]))
        >>> verified = verify(target, tree, sampling=SamplingParams(temperature=0.0))
        >>> verified.tokens.tolist(), verified.num_accepted.tolist()
        ([[1, 2, -1]], [1])
    """
    check_type("verify", "tree", tree, DraftTree, "a DraftTree")
    check_dtype("verify", "target_logits", target_logits, FLOATS)
    rows, batch, device = tree.tokens.shape[0], tree.batch_size, target_logits.device
    rows_end_early = checks.check_target(target_logits, tree, target_rows, bonus_tokens)
    vocab = target_logits.shape[-1]
    check_device("verify", "tree", tree.tokens, device)
    checks.check_draft(draft_logits, draft_rows, draft_vocab, tree, vocab, device)
    numbers, tensors = unpack("verify", "sampling", sampling, batch, device)
    checks.check_draft_sampling("verify", draft_sampling)
    if draft_sampling is None:
        draft_numbers, draft_tensors = numbers, tensors
    elif isinstance(draft_sampling, str):
        draft_numbers, draft_tensors = unpack("verify", "draft_sampling", PLAIN, batch, device)
    else:
        draft_numbers, draft_tensors = unpack("verify", "draft_sampling", draft_sampling, batch, device)
    rule_name, rule_values = rules.resolve("verify", rule, draft_logits is not None)
    seeds, positions = noise_keys("verify", seeds, positions, batch, device)
    check_bitmask("verify", token_bitmask, "[R, ceil(V / 32)]", rows, vocab, device)
    edit_tensors, edit_numbers = unpack_edits("verify", edits, batch, vocab, device)
    given, width = out, tree.max_depth + 1
    stops, new_tokens_left, context_left, finished = check_ends("verify", ends, batch, device)
    out = _outputs(given, return_logprobs is not False, ends is not None, batch, width, device)
    kind, chosen = "processed", None
    report: list[Tensor] = []
    masks: list[Tensor] = []
    if return_logprobs is not True and return_logprobs is not False:
        kind, chosen, report, out = with_report(given, out, return_logprobs, width)
    if return_masks is not None:
        masks, out = with_masks(given, out, return_masks, width, vocab)
    if given is not None:
        _refuse_unasked(given, bool(report), bool(masks))
    first_child, next_sibling = tree.links if tree.links is not None else (None, None)
    call = VerifyCall(
        target_logits=target_logits,
        tokens=tree.tokens.contiguous(),
        parents=tree.parents.contiguous(),
        cu_nodes=tree.cu_nodes.contiguous(),
        proposals=tree.proposals.contiguous(),
        first_child=first_child,
        next_sibling=next_sibling,
        draft_logits=draft_logits,
        draft_rows=draft_rows.contiguous() if draft_rows is not None else None,
        draft_ids=draft_vocab.ids if draft_vocab is not None and draft_logits is not None else None,
        draft_columns=draft_vocab.columns if draft_vocab is not None and draft_logits is not None else None,
        sampling=numbers,
        sampling_rows=tensors,
        draft_sampling=draft_numbers,
        draft_sampling_rows=draft_tensors,
        draft_is_logprobs=draft_sampling == "logprobs",
        rule=rule_name,
        rule_values=rule_values,
        seeds=seeds,
        positions=positions,
        token_bitmask=token_bitmask,
        out_tokens=out.tokens,
        out_num_tokens=out.num_tokens,
        out_num_accepted=out.num_accepted,
        out_path=out.path,
        out_logprobs=out.logprobs,
        out_status=out.status,
        target_rows=target_rows.contiguous() if target_rows is not None else None,
        rows_end_early=rows_end_early,
        bonus_tokens=bonus_tokens.contiguous() if bonus_tokens is not None else None,
        draft_is_probs=draft_sampling == "probs",
        rule_rates=rules.rates_on("verify", rule, device),
        edits=edit_tensors,
        edit_numbers=edit_numbers,
        stop_tokens=stops,
        new_tokens_left=new_tokens_left,
        context_left=context_left,
        finished=finished,
        out_finish=out.finish,
        logprobs_kind=kind,
        chosen_tokens=chosen,
        out_report=report,
        out_masks=masks,
    )
    before = call
    if _debug.enabled():
        _debug.check_verify(tree, call)
        before = _debug.before(call)
    _ops.verify(call, backend)
    if _debug.enabled():
        _debug.check_drawn(tree, before, (out.status & Status.IMPOSSIBLE) != 0)
    return out


def empty_outputs(
    batch: int,
    width: int,
    device: torch.device,
    tokens: torch.dtype = torch.int64,
    *,
    logprobs: bool = False,
    ends: bool = False,
) -> Verified:
    """Outputs that `verify` can fill, with tokens of a dtype."""
    num_tokens = torch.empty(batch, dtype=torch.int32, device=device)
    return Verified(
        tokens=torch.empty((batch, width), dtype=tokens, device=device),
        num_tokens=num_tokens,
        num_accepted=torch.empty_like(num_tokens),
        path=torch.empty((batch, width), dtype=torch.int32, device=device),
        logprobs=torch.empty((batch, width), dtype=torch.float32, device=device) if logprobs else None,
        status=torch.empty_like(num_tokens),
        finish=torch.empty_like(num_tokens) if ends else None,
    )


def _outputs(
    out: Verified | None, logprobs: bool, ends: bool, batch: int, width: int, device: torch.device
) -> Verified:
    if out is None:
        return empty_outputs(batch, width, device, logprobs=logprobs, ends=ends)
    check_type("verify", "out", out, Verified, "a Verified")
    if logprobs and out.logprobs is None:
        bad_value("verify", "out.logprobs", "must be a tensor with return_logprobs", "None")
    if ends != (out.finish is not None):
        rule = "must be a tensor with ends" if ends else "must be None without ends"
        bad_value("verify", "out.finish", rule, "None" if ends else what(out.finish))
    grid, line = ("[B, max_depth + 1]", (batch, width)), ("[B]", (batch,))
    numbers = (torch.int32,)
    for field, (symbols, shape), dtypes in (
        ("tokens", grid, checks.TOKENS),
        ("num_tokens", line, numbers),
        ("num_accepted", line, numbers),
        ("path", grid, numbers),
        ("logprobs", grid, (torch.float32,)),
        ("status", line, numbers),
        ("finish", line, numbers),
    ):
        value = getattr(out, field)
        if field in ("logprobs", "finish") and value is None:
            continue
        check_tensor("verify", f"out.{field}", value, symbols, shape, dtypes, device)
        check_contiguous("verify", f"out.{field}", value)
    return out


def with_report(
    given: Verified | None, out: Verified, logprobs: Logprobs, width: int
) -> tuple[str, Tensor | None, list[Tensor], Verified]:
    """The kind of the law, the chosen tokens, the outputs that `logprobs` asks for, and `out` with them."""
    batch, device = out.num_tokens.shape[0], out.num_tokens.device
    top, chosen = check_logprobs("verify", logprobs, batch, device)
    if given is None:
        parts = reported(batch, width, top, chosen, device)
        out = out._replace(
            ranks=parts.ranks,
            top_logprobs=parts.top_logprobs if top > 0 else None,
            top_tokens=parts.top_tokens if top > 0 else None,
            chosen_logprobs=parts.chosen_logprobs if chosen is not None else None,
        )
    else:
        tensors = given.top_logprobs, given.top_tokens, given.ranks, given.chosen_logprobs
        parts = check_reported(tensors, batch, width, top, chosen, device)
    return logprobs.kind, chosen, list(parts), out


def with_masks(
    given: Verified | None, out: Verified, masks: Masks, width: int, vocab: int
) -> tuple[list[Tensor], Verified]:
    """The outputs that `masks` asks for, as a call has them, and `out` with them."""
    form, batch, device = check_masks("verify", masks), out.num_tokens.shape[0], out.num_tokens.device
    if given is None:
        filled = sampling_masks(batch, width, vocab, form, device)
        return in_call(filled), out._replace(masks=filled)
    return in_call(check_sampling_masks(given.masks, batch, width, vocab, form, device)), out


def _refuse_unasked(given: Verified, report: bool, masks: bool) -> None:
    """Raise where `out` has outputs that nothing asks for."""
    for name in ("top_logprobs", "top_tokens", "ranks", "chosen_logprobs"):
        if not report and getattr(given, name) is not None:
            bad_value(
                "verify", f"out.{name}", "must be None without return_logprobs=Logprobs(...)", "a value"
            )
    if not masks and given.masks is not None:
        bad_value("verify", "out.masks", "must be None without return_masks", "a value")
