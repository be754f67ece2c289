# SPDX-License-Identifier: Apache-2.0
"""A batch of trees as [B, N] tensors: a row for each request, a column for each node.

Nothing is read on the host, so a malformed tree must do no harm: a node whose parent is not an earlier node,
or that links do not reach, counts as none.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..ends import Ends
from ..tree import DraftTree


class Nodes(NamedTuple):
    """Nodes of trees; N = max_nodes. Whatever is not `live` holds some number in range."""

    rows: Tensor  # [B, N] int64, the row of the batch
    tokens: Tensor  # [B, N] int64
    parents: Tensor  # [B, N] int64
    kinds: Tensor  # [B, N] uint8
    depths: Tensor  # [B, N] int64
    live: Tensor  # [B, N] bool: the root, and nodes that may be tested
    tested: Tensor  # [B, N] bool: live nodes but the root
    siblings: Tensor  # [B, N, N] bool: both live, the same parent; a node is its own sibling
    earlier: Tensor  # [B, N, N] bool: [b, i, j] = j is a sibling that is verified before i
    above: Tensor  # [B, N, N] bool: [b, i, j] = j is i or an ancestor of i
    order: Tensor  # [B, N] int64: parents before children, siblings as they are verified; the others last
    post: Tensor  # [B, N] int64: the place of a node where children come before their parent
    first_post: Tensor  # [B, N] int64: the least `post` of the nodes at or below
    has_row: Tensor  # [B, N] bool: the target has a row of it
    at_bonus: Tensor  # [B, N] bool: the caller has drawn the token after it

    def of_parent(self, values: Tensor) -> Tensor:
        """values [B, N] of nodes -> those of the nodes' parents."""
        return values.gather(1, self.parents)


def nodes_of(tree: DraftTree, has_row: Tensor, has_bonus: Tensor, ends: Ends | None) -> Nodes:
    """The trees of a batch with at least one row. `has_row` [R] says of which nodes the target has rows, and
    `has_bonus` [B] for which requests the token after a chain was drawn. A node with which its request ends
    counts as one without a row."""
    last_row, count = tree.tokens.shape[0] - 1, tree.max_nodes
    bounds = tree.cu_nodes.long().clamp(0, last_row + 1)
    node = torch.arange(count, device=bounds.device)
    sizes = (bounds[1:] - bounds[:-1]).clamp(0, count)
    valid = node < sizes[:, None]
    rows = (bounds[:-1, None] + node).clamp_max(last_row)
    tokens, parents = tree.tokens[rows], tree.parents[rows].long()
    named = valid & (parents >= 0) & (parents < node)
    place = node.expand_as(rows)
    if tree.links is not None:
        first_child, next_sibling = (link[rows].long() for link in tree.links)
        place = _places(first_child, next_sibling, parents, named)
        named &= place < count
    drafted = named & (tokens >= 0)
    up = torch.where(drafted, parents, node)
    roots = valid & (node == 0)
    known, goes_on = valid & has_row[rows], valid
    if ends is not None:
        depths, _, _ = _ancestors(up, drafted | roots, tree.max_depth)
        goes_on = valid & ~_ended(ends, depths, tokens)
        known &= goes_on
    depths, live, above = _ancestors(up, (drafted & known.gather(1, up)) | roots, tree.max_depth)
    last = node + 1 == sizes[:, None]
    last = last | (~known & (torch.nn.functional.pad(tokens, (0, 1))[:, 1:] < 0))
    tested = live & (node > 0)
    siblings = tested[:, :, None] & tested[:, None, :] & (up[:, :, None] == up[:, None, :])
    earlier = siblings & (place[:, None, :] < place[:, :, None])
    below = (above & live[:, :, None]).sum(1)  # the number of nodes at or below each
    steps = 1 + torch.where(earlier, below[:, None, :], 0).sum(-1)  # from the parent in order
    pre = torch.where(above & (node > 0), steps[:, None, :], 0).sum(-1)
    post = pre + below - 1 - depths
    return Nodes(
        rows=rows,
        tokens=tokens,
        parents=up,
        kinds=tree.proposals[rows],
        depths=depths,
        live=live,
        tested=tested,
        siblings=siblings,
        earlier=earlier,
        above=above,
        order=torch.where(live, pre, count + node).argsort(-1),
        post=post,
        first_post=post - below + 1,
        has_row=known,
        at_bonus=goes_on & last & has_bonus[:, None],
    )


def _ended(ends: Ends, depths: Tensor, tokens: Tensor) -> Tensor:
    """Whether no token may follow a node [B, N]."""
    ended = torch.zeros_like(depths, dtype=torch.bool)
    if ends.stop_tokens is not None:
        ended = is_stop(ends.stop_tokens, tokens) & (depths > 0)
    for left in (ends.new_tokens_left, ends.context_left):
        if left is not None:
            ended = ended | (depths >= left[:, None])
    if ends.finished is not None:
        ended = ended | ((ends.finished > 0)[:, None] & (depths == 0))
    return ended


def is_stop(stop_tokens: Tensor, tokens: Tensor) -> Tensor:
    """Which tokens [B, N] are among those of their request, [B, S]."""
    return (tokens[:, :, None] == stop_tokens[:, None, :]).any(-1)


def _ancestors(up: Tensor, found: Tensor, max_depth: int) -> tuple[Tensor, Tensor, Tensor]:
    """Depths, which nodes are reached within `max_depth`, and ancestors [B, N, N], by pointer doubling."""
    count = up.shape[1]
    node = torch.arange(count, device=up.device)
    depths = (up != node).long()
    above = (node[:, None] == node).expand(len(up), -1, -1)
    for _ in range(max(count - 1, 1).bit_length()):
        found = found & found.gather(1, up)
        depths = depths + depths.gather(1, up)
        above = above | above.gather(1, up[:, :, None].expand_as(above))
        up = up.gather(1, up)
    return depths, found & (depths <= max_depth), above


def _places(first_child: Tensor, next_sibling: Tensor, parents: Tensor, named: Tensor) -> Tensor:
    """The place of every node among its siblings as linked, [B, N]; N = no link of its parent leads there."""
    count = parents.shape[1]
    node = torch.arange(count, device=parents.device)
    places = torch.full((len(parents), count + 1), count, device=parents.device)
    child = first_child
    for step in range(count - 1):
        inside = (child > node) & (child < count)
        to = torch.where(inside, child, 0)
        linked = inside & named.gather(1, to) & (parents.gather(1, to) == node)
        linked &= places.gather(1, to) == count  # listed once
        places.scatter_(1, torch.where(linked, child, count), step)
        places[:, count].fill_(count)
        child = torch.where(linked, next_sibling.gather(1, to), -1)
    return places[:, :count]
