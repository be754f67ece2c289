# SPDX-License-Identifier: Apache-2.0
"""Conversion and checks of the arguments of tree constructors.

The `check_` functions that take tensors of values read them, which synchronises with a device. They raise a
`ValueError` that names request and node.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._checks import (
    INTEGERS,
    bad_type,
    bad_value,
    check_bool,
    check_device,
    check_dim,
    check_dtype,
    check_int,
    check_ints,
    check_list,
    check_tensor,
)
from ._kept import kept

MOST_KIND = 2  # the largest value of `Proposal`
KINDS = "must be values of Proposal, 0, 1 or 2"


def check_flag(operation: str, check: bool | None) -> None:
    """Raise `TypeError` unless `check` is True, False or None."""
    if check is not None:
        check_bool(operation, "check", check)


def reads_values(check: bool | None, tensor: Tensor) -> bool:
    """Whether values are read; by default only if that needs no synchronisation."""
    return (tensor.is_cpu and not torch.compiler.is_compiling()) if check is None else check


def as_integers(operation: str, argument: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """An integer tensor of any width, converted to `dtype`."""
    check_dtype(operation, argument, value, INTEGERS)
    return value if value.dtype == dtype else value.to(dtype)


def uniform_offsets(batch: int, nodes: int, device: torch.device) -> Tensor:
    """Row offsets [B + 1] of requests of equal size."""
    return torch.arange(batch + 1, dtype=torch.int32, device=device) * nodes


def as_offsets(operation: str, cu_nodes: Tensor, tokens: Tensor, check: bool | None) -> Tensor:
    """The caller's row offsets, checked and converted."""
    cu_nodes = as_integers(operation, "cu_nodes", cu_nodes, torch.int32)
    if cu_nodes.dim() != 1 or cu_nodes.shape[0] < 1:
        bad_value(operation, "cu_nodes", "must have shape [B + 1]", list(cu_nodes.shape))
    check_device(operation, "cu_nodes", cu_nodes, tokens.device)
    if reads_values(check, tokens):
        check_cu_nodes(operation, cu_nodes, tokens.numel())
    return cu_nodes


def check_cu_drafts(operation: str, cu_drafts: Tensor, tokens: Tensor, check: bool | None) -> None:
    """Raise unless `cu_drafts` [B] are sums of numbers of drafted tokens, of which there are as many."""
    check_dtype(operation, "cu_drafts", cu_drafts, INTEGERS)
    check_dim(operation, "cu_drafts", cu_drafts, 1, "[B]")
    check_device(operation, "cu_drafts", cu_drafts, tokens.device)
    if reads_values(check, tokens):
        _check_ascending(operation, "cu_drafts", cu_drafts.tolist(), "S", tokens.numel())


def largest(operation: str, cu_nodes: Tensor, max_nodes: int | None, check: bool | None) -> int:
    """`max_nodes`, by default the size of the largest request."""
    if max_nodes is not None and not reads_values(check, cu_nodes):
        return check_int(operation, "max_nodes", max_nodes, 0)
    most = int(cu_nodes.diff().max()) if cu_nodes.numel() > 1 else 0
    return bound(operation, "max_nodes", max_nodes, most)


def bound(operation: str, argument: str, given: int | None, least: int) -> int:
    """A host bound, by default `least`, the smallest value that suffices."""
    if given is None:
        return least
    given = check_int(operation, argument, given, 0)
    if given < least:
        bad_value(operation, argument, f"must be >= {least}, what the trees need", given)
    return given


def depth_bound(operation: str, max_depth: int | None, nodes: int, least: int = 0) -> int:
    """`max_depth`, by default the largest depth of a tree with so many nodes."""
    return bound(operation, "max_depth", max(nodes - 1, 0) if max_depth is None else max_depth, max(least, 0))


def check_kind(operation: str, argument: str, proposal: int) -> int:
    """The value of one `Proposal`."""
    if isinstance(proposal, str):
        bad_type(operation, argument, "must be a Proposal, such as Proposal.POINT", repr(proposal))
    if not 0 <= check_int(operation, argument, proposal) <= MOST_KIND:
        bad_value(operation, argument, KINDS, proposal)
    return int(proposal)


def as_kind(operation: str, argument: str, proposal: int, tokens: Tensor) -> Tensor:
    """Proposals [R] uint8, all of one value."""
    kind = check_kind(operation, argument, proposal)
    return torch.full((tokens.numel(),), kind, dtype=torch.uint8, device=tokens.device)


def as_kinds(operation: str, proposals: int | Tensor, tokens: Tensor) -> Tensor:
    """Proposals [R] uint8 from one value or one per node."""
    if not isinstance(proposals, Tensor):
        return as_kind(operation, "proposals", proposals, tokens)
    device = tokens.device
    check_tensor(operation, "proposals", proposals, "tokens.shape", tokens.shape, INTEGERS, device)
    return proposals.to(torch.uint8).flatten()


