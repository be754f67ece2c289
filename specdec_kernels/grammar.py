# SPDX-License-Identifier: Apache-2.0
"""Grammars over draft trees: masks for every node, texts that are forced, and matchers that follow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._checks import (
    bad_type,
    bad_value,
    check_bool,
    check_int,
    check_ints,
    check_list,
    check_tensor,
    check_type,
)
from ._memory import check_contiguous
from .matchers import Matcher, check_matcher
from .tree import DraftTree, Proposal
from .verification import Verified

CPU = torch.device("cpu")


class TreeBitmask(NamedTuple):
    """What `tree_bitmask` found, for `verify`. R is the number of rows of the tree.

    Example:
        `verify(logits, replace(tree, tokens=masks.tokens), token_bitmask=masks.bitmask,
        target_rows=masks.target_rows)`
    """

    bitmask: Tensor
    """[R, ceil(V / 32)] int32 for `verify(token_bitmask=)`; 0 in rows that nobody reads."""
    tokens: Tensor
    """[R] int64: the tree's tokens, -1 for what need not be tested."""
    target_rows: Tensor
    """[R] int32 for `verify(target_rows=)`: -1 where the grammar leaves no token after the node."""


class ForcedDraft(NamedTuple):
    """What `forced_draft` found.

    Example:
        `forced.tree` is a draft like any other; the first `forced.certain[b]` tokens cannot be rejected.
    """

    tree: DraftTree
    """A chain of `num_draft` tokens for each request, `Proposal.POINT`; -1 where nothing is forced."""
    certain: Tensor
    """[B] int32: how many of its first tokens are the only ones that the grammar allows."""


