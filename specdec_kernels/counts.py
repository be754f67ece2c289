# SPDX-License-Identifier: Apache-2.0
"""How often each token stands in the prompt and in the output of a request, on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from . import _ops
from ._checks import (
    INTEGERS,
    bad_type,
    bad_value,
    check_device,
    check_dim,
    check_dtype,
    check_int,
    check_ints,
    check_tensor,
    check_values,
    device_named,
    what,
)
from ._memory import check_contiguous
from ._ops.calls import CountTokensCall

UNUSED = 2**31 - 1  # the token of an unused place
TOKENS = (torch.int64, torch.int32)


class Emitted(Protocol):
    """What is counted of a `Verified`."""

    @property
    def tokens(self) -> Tensor: ...
    @property
    def num_tokens(self) -> Tensor: ...


class TokenCounts:
    """Counts of tokens, and the last tokens, of requests in slots: what `LogitEdits` counts.

    A slot has room for `capacity` distinct tokens, at 12 bytes each. One that needed more has overflowed:
    penalties leave its requests alone, `verify` sets `Status.OVERFLOW`, and nothing but `reset_` and
    `set_prompt_` makes it count again.

    Args:
        slots: number of slots.
        capacity: distinct tokens that a slot has room for, prompt and output together.
        vocab_size: V, the width of the logits.
        recent: T, number of last tokens that are kept; bad words of L tokens need L - 1.
        device: where the counts lie; default: the default device.

    Attributes:
        tokens: [slots, capacity] int32, ascending; unused places hold 2**31 - 1.
        prompt: [slots, capacity] int32, times in the prompt.
        output: [slots, capacity] int32, times in the output.
        sizes: [slots] int32, distinct tokens; capacity + 1 = overflowed.
        recent: [slots, T] int64, the last tokens, -1 on the left where there were fewer.
        vocab_size: V.

    Raises:
        ValueError: numbers out of range.
        TypeError: numbers that are no ints.

    Example:
        >>> counts = TokenCounts(slots=2, capacity=4, vocab_size=10)
        >>> counts.set_prompt_([0], torch.tensor([[7, 3, 7]]))
        >>> counts.update_(torch.tensor([3, 5]))  # of slots 0 and 1
        >>> counts.sizes.tolist(), counts.tokens[0, :2].tolist()
        ([2, 1], [3, 7])
        >>> counts.prompt[0, :2].tolist(), counts.output[0, :2].tolist()
        ([1, 2], [1, 0])
        >>> counts
        TokenCounts(slots=2, capacity=4, vocab_size=10, recent=0, device=cpu)
    """

    def __init__(
        self,
        slots: int,
        capacity: int,
        vocab_size: int,
        *,
        recent: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        call = "TokenCounts"
        slots = check_int(call, "slots", slots, 0, UNUSED)
        capacity = check_int(call, "capacity", capacity, 1, UNUSED - 1)
        self.vocab_size: int = check_int(call, "vocab_size", vocab_size, 1, UNUSED)
        width = check_int(call, "recent", recent, 0, UNUSED)
        device = device_named(call, device)
        place = (slots, capacity)
        self.tokens: Tensor = torch.full(place, UNUSED, dtype=torch.int32, device=device)
        self.prompt: Tensor = torch.zeros(place, dtype=torch.int32, device=device)
        self.output: Tensor = torch.zeros(place, dtype=torch.int32, device=device)
        self.sizes: Tensor = torch.zeros(slots, dtype=torch.int32, device=device)
        self.recent: Tensor = torch.full((slots, width), -1, dtype=torch.int64, device=device)

    @property
    def slots(self) -> int:
        """Number of slots."""
        return self.sizes.shape[0]

    @property
    def capacity(self) -> int:
        """Distinct tokens that a slot has room for."""
        return self.tokens.shape[1]

    @property
    def overflowed(self) -> Tensor:
        """[slots] bool: slots that needed more than their capacity."""
        return self.sizes > self.capacity

    def __repr__(self) -> str:
        sizes = f"slots={self.slots}, capacity={self.capacity}, vocab_size={self.vocab_size}"
        return f"TokenCounts({sizes}, recent={self.recent.shape[1]}, device={self.sizes.device})"

    def reset_(self, slots: Tensor | Sequence[int] | None = None) -> None:
        """Forget all tokens of these slots.

        Args:
            slots: the slots, as a list or as a tensor [n] on the device of the counts; default: all.

        Raises:
            ValueError: slots out of range in a list.
            TypeError: neither a list of ints nor a tensor of integers.

        Notes:
            Does not synchronise. Numbers out of range in a tensor name no slot.
        """
        every = torch.arange(self.slots, device=self.sizes.device)
        chosen = every if slots is None else self._chosen("TokenCounts.reset_", slots)
        named = (every[:, None] == chosen).any(1)
        self.tokens.masked_fill_(named[:, None], UNUSED)
        self.sizes.masked_fill_(named, 0)
        for counts in (self.prompt, self.output):
            counts.masked_fill_(named[:, None], 0)
        self.recent.masked_fill_(named[:, None], -1)

    def set_prompt_(
        self,
        slots: Tensor | Sequence[int],
        tokens: Tensor,
        lengths: Tensor | Sequence[int] | None = None,
        num_output: Tensor | Sequence[int] | None = None,
    ) -> None:
        """Begin these slots with a text: forget what they hold, and count its tokens.

        Args:
            slots: n distinct slots, as a list or a tensor [n].
            tokens: [n, L] integers, the prompts; what lies at or past `lengths` is ignored.
            lengths: [n] lengths of the texts; default: L for each.
            num_output: [n], how many of a text's last tokens count as output, as for a request that goes on
                after it was pushed out; default: none.

        Raises:
            ValueError: wrong shapes; slots, tokens or lengths out of range; before anything has changed.
            TypeError: wrong dtypes or devices.

        Notes:
            Synchronises with the device, and works request by request. A text of more than `capacity`
            distinct tokens leaves its slot overflowed.
        """
        call = "TokenCounts.set_prompt_"
        chosen = self._chosen(call, slots).tolist()
        self._check_slots(call, chosen)
        check_dtype(call, "tokens", tokens, INTEGERS)
        check_dim(call, "tokens", tokens, 2, "[n, L]")
        check_values(call, "tokens", tokens)
        count, longest = tokens.shape
        if count != len(chosen):
            bad_value(
                call, "tokens", f"must have shape [n, L] with n = {len(chosen)} slots", [count, longest]
            )
        ends = self._numbers(call, "lengths", lengths, [longest] * count, [longest] * count)
        outputs = self._numbers(call, "num_output", num_output, [0] * count, ends)
        texts = [text[:end] for text, end in zip(tokens.long().cpu(), ends, strict=True)]
        for i, text in enumerate(texts):
            outside = (text < 0) | (text >= self.vocab_size)
            if bool(outside.any()):
                got = f"{int(text[outside][0])} in text {i}"
                bad_value(call, "tokens", f"must be in [0, V) = [0, {self.vocab_size})", got)
        self.reset_(chosen)
        for slot, text, last in zip(chosen, texts, outputs, strict=True):
            self._count_text(slot, text, text.shape[0] - last)

    def update_(
        self, verified: Emitted | Tensor, slots: Tensor | None = None, *, backend: str = "auto"
    ) -> None:
        """Count what a step emitted, as output.

        Args:
            verified: a `Verified`; or tokens [B] or [B, W] int64 | int32, of which those outside [0, V)
                are not counted, for tokens that `sample` drew.
            slots: [B] int64, the slot of each request, -1 = none: a padding slot of a batch. Default:
                request b has slot b. Those of one call are distinct.
            backend: "auto", "reference", "cpu" or "triton".

        Raises:
            ValueError: wrong shapes; more requests than slots, without `slots`.
            TypeError: wrong dtypes or devices.
            BackendUnavailable: the named backend cannot serve the call.

        Notes:
            Never synchronises, and can be captured in a CUDA graph. Slots out of range count as none. A step
            whose new tokens do not fit changes nothing but `recent`, and marks the slot as overflowed.
        """
        call, device = "TokenCounts.update_", self.sizes.device
        tokens, num_tokens = _emitted(call, verified)
        check_dtype(call, "verified.tokens", tokens, TOKENS)
        if tokens.dim() == 1:
            tokens = tokens.unsqueeze(1)
        check_dim(call, "verified.tokens", tokens, 2, "[B, W]")
        check_device(call, "verified.tokens", tokens, device)
        batch = tokens.shape[0]
        if num_tokens is not None:
            check_tensor(call, "verified.num_tokens", num_tokens, "[B]", (batch,), (torch.int32,), device)
        self._check_tensors(call, "self", self.vocab_size, device)
        self._check_named(call, "slots", slots, batch)
        arguments = CountTokensCall(
            tokens=tokens.contiguous(),
            num_tokens=None if num_tokens is None else num_tokens.contiguous(),
            slots=None if slots is None else slots.contiguous(),
            vocab_size=self.vocab_size,
            counts_tokens=self.tokens,
            counts_prompt=self.prompt,
            counts_output=self.output,
            counts_sizes=self.sizes,
            counts_recent=self.recent,
        )
        _ops.count_tokens(arguments, backend)

    def _check_tensors(self, operation: str, argument: str, vocab: int, device: torch.device) -> None:
        """Raise unless these are counts of a vocabulary of this size on this device. Reads no values."""
        if self.vocab_size != vocab:
            bad_value(operation, argument, f"must have vocab_size V = {vocab}", self.vocab_size)
        place, integers = (self.slots, self.capacity), (torch.int32,)
        for name, symbols, shape, dtypes in (
            ("tokens", "[slots, capacity]", place, integers),
            ("prompt", "[slots, capacity]", place, integers),
            ("output", "[slots, capacity]", place, integers),
            ("sizes", "[slots]", place[:1], integers),
            ("recent", "[slots, T]", (self.slots, self.recent.shape[-1]), (torch.int64,)),
        ):
            tensor = getattr(self, name)
            check_tensor(operation, f"{argument}.{name}", tensor, symbols, shape, dtypes, device)
            check_contiguous(operation, f"{argument}.{name}", tensor)

    def _check_named(self, operation: str, argument: str, slots: Tensor | None, batch: int) -> None:
        """Raise unless `slots` can name a slot for each of `batch` requests. Reads no values."""
        if slots is not None:
            check_tensor(operation, argument, slots, "[B]", (batch,), (torch.int64,), self.sizes.device)
        elif batch > self.slots:
            rule = f"must be given where there are more requests than slots, {self.slots}"
            bad_value(operation, argument, rule, f"None for {batch} requests")

    def _chosen(self, operation: str, slots: Tensor | Sequence[int]) -> Tensor:
        if isinstance(slots, Tensor):
            check_dtype(operation, "slots", slots, INTEGERS)
            check_dim(operation, "slots", slots, 1, "[n]")
            check_device(operation, "slots", slots, self.sizes.device)
            return slots.long()
        given = check_ints(operation, "slots", slots)
        self._check_slots(operation, given)
        return torch.tensor(given, dtype=torch.int64, device=self.sizes.device)

    def _check_slots(self, operation: str, slots: list[int]) -> None:
        for slot in slots:
            if not 0 <= slot < self.slots:
                bad_value(operation, "slots", f"must be in [0, slots) = [0, {self.slots})", slot)
        if len(set(slots)) < len(slots):
            bad_value(operation, "slots", "must be distinct", slots)

    def _numbers(
        self,
        operation: str,
        argument: str,
        given: Tensor | Sequence[int] | None,
        default: list[int],
        most: list[int],
    ) -> list[int]:
        """The numbers of texts, in [0, most]."""
        if given is None:
            return default
        if isinstance(given, Tensor):
            check_dtype(operation, argument, given, INTEGERS)
            check_dim(operation, argument, given, 1, "[n]")
            given = given.tolist()
        numbers = check_ints(operation, argument, given, 0)
        if len(numbers) != len(most):
            bad_value(operation, argument, f"must have shape [n] = [{len(most)}]", [len(numbers)])
        for i, (number, limit) in enumerate(zip(numbers, most, strict=True)):
            if number > limit:
                bad_value(operation, argument, f"must be in [0, {limit}]", f"{number} of text {i}")
        return numbers

    def _count_text(self, slot: int, text: Tensor, prompt: int) -> None:
        """Fill an empty slot; the first `prompt` tokens are the prompt."""
        kept = min(self.recent.shape[1], text.shape[0])
        if kept:
            self.recent[slot, -kept:] = text[-kept:].to(self.recent.device)
        distinct, place = text.unique(return_inverse=True)
        size = distinct.shape[0]
        self.sizes[slot] = min(size, self.capacity + 1)
        if size > self.capacity:
            return
        self.tokens[slot, :size] = distinct.to(self.tokens)
        for counts, part in ((self.prompt, place[:prompt]), (self.output, place[prompt:])):
            counts[slot, :size] = part.bincount(minlength=size).to(counts)


def _emitted(operation: str, verified: object) -> tuple[Tensor, Tensor | None]:
    if isinstance(verified, Tensor):
        return verified, None
    tokens, num_tokens = getattr(verified, "tokens", None), getattr(verified, "num_tokens", None)
    if not isinstance(tokens, Tensor) or not isinstance(num_tokens, Tensor):
        bad_type(operation, "verified", "must be a Verified or a tensor", what(verified))
    return tokens, num_tokens