def mask_beyond(operation: str, tokens: Tensor, lengths: Tensor, check: bool | None) -> Tensor:
    """Chains [B, K] whose tokens from their lengths on are -1."""
    batch, depth = tokens.shape
    check_tensor(operation, "lengths", lengths, "[B]", (batch,), INTEGERS, tokens.device)
    if reads_values(check, tokens):
        bad = (lengths < 0) | (lengths > depth)
        if bool(bad.any()):
            request = int(bad.nonzero()[0])
            rule = f"must be in [0, K] = [0, {depth}]"
            bad_value(operation, "lengths", rule, f"{int(lengths[request])} at request {request}")
    return torch.where(torch.arange(depth, device=tokens.device) < lengths.unsqueeze(1), tokens, -1)


def as_paths(operation: str, paths: object) -> tuple[tuple[int, ...], ...]:
    """Paths as tuples, which can be keys of a dict."""
    listed = check_list(operation, "paths", paths, "sequences of ints")
    return tuple(tuple(check_ints(operation, f"paths[{i}]", path)) for i, path in enumerate(listed))


@kept
def parents_of_paths(operation: str, paths: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """[N] int32, the parent of every node of a topology of paths. As it is copied to the device only once,
    later calls can be captured in a CUDA graph."""
    return torch.tensor(_parents_of_paths(operation, paths), dtype=torch.int32, device=device)


def _parents_of_paths(operation: str, paths: tuple[tuple[int, ...], ...]) -> list[int]:
    index: dict[tuple[int, ...], int] = {(): 0}
    parents = [-1]
    listed = set(paths)
    for node, path in enumerate(paths, start=1):
        if not path or path[:-1] not in index or path in index:
            rule = "must be distinct, not empty, and each after the path it extends"
            bad_value(operation, "paths", rule, f"{path} at node {node} of every request")
        if path[-1] != 0 and (*path[:-1], path[-1] - 1) not in listed:
            rule = "must rank the children of a node 0, 1, 2, ... without a gap"
            missing = (*path[:-1], path[-1] - 1)
            bad_value(operation, "paths", rule, f"{path} at node {node} of every request, no {missing}")
        parents.append(index[path[:-1]])
        index[path] = node
    return parents


def check_cu_nodes(operation: str, cu_nodes: Tensor, rows: int) -> None:
    """Raise unless requests are consecutive: 0 <= cu_nodes[0] <= cu_nodes[1] <= ... <= R."""
    first, *ends = cu_nodes.tolist()
    _check_ascending(operation, "cu_nodes", [first], "R", rows)
    _check_ascending(operation, "cu_nodes", ends, "R", rows, first)


def _check_ascending(
    operation: str, argument: str, ends: list[int], symbol: str, most: int, start: int = 0
) -> None:
    for request, end in enumerate(ends):
        if not start <= end <= most:
            rule = f"must not decrease and stay within [0, {symbol}] = [0, {most}]"
            bad_value(operation, argument, rule, f"{end} after {start} at request {request}")
        start = end


def check_parents(operation: str, parents: Tensor, request: Tensor, node: Tensor, batch: int) -> None:
    """Raise unless node 0 of a request is its only root and every other node has 0 <= parent < node."""
    parent = parents.long()
    bad = torch.where(node == 0, parent != -1, (parent < 0) | (parent >= node)) & (request < batch)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        rule = "must be -1 at node 0, the root, and 0 <= parent < node elsewhere"
        got = f"parent {int(parents[row])} at request {int(request[row])} node {int(node[row])}"
        bad_value(operation, "parents", rule, got)


def check_proposals(operation: str, proposals: Tensor, request: Tensor, node: Tensor) -> None:
    """Raise unless proposals are values of `Proposal`."""
    bad = (proposals < 0) | (proposals > MOST_KIND)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        got = f"{int(proposals[row])} at request {int(request[row])} node {int(node[row])}"
        bad_value(operation, "proposals", KINDS, got)


def check_mask(operation: str, mask: Tensor, parents: Tensor) -> None:
    """Raise unless the mask is the ancestor relation of a tree with root 0 and parents before children."""
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
    """Raise unless every link is -1 or a node, and exactly one link leads to every node but the root."""
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
        target = torch.where(link < 0, nodes, link).cpu().long()
        reached.scatter_add_(1, target, torch.ones_like(target))
    wanted = torch.ones(nodes, dtype=torch.int64)
    wanted[:1] = 0
    links = reached[:, :nodes]
    bad = (links != wanted) & ~((links == 0) & (tokens.cpu() < 0))
    if bool(bad.any()):
        request, node = bad.nonzero()[0].tolist()
        rule = "must reach node 0, the root, by no link and every other node by exactly one"
        came = f"{int(links[request, node])} links to request {request} node {node}"
        bad_value(operation, "next_token and next_sibling", rule, came)
