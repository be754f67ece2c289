# SPDX-License-Identifier: Apache-2.0
"""Which nodes of a batch are worth their rows, and what is learned from what became of them.

values  (B,)  what every node is expected to bring, as a key by which nodes are ordered
select  (1,)  orders the keys, decides how many nodes are kept, and writes their trees
update  (B,)  the calibration of every request; the first program changes the credit, too

A key has the float32 of the value in its upper half. The lower half falls with the place in the order of
equal nodes, and its lowest bit says that the next node is kept if this one is. Keys of roots are larger than
all others, 0 is none. Keys and scratch memory have NODES places for every request.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

from .._checks import BackendUnavailable
from .._ops.calls import SelectNodesCall, UpdateBudgetCall
from .arguments import compiler_options
from .dispatch import Launch, current, device_of
from .launch import BUDGET_MOST_NODES, budget_warps

_ROOT = tl.constexpr(0x7F000000)  # the upper half of a root's key
_LEAST = tl.constexpr(-745.0)  # scores of no chance are smaller
_BUCKETS = tl.constexpr(8)
_DRAWS = tl.constexpr(8)
_MOST_STEPS = tl.constexpr(2**31 - 2)
_NONE = tl.constexpr(2**31 - 1)
_MOST_WEIGHT = tl.constexpr(1e30)


@cache
def _values_kernel(device: Any, slots: bool, weights: bool, nodes: int) -> Launch:
    return _kernel(_budget_values_kernel, device, nodes, budget_warps(nodes))


@cache
def _select_kernel(device: Any, draft_rows: bool, nodes: int, lanes: int) -> Launch:
    return _kernel(_select_nodes_kernel, device, nodes, budget_warps(lanes), LANES=lanes)


@cache
def _update_kernel(device: Any, slots: bool, nodes: int) -> Launch:
    return _kernel(_update_budget_kernel, device, nodes, budget_warps(nodes))


def _kernel(kernel: Any, device: Any, nodes: int, warps: int, **constants: int) -> Launch:
    with current(device):
        options = compiler_options(warps)
    return Launch(kernel, device, dict(NODES=nodes, **constants), num_warps=warps, **options)


def select_nodes(call: SelectNodesCall) -> None:
    """Fill the outputs, in two launches.

    Raises:
        BackendUnavailable: a batch of more nodes than one program can order.
    """
    batch, total, kept = call.cu_nodes.shape[0] - 1, call.scores.shape[0], call.out_rows.shape[0]
    nodes = triton.next_power_of_2(max(total, 1) if batch < 1 else max(call.max_nodes, 1))
    lanes = max(triton.next_power_of_2(max(batch, 1) * nodes), 32)
    if lanes > BUDGET_MOST_NODES:
        rule = f"it orders at most {BUDGET_MOST_NODES} nodes of a batch, got {lanes}"
        raise BackendUnavailable(f"select_nodes: backend 'triton' cannot serve this call: {rule}")
    device, form = call.scores.device, device_of(call.scores)
    keys = torch.empty(max(batch, 1) * nodes, dtype=torch.int64, device=device)
    drawn = torch.empty(max(batch, 1), dtype=torch.int32, device=device)
    scratch = torch.empty((2, lanes), dtype=torch.float64, device=device)
    if batch:
        _values_kernel(form, call.slots is not None, call.weights is not None, nodes)(
            (batch, 1, 1),
            call.tokens, call.parents, call.cu_nodes, call.proposals, call.scores, call.slots,
            call.weights, call.promised, call.kept, keys, drawn, scratch,
            total, call.promised.shape[0], lanes, call.prior,
        )  # fmt: skip
    _select_kernel(form, call.draft_rows is not None, nodes, lanes)(
        (1, 1, 1),
        call.tokens, call.parents, call.cu_nodes, call.proposals, call.scores, call.draft_rows,
        call.costs, call.credit, call.idle_steps, keys, drawn, scratch,
        call.out_tokens, call.out_parents, call.out_cu_nodes, call.out_proposals, call.out_scores,
        call.out_rows, call.out_draft_rows,
        batch, total, call.costs.shape[0] - 1, kept, min(call.patience, 2**31 - 1),
    )  # fmt: skip


def update_budget(call: UpdateBudgetCall) -> None:
    """Change the calibrations and the ledger, in one launch."""
    batch, total = call.path.shape[0], call.scores.shape[0]
    if batch:
        nodes = triton.next_power_of_2(max(call.max_nodes, 1))
        _update_kernel(device_of(call.scores), call.slots is not None, nodes)(
            (batch, 1, 1),
            call.parents, call.cu_nodes, call.proposals, call.scores, call.path, call.num_tokens, call.slots,
            call.costs, call.credit, call.idle_steps, call.promised, call.kept,
            total, call.path.shape[1], call.promised.shape[0], call.costs.shape[0] - 1,
            call.decay, call.allowance, call.max_credit,
        )  # fmt: skip


@triton.jit
def _span(cu_nodes_ptr, b, total, NODES: tl.constexpr):
    """The first row of a request, and how many it has."""
    first = tl.minimum(tl.maximum(tl.load(cu_nodes_ptr + b), 0), total)
    end = tl.minimum(tl.maximum(tl.load(cu_nodes_ptr + b + 1), 0), total)
    return first, tl.minimum(tl.maximum(end - first, 0), NODES)


@triton.jit
def _bucket(promise):
    kind = tl.zeros_like(promise).to(tl.int32)
    odds = tl.full([], 0.08838834764831845, tl.float64)  # 2^-3.5
    for _ in tl.static_range(_BUCKETS - 1):
        kind += (promise >= odds / (odds + 1.0)).to(tl.int32)
        odds *= 2.0
    return kind


@triton.jit
def _chance(score):
    exists = score > _LEAST  # false for NaN, too
    return tl.where(exists, tl.exp(tl.minimum(tl.where(exists, score, 0.0), 0.0).to(tl.float64)), 0.0)


@triton.jit
def _promises(tokens_ptr, parents_ptr, scores_ptr, node, count):
    """Of the nodes of a request, whose rows begin at the pointers: parents, and chances given these, 0 for
    roots and where there is no node."""
    inside = (node > 0) & (node < count)
    parent = tl.load(parents_ptr + node, mask=inside, other=-1)
    inside = inside & (parent >= 0) & (parent < node)
    if tokens_ptr is not None:
        inside = inside & (tl.load(tokens_ptr + node, mask=inside, other=-1) >= 0)
    parent = tl.where(inside, parent, 0)
    above = _chance(tl.load(scores_ptr + parent, mask=inside, other=float("-inf")))
    own = _chance(tl.load(scores_ptr + node, mask=inside, other=float("-inf")))
    promise = tl.where(above > 0, tl.minimum(own / tl.where(above > 0, above, 1.0), 1.0), 0.0)
    return parent, promise


@triton.jit
def _siblings(tokens_ptr, parents_ptr, proposals_ptr, scores_ptr, parent, count):
    """Of each node and its siblings: whether some are drawn, some are chosen, the first and the last one."""
    drawn, chosen = tl.zeros_like(parent), tl.zeros_like(parent)
    first, last = tl.zeros_like(parent) + _NONE, tl.zeros_like(parent) - 1
    for other in range(1, count):
        _, promise = _promises(tokens_ptr, parents_ptr, scores_ptr, tl.full([1], 0, tl.int32) + other, count)
        theirs = tl.load(parents_ptr + other)
        sibling = (parent == theirs) & (tl.sum(promise) > 0)
        point = tl.load(proposals_ptr + other) == 0
        chosen = tl.where(sibling & point, 1, chosen)
        drawn = tl.where(sibling & (point == 0), 1, drawn)
        first = tl.where(sibling, tl.minimum(first, other), first)
        last = tl.where(sibling, tl.maximum(last, other), last)
    return drawn > 0, chosen > 0, first, last


@triton.jit
def _share(promised_ptr, kept_ptr, slot, slots, kind, prior):
    """The factor that corrects promises of a bucket; 1 outside the slots."""
    there = (slot >= 0) & (slot < slots)
    at = tl.where(there, slot, 0) * (_BUCKETS + 1) + kind
    kept = tl.load(kept_ptr + at, mask=there, other=0.0)
    promised = tl.load(promised_ptr + at, mask=there, other=0.0)
    return (kept + prior) / (promised + prior)


@triton.jit
def _weight(given):
    """What a drafted token of a request is worth."""
    return tl.where(given > 0, tl.minimum(given, _MOST_WEIGHT), 0.0).to(tl.float64)  # 0 for NaN, too


@triton.jit(do_not_specialize=["total", "slots", "lanes", "prior"])
def _budget_values_kernel(
    tokens_ptr,  # [R]
    parents_ptr,  # [R]
    cu_nodes_ptr,  # [B + 1]
    proposals_ptr,  # [R]
    scores_ptr,  # [R]
    slots_ptr,  # [B] or None
    weights_ptr,  # [B] or None
    promised_ptr,  # [slots, 9]
    kept_ptr,  # [slots, 9]
    keys_ptr,  # [B * NODES]
    drawn_ptr,  # [B]
    scratch_ptr,  # [2, lanes] float64
    total,
    slots,
    lanes,
    prior,
    NODES: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    first, count = _span(cu_nodes_ptr, b, total, NODES)
    node = tl.arange(0, NODES)
    slot = b
    if slots_ptr is not None:
        slot = tl.load(slots_ptr + b)
    root = tl.load(scores_ptr + first, mask=count > 0, other=float("-inf"))
    count = tl.where(root > float("-inf"), count, 0)
    tokens_ptr += first
    parents_ptr += first
    proposals_ptr += first
    scores_ptr += first
    parent, promise = _promises(tokens_ptr, parents_ptr, scores_ptr, node, count)
    there = promise > 0
    drawn, chosen, eldest, last = _siblings(
        tokens_ptr, parents_ptr, proposals_ptr, scores_ptr, tl.where(there, parent, -2), count
    )
    tl.store(drawn_ptr + b, tl.max((there & drawn).to(tl.int32)))

    # From the root on one level in every round: what lies deeper is 0.
    factor = tl.minimum(promise * _share(promised_ptr, kept_ptr, slot, slots, _bucket(promise), prior), 1.0)
    draw = tl.minimum(_share(promised_ptr, kept_ptr, slot, slots, _DRAWS, prior), 1.0)
    chances_ptr, values_ptr = scratch_ptr + b * NODES, scratch_ptr + lanes + b * NODES
    chance = tl.where((node == 0) & (count > 0), 1.0, 0.0).to(tl.float64)
    value, reached, changed = chance, node == 0, tl.full([], 1, tl.int32)
    while changed > 0:
        tl.debug_barrier()
        tl.store(chances_ptr + node, chance)
        tl.store(values_ptr + node, value)
        tl.debug_barrier()
        above = tl.load(chances_ptr + parent)
        most = tl.load(values_ptr + parent)
        now = there & (reached == 0) & (most > 0)
        chance = tl.where(now, above * factor, chance)
        value = tl.where(now, tl.minimum(tl.where(drawn, above * draw, chance), most), value)
        reached = reached | now
        changed = tl.max(now.to(tl.int32))

    if weights_ptr is not None:
        value *= _weight(tl.load(weights_ptr + b))
    found = there & (value > 0)
    place = tl.where(drawn, eldest, node)
    tl.debug_barrier()
    tl.store(values_ptr + node, place.to(tl.float64))
    tl.debug_barrier()
    order = tl.zeros([NODES], tl.int32)
    for other in range(1, count):
        theirs = tl.load(values_ptr + other).to(tl.int32)
        order += ((theirs < place) | ((theirs == place) & (other < node))).to(tl.int32)
    low = 0xFFFFFFFE - 2 * (b * NODES + order) + (drawn & chosen & (node != last)).to(tl.int64)
    high = value.to(tl.float32).to(tl.int32, bitcast=True).to(tl.int64)
    high = tl.where(node == 0, _ROOT, tl.maximum(high, 1))
    key = tl.where(found | ((node == 0) & (count > 0)), (high << 32) | low, 0)
    tl.store(keys_ptr + b * NODES + node, key)


@triton.jit
def _best(tokens, rows, cost, allowed, plain, trial):
    """The rows that bring the most tokens per time, fewest among equals."""
    rate = tl.where(allowed & (rows >= plain), tokens / tl.where(allowed, cost, 1.0), 0.0)
    more = tl.max(tl.where(rows > plain, rate, 0.0))
    rate = tl.where((rows == plain) & trial & (more > 0), 0.0, rate)
    highest = tl.max(rate)
    best = tl.min(tl.where((rate == highest) & (rate > 0), rows, _NONE))
    return tl.where(best == _NONE, plain, best)


@triton.jit
def _stopping(keys_ptr, costs_ptr, tokens, rows, cost, credit, plain, count, max_rows, trial):
    """The same where nodes were drawn: no decision looks at a draw that it decides on. See the reference.

    keys_ptr -> the keys in their order. A decision comes after every row whose next one is not tied to it.
    """
    following = tl.load(keys_ptr + rows, mask=rows < count, other=0)
    value = (following >> 32).to(tl.int32).to(tl.float32, bitcast=True).to(tl.float64)
    end = rows + 1
    tied = (rows < count) & ((following & 1) > 0)
    while tl.max(tied.to(tl.int32)) > 0:
        key = tl.load(keys_ptr + end, mask=tied & (end < count), other=0)
        end += tied.to(tl.int32)
        tied = tied & ((key & 1) > 0)
    base = tl.load(costs_ptr + plain)
    paid = tl.load(costs_ptr + end, mask=end <= max_rows, other=float("inf"))
    price = tl.full(rows.shape, float("inf"), tl.float64)
    for more in range(plain + 1, max_rows + 1):
        each = (tl.load(costs_ptr + more) - cost) / tl.maximum(more - rows, 1)
        price = tl.where((more >= end) & (each < price), each, price)
    pays = (value * cost > tokens * price) | (trial & (rows == plain))
    goes_on = (rows < count) & (end <= max_rows) & (paid - base <= credit) & (paid > 0) & pays
    here = tl.load(keys_ptr + rows - 1, mask=rows <= count, other=0)
    decides = (rows >= plain) & ((here & 1) == 0)
    return tl.min(tl.where(decides & (goes_on == 0), rows, _NONE))


@triton.jit(do_not_specialize=["batch", "total", "max_rows", "kept", "patience"])
def _select_nodes_kernel(
    tokens_ptr,  # [R]
    parents_ptr,  # [R]
    cu_nodes_ptr,  # [B + 1]
    proposals_ptr,  # [R]
    scores_ptr,  # [R]
    draft_rows_ptr,  # [R] or None
    costs_ptr,  # [max_rows + 1]
    credit_ptr,  # [1]
    idle_steps_ptr,  # [1]
    keys_ptr,  # [B * NODES]
    drawn_ptr,  # [B]
    scratch_ptr,  # [2, LANES], 64 bits each
    out_tokens_ptr,  # [kept]
    out_parents_ptr,  # [kept]
    out_cu_nodes_ptr,  # [B + 1]
    out_proposals_ptr,  # [kept]
    out_scores_ptr,  # [kept]
    out_rows_ptr,  # [kept]
    out_draft_rows_ptr,  # [kept] or None
    batch,
    total,
    max_rows,
    kept,
    patience,
    NODES: tl.constexpr,
    LANES: tl.constexpr,
):
    lane = tl.arange(0, LANES)
    key = tl.load(keys_ptr + lane, mask=lane < batch * NODES, other=0)
    ordered = tl.sort(key, descending=True)
    sorted_ptr = scratch_ptr.to(tl.pointer_type(tl.int64))
    tl.store(sorted_ptr + lane, ordered)
    count = tl.sum((ordered > 0).to(tl.int32))
    plain = tl.sum(((ordered >> 32) == _ROOT).to(tl.int32))
    value = (ordered >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    value = tl.where(lane < plain, 1.0, value).to(tl.float64)
    tokens, rows = tl.cumsum(value, 0), lane + 1
    cost = tl.load(costs_ptr + rows, mask=rows <= max_rows, other=float("inf"))
    credit, trial = tl.load(credit_ptr), tl.load(idle_steps_ptr) >= patience
    allowed = (rows <= count) & (rows <= max_rows) & (cost > 0)
    allowed = allowed & (cost - tl.load(costs_ptr + plain) <= credit)
    drawn = tl.max(tl.load(drawn_ptr + lane, mask=lane < batch, other=0))
    tl.debug_barrier()
    if drawn > 0:
        chosen = _stopping(sorted_ptr, costs_ptr, tokens, rows, cost, credit, plain, count, max_rows, trial)
    else:
        chosen = _best(tokens, rows, cost, allowed, plain, trial)
    chosen = tl.where(plain == 0, 0, chosen)
    least = tl.load(sorted_ptr + tl.maximum(chosen - 1, 0))

    stays = (key > 0) & (key >= least) & (chosen > 0)
    place = tl.cumsum(stays.to(tl.int32), 0)  # one more than its row
    used = tl.max(place)
    b, node = lane // NODES, lane % NODES
    places_ptr = (scratch_ptr + LANES).to(tl.pointer_type(tl.int32))
    tl.store(places_ptr + lane, place)
    tl.debug_barrier()
    start = tl.load(places_ptr + b * NODES - 1, mask=b > 0, other=0)
    start = tl.minimum(start, kept)
    tl.store(out_cu_nodes_ptr + b, start, mask=(node == 0) & (b < batch))
    tl.store(out_cu_nodes_ptr + batch, tl.minimum(used, kept))
    first = tl.load(cu_nodes_ptr + b, mask=stays, other=0)
    row = tl.minimum(tl.maximum(first, 0), total) + node
    out = place - 1
    stays = stays & (out < kept)
    parent = tl.load(parents_ptr + row, mask=stays & (node > 0), other=0)
    number = tl.load(places_ptr + b * NODES + parent, mask=stays & (node > 0), other=0) - 1 - start
    tl.store(out_parents_ptr + out, tl.where(node > 0, number, -1), mask=stays)
    tl.store(out_rows_ptr + out, row, mask=stays)
    tl.store(out_tokens_ptr + out, tl.load(tokens_ptr + row, mask=stays), mask=stays)
    tl.store(out_proposals_ptr + out, tl.load(proposals_ptr + row, mask=stays), mask=stays)
    tl.store(out_scores_ptr + out, tl.load(scores_ptr + row, mask=stays), mask=stays)
    if draft_rows_ptr is not None:
        tl.store(out_draft_rows_ptr + out, tl.load(draft_rows_ptr + row, mask=stays), mask=stays)
    for begin in range(0, kept, LANES):
        out = begin + lane
        unused = (out >= used) & (out < kept)
        tl.store(out_tokens_ptr + out, tl.full([LANES], -1, tl.int64), mask=unused)
        tl.store(out_parents_ptr + out, tl.full([LANES], -1, tl.int32), mask=unused)
        tl.store(out_rows_ptr + out, tl.full([LANES], -1, tl.int32), mask=unused)
        tl.store(out_proposals_ptr + out, tl.zeros([LANES], tl.uint8), mask=unused)
        tl.store(out_scores_ptr + out, tl.full([LANES], float("-inf"), tl.float32), mask=unused)
        if draft_rows_ptr is not None:
            tl.store(out_draft_rows_ptr + out, tl.full([LANES], -1, tl.int32), mask=unused)


@triton.jit(do_not_specialize=["total", "width", "slots", "max_rows", "decay", "allowance", "max_credit"])
def _update_budget_kernel(
    parents_ptr,  # [S]
    cu_nodes_ptr,  # [B + 1]
    proposals_ptr,  # [S]
    scores_ptr,  # [S]
    path_ptr,  # [B, width]
    num_tokens_ptr,  # [B]
    slots_ptr,  # [B] or None
    costs_ptr,  # [max_rows + 1]
    credit_ptr,  # [1]
    idle_steps_ptr,  # [1]
    promised_ptr,  # [slots, 9]
    kept_ptr,  # [slots, 9]
    total,
    width,
    slots,
    max_rows,
    decay,
    allowance,
    max_credit,
    NODES: tl.constexpr,
):
    b, batch = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    if b == 0:
        emitting, emitted = tl.full([], 0, tl.int32), tl.full([], 0, tl.int64)
        for begin in range(0, batch, NODES):
            request = begin + tl.arange(0, NODES)
            number = tl.maximum(tl.load(num_tokens_ptr + request, mask=request < batch, other=0), 0)
            emitting += tl.sum((number > 0).to(tl.int32))
            emitted += tl.sum(number.to(tl.int64))
        if emitting > 0:
            rows = tl.minimum(tl.maximum(tl.load(cu_nodes_ptr + batch), 0), total)
            plain = tl.load(costs_ptr + tl.minimum(emitting, max_rows))
            plain = plain * emitted.to(tl.float64) / emitting.to(tl.float64)
            spent = tl.load(costs_ptr + tl.minimum(rows, max_rows))
            credit = tl.load(credit_ptr) + (allowance + 1.0) * plain - spent
            credit = tl.where(credit == credit, tl.minimum(credit, max_credit), 0.0)
            tl.store(credit_ptr, credit)
            steps = tl.minimum(tl.load(idle_steps_ptr), _MOST_STEPS) + 1
            tl.store(idle_steps_ptr, tl.where(rows <= emitting, steps, 0))
    slot = b
    if slots_ptr is not None:
        slot = tl.load(slots_ptr + b)
    first, count = _span(cu_nodes_ptr, b, total, NODES)
    if (slot >= 0) & (slot < slots) & (count > 0) & (tl.load(num_tokens_ptr + b) > 0):
        node = tl.arange(0, NODES)
        parents_ptr += first
        scores_ptr += first
        parent, promise = _promises(None, parents_ptr, scores_ptr, node, count)
        drawn, _, _, _ = _siblings(
            None, parents_ptr, proposals_ptr + first, scores_ptr, tl.where(promise > 0, parent, -2), count
        )
        tested, accepted = tl.zeros([NODES], tl.int32), tl.zeros([NODES], tl.int32)
        for i in range(0, width):
            step = tl.load(path_ptr + b * width + i)
            tested = tl.where(parent == step, 1, tested)
            accepted = tl.where(node == step, 1, accepted)
        tested = (tested > 0) & (promise > 0)
        hit = tl.where(tested & (accepted > 0), 1.0, 0.0).to(tl.float64)
        kind = _bucket(promise)
        at = slot * (_BUCKETS + 1)
        for bucket in tl.static_range(_BUCKETS + 1):
            if bucket == _DRAWS:
                here = tested & drawn
                claimed = tl.sum(tl.where(here, 1.0, 0.0).to(tl.float64))
            else:
                here = tested & (kind == bucket)
                claimed = tl.sum(tl.where(here, promise, 0.0))
            promised = tl.load(promised_ptr + at + bucket) * decay + claimed
            kept = tl.load(kept_ptr + at + bucket) * decay + tl.sum(tl.where(here, hit, 0.0))
            tl.store(promised_ptr + at + bucket, promised)
            tl.store(kept_ptr + at + bucket, kept)
