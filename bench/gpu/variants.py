"""Calls that together launch every kernel in every configuration that ships. They are only compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import torch

import specdec_kernels as sdk

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
RULES = (
    "match",
    "token",
    "traversal",
    sdk.Typical(),
    sdk.Relaxed(),
    sdk.Lenient(1.5),
    sdk.Synthetic(0.8),
)
CUTS = (sdk.SamplingParams(0.8), sdk.SamplingParams(0.8, 50, 0.9, 0.02))
VOCAB, NODES, BATCH, PAGE = 32000, 6, 2, 16
ROWS = BATCH * NODES


def calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """(operation, call)."""
    for function in (_sample, _verify, _tree_attention, _commit_kv, _states):
        for call in function():
            yield function.__name__.strip("_"), call


def _tree(proposal: sdk.Proposal = sdk.Proposal.POINT) -> sdk.DraftTree:
    parents = torch.tensor([[-1, 0, 0, 2, 3, 0]] * BATCH)
    tokens = torch.zeros(BATCH, NODES, dtype=torch.int64)
    return sdk.DraftTree.from_parents(tokens, parents, proposals=proposal)


def _pages(length: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Block table and prefixes."""
    width = length // PAGE
    return torch.arange(BATCH * width).view(BATCH, width).int(), torch.full((BATCH,), length - NODES).int()


def _sample() -> Iterator[Callable[[], object]]:
    bitmask = torch.zeros(BATCH, VOCAB // 32, dtype=torch.int32)
    for dtype, sampling in product(FLOATS, CUTS):
        logits = torch.zeros(BATCH, VOCAB, dtype=dtype)
        for options in ({}, {"token_bitmask": bitmask, "return_logprobs": True}):
            yield lambda a=logits, s=sampling, o=options: sdk.sample(a, s, **o, backend="triton")


def _verify() -> Iterator[Callable[[], object]]:
    bitmask = torch.zeros(ROWS, VOCAB // 32, dtype=torch.int32)
    vocab = sdk.DraftVocab(torch.arange(VOCAB // 2), VOCAB)
    chain = sdk.DraftTree.chain(torch.zeros(BATCH, NODES - 1, dtype=torch.int64))
    for dtype, rule, sampling in product(FLOATS, RULES, CUTS):
        target = torch.zeros(ROWS, VOCAB, dtype=dtype)
        drafts = [
            (chain, torch.zeros(BATCH, NODES - 1, VOCAB, dtype=dtype), {}),
            (_tree(sdk.Proposal.WITHOUT_REPLACEMENT), torch.zeros(ROWS, VOCAB, dtype=dtype), {}),
        ]
        if dtype == torch.bfloat16:
            plenty = {"token_bitmask": bitmask, "draft_vocab": vocab, "return_logprobs": True}
            drafts += [
                (chain, None, {}),
                (_tree(), torch.zeros(ROWS, VOCAB, dtype=dtype), {"draft_sampling": "logprobs"}),
                (_tree(), torch.zeros(ROWS, VOCAB // 2, dtype=dtype), plenty),
            ]
        for tree, draft, options in drafts:
            options = options | dict(rule=rule, sampling=sampling, backend="triton")
            yield lambda a=(target, tree, draft), o=options: sdk.verify(*a, **o)


def _tree_attention() -> Iterator[Callable[[], object]]:
    table, prefixes = _pages()
    sinks = torch.zeros(8)
    every = {"window": 32, "softcap": 30.0, "sinks": sinks, "return_lse": True}
    shapes = [(head, head, dtype, dtype) for head, dtype in product((64, 80, 128, 256), FLOATS)]
    shapes += [(128, 128, torch.bfloat16, torch.float8_e4m3fn), (576, 512, torch.bfloat16, torch.bfloat16)]
    for (head, value, dtype, cached), deterministic, options in product(shapes, (False, True), ({}, every)):
        query = torch.zeros(ROWS, 8, head, dtype=dtype)
        key = torch.zeros(int(table.max()) + 1, PAGE, 1 if head == 576 else 2, head).to(cached)
        options = options | dict(deterministic=deterministic, max_prefix_len=4096, backend="triton")
        if value != head:
            options["value_dim"] = value
        rest = (key, None if value != head else key.clone(), _tree(), table, prefixes)
        yield lambda a=(query, *rest), o=options: sdk.tree_attention(*a, **o)
        if value == head:
            new = torch.zeros(ROWS, 2, head, dtype=dtype)
            yield lambda a=(query, *rest), n=new, o=options: sdk.tree_attention(
                *a, new_key=n, new_value=n, **o
            )


def _commit_kv() -> Iterator[Callable[[], object]]:
    table, prefixes = _pages()
    path = torch.full((BATCH, 4), -1).int()
    for layout, fresh in product(("NHD", "HND"), (False, True)):
        cache = (
            torch.zeros(int(table.max()) + 1, 2, PAGE, 64) if layout == "HND" else torch.zeros(8, PAGE, 2, 64)
        )
        options = dict(page_size=PAGE, layout=layout, new=[torch.zeros(ROWS, 2, 64)] if fresh else None)
        yield lambda c=cache, o=options: sdk.commit_kv(
            [c], path, _tree(), table, prefixes, **o, backend="triton"
        )


def _states() -> Iterator[Callable[[], object]]:
    path, slots = torch.full((BATCH, 4), -1).int(), torch.arange(BATCH)
    rest = (path, _tree(), slots)
    heads, size = 4, 128
    for dtype, state_dtype in product(FLOATS[:2], FLOATS[:2]):
        state = torch.zeros(BATCH, heads, size, size, dtype=state_dtype)
        vectors, scalars = torch.zeros(ROWS, heads, size, dtype=dtype), torch.zeros(ROWS, heads)
        for given in (state, state.transpose(2, 3)):
            yield lambda s=given, v=vectors, a=scalars: sdk.replay_gated_delta(
                [s], [v], [v], [a], [a], *rest, backend="triton"
            )
            yield lambda s=given, v=vectors, a=scalars: sdk.replay_mamba2(
                [s], [v], [v], [a], [a[0]], *rest, backend="triton"
            )
    for dtype in FLOATS[:2]:
        window, inputs = torch.zeros(BATCH, 512, 4, dtype=dtype), torch.zeros(ROWS, 512, dtype=dtype)
        yield lambda w=window, x=inputs: sdk.replay_conv([w], [x], *rest, backend="triton")
    for size in (128, 3):
        state, snapshots = torch.zeros(BATCH, size).bfloat16(), torch.zeros(ROWS, size).bfloat16()
        yield lambda s=state, t=snapshots: sdk.commit_state([s], [t], *rest, backend="triton")
