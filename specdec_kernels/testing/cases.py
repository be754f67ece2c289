# SPDX-License-Identifier: Apache-2.0
"""Cases of the referee: small laws, drafts drawn from them, and the exact law of what must come out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
from torch import Tensor

from ..tree import DraftTree, Proposal

VOCAB = 5
NEVER = -1  # in place of a draft: there is none


@dataclass(frozen=True, eq=False)
class Case:
    """What a verifier is given: B independent requests with trees of one shape. All tensors are on the CPU.

    Attributes:
        tokens: [B, N] int64 drafted tokens, the root in column 0; -1 at the end of a draft = none.
        parents: of the N nodes, -1 for the root; parents and earlier siblings come first.
        target_logits: [B, N, V] float32; the row of a node is the target's law of the token after it.
        draft_logits: [B, N, V] float32; the row of a node is the law that its children were drawn from,
            independently. None: the drafts were chosen, not drawn (`Proposal.POINT`).
        generator: for the verifier's random numbers.
        draft_seed: what the drafts were drawn with. A verifier that draws with it again is not lossless.
    """

    name: str
    tokens: Tensor
    parents: tuple[int, ...]
    target_logits: Tensor
    draft_logits: Tensor | None
    generator: torch.Generator
    draft_seed: int

    @property
    def is_chain(self) -> bool:
        return self.parents == tuple(range(-1, len(self.parents) - 1))

    @property
    def tree(self) -> DraftTree:
        """The same drafts as this package has them."""
        proposal = Proposal.POINT if self.draft_logits is None else Proposal.INDEPENDENT
        links = torch.tensor(self.parents, dtype=torch.int32).repeat(len(self.tokens), 1)
        return DraftTree.from_parents(self.tokens, links, proposals=proposal)

    @contextmanager
    def global_generator(self) -> Iterator[None]:
        """Lets torch's global generator draw what `generator` would: for verifiers that take none."""
        before = torch.get_rng_state()
        torch.set_rng_state(self.generator.get_state())
        try:
            yield
        finally:
            self.generator.set_state(torch.get_rng_state())
            torch.set_rng_state(before)

    def one(self, request: int) -> Case:
        """The case of one request, B = 1."""
        b = slice(request, request + 1)
        draft = None if self.draft_logits is None else self.draft_logits[b]
        return Case(
            self.name,
            self.tokens[b],
            self.parents,
            self.target_logits[b],
            draft,
            self.generator,
            self.draft_seed,
        )


