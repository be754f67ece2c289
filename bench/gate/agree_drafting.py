# SPDX-License-Identifier: Apache-2.0
"""sample, sample_children, ngram_draft, ngram_tree and BatchBudget beside the oracle."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch

import specdec_kernels as sdk

from . import oracle, problems
from .agree_verify import difference
from .device import tensors
from .parts import Gate

METHODS = ("independent", "without_replacement", "top_k", "hybrid")


def run(gate: Gate) -> None:
    backend, why = oracle.backend()
    gate.record.note(f"Compared with {backend}: {why}.")
    dtypes = (torch.float32,) if gate.dry else (torch.float32, torch.bfloat16, torch.float16)
    groups = [*product(("sample", "children"), dtypes), ("ngrams", None), ("budget", None)]
    gate.each(check, groups)


def check(gate: Gate, group: tuple[str, torch.dtype | None]) -> None:
    {"sample": sample, "children": children, "ngrams": ngrams, "budget": budget}[group[0]](gate, group[1])


def _keys(batch: int, seed: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    seeds, positions = (
        torch.randint(2**62, (batch,), generator=g),
        torch.randint(2**40, (batch,), generator=g),
    )
    return dict(seeds=seeds, positions=positions)


def _both(gate: Gate, name: str, *args: Any, **options: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Tensors of the result: the device's, copied to the host, and the oracle's."""
    function, put = getattr(sdk, name), gate.device.put
    ours = function(*put(args), **put(options), backend="triton")
    theirs = function(*args, **options, backend=oracle.backend()[0])
    return [each.cpu() for each in _flat(ours)], _flat(theirs)


def _flat(result: Any) -> list[torch.Tensor]:
    """A tree of a result stands for its tokens and parents."""
    parts = result if isinstance(result, tuple) else (result,)
    trees = [(part.tokens, part.parents) if isinstance(part, sdk.DraftTree) else part for part in parts]
    return tensors(trees)


def sample(gate: Gate, dtype: torch.dtype) -> None:
    for vocab in (69,) if gate.dry else (69, 1501, 32000, 128256):
        logits = torch.randn(4, vocab, generator=torch.Generator().manual_seed(vocab)).mul(2).to(dtype)
        for name, sampling in list(problems.CUTS.items())[: 1 if gate.dry else None]:
            options = dict(sampling=sampling, return_logprobs=True, **_keys(4, vocab))
            (token, logprob), (other, expected) = _both(gate, "sample", logits, **options)
            error = difference(logprob, expected)
            detail = f"tokens {token.tolist()} and {other.tolist()}, log-probabilities off by {error:.1e}"
            where = f"sample, {str(dtype)[6:]}, V = {vocab}, {name}"
            gate.record.check(where, torch.equal(token, other) and error <= 1e-4, detail)


def children(gate: Gate, dtype: torch.dtype) -> None:
    ways = list(product(METHODS, ("no cuts", "top-k 50, top-p 0.9")))[: 1 if gate.dry else None]
    for vocab in (69,) if gate.dry else (69, 1501, 128256):
        logits = torch.randn(4, vocab, generator=torch.Generator().manual_seed(vocab)).mul(2).to(dtype)
        for method, name in ways:
            options = dict(
                method=method, sampling=problems.CUTS[name], nodes=torch.arange(4), **_keys(4, vocab)
            )
            ours, theirs = _both(gate, "sample_children", logits, 4, **options)
            pairs = list(zip(ours, theirs, strict=True))
            error = max(difference(a, b) for a, b in pairs if a.is_floating_point())
            where = f"sample_children, {method}, {str(dtype)[6:]}, V = {vocab}, {name}"
            equal = torch.equal(*pairs[0])
            gate.record.check(where, equal and error <= 1e-4, f"scores off by {error:.1e}")


def ngrams(gate: Gate, _: None) -> None:
    calls: list[tuple[str, Any, dict[str, Any]]] = [("ngram_draft", 8, dict(match="latest"))]
    if not gate.dry:
        calls += [("ngram_draft", 8, dict(match="frequent")), ("ngram_tree", 32, {}), ("ngram_tree", 200, {})]
    for width in (40,) if gate.dry else (60, 5000):
        g = torch.Generator().manual_seed(width)
        texts, lengths = (
            torch.randint(5, (16, width), generator=g),
            torch.randint(width + 1, (16,), generator=g),
        )
        for name, count, options in calls:
            ours, theirs = _both(gate, name, texts, lengths, count, **options)
            equal = all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
            gate.record.check(f"{name}, {count}, {options}, texts of {width}", equal)


def budget(gate: Gate, _: None) -> None:
    """Some steps of trees, some nodes of which were drawn, with weights or without."""
    costs = {1: 1.0, 8: 1.4, 64: 3.0}
    for batch, nodes in ((2, 8),) if gate.dry else ((2, 8), (8, 32), (32, 32)):
        g = torch.Generator().manual_seed(nodes)
        ours = sdk.BatchBudget(sdk.Budget(costs, patience=2), batch, 64, device=gate.device.kind)
        theirs = sdk.BatchBudget(sdk.Budget(costs, patience=2), batch, 64, device="cpu")
        for step in range(2 if gate.dry else 20):
            parents = torch.rand(batch, nodes, generator=g).mul(torch.arange(nodes)).int()
            parents[:, 0] = -1
            kinds = torch.randint(2 if step % 2 else 1, (batch, nodes), generator=g)
            tree = sdk.DraftTree.from_parents(
                torch.arange(batch * nodes).view(batch, nodes), parents, proposals=kinds
            )
            scores = torch.rand(batch, nodes, generator=g).log()
            scores[:, 0] = 0.0
            for node in range(1, nodes):
                scores[:, node] += scores.gather(1, parents[:, node : node + 1].long())[:, 0]
            weights = torch.rand(batch, generator=g) if step % 3 else None
            path = torch.tensor([[0, 1]] * batch).int()
            count = torch.full((batch,), 2).int()
            verified = sdk.Verified(path.long(), count, count - 1, path, None, count)
            found = []
            for each, put, backend in (
                (ours, gate.device.put, "triton"),
                (theirs, lambda x: x, oracle.backend()[0]),
            ):
                selected = each.select(put(tree), put(scores), weights=put(weights), backend=backend)
                each.update_(selected, put(verified), backend=backend)
                found.append([selected.rows.cpu(), each.credit.cpu(), each.promised.cpu(), each.kept.cpu()])
            equal = torch.equal(found[0][0], found[1][0])
            error = max(difference(a, b) for a, b in zip(found[0][1:], found[1][1:], strict=True))
            where = f"BatchBudget, B = {batch}, {nodes} nodes, step {step}"
            gate.record.check(where, equal and error <= 1e-6, f"rows equal: {equal}, sums off by {error:.1e}")
