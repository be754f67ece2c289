# SPDX-License-Identifier: Apache-2.0
"""What is reported of emitted tokens: log-probabilities, the likeliest tokens, and sampling masks."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ._checks import bad_type, bad_value, check_dim, check_int, check_name, check_tensor, check_type
from ._memory import check_contiguous

KINDS = ("processed", "raw", "temperature")
FORMS = ("bits", "ids")
MOST_TOP = 20
_NUMBERS = (torch.int32,)
_PROBS = (torch.float32,)


class Logprobs(NamedTuple):
    """Which log-probabilities `verify` and `sample` report of every emitted token.

    Args:
        kind: `"processed"`: under the law that was verified and drawn from, after bitmask, temperature and
            cuts. `"raw"`: under `log_softmax` of the row as it was given, without bitmask, temperature and
            cuts. `"temperature"`: the same after temperature alone; at temperature 0 as `"raw"`.
        top: in [0, 20], how many of the likeliest tokens are reported. Among equally likely tokens the lowest
            comes first.
        chosen: [B, m] int64, tokens of each request whose log-probabilities are reported at every position;
            those outside [0, V) count as none.

    The operation that takes it checks it.

    Example:
        >>> Logprobs("raw", top=5)
        Logprobs(kind='raw', top=5, chosen=None)
    """

    kind: Literal["processed", "raw", "temperature"] = "processed"
    top: int = 0
    chosen: Tensor | None = None


class Masks(NamedTuple):
    """In which form `verify` reports the tokens that bitmask and cuts left at every emitted position.

    Args:
        form: `"bits"`: a bit for each token of the vocabulary. `"ids"`: their numbers, one position after the
            other.
        capacity: of `"ids"`, for the whole batch; >= 1 there, and 0 with `"bits"`.
        mass: whether to report how much of the law is left. Where top-k cuts, this is the only use of the
            exponentials of all scores, so a CPU is faster without. On a GPU it changes nothing.

    The operation that takes it checks it.

    Example:
        >>> Masks("ids", capacity=4096)
        Masks(form='ids', capacity=4096, mass=True)
    """

    form: Literal["bits", "ids"] = "bits"
    capacity: int = 0
    mass: bool = True


class MasksForm(NamedTuple):
    """`Masks`, checked."""

    bits: bool  # or ids
    capacity: int
    mass: bool


class SamplingMasks(NamedTuple):
    """The tokens with a probability above 0 under the processed law, at every emitted position.

    Position (b, i) is that of `Verified.tokens[b, i]`, W = max_depth + 1. Where nothing was emitted, or the
    target has no row, there are no tokens.
    """

    bits: Tensor | None
    """[B, W, ceil(V / 32)] int32, bit `x % 32` of word `x // 32` set = token x was left; None with "ids"."""
    ids: Tensor | None
    """[capacity] int64: the tokens of all positions one after the other, ascending at each, then -1; None
    with "bits". What does not fit is left out, and sets `Status.OVERFLOW` of its request."""
    offsets: Tensor | None
    """[B * W + 1] int64: position (b, i) has the ids from `offsets[b * W + i]` to before
    `offsets[b * W + i + 1]`, which may lie beyond the capacity; None with "bits"."""
    counts: Tensor
    """[B, W] int32: how many tokens were left; right whatever the capacity is."""
    mass: Tensor | None
    """[B, W] float32: how much of the law after bitmask and temperature they hold; nan where there is no
    law; None with `Masks(mass=False)`."""


class Sampled(NamedTuple):
    """What `sample(return_logprobs=Logprobs(...))` returns, one row per request."""

    tokens: Tensor
    """[B] int64 in [0, V)."""
    logprobs: Tensor
    """[B] float32, of `tokens` under the kind of law that `Logprobs` names."""
    top_logprobs: Tensor | None
    """[B, top] float32, descending; nan where there are fewer tokens; None with top = 0."""
    top_tokens: Tensor | None
    """[B, top] int64, whose these are; -1 where there are fewer; None with top = 0."""
    ranks: Tensor
    """[B] int32 of `tokens`: 1 + how many tokens are likelier."""
    chosen_logprobs: Tensor | None
    """[B, m] float32 of `Logprobs.chosen`; nan for what is no token."""


class Reported(NamedTuple):
    """What `Logprobs` asks for, as a backend fills it. A part that was not asked for has no elements."""

    top_logprobs: Tensor  # [B, W, top] float32
    top_tokens: Tensor  # [B, W, top] int64
    ranks: Tensor  # [B, W] int32
    chosen_logprobs: Tensor  # [B, W, m] float32


def check_logprobs(
    operation: str, logprobs: Logprobs, batch: int, device: torch.device
) -> tuple[int, Tensor | None]:
    """How many of the likeliest tokens are reported, and the chosen tokens."""
    check_type(operation, "return_logprobs", logprobs, Logprobs, "a bool or a Logprobs")
    check_name(operation, "return_logprobs.kind", logprobs.kind, KINDS)
    top = check_int(operation, "return_logprobs.top", logprobs.top, 0, MOST_TOP)
    chosen = logprobs.chosen
    if chosen is None:
        return top, None
    name = "return_logprobs.chosen"
    if isinstance(chosen, Tensor):
        check_dim(operation, name, chosen, 2, "[B, m]")
        check_tensor(operation, name, chosen, "[B, m]", (batch, chosen.shape[1]), (torch.int64,), device)
        return top, chosen.contiguous()
    bad_type(operation, name, "must be a tensor", type(chosen).__name__)


def sampled(tokens: Tensor, logprobs: Tensor, parts: Reported, chosen: Tensor | None) -> Sampled:
    """The result of `sample`, of outputs with one position."""
    top = parts.top_tokens.shape[-1] > 0
    return Sampled(
        tokens,
        logprobs,
        parts.top_logprobs.squeeze(1) if top else None,
        parts.top_tokens.squeeze(1) if top else None,
        parts.ranks.squeeze(1),
        None if chosen is None else parts.chosen_logprobs.squeeze(1),
    )


def reported(batch: int, width: int, top: int, chosen: Tensor | None, device: torch.device) -> Reported:
    """Outputs of `Logprobs`, not filled."""
    count = 0 if chosen is None else chosen.shape[1]
    return Reported(
        torch.empty((batch, width, top), dtype=torch.float32, device=device),
        torch.empty((batch, width, top), dtype=torch.int64, device=device),
        torch.empty((batch, width), dtype=torch.int32, device=device),
        torch.empty((batch, width, count), dtype=torch.float32, device=device),
    )


def check_reported(
    given: tuple[Tensor | None, ...],
    batch: int,
    width: int,
    top: int,
    chosen: Tensor | None,
    device: torch.device,
) -> Reported:
    """The outputs of `Logprobs` in `out`, which `given` has in their order. Raise unless those that are asked
    for are there."""
    count = 0 if chosen is None else chosen.shape[1]
    names, tops = ("top_logprobs", "top_tokens", "ranks", "chosen_logprobs"), (batch, width, top)
    wanted = (
        (top > 0, "top > 0", "[B, W, top]", tops, _PROBS),
        (top > 0, "top > 0", "[B, W, top]", tops, (torch.int64,)),
        (True, "Logprobs", "[B, W]", (batch, width), _NUMBERS),
        (chosen is not None, "chosen", "[B, W, m]", (batch, width, count), _PROBS),
    )
    found = reported(batch, width, 0, None, device)
    filled: list[Tensor] = []
    for name, value, (asked, by, symbols, shape, dtypes), empty in zip(
        names, given, wanted, found, strict=True
    ):
        if (value is not None) != asked:
            rule = f"must be {'a tensor with' if asked else 'None without'} return_logprobs of {by}"
            bad_value("verify", f"out.{name}", rule, "None" if value is None else "a tensor")
        if value is None:
            filled.append(empty)
            continue
        check_tensor("verify", f"out.{name}", value, symbols, shape, dtypes, device)
        check_contiguous("verify", f"out.{name}", value)
        filled.append(value)
    return Reported(*filled)


def check_masks(operation: str, masks: object) -> MasksForm:
    """What is asked for."""
    if not isinstance(masks, Masks):
        bad_type(operation, "return_masks", "must be a Masks or None", type(masks).__name__)
    check_name(operation, "return_masks.form", masks.form, FORMS)
    bits = masks.form == "bits"
    capacity = check_int(operation, "return_masks.capacity", masks.capacity, 0)
    if (capacity > 0) == bits:
        rule = "must be 0 with form 'bits'" if bits else "must be >= 1 with form 'ids'"
        bad_value(operation, "return_masks.capacity", rule, capacity)
    check_type(operation, "return_masks.mass", masks.mass, bool, "a bool")
    return MasksForm(bits, capacity, masks.mass)


def sampling_masks(
    batch: int, width: int, vocab: int, form: MasksForm, device: torch.device
) -> SamplingMasks:
    """Masks of a form, not filled."""
    bits, capacity, mass = form
    words = -(-vocab // 32)
    return SamplingMasks(
        torch.empty((batch, width, words), dtype=torch.int32, device=device) if bits else None,
        None if bits else torch.empty(capacity, dtype=torch.int64, device=device),
        None if bits else torch.empty(batch * width + 1, dtype=torch.int64, device=device),
        torch.empty((batch, width), dtype=torch.int32, device=device),
        torch.empty((batch, width), dtype=torch.float32, device=device) if mass else None,
    )


def check_sampling_masks(
    given: object, batch: int, width: int, vocab: int, form: MasksForm, device: torch.device
) -> SamplingMasks:
    """The masks in `out`. Raise unless they are of the form."""
    if not isinstance(given, SamplingMasks):
        rule = "must be a SamplingMasks with return_masks"
        bad_type("verify", "out.masks", rule, type(given).__name__)
    bits, capacity, mass = form
    grid, words = ("[B, W]", (batch, width)), -(-vocab // 32)
    for name, asked, (symbols, shape), dtypes in (
        ("bits", bits, ("[B, W, ceil(V / 32)]", (batch, width, words)), _NUMBERS),
        ("ids", not bits, ("[capacity]", (capacity,)), (torch.int64,)),
        ("offsets", not bits, ("[B * W + 1]", (batch * width + 1,)), (torch.int64,)),
        ("counts", True, grid, _NUMBERS),
        ("mass", mass, grid, _PROBS),
    ):
        value = getattr(given, name)
        if not asked:
            if value is not None:
                option = "mass=False" if name == "mass" else f"form {'bits' if bits else 'ids'!r}"
                rule = f"must be None with {option}"
                bad_value("verify", f"out.masks.{name}", rule, "a tensor")
            continue
        check_tensor("verify", f"out.masks.{name}", value, symbols, shape, dtypes, device)
        check_contiguous("verify", f"out.masks.{name}", value)
    return given


def in_call(masks: SamplingMasks) -> list[Tensor]:
    """The tensors of masks in the order of a call: counts and mass, which is empty where it is not asked for,
    then bits, or ids and offsets."""
    mass = masks.counts.new_empty(0, dtype=torch.float32) if masks.mass is None else masks.mass
    return [masks.counts, mass, *(t for t in masks[:3] if t is not None)]
