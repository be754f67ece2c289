# SPDX-License-Identifier: Apache-2.0
"""Ready drafters. Prompt lookup needs none of its own: `partial(ngram_tree, max_nodes=16, cyclic=True)`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from ..._checks import bad_type, bad_value
from ...drafting.children import sample_children
from ...sampling import PLAIN, SamplingParams, per_request
from ...tree import DraftTree, Proposal
from .caches import Alone, Together, reader_of
from .drafts import Drafts
from .layers import common, crop, croppable, restored, snapshot
from .model import Target
from .probe import Verdict, verdict

NUM_DRAFT = 5
TAIL = 32  # number of last tokens that give the context when a draft is converted to another tokenizer


class AssistantDrafter:
    """A smaller causal language model of the transformers library that drafts chains.

    Texts are read into the assistant's own cache. Every call keeps the part of it that is still valid.

    - If all requests are greedy, it drafts its likeliest tokens (`POINT`), with their chances as scores.
    - Under `rule="match"` it draws with the noise that the target itself will use (`POINT`).
    - Under any other rule it draws from its law and returns the law (`INDEPENDENT`).
    - With its own tokenizer, its likeliest text is converted to the target's tokens (`POINT`). It does not
      read special tokens.

    Args:
        model: the assistant. Without tokenizers its tokens are the target's; its vocabulary may be padded to
            another width.
        num_draft: tokens to draft, >= 1; default: `num_assistant_tokens` of the model's `generation_config`,
            else 5. A budget drafts fewer tokens if that pays, so a schedule is not needed.
        confidence: in [0, 1): a chain ends after a token of less probability; default:
            `assistant_confidence_threshold` of the `generation_config`, else 0. A chain ends before the next
            token is drawn, so drawn tokens have their declared law.
        tokenizer, assistant_tokenizer: of the target and of the assistant, if they differ.

    Raises:
        TypeError: not a causal language model, or not numbers.
        ValueError: numbers out of range, one tokenizer without the other, a model that cannot be read.

    Notes:
        If the model's cache cannot be cut, it is restored as it was before the draft. A model without a cache
        reads whole texts. Synchronises with the device once for every drafted token.

    Source: Leviathan et al. 2023, Chen et al. 2023. With tokenizers: Timor et al. 2025, Accelerating LLM
        Inference with Lossless Speculative Decoding Algorithms for Heterogeneous Vocabularies.

    Example:
        `generate(model, AssistantDrafter(small), ids)`
    """

    def __init__(
        self,
        model: Any,
        *,
        num_draft: int | None = None,
        confidence: float | None = None,
        tokenizer: Any = None,
        assistant_tokenizer: Any = None,
    ) -> None:
        settings = getattr(model, "generation_config", None)
        if num_draft is None:
            num_draft = getattr(settings, "num_assistant_tokens", None) or NUM_DRAFT
        if isinstance(num_draft, bool) or not isinstance(num_draft, int):
            bad_type("AssistantDrafter", "num_draft", "must be an int", type(num_draft).__name__)
        if num_draft < 1:
            bad_value("AssistantDrafter", "num_draft", "must be >= 1", num_draft)
        if confidence is None:
            confidence = getattr(settings, "assistant_confidence_threshold", None) or 0.0
        if isinstance(confidence, bool) or not isinstance(confidence, (int, float)):
            bad_type("AssistantDrafter", "confidence", "must be a number", type(confidence).__name__)
        if not 0.0 <= confidence < 1.0:
            bad_value("AssistantDrafter", "confidence", "must be in [0, 1)", confidence)
        if (tokenizer is None) != (assistant_tokenizer is None):
            alone = "tokenizer" if assistant_tokenizer is None else "assistant_tokenizer"
            rule = "and assistant_tokenizer must be given together"
            bad_value("AssistantDrafter", "tokenizer", rule, f"{alone} alone")
        for name, given in (("tokenizer", tokenizer), ("assistant_tokenizer", assistant_tokenizer)):
            if given is not None and not (callable(given) and hasattr(given, "decode")):
                bad_type("AssistantDrafter", name, "must be a tokenizer", type(given).__name__)
        self.num_draft = num_draft
        self.confidence = confidence
        self.tokenizers: Any = None if tokenizer is None else (tokenizer, assistant_tokenizer)
        self._reader = Reader(model)
        self.reset(0)

    def reset(
        self,
        batch_size: int,
        sampling: SamplingParams = PLAIN,
        seeds: Tensor | None = None,
        rule: Any = "auto",
    ) -> None:
        """Before the first step of a batch; `generate` calls it.

        Args:
            sampling: what tokens are drawn with, and `verify` is given as `draft_sampling`.
            seeds: [B] int64, those of `verify`; None: fresh noise.
            rule: of `verify`.
        """
        if not isinstance(sampling, SamplingParams):
            rule = "must be a SamplingParams where an AssistantDrafter drafts"
            bad_type("generate", "draft_sampling", rule, repr(sampling))
        self.sampling: SamplingParams = sampling
        self.rule: Any = rule
        self.seeds: Tensor | None = seeds
        self.batch_size: int = batch_size
        self.greedy: bool = self.tokenizers is not None or _greedy(sampling)
        self._reader.reset()

    def keep(self, places: Sequence[int]) -> None:
        """The requests at these places stay, in this order."""
        self.sampling = _chosen(self.sampling, places)
        self.greedy = self.greedy or bool(places) and _greedy(self.sampling)
        self.seeds = None if self.seeds is None else self.seeds[list(places)]
        self.batch_size = len(places)
        self._reader.keep(places)

    def __call__(
        self, text: Tensor, lengths: Tensor, max_draft: Sequence[int] | None = None
    ) -> Drafts | Tensor:
        """Drafts for the texts [B, L] int64 of these lengths [B], `max_draft[b]` tokens at most."""
        if len(text) != self.batch_size:
            self.reset(len(text), self.sampling, None, self.rule)
        texts = [row[:size].tolist() for row, size in zip(text, lengths.tolist(), strict=True)]
        ids = texts if self.tokenizers is None else [self._read_by_assistant(text) for text in texts]
        known = [self._reader.readable(own) for own in ids]
        depths = [
            max(min(self.num_draft, most, self._reader.most_positions - len(own)), 0)
            if own and len(read) == len(own)
            else 0
            for own, read, most in zip(ids, known, max_draft or [self.num_draft] * len(ids), strict=True)
        ]
        ids = known
        if not any(depths):
            return text.new_full((len(ids), 0), -1)
        with torch.inference_mode(), self._reader.target.reading():
            drafted = self._draft(ids, depths, lengths)
        if self.tokenizers is None:
            return drafted.on(text.device)
        written = [
            self._written_by_target(*request) for request in zip(texts, ids, drafted.tokens, strict=True)
        ]
        width = max(map(len, written))
        return torch.tensor(
            [[*draft, *[-1] * (width - len(draft))] for draft in written], device=text.device
        ).view(len(written), width)

    def _draft(self, ids: list[list[int]], depths: list[int], lengths: Tensor) -> Chains:
        drafted = Chains([[] for _ in ids], [[0.0] for _ in ids], [[] for _ in ids], [])
        reader = self._reader
        reader.begin(ids, max(depths), [depth > 0 for depth in depths])
        running = [b for b, depth in enumerate(depths) if depth]
        counts = [
            len(own) - end if depth else 0 for own, end, depth in zip(ids, reader.ends, depths, strict=True)
        ]
        row = 0
        while running:
            logits = reader.feed(counts)
            tokens, scores, law = self._draw(logits, running, drafted, lengths)
            if law:
                drafted.laws.append(logits)
            going = []
            for place, token, score in zip(running, tokens.tolist(), scores.tolist(), strict=True):
                drafted.rows[place].append(row if law else -1)
                drafted.scores[place].append(drafted.scores[place][-1] + score)
                drafted.tokens[place].append(token)
                row += 1
                deep = len(drafted.tokens[place]) == depths[place]
                if token >= 0 and not deep and math.exp(score) >= self.confidence:
                    going.append(place)
            reader.write(running, tokens)
            running = going
            counts = [int(b in going) for b in range(len(ids))]
        return drafted

    def _draw(
        self, logits: Tensor, places: list[int], drafted: Chains, lengths: Tensor
    ) -> tuple[Tensor, Tensor, bool]:
        """A token of each of these requests, its log-probability, and whether the law matters."""
        if self.greedy:
            scores, tokens = torch.log_softmax(logits.float(), -1).max(-1)
            return tokens, scores, False
        level = len(drafted.tokens[places[0]])  # all that still run are as deep
        match, device = self.rule == "match", logits.device
        keys: dict[str, Any] = {}
        if self.seeds is not None:
            positions = lengths[places].to(device, torch.int64)
            keys = {
                "seeds": self.seeds[places].to(device),
                "positions": positions + level if match else positions,
                "nodes": torch.full_like(positions, level),
            }
        tokens, _, scores = sample_children(
            logits,
            1,
            method="independent",
            sampling=_chosen(self.sampling, places, device),
            coupled=match and bool(keys),
            **keys,
        )
        return tokens[:, 0], scores[:, 0], not match

    def _read_by_assistant(self, ids: list[int]) -> list[int]:
        target, assistant = self.tokenizers
        return list(assistant(target.decode(ids, skip_special_tokens=True))["input_ids"])

    def _written_by_target(self, text: list[int], ids: list[int], drafted: list[int]) -> list[int]:
        """The assistant's tokens as tokens of the target; empty if they change the end of the text."""
        target, assistant = self.tokenizers
        tail = ids[-TAIL:]
        before, after = (assistant.decode(part, skip_special_tokens=True) for part in (tail, tail + drafted))
        if not after.startswith(before):
            return []
        context = target.decode(text[-TAIL:], skip_special_tokens=True)
        added = after[len(before) :].rstrip("\ufffd")  # what is left of a character cut in two
        old, new = (
            target(part, add_special_tokens=False)["input_ids"] for part in (context, context + added)
        )
        return list(new[len(old) :]) if new[: len(old)] == old else []


