"""What follows from the parent links of a batch of trees: depths, child lists, ancestor sets, checks.

Everything is vectorised over the rows of the batch and free of host synchronisation, except the `check_`
functions, which read values and raise `ValueError` naming request and node. A row is an index into the batch,
a node an index within its request.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import bad_value


def owners(cu_nodes: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Request and node of every row, both [R] int64; rows from `cu_nodes[B]` on get request B."""
    row = torch.arange(rows, device=cu_nodes.device)
    request = torch.searchsorted(cu_nodes[1:].contiguous(), row.to(cu_nodes.dtype), right=True)
    return request, row - cu_nodes.long()[request]


def parent_rows(parents: Tensor, node: Tensor) -> Tensor:
    """Row of every row's parent, [R] int64; a row without a valid one (0 <= parent < node) names itself."""
    row = torch.arange(parents.numel(), device=parents.device)
    parent = parents.long()
    return torch.where((parent >= 0) & (parent < node), row - node + parent, row)


def depths(up: Tensor, bound: int) -> Tensor:
    """Number of steps to the root by pointer doubling, [R] int64; `bound` >= the deepest."""
    depth = (up != torch.arange(up.numel(), device=up.device)).long()
    for _ in range(max(bound - 1, 0).bit_length()):
        depth = depth + depth[up]
        up = up[up]
    return depth


