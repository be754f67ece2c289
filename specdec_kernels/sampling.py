# SPDX-License-Identifier: Apache-2.0
"""Sampling parameters, which turn a row of logits into a law; reduced draft vocabularies; and `sample`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache, wraps
from numbers import Integral
from typing import Any, Literal, NamedTuple, TypeVar, overload

import torch
from torch import Tensor

from . import _debug, _ops
from ._checks import (
    FLOATS,
    INF,
    INTEGERS,
    bad_value,
    check_dim,
    check_dtype,
    check_int,
    check_name,
    check_number,
    check_tensor,
    check_type,
    what,
)
from ._memory import check_last_stride
from ._ops.calls import SampleCall
from .edits import LogitEdits, unpack_edits
from .reporting import Logprobs, Sampled, check_logprobs, reported, sampled

Numbers = tuple[list[float], list[Tensor | None]]
Class = TypeVar("Class", bound=type)

ORDERS = ("min_p_first", "min_p_last")
_RANGES = {"temperature": (0.0, INF), "top_k": (-1, INF), "top_p": (0.0, 1.0), "min_p": (0.0, 1.0)}


def _checked(cls: Class) -> Class:
    """Make a NamedTuple of sampling parameters check its fields, in `_replace` and unpickling too.

    The class stays the one that `NamedTuple` made. A subclass with its own `__new__` would not count as a
    named tuple for `torch.compile` and for older pytrees. Compiled code skips the check, so `unpack` checks
    there.
    """
    named: Any = cls
    plain, defaults = named.__new__, tuple(named._field_defaults.values())

    def as_it_is(value: object, default: object) -> bool:
        """Whether nothing has to be checked."""
        return isinstance(value, Tensor) or (type(value) is type(default) and value == default)

    @wraps(plain)
    def new(cls: Any, *args: object, **kwargs: object) -> Any:
        given = plain(cls, *args, **kwargs)
        *values, order = given
        if type(order) is str and order in ORDERS and all(map(as_it_is, values, defaults)):
            return given
        for place, (name, value) in enumerate(zip(_RANGES, values, strict=True)):
            if not as_it_is(value, defaults[place]):
                values[place] = _number("SamplingParams", name, value, *_RANGES[name])
        check_name("SamplingParams", "order", order, ORDERS)
        return plain(cls, *values, order)

    named.__new__ = new
    named._make = classmethod(lambda cls, values: cls(*values))
    return cls


@_checked
class SamplingParams(NamedTuple):
    """How logits become a law: temperature, then min-p, top-k, and top-p on the renormalised rest.

    Let `p = softmax(logits / temperature)`. min-p keeps tokens with `p >= min_p * max p`. top-k keeps the k
    largest. top-p keeps a token if the mass of kept tokens with strictly greater p is below `top_p` of the
    kept mass. A cut is a threshold: a token tied with the last kept one is kept. One token is always kept.

    With `order="min_p_last"` top-k and top-p act as if `min_p` were 0, and min-p then acts on the tokens that
    they kept. That is the order of transformers.

    Args:
        temperature: >= 0; 0 is greedy, and the lowest index wins a tie.
        top_k: an integer >= -1; 0 or -1 = off. A float must be a whole number.
        top_p: in [0, 1]; 1 = off.
        min_p: in [0, 1]; 0 = off.
        order: "min_p_first" or "min_p_last", the same for all requests.

    Each argument but `order` is a number or a [B] tensor (integer or floating) of values per request. Numbers
    are checked here; scalars of numpy are converted. The operation that takes the parameters checks shape,
    dtype and device of tensors. Values of tensors are checked only with `SPECDEC_DEBUG=1` in the environment,
    which synchronises. Otherwise a value out of range acts as the nearest value in range.

    Raises:
        ValueError: a number out of range, a fractional `top_k`, an unknown `order`.
        TypeError: neither a number nor a tensor, or an `order` that is not a string.

    Example:
        >>> SamplingParams(temperature=0.8, top_p=torch.tensor([0.9, 1.0])).top_k
        0
        >>> SamplingParams(0.8, 0.95)
        Traceback (most recent call last):
        ValueError: SamplingParams: top_k must be an integer (keywords keep top_k and top_p apart), got 0.95
    """

    temperature: float | Tensor = 1.0
    top_k: int | Tensor = 0
    top_p: float | Tensor = 1.0
    min_p: float | Tensor = 0.0
    order: str = "min_p_first"


def unpack(
    operation: str, argument: str, params: SamplingParams, batch: int, device: torch.device
) -> Numbers:
    """The four numbers (defaults if given per request) with 1 for min-p last, else 0; and a list of the four
    tensors, empty if nothing is given per request."""
    check_type(operation, argument, params, SamplingParams, "a SamplingParams")
    if not torch.compiler.is_compiling() and _HASHED.issuperset(map(type, params)):
        return _unpack_numbers(operation, argument, params)
    return _unpack(operation, argument, params, batch, device)


_HASHED = frozenset((int, float, str))
_NUMBERS = FLOATS + INTEGERS
_DEFAULTS = {name: float(SamplingParams._field_defaults[name]) for name in _RANGES}


@lru_cache(maxsize=256)
def _unpack_numbers(operation: str, argument: str, params: SamplingParams) -> Numbers:
    return _unpack(operation, argument, params, 0, torch.device("cpu"))


def _unpack(
    operation: str, argument: str, params: SamplingParams, batch: int, device: torch.device
) -> Numbers:
    numbers: list[float] = []
    rows: list[Tensor | None] = []
    *values, order = params
    given = False
    for name, value in zip(_RANGES, values, strict=True):  # torch 2.6 compiles zip in this form only
        if isinstance(value, Tensor):
            full = f"{argument}.{name}"
            check_tensor(operation, full, value, "[B]", (batch,), _NUMBERS, device)
            if _debug.enabled():
                _debug.check_range(operation, full, value, *_RANGES[name])
            numbers.append(_DEFAULTS[name])
            rows.append(value.contiguous())
            given = True
        else:
            if torch.compiler.is_compiling():
                value = _number(operation, f"{argument}.{name}", value, *_RANGES[name])
            numbers.append(float(value))
            rows.append(None)
    check_name(operation, f"{argument}.order", order, ORDERS)
    last = float(order == "min_p_last")
    return [*numbers, last], rows if given else []


def _number(operation: str, argument: str, value: object, low: float, high: float) -> int | float:
    number = check_number(operation, argument, value, low, high, noun="a number or a [B] tensor")
    if argument.endswith("top_k") and number != int(number):
        bad_value(operation, argument, "must be an integer (keywords keep top_k and top_p apart)", value)
    return int(value) if isinstance(value, Integral) else number


PLAIN = SamplingParams()


def per_request(params: SamplingParams, change: Callable[[Tensor], Tensor]) -> SamplingParams:
    """The parameters with their [B] tensors changed, and their numbers as they are."""
    values: Iterable[Any] = (
        change(value) if isinstance(value, Tensor) and value.dim() else value for value in params
    )
    return SamplingParams(*values)


class DraftVocab:
    """A reduced draft vocabulary: column j of the draft logits stands for target token `ids[j]`.

    Build it once; it keeps the inverse map on the device.

    Args:
        ids: [Vd] int64, distinct target tokens in [0, vocab_size). On CPU tensors the values are checked.
        vocab_size: V, the width of the target logits.

    Attributes:
        ids: [Vd] int64.
        columns: [V] int32, the column of every target token, -1 = none.
        vocab_size: V.

    Raises:
        ValueError: ids out of range or repeated.
        TypeError: ids of another dtype, a `vocab_size` that is not an int.

    Example:
        >>> DraftVocab(torch.tensor([3, 0]), vocab_size=4).columns.tolist()
        [1, -1, -1, 0]
    """

    def __init__(self, ids: Tensor, vocab_size: int) -> None:
        check_dtype("DraftVocab", "ids", ids, (torch.int64,))
        if ids.dim() != 1 or ids.shape[0] < 1:
            bad_value("DraftVocab", "ids", "must have shape [Vd], Vd >= 1", list(ids.shape))
        vocab_size = check_int("DraftVocab", "vocab_size", vocab_size, 1)
        if ids.device.type == "cpu":
            _check_ids("DraftVocab", "ids", ids, vocab_size)
        self.ids: Tensor = ids.contiguous()
        self.vocab_size = vocab_size
        column = torch.arange(ids.shape[0], dtype=torch.int32, device=ids.device)
        inside = torch.where((ids >= 0) & (ids < vocab_size), ids, vocab_size)
        columns = torch.full((vocab_size + 1,), -1, dtype=torch.int32, device=ids.device)
        self.columns: Tensor = columns.scatter_(0, inside, column)[:vocab_size].clone()

    @classmethod
    def from_offsets(cls, d2t: Tensor, vocab_size: int) -> DraftVocab:
        """From EAGLE-3's offsets: column j stands for token `j + d2t[j]`.

        Args:
            d2t: [Vd] integers.
            vocab_size: V, the width of the target logits.

        Returns:
            `DraftVocab`.

        Raises:
            ValueError: tokens out of range or repeated.
            TypeError: offsets of another dtype, a `vocab_size` that is not an int.

        Example:
            >>> DraftVocab.from_offsets(torch.tensor([0, 2, 2]), vocab_size=5).ids.tolist()
            [0, 3, 4]
        """
        operation = "DraftVocab.from_offsets"
        check_dtype(operation, "d2t", d2t, INTEGERS)
        if d2t.dim() != 1 or d2t.shape[0] < 1:
            bad_value(operation, "d2t", "must have shape [Vd], Vd >= 1", list(d2t.shape))
        vocab_size = check_int(operation, "vocab_size", vocab_size, 1)
        ids = torch.arange(d2t.shape[0], device=d2t.device) + d2t
        if ids.device.type == "cpu":
            _check_ids(operation, "the tokens of d2t", ids, vocab_size)
        return cls(ids, vocab_size)

    def __repr__(self) -> str:
        return f"DraftVocab(Vd={self.ids.shape[0]}, vocab_size={self.vocab_size}, device={self.ids.device})"


def _check_ids(operation: str, argument: str, ids: Tensor, vocab_size: int) -> None:
    outside = (ids < 0) | (ids >= vocab_size)
    if bool(outside.any()):
        column = int(outside.nonzero()[0])
        rule = f"must be in [0, V) = [0, {vocab_size})"
        bad_value(operation, argument, rule, f"{int(ids[column])} at column {column}")
    distinct, count = ids.unique(return_counts=True)
    if distinct.numel() < ids.numel():
        bad_value(operation, argument, "must be distinct", f"{int(distinct[count > 1][0])} more than once")


@overload
def sample(
    logits: Tensor,
    sampling: SamplingParams = PLAIN,
    *,
    seeds: Tensor | None = None,
    positions: Tensor | None = None,
    token_bitmask: Tensor | None = None,
    edits: LogitEdits | None = None,
    return_logprobs: Literal[False] = False,
    backend: str = "auto",
) -> Tensor: ...


@overload
def sample(
    logits: Tensor,
    sampling: SamplingParams = PLAIN,
    *,
    seeds: Tensor | None = None,
    positions: Tensor | None = None,
    token_bitmask: Tensor | None = None,
    edits: LogitEdits | None = None,
    return_logprobs: Literal[True],
    backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...


@overload
def sample(
    logits: Tensor,
    sampling: SamplingParams = PLAIN,
    *,
    seeds: Tensor | None = None,
    positions: Tensor | None = None,
    token_bitmask: Tensor | None = None,
    edits: LogitEdits | None = None,
    return_logprobs: Logprobs,
    backend: str = "auto",
) -> Sampled: ...


@overload
def sample(
    logits: Tensor,
    sampling: SamplingParams = PLAIN,
    *,
    seeds: Tensor | None = None,
    positions: Tensor | None = None,
    token_bitmask: Tensor | None = None,
    edits: LogitEdits | None = None,
    return_logprobs: bool | Logprobs,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor] | Sampled: ...


def sample(
    logits: Tensor,
    sampling: SamplingParams = PLAIN,
    *,
    seeds: Tensor | None = None,
    positions: Tensor | None = None,
    token_bitmask: Tensor | None = None,
    edits: LogitEdits | None = None,
    return_logprobs: bool | Logprobs = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor] | Sampled:
    """Draw one token from every row, with the noise that `verify(rule="match")` uses.

    The token of row b is `argmax_x p(x) / E(x)`. Here p is the processed law, and E are standard exponential
    keys that depend on (`seeds[b]`, `positions[b]`, x) alone.

    Use it for the target's own tokens, in plain decoding, where each position is sampled once. Do not draft
    with it and seeds: a position that was drafted and rejected in one step is drafted again in the next step
    with the same noise, whatever the seeds are. The output of rule `traversal` then does not have the
    target's law. Draft chains with `draft_token` and trees with `sample_children`, whose noise is new in
    every step.

    Args:
        logits: [B, V] float32 | bfloat16 | float16, last stride 1.
        sampling: turns a row into a law.
        seeds: [B] int64; default: fresh seeds from the default generator of the device.
        positions: [B] int64, the index in its sequence of the token to draw; only with `seeds`.
        token_bitmask: [B, ceil(V / 32)] int32, bit `x % 32` of word `x // 32` set = token x allowed.
        edits: penalties, biases, bans and forced tokens, made in each row where it is read. No token of a
            path is counted. A request whose slot has overflowed has no penalties: `TokenCounts.overflowed`.
        return_logprobs: also return the log-probability of each token under the processed law; or what a
            `Logprobs` asks for.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        tokens [B] int64 in [0, V), and with `return_logprobs` their log-probabilities [B] float32; with a
        `Logprobs` a `Sampled`.

    Raises:
        ValueError: wrong shapes, numbers out of range, seeds without positions or positions without seeds.
        TypeError: wrong dtypes or devices.
        BackendUnavailable: the named backend cannot serve the call.

    Notes:
        Never synchronises. With seeds the result depends on (seed, position, row) only, not on the batch or
        the number of threads. NaN counts as `-inf`. `+inf` entries share all the mass. A row without a
        possible token gives its lowest allowed token. Float64 rows are served by the reference.

    Source: the exponential race (Gumbel-max); Maddison et al. 2014, A* Sampling.

    Example:
        >>> logits = torch.tensor([[0.0, 5.0, 1.0], [2.0, 0.0, 1.0]])
        >>> sample(logits, SamplingParams(temperature=0.0)).tolist()
        [1, 0]
        >>> seeds, positions = torch.tensor([1, 1]), torch.tensor([10, 11])
        >>> first = sample(logits, seeds=seeds, positions=positions)
        >>> bool((first == sample(logits, seeds=seeds, positions=positions)).all())
        True
    """
    check_dtype("sample", "logits", logits, FLOATS)
    check_dim("sample", "logits", logits, 2, "[B, V]")
    check_last_stride("sample", "logits", logits)
    batch, vocab = logits.shape
    device = logits.device
    numbers, rows = unpack("sample", "sampling", sampling, batch, device)
    seeds, positions = noise_keys("sample", seeds, positions, batch, device)
    kind, chosen, report = "processed", None, None
    if return_logprobs is not True and return_logprobs is not False:
        top, chosen = check_logprobs("sample", return_logprobs, batch, device)
        kind, report = return_logprobs.kind, reported(batch, 1, top, chosen, device)
    check_bitmask("sample", token_bitmask, "[B, ceil(V / 32)]", batch, vocab, device)
    edit_tensors, edit_numbers = unpack_edits("sample", edits, batch, vocab, device)
    if _debug.enabled():
        _debug.check_logits("sample", "logits", logits)
    tokens = torch.empty(batch, dtype=torch.int64, device=device)
    logprobs = (
        torch.empty(batch, dtype=torch.float32, device=device) if return_logprobs is not False else None
    )
    call = SampleCall(
        logits=logits,
        sampling=numbers,
        sampling_rows=rows,
        seeds=seeds,
        positions=positions,
        token_bitmask=token_bitmask,
        out_tokens=tokens,
        out_logprobs=logprobs,
        edits=edit_tensors,
        edit_numbers=edit_numbers,
        logprobs_kind=kind,
        chosen_tokens=chosen,
        out_report=[] if report is None else list(report),
    )
    _ops.sample(call, backend)
    if logprobs is not None and report is not None:
        return sampled(tokens, logprobs, report, chosen)
    return tokens if logprobs is None else (tokens, logprobs)


def check_bitmask(
    operation: str, bitmask: Tensor | None, symbols: str, rows: int, vocab: int, device: torch.device
) -> None:
    """The mask [rows, ceil(V / 32)] int32, checked, with contiguous rows; or None."""
    if bitmask is not None:
        shape = (rows, (vocab + 31) // 32)
        check_tensor(operation, "token_bitmask", bitmask, symbols, shape, (torch.int32,), device)
        check_last_stride(operation, "token_bitmask", bitmask)


def noise_keys(
    operation: str,
    seeds: Tensor | None,
    positions: Tensor | None,
    batch: int,
    device: torch.device,
    symbols: str = "[B]",
) -> tuple[Tensor, Tensor]:
    """The given seeds and positions [B] int64, or fresh seeds and positions 0."""
    if seeds is not None and positions is None:
        bad_value(operation, "positions", "must be given with seeds", "None")
    if seeds is None and positions is not None:
        bad_value(operation, "positions", "must be None without seeds", what(positions))
    if seeds is None:
        seeds = torch.randint(-(2**63), 2**63 - 1, (batch,), dtype=torch.int64, device=device)
    else:
        check_tensor(operation, "seeds", seeds, symbols, (batch,), (torch.int64,), device)
    if positions is None:
        positions = torch.zeros(batch, dtype=torch.int64, device=device)
    else:
        check_tensor(operation, "positions", positions, symbols, (batch,), (torch.int64,), device)
    return seeds.contiguous(), positions.contiguous()
