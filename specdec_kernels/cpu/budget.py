# SPDX-License-Identifier: Apache-2.0
"""A budget on the CPU: nodes selected, and what was learned."""

from __future__ import annotations

from .._ops.calls import SelectNodesCall, UpdateBudgetCall
from . import _native
from .arguments import address


def select_nodes(call: SelectNodesCall) -> None:
    """Fill the outputs."""
    _native.select_nodes(
        1,
        budget=_budget_of(call),
        prior=call.prior,
        patience=call.patience,
        requests=call.cu_nodes.shape[0] - 1,
        nodes=call.scores.shape[0],
        tokens=call.tokens.data_ptr(),
        parents=call.parents.data_ptr(),
        cu_nodes=call.cu_nodes.data_ptr(),
        proposals=call.proposals.data_ptr(),
        scores=call.scores.data_ptr(),
        draft_rows=address(call.draft_rows),
        request_slots=address(call.slots),
        weights=address(call.weights),
        out_tokens=call.out_tokens.data_ptr(),
        out_parents=call.out_parents.data_ptr(),
        out_cu_nodes=call.out_cu_nodes.data_ptr(),
        out_proposals=call.out_proposals.data_ptr(),
        out_scores=call.out_scores.data_ptr(),
        out_rows=call.out_rows.data_ptr(),
        out_draft_rows=address(call.out_draft_rows),
    )


def update_budget(call: UpdateBudgetCall) -> None:
    """Change the calibrations and the ledger."""
    requests, width = call.path.shape
    _native.update_budget(
        1,
        budget=_budget_of(call),
        decay=call.decay,
        allowance=call.allowance,
        max_credit=call.max_credit,
        requests=requests,
        nodes=call.scores.shape[0],
        parents=call.parents.data_ptr(),
        cu_nodes=call.cu_nodes.data_ptr(),
        proposals=call.proposals.data_ptr(),
        scores=call.scores.data_ptr(),
        path=call.path.data_ptr(),
        width=width,
        num_tokens=call.num_tokens.data_ptr(),
        request_slots=address(call.slots),
    )


def _budget_of(call: SelectNodesCall | UpdateBudgetCall) -> _native.Budget:
    return _native.Budget(
        costs=call.costs.data_ptr(),
        max_rows=call.costs.shape[0] - 1,
        credit=call.credit.data_ptr(),
        idle_steps=call.idle_steps.data_ptr(),
        promised=call.promised.data_ptr(),
        kept=call.kept.data_ptr(),
        slots=call.promised.shape[0],
    )
