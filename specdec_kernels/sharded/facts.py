# SPDX-License-Identifier: Apache-2.0
"""What verification asks of the rows before it tests anything: laws, masses, p and q of drafted tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..tree import Proposal
from . import sums
from .call import Call
from .edits import Edits
from .law import NONE, Law, Params, Side, allowed_tokens, keys_of, laws, params_of, read, scores_of, steps_for
from .nodes import Nodes
from .residual import MOST, Facts, Rows
from .shard import VocabShard

_NO_TOKEN = -(2**62)


class Target(NamedTuple):
    """The target's laws, p = weights / mass, at the rows of the batch."""

    weights: Tensor  # [R, size] float64, of this process
    mass: Tensor  # [R] float64
    nan: Tensor  # [R] bool
    empty: Tensor  # [R] bool


def target_side(
    shard: VocabShard, logits: Tensor, bitmask: Tensor | None, edits: Edits | None, params: Params
) -> Side:
    """The target's rows [R, size]. `last` is the lowest allowed token, negative."""
    allowed = None
    lowest = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    if bitmask is not None:
        allowed = allowed_tokens(bitmask, shard.size)
        first = allowed.byte().argmax(-1) + shard.start
        lowest = torch.where(allowed.any(-1), -first, _NO_TOKEN)
    rows = logits.float() if edits is None else edits.made_in(logits.float())
    scores, nan = read(rows, allowed)
    return Side(scores, nan, lowest, params, steps_for(logits.dtype if edits is None else rows.dtype))


def settle_empty(shard: VocabShard, law: Law) -> Law:
    """Without a possible token, a row is certain of the lowest allowed one, or of 0 if none is allowed."""
    lowest = torch.where(law.last > _NO_TOKEN, -law.last, 0)
    place = shard.start + torch.arange(shard.size, device=lowest.device)
    certain = (place == lowest[:, None]).double()
    return law._replace(weights=torch.where(law.empty[:, None], certain, law.weights))


def draft_side(call: Call, request: Tensor) -> tuple[Side, Tensor]:
    """The draft's row of every node [R], and whether it has one [R]. `last` is the key of the largest score
    without the tokens of children."""
    assert call.draft_logits is not None
    shard, nodes = call.shard, call.nodes
    node = torch.arange(len(request), device=request.device)
    logits = call.draft_logits.flatten(0, -2)
    row = node if call.draft_rows is None else call.draft_rows.long()
    has_row = (row >= 0) & (row < len(logits))
    if call.draft_logits.dim() == 3:
        chain = call.draft_logits.shape[1]
        row, has_row = node - request, (node + 1) % (chain + 1) > 0
    row = row.clamp(0, len(logits) - 1)
    if call.draft_columns is None:
        logits = logits[row, _columns(shard, logits.shape[1])]
    else:
        column = call.draft_columns.long()
        known = (column >= 0) & (column < logits.shape[1])
        logits = torch.where(known, logits[row][:, torch.where(known, column, 0)], NONE)
    scores, nan = read(logits.float(), None)
    rest = without_children(shard, scores, nodes, NONE).amax(-1)
    params = params_of(call.draft_sampling, request)
    steps = steps_for(logits.dtype)
    return Side(scores, nan, keys_of(rest), params, steps, call.draft_form), has_row


def _columns(shard: VocabShard, width: int) -> slice:
    """The columns of draft rows of this process. In whole rows those from V on are the last shard's."""
    if width == shard.size:
        return slice(0, width)
    return slice(shard.start, width if shard.end == shard.vocab_size else shard.end)


def _places(shard: VocabShard, nodes: Nodes, width: int) -> tuple[Tensor, Tensor]:
    """Where the tokens [B, N] of nodes stand in their parents' rows of this `width`, as indices of the
    flattened rows; and whether they stand there."""
    column = nodes.tokens - shard.start
    here = nodes.tested & (column >= 0) & (column < width)
    return torch.where(here, nodes.of_parent(nodes.rows) * width + column, 0), here


def without_children(shard: VocabShard, rows: Tensor, nodes: Nodes, value: float) -> Tensor:
    """A copy of `rows` [R, W] with `value` at the tokens of each node's children."""
    place, here = _places(shard, nodes, rows.shape[1])
    flat = torch.nn.functional.pad(rows.flatten(), (0, 1))  # the last place takes what is elsewhere
    flat.index_fill_(0, torch.where(here, place, rows.numel()).flatten(), value)
    return flat[:-1].view_as(rows)


def at_children(shard: VocabShard, rows: Tensor, nodes: Nodes) -> Tensor:
    """[B, N] float64 of `rows` [R, W]: what a node's token has in its parent's row, 0 if another process has
    it."""
    place, here = _places(shard, nodes, rows.shape[1])
    return torch.where(here, rows.flatten()[place], 0.0)


class Asked(NamedTuple):
    """What all processes together know of the rows of one side."""

    mass: Tensor  # [R] float64, of the weights
    rest: Tensor  # [R] float64, without the tokens of each node's children
    at: Tensor  # [B, N] float64, the weight of a node's token in its parent's row


