# SPDX-License-Identifier: Apache-2.0
"""How much to draft, decided on the device: a budget and the calibrations of a batch in tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _ops
from .._checks import (
    bad_value,
    check_dim,
    check_dtype,
    check_int,
    check_ints,
    check_number,
    check_tensor,
    check_type,
    device_named,
    what,
)
from .._memory import check_contiguous
from .._ops.calls import SelectNodesCall, UpdateBudgetCall
from ..tree import DraftTree
from ..verification import Verified
from .budget import Budget, Calibration

MOST_ROWS = 2**31 - 1


class SelectedNodes(NamedTuple):
    """The nodes that `BatchBudget.select` kept: a tree of [S] rows, S = min(max_rows, R), for `verify`."""

    tree: DraftTree
    """Rows from `cu_nodes[B]` on are unused."""
    rows: Tensor
    """[S] int32: the row of each node in the tree that was given; -1 at unused rows."""
    draft_rows: Tensor
    """[S] int32: its draft row, for `verify`; `rows` if none were given."""
    scores: Tensor
    """[S] float32: its score; -inf at unused rows."""
    slots: Tensor | None
    """As they were given."""


class BatchBudget:
    """A `Budget` and a `Calibration` for each request of a batch, in tensors on the device.

    A step calls `select` with what was drafted, and `update_` with what was verified. Neither waits for the
    device, and shapes are static, so a CUDA graph can capture both. For trees of `POINT` nodes the choice is
    that of `Budget.choose`, and the credit bounds what drafts can cost in the same way.

    Args:
        budget: costs, credit, allowance and patience to begin with.
        slots: number of slots, each with the calibration of one request.
        max_rows: the most rows of a step, roots included, >= 1.
        calibration: what a slot begins with; default: `Calibration()`.
        device: where the tensors lie; default: the default device.

    Attributes:
        costs: [max_rows + 1] float64: the time of a step by its number of rows. Write new measurements into
            it at any time; times of 1 row and more must be > 0.
        credit: [1] float64: time that may be lost at present; negative: a debt. Subtract what the
            costs do not tell, such as the time of drafting.
        idle_steps: [1] int32: steps since the last one that drafted.
        promised, kept: [slots, 9] float64: per bucket, sums of tested promises and of accepted nodes. The
            last bucket counts draws, see `select`.

    Raises:
        ValueError: numbers out of range.
        TypeError: wrong types.

    Example:
        >>> budget = BatchBudget(Budget({1: 1.0, 4: 1.2, 16: 2.0}), slots=2, max_rows=16)
        >>> tree = DraftTree.chain(torch.tensor([[5, 6, 7], [8, 9, 9]]), proposal=0)
        >>> scores = torch.tensor([[1.0, 0.9, 0.8, 0.05], [1.0, 0.03, 0.02, 0.01]]).log()
        >>> selected = budget.select(tree, scores)
        >>> selected.tree.cu_nodes.tolist(), selected.rows.tolist()
        ([0, 3, 4], [0, 1, 2, 4, -1, -1, -1, -1])
    """

    def __init__(
        self,
        budget: Budget,
        slots: int,
        max_rows: int,
        *,
        calibration: Calibration | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        call = "BatchBudget"
        check_type(call, "budget", budget, Budget, "a Budget")
        if calibration is not None:
            check_type(call, "calibration", calibration, Calibration, "a Calibration or None")
        slots = check_int(call, "slots", slots, 0, MOST_ROWS)
        max_rows = check_int(call, "max_rows", max_rows, 1, MOST_ROWS - 1)
        device = device_named(call, device)
        self._budget, self._calibration = budget, calibration or Calibration()
        self.costs: Tensor = torch.from_numpy(budget.cost(range(max_rows + 1))).to(device)
        self.credit: Tensor = torch.full((1,), budget.credit, dtype=torch.float64, device=device)
        self.idle_steps: Tensor = torch.full((1,), budget.idle_steps, dtype=torch.int32, device=device)
        fresh = [[*part, 0.0] for part in (self._calibration.promised, self._calibration.kept)]
        self._fresh = torch.tensor(fresh, dtype=torch.float64, device=device)
        self.promised: Tensor = self._fresh[0].repeat(slots, 1)
        self.kept: Tensor = self._fresh[1].repeat(slots, 1)

    @property
    def slots(self) -> int:
        """Number of slots."""
        return self.promised.shape[0]

    @property
    def max_rows(self) -> int:
        """The most rows of a step."""
        return self.costs.shape[0] - 1

    def __repr__(self) -> str:
        return f"BatchBudget(slots={self.slots}, max_rows={self.max_rows}, device={self.costs.device})"

    def reset_(self, slots: Tensor | Sequence[int] | None = None) -> None:
        """Begin with new requests in these slots.

        Args:
            slots: the slots, as a list or as a tensor [n] int64 on the device of the budget; default: all.

        Raises:
            ValueError: slots out of range in a list.
            TypeError: neither a list of ints nor a tensor of int64.

        Notes:
            Does not synchronise if slots are a tensor or None. Numbers out of range in a tensor name no slot.
        """
        call, device = "BatchBudget.reset_", self.promised.device
        if slots is not None and not isinstance(slots, Tensor):
            slots = check_ints(call, "slots", slots, 0)
            for slot in slots:
                if slot >= self.slots:
                    bad_value(call, "slots", f"must be in [0, slots) = [0, {self.slots})", slot)
            slots = torch.tensor(slots, dtype=torch.int64, device=device)
        every = torch.arange(self.slots, device=device)
        if slots is None:
            slots = every
        check_dtype(call, "slots", slots, (torch.int64,))
        check_dim(call, "slots", slots, 1, "[n]")
        check_tensor(call, "slots", slots, "[n]", slots.shape, (torch.int64,), device)
        named = (every[:, None] == slots).any(1, keepdim=True)
        for sums, fresh in zip((self.promised, self.kept), self._fresh, strict=True):
            sums.copy_(torch.where(named, fresh, sums))

    def worth_drafting(self, requests: int, drafting: float) -> bool:
        """Whether to call a drafter before a step of these requests, which `Budget.worth_drafting` says by
        the present costs and credit. Waits for the device, once.

        Raises:
            ValueError: requests outside [1, max_rows], a negative time.
            TypeError: no numbers.
        """
        call = "BatchBudget.worth_drafting"
        requests = check_int(call, "requests", requests, 1, self.max_rows)
        drafting = check_number(call, "drafting", drafting, 0)
        if requests == self.max_rows:
            return False
        near = self.costs[requests : requests + 2]
        *times, credit, idle = torch.cat([self.costs[1:2], near, self.credit, self.idle_steps]).tolist()
        costs = dict(zip((1, requests, requests + 1), times, strict=True))
        now = replace(self._budget, costs=costs, credit=credit, idle_steps=int(idle))
        return now.worth_drafting(requests, drafting)

    def select(
        self,
        tree: DraftTree,
        scores: Tensor,
        *,
        draft_rows: Tensor | None = None,
        slots: Tensor | None = None,
        weights: Tensor | None = None,
        backend: str = "auto",
    ) -> SelectedNodes:
        """Keep the nodes that are expected to bring the most tokens per time over the whole batch.

        Nodes are ranked by their chances, which the calibration of the request corrects. A child is not kept
        without its parent. A node with token -1 or score -inf is not kept.

        Nodes that were drawn from a law must not be kept or dropped by what was drawn. So their siblings
        rank by their parent's chance, and are dropped from the end of their order; if some of them are
        `POINT`, they are kept together or not at all. If any node of the batch was drawn, the number of nodes
        is a stopping rule: it goes on as long as the next node, by what was known before its draw, is
        expected to raise the rate. Their proposals stay true. To choose among drawn nodes by their own
        scores, declare them `POINT` before.

        Args:
            tree: what was drafted, without links.
            scores: [R] or [B, N] float32, the logarithm of every node's chance, as from `ngram_tree`,
                `grow_tree` or `SuffixIndex.draft`: 0 at roots, -inf at unused nodes. A request whose root has
                -inf is a padding slot: it gets no row.
            draft_rows: [R] int32, as for `verify`; default: the draft row of a node is its own row.
            slots: [B] int64, the slot of each request; those out of range count as new requests. Default:
                request b has slot b.
            weights: [B] float32, what a drafted token of each request is worth, where a token of plain
                decoding is worth 1; known before nodes were drawn. Where all requests are awaited, the
                slowest one's are worth most. 0 or NaN: the request gets no drafted nodes. Default: 1. The
                credit does not depend on weights.
            backend: "auto", "reference", "cpu" or "triton".

        Returns:
            `SelectedNodes`.

        Raises:
            ValueError: wrong shapes; a tree of links; more requests than rows, or than slots without `slots`.
            TypeError: wrong dtypes or devices.
            BackendUnavailable: the named backend cannot serve the call.

        Notes:
            Never synchronises. Of equal nodes the first one wins.
        """
        call, device = "BatchBudget.select", self.costs.device
        check_type(call, "tree", tree, DraftTree, "a DraftTree")
        total, batch = tree.tokens.shape[0], tree.batch_size
        if tree.links is not None:
            bad_value(call, "tree", "must be a tree without links", what(tree))
        check_tensor(call, "tree.tokens", tree.tokens, "[R]", (total,), (torch.int64,), device)
        if batch > self.max_rows:
            bad_value(call, "tree", f"must have at most max_rows = {self.max_rows} requests", batch)
        check_dtype(call, "scores", scores, (torch.float32,))
        if scores.dim() == 2:
            shape = (batch, total // max(batch, 1))
            check_tensor(call, "scores", scores, "[B, N]", shape, (torch.float32,), device)
        else:
            check_tensor(call, "scores", scores, "[R] or [B, N]", (total,), (torch.float32,), device)
        if draft_rows is not None:
            check_tensor(call, "draft_rows", draft_rows, "[R]", (total,), (torch.int32,), device)
        if weights is not None:
            check_tensor(call, "weights", weights, "[B]", (batch,), (torch.float32,), device)
        self._check(call, slots, batch)
        kept = min(self.max_rows, total)
        rows, parents = (torch.empty(kept, dtype=torch.int32, device=device) for _ in range(2))
        picked = None if draft_rows is None else torch.empty_like(rows)
        tokens = torch.empty(kept, dtype=torch.int64, device=device)
        proposals = torch.empty(kept, dtype=torch.uint8, device=device)
        cu_nodes = torch.empty(batch + 1, dtype=torch.int32, device=device)
        values = torch.empty(kept, dtype=torch.float32, device=device)
        arguments = SelectNodesCall(
            tokens=tree.tokens.contiguous(),
            parents=tree.parents.contiguous(),
            cu_nodes=tree.cu_nodes.contiguous(),
            proposals=tree.proposals.contiguous(),
            scores=scores.flatten().contiguous(),
            draft_rows=None if draft_rows is None else draft_rows.contiguous(),
            slots=None if slots is None else slots.contiguous(),
            weights=None if weights is None else weights.contiguous(),
            costs=self.costs,
            credit=self.credit,
            idle_steps=self.idle_steps,
            promised=self.promised,
            kept=self.kept,
            prior=self._calibration.prior,
            patience=self._budget.patience,
            max_nodes=tree.max_nodes,
            out_tokens=tokens,
            out_parents=parents,
            out_cu_nodes=cu_nodes,
            out_proposals=proposals,
            out_scores=values,
            out_rows=rows,
            out_draft_rows=picked,
        )
        _ops.select_nodes(arguments, backend)
        bounds = min(tree.max_nodes, kept), tree.max_depth
        selected = DraftTree._made(tokens, parents, cu_nodes, proposals, *bounds)
        return SelectedNodes(selected, rows, rows if picked is None else picked, values, slots)

    def update_(self, selected: SelectedNodes, verified: Verified, *, backend: str = "auto") -> None:
        """Learn from a step: correct the calibrations of its requests, and the credit.

        Args:
            selected: what `select` returned.
            verified: what `verify` returned for `selected.tree`.
            backend: "auto", "reference", "cpu" or "triton".

        Raises:
            ValueError: wrong shapes.
            TypeError: wrong types, dtypes or devices.
            BackendUnavailable: the named backend cannot serve the call.

        Notes:
            Never synchronises. Requests that emitted nothing change nothing.
        """
        call, device = "BatchBudget.update_", self.costs.device
        check_type(call, "selected", selected, SelectedNodes, "a SelectedNodes")
        check_type(call, "verified", verified, Verified, "a Verified")
        tree, integers = selected.tree, (torch.int32,)
        check_type(call, "selected.tree", tree, DraftTree, "a DraftTree")
        total, batch = tree.tokens.shape[0], tree.batch_size
        check_tensor(call, "selected.tree.tokens", tree.tokens, "[S]", (total,), (torch.int64,), device)
        check_tensor(call, "selected.scores", selected.scores, "[S]", (total,), (torch.float32,), device)
        check_dtype(call, "verified.path", verified.path, integers)
        check_dim(call, "verified.path", verified.path, 2, "[B, W]")
        shape = (batch, verified.path.shape[1])
        check_tensor(call, "verified.path", verified.path, "[B, W]", shape, integers, device)
        check_tensor(call, "verified.num_tokens", verified.num_tokens, "[B]", (batch,), integers, device)
        self._check(call, selected.slots, batch)
        arguments = UpdateBudgetCall(
            parents=tree.parents.contiguous(),
            cu_nodes=tree.cu_nodes.contiguous(),
            proposals=tree.proposals.contiguous(),
            scores=selected.scores.contiguous(),
            path=verified.path.contiguous(),
            num_tokens=verified.num_tokens.contiguous(),
            slots=None if selected.slots is None else selected.slots.contiguous(),
            costs=self.costs,
            credit=self.credit,
            idle_steps=self.idle_steps,
            promised=self.promised,
            kept=self.kept,
            decay=self._calibration.decay,
            allowance=self._budget.allowance,
            max_credit=self._budget.max_credit,
            max_nodes=tree.max_nodes,
        )
        _ops.update_budget(arguments, backend)

    def _check(self, operation: str, slots: Tensor | None, batch: int) -> None:
        """Raise unless the tensors are as they were made, and `slots` names a slot for each request."""
        device, real, sums = self._fresh.device, (torch.float64,), (self.slots, self._fresh.shape[1])
        for name, symbols, shape, dtypes in (
            ("costs", "[max_rows + 1]", (self.costs.shape[0],), real),
            ("credit", "[1]", (1,), real),
            ("idle_steps", "[1]", (1,), (torch.int32,)),
            ("promised", "[slots, 9]", sums, real),
            ("kept", "[slots, 9]", sums, real),
        ):
            check_tensor(operation, f"self.{name}", getattr(self, name), symbols, shape, dtypes, device)
            check_contiguous(operation, f"self.{name}", getattr(self, name))
        if slots is not None:
            check_tensor(operation, "slots", slots, "[B]", (batch,), (torch.int64,), device)
        elif batch > self.slots:
            rule = f"must be given where there are more requests than slots, {self.slots}"
            bad_value(operation, "slots", rule, f"None for {batch} requests")
