# SPDX-License-Identifier: Apache-2.0
"""The rules, from numbers that all processes have: which node each request keeps last.

Every threshold is computed, whatever the coins are: the number of collectives must not depend on data. The
coins then choose.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .nodes import Nodes
from .residual import Residual


class Decision(NamedTuple):
    """What a rule decided, and how."""

    last: Tensor  # [B] int64, the last node that is kept
    tested: Tensor  # [B, N] bool, the nodes whose Q was asked for
    visited: Tensor  # [B, N] bool, the nodes whose row was asked for
    thresholds: Tensor  # [B, N] float64, the probability that a node's coin accepts it, if it is tested


def match(nodes: Nodes, drawn: Tensor) -> Decision:
    """Follow the first child that holds the token drawn at each node, `drawn` [B, N]."""
    passes = nodes.tested & (nodes.tokens == nodes.of_parent(drawn))
    return _descend(nodes, passes, passes.double())


def token(residual: Residual, coins: Tensor, chain: bool, weight: Tensor | None = None) -> Decision:
    """Token-level rejection, on a tree recursive; with a `weight` [B, 1] it is `Ensemble`."""
    nodes, q = residual.facts.nodes, residual.facts.proposal
    thresholds, passes = torch.zeros_like(q), torch.zeros_like(nodes.tested)
    for children in _turns(nodes, chain):
        p = residual.at if weight is None else weight * residual.at + (1.0 - weight) * q
        thresholds.scatter_(1, children, ratio(p, q).gather(1, children))
        passes.scatter_(1, children, (coins * q < p).gather(1, children))
        wanted = nodes.tested.gather(1, children)
        residual.reject(children, torch.ones_like(q).gather(1, children), wanted)
    return _descend(nodes, passes & nodes.tested, thresholds)


def traversal(residual: Residual, coins: Tensor, chain: bool) -> Decision:
    """Deepest nodes first: a node is tested after its children, with the weight that they left. The answer is
    the first node whose coin is below its weight, where children come before their parents."""
    nodes, q = residual.facts.nodes, residual.facts.proposal
    node = torch.arange(q.shape[1], device=q.device)
    root = node == 0
    w = torch.ones_like(q)  # the weight that reaches a node, then what its children leave of it
    entered = (nodes.live & root).clone()  # all nodes above may be accepted
    visited = entered.clone()  # and this one and what is below it, too
    alive = entered.clone()  # and still may
    for children in _turns(nodes, chain):
        for child in children.split(1, 1):  # parents come first
            parent = nodes.parents.gather(1, child)
            weight = ratio(w.gather(1, parent) * residual.at.gather(1, child), q.gather(1, child))
            enters = alive.gather(1, parent) & nodes.tested.gather(1, child)
            w.scatter_(1, child, weight)
            entered.scatter_(1, child, enters)
            visited.scatter_(1, child, enters & (weight > 0))
            alive.scatter_(1, child, enters & (weight > 0))
        parent = nodes.parents.gather(1, children)
        before, wanted = w.gather(1, parent), entered.gather(1, children)
        mass = residual.reject(children, before, wanted)
        # A mass of 0 can come from w < 1, which gives the node up, or from rounding.
        after = torch.where(mass > 0, mass / (mass + (1.0 - before)), before)
        lives = alive.gather(1, parent) & ~(wanted & ~(mass > 0) & (before < 1))
        w.scatter_(1, parent, torch.where(wanted, after, before))
        alive.scatter_(1, parent, lives)
    thresholds = torch.where(alive, w, 0.0)
    passes = (coins < thresholds) | (nodes.live & root)
    answer = torch.where(passes, nodes.post, q.shape[1]).amin(1, keepdim=True)
    last = (passes & (nodes.post == answer)).byte().argmax(1)
    reached = answer >= nodes.first_post  # nothing that comes before was accepted
    parents = (nodes.tested[:, :, None] & (nodes.parents[:, :, None] == node)).any(1)
    final = node == last[:, None]
    return Decision(last, entered & nodes.tested & reached, (visited & reached & parents) | final, thresholds)


def threshold(residual: Residual, coins: Tensor, single: float, acc: float) -> Decision:
    """One coin u for the children of a node: u * acc < the sum of p over them so far, or p(x) >= single. If
    none passes, the next token comes from p without their tokens."""
    facts, nodes = residual.facts, residual.facts.nodes
    own = torch.eye(facts.p.shape[1], dtype=torch.bool, device=coins.device)
    summed = torch.where(nodes.earlier | (nodes.siblings & own), facts.p[:, None, :], 0.0).sum(-1)
    passes = nodes.of_parent(coins) * acc < summed
    passes |= (facts.p > 0) & (facts.p >= single)
    decision = _descend(nodes, passes & nodes.tested, summed)
    rejected = nodes.tested & (nodes.parents == decision.last[:, None])
    rest = facts.others.gather(1, decision.last[:, None]) > 0
    residual.at = torch.where(rejected & rest, 0.0, residual.at)
    return decision._replace(tested=torch.zeros_like(passes))


def lenient(residual: Residual, coins: Tensor, factor: float) -> Decision:
    """u * Q(x) / factor < p(x)."""
    facts = residual.facts
    bar = facts.proposal / factor
    return _deepest(facts.nodes, coins * bar < facts.p, ratio(facts.p, bar))


def synthetic(residual: Residual, coins: Tensor, rates: Tensor, vocab_size: int) -> Decision:
    """u < rate of the node's depth, the last of `rates` [D] repeating."""
    nodes = residual.facts.nodes
    rate = rates.double()[(nodes.depths - 1).clamp(0, len(rates) - 1)]
    passes = (coins < rate) & (nodes.tokens < vocab_size)
    decision = _deepest(nodes, passes, rate)
    final = torch.arange(rate.shape[1], device=rate.device) == decision.last[:, None]
    return decision._replace(tested=torch.zeros_like(passes), visited=final)


