# SPDX-License-Identifier: Apache-2.0
"""SGLang's arrays of drafts, in a tree that is kept, and its arrays of results."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...tree import DraftTree
from ...verification import Verified
from ..layouts import enter_path


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

    Attributes:
        zeros: [B] int64, seeds and positions where nothing is drawn.
    """

    @torch.inference_mode(False)  # SGLang may step with or without it, and only one kind serves both
    def __init__(self, batch: int, nodes: int, width: int, chain: bool, device: torch.device) -> None:
        self._chain = chain
        self._slots = _aligned(batch * nodes + 1)
        self._grid = _aligned(batch * width)
        self._shape = batch * nodes, batch, width
        none = torch.full((batch, nodes), -1, dtype=torch.int64, device=device)
        if chain:
            self._tree = DraftTree.chain(none[:, 1:], check=False)
        else:
            self._tree = DraftTree.from_links(none, none, none, max_depth=width - 1, check=False)
        ints = torch.empty((3, batch), dtype=torch.int32, device=device)
        self._out = Verified(
            tokens=torch.empty((batch, width), dtype=torch.int32, device=device),
            num_tokens=ints[0],
            num_accepted=ints[1],
            path=torch.empty((batch, width), dtype=torch.int32, device=device),
            logprobs=None,
            status=ints[2],
        )
        self._first_rows = (torch.arange(batch, dtype=torch.int32, device=device) * nodes).unsqueeze(1)
        self._rows = self._first_rows + torch.arange(width, dtype=torch.int32, device=device)
        self.zeros = torch.zeros(batch, dtype=torch.int64, device=device)

    def put(self, verify_input: Any) -> DraftTree:
        """The drafts of a step as a tree. Their values are not checked: unused slots of SGLang's ngram trees
        hold tokens."""
        if self._chain:
            return self._tree.refresh_(verify_input.draft_token, check=False)
        return self._tree.refresh_(
            verify_input.draft_token,
            next_token=verify_input.retrieve_next_token,
            next_sibling=verify_input.retrieve_next_sibling,
            check=False,
        )

    def begin(self) -> tuple[Results, Verified]:
        """New results of a step, and what `verify` has to fill, of which the lengths are the results' own."""
        make = torch.empty if self._chain else torch.zeros
        rows, batch, width = self._shape
        buffer = make(self._slots + self._grid + batch, dtype=torch.int32, device=self.zeros.device)
        predict = buffer.as_strided((rows,), (1,))
        index = buffer.as_strided((batch, width), (width, 1), self._slots)
        lens = buffer.as_strided((batch,), (1,), self._slots + self._grid)
        return Results(buffer, predict, lens, index), self._out._replace(num_tokens=lens)

    def fill(self, results: Results, out: Verified) -> None:
        """`predict` and `accept_index` from what `verify` found."""
        if self._chain:  # whose path is all nodes up to the last that is kept
            torch.where(out.path < 0, out.path, self._rows, out=results.accept_index)
            results.predict.view(self._rows.shape).copy_(out.tokens).clamp_min_(0)
            return
        rows = self._shape[0]
        enter_path(
            out,
            self._first_rows,
            accept_index=results.accept_index,
            buffer=results.buffer,
            rows=rows,
            inside=True,
        )


def _aligned(count: int) -> int:
    """What comes after so many numbers begins at 16 bytes, for which kernels of Triton are compiled."""
    return -(-count // 4) * 4
