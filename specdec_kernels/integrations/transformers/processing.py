# SPDX-License-Identifier: Apache-2.0
"""Logits processors, which change raw logits before sampling, and ends, of every request of a call."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..._checks import bad_type, bad_value, check_type
from ...sampling import SamplingParams, unpack
from .endings import Ending, ends_of, limits_of, stops_of, strings_of
from .options import mixin
from .processors import IDLE, kind_of, peeled, penalised, reads_text, warpers_of
from .stateless import check_stateless

T = TypeVar("T")


class Processing:
    """Processors, sampling and ends of every request of a call.

    Args:
        contexts: of B requests, the tokens that processors and criteria see before what is written.
        processors: of every request, its logits processors; all B lists have the same classes in order.
        warpers: of every request, those behind them, which `sampling` stands for.
        sampling: the law that remains to be applied, numbers or [B] tensors; temperature 0 is greedy.
        ends: of every request.
        device: of the logits.
        operation: that messages name.

    Attributes:
        sampling: as given.
        limits: of every request, the most new tokens.
        processors: empty where logits pass untouched.

    A processor of another origin than transformers is called with B rows, all equal, of which row b is that
    of request b, so that it may know requests by their rows; every request has a shallow copy of its own.
    Stopping criteria are called alike; the first request has the caller's own.
    """

    def __init__(
        self,
        contexts: Sequence[Sequence[int]],
        processors: Sequence[Sequence[Any]],
        warpers: Sequence[Sequence[Any]],
        sampling: SamplingParams,
        ends: Sequence[Ending],
        device: torch.device,
        operation: str = "generate",
    ) -> None:
        self.sampling = sampling
        self.limits: list[int] = [end.limit for end in ends]
        self.stops: list[frozenset[int]] = [end.stops for end in ends]
        self._ends = [
            end._replace(criteria=[copy.copy(criterion) for criterion in end.criteria]) if request else end
            for request, end in enumerate(ends)
        ]
        self._warpers = warpers
        self._operation = operation
        self._contexts = [torch.tensor(context, dtype=torch.int64, device=device) for context in contexts]
        self._history: list[list[Tensor]] = [[] for _ in contexts]
        self._probed: set[tuple[int, int]] = set()
        self.processors: list[list[Any]] = [list(column) for column in zip(*processors, strict=True)]
        for column in self.processors:
            if kind_of(column[0]) == "stateful":
                rule = "must answer equal calls equally: stateful processors cannot see drafts"
                bad_value(operation, "logits_processor", rule, type(column[0]).__name__)
            if kind_of(column[0]) == "other":
                column[:] = [copy.copy(processor) for processor in column]

    def apply(self, logits: Tensor, rows: Sequence[tuple[int, Sequence[int]] | None]) -> Tensor:
        """Apply the processors at the nodes of the drafts.

        Args:
            logits: [R, V], raw.
            rows: of every row the request, in 0 .. B - 1, and the tokens behind its context: those written
                and those of the node's path. None for a row that is no node, which passes.

        Returns:
            [R, V] float32, new.

        Raises:
            ValueError: a processor that does not answer equal calls equally.
        """
        out = logits.to(torch.float32, copy=True)
        there = [place for place, row in enumerate(rows) if row is not None]
        if not there or not self.processors:
            return out
        whole = len(there) == len(rows)
        scores = out if whole else out[there]
        scores = self._processed(scores, [row for row in rows if row is not None])
        if whole:
            return scores
        out[there] = scores
        return out

    def scores(self, logits: Tensor, request: int) -> Tensor:
        """The scores [n, V] that transformers reports for processed logits [n, V] of one request.

        Cut tokens are `-inf`; a softmax gives the law that the tokens were sampled from. Greedy requests have
        the processed logits.
        """
        scores = logits
        ids = torch.zeros(logits.shape[0], 1, dtype=torch.int64, device=logits.device)
        for warper in self._warpers[request]:
            scores = warper(ids, scores)
        return scores

    def stop_strings(self, request: int) -> list[str]:
        """The strings that may end a request."""
        criteria = [one for one in self._ends[request].criteria if type(one).__name__ == "StopStringCriteria"]
        return [string for criterion in criteria for string in criterion.stop_strings]

    def finish(
        self, request: int, written: Sequence[int], new: Sequence[int], scores: Tensor | None = None
    ) -> tuple[int, str | None]:
        """How many new tokens are kept, and why the request ends there.

        Args:
            request: in 0 .. B - 1.
            written: its tokens so far.
            new: at least one token behind them.
            scores: [n, V], those of the new tokens, for criteria that read scores.

        Returns:
            The number in 1 .. n, and "stop" (a stop token) | "stop_string" | "criteria" | "length", in this
            order where several hold at once; None where the request goes on.
        """
        limit, stops, criteria = self._ends[request]
        text = self._text(request, [*written, *new]) if criteria else None
        for count, token in enumerate(new, 1):
            if scores is not None and criteria:
                self._history[request].append(scores[count - 1])
            reason = "stop" if token in stops else None
            if text is not None:
                length = text.shape[0] - len(new) + count
                reason = self._criterion(request, text[:length]) if reason is None else reason
            if reason is None and len(written) + count >= limit:
                reason = "length"
            if reason is not None:
                return count, reason
        return len(new), None

    def _criterion(self, request: int, text: Tensor) -> str | None:
        """Every criterion sees every token, as under transformers."""
        batch, reasons = len(self._contexts), []
        ids = text.expand(batch, -1)
        scores = tuple(row.expand(batch, -1) for row in self._history[request]) or None
        for criterion in self._ends[request].criteria:
            done = criterion(ids, scores)
            if isinstance(done, Tensor) and done.numel() in (1, batch):
                done = bool(done.flatten()[request if done.numel() == batch else 0])
            if not isinstance(done, bool):
                rule = f"must return a bool or bools [B] = [{batch}]"
                got = list(done.shape) if isinstance(done, Tensor) else type(done).__name__
                name = getattr(criterion, "__name__", type(criterion).__name__)
                bad_value(self._operation, "stopping_criteria", rule, f"{got} from {name}")
            if done:
                reasons.append(
                    "stop_string" if type(criterion).__name__ == "StopStringCriteria" else "criteria"
                )
        return max(reasons, default=None)  # a stop string before any other

    def _text(self, request: int, tokens: Sequence[int]) -> Tensor:
        context = self._contexts[request]
        return torch.cat([context, torch.tensor(tokens, dtype=torch.int64, device=context.device)])

    def _processed(self, scores: Tensor, rows: list[tuple[int, Sequence[int]]]) -> Tensor:
        requests = [request for request, _ in rows]
        texts = [self._text(*row) for row in rows] if any(map(reads_text, self.processors)) else []
        for place, column in enumerate(self.processors):
            kind = kind_of(column[0])
            if kind == "free":
                scores = column[0](scores.new_zeros(len(rows), 1, dtype=torch.int64), scores)
            elif kind == "penalty":
                scores = penalised(column[0], texts, scores)
            elif kind == "rowwise":
                idle = IDLE.get(type(column[0]).__name__)
                groups: dict[tuple[int, int], list[int]] = {}
                for row, (request, text) in enumerate(zip(requests, texts, strict=True)):
                    if idle is None or not idle(column[request], text.shape[0]):
                        groups.setdefault((id(column[request]), text.shape[0]), []).append(row)
                for group in groups.values():
                    ids = torch.stack([texts[row] for row in group])
                    scores[group] = column[requests[group[0]]](ids, scores[group])
            else:
                parts = [
                    self._placed(place, request, text, scores[row])
                    for row, (request, text) in enumerate(zip(requests, texts, strict=True))
                ]
                scores = torch.stack(parts)
        return scores

    def _placed(self, place: int, request: int, text: Tensor, scores: Tensor) -> Tensor:
        """One row through a processor that may know requests by their rows."""
        processor, batch = self.processors[place][request], len(self._contexts)

        def call() -> Tensor:
            answer: Tensor = processor(text.repeat(batch, 1), scores.repeat(batch, 1))
            return answer

        if kind_of(processor) == "other" and (place, request) not in self._probed:
            self._probed.add((place, request))
            shape = (batch, scores.shape[0])
            return check_stateless(self._operation, "logits_processor", processor, call, shape)[request]
        return call()[request]


def processing(
    target: Any,
    prompts: Sequence[Sequence[int]],
    config: Any,
    *,
    device: torch.device,
    sampling: SamplingParams | None = None,
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    stop_tokens: Any = None,
    stop_strings: Any = None,
    tokenizer: Any = None,
    max_new_tokens: Any = None,
    times: int = 1,
    operation: str = "generate",
) -> Processing:
    """All that transformers would do to the logits of these prompts, each by itself.

    Args:
        target: the model; its own methods build processors and criteria.
        prompts: of B requests, the tokens without padding.
        config: from `configuration`.
        device: of the logits.
        sampling: the law, numbers or [B] tensors, in place of the configuration's `do_sample`, `temperature`,
            `top_k`, `top_p` and `min_p`.
        logits_processor, stopping_criteria: one or a list, after the configuration's own, of which they
            replace those of the same class.
        stop_tokens: ints, or B collections of ints, in place of the configuration's `eos_token_id`; empty for
            none.
        stop_strings: a string, strings, or B collections of strings; they need `tokenizer`.
        max_new_tokens: an int or B ints >= 1. None: those of the configuration, or up to its `max_length`, or
            20 as far as the model's positions go.
        times: B / times values are given where one for each request is, each for so many side by side.
        operation: that messages name.

    Raises:
        ValueError, TypeError: an argument out of its range or of another kind.
    """
    batch, own = len(prompts), mixin(target)
    stops = _repeated(stops_of(stop_tokens, config, batch // times, operation), times)
    strings = _repeated(strings_of(stop_strings, config, batch // times, operation), times)
    limits = _repeated(limits_of(max_new_tokens, config, own, prompts[::times], operation), times)
    processors = _callables(logits_processor, "logits_processor", operation)
    criteria = _callables(stopping_criteria, "stopping_criteria", operation)
    if sampling is not None:
        check_type(operation, "sampling", sampling, SamplingParams, "a SamplingParams")
        values: Iterable[Any] = (one.to(device) if isinstance(one, Tensor) else one for one in sampling)
        sampling = SamplingParams(*values)
        unpack(operation, "sampling", sampling, batch, device)  # which checks it
        _check_warpers(config, operation)
    if config.exponential_decay_length_penalty is not None and not any(stops):
        argument = "generation_config.exponential_decay_length_penalty"
        bad_value(operation, argument, "must be None without stop tokens", "a penalty")
    reads = _reads_prompt(config)
    lists, ends, built, endings = [], [], {}, {}
    for request, prompt in enumerate(prompts):
        options = copy.copy(config)
        options._eos_token_tensor = (
            torch.tensor(stops[request], dtype=torch.int64, device=device) if any(stops) else None
        )
        options.max_length = len(prompt) + limits[request]
        if options.min_new_tokens is not None:
            options.min_length = None  # the same condition, which transformers tests twice
        if sampling is not None:
            options.do_sample = False
        if strings[request] is not None and tokenizer is None:
            bad_value(operation, "tokenizer", "must be given with stop_strings", None)
        # requests with equal options share their processors, which then take them in one call
        key = (len(prompt), limits[request], tuple(stops[request]), *(prompt if reads else ()))
        try:
            if key not in built:
                built[key] = own._get_logits_processor(
                    options,
                    input_ids_seq_length=len(prompt),
                    encoder_input_ids=torch.tensor(prompt, device=device).expand(batch, -1)
                    if reads
                    else None,
                    logits_processor=processors,
                    device=device,
                )
            if strings[request] not in endings:
                unending = copy.copy(options)
                unending.max_length = unending._eos_token_tensor = None
                ending = strings[request]
                unending.stop_strings = None if ending is None else list(ending)
                endings[ending] = own._get_stopping_criteria(unending, criteria, tokenizer)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{operation}: generation_config: {error}") from error
        lists.append(built[key])
        default = Ending(limits[request], frozenset(stops[request]), [])
        ends.append(ends_of(endings[strings[request]], len(prompt), default))
    if sampling is None:
        lists, warpers, sampling = peeled(lists, bool(config.do_sample))
    else:
        lists, warpers, _ = peeled(lists, False)
        tails = [warpers_of(sampling, request) for request in range(batch)]
        warpers = [[*tail, *rest] for tail, rest in zip(tails, warpers, strict=True)]
    return Processing(prompts, lists, warpers, sampling, ends, device, operation)


def prepared(
    contexts: Tensor,
    logits_processor: Sequence[Any],
    stopping_criteria: Sequence[Any],
    *,
    do_sample: bool,
    device: torch.device,
    operation: str,
) -> Processing:
    """The same of lists that transformers has built for a padded batch [B, L], which processors see."""
    lists = [list(logits_processor) for _ in contexts]
    lists, warpers, sampling = peeled(lists, do_sample)
    ends = [ends_of(stopping_criteria, contexts.shape[1], Ending(sys.maxsize, frozenset(), []))] * len(
        contexts
    )
    return Processing(contexts.tolist(), lists, warpers, sampling, ends, device, operation)


def _reads_prompt(config: Any) -> bool:
    """Whether processors are built from the prompt's tokens."""
    return config.encoder_repetition_penalty not in (None, 1.0) or bool(config.encoder_no_repeat_ngram_size)


