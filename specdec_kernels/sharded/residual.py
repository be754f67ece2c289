# SPDX-License-Identifier: Apache-2.0
"""What is left of the target's law at every node, as numbers that all processes have.

After any rejections P(x) = [a p(x) - b q(x)]+ at a node, but for the tokens of its children, whose P is kept
token by token. `others` is the mass of P without these tokens. A rejection of a sampled child asks for one
sum over the vocabulary; all else follows from numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from . import sums
from .nodes import Nodes
from .shard import VocabShard

MOST = 1e300  # a factor that stays finite where it meets others


class Facts(NamedTuple):
    """What does not change during verification. Numbers are float64."""

    nodes: Nodes
    p: Tensor  # [B, N] the target's probability of the node's token at its parent
    q: Tensor  # [B, N] the draft's
    others: Tensor  # [B, N] the target's mass at a node without the tokens of its children
    removed: Tensor  # [B, N, N] bool: [b, c, s] = child c cannot have the token of its sibling s
    factor: Tensor  # [B, N] Q = factor * q at what is not removed; 0 = Q is a point
    proposal: Tensor  # [B, N] Q of the node's own token, 0 outside the vocabulary
    first: Tensor  # [B, N] bool: no earlier sibling has the node's token
    same: Tensor  # [B, N, N] bool: siblings with one token
    impossible: Tensor  # [B, N] bool: in the vocabulary, and could not have been drawn as declared


class Rows(NamedTuple):
    """The parts of rows that this process has, without the tokens of children: [R, size] float64."""

    p: Tensor
    q: Tensor | None  # None: nothing is sampled


@dataclass
class Residual:
    """P at every node of the batch."""

    shard: VocabShard
    facts: Facts
    rows: Rows
    bits: int

    def __post_init__(self) -> None:
        facts = self.facts
        self.a = torch.ones_like(facts.p)
        self.b = torch.zeros_like(facts.p)
        self.others = facts.others.clone()
        self.at = facts.p.clone()  # [B, N] P of the node's token at its parent

    def reject(self, children: Tensor, w: Tensor, wanted: Tensor) -> Tensor:
        """Reject children [B, M] with distinct parents: P = norm([w P - Q]+).

        Args:
            children: [B, M] int64 nodes.
            w: [B, M] float64, the weight of P.
            wanted: [B, M] bool; the others are left as they are.

        Returns:
            S [B, M] float64, the mass of [w P - Q]+. If it is 0, P is p again.
        """
        facts, nodes = self.facts, self.facts.nodes
        parent = nodes.parents.gather(1, children)
        drawn = facts.factor.gather(1, children)  # 0 = Q is a point
        a = w * self.a.gather(1, parent)
        b = (w * self.b.gather(1, parent) + drawn).clamp_max(MOST)
        others = w * self.others.gather(1, parent)
        if self.rows.q is not None:
            summed = self._mass(parent, a, b, wanted & (drawn > 0))
            others = torch.where(drawn > 0, summed, others)

        def of_children(relation: Tensor) -> Tensor:
            return relation.gather(1, children[:, :, None].expand(-1, -1, relation.shape[2]))  # [B, M, N]

        kin = of_children(nodes.siblings) & wanted[:, :, None]
        point = (of_children(facts.same)).double()
        law = torch.where(of_children(facts.removed), 0.0, drawn[:, :, None] * facts.q[:, None, :])
        law = torch.where(drawn[:, :, None] > 0, law, point)
        left = (w[:, :, None] * self.at[:, None, :] - law).clamp_min(0.0)
        mass = others + torch.where(kin & facts.first[:, None, :], left, 0.0).sum(-1)
        positive = mass > 0
        scale = torch.where(positive, mass, 1.0)

        def put(into: Tensor, value: Tensor, otherwise: Tensor | float) -> Tensor:
            value = torch.where(positive, value / scale, otherwise)
            return into.scatter(1, parent, torch.where(wanted, value, into.gather(1, parent)))

        start = facts.others.gather(1, parent)
        self.a, self.b = put(self.a, a, 1.0), put(self.b, b, 0.0)
        self.others = put(self.others, others, start)
        again = torch.where(positive[:, :, None], left / scale[:, :, None], facts.p[:, None, :])
        self.at = torch.where(kin.any(1), torch.where(kin, again, 0.0).sum(1), self.at)
        return mass

    def _mass(self, parent: Tensor, a: Tensor, b: Tensor, wanted: Tensor) -> Tensor:
        """The sums [B, M] of [a p - b q]+ at nodes [B, M], without the tokens of their children. One sum of
        all processes."""
        assert self.rows.q is not None
        row = self.facts.nodes.rows.gather(1, parent)
        rest = _positive(self.rows.p[row], self.rows.q[row], a, b)
        parts = sums.parts(torch.where(wanted[:, :, None], rest, 0.0), self.bits)
        return sums.value(self.shard._collectives.total(parts), self.bits)

    def left(self, node: Tensor) -> Tensor:
        """P [B, size] at one node [B] of each request, up to a factor, as this process has it."""
        nodes, shard = self.facts.nodes, self.shard
        at = node[:, None]
        row = nodes.rows.gather(1, at)
        a, b = self.a.gather(1, at), self.b.gather(1, at)
        p = self.rows.p[row]
        rest = a[:, :, None] * p if self.rows.q is None else _positive(p, self.rows.q[row], a, b)
        place = nodes.tokens - shard.start
        here = nodes.tested & (nodes.parents == at) & (place >= 0) & (place < shard.size)
        wide = torch.nn.functional.pad(rest[:, 0], (0, 1))  # the last column takes what is elsewhere
        wide.scatter_(1, torch.where(here, place, shard.size), torch.where(here, self.at, 0.0))
        return wide[:, : shard.size]


def _positive(p: Tensor, q: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return (a[:, :, None] * p - b[:, :, None] * q).clamp_min_(0.0)