def ratio(p: Tensor, q: Tensor) -> Tensor:
    """`min(1, p / q)`, and 0 if p = 0, even if q = 0."""
    return torch.where(p >= q, (p > 0).double(), p / torch.where(q > 0, q, 1.0))


def _turns(nodes: Nodes, chain: bool) -> Iterator[Tensor]:
    """Nodes [B, M] to be tested together, whose parents are distinct: those of chains all at once."""
    count = nodes.tokens.shape[1]
    if count > 1:
        yield from [nodes.order[:, 1:]] if chain else nodes.order[:, 1:].split(1, 1)


def _descend(nodes: Nodes, passes: Tensor, thresholds: Tensor) -> Decision:
    """From the root to the first child that passes, and on from there."""
    later = (nodes.earlier & passes[:, None, :]).any(-1)  # a sibling was accepted before
    off = nodes.tested & ~(passes & ~later)
    path = nodes.live & ~(nodes.above & off[:, None, :]).any(-1)
    last = torch.where(path, nodes.depths, -1).argmax(1)
    return Decision(last, nodes.tested & nodes.of_parent(path) & ~later, path, thresholds)


def _deepest(nodes: Nodes, passes: Tensor, thresholds: Tensor) -> Decision:
    """The deepest node that passes with all its ancestors, the lowest index among equals."""
    path = nodes.live & ~(nodes.above & (nodes.tested & ~passes)[:, None, :]).any(-1)
    deepest = torch.where(path, nodes.depths, -1)
    last = (deepest == deepest.amax(1, keepdim=True)).byte().argmax(1)
    tested = nodes.tested & nodes.of_parent(path)
    node = torch.arange(passes.shape[1], device=passes.device)
    parents = (tested[:, :, None] & (nodes.parents[:, :, None] == node)).any(1)
    return Decision(last, tested, parents | (node == last[:, None]), thresholds)
