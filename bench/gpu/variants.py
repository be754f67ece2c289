# SPDX-License-Identifier: Apache-2.0
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
OTHER_RULES = (sdk.Threshold(0.9, 0.9), sdk.Ensemble(0.8), sdk.Deferred(), sdk.Synthetic(torch.ones(3)))
CUTS = (sdk.SamplingParams(0.8), sdk.SamplingParams(0.8, 50, 0.9, 0.02))
VOCAB, LARGE = 32000, 128256  # the latter is divided into more splits, for which other kernels are compiled
NODES, BATCH, PAGE = 6, 2, 16
ROWS = BATCH * NODES


def calls() -> Iterator[Callable[[], object]]:
    drafting = (children, ngrams, budgets, links)
    for operation in (sample, edits, *drafting, verify, tree_attention, commit_kv, states):
        yield from operation()


def _tree(proposal: sdk.Proposal = sdk.Proposal.POINT) -> sdk.DraftTree:
    parents = torch.tensor([[-1, 0, 0, 2, 3, 0]] * BATCH)
    tokens = torch.zeros(BATCH, NODES, dtype=torch.int64)
    return sdk.DraftTree.from_parents(tokens, parents, proposals=proposal)


def _pages(length: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Block table and prefixes."""
    width = length // PAGE
    return torch.arange(BATCH * width).view(BATCH, width).int(), torch.full((BATCH,), length - NODES).int()


def _edits(vocab: int) -> sdk.LogitEdits:
    """All of them, per request."""
    counts, number = sdk.TokenCounts(BATCH, 4096, vocab, recent=4), torch.ones(BATCH)
    tokens, words = torch.zeros(BATCH, 4, dtype=torch.int64), torch.zeros(BATCH, 4, 3, dtype=torch.int64)
    return sdk.LogitEdits(
        counts, number, number, number,
        bias_tokens=tokens, bias_values=torch.zeros(BATCH, 4), banned_tokens=tokens,
        banned_until=torch.zeros(BATCH, dtype=torch.int32), bad_words=words, forced_tokens=tokens,
        slots=torch.arange(BATCH),
    )  # fmt: skip


def sample() -> Iterator[Callable[[], object]]:
    forms = [*product(FLOATS, CUTS, (VOCAB,), (False,)), *product(FLOATS[1:2], CUTS, (VOCAB, LARGE), (True,))]
    for dtype, cut, vocab, every in forms:
        logits = torch.zeros(BATCH, vocab, dtype=dtype)
        bitmask = torch.zeros(BATCH, vocab // 32, dtype=torch.int32)
        options = {"token_bitmask": bitmask, "return_logprobs": True} if every else {}
        if every and vocab == LARGE:
            options["edits"] = _edits(vocab)
        yield lambda a=logits, s=cut, o=options: sdk.sample(a, s, **o, backend="triton")


def edits() -> Iterator[Callable[[], object]]:
    """In rows themselves, and what is counted for them."""
    every = _edits(LARGE)
    yield lambda: sdk.edit_logits_(torch.zeros(ROWS, LARGE).bfloat16(), every, _tree(), backend="triton")
    count = torch.zeros(BATCH, dtype=torch.int32)
    verified = sdk.Verified(torch.zeros(BATCH, NODES, dtype=torch.int64), count, count, count, None, count)
    yield lambda: every.counts.update_(verified, every.slots, backend="triton")


def children() -> Iterator[Callable[[], object]]:
    methods = ("independent", "without_replacement", "top_k", "hybrid")
    forms = [*product((VOCAB,), FLOATS, CUTS, methods), (LARGE, torch.bfloat16, CUTS[1], "hybrid")]
    for vocab, dtype, cut, method in forms:
        logits = torch.zeros(BATCH, vocab, dtype=dtype)
        yield lambda a=logits, s=cut, m=method: sdk.sample_children(
            a, 4, method=m, sampling=s, backend="triton"
        )


def ngrams() -> Iterator[Callable[[], object]]:
    tokens, lengths = torch.zeros(BATCH, 4096, dtype=torch.int64), torch.zeros(BATCH, dtype=torch.int64)
    for cyclic, match in product((False, True), ("latest", "frequent")):
        yield lambda c=cyclic, m=match: sdk.ngram_draft(
            tokens, lengths, 8, match=m, cyclic=c, backend="triton"
        )
    for cyclic, (nodes, branches) in product((False, True), ((32, 4), (256, 32), (1024, 256), (1024, 1000))):
        yield lambda c=cyclic, n=nodes, k=branches: sdk.ngram_tree(
            tokens, lengths, n, branches=k, cyclic=c, backend="triton"
        )


def budgets() -> Iterator[Callable[[], object]]:
    """Batches of few nodes and of the most."""
    for batch, nodes in ((2, 8), (8, 32), (32, 32)):
        budget = sdk.BatchBudget(sdk.Budget({1: 1.0}), batch, 4096)
        tree = sdk.DraftTree.chain(torch.zeros(batch, nodes - 1, dtype=torch.int64))
        scores, rows, slots = (
            torch.zeros(batch, nodes),
            torch.arange(batch * nodes).int(),
            torch.arange(batch),
        )
        for options in ({}, {"draft_rows": rows, "slots": slots, "weights": scores[:, 0].contiguous()}):
            yield lambda b=budget, t=tree, s=scores, o=options: b.select(t, s, **o, backend="triton")
        count = torch.zeros(batch, dtype=torch.int32)
        verified = sdk.Verified(torch.zeros(batch, 2), count, count, torch.zeros(batch, 2).int(), None, count)
        for given in (None, slots):
            selected = sdk.SelectedNodes(tree, rows, rows, scores.flatten(), given)
            yield lambda b=budget, s=selected, v=verified: b.update_(s, v, backend="triton")


def links() -> Iterator[Callable[[], object]]:
    """Of `DraftTree.refresh_` and `from_links`, chains of sums, and steps in arrays of SGLang and
    TensorRT-LLM."""
    from specdec_kernels.triton import (
        begin_dynamic_trees,
        end_dynamic_trees,
        enter_chains,
        enter_links,
        enter_path,
    )

    tokens, rows = torch.zeros(BATCH, NODES, dtype=torch.int64), torch.zeros(ROWS, dtype=torch.int32)
    for dtype in (torch.int64, torch.int32):
        links = (tokens.to(dtype), tokens.to(dtype))
        for given in (tokens, None):
            yield lambda a=(given, *links): enter_links(*a, tokens.flatten(), rows, (rows, rows))
        drafts, sums = tokens[:, 1:].flatten().to(dtype), torch.arange(BATCH, dtype=dtype)
        yield lambda a=(drafts, sums): enter_chains(*a, tokens.flatten(), rows, rows)
        path, filled = rows.view(BATCH, NODES), (rows, rows.view(BATCH, NODES))
        emitted = tokens.to(dtype)
        for clear in (False, True):
            yield lambda a=(emitted, path, rows, filled, clear): enter_path(*a)
        heat, one = torch.zeros(BATCH), torch.zeros(1, dtype=dtype)
        given = (tokens[:, 1:].to(dtype), *links, heat, one, one)
        tree = (tokens.flatten(), rows, rows, rows, heat, sums.long())
        yield lambda a=(given, tree, 1e-4): begin_dynamic_trees(*a)
    found = sdk.Verified(path, rows[:BATCH], rows[:BATCH], path, None, rows[:BATCH])
    yield lambda: end_dynamic_trees(found, tokens, sums.long(), tokens)


def verify() -> Iterator[Callable[[], object]]:
    """The last ones have every option, in a large vocabulary with cuts and without."""
    plain, cuts = CUTS
    chain = sdk.DraftTree.chain(torch.zeros(BATCH, NODES - 1, dtype=torch.int64))
    tree = _tree(sdk.Proposal.WITHOUT_REPLACEMENT)
    verifier = sdk.SpeculativeVerifier(rule="match", backend="triton")
    yield lambda: verifier(torch.zeros(ROWS, VOCAB), chain)
    forms = [(torch.bfloat16, tree, VOCAB, rule, cut, {}) for rule, cut in product(RULES, CUTS)]
    forms += [(torch.bfloat16, tree, VOCAB, rule, plain, {}) for rule in OTHER_RULES]
    forms += [(dtype, tree, VOCAB, "token", cuts, {}) for dtype in (torch.float32, torch.float16)]
    forms += [(torch.float32, chain, VOCAB, "traversal", plain, {})]
    forms += [(torch.bfloat16, chain, None, "match", plain, {})]
    forms += [(torch.bfloat16, tree, VOCAB, "traversal", plain, {"draft_sampling": "logprobs"})]
    numbered = {"target_rows": torch.arange(ROWS).int(), "draft_sampling": "probs"}
    forms += [(torch.bfloat16, tree, VOCAB, rule, cuts, numbered) for rule in ("token", "traversal")]
    bonus = {"bonus_tokens": torch.zeros(BATCH, dtype=torch.int64)}
    forms += [(torch.bfloat16, chain, VOCAB, rule, plain, bonus) for rule in ("match", "token", "traversal")]
    edited = {"edits": _edits(VOCAB)}
    forms += [(torch.bfloat16, tree, VOCAB, rule, cuts, edited) for rule in ("match", "token")]
    chosen = torch.zeros(BATCH, 2, dtype=torch.int64)
    reports = {"return_logprobs": sdk.Logprobs(top=5, chosen=chosen), "return_masks": sdk.Masks("ids", 4096)}
    forms += [(torch.bfloat16, tree, VOCAB, "token", cut, reports) for cut in CUTS]
    edited = {"edits": _edits(LARGE)}
    every = [(LARGE, "traversal", cuts, edited), (VOCAB, sdk.Lenient(1.5), cuts, {})]
    every += [(VOCAB, "traversal", cuts, {}), *((LARGE, "traversal", cut, {}) for cut in (cuts, plain))]
    for vocab, rule, cut, more in every:
        ids = sdk.DraftVocab(torch.arange(vocab // 2), vocab)
        bitmask = torch.zeros(ROWS, vocab // 32, dtype=torch.int32)
        left = torch.zeros(BATCH, dtype=torch.int32)
        ends = sdk.Ends(torch.zeros(BATCH, 4, dtype=torch.int64), left, left.clone(), left.byte())
        plenty = {"draft_vocab": ids, "token_bitmask": bitmask, "return_logprobs": True, "ends": ends}
        forms += [(torch.bfloat16, tree, vocab // 2, rule, cut, plenty | more)]
    for dtype, tree, width, rule, cut, options in forms:
        vocab = options["draft_vocab"].vocab_size if "draft_vocab" in options else VOCAB
        target = torch.zeros(ROWS, vocab, dtype=dtype)
        rows = (BATCH, NODES - 1) if tree is chain else (ROWS,)
        draft = None if width is None else torch.zeros(*rows, width, dtype=dtype)
        yield lambda a=(target, tree, draft), o=options | {"rule": rule, "sampling": cut}: sdk.verify(
            *a, **o, backend="triton"
        )


def tree_attention() -> Iterator[Callable[[], object]]:
    """Tiles of few and of many rows, the latter also with every option, and what is deterministic; and a long
    prefix, whose splits are merged by more warps."""
    short, prefixes = _pages()
    long = short.repeat(1, 64)
    elements = [(head, torch.bfloat16, torch.bfloat16) for head in (64, 80, 128, 256, 576)]
    elements += [(head, torch.float32, torch.float32) for head in (128, 576)]
    elements += [(head, torch.bfloat16, torch.float8_e4m3fn) for head in (128, 256, 576)]
    elements += [(head, torch.bfloat16, torch.int8) for head in (96, 576)]
    forms = (
        (8, False, False, short), (32, False, False, short), (32, True, False, short), (8, True, True, short),
        (8, False, False, long),
    )  # fmt: skip
    for (head, dtype, cached), (heads, every, deterministic, table) in product(elements, forms):
        query, latent = torch.zeros(ROWS, heads, head, dtype=dtype), head == 576
        key = torch.zeros(int(table.max()) + 1, PAGE, 1 if latent else 2, head).to(cached)
        options = dict(deterministic=deterministic, max_prefix_len=4096, backend="triton")
        if latent:
            options["value_dim"] = 512
        if every:
            new = torch.zeros(ROWS, key.shape[2], head, dtype=dtype)
            options |= dict(window=32, softcap=30.0, sinks=torch.zeros(heads), return_lse=True)
            options |= dict(new_key=new, new_value=None if latent else new.clone())
        rest = (key, None if latent else key.clone(), _tree(), table, prefixes)
        yield lambda a=(query, *rest), o=options: sdk.tree_attention(*a, **o)


def commit_kv() -> Iterator[Callable[[], object]]:
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


def states() -> Iterator[Callable[[], object]]:
    path, slots = torch.full((BATCH, 4), -1).int(), torch.arange(BATCH)
    kept = (path, _tree(), slots)
    heads, size = 4, 128
    for dtype, state_dtype in product(FLOATS[:2], FLOATS[:2]):
        state = torch.zeros(BATCH, heads, size, size, dtype=state_dtype)
        vectors, scalars = torch.zeros(ROWS, heads, size, dtype=dtype), torch.zeros(ROWS, heads)
        for given in (state, state.transpose(2, 3)):
            yield lambda s=given, v=vectors, a=scalars: sdk.replay_gated_delta(
                *kept, states=[s], keys=[v], values=[v], log_decay=[a], beta=[a], backend="triton"
            )
            yield lambda s=given, v=vectors, a=scalars: sdk.replay_mamba2(
                *kept, states=[s], x=[v], B=[v], dt=[a], A=[a[0]], backend="triton"
            )
    for dtype in FLOATS[:2]:
        window, inputs = torch.zeros(BATCH, 512, 4, dtype=dtype), torch.zeros(ROWS, 512, dtype=dtype)
        yield lambda w=window, x=inputs: sdk.replay_conv(*kept, windows=[w], inputs=[x], backend="triton")
    for size in (128, 3):
        state, snapshots = torch.zeros(BATCH, size).bfloat16(), torch.zeros(ROWS, size).bfloat16()
        yield lambda s=state, t=snapshots: sdk.commit_state(
            *kept, states=[s], snapshots=[t], backend="triton"
        )
