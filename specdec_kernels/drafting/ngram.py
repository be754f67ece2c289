# SPDX-License-Identifier: Apache-2.0
"""Prompt lookup: drafts copied from the text so far, as a chain of one continuation or a tree of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _debug, _ops
from .._checks import (
    INTEGERS,
    bad_value,
    check_bool,
    check_dim,
    check_dtype,
    check_int,
    check_name,
    check_numbers,
    check_tensor,
)
from .._ops.calls import NgramDraftCall, NgramTreeCall
from ..tree import DraftTree

# For n = 1, 2, ...: about how often the token after the longest repeated n-gram is the same as before.
# Counted on texts of a small language model, none of them from the demo. The last entry is for n >= 10.
TRUST = (0.2, 0.5, 0.65, 0.75, 0.78, 0.8, 0.8, 0.82, 0.85, 0.93)
MATCHES = ("latest", "frequent")


def ngram_draft(
    tokens: Tensor,
    lengths: Tensor,
    num_draft: int,
    *,
    min_ngram: int = 1,
    max_ngram: int = 4,
    match: str = "latest",
    cyclic: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Draft the continuation of an earlier occurrence of the longest n-gram that ends the text.

    The n-gram is the longest one of `min_ngram` to `max_ngram` tokens that ends the text and occurs earlier
    in it; the two may overlap. `match="latest"` drafts the continuation of its most recent occurrence.
    `"frequent"` drafts, token by token, the most frequent continuation; among equals the most recent one.

    Args:
        tokens: [B, L] int64, each row a text, prompt included; entries from its length on are not read.
        lengths: [B] integers, clamped to [0, L]; `SPECDEC_DEBUG=1` in the environment raises instead.
        num_draft: number of tokens to draft, >= 1.
        min_ngram, max_ngram: the lengths of n-grams, 1 <= min_ngram <= max_ngram.
        match: "latest" or "frequent".
        cyclic: a continuation that reaches the end of the text continues with its own tokens.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        [B, num_draft] int64, -1 where nothing is drafted. Give it to `DraftTree.chain` as `Proposal.POINT`.

    Raises:
        ValueError: wrong shapes or numbers.
        TypeError: wrong dtypes or devices.
        BackendUnavailable: the named backend cannot serve the call.

    Source: Saxena 2023, Prompt Lookup Decoding.

    Example:
        >>> text = torch.tensor([[1, 2, 5, 6, 1, 2, 3, 4, 1, 2]])
        >>> ngram_draft(text, torch.tensor([10]), 5).tolist()
        [[3, 4, 1, 2, -1]]
        >>> ngram_draft(text, torch.tensor([10]), 5, cyclic=True).tolist()
        [[3, 4, 1, 2, 3]]
    """
    lengths, min_ngram, max_ngram = _check("ngram_draft", tokens, lengths, min_ngram, max_ngram)
    num_draft = check_int("ngram_draft", "num_draft", num_draft, 1)
    check_name("ngram_draft", "match", match, MATCHES)
    check_bool("ngram_draft", "cyclic", cyclic)
    out = torch.empty((tokens.shape[0], num_draft), dtype=torch.int64, device=tokens.device)
    call = NgramDraftCall(
        tokens=tokens.contiguous(),
        lengths=lengths,
        min_ngram=min_ngram,
        max_ngram=max_ngram,
        frequent=match == "frequent",
        cyclic=cyclic,
        out=out,
    )
    _ops.ngram_draft(call, backend)
    return out


class NgramTree(NamedTuple):
    """The tree that `ngram_tree` found, and the chances of its nodes."""

    tree: DraftTree
    """A tree of `POINT` nodes, with `max_nodes` rows for every request; unused rows hold -1."""
    scores: Tensor
    """[B, max_nodes] float32: the logarithm of each node's chance, 0 at roots and -inf at unused nodes."""


