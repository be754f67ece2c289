# SPDX-License-Identifier: Apache-2.0
"""Calls whose kernels are compiled ahead, in this process or in others that have no device."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from queue import SimpleQueue
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._checks import name_of
from .attention import tree_attention
from .commit import CachePlan, commit_kv
from .counts import TokenCounts
from .drafting.batch_budget import BatchBudget, SelectedNodes
from .drafting.budget import Budget
from .drafting.children import sample_children
from .edits import LogitEdits
from .ends import Ends
from .module import SpeculativeVerifier
from .reporting import Logprobs, Masks
from .rules import Rule, Synthetic
from .sampling import DraftVocab, SamplingParams, sample
from .tree import DraftTree
from .verification import Verified, empty_outputs, verify, with_masks, with_report


class Task(NamedTuple):
    """A call with the tensors of one request."""

    operation: str
    options: tuple[Any, ...]

    def __str__(self) -> str:
        shown = (name_of(value) if isinstance(value, torch.dtype) else str(value) for value in self.options)
        return f"{self.operation}({', '.join(shown)})"

    def run(self, device: torch.device) -> None:
        """Call it with tensors on a device."""
        with torch.device(device):
            _OPERATIONS[self.operation](*self.options)


def _rows(count: int, vocab: int, dtype: torch.dtype, aligned: bool) -> Tensor:
    """Of a matrix [count, vocab], whose rows begin at multiples of 16 bytes or do not."""
    storage = torch.zeros(count, vocab + (0 if aligned else 1), dtype=dtype)
    return storage[:, :vocab] if aligned else storage[:, 1:]


def _law(sampling: SamplingParams) -> SamplingParams:
    """The same for one request on the device."""
    ones: list[Any] = [
        torch.ones(1, dtype=value.dtype) if isinstance(value, Tensor) else value for value in sampling
    ]
    return SamplingParams(*ones)


def blank(rule: Rule) -> Rule:
    """The same with rates of the default device, whose values kernels do not depend on: a tensor of a GPU
    cannot be sent to processes without one."""
    if isinstance(rule, Synthetic) and isinstance(rule.rate, Tensor):
        return Synthetic(torch.zeros(rule.rate.shape, dtype=rule.rate.dtype))
    return rule


class Rows(NamedTuple):
    """Which rows of the target there are, and dtypes of tokens beside it."""

    numbered: bool = False
    early: bool = False
    bonus: torch.dtype | None = None
    tokens: torch.dtype = torch.int64

    def __str__(self) -> str:
        words = [
            "target_rows" * self.numbered,
            "rows end early" * self.early,
            "" if self.bonus is None else f"{name_of(self.bonus)} bonus tokens",
            f"{name_of(self.tokens)} tokens",
        ]
        return ", ".join(filter(None, words))


def _number() -> Tensor:
    """A seed, a position or a node."""
    return torch.zeros(1, dtype=torch.int64)


def _bitmask(rows: int, vocab: int, given: bool) -> Tensor | None:
    return torch.zeros(rows, -(-vocab // 32), dtype=torch.int32) if given else None


def edits_of_one(edits: LogitEdits | None, vocab: int) -> LogitEdits | None:
    """The same for one request, on the default device."""
    if edits is None:
        return None
    counts, *values = edits
    if counts is not None:
        counts = TokenCounts(1, 1, vocab, recent=counts.recent.shape[1])
    given: list[Any] = [
        torch.zeros(1, *value.shape[1:], dtype=value.dtype) if isinstance(value, Tensor) else value
        for value in values
    ]
    return LogitEdits(counts, *given)


def _tree(nodes: int, linked: bool = False, requests: int = 1) -> DraftTree:
    """A chain for each request."""
    if not linked:
        return DraftTree.chain(torch.zeros(requests, nodes - 1, dtype=torch.int64), check=False)
    tokens, none = torch.zeros(1, nodes, dtype=torch.int64), torch.full((1, nodes), -1)
    return DraftTree.from_links(tokens, none, none, max_depth=nodes - 1, check=False)


def _logprobs(asked: bool | Logprobs) -> bool | Logprobs:
    """The same of one request."""
    if isinstance(asked, bool) or asked.chosen is None:
        return asked
    return asked._replace(chosen=torch.zeros(1, 1, dtype=torch.int64))


def _verify(
    rule: Rule, vocab: int, dtype: torch.dtype, law: SamplingParams, bitmask: bool,
    logprobs: bool | Logprobs, edits: LogitEdits | None, aligned: bool, linked: bool, drafted: int,
    mapped: bool, rows: Rows = Rows(), masks: Masks | None = None,  # noqa: B008
    ends: tuple[bool, ...] | None = None,
) -> None:  # fmt: skip
    asked, device = _logprobs(logprobs), torch.empty(0).device
    out = empty_outputs(1, 2, device, rows.tokens, logprobs=asked is not False, ends=ends is not None)
    if isinstance(asked, Logprobs):
        *_, out = with_report(None, out, asked, 2)
    if masks is not None:
        _, out = with_masks(None, out, masks, 2, vocab)
    verify(
        _rows(1 if rows.early else 2, vocab, dtype, aligned),
        _tree(2, linked),
        _rows(2, drafted, dtype, aligned) if drafted else None,
        draft_vocab=DraftVocab(torch.arange(drafted), vocab) if mapped else None,
        sampling=_law(law),
        rule=blank(rule),
        target_rows=torch.zeros(2, dtype=torch.int32) if rows.numbered else None,
        bonus_tokens=None if rows.bonus is None else torch.zeros(1, dtype=rows.bonus),
        seeds=_number(),
        positions=_number(),
        token_bitmask=_bitmask(2, vocab, bitmask),
        edits=edits_of_one(edits, vocab),
        return_logprobs=asked,
        return_masks=masks,
        ends=None if ends is None else _ends(ends),
        out=out,
        backend="triton",
    )


def _ends(given: tuple[bool, ...]) -> Ends:
    """Those of one request whose fields are given."""
    left = torch.zeros(1, dtype=torch.int32)
    fields = torch.zeros(1, 1, dtype=torch.int64), left, left, torch.zeros(1, dtype=torch.uint8)
    return Ends(*(field if there else None for field, there in zip(fields, given, strict=True)))


def _sample(
    vocab: int, dtype: torch.dtype, law: SamplingParams, bitmask: bool, logprobs: bool | Logprobs,
    edits: LogitEdits | None, aligned: bool,
) -> None:  # fmt: skip
    sample(
        _rows(1, vocab, dtype, aligned),
        _law(law),
        seeds=_number(),
        positions=_number(),
        token_bitmask=_bitmask(1, vocab, bitmask),
        edits=edits_of_one(edits, vocab),
        return_logprobs=_logprobs(logprobs),
        backend="triton",
    )


def _children(
    method: Any, vocab: int, dtype: torch.dtype, law: SamplingParams, aligned: bool, count: int
) -> None:
    sample_children(
        _rows(1, vocab, dtype, aligned),
        count,
        method=method,
        sampling=_law(law),
        seeds=_number(),
        positions=_number(),
        nodes=_number(),
        backend="triton",
    )


def _attention(
    query_heads: int, kv_heads: int, head_dim: int, value_dim: int | None, dtype: torch.dtype,
    cache_dtype: torch.dtype | None, window: int | None, softcap: float | None, deterministic: bool,
    page_size: int, layout: Any, nodes: int,
) -> None:  # fmt: skip
    page = (page_size, kv_heads) if layout == "NHD" else (kv_heads, page_size)
    cache = torch.zeros(1, *page, head_dim).to(cache_dtype or dtype)
    for longest in (64 << step for step in range(8)):  # as many splits as are merged in ways of their own
        tree_attention(
            torch.zeros(nodes, query_heads, head_dim, dtype=dtype),
            cache,
            None if value_dim else cache,
            _tree(nodes),
            torch.zeros(1, -(-longest // page_size), dtype=torch.int32),
            torch.zeros(1, dtype=torch.int32),
            window=window,
            softcap=softcap,
            value_dim=value_dim,
            max_prefix_len=longest,
            layout=layout,
            deterministic=deterministic,
            backend="triton",
        )


def _commit(page_size: int, layout: str) -> None:
    page = (page_size, 1) if layout == "NHD" else (1, page_size)
    caches, table = [torch.zeros(1, *page, 16)], torch.zeros(1, 1, dtype=torch.int32)
    plan = CachePlan(caches, page_size=page_size, layout=layout)
    path, prefix = torch.full((1, 2), -1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    commit_kv(plan, path, _tree(2), table, prefix, backend="triton")


def _count(depths: int, ends: bool) -> None:
    verifier = SpeculativeVerifier(max_depth=depths, slots=1, backend="triton")
    path, count = torch.full((1, 2), -1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    tokens = torch.zeros(1, 2, dtype=torch.int64)
    verified = Verified(tokens, count, count, path, None, count, count if ends else None)
    for slots in (None, torch.zeros(1, dtype=torch.int64)):
        verifier._count(verified, _tree(2), slots)


def _counts(vocab: int) -> None:
    """`TokenCounts.update_` with what a step of `verify` emitted."""
    count = torch.zeros(1, dtype=torch.int32)
    verified = Verified(torch.zeros(1, 2, dtype=torch.int64), count, count, count, None, count)
    for slots in (None, _number()):
        TokenCounts(1, 1, vocab).update_(verified, slots, backend="triton")


def _links(dtype: torch.dtype, tokens: torch.dtype | None) -> None:
    """Trees of links and tokens of these dtypes; without tokens as `from_links` makes them."""
    from .triton.links import enter_links

    links, given = torch.full((1, 2), -1, dtype=dtype), None
    if tokens is not None:
        given = torch.zeros(1, 2, dtype=tokens)
    rows, nodes = torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int32)
    enter_links(given, links, links, rows, nodes, (nodes, nodes))


def _paths(tokens: torch.dtype, predicts: torch.dtype, index: torch.dtype) -> None:
    """`fill_sglang` with arrays of these dtypes."""
    from .triton.layouts import enter_path

    path, out = torch.full((1, 1), -1, dtype=torch.int32), torch.zeros(1, dtype=predicts)
    given = torch.zeros((1, 1), dtype=tokens), path, torch.zeros(2, dtype=torch.int32)
    enter_path(*given, (out, torch.zeros((1, 1), dtype=index)), clear=False)


def _chains(drafts: torch.dtype, sums: torch.dtype) -> None:
    """`DraftTree.chain` of sums."""
    from .triton.chains import enter_chains

    given, rows = torch.zeros(1, dtype=drafts), torch.zeros(2, dtype=torch.int32)
    enter_chains(given, torch.ones(1, dtype=sums), torch.zeros(2, dtype=torch.int64), rows, rows)


def _budget(batch: int, nodes: int) -> None:
    """`BatchBudget.select` and `update_`, of so many requests with trees of so many nodes."""
    budget, tree = BatchBudget(Budget({1: 1.0}), batch, batch), _tree(nodes, requests=batch)
    scores, count = torch.zeros(batch, nodes), torch.zeros(batch, dtype=torch.int32)
    rows, tokens = torch.zeros(batch * nodes, dtype=torch.int32), torch.zeros(batch, 1, dtype=torch.int64)
    verified = Verified(tokens, count, count, count[:, None], None, count)
    for slots in (None, torch.zeros(batch, dtype=torch.int64)):
        for draft_rows in (None, rows):
            for weights in (None, scores[:, 0].contiguous()):
                given = dict(draft_rows=draft_rows, slots=slots, weights=weights)
                budget.select(tree, scores, **given, backend="triton")
        budget.update_(SelectedNodes(tree, rows, rows, scores.flatten(), slots), verified, backend="triton")


_OPERATIONS: dict[str, Callable[..., None]] = dict(
    verify=_verify,
    sample=_sample,
    children=_children,
    attention=_attention,
    commit=_commit,
    count=_count,
    counts=_counts,
    links=_links,
    paths=_paths,
    chains=_chains,
    budget=_budget,
)


def compile_all(
    tasks: Sequence[Task], device: torch.device, processes: int, progress: Callable[[str], object] | None
) -> int:
    """Compile the kernels of calls in so many processes, and load them in this one. Returns how many were
    not there yet."""
    from .triton.dispatch import Launch, target_of, warming

    say = progress or (lambda text: None)
    before, done = len(Launch.met), SimpleQueue[None]()
    if processes:
        ready: SimpleQueue[_Process] = SimpleQueue()
        target, some = target_of(device), min(processes, len(tasks))
        everyone = [_Process(target) for _ in range(some)]
        for process in everyone:
            ready.put(process)

        def compiled(task: Task) -> None:
            process = ready.get()
            error = process.compile(task)
            ready.put(process)
            done.put(None)
            say(f"warmup: {done.qsize()} of {len(tasks)} compiled: {error or task}")

        with closing(_All(everyone)), ThreadPoolExecutor(some) as pool:
            list(pool.map(compiled, tasks))
    with warming("load"):
        for place, task in enumerate(tasks, start=1):
            task.run(device)
            say(f"warmup: {place} of {len(tasks)} loaded: {task}")
    return len(Launch.met) - before


class _Process:
    """Another process that compiles, one call at a time."""

    def __init__(self, target: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self._send(target)

    def _send(self, value: Any) -> None:
        assert self._process.stdin is not None
        pickle.dump(value, self._process.stdin)
        self._process.stdin.flush()

    def compile(self, task: Task) -> str | None:
        """What went wrong, or None. What did is left to this process."""
        assert self._process.stdout is not None
        try:
            self._send(task)
            error: str | None = pickle.load(self._process.stdout)
        except (OSError, EOFError) as failure:
            return f"{task}: {failure!r}"
        return error

    def close(self) -> None:
        self._process.communicate()


class _All:
    def __init__(self, everyone: list[_Process]) -> None:
        self._everyone = everyone

    def close(self) -> None:
        for process in self._everyone:
            process.close()


def serve() -> None:
    """In a process of its own: read a target, then calls, and compile their kernels into Triton's cache."""
    from .triton.dispatch import assume, warming

    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed
    assume(pickle.load(sys.stdin.buffer))
    while True:
        try:
            task = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        error = None
        try:
            with warming("compile"):
                task.run(torch.device("cpu"))
        except Exception:
            error = f"{task}: {traceback.format_exc()}"
        pickle.dump(error, answers)
        answers.flush()