def tree_bitmask(
    matchers: Sequence[Matcher | None],
    tree: DraftTree,
    vocab_size: int,
    *,
    active: Sequence[bool] | None = None,
    target_rows: Tensor | None = None,
    out: TreeBitmask | None = None,
) -> TreeBitmask:
    """Masks of the tokens that a grammar allows after every node of a draft tree.

    One walk over each tree, with the matcher's own `accept_token` and `rollback`. The matcher stands behind
    the root. A child is *refused* if the matcher does not accept its token.

    - A refused sampled child keeps its token. Its probability is 0 under its parent's mask, so `verify`
      rejects it and updates the residual. Without the token the emitted law would be another one.
    - A refused `POINT` child gets token -1, so it is not tested. It keeps its token if a sibling was drawn
      without replacement, because that sibling's law excludes the token.
    - No row is needed for a refused child, for what is below it, and for a node after which the text has
      ended. These have `target_rows` -1. Where the root is such a node, the request counts as empty.

    Args:
        matchers: one for each of B requests; None where a request has no grammar.
        tree: the drafts. Its tensors are read, which waits for a device.
        vocab_size: V. Tokens outside [0, V) are refused without asking the matcher.
        active: for each request whether the grammar holds yet; default: everywhere. Where it does not, as
            with None for a matcher, every token is allowed and nothing is refused. If the grammar begins at a
            token that may itself be drafted, use `AfterToken`.
        target_rows: [R] int32: the rows that the nodes have otherwise, default row r for node row r.
        out: a `TreeBitmask` of contiguous tensors to fill and return.

    Returns:
        `TreeBitmask`, on the device of the tree. All matchers are in the state in which they came, also if an
        error is raised.

    Raises:
        ValueError: wrong shapes or numbers.
        TypeError: wrong types, dtypes or devices; matchers without the methods of `Matcher`.

    Notes:
        The emitted law is that of the target with the mask applied to every row, under every lossless rule.
        `Ensemble` mixes in the law of the draft, so it needs drafts that were drawn under the mask.
        Drafters that mask their own rows have nothing refused.

    Example:
        >>> class Ascending:  # a grammar of tokens that grow
        ...     def __init__(self): self.read = [-1]
        ...     def is_terminated(self): return False
        ...     def rollback(self, n): del self.read[len(self.read) - n:]
        ...     def accept_token(self, token):
        ...         ok = token > self.read[-1]
        ...         self.read += [token] * ok
        ...         return ok
        ...     def fill_next_token_bitmask(self, bitmask, index):
        ...         bitmask[index] = -1 << (self.read[-1] + 1)
        >>> tree = DraftTree.chain(torch.tensor([[1, 3, 2]]))
        >>> masks = tree_bitmask([Ascending()], tree, vocab_size=5)
        >>> [f"{row & 31:05b}" for row in masks.bitmask[:, 0].tolist()]
        ['11111', '11100', '10000', '00000']
        >>> masks.tokens.tolist(), masks.target_rows.tolist()
        ([-1, 1, 3, 2], [0, 1, 2, -1])
        >>> point = DraftTree.chain(torch.tensor([[1, 3, 2]]), proposal=Proposal.POINT)
        >>> tree_bitmask([Ascending()], point, vocab_size=5).tokens.tolist()
        [-1, 1, 3, -1]
    """
    call = "tree_bitmask"
    check_type(call, "tree", tree, DraftTree, "a DraftTree")
    rows, device = tree.tokens.shape[0], tree.tokens.device
    holding = _holding(call, matchers, active, tree.batch_size)
    vocab_size = check_int(call, "vocab_size", vocab_size, 1)
    if target_rows is not None:
        check_tensor(call, "target_rows", target_rows, "[R]", (rows,), (torch.int32,), device)
    out = _masks(out, rows, vocab_size, device)
    bitmask = out.bitmask if device == CPU else torch.empty(out.bitmask.shape, dtype=torch.int32, device=CPU)
    tokens, parents, proposals = tree.tokens.tolist(), tree.parents.tolist(), tree.proposals.tolist()
    given = list(range(rows)) if target_rows is None else target_rows.tolist()
    numbers = [-1] * rows
    bitmask.zero_()
    ends = [min(max(end, 0), rows) for end in tree.cu_nodes.tolist()]
    for matcher, start, end in zip(holding, ends[:-1], ends[1:], strict=True):
        if end <= start:
            continue
        part = slice(start, end)
        if matcher is None:
            bitmask[part] = -1
            numbers[part] = given[part]
            continue
        walk = _Walk(tokens[part], parents[part], proposals[part], vocab_size)
        walk.fill(matcher, bitmask[part], tree.max_depth)
        tokens[part] = walk.tokens
        for node in walk.rows:
            numbers[start + node] = given[start + node]
    if out.bitmask is not bitmask:
        out.bitmask.copy_(bitmask)
    out.tokens.copy_(torch.tensor(tokens, dtype=torch.int64, device=CPU))
    out.target_rows.copy_(torch.tensor(numbers, dtype=torch.int32, device=CPU))
    return out


def advance_matchers(
    matchers: Sequence[Matcher | None],
    emitted: Verified | Sequence[Sequence[int]],
    *,
    active: Sequence[bool] | None = None,
) -> list[bool]:
    """Let every matcher read the tokens that its request has emitted.

    Args:
        matchers: one for each of B requests; None where a request has no grammar.
        emitted: what `verify` returned, whose tensors are read, which waits for a device; or a list of tokens
            for each request.
        active: as for `tree_bitmask`; other matchers read nothing.

    Returns:
        For each request whether its text has ended.

    Raises:
        ValueError: wrong numbers; a matcher refuses a token. No matcher has moved then.
        TypeError: wrong types; matchers without the methods of `Matcher`.

    Example:
        >>> advance_matchers([None], [[5, 6]])
        [False]
    """
    call = "advance_matchers"
    if isinstance(emitted, Verified):
        counts = emitted.num_tokens.tolist()
        texts = [row[:count] for row, count in zip(emitted.tokens.tolist(), counts, strict=True)]
    else:
        texts = check_list(call, "emitted", emitted, "lists of tokens")
        texts = [check_ints(call, f"emitted[{b}]", text, 0) for b, text in enumerate(texts)]
    holding = _holding(call, matchers, active, len(texts))
    moved: list[_Reader] = []
    try:
        for b, (matcher, text) in enumerate(zip(holding, texts, strict=True)):
            if matcher is None:
                continue
            moved.append(_Reader(matcher))
            for i, token in enumerate(text):
                if not moved[-1].accept(token):
                    bad_value(call, f"emitted[{b}][{i}]", f"must be accepted by matchers[{b}]", token)
    except BaseException:
        for reader in moved:
            reader.back_to(0)
        raise
    return [matcher is not None and matcher.is_terminated() for matcher in holding]


