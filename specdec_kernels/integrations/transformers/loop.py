# SPDX-License-Identifier: Apache-2.0
"""The requests that run, step by step, and what is counted of their steps."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor

from ..._checks import bad_value
from ...drafting.acceptance import AcceptanceStats
from ...ends import Ends, Finish
from ...sampling import SamplingParams, per_request
from ...verification import Status, verify
from .caches import Alone, Together
from .drafts import Nodes
from .model import Target


class Loop:
    """The requests that run, their texts, and the step that brings each of them a token or more.

    Args:
        target: the model, in evaluation mode.
        prompts: of the requests, one token or more each.
        drafting, processing: what drafts, and what makes laws of logits and ends texts.
        seeds: [B] int64 on the target's device.
        draft_sampling, options: for `verify`.
        outputs: as for `generate`.
    """

    def __init__(
        self,
        target: Target,
        prompts: list[list[int]],
        drafting: Any,
        processing: Any,
        seeds: Tensor,
        *,
        draft_sampling: SamplingParams | Literal["logprobs", "probs"] | None,
        options: dict[str, Any],
        outputs: Collection[str],
    ) -> None:
        self.target = target
        self.prompts = prompts
        self.drafting = drafting
        self.processing = processing
        self.seeds: Tensor = seeds
        self.sampling: Any = processing.sampling
        self.ends: Ends = _ends(processing.stops, processing.limits, target.device)
        self.draft_sampling: Any = draft_sampling
        self.options = options
        self.keeps_caches: bool = "cache" in outputs
        self.outputs: dict[str, list[list[Tensor]]] = {
            name: [[] for _ in prompts] for name in outputs if name != "cache"
        }
        self.requests: list[int] = list(range(len(prompts)))
        self.written: list[list[int]] = [[] for _ in prompts]
        self.reasons: list[str | None] = [None for _ in prompts]
        self.caches: list[Any] = [None for _ in prompts]
        self.sizes: list[int] = [len(prompt) for prompt in prompts]
        self.text: Tensor = torch.zeros(len(prompts), max(self.sizes), dtype=torch.int64)
        for row, prompt in zip(self.text, prompts, strict=True):
            row[: len(prompt)] = torch.tensor(prompt)
        self.text = self.text.to(target.device)
        self.lengths: Tensor = torch.tensor(self.sizes, device=target.device)
        self.counts: Counts = Counts()
        self.warned: Status = Status(0)

    def step(
        self,
        reader: Together | Alone,
        on_tokens: Any,
        streamers: Sequence[Any],
        first: Tensor | None = None,
    ) -> None:
        """One step of all running requests; those that are done leave.

        Args:
            first: [B, V], the logits at the last tokens, where these were read with the prompts. The step
                then drafts nothing.
        """
        started = time.perf_counter()
        limits = self.processing.limits
        room = [limits[request] - len(self.written[request]) - 1 for request in self.requests]
        drafts = self.drafting.draft(self.text, self.lengths, room if first is None else [0] * len(room))
        tree, nodes = drafts.tree, self.drafting.nodes
        if first is not None:
            raw = first
        else:
            parents = [own.parents for own in nodes]
            raw = reader.forward(tree, self.text, self.lengths, self.sizes, parents)
        logits = self.processing.apply(raw, self._rows(nodes)) if self.processing.processors else raw
        verified = verify(
            logits,
            tree,
            drafts.draft_logits,
            draft_rows=drafts.draft_rows,
            sampling=self.sampling,
            draft_sampling=self.draft_sampling,
            seeds=self.seeds,
            positions=self.lengths,
            return_logprobs="logprobs" in self.outputs,
            ends=self.ends,
            **self.options,
        )
        width, finish = verified.tokens.shape[1], verified.finish
        assert finish is not None  # since ends were given
        numbers = torch.stack([verified.num_tokens, verified.status, finish], 1)
        rows = torch.cat([verified.tokens, verified.path, numbers], 1).tolist()  # the host waits here alone
        new = [row[: row[-3]] for row in rows]
        paths = [row[width : width + row[-3]] for row in rows]
        drafted = [bool(row[-1] & Finish.DRAFTED) for row in rows]
        self._warn([row[-2] for row in rows])
        highest = max((max(tokens) for tokens in new if tokens), default=0)
        if highest >= self.target.vocab_size:
            rule = f"must write tokens that it can read, which are below {self.target.vocab_size}"
            bad_value("generate", "target", rule, highest)
        scores = self._scores(logits, nodes, paths)
        stay, kept = [], []
        for place, request in enumerate(self.requests):
            count, reason = self.processing.finish(
                request, self.written[request], new[place], scores[place] if scores else None
            )
            tokens = new[place][:count]
            self.written[request] += tokens
            kept.append(count)
            if on_tokens is not None and on_tokens(request, tokens) is False and reason is None:
                reason = "cancelled"
            if streamers:
                streamers[request].put(torch.tensor(tokens))
            self.reasons[request] = reason
            if reason is None:
                stay.append(place)
            elif streamers:
                streamers[request].end()
        self._keep_outputs(raw, scores, verified, nodes, paths, kept)
        if first is None:
            if stay or self.keeps_caches:
                reader.commit(verified.path, tree, self.lengths, self.sizes, paths)
            self.drafting.after(paths, kept)
        seconds = None if first is not None else time.perf_counter() - started
        self.counts.add(nodes, paths, kept, drafted, seconds)
        if self.keeps_caches and len(stay) < len(self.requests):
            for place in set(range(len(self.requests))) - set(stay):
                request = self.requests[place]
                text = self.prompts[request] + self.written[request]
                self.caches[request] = reader.export(place, text[:-1])
        self._append(verified.tokens, new)
        if len(stay) < len(self.requests):
            self._leave(stay, reader)

    def _append(self, tokens: Tensor, new: list[list[int]]) -> None:
        """Put new tokens behind the texts."""
        counts = [len(own) for own in new]
        room = max(self.sizes) + tokens.shape[1] - self.text.shape[1]
        if room > 0:
            self.text = torch.nn.functional.pad(self.text, (0, 2 * room + self.text.shape[1] // 2))
        added = torch.tensor(counts, device=tokens.device)
        index = torch.arange(tokens.shape[1], device=tokens.device)
        places = self.lengths[:, None] + index
        old = self.text.gather(1, places)
        self.text.scatter_(1, places, torch.where(index < added[:, None], tokens, old))
        self.lengths = self.lengths + added
        self.sizes = [size + count for size, count in zip(self.sizes, counts, strict=True)]

    def _leave(self, stay: list[int], reader: Together | Alone) -> None:
        """Let all other requests go."""
        self.requests = [self.requests[place] for place in stay]
        self.drafting.keep(stay)
        if not stay:
            return
        index = torch.tensor(stay, device=self.text.device)
        self.text, self.lengths, self.seeds = self.text[index], self.lengths[index], self.seeds[index]
        self.sizes = [self.sizes[place] for place in stay]
        self.ends = Ends(*(None if field is None else field[index] for field in self.ends))
        self.sampling = _of(self.sampling, index)
        self.draft_sampling = _of(self.draft_sampling, index)
        reader.keep(stay, self.sizes)

    def _rows(self, nodes: Sequence[Nodes]) -> list[tuple[int, list[int]]]:
        """Of every row: its request, and the tokens written before and on its path."""
        rows = []
        for request, own in zip(self.requests, nodes, strict=True):
            texts = [self.written[request]]
            for token, parent in zip(own.tokens[1:], own.parents[1:], strict=True):
                texts.append([*texts[parent], token])
            rows += [(request, text) for text in texts]
        return rows

    def _scores(self, logits: Tensor, nodes: Sequence[Nodes], paths: list[list[int]]) -> list[Tensor] | None:
        """Of each request the scores [n, V] of its new tokens, where they are asked for."""
        if "scores" not in self.outputs:
            return None
        starts = _starts(nodes)
        return [
            self.processing.scores(logits[[starts[place] + node for node in path]].float(), request)
            for place, (request, path) in enumerate(zip(self.requests, paths, strict=True))
        ]

    def _keep_outputs(self, raw: Any, scores: Any, verified: Any, nodes: Any, paths: Any, kept: Any) -> None:
        """Scores, logits and log-probabilities of what was written."""
        if not self.outputs:
            return
        starts = _starts(nodes)
        for place, request in enumerate(self.requests):
            rows = [starts[place] + node for node in paths[place][: kept[place]]]
            if "logits" in self.outputs:
                self.outputs["logits"][request].append(raw[rows].float())
            if "scores" in self.outputs:
                self.outputs["scores"][request].append(scores[place][: kept[place]])
            if "logprobs" in self.outputs:
                self.outputs["logprobs"][request].append(verified.logprobs[place, : kept[place]].clone())

    def joined(self, name: str) -> list[Tensor] | None:
        """One tensor for each request, over its tokens."""
        parts = self.outputs.get(name)
        return None if parts is None else [torch.cat(part) for part in parts]

    def _warn(self, statuses: list[int]) -> None:
        """Say once what verification met."""
        met = Status(0)
        for status in statuses:
            met |= Status(status)
        for name, bit in Status.__members__.items():
            if bit & met & ~self.warned:
                warnings.warn(f"generate: {WARNINGS.get(name, name)}", stacklevel=4)
        self.warned |= met


WARNINGS = {
    "NAN": "the target's logits had a NaN, which counted as -inf",
    "EMPTY": "a row of the target's logits allowed no token; its lowest allowed token was written",
    "IMPOSSIBLE": "a drafted token has no probability under the law that its drafter declared, so the text"
    " does not have the target's law",
}


class Counts:
    """Counts of accepted tokens, among the tokens that were written."""

    def __init__(self) -> None:
        self.steps: int = 0
        self.drafted: int = 0
        self.passes: int = 0
        self.rows: int = 0
        self.seconds: float = 0.0
        self.plain: list[float] = []  # of steps that drafted nothing, for a token
        self.untimed: int = 0  # tokens that came with the prompts
        self.tested: list[int] = []
        self.accepted: list[int] = []

    def add(
        self,
        nodes: Sequence[Nodes],
        paths: list[list[int]],
        kept: list[int],
        drafted: list[bool],
        seconds: float | None,
    ) -> None:
        """A step: the paths accepted, how many tokens of each were written, whether the last was a drafted
        one, and the time that it took, None for one whose forward read the prompts."""
        rows, deepest = sum(len(own.tokens) for own in nodes), max(max(own.depths) for own in nodes)
        self.rows += rows
        self.untimed += sum(kept) if seconds is None else 0
        self.seconds += seconds or 0.0
        if seconds is not None and rows == len(kept):
            self.plain.append(seconds / len(kept))
        for own, path, count, taken in zip(nodes, paths, kept, drafted, strict=True):
            further = count == len(path) and path[-1] in own.parents and not taken
            self.steps += 1
            self.drafted += len(own.tokens) - 1
            self.passes += deepest
            for depth in range(count - 1 + further):
                while len(self.tested) <= depth:
                    self.tested.append(0)
                    self.accepted.append(0)
                self.tested[depth] += 1
                self.accepted[depth] += depth < count - 1

    def statistics(self) -> AcceptanceStats:
        """Of all steps. Tokens that came with the prompts count as if plain steps had brought them."""
        plain = statistics.median(self.plain) if self.plain else 0.0
        return AcceptanceStats(
            self.steps,
            self.drafted,
            self.passes,
            tuple(self.tested),
            tuple(self.accepted),
            self.seconds + self.untimed * plain,
            plain,
            self.rows,
        )


def _ends(stops: list[frozenset[int]], limits: list[int], device: torch.device) -> Ends:
    """The stop tokens and limits of new tokens of requests, for `verify`."""
    width = max(map(len, stops), default=0)
    padded = [[*each, *[-1] * (width - len(each))] for each in stops]
    return Ends(
        stop_tokens=torch.tensor(padded, dtype=torch.int64).reshape(len(stops), width).to(device),
        new_tokens_left=torch.tensor([min(limit, MOST) for limit in limits], dtype=torch.int32).to(device),
    )


MOST = torch.iinfo(torch.int32).max


def _starts(nodes: Sequence[Nodes]) -> list[int]:
    """The row of every request's root."""
    return [0, *accumulate(len(own.tokens) for own in nodes)]


def _of(params: Any, index: Tensor) -> Any:
    """Values per request follow their requests."""
    if not isinstance(params, SamplingParams):
        return params
    return per_request(params, lambda value: value[index.to(value.device)])
