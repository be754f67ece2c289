# SPDX-License-Identifier: Apache-2.0
"""SGLang's arrays of drafts, as a tree, and its arrays of results."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._checks import INTEGERS, check_tensor
from ..._ops import backends
from ...tree import DraftTree
from ...verification import Verified, empty_outputs
from ..layouts import enter_path
from ..steps import changed

_CALL = "eagle_sample"


class Results(NamedTuple):
    """Parts of one buffer, so that they travel to other ranks together."""

    buffer: Tensor
    predict: Tensor
    accept_lens: Tensor
    accept_index: Tensor


class Arrays:
    """What steps of one size share: a tree and what `verify` fills. Steps follow each other in one stream.

    Args:
        batch, nodes, width: B, N, and the most tokens of a step.
        chain: whether the trees are chains of all nodes.
        device: of the tensors.
        backend: of `verify`.

    Attributes:
        zeros: [B] int64, seeds and positions where nothing is drawn.
    """

    @torch.inference_mode(False)  # SGLang may step with or without it, and only one kind serves both
    def __init__(
        self, batch: int, nodes: int, width: int, chain: bool, device: torch.device, *, backend: str = "auto"
    ) -> None:
        self._chain, self._nodes = chain, nodes
        self._slots = _aligned(batch * nodes + 1)
        self._grid = _aligned(batch * width)
        self._shape = batch * nodes, batch, width
        none = torch.full((batch, nodes), -1, dtype=torch.int64, device=device)
        if chain:
            self._tree = DraftTree.chain(none[:, 1:], check=False)
        else:
            self._tree = DraftTree.from_links(none, none, none, max_depth=width - 1, check=False)
            # A tree that was refreshed keeps nothing of its topology, which every step changes.
            self._tree.refresh_(none, next_token=none, next_sibling=none, check=False)
        self._enters_links = backends.filler("enter_links", backend, none)
        self._enters_path = backends.filler("enter_path", backend, none)
        self._out = empty_outputs(batch, width, device, torch.int32)
        self._starts = self._tree.cu_nodes[:-1].unsqueeze(1)
        self.zeros = torch.zeros(batch, dtype=torch.int64, device=device)

    def put(self, verify_input: Any) -> DraftTree:
        """The drafts of a step as a tree. Their values are not checked: unused slots of SGLang's ngram trees
        hold tokens."""
        tokens, tree, (rows, batch, _) = verify_input.draft_token, self._tree, self._shape
        device = self.zeros.device
        check_tensor(_CALL, "draft_token", tokens, "[B * N]", (rows,), (torch.int64,), device)
        if self._chain:
            return changed(tree, tokens=tokens)
        links = verify_input.retrieve_next_token, verify_input.retrieve_next_sibling
        if self._enters_links is None:
            return tree.refresh_(tokens, next_token=links[0], next_sibling=links[1], check=False)
        shape = batch, self._nodes
        check_tensor(_CALL, "retrieve_next_token", links[0], "[B, N]", shape, INTEGERS, device)
        check_tensor(_CALL, "retrieve_next_sibling", links[1], "[B, N]", shape, INTEGERS, device)
        self._enters_links.enter_links(None, *links, None, tree.parents, tree.links)
        return changed(tree, tokens=tokens)

    def begin(self) -> tuple[Results, Verified]:
        """New results of a step, and what `verify` has to fill, of which the lengths are the results' own."""
        make = torch.zeros if self._enters_path is None else torch.empty
        rows, batch, width = self._shape
        buffer = make(self._slots + self._grid + batch, dtype=torch.int32, device=self.zeros.device)
        predict = buffer.as_strided((rows,), (1,))
        index = buffer.as_strided((batch, width), (width, 1), self._slots)
        lens = buffer.as_strided((batch,), (1,), self._slots + self._grid)
        return Results(buffer, predict, lens, index), self._out._replace(num_tokens=lens)

    def fill(self, results: Results, out: Verified) -> None:
        """`predict` and `accept_index` from what `verify` found."""
        if self._enters_path is not None:
            filled = results.predict, results.accept_index
            self._enters_path.enter_path(out.tokens, out.path, self._tree.cu_nodes, filled, clear=True)
            return
        rows = self._shape[0]
        enter_path(
            out,
            self._starts,
            accept_index=results.accept_index,
            buffer=results.buffer,
            rows=rows,
            inside=True,
        )


def _aligned(count: int) -> int:
    """What comes after so many numbers begins at 16 bytes, for which kernels of Triton are compiled."""
    return -(-count // 4) * 4