def _check_warpers(config: Any, operation: str) -> None:
    """Refuse cuts that a `SamplingParams` of the caller's would have to be mixed with."""
    if not config.do_sample:
        return
    off = {"top_h": (), "typical_p": (1.0,), "epsilon_cutoff": (0.0,), "eta_cutoff": (0.0,)}
    for name, neutral in off.items():
        value = getattr(config, name)
        if value is not None and value not in neutral:
            bad_value(operation, f"generation_config.{name}", "must be off beside sampling", value)


def _repeated(values: list[T], times: int) -> list[T]:
    return [value for value in values for _ in range(times)]


def _callables(given: Any, argument: str, operation: str) -> list[Any]:
    if given is None:
        return []
    found = (
        [given]
        if callable(given) and not isinstance(given, list)
        else list(_iterable(given, argument, operation))
    )
    for one in found:
        if not callable(one) or isinstance(one, type):
            what = f"the class {one.__name__}" if isinstance(one, type) else type(one).__name__
            bad_type(operation, argument, "must be a callable or a list of callables", what)
    return found


def _iterable(given: Any, argument: str, operation: str) -> Iterable[Any]:
    if isinstance(given, (str, bytes)) or not hasattr(given, "__iter__"):
        bad_type(operation, argument, "must be a callable or a list of callables", type(given).__name__)
    values: Iterable[Any] = given
    return values
