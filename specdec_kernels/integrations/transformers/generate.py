# SPDX-License-Identifier: Apache-2.0
"""A whole speculative decoding loop for causal language models of the transformers library."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..._checks import bad_type, bad_value, check_dtype, check_shape
from ...drafting.budget import Budget
from ...rules import Rule
from ...sampling import DraftVocab, SamplingParams, per_request
from .caches import Alone, Together, reader_of
from .drafts import Drafting
from .layers import CachedText
from .loop import Loop
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
