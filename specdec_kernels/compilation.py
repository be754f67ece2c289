# SPDX-License-Identifier: Apache-2.0
"""Compiling the Triton kernels of a serving process before its first request."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

import torch

from ._cache_table import SLOT_DIM
from ._checks import FLOATS, bad_type, bad_value, check_bool, check_int, check_list, check_name, check_type
from ._compiling import Rows, Task, blank, compile_all, edits_of_one
from ._ops import backends
from .edits import LogitEdits
from .ends import Ends
from .reporting import Logprobs, Masks
from .rules import READS_DRAFT, Rule, resolve
from .sampling import PLAIN, SamplingParams

WIDTHS = (torch.int64, torch.int32)
METHODS = ("independent", "without_replacement", "top_k", "hybrid")


class Heads(NamedTuple):
    """Attention of one kind of layers, as `tree_attention` will be called for them."""

    query_heads: int
    kv_heads: int
    head_dim: int
    value_dim: int | None = None
    """With latent values (MLA): the elements of a key that are its value."""
    dtype: torch.dtype = torch.bfloat16
    """Of queries and outputs."""
    cache_dtype: torch.dtype | None = None
    """None: as the queries."""
    window: int | None = None
    softcap: float | None = None
    deterministic: bool = False
    max_nodes: int = 64
    """The most nodes of a request; all numbers up to it are compiled for."""


class Warmup(NamedTuple):
    """What `warmup` did."""

    calls: int
    """Forms of calls that were compiled for."""
    kernels: int
    """Kernels that were not there yet in this process."""
    seconds: float


def _check_pair(argument: str, value: object) -> tuple[object, object]:
    """Raise `TypeError` unless `value` is a pair."""
    if not isinstance(value, tuple) or len(value) != 2:
        bad_type("warmup", argument, "must be a pair", type(value).__name__)
    return value


def _budget_sizes(most: tuple[int, int]) -> set[tuple[int, int]]:
    """Requests and nodes that kernels are compiled for, up to these: powers of two."""
    from .triton.launch import BUDGET_MOST_NODES

    requests, nodes = (1 << (number - 1).bit_length() for number in most)
    counts = [1 << bits for bits in range(nodes.bit_length())]
    batches = [1 << bits for bits in range(requests.bit_length())]
    return {(b, n) for b in batches for n in counts if b * n <= BUDGET_MOST_NODES}


def _forms_of_rows(target_rows: Sequence[bool], bonus_tokens: object, token_dtypes: object) -> list[Rows]:
    """Those that calls may have together."""
    call, rule = "warmup", "must be int64 or int32"
    bonus = check_list(call, "bonus_tokens", bonus_tokens, "dtypes")
    for i, dtype in enumerate(bonus):
        if dtype is not None and dtype not in WIDTHS:
            bad_value(call, f"bonus_tokens[{i}]", f"{rule}, or None", dtype)
    tokens = check_list(call, "token_dtypes", token_dtypes, "dtypes")
    for i, dtype in enumerate(tokens):
        if dtype not in WIDTHS:
            bad_value(call, f"token_dtypes[{i}]", rule, dtype)
    forms = product(target_rows, (False, True), bonus, tokens)
    return [
        Rows(numbered, early, drawn, written)
        for numbered, early, drawn, written in forms
        if not early or (drawn is not None and not numbered)
    ]


def warmup(
    device: torch.device | str,
    *,
    vocab_size: int,
    dtypes: Sequence[torch.dtype] = (torch.bfloat16,),
    rules: Sequence[Rule] = ("match",),
    samplings: Sequence[SamplingParams] = (PLAIN,),
    draft_vocab_size: int | None = None,
    draft_logits: bool = True,
    token_bitmask: Sequence[bool] = (False,),
    return_logprobs: Sequence[bool | Logprobs] = (False,),
    return_masks: Sequence[Masks | None] = (None,),
    edits: Sequence[LogitEdits | None] = (None,),
    ends: Sequence[Ends | None] = (None,),
    links: Sequence[bool] = (False,),
    target_rows: Sequence[bool] = (False,),
    bonus_tokens: Sequence[torch.dtype | None] = (None,),
    token_dtypes: Sequence[torch.dtype] = (torch.int64,),
    cu_drafts: bool = False,
    aligned: Sequence[bool] = (True,),
    children: Sequence[tuple[str, int]] = (),
    heads: Sequence[Heads] = (),
    budgets: Sequence[tuple[int, int]] = (),
    page_size: int = 16,
    layout: str = "NHD",
    max_depth: int = 64,
    processes: int | None = None,
    progress: Callable[[str], object] | None = print,
) -> Warmup:
    """Compile and load the Triton kernels that a serving process will launch, before its first request.

    Kernels are compiled for every combination of the options given, in parallel processes that touch no
    device, into Triton's cache on disk; then this process loads them. Numbers such as batch sizes, lengths of
    drafts, sizes of trees and lengths of prefixes need no kernels of their own.

    Args:
        device: where the tensors of the calls will be.
        vocab_size: V, tokens of a target row.
        dtypes: of target and draft logits.
        rules: as for `verify`.
        samplings: one for each kind. What tells kinds apart: whether there are cuts (top-k, top-p or min-p),
            which parameters are tensors, and their dtypes. Values need no kernels of their own.
        draft_vocab_size: Vd, tokens of a draft row if the draft has a vocabulary of its own (`DraftVocab`).
        draft_logits: whether rules that read the draft's logits are called with them.
        token_bitmask, return_logprobs, return_masks: whether calls pass it, or what they ask for: `(False,
            True)` compiles for both. Of a `Logprobs` its kind, its `top`, and whether tokens are chosen need
            kernels of their own, and of `Masks` the form.
        edits: one for each kind, None = calls without. What tells kinds apart: which of their tensors are
            given, whether a penalty is on, and whether bad words have several tokens.
        ends: what calls pass, one for each choice of fields that are given. Values need no kernels of their
            own.
        links: whether trees come from `DraftTree.from_links`, and are refreshed; with `fill_sglang` as well.
        target_rows: whether calls of `verify` pass it.
        bonus_tokens: dtypes of those that calls pass, None = none. With them, calls with and without rows of
            last nodes are compiled for, and no trees of links.
        token_dtypes: of `out.tokens`.
        cu_drafts: whether chains come from `DraftTree.chain` with `cu_drafts`.
        aligned: whether rows of logits begin at multiples of 16 bytes and V is a multiple of 16.
        children: the methods of `sample_children` and the most children of a node.
        heads: of each kind of attention layers, see `Heads`; no entry, no attention.
        budgets: the most requests and the most nodes of a request that a `BatchBudget` chooses from.
        page_size, layout: of the paged caches.
        max_depth: of the `SpeculativeVerifier` that counts what is accepted.
        processes: that compile; None: as many as processors; 0: this process compiles, one after the other.
        progress: is called with a line of text for each call compiled for; None: nothing is said.

    Returns:
        `Warmup`.

    Raises:
        ValueError, TypeError: wrong numbers, names or types.
        BackendUnavailable: the Triton backend does not serve the device.

    Notes:
        Nothing is launched. A stream must not be captured meanwhile. A form that was not compiled before its
        first launch is compiled then, and in a captured stream that is an error.

    Example:
        >>> warmup("cuda", vocab_size=128256, rules=["traversal"])  # doctest: +SKIP
        warmup: 1 of 4 compiled: sample(...)
    """
    call, begin = "warmup", time.perf_counter()
    device = torch.device(device)
    vocab_size = check_int(call, "vocab_size", vocab_size, 1)
    width = (
        vocab_size if draft_vocab_size is None else check_int(call, "draft_vocab_size", draft_vocab_size, 1)
    )
    page_size, max_depth = (
        check_int(call, "page_size", page_size, 1),
        check_int(call, "max_depth", max_depth, 0),
    )
    check_bool(call, "draft_logits", draft_logits)
    check_bool(call, "cu_drafts", cu_drafts)
    check_name(call, "layout", layout, SLOT_DIM)
    for name, flags in dict(
        token_bitmask=token_bitmask, links=links, target_rows=target_rows, aligned=aligned
    ).items():
        for i, flag in enumerate(check_list(call, name, flags, "bools")):
            check_bool(call, f"{name}[{i}]", flag)
    for i, asked in enumerate(check_list(call, "return_logprobs", return_logprobs, "bools")):
        if not isinstance(asked, bool):
            check_type(call, f"return_logprobs[{i}]", asked, Logprobs, "a bool or a Logprobs")
    for i, form in enumerate(check_list(call, "return_masks", return_masks, "Masks")):
        if form is not None:
            check_type(call, f"return_masks[{i}]", form, Masks, "a Masks or None")
    for i, dtype in enumerate(check_list(call, "dtypes", dtypes, "dtypes")):
        if dtype not in FLOATS[:3]:
            bad_value(call, f"dtypes[{i}]", "must be float32, bfloat16 or float16", dtype)
    rows = _forms_of_rows(target_rows, bonus_tokens, token_dtypes)
    rules = check_list(call, "rules", rules, "rules")
    ends = check_list(call, "ends", ends, "Ends")
    for i, one in enumerate(ends):
        if one is not None:
            check_type(call, f"ends[{i}]", one, Ends, "an Ends")
    for i, sampling in enumerate(check_list(call, "samplings", samplings, "SamplingParams")):
        check_type(call, f"samplings[{i}]", sampling, SamplingParams, "a SamplingParams")
    for i, one in enumerate(check_list(call, "edits", edits, "LogitEdits")):
        if one is not None:
            check_type(call, f"edits[{i}]", one, LogitEdits, "a LogitEdits or None")
    for i, pair in enumerate(check_list(call, "children", children, "pairs")):
        method, most = _check_pair(f"children[{i}]", pair)
        check_name(call, f"children[{i}]", method, METHODS)
        check_int(call, f"children[{i}]", most, 1)
    for i, pair in enumerate(check_list(call, "budgets", budgets, "pairs")):
        for number in _check_pair(f"budgets[{i}]", pair):
            check_int(call, f"budgets[{i}]", number, 1)
    for i, kind in enumerate(check_list(call, "heads", heads, "Heads")):
        check_type(call, f"heads[{i}]", kind, Heads, "a Heads")
    workers = os.cpu_count() or 1 if processes is None else check_int(call, "processes", processes, 0)
    if progress is not None and not callable(progress):
        bad_type(call, "progress", "must be a function or None", type(progress).__name__)
    backends.load("triton", "verify", device.type, ())
    tasks: list[Task] = []
    with torch.device("cpu"):
        ones = [edits_of_one(one, vocab_size) for one in edits]
    per_call = list(product(dtypes, samplings, token_bitmask, return_logprobs, ones, aligned))
    fields = [None if one is None else tuple(field is not None for field in one) for one in ends]
    for rule, given, linked, form, masks, ended in product(
        rules, per_call, links, rows, return_masks, fields
    ):
        reads = draft_logits and resolve(call, rule, draft_logits)[0] in READS_DRAFT
        drafted, mapped = width if reads else 0, reads and draft_vocab_size is not None
        if not linked or form.bonus is None:
            options = (blank(rule), vocab_size, *given, linked, drafted, mapped, form, masks, ended)
            tasks.append(Task("verify", options))
    tasks += [Task("sample", (vocab_size, *given)) for given in per_call]
    for (method, most), dtype, law, whole in product(children, dtypes, samplings, aligned):
        counts = {min(1 << bits, most) for bits in range((most - 1).bit_length() + 1)}
        tasks += [Task("children", (method, width, dtype, law, whole, count)) for count in sorted(counts)]
    for kind in heads:
        counts = {min(1 << bits, kind.max_nodes) for bits in range((kind.max_nodes - 1).bit_length() + 1)}
        tasks += [Task("attention", (*kind[:-1], page_size, layout, count)) for count in sorted(counts)]
    tasks += [Task("budget", sizes) for sizes in sorted(set().union(*map(_budget_sizes, budgets)))]
    if True in links:
        tasks += [Task("links", dtypes) for dtypes in product(WIDTHS, (*WIDTHS, None))]
        tasks += [Task("paths", dtypes) for dtypes in product(token_dtypes, WIDTHS, WIDTHS)]
    if cu_drafts:
        tasks += [Task("chains", dtypes) for dtypes in product(WIDTHS, WIDTHS)]
    if any(one is not None and one.counts is not None for one in ones):
        tasks.append(Task("counts", (vocab_size,)))
    counting = [Task("count", (max_depth, ended)) for ended in sorted({one is not None for one in ends})]
    tasks += [Task("commit", (page_size, layout)), *counting]
    found = compile_all(tasks, device, workers, progress)
    return Warmup(len(tasks), found, time.perf_counter() - begin)
