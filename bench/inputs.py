# SPDX-License-Identifier: Apache-2.0
"""Builds what `verify` takes: laws that overlap as much as a workload asks, drafts sampled from them."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

BASE_STD = 2.5
BISECTIONS = 12
SETS = 64
ALLOWED = 0.75  # share of the tokens that the bitmask of `Inputs.allowed` lets pass
PENALTIES = dict(repetition_penalty=1.1, frequency_penalty=0.05, presence_penalty=0.1)


@dataclass(frozen=True)
class Workload:
    """One batch to verify. `branching` empty means a chain of `depth` drafted tokens."""

    batch: int = 8
    depth: int = 5
    vocab: int = 128256
    dtype: str = "float32"
    acceptance: float = 0.7  # mean over drafted rows of sum min(p, q)
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    branching: tuple[int, ...] = ()  # children per node, level by level, cut off at `max_nodes`
    max_nodes: int = 64
    distinct: int = 0  # tokens of each request's text that PENALTIES count; 0 = no edits

    @property
    def name(self) -> str:
        shape = f"tree{len(self.parents)}" if self.branching else f"chain{self.depth}"
        cuts = f"-k{self.top_k}" * (self.top_k > 0) + f"-p{self.top_p:g}" * self.filtered
        edits = f"-edits{self.distinct}" if self.distinct else ""
        return f"{shape}-b{self.batch}-v{self.vocab}{cuts}{edits}-a{self.acceptance:g}-{self.dtype}"

    @property
    def filtered(self) -> bool:
        return self.top_k > 0 or self.top_p < 1.0

    @property
    def parents(self) -> tuple[int, ...]:
        """Parent of every node of one request, breadth first; the root's is -1."""
        if not self.branching:
            return tuple(range(-1, self.depth))
        parents, level = [-1], [0]
        for width in self.branching:
            children = [node for node in level for _ in range(width)][: self.max_nodes - len(parents)]
            level = list(range(len(parents), len(parents) + len(children)))
            parents += children
        return tuple(parents)


