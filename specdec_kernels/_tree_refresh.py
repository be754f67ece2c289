# SPDX-License-Identifier: Apache-2.0
"""Arguments of `DraftTree.refresh_`: checked, and then written into the tree."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _topology as topology
from . import _tree_checks as checks
from ._checks import INTEGERS, bad_value, check_device, check_dtype, check_tensor, what
from ._ops import backends

_CALL = "DraftTree.refresh_"


class Refresh:
    """What a tree is to hold. Nothing is written before `write`.

    Args: as of `DraftTree.refresh_`.

    Attributes:
        moves_nodes: whether the topology is another one.
    """

    def __init__(
        self,
        tree: Any,  # a DraftTree
        tokens: Tensor,
        parents: Tensor | None,
        links: tuple[Tensor | None, Tensor | None],
        proposals: Tensor | None,
    ) -> None:
        self._tree = tree
        rows, batch = tree.tokens.shape[0], tree.batch_size
        self._shape = batch, rows // max(batch, 1)
        self._tokens = self._checked_tokens(tokens)
        self._proposals = None if proposals is None else self._row_values("proposals", proposals)
        self._links = self._checked_links(*links)
        self._parents = None if parents is None else self._checked_parents(parents)
        self.moves_nodes = self._links is not None or self._parents is not None

    def check_values(self) -> None:
        """Raise unless the tree is going to be well formed and within its bounds."""
        tree, (request, node) = self._tree, self._tree._owners
        if self._uniform and not bool((tree.cu_nodes.diff() == self._shape[1]).all()):
            bad_value(_CALL, "tokens", "must be flat for requests of different sizes", what(self._tokens))
        if self._links is not None:
            checks.check_links(_CALL, self._all_tokens(), *self._links)
        if self._proposals is not None:
            checks.check_proposals(_CALL, self._proposals.flatten(), request, node)
        if not self.moves_nodes:
            return
        parents = self._all_parents().flatten()
        checks.check_parents(_CALL, parents, request, node, tree.batch_size)
        depths = topology.depths(topology.parent_rows(parents, node), max(tree.max_nodes - 1, 0))
        depths = depths[request < tree.batch_size]
        deepest = int(depths.max()) if depths.numel() else 0
        if deepest > tree.max_depth:
            rule = f"must be of a tree no deeper than max_depth = {tree.max_depth}"
            bad_value(_CALL, "parents" if self._links is None else "next_token", rule, deepest)

    def write(self) -> None:
        """Into the tensors of the tree."""
        tree = self._tree
        if self._proposals is not None:
            tree.proposals.view(self._proposals.shape).copy_(self._proposals)
        if self._links is not None and self._contiguous():
            filler = backends.filler("enter_links", "auto", self._tokens, *self._links, tree.tokens)
            if filler is not None:
                filler.enter_links(self._tokens, *self._links, tree.tokens, tree.parents, tree.links)
                return
        if self._tokens.shape == tree.tokens.shape:
            tree.tokens.copy_(self._tokens)
        else:
            shorter = self._shape[1] - self._tokens.shape[1]
            tree.tokens.view(self._shape)[:, shorter:].copy_(self._tokens)
        if self.moves_nodes:
            parents = self._all_parents()
            tree.parents.view(parents.shape).copy_(parents)
        if self._links is not None:
            for link, place in zip(self._links, tree.links, strict=True):
                place.view(link.shape).copy_(link)

    @property
    def _uniform(self) -> bool:
        given = (self._tokens, self._parents, self._proposals, *(self._links or ()))
        return any(values is not None and values.dim() == 2 for values in given)

    def _contiguous(self) -> bool:
        tree = self._tree
        return all(place.is_contiguous() for place in (tree.tokens, tree.parents, *tree.links))

    def _all_parents(self) -> Tensor:
        """Of all rows, [R] or [B, N], where the topology is another one."""
        if self._links is not None:
            return topology.parents_from_links(*self._links)
        parents: Tensor = self._parents  # type: ignore[assignment]
        return parents

    def _all_tokens(self) -> Tensor:
        """[B, N], with the roots that stay."""
        if self._tokens.numel() == self._tree.tokens.numel():
            return self._tokens.view(self._shape)
        roots = self._tree.tokens.view(self._shape)[:, :1]
        return torch.cat((roots, self._tokens), 1)

    def _checked_tokens(self, tokens: Tensor) -> Tensor:
        batch, nodes = self._shape
        check_dtype(_CALL, "tokens", tokens, INTEGERS)
        check_device(_CALL, "tokens", tokens, self._tree.tokens.device)
        if tokens.shape == (batch, nodes - 1) and self._is_matrix():
            return tokens
        return self._row_values("tokens", tokens, " or [B, N - 1]")

    def _checked_parents(self, parents: Tensor) -> Tensor:
        if self._tree.links is not None:
            bad_value(_CALL, "parents", "must be None for a tree of links", what(parents))
        return self._row_values("parents", parents)

    def _checked_links(
        self, next_token: Tensor | None, next_sibling: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        if next_token is None and next_sibling is None:
            return None
        for argument, link in (("next_token", next_token), ("next_sibling", next_sibling)):
            if self._tree.links is None and link is not None:
                bad_value(_CALL, argument, "must be None for a tree that from_links did not make", what(link))
            if link is None:
                bad_value(_CALL, argument, "must be given with the other link", "None")
            device = self._tree.tokens.device
            check_tensor(_CALL, argument, link, "[B, N]", self._shape, INTEGERS, device)
        return next_token, next_sibling  # type: ignore[return-value]

    def _row_values(self, argument: str, values: Tensor, others: str = "") -> Tensor:
        """Values of all rows, [R] or [B, N]."""
        check_dtype(_CALL, argument, values, INTEGERS)
        check_device(_CALL, argument, values, self._tree.tokens.device)
        rows = self._tree.tokens.shape[0]
        if values.shape != (rows,) and not (values.shape == self._shape and self._is_matrix()):
            rule = f"must have shape [R] = [{rows}] or [B, N] = {list(self._shape)}{others}"
            bad_value(_CALL, argument, rule, list(values.shape))
        return values

    def _is_matrix(self) -> bool:
        batch, nodes = self._shape
        return bool(batch * nodes == self._tree.tokens.shape[0])
