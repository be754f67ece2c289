# SPDX-License-Identifier: Apache-2.0
"""Continuous batching over draft trees on a paged cache.

A step drafts a tree for every running request, reads all trees in one forward, verifies them in one call and
commits what was accepted. Requests join when the pool can hold them to their end and leave when they finish.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

import specdec_kernels as sdk

from .drafters.tree import Tree
from .llama import Batch, Llama, PagedCache

PROMPT_CHUNK = 256  # tokens of a prompt that one forward reads
Draft = Callable[[Sequence["Request"]], Sequence[Tree]]


@dataclass(eq=False)
class Request:
    prompt: Sequence[int]
    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    tokens: list[int] = field(default_factory=list)  # written so far
    pages: list[int] = field(default_factory=list)
    followed: bool = False  # whether another one waits for its place
    cached: int = 0  # positions in the cache: all but the last token, once the prompt was read

    @property
    def context(self) -> list[int]:
        return [*self.prompt, *self.tokens]

    @property
    def most_slots(self) -> int:
        """What its text can come to."""
        return len(self.prompt) + self.max_new_tokens


class Progress(NamedTuple):
    """What a step brought one request."""

    request: Request
    tokens: list[int]
    nodes: int  # of its tree, the root included


class Engine:
    """Decodes requests together.

    Args:
        model: weights and forward.
        draft: from all running requests to a tree for each, of at most `max_nodes` nodes, whose root is the
            last token of the request's context.
        rule: that judges the drafts; under "match" the text is a function of prompt and seed.
        eos_id: ends a request.
        pages: of the pool.
        page_size: slots of a page.
        max_nodes: the largest tree.
        observe: told the rows and the seconds of every step, drafting left out.
    """

    def __init__(
        self,
        model: Llama,
        draft: Draft,
        *,
        rule: str = "match",
        eos_id: int,
        pages: int,
        page_size: int = 16,
        max_nodes: int = 32,
        observe: Callable[[int, float], object] | None = None,
    ):
        self.model = model
        self.draft = draft
        self.eos_id = eos_id
        self.max_nodes = max_nodes
        self.observe = observe
        self.pages = pages
        self.free = list(range(pages))
        self.cache = PagedCache(model.shape, pages, page_size)
        self.verifier = sdk.SpeculativeVerifier(rule=rule, max_depth=max_nodes - 1, plan=self.cache.plan)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    def add(self, request: Request) -> None:
        """Queue a request. Raises `ValueError` where it could never run."""
        if not request.prompt or request.max_new_tokens < 1:
            raise ValueError("a request needs a prompt and at least one token to write")
        if self._worst_case(request) > self.pages:
            raise ValueError(f"a request may need {self._worst_case(request)} pages of {self.pages}")
        self.waiting.append(request)

    def admit(self) -> None:
        """Let waiting requests join, in order, while the pool can hold everyone's longest text and tree."""
        joining = []
        promised = sum(map(self._worst_case, self.running))
        while self.waiting and promised + self._worst_case(self.waiting[0]) <= self.pages:
            request = self.waiting.popleft()
            promised += self._worst_case(request)
            joining.append(request)
        self._read_prompts(joining)
        self.running += joining

    def step(self) -> list[Progress]:
        """One token or more for every running request; empty when there is none."""
        self.admit()
        if not self.running:
            return []
        requests = list(self.running)
        for request in requests:
            request.followed = bool(self.waiting)
        drafts = self.draft(requests)
        start = time.perf_counter()
        batch = self._batch(requests, drafts)
        logits = self.model.logits(self.model.forward(batch, self.cache))
        verified = self.verifier(logits, batch.tree, **_noise(requests), ends=self._ends(requests))
        committed = self.verifier.commit(verified, batch.tree, batch.block_table, batch.prefix_lens)
        assert committed is not None and verified.finish is not None  # there are a plan and ends
        numbers = verified.num_tokens, verified.finish, committed.lengths, committed.pages_kept
        table = torch.cat([verified.tokens, torch.stack(numbers, 1)], 1)
        progress = []
        # On a device the host would wait here, once in a step.
        for request, draft, (*tokens, count, finish, cached, kept) in zip(
            requests, drafts, table.tolist(), strict=True
        ):
            request.cached = cached
            request.tokens += tokens[:count]
            ended = finish & ~sdk.Finish.DRAFTED
            self._release(request, 0 if ended else kept)
            if ended:
                self.running.remove(request)
            progress.append(Progress(request, tokens[:count], len(draft.tokens)))
        if self.observe is not None:
            self.observe(batch.tree.tokens.shape[0], time.perf_counter() - start)
        return progress

    def run(self) -> None:
        while self.step():
            pass

    def _ends(self, requests: Sequence[Request]) -> sdk.Ends:
        left = [request.max_new_tokens - len(request.tokens) for request in requests]
        return sdk.Ends(
            stop_tokens=torch.full((len(requests), 1), self.eos_id),
            new_tokens_left=torch.tensor(left, dtype=torch.int32),
        )

    def _read_prompts(self, requests: list[Request]) -> None:
        """Fill the cache with all but the last token of every prompt: chains, all requests at once."""
        while requests := [request for request in requests if request.cached < len(request.prompt) - 1]:
            ends = [min(len(request.prompt) - 1, request.cached + PROMPT_CHUNK) for request in requests]
            chunks = [
                Tree.chain(request.prompt[request.cached : end])
                for request, end in zip(requests, ends, strict=True)
            ]
            self.model.forward(self._batch(requests, chunks), self.cache)
            for request, end in zip(requests, ends, strict=True):
                request.cached = end

    def _batch(self, requests: Sequence[Request], trees: Sequence[Tree]) -> Batch:
        """Flatten the trees and give every node of each a slot behind its request's prefix."""
        sizes = [len(tree.tokens) for tree in trees]
        for request, size in zip(requests, sizes, strict=True):
            self._reserve(request, request.cached + size)
        tree = sdk.DraftTree.from_parents(
            torch.tensor([token for tree in trees for token in tree.tokens]),
            torch.tensor([parent for tree in trees for parent in tree.parents], dtype=torch.int32),
            torch.tensor([0, *sizes]).cumsum(0).int(),
            proposals=sdk.Proposal.POINT,
            max_nodes=max(sizes),
        )
        width = max(len(request.pages) for request in requests)
        table = [request.pages + [0] * (width - len(request.pages)) for request in requests]
        cached = [request.cached for request in requests]
        return Batch(tree, torch.tensor(table, dtype=torch.int32), torch.tensor(cached, dtype=torch.int32))

    def _worst_case(self, request: Request) -> int:
        return pages_for(request.most_slots + self.max_nodes, self.cache.page_size)

    def _reserve(self, request: Request, slots: int) -> None:
        while len(request.pages) < pages_for(slots, self.cache.page_size):
            request.pages.append(self.free.pop())

    def _release(self, request: Request, kept: int) -> None:
        self.free += request.pages[kept:]
        del request.pages[kept:]


def pages_for(slots: int, page_size: int) -> int:
    return -(-slots // page_size)


def _noise(requests: Sequence[Request]) -> dict[str, Any]:
    return {
        "sampling": sdk.SamplingParams(temperature=torch.tensor([r.temperature for r in requests])),
        "seeds": torch.tensor([r.seed for r in requests]),
        "positions": torch.tensor([len(r.prompt) + len(r.tokens) for r in requests]),
    }