@dataclass
class Inputs:
    """`N` nodes per request, `I` of them with children (`inner`); `S` sets of drafts and seeds."""

    case: Workload
    scale: float  # of the noise that sets target and draft apart
    overlap: float  # mean of sum min(p, q) over the drafted rows
    inner: list[int]
    target: Tensor  # [B, N, V] logits
    draft: Tensor  # [B, I, V] logits
    logprobs: Tensor  # [B, I, V] logarithm of the draft's law
    probs: Tensor  # [B, I, V] the draft's law
    tokens: Tensor  # [S, B, N] int64, -1 at the root
    seeds: Tensor  # [S, B] int64
    positions: Tensor  # [S, B] int64
    text: Tensor  # [B, L] int64, what was emitted before, if penalties count it

    @property
    def sets(self) -> int:
        return len(self.tokens)

    @cached_property
    def counts(self) -> Tensor:
        """[B, V], of the text."""
        zeros = torch.zeros(self.case.batch, self.case.vocab)
        return zeros.scatter_add_(1, self.text, torch.ones(self.text.shape))

    @cached_property
    def allowed(self) -> Tensor:
        """[B, N, V] bool: some tokens at random, and what is drafted, as drafters follow a grammar."""
        allowed = torch.rand(self.target.shape, generator=torch.Generator().manual_seed(3)) < ALLOWED
        for node, parent in enumerate(self.case.parents[1:], 1):
            allowed[:, parent].scatter_(1, self.tokens[:, :, node].T, True)
        return allowed

    def scores(self, i: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """[B, N, V]: the target's logits, with penalties by dense counts of each node's own text."""
        if not self.case.distinct:
            return self.target.to(dtype)
        counts = self.counts.to(dtype)[:, None].repeat(1, len(self.case.parents), 1)
        request = torch.arange(self.case.batch)
        for node, parent in enumerate(self.case.parents[1:], 1):
            counts[:, node] = counts[:, parent]
            counts[request, node, self.tokens[i, :, node]] += 1
        r, f, p = PENALTIES.values()
        logits, seen = self.target.to(dtype), counts > 0
        logits = torch.where(seen, torch.where(logits > 0, logits / r, logits * r), logits)
        return logits.sub_(counts.mul_(f)).sub_(seen.to(dtype), alpha=p)


def law(logits: Tensor, case: Workload, dtype: torch.dtype = torch.float32) -> Tensor:
    """Temperature, top-k, then top-p on what is left; ties with the last token kept are kept."""
    scaled = logits.to(dtype) / case.temperature
    if not case.filtered:
        return torch.softmax(scaled, -1)
    largest = scaled.topk(case.top_k or scaled.shape[-1], -1).values
    scaled = scaled.masked_fill(scaled < largest[..., -1:], -torch.inf)
    ranked = (largest - torch.logsumexp(scaled, -1, keepdim=True)).exp()
    kept = ranked.cumsum(-1) - ranked < case.top_p
    lowest = largest.masked_fill(~kept, torch.inf).amin(-1, keepdim=True)
    return torch.softmax(scaled.masked_fill(scaled < lowest, -torch.inf), -1)


def build(case: Workload, sets: int = SETS, scale: float | None = None, seed: int = 0) -> Inputs:
    """Deterministic in its arguments; a known `scale` saves the bisection."""
    generator = torch.Generator().manual_seed(seed)
    parents = case.parents
    inner = sorted(set(parents[1:]))
    base, target_noise, draft_noise = (
        torch.randn(case.batch, rows, case.vocab, generator=generator)
        for rows in (len(parents), len(parents), len(inner))
    )
    base.mul_(BASE_STD)

    def logits(scale: float) -> tuple[Tensor, Tensor]:
        return base + scale * target_noise, base[:, inner] + scale * draft_noise

    def overlap(target: Tensor, draft: Tensor) -> float:
        rows = zip(target[:, inner].flatten(0, 1).split(8), draft.flatten(0, 1).split(8), strict=True)
        shared = [torch.minimum(law(p, case), law(q, case)).sum(-1) for p, q in rows]
        return torch.cat(shared).mean().item()

    if scale is None:
        low, high = 0.0, 8.0
        for _ in range(BISECTIONS):
            scale = (low + high) / 2
            low, high = (scale, high) if overlap(*logits(scale)) > case.acceptance else (low, scale)

    target, draft = (x.to(getattr(torch, case.dtype)) for x in logits(scale))
    probs = law(draft, case)
    return Inputs(
        case=case,
        scale=scale,
        overlap=overlap(target, draft),
        inner=inner,
        target=target,
        draft=draft,
        logprobs=probs.log().to(target.dtype),
        probs=probs.to(target.dtype),
        tokens=_draw(probs, parents, inner, sets, generator),
        seeds=torch.randint(2**62, (sets, case.batch), generator=generator),
        positions=torch.randint(1, 100_000, (sets, case.batch), generator=generator),
        text=_text(case, generator),
    )


def _text(case: Workload, generator: torch.Generator) -> Tensor:
    """Every other token twice."""
    distinct = min(case.distinct, case.vocab // 2)
    tokens = [torch.randperm(case.vocab, generator=generator)[:distinct] for _ in range(case.batch)]
    return torch.stack([torch.cat([each, each[::2]]) for each in tokens])


def _draw(
    probs: Tensor, parents: tuple[int, ...], inner: list[int], sets: int, generator: torch.Generator
) -> Tensor:
    """Children of every node, sampled from its law, siblings without replacement (by an exponential race)."""
    tokens = torch.full((sets, len(probs), len(parents)), -1)
    for row, node in enumerate(inner):
        children = [child for child, parent in enumerate(parents) if parent == node]
        law = probs[:, row]
        if len(children) == 1:
            drawn = torch.multinomial(law, sets, replacement=True, generator=generator)
            tokens[..., children[0]] = drawn.T
            continue
        for i in range(sets):
            finish = law / torch.empty_like(law).exponential_(generator=generator)
            tokens[i][:, children] = finish.topk(len(children), -1).indices
    return tokens