class Chains:
    """Drafted chains: for each request the tokens, the path scores (the root's included), and the rows of the
    laws from which the tokens were drawn, -1 = none."""

    def __init__(
        self, tokens: list[list[int]], scores: list[list[float]], rows: list[list[int]], laws: list[Tensor]
    ) -> None:
        self.tokens: list[list[int]] = tokens
        self.scores: list[list[float]] = scores
        self.rows: list[list[int]] = rows
        self.laws: list[Tensor] = laws

    def on(self, device: torch.device) -> Drafts:
        """What a drafter returns."""
        ends = [0, *accumulate(len(own) + 1 for own in self.tokens)]
        most = max(map(len, self.tokens)) + 1
        tree = DraftTree.chain(
            torch.tensor([token for own in self.tokens for token in (-1, *own)], device=device),
            cu_nodes=torch.tensor(ends, dtype=torch.int32, device=device),
            proposal=Proposal.INDEPENDENT if self.laws else Proposal.POINT,
            max_nodes=most,
            check=False,
        )
        if self.laws:
            rows = [row for own in self.rows for row in (*own, -1)]
            draft_rows = torch.tensor(rows, dtype=torch.int32, device=device)
            return Drafts(tree, torch.cat(self.laws).to(device), draft_rows)
        scores = [[*own, *[-math.inf] * (most - len(own))] for own in self.scores]
        return Drafts(tree, scores=torch.tensor(scores, device=device))


