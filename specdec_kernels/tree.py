# SPDX-License-Identifier: Apache-2.0
"""The draft: a batch of token trees, one per request, stored flat in one set of tensors."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from . import _topology as topology
from . import _tree_arrays as arrays
from . import _tree_checks as checks
from ._checks import (
    INTEGERS,
    bad_type,
    bad_value,
    check_device,
    check_dim,
    check_dtype,
    check_int,
    check_shape,
    check_tensor,
    what,
)
from ._kept import traced
from ._tree_refresh import Refresh

Paths = Sequence[Sequence[int]]
T = TypeVar("T")


class Proposal(enum.IntEnum):
    """How a drafted token was obtained, given its earlier siblings.

    A rule is lossless only if this declaration is true. Verification notices a wrong declaration only if the
    token has no probability under its law (`Status.IMPOSSIBLE`). If drafts were pruned, sorted or cut off
    after a look at the sampled tokens, declare `POINT`.
    """

    POINT = 0
    """Chosen, not sampled: top-k, argmax, n-gram lookup, a Medusa head, a grammar."""
    INDEPENDENT = 1
    """Sampled from q at its parent, independently of its siblings."""
    WITHOUT_REPLACEMENT = 2
    """Sampled from q at its parent, without the tokens of all POINT siblings and of earlier siblings of this
    kind."""


def _derived(compute: Callable[[Any], T]) -> T:
    """A property that is computed once. `torch.compile` cannot trace the cache, so there it is computed on
    every access. So is what a tree did not keep before `refresh_`: a captured `refresh_` does not know of
    it."""

    def value(tree: DraftTree) -> T:
        if torch.compiler.is_compiling():
            return compute(tree)
        if compute.__name__ in tree._cache:
            computed: T = tree._cache[compute.__name__]
            return computed
        computed = compute(tree)
        if not tree._refreshed:
            tree._cache[compute.__name__] = computed
        return computed

    return cast(T, property(value, doc=compute.__doc__))


@dataclass(frozen=True, eq=False)
class DraftTree:
    """Draft trees of a batch of requests.

    Node 0 of a request is the root. It stands for the last committed token, and its target row is the law of
    the first new token. Every other node holds one drafted token. A parent has a smaller number than its
    children. Siblings are verified in the order of `next_sibling`, which is index order unless the tree was
    made by `from_links`. Build trees with the constructors. The class itself takes its tensors as they are
    and reads no values.

    Args:
        tokens: [R] int64. The token of a root is the last committed token or -1. At other nodes -1 means that
            there is no draft: the node and all nodes below it are skipped.
        parents: [R] int32, index within the request; -1 at the root.
        cu_nodes: [B + 1] int32. Request b owns rows `cu_nodes[b] : cu_nodes[b + 1]`. An empty request is a
            padding slot of a captured batch. Rows from `cu_nodes[B]` on are ignored.
        proposals: [R] uint8, values of `Proposal`; not read at roots.
        max_nodes: host bound, >= the number of nodes of the largest tree.
        max_depth: host bound, >= the largest depth (the root has depth 0); deeper nodes are never visited.

    Raises:
        ValueError: wrong shapes, negative bounds.
        TypeError: wrong types, dtypes or devices.

    Notes:
        Every constructor takes `max_nodes` and `max_depth`. If they are not given and do not follow from
        shapes, they are read from the device once, which synchronises. With `check=None` values are checked
        if that needs no synchronisation (CPU tensors outside `torch.compile`); `True` always checks, `False`
        never. For a malformed tree the check raises a `ValueError` that names request and node. Integer
        tensors of other widths are converted. Trees are pytrees. A tree is frozen but for `refresh_`.
    """

    tokens: Tensor
    parents: Tensor
    cu_nodes: Tensor
    proposals: Tensor
    max_nodes: int
    max_depth: int
    links: tuple[Tensor, Tensor] | None = field(default=None, repr=False)
    """First child and next sibling, [R] int32 each, where the sibling order may differ from index order."""

    _cache: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    _refreshed: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        check_dtype("DraftTree", "tokens", self.tokens, (torch.int64,))
        check_dim("DraftTree", "tokens", self.tokens, 1, "[R]")
        rows, device = self.tokens.shape, self.tokens.device
        check_tensor("DraftTree", "parents", self.parents, "[R]", rows, (torch.int32,), device)
        check_tensor("DraftTree", "proposals", self.proposals, "[R]", rows, (torch.uint8,), device)
        check_dtype("DraftTree", "cu_nodes", self.cu_nodes, (torch.int32,))
        check_device("DraftTree", "cu_nodes", self.cu_nodes, device)
        if self.cu_nodes.dim() != 1 or self.cu_nodes.shape[0] < 1:
            bad_value("DraftTree", "cu_nodes", "must have shape [B + 1]", list(self.cu_nodes.shape))
        check_int("DraftTree", "max_nodes", self.max_nodes, 0)
        check_int("DraftTree", "max_depth", self.max_depth, 0)
        if self.links is not None:
            if not isinstance(self.links, tuple) or len(self.links) != 2:
                bad_type("DraftTree", "links", "must be None or two tensors", type(self.links).__name__)
            for i, link in enumerate(self.links):
                check_tensor("DraftTree", f"links[{i}]", link, "[R]", rows, (torch.int32,), device)

    @classmethod
    def _made(cls, *values: Any, chain: bool = False) -> DraftTree:
        """A tree of tensors that a constructor made, which it need not check again; links may be left out."""
        if traced():
            return cls(*values)
        tree = _unchecked(*values)
        if chain:
            tree._cache["_is_chain"] = tree._cache["_made_as_chain"] = True
        return tree

    @classmethod
    def chain(
        cls,
        tokens: Tensor,
        lengths: Tensor | None = None,
        *,
        cu_nodes: Tensor | None = None,
        cu_drafts: Tensor | None = None,
        proposal: Proposal = Proposal.INDEPENDENT,
        max_nodes: int | None = None,
        max_depth: int | None = None,
        check: bool | None = None,
    ) -> DraftTree:
        """One draft sequence per request.

        Args:
            tokens: [B, K] int64 drafted tokens without the root, which makes B * (K + 1) rows; or flat [R]
                with `cu_nodes`, where the first entry of each request is its root; or flat [S] with
                `cu_drafts`, drafted tokens without roots, which makes R = S + B rows.
            lengths: [B] integers in [0, K]; tokens of a request from its length on count as -1. Only with
                tokens [B, K].
            cu_nodes: [B + 1] int32, only with flat tokens.
            cu_drafts: [B] integers, how many tokens were drafted for requests 0 to b together: inclusive sums
                without a leading 0, as vLLM's `cu_num_draft_tokens` are. Tokens beyond the last sum are
                ignored. Only with flat tokens, and not with `cu_nodes`. On a GPU one launch makes the chains,
                of a kernel that `warmup` or the first call compiles, before a capture.
            proposal: how all the tokens were obtained.
            max_nodes: host bound on nodes of a request, default K + 1; for flat tokens `max_depth + 1` where
                that is given and values are not read, otherwise read from the offsets.
            max_depth: host bound on depth, default `max_nodes - 1`.
            check: whether values are read and checked.

        Returns:
            `DraftTree`.

        Raises:
            ValueError: wrong shapes or numbers; where values are read, lengths outside [0, K] or offsets that
                decrease.
            TypeError: wrong types, dtypes or devices.

        Example:
            >>> tree = DraftTree.chain(torch.tensor([[7, 8], [9, -1]]))
            >>> tree.tokens.tolist(), tree.parents.tolist(), tree.max_depth
            ([-1, 7, 8, -1, 9, -1], [-1, 0, 1, -1, 0, 1], 2)
            >>> tree = DraftTree.chain(torch.tensor([7, 8, 9]), cu_drafts=torch.tensor([2, 2, 3]))
            >>> tree.tokens.tolist(), tree.cu_nodes.tolist()
            ([-1, 7, 8, -1, -1, 9], [0, 3, 4, 6])
        """
        call = "DraftTree.chain"
        check_dtype(call, "tokens", tokens, INTEGERS)
        checks.check_flag(call, check)
        if cu_drafts is not None:
            for argument, given in (("lengths", lengths), ("cu_nodes", cu_nodes)):
                if given is not None:
                    bad_value(call, argument, "must be None with cu_drafts", what(given))
            check_dim(call, "tokens", tokens, 1, "[S] with cu_drafts")
            checks.check_cu_drafts(call, cu_drafts, tokens, check)
            tokens, parents, cu_nodes = arrays.chains(tokens, cu_drafts)
        elif cu_nodes is not None:
            if lengths is not None:
                bad_value(call, "lengths", "must be None with cu_nodes", what(lengths))
            check_dim(call, "tokens", tokens, 1, "[R] with cu_nodes")
            tokens = checks.as_integers(call, "tokens", tokens, torch.int64)
            cu_nodes = checks.as_offsets(call, cu_nodes, tokens, check)
            parents = (topology.owners(cu_nodes, tokens.numel())[1] - 1).int()
        else:
            check_dim(call, "tokens", tokens, 2, "[B, K], [R] with cu_nodes, or [S] with cu_drafts")
            batch, depth = tokens.shape
            if lengths is not None:
                tokens = checks.mask_beyond(call, tokens, lengths, check)
            kind = checks.check_kind(call, "proposal", proposal)
            made = arrays.uniform_chains(tokens, kind)
            bounds = (
                checks.bound(call, "max_nodes", max_nodes, depth + 1),
                checks.bound(call, "max_depth", max_depth, depth),
            )
            return cls._made(*made, *bounds, chain=True)
        if max_nodes is None and max_depth is not None and not checks.reads_values(check, tokens):
            max_nodes = check_int(call, "max_depth", max_depth, 0) + 1
        nodes = checks.largest(call, cu_nodes, max_nodes, check)
        deepest = checks.largest(call, cu_nodes, None, check) - 1 if checks.reads_values(check, tokens) else 0
        depth = checks.depth_bound(call, max_depth, nodes, deepest)
        kinds = checks.as_kind(call, "proposal", proposal, tokens)
        return cls._made(tokens, parents, cu_nodes, kinds, nodes, depth, chain=True)

    @classmethod
    def from_parents(
        cls,
        tokens: Tensor,
        parents: Tensor,
        cu_nodes: Tensor | None = None,
        *,
        proposals: Proposal | Tensor = Proposal.POINT,
        max_nodes: int | None = None,
        max_depth: int | None = None,
        check: bool | None = None,
    ) -> DraftTree:
        """Trees given by the parent of every node.

        Args:
            tokens: [B, N] int64 with the root in column 0, or flat [R] with `cu_nodes`.
            parents: shaped as `tokens`, int32, index within the request, -1 at roots.
            cu_nodes: [B + 1] int32, only with flat tensors.
            proposals: one `Proposal`, or a tensor of its values shaped as `tokens`.
            max_nodes: host bound on nodes of a request, default N; for flat tensors read from `cu_nodes`.
            max_depth: host bound on depth, default read from the tree.
            check: whether values are read and checked.

        Returns:
            `DraftTree`.

        Raises:
            ValueError: wrong shapes or numbers; where values are read, a malformed tree.
            TypeError: wrong types, dtypes or devices.

        Example:
            >>> tree = DraftTree.from_parents(torch.tensor([[-1, 5, 6, 7]]), torch.tensor([[-1, 0, 0, 1]]))
            >>> tree.first_child.tolist(), tree.next_sibling.tolist(), tree.depths.tolist()
            ([1, 3, -1, -1], [-1, 2, -1, -1], [0, 1, 1, 2])
        """
        return cls._build(
            "DraftTree.from_parents", tokens, parents, cu_nodes, proposals, max_nodes, max_depth, check
        )

    @classmethod
    def from_paths(
        cls,
        tokens: Tensor,
        paths: Paths,
        *,
        proposals: Proposal | Tensor = Proposal.POINT,
        max_nodes: int | None = None,
        max_depth: int | None = None,
        check: bool | None = None,
    ) -> DraftTree:
        """Trees of one static topology, written as Medusa-style choices.

        Args:
            tokens: [B, len(paths) + 1] int64 with the root in column 0; column i + 1 is the node of
                `paths[i]`.
            paths: child ranks from the root, e.g. `[(0,), (1,), (0, 0)]`. A path comes after the path that it
                extends. The ranks of a node's children are 0, 1, 2, ... without a gap. Siblings are verified
                in the order in which they are listed.
            proposals: one `Proposal`, or a tensor of its values shaped as `tokens`.
            max_nodes, max_depth: host bounds, by default computed from the paths.
            check: whether values of tensors are read and checked; the paths are always checked.

        Returns:
            `DraftTree`.

        Raises:
            ValueError: wrong shapes or numbers; malformed paths.
            TypeError: wrong types, dtypes or devices.

        Example:
            >>> tree = DraftTree.from_paths(torch.tensor([[-1, 5, 6, 7]]), [(0,), (1,), (0, 0)])
            >>> tree.parents.tolist(), tree.max_depth
            ([-1, 0, 0, 1], 2)
        """
        call = "DraftTree.from_paths"
        paths = checks.as_paths(call, paths)
        checks.check_flag(call, check)
        tokens = checks.as_integers(call, "tokens", tokens, torch.int64)
        batch, nodes = tokens.shape[0] if tokens.dim() else 0, len(paths) + 1
        check_shape(call, "tokens", tokens, "[B, len(paths) + 1]", (batch, nodes))
        parents = checks.parents_of_paths(call, paths, tokens.device).repeat(batch)
        kinds = checks.as_kinds(call, proposals, tokens)
        nodes = checks.bound(call, "max_nodes", max_nodes, nodes)
        depth = checks.bound(call, "max_depth", max_depth, max(map(len, paths), default=0))
        tree = cls._made(
            tokens.flatten(),
            parents,
            checks.uniform_offsets(batch, len(paths) + 1, tokens.device),
            kinds,
            nodes,
            depth,
        )
        if isinstance(proposals, Tensor) and checks.reads_values(check, tokens):
            checks.check_proposals(call, proposals.flatten(), *tree._owners)
        return tree

    @classmethod
    def from_mask(
        cls,
        tokens: Tensor,
        mask: Tensor,
        *,
        proposals: Proposal | Tensor = Proposal.POINT,
        max_nodes: int | None = None,
        max_depth: int | None = None,
        check: bool | None = None,
    ) -> DraftTree:
        """Trees given by their attention mask.

        Args:
            tokens: [B, N] int64 with the root in column 0.
            mask: [B, N, N] bool; `mask[b, i, j]` says that node j is i or an ancestor of i.
            proposals: one `Proposal`, or a tensor of its values shaped as `tokens`.
            max_nodes: host bound on nodes of a request, default N.
            max_depth: host bound on depth, default read from the tree.
            check: whether values are read and checked.

        Returns:
            `DraftTree`.

        Raises:
            ValueError: wrong shapes or numbers; if values are read, a mask that is not an ancestor relation.
            TypeError: wrong types, dtypes or devices.

        Example:
            >>> mask = torch.tensor([[[1, 0, 0], [1, 1, 0], [1, 0, 1]]], dtype=torch.bool)
            >>> DraftTree.from_mask(torch.tensor([[-1, 5, 6]]), mask).parents.tolist()
            [-1, 0, 0]
        """
        tokens = checks.as_integers("DraftTree.from_mask", "tokens", tokens, torch.int64)
        checks.check_flag("DraftTree.from_mask", check)
        check_dim("DraftTree.from_mask", "tokens", tokens, 2, "[B, N]")
        batch, nodes = tokens.shape
        check_tensor(
            "DraftTree.from_mask",
            "mask",
            mask,
            "[B, N, N]",
            (batch, nodes, nodes),
            (torch.bool,),
            tokens.device,
        )
        parents = topology.parents_from_mask(mask)
        if checks.reads_values(check, tokens):
            checks.check_mask("DraftTree.from_mask", mask, parents)
        return cls._build(
            "DraftTree.from_mask", tokens, parents, None, proposals, max_nodes, max_depth, check
        )

    @classmethod
    def from_links(
        cls,
        tokens: Tensor,
        next_token: Tensor,
        next_sibling: Tensor,
        *,
        proposals: Proposal | Tensor = Proposal.POINT,
        max_nodes: int | None = None,
        max_depth: int | None = None,
        check: bool | None = None,
    ) -> DraftTree:
        """Trees given by first-child and next-sibling links. The order of siblings is that of the links.

        Args:
            tokens: [B, N] int64 with the root in column 0.
            next_token: [B, N] integers, first child of each node, -1 = none.
            next_sibling: [B, N] integers, next child of the same parent, -1 = none. A node that no link
                reaches must have token -1: an unused slot.
            proposals: one `Proposal`, or a tensor of its values shaped as `tokens`.
            max_nodes: host bound on nodes of a request, default N.
            max_depth: host bound on depth, default read from the tree.
            check: whether values are read and checked.

        Returns:
            `DraftTree`.

        Raises:
            ValueError: wrong shapes or numbers; if values are read, links that do not form a tree.
            TypeError: wrong types, dtypes or devices.

        Example:
            >>> first, after = torch.tensor([[2, -1, -1]]), torch.tensor([[-1, -1, 1]])
            >>> tree = DraftTree.from_links(torch.tensor([[-1, 5, 6]]), first, after)
            >>> tree.parents.tolist(), tree.next_sibling.tolist()
            ([-1, 0, 0], [-1, -1, 1])
        """
        tokens = checks.as_integers("DraftTree.from_links", "tokens", tokens, torch.int64)
        checks.check_flag("DraftTree.from_links", check)
        check_dim("DraftTree.from_links", "tokens", tokens, 2, "[B, N]")
        links = []
        for argument, link in (("next_token", next_token), ("next_sibling", next_sibling)):
            check_tensor(
                "DraftTree.from_links", argument, link, "[B, N]", tokens.shape, INTEGERS, tokens.device
            )
            links.append(link)
        parents, copies = arrays.linked(*links)
        if checks.reads_values(check, tokens):
            checks.check_links("DraftTree.from_links", tokens, *links)
            parents = topology.parents_from_links(*links)  # which tells nodes of a ring from unused slots
        return cls._build(
            "DraftTree.from_links", tokens, parents.view(tokens.shape), None, proposals, max_nodes, max_depth,
            check, links=copies,
        )  # fmt: skip

    @classmethod
    def _build(
        cls,
        operation: str,
        tokens: Tensor,
        parents: Tensor,
        cu_nodes: Tensor | None,
        proposals: Proposal | Tensor,
        max_nodes: int | None,
        max_depth: int | None,
        check: bool | None,
        links: tuple[Tensor, Tensor] | None = None,
    ) -> DraftTree:
        tokens = checks.as_integers(operation, "tokens", tokens, torch.int64)
        symbols = "[B, N], or [R] with cu_nodes" if cu_nodes is None else "[R] with cu_nodes"
        check_dim(operation, "tokens", tokens, 2 if cu_nodes is None else 1, symbols)
        parents = checks.as_integers(operation, "parents", parents, torch.int32)
        check_tensor(
            operation, "parents", parents, "tokens.shape", tokens.shape, (torch.int32,), tokens.device
        )
        checks.check_flag(operation, check)
        if cu_nodes is None:
            batch, nodes = tokens.shape
            cu_nodes = checks.uniform_offsets(batch, nodes, tokens.device)
            nodes = checks.bound(operation, "max_nodes", max_nodes, nodes)
        else:
            cu_nodes = checks.as_offsets(operation, cu_nodes, tokens, check)
            nodes = checks.largest(operation, cu_nodes, max_nodes, check)
        kinds = checks.as_kinds(operation, proposals, tokens)
        depth = checks.depth_bound(operation, max_depth, nodes)
        tree = cls(tokens.flatten(), parents.flatten(), cu_nodes, kinds, nodes, depth, links)
        checking = checks.reads_values(check, tokens)
        if checking:
            checks.check_parents(operation, tree.parents, *tree._owners, cu_nodes.numel() - 1)
            if isinstance(proposals, Tensor):
                checks.check_proposals(operation, proposals.flatten(), *tree._owners)
        if max_depth is None or checking:
            deepest = int(tree._all_depths().max()) if tree.tokens.numel() else 0
            object.__setattr__(tree, "max_depth", checks.bound(operation, "max_depth", max_depth, deepest))
        return tree

    def refresh_(
        self,
        tokens: Tensor,
        *,
        parents: Tensor | None = None,
        next_token: Tensor | None = None,
        next_sibling: Tensor | None = None,
        proposals: Tensor | None = None,
        check: bool | None = None,
    ) -> DraftTree:
        """Put the drafts of another step into the tensors of this tree, which a captured graph may read.

        This is the one change that a tree allows. The sizes of requests, the bounds and the addresses of all
        tensors stay as they are. What was derived from the tree before (`depths`, `first_child`,
        `next_sibling`, `ancestor_bits`) is computed again and written into the same tensors. What was not is
        from now on computed at every access. A node that is not used has token -1.

        Args:
            tokens: [R] or [B, N] integers, or [B, N - 1] without roots, which then stay.
            parents: shaped [R] or [B, N], integers; default: the topology stays. Not for a tree of links.
            next_token, next_sibling: [B, N] integers as in `from_links`, given together. Only for a tree that
                `from_links` made.
            proposals: [R] or [B, N], integers, values of `Proposal`; default: they stay.
            check: whether values are read and checked, before anything is written.

        Returns:
            The tree itself.

        Raises:
            ValueError: wrong shapes; parents for a tree of links, or links for another one; where values are
                read, a malformed tree or one that is deeper than `max_depth`.
            TypeError: wrong types, dtypes or devices.

        Notes:
            It writes into the tensors that the tree holds. These may be those that it was built from.
            Without checks it never synchronises, and it can be captured in a CUDA graph. On a GPU tokens and
            links take one launch, of a kernel that `warmup` or the first call compiles, before a capture.

        Example:
            >>> first, after = torch.tensor([[1, -1, -1]]), torch.tensor([[-1, 2, -1]])
            >>> tree = DraftTree.from_links(torch.tensor([[-1, 5, 6]]), first, after, max_depth=2)
            >>> depths = tree.depths
            >>> first, after = torch.tensor([[1, 2, -1]]), torch.tensor([[-1, -1, -1]])
            >>> tree.refresh_(torch.tensor([[-1, 7, 8]]), next_token=first, next_sibling=after) is tree
            True
            >>> tree.tokens.tolist(), tree.parents.tolist(), depths.tolist()
            ([-1, 7, 8], [-1, 0, 1], [0, 1, 2])
        """
        checks.check_flag("DraftTree.refresh_", check)
        given = Refresh(self, tokens, parents, (next_token, next_sibling), proposals)
        if checks.reads_values(check, self.tokens):
            given.check_values()
        given.write()
        if given.moves_nodes:
            self._derive_again()
        if not torch.compiler.is_compiling():
            object.__setattr__(self, "_refreshed", True)
        return self

    def _derive_again(self) -> None:
        """Compute what is kept of the topology, into the tensors that hold it."""
        for name in ("_is_chain", "_made_as_chain"):
            self._cache.pop(name, None)
        kept = dict(self._cache)
        object.__setattr__(self, "_refreshed", False)  # what depends on each other is computed once
        for name in kept.keys() - {"_owners"}:
            del self._cache[name]
        for name, old in kept.items():
            new = pytree.tree_leaves(getattr(self, name))
            for place, value in zip(pytree.tree_leaves(old), new, strict=True):
                if place is not value:
                    place.copy_(value)
        self._cache.clear()
        self._cache.update(kept)

    @property
    def batch_size(self) -> int:
        """B, the number of requests."""
        return self.cu_nodes.shape[0] - 1

    @_derived
    def depths(self) -> Tensor:
        """[R] int32: steps from the root; 0 for rows that belong to no request."""
        return topology.depths(self._up, self.max_depth).int()

    @property
    def first_child(self) -> Tensor:
        """[R] int32: the child verified first, -1 = none."""
        return self._child_links[0]

    @property
    def next_sibling(self) -> Tensor:
        """[R] int32: the sibling verified next, -1 = none."""
        return self._child_links[1]

    @_derived
    def ancestor_bits(self) -> Tensor:
        """[R, ceil(max_nodes / 64)] int64: in row i, bit j of word j // 64 is set if node j is i or an
        ancestor of i."""
        return topology.ancestor_bits(self._up, self._owners[1], self.max_depth, self.max_nodes)

    @property
    def _made_as_chain(self) -> bool:
        """Whether `chain` made this. No values are read, on any device."""
        return "_made_as_chain" in self._cache

    @_derived
    def _is_chain(self) -> bool:
        """Whether this is known to be a chain. Trees that were not made by `chain` are read where that needs
        no synchronisation, and elsewhere taken at their bounds."""
        if self.parents.device.type == "cpu" and not traced():
            request, node = self._owners
            return bool(((self.parents == node - 1) | (request == self.batch_size)).all())
        return self.max_nodes <= self.max_depth + 1

    @_derived
    def _owners(self) -> tuple[Tensor, Tensor]:
        return topology.owners(self.cu_nodes, self.tokens.numel())

    @_derived
    def _up(self) -> Tensor:
        request, node = self._owners
        up = topology.parent_rows(self.parents, node)
        return torch.where(request < self.batch_size, up, torch.arange(up.numel(), device=up.device))

    @_derived
    def _child_links(self) -> tuple[Tensor, Tensor]:
        return topology.child_links(self._up, self._owners[1]) if self.links is None else self.links

    def _all_depths(self) -> Tensor:
        return topology.depths(self._up, max(self.max_nodes - 1, 0))


def _flatten(tree: DraftTree) -> tuple[list[Tensor], tuple[int, int]]:
    tensors = [tree.tokens, tree.parents, tree.cu_nodes, tree.proposals, *(tree.links or ())]
    return tensors, (tree.max_nodes, tree.max_depth)


def _unflatten(tensors: Iterable[Any], bounds: tuple[int, int]) -> DraftTree:
    tokens, parents, cu_nodes, proposals, *links = tensors
    values: tuple[Any, ...] = (tokens, parents, cu_nodes, proposals, *bounds, tuple(links) or None)
    if isinstance(tokens, Tensor):
        return DraftTree(*values)
    return _unchecked(*values)  # the leaves of a pytree may be any objects


def _unchecked(
    tokens: Any,
    parents: Any,
    cu_nodes: Any,
    proposals: Any,
    max_nodes: int,
    max_depth: int,
    links: Any = None,
) -> DraftTree:
    tree = object.__new__(DraftTree)
    vars(tree).update(
        tokens=tokens, parents=parents, cu_nodes=cu_nodes, proposals=proposals,
        max_nodes=max_nodes, max_depth=max_depth, links=links, _cache={}, _refreshed=False,
    )  # fmt: skip
    return tree


pytree.register_pytree_node(
    DraftTree, _flatten, _unflatten, serialized_type_name="specdec_kernels.tree.DraftTree"
)
