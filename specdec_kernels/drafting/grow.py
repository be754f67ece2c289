# SPDX-License-Identifier: Apache-2.0
"""Draft trees that grow where the drafter is confident."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._checks import INF, bad_type, bad_value, check_device, check_dim, check_dtype, check_int, check_tensor
from ..tree import DraftTree, Proposal
from .children import Children


class Frontier(NamedTuple):
    """The nodes that are expanded next: at most W of every request, all of one depth.

    Expanded nodes are numbered 0, 1, ... over all levels. The number of a node keys the noise of its children
    and is the row of its logits, see `GrownTree.draft_rows`.
    """

    depth: int
    """The depth of these nodes; the root has 0."""
    nodes: Tensor
    """[B, W] int64, the numbers of the nodes, the same in every request."""
    parents: Tensor
    """[B, W] int64, the numbers of their parents; -1 for the root."""
    tokens: Tensor
    """[B, W] int64, -1 where a request has fewer nodes to expand."""
    scores: Tensor
    """[B, W] float32, path scores; -inf where there is no node."""


class GrownTree(NamedTuple):
    """The tree that `grow_tree` kept, with the rows and scores of its nodes."""

    tree: DraftTree
    """`max_nodes` rows for every request; unused ones hold -1."""
    draft_rows: Tensor
    """[R] int32 for `verify`: the row from which a node's children were drawn. Rows count in the logits
    [B, W, V] of all levels, concatenated along W, flattened to [B * sum W, V]. -1: not expanded."""
    scores: Tensor
    """[B, max_nodes] float32: path scores, 0 at roots and -inf at unused nodes."""


def grow_tree(
    expand: Callable[[Frontier], Children | tuple[Tensor, Tensor, Tensor]],
    roots: Tensor,
    max_nodes: int,
    *,
    max_depth: int,
    width: int,
) -> GrownTree:
    """Expand the likeliest nodes level by level, then keep the best `max_nodes` nodes of all levels.

    A node's path score is the sum of the drafter's log-probabilities along its path. At every level the
    `width` nodes of the best scores are expanded. In the end all levels are ranked together. `POINT` nodes
    rank by their own score. Sampled siblings rank by their parent's score, which was known before they were
    drawn. So they are kept or dropped in their order, whatever was drawn, and their proposals stay true. If
    siblings mix `POINT` and sampled nodes, they are kept together or not at all.

    Nodes are numbered depth first. If children are in descending order, as from `top_k`, the likeliest path
    is numbered first.

    Args:
        expand: called `max_depth` times with a `Frontier` of B * W nodes; returns their children as
            `sample_children` does: tokens [B * W, k] int64, proposals [k] uint8 and log-probabilities
            [B * W, k] float32; -1 and -inf stand for no child. k may differ between levels.
        roots: [B] int64, the last committed tokens.
        max_nodes: number of nodes to keep of every tree, the root included, >= 1.
        max_depth: number of levels to expand, >= 1.
        width: the largest W, >= 1. A level has no more nodes than the level before it has children.

    Returns:
        `GrownTree`.

    Raises:
        ValueError: wrong shapes or numbers.
        TypeError: wrong dtypes or devices.

    Notes:
        Runs on the device of `roots`, with static shapes and without synchronising. Of equal nodes the
        first one wins. A parallel drafter, whose laws depend on the depth alone, returns the same children
        for all nodes of a level.

    Source: Li et al. 2024, EAGLE-2, section 4; Wang et al. 2024, OPT-Tree.

    Example:
        >>> from specdec_kernels import sample_children
        >>> logits = torch.tensor([[2.0, 1.0, 0.0]])
        >>> def expand(frontier):
        ...     rows = logits.expand(frontier.tokens.numel(), 3)
        ...     return sample_children(rows, 2, method="top_k")
        >>> tree, draft_rows, scores = grow_tree(expand, torch.tensor([7]), 5, max_depth=2, width=2)
        >>> tree.tokens.tolist(), tree.parents.tolist(), draft_rows.tolist()
        ([7, 0, 0, 1, 1], [-1, 0, 1, 1, 0], [0, 1, -1, -1, 2])
    """
    check_dtype("grow_tree", "roots", roots, (torch.int64,))
    check_dim("grow_tree", "roots", roots, 1, "[B]")
    if not callable(expand):
        bad_type("grow_tree", "expand", "must be callable", type(expand).__name__)
    max_nodes = check_int("grow_tree", "max_nodes", max_nodes, 1)
    max_depth = check_int("grow_tree", "max_depth", max_depth, 1)
    width = check_int("grow_tree", "width", width, 1)
    levels = [_root(roots)]
    start = expanded = 0  # number of nodes before the last level; number of expanded nodes
    for depth in range(max_depth):
        level = levels[-1]
        chosen = level.scores.argsort(dim=1, descending=True, stable=True)[:, :width]
        batch, count = chosen.shape
        numbers = torch.arange(expanded, expanded + count, device=roots.device).expand(batch, count)
        above, tokens, scores = (part.gather(1, chosen) for part in (level.above, level.tokens, level.scores))
        level.numbers.scatter_(1, chosen, torch.where(scores > -INF, numbers, -1))
        frontier = Frontier(depth, numbers, above, tokens, scores)
        levels.append(_children(frontier, start + chosen, *_checked(expand(frontier), frontier)))
        start, expanded = start + level.tokens.shape[1], expanded + count
    nodes = Level(*(torch.cat(parts, 1) for parts in zip(*levels, strict=True)))
    return _numbered(nodes, _kept(nodes, max_nodes), expanded, max_depth)


class Level(NamedTuple):
    """Nodes [B, n] of one level or of all levels. Siblings are neighbours, in their order."""

    tokens: Tensor
    parents: Tensor  # the parents' places among all nodes
    above: Tensor  # the parents' numbers among the expanded nodes
    proposals: Tensor
    scores: Tensor  # path scores
    ranks: Tensor  # the nodes of the highest ranks are kept
    mixed: Tensor  # whether a node is kept only together with its siblings
    numbers: Tensor  # the nodes' own numbers among the expanded nodes, -1 = not expanded


def _root(roots: Tensor) -> Level:
    tokens = roots.unsqueeze(1)
    zeros, scores = torch.zeros_like(tokens), torch.zeros(tokens.shape, device=roots.device)
    none = zeros - 1
    return Level(tokens, none, none, zeros.to(torch.uint8), scores, scores + INF, zeros.bool(), none.clone())


def _checked(children: object, frontier: Frontier) -> Children:
    """The result of `expand`, checked."""
    if not isinstance(children, (tuple, list)) or len(children) != 3:
        rule = "must return tokens, proposals and scores"
        count = f" of {len(children)}" if isinstance(children, (tuple, list)) else ""
        bad_type("grow_tree", "expand", rule, f"{type(children).__name__}{count}")
    tokens, proposals, scores = children
    rows, device = frontier.tokens.numel(), frontier.tokens.device
    names = ("tokens of expand", "proposals of expand", "scores of expand")
    check_dtype("grow_tree", names[0], tokens, (torch.int64,))
    check_device("grow_tree", names[0], tokens, device)
    if tokens.dim() != 2 or tokens.shape[0] != rows or tokens.shape[1] < 1:
        bad_value("grow_tree", names[0], f"must have shape [B * W, k] = [{rows}, k]", list(tokens.shape))
    check_tensor("grow_tree", names[1], proposals, "[k]", tokens.shape[1:], (torch.uint8,), device)
    check_tensor("grow_tree", names[2], scores, "[B * W, k]", tokens.shape, (torch.float32,), device)
    return Children(tokens, proposals, scores)


def _children(
    frontier: Frontier, parents: Tensor, tokens: Tensor, proposals: Tensor, scores: Tensor
) -> Level:
    """The children of a frontier whose nodes have the places `parents` [B, W] among all nodes."""
    batch, count = frontier.tokens.shape
    shape = (batch, count, tokens.shape[1])
    tokens, path = tokens.view(shape), frontier.scores.unsqueeze(-1)
    scores = path + scores.view(shape).clamp_max(0.0)
    there = (tokens >= 0) & (scores > -INF)
    scores = torch.where(there, scores, -INF)
    sampled = proposals != int(Proposal.POINT)
    ranks = torch.where(there & sampled.any(), path, scores)
    mixed = sampled.any() & ~sampled.all()
    return Level(
        torch.where(there, tokens, -1).flatten(1),
        parents.unsqueeze(-1).expand(shape).flatten(1),
        frontier.nodes.unsqueeze(-1).expand(shape).flatten(1),
        proposals.expand(shape).flatten(1),
        scores.flatten(1),
        ranks.flatten(1),
        mixed.expand(shape).flatten(1),
        torch.full_like(tokens, -1).flatten(1),
    )


def _kept(nodes: Level, max_nodes: int) -> Tensor:
    """[B, max_nodes] int64: places of the nodes to keep, ascending; unused entries lie beyond all nodes."""
    batch, count = nodes.tokens.shape
    lacking = (0, max(max_nodes + 1 - count, 0))
    # A parent ranks no lower than its children and precedes them, so it is kept if a child is.
    ranks, order = pad(nodes.ranks, lacking, value=-INF).sort(dim=1, descending=True, stable=True)
    parents = pad(nodes.parents, lacking, value=-1).gather(1, order)
    mixed = pad(nodes.mixed, lacking).gather(1, order)
    # Siblings are neighbours, so only the last kept siblings can lack some of theirs.
    last = slice(max_nodes, max_nodes + 1)
    broken = mixed[:, last] & (ranks[:, last] > -INF) & (parents == parents[:, last])
    places = torch.where((ranks > -INF) & ~broken, order, count)
    return places[:, :max_nodes].sort(dim=1).values


def _numbered(nodes: Level, kept: Tensor, expanded: int, max_depth: int) -> GrownTree:
    """The kept nodes in depth-first order."""
    batch, count = nodes.tokens.shape
    max_nodes = kept.shape[1]
    used = kept < count
    source = kept.clamp_max(count - 1)
    index = torch.arange(max_nodes, device=kept.device).expand_as(kept)
    place = torch.zeros((batch, count + 1), dtype=torch.int64, device=kept.device).scatter_(1, kept, index)
    parents = place.gather(1, nodes.parents.gather(1, source).clamp_min(0))

    # Sizes of subtrees from the leaves up. After each pass they are right one level higher.
    below = used & (index > 0)
    sizes = used.long()
    for _ in range(max_depth):
        sizes = used.long().scatter_add(1, parents, torch.where(below, sizes, 0))
    # A node comes after its parent and the subtrees of its earlier siblings, which are its left neighbours.
    before = sizes.cumsum(1) - sizes
    eldest = torch.full_like(index, max_nodes).scatter_reduce(
        1, parents, torch.where(below, index, max_nodes), "amin"
    )
    gap = 1 + before - before.gather(1, eldest.gather(1, parents).clamp_max(max_nodes - 1))
    number = torch.zeros_like(index)
    for _ in range(max_depth):
        number = torch.where(below, number.gather(1, parents) + gap, 0)
    number = torch.where(used, number, index)

    def ordered(values: Tensor) -> Tensor:
        return torch.zeros_like(values).scatter_(1, number, values)

    row = nodes.numbers.gather(1, source)
    row = torch.where(
        used & (row >= 0), row + expanded * torch.arange(batch, device=kept.device).unsqueeze(1), -1
    )
    tree = DraftTree.from_parents(
        ordered(torch.where(used, nodes.tokens.gather(1, source), -1)),
        ordered(torch.where(below, number.gather(1, parents), torch.where(index > 0, 0, -1))),
        proposals=ordered(torch.where(used, nodes.proposals.gather(1, source), 0)),
        max_depth=min(max_depth, max(max_nodes - 1, 0)),
        check=False,
    )
    scores = torch.where(used, nodes.scores.gather(1, source), -INF)
    return GrownTree(tree, ordered(row).int().flatten(), ordered(scores))