@dataclass(frozen=True, eq=False)
class Problem:
    """How a `Case` is made: a target and a drafter whose laws depend on the last token alone.

    Attributes:
        name: of the case; what it is aimed at.
        parents: as in `Case`.
        target: [V, V] float64 probabilities of the next token, by the last one.
        draft: the drafter's, likewise; None: the drafts are the likeliest tokens that are not 0.
        shortest: drafts end at a depth from this one on, at random, -1 follows; None: all are whole.
        grid: of a case to be enumerated: the probabilities by which a right verifier decides are multiples of
            1 / grid.
    """

    name: str
    parents: tuple[int, ...]
    target: Tensor
    draft: Tensor | None
    shortest: int | None = None
    grid: int = 0

    @cached_property
    def depths(self) -> list[int]:
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent < 0 else depths[parent] + 1)
        return depths

    @property
    def length(self) -> int:
        """Tokens of a text that is compared: what a step emits at most."""
        return 1 + max(self.depths)

    @cached_property
    def law(self) -> Tensor:
        """[V ** length] float64: the exact probability of each text after the root token 0."""
        vocab = len(self.target)
        law = self.target[0]
        for _ in range(self.length - 1):  # the last token of a text is its number modulo V
            last = torch.arange(len(law)) % vocab
            law = (law[:, None] * self.target[last]).flatten()
        return law

    def draw(self, requests: int, seed: int) -> Case:
        """Drafts drawn with `seed`, and a generator for the verifier that is independent of it."""
        random = _generator(seed, 0)
        tokens = torch.zeros(requests, len(self.parents), dtype=torch.int64)
        ends = torch.full((requests,), len(self.parents))
        if self.shortest is not None:
            ends = torch.randint(self.shortest, self.length, (requests,), generator=random)
        for node, parent in enumerate(self.parents[1:], 1):
            above = tokens[:, parent]
            if self.draft is None:
                drawn = self._chosen(node, above)
            else:
                drawn = torch.multinomial(self.draft[above.clamp(min=0)], 1, generator=random)[:, 0]
            tokens[:, node] = torch.where(ends < self.depths[node], NEVER, drawn)
        return self.case(tokens, seed)

    def drafts(self) -> tuple[Tensor, Tensor]:
        """[D, N] all drafts that have a probability, and [D] float64: it."""
        drawn = self.draft is not None
        choices = product(range(len(self.target) if drawn else 1), repeat=len(self.parents) - 1)
        tokens = torch.tensor([[0, *choice] for choice in choices])
        chance = torch.ones(len(tokens), dtype=torch.float64)
        for node, parent in enumerate(self.parents[1:], 1):
            if self.draft is None:
                tokens[:, node] = self._chosen(node, tokens[:, parent])
            else:
                chance = chance * self.draft[tokens[:, parent], tokens[:, node]]
        return tokens[chance > 0], chance[chance > 0]

    def case(self, tokens: Tensor, seed: int) -> Case:
        """The case of these drafts."""
        last = tokens.clamp(min=0)
        draft = None if self.draft is None else self.draft[last].log().float()
        target, drafting = self.target[last].log().float(), _generator(seed, 0).initial_seed()
        return Case(self.name, tokens, self.parents, target, draft, _generator(seed, 1), drafting)

    def accepted(self, tokens: Tensor, emitted: Tensor) -> Tensor:
        """[B] emitted tokens but for the last that are drafts, one under the other."""
        lengths = (emitted >= 0).sum(1)
        reached = torch.zeros(tokens.shape, dtype=torch.bool)
        reached[:, 0] = True
        for node, parent in enumerate(self.parents[1:], 1):
            depth = self.depths[node]
            same = (tokens[:, node] == emitted[:, depth - 1]) & (lengths > depth)
            reached[:, node] = reached[:, parent] & same
        return (reached * torch.tensor(self.depths)).amax(1)

    def _chosen(self, node: int, above: Tensor) -> Tensor:
        """[B] the likeliest token that no earlier sibling of this node has."""
        place = self.parents[:node].count(self.parents[node])
        return self.target.argsort(1, descending=True)[above.clamp(min=0), place]

    def complete(self, emitted: Tensor, seed: int) -> Tensor:
        """[B] numbers of texts: [B, length] emitted tokens, where -1 is replaced by draws from the target."""
        random = _generator(seed, 2)
        last = torch.zeros(len(emitted), dtype=torch.int64)
        number = torch.zeros(len(emitted), dtype=torch.int64)
        for place in range(self.length):
            drawn = torch.multinomial(self.target[last], 1, generator=random)[:, 0]
            last = torch.where(emitted[:, place] < 0, drawn, emitted[:, place])
            number = number * len(self.target) + last
        return number

    def completed(self, emitted: Tensor, weights: Tensor) -> Tensor:
        """[V ** length] float64: the law of texts, if `complete` were to draw without end.

        Args:
            emitted: [R, length] emitted tokens, then -1.
            weights: [R] float64 probabilities of the rows.
        """
        vocab, lengths = len(self.target), (emitted >= 0).sum(1)
        law, number = torch.zeros(1, dtype=torch.float64), torch.zeros(len(emitted), dtype=torch.int64)
        for length in range(1, self.length + 1):
            last = torch.arange(len(law)) % vocab
            law = (law[:, None] * self.target[last]).flatten()
            number = number * vocab + emitted[:, length - 1].clamp(min=0)
            ended = lengths == length
            law = law + torch.bincount(number[ended], weights[ended], minlength=len(law))
        return law


def _generator(seed: int, purpose: int) -> torch.Generator:
    """For drafts (0), the verifier (1) and completions (2). PyTorch's generator on the CPU reads the lower 32
    bits of its seed, so purposes must differ there."""
    return torch.Generator().manual_seed(3 * seed + purpose)


