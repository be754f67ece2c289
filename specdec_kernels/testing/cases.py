# SPDX-License-Identifier: Apache-2.0
"""Cases of the referee: small laws, drafts drawn from them, and the exact law of what must come out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

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
    """

    name: str
    parents: tuple[int, ...]
    target: Tensor
    draft: Tensor | None
    shortest: int | None = None

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
        places = [0] * len(self.parents)  # of the next chosen child
        ends = torch.full((requests,), len(self.parents))
        if self.shortest is not None:
            ends = torch.randint(self.shortest, self.length, (requests,), generator=random)
        for node, parent in enumerate(self.parents[1:], 1):
            above = tokens[:, parent]
            if self.draft is None:
                likely = self.target.argsort(1, descending=True)
                drawn = likely[above.clamp(min=0), places[parent]]
                places[parent] += 1
            else:
                drawn = torch.multinomial(self.draft[above.clamp(min=0)], 1, generator=random)[:, 0]
            tokens[:, node] = torch.where(ends < self.depths[node], NEVER, drawn)
        last = tokens.clamp(min=0)
        draft = None if self.draft is None else self.draft[last].log().float()
        target, verifying = self.target[last].log().float(), _generator(seed, 1)
        return Case(self.name, tokens, self.parents, target, draft, verifying, random.initial_seed())

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