def ask(call: Call, request: Tensor) -> tuple[Target, Facts, Rows]:
    """The laws of all rows and the facts that follow from them: the collectives of `laws`, and one sum.
    `request` [R] is that of every row."""
    shard, nodes, draft_logits = call.shard, call.nodes, call.draft_logits
    params = params_of(call.sampling, request)
    sides = [target_side(shard, call.target_logits, call.token_bitmask, call.edits, params)]
    has_row = torch.zeros_like(request, dtype=torch.bool)
    if draft_logits is not None:
        side, has_row = draft_side(call, request)
        sides.append(side)
    bits = sums.bits_for(max(shard.vocab_size, draft_logits.shape[-1] if draft_logits is not None else 0))
    law, *draft = laws(shard, sides, bits)
    law = settle_empty(shard, law)
    units = [torch.ones_like(law.weights[:, 0]), *map(_unit, draft, sides[1:])]
    rests = [without_children(shard, each.weights, nodes, 0.0) for each in (law, *draft)]
    ofp, *ofq = _asked(shard, nodes, [each.weights for each in (law, *draft)], rests, units, bits)

    up = nodes.of_parent(nodes.rows)
    target = Target(law.weights, ofp.mass, law.nan, law.empty)
    p, others = ofp.at / ofp.mass[up], (ofp.rest / ofp.mass)[nodes.rows]
    rows = Rows(rests[0] / ofp.mass[:, None], None)
    q, rest = torch.zeros_like(p), torch.zeros_like(ofp.mass)
    for each, found, side in zip(draft, ofq, sides[1:], strict=True):
        has_row = has_row & ~each.nan & ~each.empty
        mass = torch.where(has_row & (side.form == "logits"), found.mass, 1.0)
        q = torch.where(has_row[up], found.at / mass[up], 0.0)
        rest = torch.where(has_row, found.rest / mass, 0.0)
        dense = rests[1][:, : shard.size] / mass[:, None]
        rows = Rows(rows.p, torch.where(has_row[:, None], dense, 0.0))
    known = (nodes.kinds == Proposal.INDEPENDENT) | (nodes.kinds == Proposal.WITHOUT_REPLACEMENT)
    sampled = nodes.tested & has_row[up] & known
    return target, _facts(nodes, Drafted(p, q, others, rest[up], sampled), shard.vocab_size), rows


def _asked(
    shard: VocabShard,
    nodes: Nodes,
    weights: list[Tensor],
    rests: list[Tensor],
    units: list[Tensor],
    bits: int,
) -> list[Asked]:
    """One sum of all processes. A unit [R] is about the largest weight of the rest of each row."""
    sent = []
    for weight, rest, unit in zip(weights, rests, units, strict=True):
        mine = at_children(shard, weight, nodes)  # its bits cross: one process has them, the others 0
        sent += [sums.parts(weight, bits), sums.parts(rest / unit[:, None], bits), mine.view(torch.int64)]
    summed = shard._collectives.total(torch.cat([each.flatten() for each in sent]))
    parts = [
        part.view_as(each) for part, each in zip(summed.split([e.numel() for e in sent]), sent, strict=True)
    ]
    return [
        Asked(sums.value(mass, bits), sums.value(rest, bits) * unit, at.view(torch.float64))
        for mass, rest, at, unit in zip(parts[::3], parts[1::3], parts[2::3], units, strict=True)
    ]


def _unit(law: Law, side: Side) -> Tensor:
    """[R] float64: about the largest weight without the tokens of children, so that their sum keeps its
    precision where a child's token has nearly all. 1 where there is none."""
    score = scores_of(law.last)
    if side.form == "logits":
        score = torch.where(law.infinite, torch.where(score == torch.inf, 0.0, NONE), score)
        heat = torch.where(law.point >= 0, 1.0, side.params.temperature[:, 0])
        unit = torch.where(score > NONE, (score.double() - law.best.double()) / heat, NONE).exp()
        unit = torch.where(law.point >= 0, 1.0, unit)
    else:
        unit = score.double().exp() if side.form == "logprobs" else score.double()
    return torch.where((unit > 0) & (unit < torch.inf), unit, 1.0)


class Drafted(NamedTuple):
    """Of every node, [B, N]."""

    p: Tensor  # float64, of its token at its parent
    q: Tensor  # float64
    others: Tensor  # float64, p's mass at the node without the tokens of its children
    rest: Tensor  # float64, q's mass at its parent without the tokens of the parent's children
    sampled: Tensor  # bool: tested by a draft law


def _facts(nodes: Nodes, drafted: Drafted, vocab_size: int) -> Facts:
    q, sampled = drafted.q, drafted.sampled
    once = sampled & (nodes.kinds == Proposal.WITHOUT_REPLACEMENT)
    same = nodes.siblings & (nodes.tokens[:, :, None] == nodes.tokens[:, None, :])
    first = nodes.tested & ~(same & nodes.earlier).any(-1)
    # A token is removed for c if a POINT sibling has it, or an earlier sibling without replacement.
    by_point = (same & (nodes.tested & ~sampled)[:, None, :]).any(-1)
    by_kin = torch.bmm((nodes.earlier & once[:, None, :]).float(), same.float()) > 0
    removed = once[:, :, None] & nodes.siblings & (by_point[:, None, :] | by_kin)
    counts = nodes.siblings & first[:, None, :] & ~removed
    left = torch.where(counts, q[:, None, :], 0.0).sum(-1) + drafted.rest
    inverse = torch.where(left > 0, 1 / torch.where(left > 0, left, 1.0), 0.0).clamp_max(MOST)
    factor = torch.where(once, inverse, sampled.double())
    own = torch.where(removed.diagonal(dim1=1, dim2=2), 0.0, q)
    inside = nodes.tokens < vocab_size
    return Facts(
        nodes=nodes,
        p=drafted.p,
        q=q,
        others=drafted.others,
        removed=removed,
        factor=factor,
        proposal=torch.where(inside, torch.where(factor > 0, factor * own, 1.0), 0.0),
        first=first,
        same=same,
        impossible=sampled & inside & ~(own > 0),
    )