def ancestor_bits(up: Tensor, node: Tensor, bound: int, max_nodes: int) -> Tensor:
    """[R, ceil(max_nodes / 64)] int64: bit j of word j // 64 says that node j is it or its ancestor."""
    count = max(1, (max_nodes + 63) // 64)
    word = (node >> 6).clamp(0, count - 1).unsqueeze(1)
    bits = torch.zeros((node.numel(), count), dtype=torch.int64, device=node.device)
    bits.scatter_(1, word, torch.ones_like(word) << (node & 63).unsqueeze(1))
    for _ in range(bound.bit_length()):
        bits = bits | bits[up]
        up = up[up]
    return bits


def child_links(up: Tensor, node: Tensor) -> tuple[Tensor, Tensor]:
    """First child and next sibling of every row in index order, [R] int32 nodes, -1 = none."""
    rows = up.numel()
    row = torch.arange(rows, device=up.device)
    key = torch.where(up == row, rows, up)
    first_child = torch.full((rows + 1,), rows, dtype=torch.int64, device=up.device)
    first_child.scatter_reduce_(0, key, node, "amin")
    first_child = first_child[:rows]
    order = torch.argsort(key, stable=True)  # the children of one parent become neighbours, in index order
    key = key[order]
    siblings = (key[1:] == key[:-1]) & (key[1:] < rows)
    next_sibling = torch.full_like(up, -1)
    next_sibling[order[:-1]] = torch.where(siblings, node[order[1:]], -1)
    return torch.where(first_child == rows, -1, first_child).int(), next_sibling.int()


def parents_from_mask(mask: Tensor) -> Tensor:
    """Parents [B, N] int32: the last earlier node that the mask calls an ancestor, -1 where none."""
    node = torch.arange(mask.shape[-1], dtype=torch.int32, device=mask.device)
    return torch.where(mask.tril(-1), node, -1).amax(-1)


def parents_from_links(tokens: Tensor, next_token: Tensor, next_sibling: Tensor) -> Tensor:
    """Parents [B, N] int32 from first-child / next-sibling links [B, N] int64.

    A node that no link reaches gets -1, or 0 where its token is negative: an unused slot.
    """
    batch, nodes = tokens.shape
    node = torch.arange(nodes, device=tokens.device).expand(batch, nodes)

    def inverse(link: Tensor) -> Tensor:
        target = torch.where((link >= 0) & (link < nodes), link, nodes)
        return torch.full((batch, nodes + 1), -1, device=link.device).scatter_(1, target, node)[:, :nodes]

    parent, elder = inverse(next_token), inverse(next_sibling)
    head = torch.where(elder >= 0, elder, node)
    for _ in range(nodes.bit_length()):
        head = head.gather(1, head)
    parent = parent.gather(1, head)
    unused = (parent < 0) & (tokens < 0) & (node > 0)
    return torch.where(unused, 0, parent).int()


def check_cu_nodes(operation: str, cu_nodes: Tensor, rows: int) -> None:
    """Requests are consecutive: 0 <= cu_nodes[0] <= cu_nodes[1] <= ... <= R."""
    ends = cu_nodes.tolist()
    start = 0
    for request, end in enumerate(ends):
        if not start <= end <= rows:
            rule = f"must not decrease and stay within [0, R] = [0, {rows}]"
            bad_value(operation, "cu_nodes", rule, f"{end} after {start} at request {max(request - 1, 0)}")
        start = end


def check_parents(operation: str, parents: Tensor, request: Tensor, node: Tensor, batch: int) -> None:
    """Node 0 of a request is its only root, and every other node has 0 <= parent < node."""
    parent = parents.long()
    bad = torch.where(node == 0, parent != -1, (parent < 0) | (parent >= node)) & (request < batch)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        rule = "must be -1 at node 0, the root, and 0 <= parent < node elsewhere"
        got = f"parent {int(parents[row])} at request {int(request[row])} node {int(node[row])}"
        bad_value(operation, "parents", rule, got)


def check_proposals(operation: str, proposals: Tensor, request: Tensor, node: Tensor) -> None:
    """Proposals are values of `Proposal`."""
    bad = (proposals < 0) | (proposals > 2)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        got = f"{int(proposals[row])} at request {int(request[row])} node {int(node[row])}"
        bad_value(operation, "proposals", "must be values of Proposal, 0, 1 or 2", got)


def check_mask(operation: str, mask: Tensor, parents: Tensor) -> None:
    """The mask is the ancestor relation of a tree whose nodes come parent before child, node 0 the root."""
    batch, nodes = parents.shape
    up = torch.where(parents < 0, torch.arange(nodes, device=mask.device), parents.long())
    closure = torch.eye(nodes, dtype=torch.bool, device=mask.device).repeat(batch, 1, 1)
    for _ in range(nodes.bit_length()):
        closure = closure | closure.gather(1, up.unsqueeze(-1).expand_as(closure))
        up = up.gather(1, up)
    bad = (closure != mask).any(-1)
    bad[:, 1:] |= parents[:, 1:] < 0
    if bool(bad.any()):
        request, node = bad.nonzero()[0].tolist()
        rule = "must hold each node, its parent < node and all of the parent's ancestors, up to node 0"
        got = f"{mask[request, node].nonzero().flatten().tolist()} at request {request} node {node}"
        bad_value(operation, "mask", rule, got)


def check_links(operation: str, tokens: Tensor, next_token: Tensor, next_sibling: Tensor) -> None:
    """Every link is -1 or a node, and every node but the root is the target of exactly one link."""
    batch, nodes = tokens.shape
    for argument, link in (("next_token", next_token), ("next_sibling", next_sibling)):
        bad = (link < -1) | (link >= nodes)
        if bool(bad.any()):
            request, node = bad.nonzero()[0].tolist()
            rule = f"must be -1 or a node in [0, N) = [0, {nodes})"
            got = f"{int(link[request, node])} at request {request} node {node}"
            bad_value(operation, argument, rule, got)
    reached = torch.zeros((batch, nodes + 1), dtype=torch.int64)
    for link in (next_token, next_sibling):
        target = torch.where(link < 0, nodes, link).cpu()
        reached.scatter_add_(1, target, torch.ones_like(target))
    wanted = torch.ones(nodes, dtype=torch.int64)
    wanted[:1] = 0
    got = reached[:, :nodes]
    bad = (got != wanted) & ~((got == 0) & (tokens.cpu() < 0))
    if bool(bad.any()):
        request, node = bad.nonzero()[0].tolist()
        rule = "must reach node 0, the root, by no link and every other node by exactly one"
        came = f"{int(got[request, node])} links to request {request} node {node}"
        bad_value(operation, "next_token and next_sibling", rule, came)