def forced_draft(
    matchers: Sequence[Matcher | None],
    vocab_size: int,
    num_draft: int,
    tokenize: Callable[[str], Sequence[int]] | None = None,
    *,
    active: Sequence[bool] | None = None,
) -> ForcedDraft:
    """Draft what the grammar forces: tokens that alone are allowed, then a string that has to come next.

    A token is certain only if no other is allowed. A string that is certain can be written in other tokens,
    so its tokens are drafts: give the chain to `tree_bitmask` and `verify`, like any other.

    Args:
        matchers: one for each of B requests; None where a request has no grammar.
        vocab_size: V.
        num_draft: K >= 1, the most tokens.
        tokenize: turns what the matcher's `find_jump_forward_string` returns into tokens; default: only
            tokens that are certain.
        active: as for `tree_bitmask`; other requests draft nothing.

    Returns:
        `ForcedDraft`, on the host. All matchers are in the state in which they came.

    Raises:
        ValueError: wrong numbers; tokens of `tokenize` outside [0, V).
        TypeError: wrong types; matchers without the methods of `Matcher`, or with `tokenize` without
            `find_jump_forward_string`.

    Example:
        >>> forced_draft([None], vocab_size=9, num_draft=2).tree.tokens.tolist()
        [-1, -1, -1]
    """
    call = "forced_draft"
    holding = _holding(call, matchers, active, None)
    vocab_size = check_int(call, "vocab_size", vocab_size, 1)
    num_draft = check_int(call, "num_draft", num_draft, 1)
    if tokenize is not None:
        if not callable(tokenize):
            bad_type(call, "tokenize", "must be a function", type(tokenize).__name__)
        for b, matcher in enumerate(holding):
            if matcher is not None:
                check_matcher(call, f"matchers[{b}]", matcher, ["find_jump_forward_string"])
    drafts = torch.full((len(holding), num_draft), -1, device=CPU)
    certain = torch.zeros(len(holding), dtype=torch.int32, device=CPU)
    for b, matcher in enumerate(holding):
        if matcher is None:
            continue
        with _Reader(matcher) as reader:
            draft = _certain_tokens(reader, vocab_size, num_draft)
            certain[b] = len(draft)
            if tokenize is not None and len(draft) < num_draft and not matcher.is_terminated():
                draft += _forced_tokens(reader, vocab_size, tokenize)
        drafts[b, : len(draft)] = torch.tensor(draft[:num_draft], dtype=torch.int64, device=CPU)
    return ForcedDraft(DraftTree.chain(drafts, proposal=Proposal.POINT), certain)


class _Reader:
    """Lets a matcher read ahead, and takes it back to where it was."""

    def __init__(self, matcher: Matcher) -> None:
        self.matcher = matcher
        self._depth = 0

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.back_to(0)

    def accept(self, token: int) -> bool:
        accepted = bool(self.matcher.accept_token(token))
        self._depth += accepted
        return accepted

    def back_to(self, depth: int) -> None:
        if self._depth > depth:
            self.matcher.rollback(self._depth - depth)
            self._depth = depth


