# SPDX-License-Identifier: Apache-2.0
"""Matchers of grammars: the methods that are asked of one, and two adapters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from torch import Tensor

from ._checks import bad_type, check_int, check_ints


class Matcher(Protocol):
    """A grammar and how much of a text it has read. `xgrammar.GrammarMatcher` is one.

    A stop token is accepted like any other token where the text may end.

    Example:
        `matcher.accept_token(5)` is True if token 5 may come next; the matcher then stands behind it.
    """

    def accept_token(self, token_id: int, /) -> bool:
        """Read a token in [0, V) if it may come next. If not, return False and change nothing."""

    def rollback(self, num_tokens: int, /) -> Any:
        """Forget the last `num_tokens` tokens. A matcher that has terminated can do so too."""

    def fill_next_token_bitmask(self, bitmask: Tensor, index: int, /) -> Any:
        """Write into row `index` of the [rows, ceil(V / 32)] int32 tensor which tokens may come next. Only
        called if the matcher has not terminated."""

    def is_terminated(self) -> bool:
        """Whether the text has ended, so that nothing may come next."""


METHODS = ("accept_token", "rollback", "fill_next_token_bitmask", "is_terminated")


def check_matcher(operation: str, argument: str, matcher: object, methods: Iterable[str] = METHODS) -> None:
    """Raise `TypeError` unless `matcher` has the methods."""
    for method in methods:
        if not callable(getattr(matcher, method, None)):
            bad_type(operation, argument, f"must have a method {method}", type(matcher).__name__)


class AfterToken:
    """A matcher that lets every token pass until `token` has come, and from there on is another matcher.

    For reasoning spans: the grammar holds after the token that ends the span, also where a draft has that
    token inside a tree.

    Args:
        matcher: reads what comes after the token.
        token: ends the span; the first one counts.

    Raises:
        TypeError: a matcher without the methods of `Matcher`, or a token that is no int.
        ValueError: a negative token.

    Example:
        >>> from specdec_kernels import AfterToken
        >>> AfterToken(xgrammar_matcher, token=7)  # doctest: +SKIP
    """

    def __init__(self, matcher: Matcher, token: int) -> None:
        check_matcher("AfterToken", "matcher", matcher)
        self._matcher = matcher
        self._token = check_int("AfterToken", "token", token, 0)
        self._inside: int | None = None  # tokens that the matcher has read; None before the span's end

    def accept_token(self, token_id: int) -> bool:
        if self._inside is None:
            if token_id == self._token:
                self._inside = 0
            return True
        accepted = self._matcher.accept_token(token_id)
        self._inside += accepted
        return accepted

    def rollback(self, num_tokens: int) -> None:
        if self._inside is None or num_tokens == 0:
            return
        inside = min(num_tokens, self._inside)
        if inside:
            self._matcher.rollback(inside)
        self._inside = None if num_tokens > inside else self._inside - inside

    def fill_next_token_bitmask(self, bitmask: Tensor, index: int) -> None:
        if self._inside is None:
            bitmask[index].fill_(-1)
        else:
            self._matcher.fill_next_token_bitmask(bitmask, index)

    def is_terminated(self) -> bool:
        return self._inside is not None and self._matcher.is_terminated()

    def find_jump_forward_string(self) -> str:
        """The string that has to come next; empty inside the span."""
        if self._inside is None:
            return ""
        check_matcher("AfterToken", "matcher", self._matcher, ["find_jump_forward_string"])
        matcher: Any = self._matcher
        return str(matcher.find_jump_forward_string())


class LLGuidanceMatcher:
    """A `Matcher` around `llguidance.LLMatcher`, whose methods have other names and whose errors are lasting.

    Args:
        matcher: an `llguidance.LLMatcher` without an error.
        stop_tokens: tokens that end the text where the grammar allows it: those of the tokenizer.

    Raises:
        TypeError: a matcher without llguidance's methods.
        ValueError: negative stop tokens; a matcher in an error state.

    Notes:
        A token is validated before it is consumed, because llguidance does not leave the error state that a
        refused token brings.

    Example:
        >>> from specdec_kernels import LLGuidanceMatcher
        >>> LLGuidanceMatcher(llguidance.LLMatcher(tokenizer, grammar), [2])  # doctest: +SKIP
    """

    def __init__(self, matcher: Any, stop_tokens: Iterable[int]) -> None:
        methods = ("validate_tokens", "consume_token", "rollback", "unsafe_compute_mask_ptr", "is_accepting")
        check_matcher("LLGuidanceMatcher", "matcher", matcher, (*methods, "compute_ff_bytes", "is_error"))
        self._stop_tokens = frozenset(check_ints("LLGuidanceMatcher", "stop_tokens", stop_tokens, 0))
        self._matcher = matcher
        self._ended = False  # by a stop token, which llguidance is not told of
        self._check("LLGuidanceMatcher")

    def accept_token(self, token_id: int) -> bool:
        if self._ended:
            return False
        if token_id in self._stop_tokens:
            self._ended = bool(self._matcher.is_accepting())
            return self._ended
        return bool(self._matcher.validate_tokens([token_id]) == 1 and self._matcher.consume_token(token_id))

    def rollback(self, num_tokens: int) -> None:
        if num_tokens and self._ended:
            self._ended, num_tokens = False, num_tokens - 1
        if num_tokens:
            self._matcher.rollback(num_tokens)
            self._check("LLGuidanceMatcher.rollback")

    def fill_next_token_bitmask(self, bitmask: Tensor, index: int) -> None:
        row = bitmask[index]
        self._matcher.unsafe_compute_mask_ptr(row.data_ptr(), row.numel() * row.element_size())

    def is_terminated(self) -> bool:
        return self._ended

    def find_jump_forward_string(self) -> str:
        """The string that has to come next, as far as it is whole characters."""
        return "" if self._ended else bytes(self._matcher.compute_ff_bytes()).decode(errors="ignore")

    def _check(self, operation: str) -> None:
        if self._matcher.is_error():
            raise ValueError(f"{operation}: matcher must have no error, got {self._matcher.get_error()}")
