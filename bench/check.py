# SPDX-License-Identifier: Apache-2.0
"""Is a contender right? Its acceptance and its tokens against the exact law of its rule, over few tokens.

The law is computed in float64 and involves no draws: given the drafted tokens, the chance to stop at each
node follows from the rule alone.
"""

import dataclasses
import math
import random
from functools import cache

import numpy as np
import torch

from .inputs import Inputs, Workload, build, law
from .peers import Verifier

VOCAB, TOP_K, CHAINS, SETS = 64, 8, 24, 64
SIGMAS = 4


class Stops:
    """`reach[v]`: chance to stop at node v; `laws[v]`: law of the next token there, up to a factor."""

    def __init__(
        self, rule: str, p: np.ndarray, q: dict[int, np.ndarray], parents: tuple[int, ...], tokens: list[int]
    ):
        self._p, self._q, self._tokens = p, q, tokens
        self._children = [[c for c, parent in enumerate(parents) if parent == v] for v in range(len(parents))]
        self.reach, self.laws = np.zeros(len(parents)), [p[v] for v in range(len(parents))]
        if rule == "traversal":
            self._traversal(0, 1.0, 1.0)
        else:
            (self._token if rule == "token" else self._match)(0, 1.0)

    def _match(self, node: int, reach: float) -> None:
        law = self._p[node].copy()
        for child in self._children[node]:
            x = self._tokens[child]
            self._match(child, reach * law[x])
            law[x] = 0
        self.reach[node], self.laws[node] = reach * law.sum(), law

    def _token(self, node: int, reach: float) -> None:
        law, left = self._p[node], self._q[node].copy() if node in self._q else None
        for child in self._children[node]:
            x, q = self._tokens[child], left / left.sum()
            chance = min(1.0, law[x] / q[x])
            self._token(child, reach * chance)
            reach *= 1 - chance
            rest = np.maximum(law - q, 0)
            law = rest / rest.sum() if rest.sum() > 0 else self._p[node]
            left[x] = 0
        self.reach[node], self.laws[node] = reach, law

    def _traversal(self, node: int, weight: float, pending: float) -> float:
        """Chance that nothing in this subtree was accepted, given that of everything before it."""
        law, left = self._p[node], self._q[node].copy() if node in self._q else None
        for child in self._children[node]:
            x, q = self._tokens[child], left / left.sum()
            pending = self._traversal(child, min(1.0, weight * law[x] / q[x]), pending)
            rest = np.maximum(weight * law - q, 0)
            mass = rest.sum()
            if mass == 0 and weight < 1:
                return pending
            weight, law = (mass / (mass + (1 - weight)), rest / mass) if mass else (1.0, self._p[node])
            left[x] = 0
        self.reach[node], self.laws[node] = pending * weight, law
        return pending * (1 - weight)


@cache
def _small(case: Workload) -> Inputs:
    small = dataclasses.replace(case, vocab=VOCAB, top_k=min(case.top_k, TOP_K))
    if case.branching:
        return build(small, sets=32 * SETS)
    return build(dataclasses.replace(small, batch=CHAINS), sets=SETS)


@cache
def _stops(case: Workload, rule: str, draft: str, masked: bool) -> list[list[Stops]]:
    inputs = _small(case)
    edits = bool(case.distinct)
    scores = (inputs.scores(i, torch.float64) for i in range(inputs.sets if edits else 1))
    if masked:
        scores = (each.masked_fill(~inputs.allowed, -torch.inf) for each in scores)
    p = [law(each, inputs.case, torch.float64).numpy() for each in scores]
    if draft == "draft":
        q = law(inputs.draft, inputs.case, torch.float64).numpy()
    else:
        q = inputs.logprobs.double().exp().numpy() if draft == "logprobs" else inputs.probs.double().numpy()
    laws = [dict(zip(inputs.inner, rows, strict=True)) for rows in q]
    return [
        [Stops(rule, p[i * edits][b], laws[b], case.parents, tokens[b]) for b in range(len(laws))]
        for i, tokens in enumerate(inputs.tokens.tolist())
    ]


def failure(peer: Verifier, case: Workload) -> str | None:
    """What is wrong with a contender on cases like this one, or None. Asked once for all sizes."""
    return _failure(peer, dataclasses.replace(case, batch=1, vocab=VOCAB, acceptance=0.7))


@cache
def _failure(peer: Verifier, case: Workload) -> str | None:
    torch.manual_seed(1)
    random.seed(1)
    depths = np.zeros(len(case.parents))
    for node, parent in enumerate(case.parents[1:], 1):
        depths[node] = depths[parent] + 1
    run = peer.prepare(_small(case))
    taken = expected = variance = 0.0
    for i, requests in enumerate(_stops(case, peer.rule, peer.draft, peer.masked)):
        last, following = (x.tolist() for x in peer.read(run(i)))
        for b, stops in enumerate(requests):
            if not 0 <= following[b] < VOCAB or stops.laws[last[b]][following[b]] <= 0:
                return f"token {following[b]} cannot follow node {last[b]} (draft set {i}, request {b})"
            mean = stops.reach @ depths
            taken, expected = taken + depths[last[b]], expected + mean
            variance += stops.reach @ depths**2 - mean**2
    sigmas = (taken - expected) / math.sqrt(variance)
    if abs(sigmas) > SIGMAS:
        return f"accepted {taken:.0f} tokens where {expected:.0f} are expected ({sigmas:+.1f} sigma)"
    return None