class _Walk:
    """One request's walk.

    Attributes:
        tokens: of its nodes, -1 where a refused child is not to be tested.
        rows: the nodes after which a token may come.
    """

    def __init__(self, tokens: list[int], parents: list[int], proposals: list[int], vocab_size: int) -> None:
        self.tokens = tokens
        self.rows: list[int] = []
        self._parents, self._proposals, self._vocab_size = parents, proposals, vocab_size
        self._children: list[list[int]] = [[] for _ in tokens]
        for child, parent in enumerate(parents):
            if 0 <= parent < child and tokens[child] >= 0:
                self._children[parent].append(child)

    def fill(self, matcher: Matcher, bitmask: Tensor, max_depth: int) -> None:
        """Fill the rows [N, words] of the nodes after which a token may come."""
        with _Reader(matcher) as reader:
            stack = [(0, 0)]
            while stack:
                node, depth = stack.pop()
                reader.back_to(max(depth - 1, 0))
                if depth > 0 and not (
                    self.tokens[node] < self._vocab_size and reader.accept(self.tokens[node])
                ):
                    self._refuse(node)
                elif not matcher.is_terminated():
                    matcher.fill_next_token_bitmask(bitmask, node)
                    self.rows.append(node)
                    if depth < max_depth:
                        stack += [(child, depth + 1) for child in reversed(self._children[node])]

    def _refuse(self, node: int) -> None:
        """A sampled sibling without replacement is drawn from a law without the tokens of POINT siblings."""
        siblings = self._children[self._parents[node]]
        kinds = [self._proposals[node], *(self._proposals[sibling] for sibling in siblings)]
        if kinds[0] != Proposal.INDEPENDENT and Proposal.WITHOUT_REPLACEMENT not in kinds:
            self.tokens[node] = -1


def _holding(operation: str, matchers: object, active: object, batch: int | None) -> list[Matcher | None]:
    """The matchers of requests for which a grammar holds, None for the others."""
    matchers = check_list(operation, "matchers", matchers, "matchers")
    if batch is not None and len(matchers) != batch:
        bad_value(operation, "matchers", f"must have B = {batch} entries", len(matchers))
    for b, matcher in enumerate(matchers):
        if matcher is not None:
            check_matcher(operation, f"matchers[{b}]", matcher)
    if active is None:
        return matchers
    flags = check_list(operation, "active", active, "bools")
    if len(flags) != len(matchers):
        bad_value(operation, "active", f"must have B = {len(matchers)} entries", len(flags))
    for b, flag in enumerate(flags):
        check_bool(operation, f"active[{b}]", flag)
    return [matcher if flag else None for matcher, flag in zip(matchers, flags, strict=True)]


def _masks(out: TreeBitmask | None, rows: int, vocab_size: int, device: torch.device) -> TreeBitmask:
    shape = rows, (vocab_size + 31) // 32
    if out is None:
        return TreeBitmask(
            torch.empty(shape, dtype=torch.int32, device=device),
            torch.empty(rows, dtype=torch.int64, device=device),
            torch.empty(rows, dtype=torch.int32, device=device),
        )
    check_type("tree_bitmask", "out", out, TreeBitmask, "a TreeBitmask")
    for field, symbols, size, dtype in (
        ("bitmask", "[R, ceil(V / 32)]", shape, torch.int32),
        ("tokens", "[R]", shape[:1], torch.int64),
        ("target_rows", "[R]", shape[:1], torch.int32),
    ):
        value = getattr(out, field)
        check_tensor("tree_bitmask", f"out.{field}", value, symbols, size, (dtype,), device)
        check_contiguous("tree_bitmask", f"out.{field}", value)
    return out


def _certain_tokens(reader: _Reader, vocab_size: int, most: int) -> list[int]:
    """The next tokens as long as one alone is allowed. The reader stands behind them."""
    bitmask = torch.zeros((1, (vocab_size + 31) // 32), dtype=torch.int32, device=CPU)
    found: list[int] = []
    while len(found) < most and not reader.matcher.is_terminated():
        reader.matcher.fill_next_token_bitmask(bitmask, 0)
        words = bitmask[0].nonzero().flatten().tolist()
        if len(words) != 1:
            break
        bits = int(bitmask[0, words[0]]) % 2**32
        token = words[0] * 32 + bits.bit_length() - 1
        if bits & (bits - 1) or token >= vocab_size or not reader.accept(token):
            break
        found.append(token)
    return found


def _forced_tokens(reader: _Reader, vocab_size: int, tokenize: Callable[[str], Sequence[int]]) -> list[int]:
    """The tokens of the string that has to come next."""
    matcher: Any = reader.matcher
    text = matcher.find_jump_forward_string()
    tokens = check_ints("forced_draft", "tokenize's tokens", tokenize(text) if text else [], 0)
    if max(tokens, default=0) >= vocab_size:
        bad_value("forced_draft", "tokenize's tokens", f"must be < V = {vocab_size}", max(tokens))
    return tokens