CHAIN_2, CHAIN_3 = (-1, 0, 1), (-1, 0, 1, 2)
SIBLINGS, TREE = (-1, 0, 0, 0), (-1, 0, 0, 1, 1, 2)


def _laws(seed: int, sharpness: float) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(VOCAB, VOCAB, generator=random, dtype=torch.float64)).softmax(-1)


def _halves() -> tuple[Tensor, Tensor]:
    """Laws by which a path has half its weight left after one token, and by which [p / 2 - q]+ is not alike
    [p - q]+: the residuals of block verification and of speculative sampling."""
    own = torch.tensor([0.01, 0.485, 0.485, 0.01, 0.01], dtype=torch.float64)  # by the distance
    drafter = torch.tensor([0.24, 0.02, 0.25, 0.25, 0.24], dtype=torch.float64)  # from the last token
    target, draft = (torch.stack([law.roll(last) for last in range(VOCAB)]) for law in (own, drafter))
    target[0] = 0.2
    draft[0] = torch.tensor([0.04, 0.44, 0.44, 0.04, 0.04], dtype=torch.float64)
    return target, draft


def problems(trees: bool, chosen: bool) -> list[Problem]:
    """The cases. Each has a kind of mistake that it shows best.

    Args:
        trees: whether there are trees with siblings.
        chosen: whether drafts are chosen, and come without laws.
    """
    target = _laws(1, 1.0)
    other = None if chosen else _laws(2, 1.0)
    near = None if chosen else 0.9 * target + 0.1 * _laws(2, 1.0)
    zeros = target.clone()
    zeros[:, 1::2] = 0.0  # what the drafter often guesses, and the target never says
    zeros /= zeros.sum(-1, keepdim=True)
    certain = torch.eye(VOCAB, dtype=torch.float64).roll(1, 1)  # one text has all probability
    halves, blocks = _halves()
    found = [
        Problem("chain, other law", CHAIN_2, target, other),
        Problem("chain, residuals of weights", CHAIN_2, halves, None if chosen else blocks),
        Problem("long chain, other law", CHAIN_3, target, other),
        Problem("chain, near law", CHAIN_2, target, near),
        Problem("chain, impossible tokens", CHAIN_2, zeros, None if chosen else target),
        Problem("chain, short drafts", CHAIN_2, target, near, shortest=0),
        Problem("chain, certain text", CHAIN_2, certain, None if chosen else target),
    ]
    if trees:
        found += [
            Problem("siblings, other law", SIBLINGS, target, other),
            Problem("tree, other law", TREE, target, other),
            Problem("tree, near law", TREE, target, near),
            Problem("tree, impossible tokens", TREE, zeros, None if chosen else target),
        ]
    return found


def exact_problems(trees: bool, chosen: bool, batched: bool = True) -> list[Problem]:
    """Cases to be enumerated; without batches a single one of few cells. Acceptance probabilities of
    speculative sampling, of block verification and of recursive rejection are multiples of 1 / grid, and so
    are the sums over their residuals' first tokens."""
    if chosen:
        law = torch.full((4, 4), 1.0 / 6.0, dtype=torch.float64)
        target, chain, siblings, grid = law.fill_diagonal_(0.5).roll(1, 1), None, None, 12
    else:
        sixths = [[1, 1, 2, 2], [2, 1, 3, 0], [0, 1, 2, 3], [1, 1, 1, 3]]
        target = torch.tensor(sixths, dtype=torch.float64) / 6.0
        parts = [[2, 12, 18, 4], [0, 6, 6, 24], [18, 3, 3, 12], [4, 4, 12, 16]]
        chain = torch.tensor(parts, dtype=torch.float64) / 36.0
        siblings, grid = torch.tensor([[1, 6, 2, 3]] * 4, dtype=torch.float64) / 12.0, 6
    if not batched:
        return [Problem("exact draft", (-1, 0), target, chain, grid=grid)]
    found = [Problem("exact chain", CHAIN_2, target, chain, grid=grid)]
    return found + [Problem("exact siblings", (-1, 0, 0), target, siblings, grid=grid)] * trees
