# SPDX-License-Identifier: Apache-2.0
"""A whole speculative decoding loop for causal language models of the transformers library."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Collection, Sequence
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor

from ..._checks import bad_type, bad_value, check_dtype, check_shape
from ...drafting.acceptance import AcceptanceStats
from ...drafting.budget import Budget
from ...ends import Ends, Finish
from ...rules import Rule
from ...sampling import DraftVocab, SamplingParams, per_request
from ...verification import Status, verify
from .caches import Alone, Together, reader_of
from .drafts import Drafting, Nodes
from .layers import CachedText
from .model import Target
from .options import configuration, lookup
from .probe import verdict
from .processing import Processing, processing
from .prompts import prompts
from .results import Generated
from .texts import written_text


@torch.inference_mode()
def generate(
    target: Any,
    drafter: Any,
    input_ids: Any,
    *,
    attention_mask: Tensor | None = None,
    max_new_tokens: int | Sequence[int] | None = None,
    stop_tokens: Collection[int] | Sequence[Collection[int]] | None = None,
    stop_strings: Any = None,
    tokenizer: Any = None,
    generation_config: Any = None,
    sampling: SamplingParams | None = None,
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    draft_sampling: SamplingParams | Literal["logprobs", "probs"] | None = None,
    draft_vocab: DraftVocab | None = None,
    rule: Rule = "auto",
    seeds: Tensor | int | None = None,
    num_return_sequences: int | None = None,
    budget: Budget | bool | None = True,
    serve: str | None = None,
    cache: Sequence[CachedText | None] | None = None,
    prefill_chunk: int | None = None,
    outputs: Collection[str] = (),
    on_tokens: Callable[[int, list[int]], object] | None = None,
    streamer: Any = None,
    backend: str = "auto",
) -> Generated:
    """Write text by drafting, one forward of the target over all drafts, verification and committing.

    A step gives one token or more to every running request. A request leaves when it ends. The options of the
    model's `generation_config` hold, unless an argument replaces them. An option that cannot be honoured is
    refused by name. `explain_model(target)` says how the model is served.

    Args:
        target: a causal language model of the transformers library.
        drafter: called with copies of the texts so far, [B, L] int64, and their lengths [B]; entries from a
            text's length on are undefined. Returns tokens [B, K] with -1 for none (chains of
            `Proposal.POINT`), a `DraftTree` over the texts' last tokens, what `ngram_tree` or `grow_tree`
            return, or `Drafts`. None: plain decoding.
        input_ids: the prompts: [B, L], lists of ints, or what a tokenizer returns.
        attention_mask: [B, L], 0 where a tensor of `input_ids` is padding, on either side. Without one, its
            padding is inferred as transformers does. Lists have none.
        max_new_tokens: of each request, >= 1; an int, or one for each.
        stop_tokens: each ends a request; it is the last token of its text. One collection, or one for each
            request. Default: the model's own end-of-sequence tokens.
        stop_strings: a request ends with the token that completes one of the strings. It is looked for on the
            host in the text, across tokens. They need `tokenizer`.
        tokenizer: of transformers, for stop strings and for `Generated.texts`, which are cut where a stop
            string begins. Callbacks and streamers have got its tokens by then.
        generation_config: in place of the model's own.
        sampling: the law; default: as `generation_config` says, which is greedy unless `do_sample` is set.
        logits_processor, stopping_criteria: further ones of transformers, called with a request's prompt,
            without padding, and the text or the path of the draft behind it.
        draft_sampling, draft_vocab, rule, backend: as for `verify`.
        seeds: [B] int64, or an int, from which those of all requests are mixed; the first request has the
            number itself. Default: fresh ones. Under `rule="match"` the text is a function of prompt and
            seed, whatever is drafted.
        num_return_sequences: texts for each prompt, side by side; options of each request are then given for
            each prompt, seeds for each text.
        budget: how much of a draft is verified. True: as much as pays, by the time that steps take. A
            `Budget`: the same with given costs and without a clock. False or None: all.
        serve: "trees", "chains", "one by one", "token by token" or "whole text", in place of what
            `explain_model` found; no more than that, unless it is unproved.
        cache: `Generated.cache` of an earlier call with this model, one for each text. Tokens that a prompt
            shares with it are not read again.
        prefill_chunk: tokens of a prompt that one forward reads at most; default: all.
        outputs: of "scores", "logits", "logprobs" and "cache", what to return beside the texts.
        on_tokens: called with a request's index and its new tokens after every step; a return of False ends
            the request.
        streamer: of transformers, for one text, or one for each.

    Returns:
        `Generated`.

    Raises:
        ValueError: wrong shapes or numbers; a model or an option that cannot be served.
        TypeError: wrong types.

    Notes:
        Synchronises with the device once a step: one copy brings the tokens that callbacks and drafters get,
        and which requests go on. Stop tokens and limits are looked at on the device. The model is read in
        evaluation mode, and put back.

    Source: Leviathan et al. 2023, Chen et al. 2023 (the loop); Miao et al. 2024 (trees).

    Example:
        `generate(model, partial(ngram_draft, num_draft=8), ids)` writes what the model's own greedy decoding
        writes.
    """
    aim = Target(target)
    config = configuration(target, generation_config)
    texts = prompts(input_ids, attention_mask, target=target, config=config, vocab_size=aim.vocab_size)
    times = _times(num_return_sequences, config)
    texts = [text for text in texts for _ in range(times)]
    process = processing(
        target,
        texts,
        config,
        device=aim.device,
        sampling=_each(sampling, times),
        logits_processor=logits_processor,
        stopping_criteria=stopping_criteria,
        stop_tokens=stop_tokens,
        stop_strings=stop_strings,
        tokenizer=tokenizer,
        max_new_tokens=max_new_tokens,
        times=times,
    )
    if not isinstance(outputs, Collection):
        bad_type("generate", "outputs", "must be a collection of names", type(outputs).__name__)
    unknown = set(outputs) - {"scores", "logits", "logprobs", "cache"}
    if isinstance(outputs, str) or unknown:
        rule_of = "must hold 'scores', 'logits', 'logprobs' or 'cache'"
        bad_value(
            "generate", "outputs", rule_of, repr(outputs) if isinstance(outputs, str) else sorted(unknown)
        )
    asked = {"scores": config.output_scores, "logits": config.output_logits}
    generated = decode(
        aim,
        texts,
        process,
        lookup(drafter, config),
        draft_sampling=_each(draft_sampling, times),
        draft_vocab=draft_vocab,
        rule=rule,
        seeds=seeds,
        budget=budget,
        serve=serve,
        cache=cache,
        prefill_chunk=config.prefill_chunk_size if prefill_chunk is None else prefill_chunk,
        outputs={*outputs, *(name for name, wanted in asked.items() if wanted)},
        on_tokens=on_tokens,
        streamers=streamers_of(streamer, len(texts)),
        backend=backend,
    )
    if tokenizer is None:
        return generated
    written = []
    for request, (text, tokens) in enumerate(zip(texts, generated.tokens, strict=True)):
        ended = generated.finish_reasons[request] == "stop_string"
        written.append(written_text(tokenizer, text, tokens, process.stop_strings(request) if ended else ()))
    return generated._replace(texts=written)


def decode(
    aim: Target,
    texts: list[list[int]],
    process: Processing,
    drafter: Any,
    *,
    draft_sampling: SamplingParams | Literal["logprobs", "probs"] | None = None,
    draft_vocab: DraftVocab | None = None,
    rule: Rule = "auto",
    seeds: Tensor | int | None = None,
    budget: Budget | bool | None = True,
    serve: str | None = None,
    cache: Sequence[CachedText | None] | None = None,
    prefill_chunk: int | None = None,
    outputs: Collection[str] = (),
    on_tokens: Callable[[int, list[int]], object] | None = None,
    streamers: Sequence[Any] = (),
    backend: str = "auto",
    fills_cache: bool = False,
    operation: str = "generate",
) -> Generated:
    """`generate`, after its arguments about texts and laws were read; the rest are as there.

    `fills_cache`: what was read is to fill one cache of transformers; refused where it cannot.
    """
    keys = seeds_of(seeds, len(texts)).to(aim.device)
    if prefill_chunk is not None and (not isinstance(prefill_chunk, int) or prefill_chunk < 1):
        bad_value(operation, "prefill_chunk", "must be an int >= 1 or None", prefill_chunk)
    if cache is not None and not isinstance(cache, (list, tuple)):
        bad_type(operation, "cache", "must be a list, or None", type(cache).__name__)
    if on_tokens is not None and not callable(on_tokens):
        bad_type(operation, "on_tokens", "must be callable or None", type(on_tokens).__name__)
    if cache is not None and len(cache) != len(texts):
        bad_value(operation, "cache", f"must have one entry for each of {len(texts)} texts", len(cache))
    for entry in cache or ():
        if entry is not None and not isinstance(entry, CachedText):
            rule_text = "must hold what `Generated.cache` held, or None"
            bad_type(operation, "cache", rule_text, type(entry).__name__)
        if entry is not None and entry.model != aim.key:
            bad_value(operation, "cache", "must come from this model", "another one's")
    drafting = Drafting(
        drafter, vocab_size=aim.vocab_size, budget=budget, rule=rule, seeded=seeds is not None
    )
    with aim.reading():
        reader = _reader(aim, texts, process.limits, prefill_chunk, serve, operation)
        drafting.chains = not (isinstance(reader, Together) and reader.trees)
        if fills_cache and isinstance(reader, Alone) and (reader.rereads or len(texts) > 1):
            how = "in one forward, with a cache" if len(texts) > 1 else "with a cache"
            bad_value(operation, "cache", f"must be None where texts are not read {how}", verdict(aim))
        loop = Loop(
            aim,
            texts,
            drafting,
            process,
            keys,
            draft_sampling=draft_sampling,
            options={"draft_vocab": draft_vocab, "rule": rule, "backend": backend},
            outputs=outputs,
        )
        drawn = process.sampling if draft_sampling is None else draft_sampling
        drafting.reset(len(texts), sampling=drawn, seeds=keys, rule=rule)
        if cache is not None:
            reader.load(cache, texts)
        for text, stream in zip(texts, streamers, strict=False):
            stream.put(torch.tensor([text]))
        started = time.perf_counter()
        rows, first = reader.read(loop.text, loop.sizes, prefill_chunk, last=True)
        if rows:
            drafting.read(rows, time.perf_counter() - started)
        if first is not None:
            loop.step(reader, on_tokens, streamers, first)
        while loop.requests:
            loop.step(reader, on_tokens, streamers)
    return Generated(
        loop.written,
        loop.counts.statistics(),
        [reason for reason in loop.reasons if reason is not None],
        loop.joined("scores"),
        loop.joined("logits"),
        loop.joined("logprobs"),
        loop.caches if "cache" in outputs else None,
    )


def _reader(
    aim: Target,
    texts: list[list[int]],
    limits: list[int],
    chunk: int | None,
    serve: str | None,
    operation: str,
) -> Together | Alone:
    """The reader of these texts, or a refusal."""
    longest = max(len(text) + limit - 1 for text, limit in zip(texts, limits, strict=True))
    most = aim.most_positions()
    if most is not None and longest > most:
        rule = f"must fit with its new tokens into the {most} positions of {aim.name}"
        bad_value(operation, "input_ids", rule, f"a text that may take {longest}")
    switch = aim.switch()
    if switch and longest > switch and (aim.grows or chunk or min(map(len, texts)) <= switch):
        rule = f"must not reach {switch} tokens, where all rotary embeddings of {aim.name} change"
        bad_value(operation, "input_ids", rule, f"a text that may take {longest}")
    found = verdict(aim)
    if found.serves == "refused":
        rule = "must be read alike plainly and by steps"
        bad_value(operation, "target", rule, f"{aim.name}: {found.reason}")
    serves = found.serves if serve is None else serve
    if serves not in SERVES:
        bad_value(operation, "serve", f"must be {' | '.join(map(repr, SERVES))} or None", repr(serve))
    if SERVES.index(serves) < SERVES.index(found.serves) and found.proved:
        bad_value(operation, "serve", f"must be no more than {aim.name} allows ({found})", repr(serve))
    if serves == "whole text":
        if serve is None and aim.cache_name is not None and found.cached:
            warnings.warn(
                f"{operation}: every step reads the whole text, since the cache of {aim.name} cannot be "
                f"trusted ({found.reason})",
                stacklevel=4,
            )
    beyond = aim.other_window()
    if serves in ("trees", "chains") and beyond is not None and longest >= beyond:
        serves = "one by one"
    return reader_of(aim, serves, at_least=aim.at_least)


# Each one asks less of the model than those before it.
SERVES = ("trees", "chains", "one by one", "token by token", "whole text")


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


def _times(num_return_sequences: int | None, config: Any) -> int:
    times = config.num_return_sequences if num_return_sequences is None else num_return_sequences
    if times is not None and (isinstance(times, bool) or not isinstance(times, int) or times < 1):
        bad_value("generate", "num_return_sequences", "must be an int >= 1", times)
    return times or 1


def _each(params: Any, times: int) -> Any:
    """Sampling parameters given for each prompt, for each text."""
    if times == 1 or not isinstance(params, SamplingParams):
        return params
    return per_request(params, lambda value: value.repeat_interleave(times, 0))


def streamers_of(streamer: Any, texts: int) -> Sequence[Any]:
    if streamer is None:
        return ()
    each = list(streamer) if isinstance(streamer, (list, tuple)) else [streamer]
    if len(each) != texts:
        bad_value("generate", "streamer", f"must be one for each of {texts} texts", len(each))
    for one in each:
        if not (hasattr(one, "put") and hasattr(one, "end")):
            bad_type("generate", "streamer", "must have methods put and end", type(one).__name__)
    return each


def seeds_of(seeds: Tensor | int | None, batch: int) -> Tensor:
    """[B] int64. A number is the first request's seed; the others' are mixed from it and their place, so that
    calls with seeds side by side share none."""
    if seeds is None:
        return torch.randint(-(2**63), 2**63 - 1, (batch,))
    if isinstance(seeds, Tensor):
        check_dtype("generate", "seeds", seeds, (torch.int64,))
        check_shape("generate", "seeds", seeds, "[B]", (batch,))
        return seeds
    if isinstance(seeds, bool) or not isinstance(seeds, int):
        bad_type("generate", "seeds", "must be a tensor", type(seeds).__name__)
    return torch.tensor([_mixed(seeds, place) for place in range(batch)])


def _mixed(seed: int, place: int) -> int:
    """The splitmix64 sequence from `seed`, whose start is the seed itself."""
    word = seed % 2**64
    if place:
        word = (word + place * 0x9E3779B97F4A7C15) % 2**64
        word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        word = (word ^ (word >> 27)) * 0x94D049BB133111EB % 2**64
        word ^= word >> 31
    return word - 2**64 if word >= 2**63 else word
