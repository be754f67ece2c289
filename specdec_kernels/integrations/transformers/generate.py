"""A whole speculative decoding loop for causal language models of the transformers library."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...acceptance import AcceptanceStats
from ...errors import INTEGERS, bad_value, check_dtype, check_shape
from ...rules import Rule
from ...sampling import DraftVocab, SamplingParams
from ...verify import Status, verify
from .caches import Alone, Together
from .model import Target
from .probe import Verdict, verdict


@torch.inference_mode()
def generate(
    target: Any,
    drafter: Any,
    input_ids: Any,
    *,
    attention_mask: Tensor | None = None,
    max_new_tokens: int | Sequence[int] | None = None,
    stop_tokens: Collection[int] | Sequence[Collection[int]] | None = None,
    stop_strings: str | Sequence[str] | None = None,
    tokenizer: Any = None,
    generation_config: Any = None,
    sampling: SamplingParams | None = None,
    logits_processor: Sequence[Any] | None = None,
    stopping_criteria: Sequence[Any] | None = None,
    draft_sampling: SamplingParams | str | None = None,
    draft_vocab: DraftVocab | None = None,
    rule: Rule = "auto",
    seeds: Tensor | int | None = None,
    num_return_sequences: int | None = None,
    budget: Any = True,
    cache: Any = None,
    return_cache: bool = False,
    prefill_chunk: int | None = None,
    output_scores: bool = False,
    output_logits: bool = False,
    output_logprobs: bool = False,
    on_tokens: Callable[[int, list[int]], object] | None = None,
    streamer: Any = None,
    backend: str = "auto",
) -> Any:
    """Write text by drafting, one forward of the target over all drafts, verification and committing."""
    aim = Target(target)
    prompts = ...
    raise NotImplementedError


class Loop:
    """The requests that run, their texts, and the step that brings each of them a token or more.

    Args:
        target: the model, in evaluation mode.
        prompts: of the requests, one token or more each.
        drafting, processing: what drafts, and what makes laws of logits and ends texts.
        seeds: [B] int64 on the target's device.
        draft_sampling, draft_vocab, rule, backend: as for `verify`.
        outputs: which of "scores", "logits" and "logprobs" of the written tokens to keep.
    """

    def __init__(
        self,
        target: Target,
        prompts: list[list[int]],
        drafting: Any,
        processing: Any,
        seeds: Tensor,
        *,
        draft_sampling: SamplingParams | str | None,
        draft_vocab: DraftVocab | None,
        rule: Rule,
        backend: str,
        outputs: Collection[str],
    ) -> None:
        self.target = target
        self.prompts = prompts
        self.drafting = drafting
        self.processing = processing
        self.seeds = seeds
        self.sampling = processing.sampling
        self.draft_sampling = draft_sampling
        self.options = {"draft_vocab": draft_vocab, "rule": rule, "backend": backend}
        self.outputs = {name: [[] for _ in prompts] for name in outputs}
        self.requests = list(range(len(prompts)))
        self.written: list[list[int]] = [[] for _ in prompts]
        self.reasons: list[str | None] = [None for _ in prompts]
        self.caches: list[Any] = [None for _ in prompts]
        self.sizes = [len(prompt) for prompt in prompts]
        self.text = torch.zeros(len(prompts), max(self.sizes), dtype=torch.int64)
        for row, prompt in zip(self.text, prompts, strict=True):
            row[: len(prompt)] = torch.tensor(prompt)
        self.text = self.text.to(target.device)
        self.lengths = torch.tensor(self.sizes, device=target.device)
        self.counts = Counts()
        self.warned = Status(0)

    def run(self, reader: Together | Alone, on_tokens: Any, streamers: Sequence[Any], keep_caches: bool) -> None:
        """All steps."""
        while self.requests:
            self.step(reader, on_tokens, streamers, keep_caches)

    def step(self, reader: Together | Alone, on_tokens: Any, streamers: Sequence[Any], keep_caches: bool) -> None:
        """One step of all running requests; those that are done leave."""
        started = time.perf_counter()
        limits = self.processing.limits
        room = [limits[request] - len(self.written[request]) - 1 for request in self.requests]
        drafts = self.drafting.draft(self.text, self.lengths, room)
        tree, drafted = drafts.tree, time.perf_counter()
        raw = reader.forward(tree, self.text, self.lengths, self.sizes)
        logits = self.processing.apply(raw, self._rows(tree)) if self.processing.processors else raw
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
            **self.options,
        )
        width = verified.tokens.shape[1]
        table = [verified.tokens, verified.path, verified.num_tokens[:, None], verified.status[:, None]]
        rows = torch.cat(table, 1).tolist()
        new = [row[: row[-2]] for row in rows]
        paths = [row[width : width + row[-2]] for row in rows]
        self._warn([row[-1] for row in rows])
        stay, kept = [], []
        for place, request in enumerate(self.requests):
            count, reason = self.processing.finish(request, self.written[request], new[place], None)
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
        self._keep_outputs(raw, logits, verified, tree, paths, kept)
        if stay or keep_caches:
            reader.commit(verified.path, tree, self.lengths, paths)
        self.counts.add(tree, paths, kept)
        self.drafting.after(paths, kept, tree.tokens.numel(), drafted - started, time.perf_counter() - drafted)
        if keep_caches and len(stay) < len(self.requests):
            for place in set(range(len(self.requests))) - set(stay):
                request = self.requests[place]
                text = self.prompts[request] + self.written[request]
                self.caches[request] = reader.export(place, text[:-1])
        self._append(verified.tokens, new)
        if len(stay) < len(self.requests):
            self._leave(stay, reader)

    def _append(self, tokens: Tensor, new: list[list[int]]) -> None:
        """Put new tokens behind the texts."""
        counts = [len(each) for each in new]
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
        self.sampling = _of(self.sampling, index)
        self.draft_sampling = _of(self.draft_sampling, index)
        reader.keep(stay, self.sizes)

    def _rows(self, tree: Any) -> list[tuple[int, list[int]] | None]:
        """Of every row: its request, and the tokens written before and on its path."""
        tokens, parents, ends = tree.tokens.tolist(), tree.parents.tolist(), tree.cu_nodes.tolist()
        rows: list[tuple[int, list[int]] | None] = [None] * len(tokens)
        for place, request in enumerate(self.requests):
            start = ends[place]
            for row in range(start, ends[place + 1]):
                if parents[row] < 0:
                    rows[row] = (request, self.written[request])
                elif tokens[row] >= 0 and (above := rows[start + parents[row]]) is not None:
                    rows[row] = (request, [*above[1], tokens[row]])
        return rows

    def _keep_outputs(self, raw: Any, logits: Any, verified: Any, tree: Any, paths: Any, kept: Any) -> None:
        """Scores, logits and log-probabilities of what was written."""
        if not self.outputs:
            return
        starts = tree.cu_nodes.tolist()
        for place, request in enumerate(self.requests):
            rows = [starts[place] + node for node in paths[place][: kept[place]]]
            if "logits" in self.outputs:
                self.outputs["logits"][request].append(raw[rows].float())
            if "scores" in self.outputs:
                self.outputs["scores"][request].append(logits[rows].float())
            if "logprobs" in self.outputs:
                self.outputs["logprobs"][request].append(verified.logprobs[place, : kept[place]].clone())

    def _warn(self, statuses: list[int]) -> None:
        """Say once what verification met."""
        met = Status(0)
        for status in statuses:
            met |= Status(status)
        for bit in met & ~self.warned:
            warnings.warn(f"generate: {WARNINGS.get(bit.name, bit.name)}", stacklevel=4)
        self.warned |= met


WARNINGS = {
    "NAN": "the target's logits had a NaN, which counted as -inf",
    "EMPTY": "a row of the target's logits allowed no token; its lowest allowed token was written",
    "IMPOSSIBLE": "the drafter declared a law under which a token that it drafted has no probability; the text"
    " does not have the target's law",
}


class Counts:
    """What was accepted, of the tokens that were written."""

    def __init__(self) -> None:
        self.steps = self.drafted = self.passes = self.rows = 0
        self.tested: list[int] = []
        self.accepted: list[int] = []

    def add(self, tree: Any, paths: list[list[int]], kept: list[int]) -> None:
        """A step: the paths accepted, and how many tokens of each were written."""
        tokens, parents, ends = tree.tokens.tolist(), tree.parents.tolist(), tree.cu_nodes.tolist()
        self.rows += len(tokens)
        for place, (path, count) in enumerate(zip(paths, kept, strict=True)):
            start, end = ends[place], ends[place + 1]
            if start == end:
                continue
            drafts = [row for row in range(start + 1, end) if tokens[row] >= 0]
            further = count == len(path) and any(parents[row] == path[-1] for row in drafts)
            self.steps += 1
            self.drafted += len(drafts)
            self.passes += tree.max_depth
            for depth in range(count - 1 + further):
                while len(self.tested) <= depth:
                    self.tested.append(0)
                    self.accepted.append(0)
                self.tested[depth] += 1
                self.accepted[depth] += depth < count - 1

    def statistics(self) -> AcceptanceStats:
        return AcceptanceStats(self.steps, self.drafted, self.passes, tuple(self.tested), tuple(self.accepted))


def _of(params: Any, index: Tensor) -> Any:
    """Values per request follow their requests."""
    if not isinstance(params, SamplingParams):
        return params
    return SamplingParams(
        *(value[index.to(value.device)] if isinstance(value, Tensor) and value.dim() else value for value in params)
    )


def seeds_of(seeds: Tensor | int | None, batch: int) -> Tensor:
    """[B] int64. A number is the first request's seed; the others' are mixed from it and their place, so that
    calls with seeds side by side share none."""
    if seeds is None:
        return torch.randint(-(2**63), 2**63 - 1, (batch,))
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        return torch.tensor([_mixed(seeds, place) for place in range(batch)])
    check_dtype("generate", "seeds", seeds, (torch.int64,))
    check_shape("generate", "seeds", seeds, "[B]", (batch,))
    return seeds


def _mixed(seed: int, place: int) -> int:
    """The splitmix64 sequence from `seed`, whose start is the seed itself."""
    word = seed % 2**64
    if place:
        word = (word + place * 0x9E3779B97F4A7C15) % 2**64
        word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        word = (word ^ (word >> 27)) * 0x94D049BB133111EB % 2**64
        word ^= word >> 31
    return word - 2**64 if word >= 2**63 else word
