# SPDX-License-Identifier: Apache-2.0
"""Which nodes of a batch are worth their rows, and what is learned from what became of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import NamedTuple

from torch import Tensor

from .._ops.calls import SelectNodesCall, UpdateBudgetCall
from ..tree import Proposal

# Promises are sorted into buckets, one for each power of two of the odds. Draws have one bucket of their own.
BUCKETS = 8
DRAWS = BUCKETS
BOUNDS = tuple(odds / (1.0 + odds) for odds in (2.0 ** (kind - 3.5) for kind in range(BUCKETS - 1)))
MOST_STEPS = 2**31 - 2
MOST_WEIGHT = 1e30


class Draft(NamedTuple):
    """The tree of one request. A promise is the chance of a node given its parent, 0 for roots and where
    there is no node."""

    parents: list[int]
    promises: list[float]
    drawn: set[int]  # nodes of which a child was drawn
    mixed: set[int]  # those of which another child was chosen


class Node(NamedTuple):
    """A drafted node that may be kept. Nodes are taken in the order of these tuples."""

    rank: float  # minus the value, which is what it is expected to bring
    request: int
    place: int  # its own number; of a drawn node and its siblings the first one's
    number: int
    whole: bool  # it is kept with all its siblings or not at all


def bucket(promise: float) -> int:
    return sum(promise >= bound for bound in BOUNDS)


def draft(tokens: list[int], parents: list[int], proposals: list[int], scores: list[float]) -> Draft:
    chances = [math.exp(min(score, 0.0)) if score > -math.inf else 0.0 for score in scores]
    promises = [0.0] * len(parents)
    drawn: set[int] = set()
    chosen: set[int] = set()
    for node, parent in enumerate(parents):
        if tokens[node] >= 0 and 0 <= parent < node and chances[parent] > 0.0:
            promises[node] = min(chances[node] / chances[parent], 1.0)
        if promises[node] > 0.0:
            (chosen if proposals[node] == Proposal.POINT else drawn).add(parent)
    return Draft(parents, promises, drawn, drawn & chosen)


def nodes_of(request: int, draft: Draft, shares: list[float], weight: float) -> list[Node]:
    """The nodes of a request that may be kept.

    The value of a chosen node is its chance, of which every promise was corrected. A drawn node and its
    siblings have to be kept or not by what was known before the draw: their value is their parent's chance,
    corrected by the share of draws that were accepted. No value is larger than the parent's. All are worth
    the weight of the request.
    """
    chances, values, found = [1.0], [1.0], []
    first: dict[int, int] = {}
    for node, promise in enumerate(draft.promises[1:], 1):
        parent = draft.parents[node]
        if promise == 0.0 or not values[parent] > 0.0:
            chances.append(0.0)
            values.append(0.0)
            continue
        chances.append(chances[parent] * min(promise * shares[bucket(promise)], 1.0))
        value, place = chances[node], node
        if parent in draft.drawn:
            value, place = chances[parent] * min(shares[DRAWS], 1.0), first.setdefault(parent, node)
        values.append(min(value, values[parent]))
        if weight * values[node] > 0.0:
            found.append(Node(-weight * values[node], request, place, node, parent in draft.mixed))
    return found


def best(nodes: list[Node], plain: int, costs: list[float], credit: float, trial: bool) -> int:
    """How many nodes bring the most tokens per time, among what the credit covers; with `trial` at least one.

    Args:
        nodes: in their order.
        plain: the rows of plain decoding, which are the roots.
        costs: times of steps by rows.
    """
    tokens, rates = float(plain), []
    for count in range(min(len(nodes) + 1, len(costs) - plain)):
        tokens -= nodes[count - 1].rank if count else 0.0
        cost = costs[plain + count]
        rates.append(tokens / cost if 0.0 < cost and cost - costs[plain] <= credit else 0.0)
    least = int(trial and any(rate > 0.0 for rate in rates[1:]))
    return max(range(least, len(rates)), key=rates.__getitem__, default=0)


def stopping(nodes: list[Node], plain: int, costs: list[float], credit: float, trial: bool) -> int:
    """The same where nodes were drawn: no decision looks at a draw that it decides on.

    It goes on while the next node is expected to bring more than a further row costs at the present rate, at
    the best price of rows from here on.
    """
    count, tokens = 0, float(plain)
    while count < len(nodes):
        rows, end = plain + count, count + 1
        while end < len(nodes) and nodes[count].whole and nodes[end][:3] == nodes[count][:3]:
            end += 1
        if plain + end >= len(costs) or not costs[plain + end] - costs[plain] <= credit:
            break
        further = range(plain + end, len(costs))
        price = min((costs[more] - costs[rows]) / (more - rows) for more in further)
        if not (trial and count == 0) and not -nodes[count].rank * costs[rows] > tokens * price:
            break
        tokens -= sum(node.rank for node in nodes[count:end])
        count = end
    return count


def select_nodes(call: SelectNodesCall) -> None:
    """Fill the outputs."""
    drafts, found, plain = {}, [], 0
    for b, span in enumerate(spans(call.cu_nodes, call.scores.shape[0])):
        tree = [part[span].tolist() for part in (call.tokens, call.parents, call.proposals, call.scores)]
        if tree[3] and tree[3][0] > -math.inf:
            drafts[b] = draft(*tree)
            found += nodes_of(b, drafts[b], _shares(call, b), _weight(call, b))
    plain, choose = len(drafts), stopping if any(each.drawn for each in drafts.values()) else best
    found.sort()
    trial = int(call.idle_steps) >= call.patience
    kept: dict[int, set[int]] = {b: {0} for b in drafts}
    for node in found[: choose(found, plain, call.costs.tolist(), float(call.credit), trial)]:
        kept[node.request].add(node.number)
    _keep(call, kept)


def _shares(call: SelectNodesCall, request: int) -> list[float]:
    """Of each bucket of a request the factor that corrects its promises."""
    slot = request if call.slots is None else int(call.slots[request])
    if not 0 <= slot < call.promised.shape[0]:
        return [1.0] * (BUCKETS + 1)
    shares: list[float] = ((call.kept[slot] + call.prior) / (call.promised[slot] + call.prior)).tolist()
    return shares


def _weight(call: SelectNodesCall, request: int) -> float:
    """What a drafted token of a request is worth."""
    weight = 1.0 if call.weights is None else float(call.weights[request])
    return min(weight, MOST_WEIGHT) if weight > 0.0 else 0.0  # 0 for NaN, too


def _keep(call: SelectNodesCall, kept: dict[int, set[int]]) -> None:
    """Write the trees of the kept nodes."""
    rows: list[int] = []
    parents: list[int] = []
    for b, span in enumerate(spans(call.cu_nodes, call.scores.shape[0])):
        call.out_cu_nodes[b] = len(rows)
        numbers: dict[int, int] = {}
        for node in sorted(kept.get(b, ())):
            parents.append(numbers[int(call.parents[span.start + node])] if node else -1)
            numbers[node] = len(numbers)
            rows.append(span.start + node)
    call.out_cu_nodes[-1] = len(rows)
    for out, given, unused in (
        (call.out_tokens, call.tokens, -1),
        (call.out_proposals, call.proposals, 0),
        (call.out_scores, call.scores, -math.inf),
        (call.out_draft_rows, call.draft_rows, -1),
    ):
        if out is not None and given is not None:
            out.fill_(unused)
            out[: len(rows)] = given[rows]
    for out, values in ((call.out_rows, rows), (call.out_parents, parents)):
        out.fill_(-1)
        out[: len(rows)] = out.new_tensor(values)


def update_budget(call: UpdateBudgetCall) -> None:
    """Change the calibrations of the requests of a step, and the credit."""
    for b, span in enumerate(spans(call.cu_nodes, call.scores.shape[0])):
        slot = b if call.slots is None else int(call.slots[b])
        if not 0 <= slot < call.promised.shape[0] or span.start == span.stop or int(call.num_tokens[b]) <= 0:
            continue
        parents, proposals, scores = (
            part[span].tolist() for part in (call.parents, call.proposals, call.scores)
        )
        tree, accepted = draft([0] * len(parents), parents, proposals, scores), set(call.path[b].tolist())
        call.promised[slot] *= call.decay
        call.kept[slot] *= call.decay
        for node, promise in enumerate(tree.promises):
            if promise > 0.0 and parents[node] in accepted:
                call.promised[slot, bucket(promise)] += promise
                call.kept[slot, bucket(promise)] += node in accepted
                if parents[node] in tree.drawn:
                    call.promised[slot, DRAWS] += 1.0
                    call.kept[slot, DRAWS] += node in accepted
    emitted = [count for count in call.num_tokens.tolist() if count > 0]
    if emitted:
        rows = max(span.stop for span in spans(call.cu_nodes, call.scores.shape[0]))
        costs = call.costs.tolist()
        plain = costs[min(len(emitted), len(costs) - 1)] * sum(emitted) / len(emitted)
        credit = float(call.credit) + (1.0 + call.allowance) * plain - costs[min(rows, len(costs) - 1)]
        call.credit.fill_(0.0 if math.isnan(credit) else min(credit, call.max_credit))
        call.idle_steps.fill_(min(int(call.idle_steps), MOST_STEPS) + 1 if rows <= len(emitted) else 0)


def spans(cu_nodes: Tensor, rows: int) -> Iterator[slice]:
    """The rows of every request."""
    ends = accumulate((min(max(end, 0), rows) for end in cu_nodes.tolist()), max)
    for start, end in pairwise(ends):
        yield slice(start, end)