class Reader:
    """An assistant and its cache of every text.

    Attributes:
        ends: how many tokens of each text are in the cache.
        most_positions: the length from which it cannot read.
    """

    def __init__(self, model: Any) -> None:
        self.target: Target = Target(model)
        self.most_positions: int = self.target.most_positions() or 2**62
        with torch.inference_mode(), self.target.reading():
            self.verdict: Verdict = verdict(self.target)
        if self.verdict.serves == "refused":
            bad_value("AssistantDrafter", "model", "must be one that can be read", self.verdict.reason)
        self.reset()

    def readable(self, text: list[int]) -> list[int]:
        """The part of a text for which the model has positions and embeddings."""
        size, end = self.target.vocab_size, len(text)
        if text and max(text) >= size:
            end = next(place for place, token in enumerate(text) if token >= size)
        return text[: min(end, self.most_positions)]

    def reset(self) -> None:
        """Forget all texts."""
        self.cache: Together | Alone | None = None
        self.read: list[list[int]] = []  # the tokens in the cache
        self.ends: list[int] = []
        self.saved: list[tuple[int, Any] | None] = []  # caches that cannot be cut, before what was drafted

    def keep(self, places: Sequence[int]) -> None:
        """The texts at these places stay."""
        if not places:
            self.reset()
        if self.cache is None:
            return
        self.read = [self.read[place] for place in places]
        self.ends = [self.ends[place] for place in places]
        self.saved = [self.saved[place] for place in places]
        self.cache.keep(places, [end + 1 for end in self.ends])

    def begin(self, ids: list[list[int]], more: int, drafts: list[bool]) -> None:
        """Forget tokens that are not in these texts, and read the texts up to a few tokens from their ends.
        `more` is the room for drafted tokens."""
        device = self.target.device
        width = max(map(len, ids)) + more
        self.text: Tensor = torch.tensor([[*own, *[0] * (width - len(own))] for own in ids], device=device)
        self.sizes: list[int] = [max(len(own), 1) for own in ids]
        if self.cache is None:
            self.cache = reader_of(self.target, self.verdict.serves)
            self.cache.read(self.text, self.sizes)
            self.ends = [size - 1 for size in self.sizes]
            self.saved = [None] * len(ids)
        elif isinstance(self.cache, Alone) and self.cache.rereads:
            self.ends = [size - 1 for size in self.sizes]
        else:
            self.ends = [common(read, own) for read, own in zip(self.read, ids, strict=True)]
            self._forget(self.cache)
        self.read = [own[:end] for own, end in zip(ids, self.ends, strict=True)]
        self.drafts = drafts

    def feed(self, counts: list[int]) -> Tensor:
        """Read `counts[b]` more tokens of each text; the logits after the last one of each that has some."""
        cache, rows = self.cache, [0, *accumulate(counts)]
        assert cache is not None  # `begin` made it
        tokens = [
            self.text[b, end : end + count]
            for b, (end, count) in enumerate(zip(self.ends, counts, strict=True))
        ]
        device, most = self.text.device, max(counts)
        tree = DraftTree.chain(
            torch.cat(tokens),
            cu_nodes=torch.tensor(rows, dtype=torch.int32, device=device),
            max_nodes=most,
            check=False,
        )
        lengths = torch.tensor(self.ends, device=device) + 1
        sizes = [end + 1 for end in self.ends]
        parents = [range(-1, count - 1) for count in counts]
        logits = cache.forward(tree, self.text, lengths, sizes, parents)
        index = torch.arange(most, device=device)
        path = torch.where(index < torch.tensor(counts, device=device)[:, None], index, -1).int()
        cache.commit(path, tree, lengths, sizes, [list(range(count)) for count in counts])
        for b, drawn in enumerate(tokens):
            self.read[b] += drawn.tolist()
            self.ends[b] += counts[b]
        self._save(cache, counts)
        return logits[[rows[b + 1] - 1 for b, count in enumerate(counts) if count]]

    def write(self, places: list[int], tokens: Tensor) -> None:
        """Put a drafted token behind each of these texts."""
        self.text[places, [self.sizes[place] for place in places]] = tokens
        for place in places:
            self.sizes[place] += 1

    def _save(self, reader: Together | Alone, counts: list[int]) -> None:
        """Save caches that cannot be cut, as they are after the text and before the draft."""
        if isinstance(reader, Together) or reader.rereads:
            return
        for place, count in enumerate(counts):
            if count and self.drafts[place] and not croppable(reader.caches[place]):
                self.saved[place] = (self.ends[place], snapshot(reader.caches[place]))
                self.drafts[place] = False

    def _forget(self, reader: Together | Alone) -> None:
        """Cut or restore the caches, so that they hold at most `ends` tokens."""
        if isinstance(reader, Together):
            reader._cut(self.ends)
            return
        for place, end in enumerate(self.ends):
            cache, saved = reader.caches[place], self.saved[place]
            if end == reader.cached[place]:
                continue
            if croppable(cache):
                crop(cache, end)
            elif saved is not None and saved[0] <= end:
                cache, end = restored(cache, saved[1]), saved[0]
            else:
                cache, end = self.target.fresh_cache(), 0
            reader.caches[place], reader.cached[place], self.ends[place] = cache, end, end
            self.saved[place] = None


def _greedy(sampling: SamplingParams) -> bool:
    temperature = sampling.temperature
    return bool((temperature == 0).all()) if isinstance(temperature, Tensor) else temperature == 0


def _chosen(
    sampling: SamplingParams, places: Sequence[int], device: torch.device | None = None
) -> SamplingParams:
    """The values of these requests."""
    return per_request(sampling, lambda value: value[list(places)].to(device or value.device))