def ngram_tree(
    tokens: Tensor,
    lengths: Tensor,
    max_nodes: int,
    *,
    max_depth: int | None = None,
    branches: int = 4,
    min_ngram: int = 1,
    max_ngram: int = 10,
    trust: Sequence[float] = TRUST,
    cyclic: bool = False,
    backend: str = "auto",
) -> NgramTree:
    """Draft the continuations of several earlier occurrences of the text's last tokens, as one tree.

    Occurrences are taken by the length n of the repeated n-gram, longest first, among equals the most recent
    first. A node gets the share `trust[n - 1]` of a remaining chance: the chance that the text reaches its
    parent and none of the parent's earlier children. Here n also counts the tokens of the continuation up to
    the parent, which would be repeated as well. The `max_nodes` nodes of the largest chances are kept and
    numbered depth first, so that the likeliest path comes first.

    Args:
        tokens: [B, L] int64, each row a text, prompt included; entries from its length on are not read.
        lengths: [B] integers, clamped to [0, L]; `SPECDEC_DEBUG=1` in the environment raises instead.
        max_nodes: number of nodes of a tree, the root included, >= 1.
        max_depth: largest depth of a tree, default `max_nodes - 1`.
        branches: number of occurrences that are followed, >= 1.
        min_ngram, max_ngram: the lengths of n-grams, 1 <= min_ngram <= max_ngram.
        trust: in (0, 1], the chance that a text continues as it did after an earlier n-gram, for n = 1, 2,
            ..., ascending; the last entry also holds for longer n-grams.
        cyclic: a continuation that reaches the end of the text continues with its own tokens.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        `NgramTree`.

    Raises:
        ValueError: wrong shapes or numbers.
        TypeError: wrong dtypes or devices.
        BackendUnavailable: the named backend cannot serve the call.

    Example:
        >>> text = torch.tensor([[1, 2, 5, 6, 9, 1, 2, 3, 4, 8, 1, 2]])
        >>> tree, scores = ngram_tree(text, torch.tensor([12]), 4)
        >>> tree.tokens.tolist(), tree.parents.tolist()
        ([2, 3, 4, 5], [-1, 0, 1, 0])
        >>> [round(chance, 2) for chance in scores.exp()[0].tolist()]
        [1.0, 0.5, 0.32, 0.25]
    """
    lengths, min_ngram, max_ngram = _check("ngram_tree", tokens, lengths, min_ngram, max_ngram)
    max_nodes, max_depth, trust = check_tree("ngram_tree", max_nodes, max_depth, trust)
    branches = check_int("ngram_tree", "branches", branches, 1)
    check_bool("ngram_tree", "cyclic", cyclic)
    shape, device = (tokens.shape[0], max_nodes), tokens.device
    drafted = torch.empty(shape, dtype=torch.int64, device=device)
    parents = torch.empty(shape, dtype=torch.int32, device=device)
    scores = torch.empty(shape, dtype=torch.float32, device=device)
    call = NgramTreeCall(
        tokens=tokens.contiguous(),
        lengths=lengths,
        max_depth=max_depth,
        branches=branches,
        min_ngram=min_ngram,
        max_ngram=max_ngram,
        trust=trust,
        cyclic=cyclic,
        out_tokens=drafted,
        out_parents=parents,
        out_scores=scores,
    )
    _ops.ngram_tree(call, backend)
    cu_nodes = torch.arange(0, drafted.numel() + 1, max_nodes, dtype=torch.int32, device=device)
    kinds = torch.zeros(drafted.numel(), dtype=torch.uint8, device=device)  # Proposal.POINT
    return as_tree(drafted.view(-1), parents.view(-1), cu_nodes, kinds, scores, max_nodes, max_depth)


def check_tree(
    operation: str, max_nodes: int, max_depth: int | None, trust: Sequence[float]
) -> tuple[int, int, list[float]]:
    """What bounds a tree of continuations, checked; a depth that is not given is the largest."""
    max_nodes = check_int(operation, "max_nodes", max_nodes, 1)
    max_depth = check_int(operation, "max_depth", max_nodes - 1 if max_depth is None else max_depth, 0)
    if trust is TRUST:
        return max_nodes, max_depth, list(TRUST)
    trust = check_numbers(operation, "trust", trust)
    if not trust or not all(0.0 < chance <= 1.0 for chance in trust):
        bad_value(operation, "trust", "must be at least one number in (0, 1]", trust)
    return max_nodes, max_depth, trust


def as_tree(
    tokens: Tensor,
    parents: Tensor,
    cu_nodes: Tensor,
    kinds: Tensor,
    scores: Tensor,
    max_nodes: int,
    max_depth: int,
) -> NgramTree:
    """Of tensors that a search has filled, as `DraftTree` and `NgramTree` have them."""
    depth = max(max_depth, min(max_nodes - 1, 1))  # unused nodes have depth 1
    return NgramTree(DraftTree._made(tokens, parents, cu_nodes, kinds, max_nodes, depth), scores)


def _check(
    operation: str, tokens: Tensor, lengths: Tensor, min_ngram: int, max_ngram: int
) -> tuple[Tensor, int, int]:
    """The lengths of the texts as [B] int64, and the checked lengths of n-grams."""
    check_dtype(operation, "tokens", tokens, (torch.int64,))
    check_dim(operation, "tokens", tokens, 2, "[B, L]")
    check_tensor(operation, "lengths", lengths, "[B]", tokens.shape[:1], INTEGERS, tokens.device)
    min_ngram = check_int(operation, "min_ngram", min_ngram, 1)
    max_ngram = check_int(operation, "max_ngram", max_ngram, min_ngram)
    if _debug.enabled():
        _debug.check_lengths(operation, lengths, tokens.shape[1])
    return lengths.long().contiguous(), min_ngram, max_ngram
