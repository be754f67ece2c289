# SPDX-License-Identifier: Apache-2.0
"""`verify` on logits whose vocabulary is sharded."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .. import rules as all_rules
from .. import verification
from .._checks import (
    BackendUnavailable,
    bad_value,
    check_device,
    check_dtype,
    check_type,
)
from .._random import Purpose
from .._verify_checks import check_draft, check_draft_sampling, check_target
from ..edits import LogitEdits, unpack_edits
from ..ends import Ends, Finish, check_ends
from ..rules import GREEDILY, READS_DRAFT, Rule
from ..sampling import PLAIN, DraftVocab, SamplingParams, noise_keys, unpack
from ..tree import DraftTree
from ..verification import Status, Verified
from . import rules, sums
from .call import DTYPES, Call, check_bitmask, check_keys, check_logprobs, check_shard, refuse
from .edits import Edits, text_of
from .facts import ask, settle_empty, target_side
from .law import laws, params_of
from .nodes import is_stop, nodes_of
from .noise import coins, race, race_keys
from .residual import Residual
from .rows import bonus_of, rows_of_nodes
from .shard import VocabShard

SERVED = ("match", "token", "traversal", "ensemble", "threshold", "lenient", "synthetic")


class Outcome(NamedTuple):
    """What a rule decided, and what is reported of it."""

    decision: rules.Decision
    next_tokens: Tensor  # [B] int64
    next_p: Tensor  # [B] float64, their probability under p
    p: Tensor  # [B, N] float64, that of every node's token at its parent
    nan: Tensor  # [R] bool
    empty: Tensor  # [R] bool
    impossible: Tensor  # [B, N] bool: the token could not have been drawn as declared
    drafted: Tensor | None = None  # [B] bool: the next token is a drafted one


def verify(
    target_logits: Tensor,
    tree: DraftTree,
    draft_logits: Tensor | None = None,
    *,
    shard: VocabShard,
    seeds: Tensor,
    positions: Tensor,
    target_rows: Tensor | None = None,
    bonus_tokens: Tensor | None = None,
    draft_rows: Tensor | None = None,
    draft_vocab: DraftVocab | None = None,
    sampling: SamplingParams = PLAIN,
    draft_sampling: SamplingParams | Literal["logprobs", "probs"] | None = None,
    rule: Rule = "auto",
    token_bitmask: Tensor | None = None,
    edits: LogitEdits | None = None,
    ends: Ends | None = None,
    return_logprobs: bool = False,
    **unserved: Any,
) -> Verified:
    """`specdec_kernels.verify` where each process of a group has the logits of some tokens.

    Every process of the group calls it with its own columns, and with everything else alike; every process
    gets the same result. It is that of the whole rows, to the last bit for every number of processes and
    every border between shards.

    Args:
        target_logits: [R, size] or [B, N, size], or as `target_rows` or `bonus_tokens` admit; float32 |
            bfloat16 | float16, last stride 1: columns [start, start + size) of the rows of
            `specdec_kernels.verify`.
        tree: the drafted tokens, R rows of B requests; tokens are those of the whole vocabulary.
        draft_logits: [R, Vd], [Rq, Vd] with `draft_rows`, or [B, K, Vd]. Vd = size: columns
            [start, start + size); Vd >= V: whole rows, with padding from column V on.
        shard: which tokens this process has.
        seeds, positions: [B] int64; required, and the same in every process.
        target_rows, bonus_tokens, draft_rows, sampling, draft_sampling: as for `specdec_kernels.verify`.
        draft_vocab: as there; draft rows are then whole, [.., Vd] of its tokens.
        return_logprobs: whether `Verified.logprobs` is filled.
        rule: `"auto"`, `"match"`, `"token"`, `"traversal"`, `Ensemble`, `Threshold`, `Lenient` or
            `Synthetic`.
        token_bitmask: [R, ceil(size / 32)] int32: the words of this shard, whose start is a multiple of 32.
        edits: as for `specdec_kernels.verify`, the same in every process; its counts are of the whole
            vocabulary. Every process makes those of its own columns.
        ends: as for `specdec_kernels.verify`, the same in every process; each changes its own tensors.
        unserved: the other options of `specdec_kernels.verify`; they are refused.

    Returns:
        `Verified`, the same in every process.

    Raises:
        ValueError: wrong shapes, numbers out of range.
        TypeError: wrong dtypes or devices, unknown arguments.
        BackendUnavailable: an option or a rule that is not served with shards.

    Notes:
        Every process of the group has to make the call, with the same shapes, rule and options. The number of
        collectives follows from them and never from values; a process that makes fewer leaves the others
        waiting. `traffic` tells their number and bytes. Nothing else synchronises with the device. The
        arithmetic is the reference's, in float64. docs/sharding.md has the memory that it takes.

    Example:
        >>> import os, tempfile
        >>> import torch.distributed as dist
        >>> folder = tempfile.mkdtemp()
        >>> dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=0, world_size=1)
        >>> shard = VocabShard(0, 3, vocab_size=3)  # of one process only
        >>> target = torch.tensor([[0.0, 9.0, 0.0], [0.0, 0.0, 9.0], [9.0, 0.0, 0.0]])
        >>> keys = dict(seeds=torch.tensor([1]), positions=torch.tensor([7]))
        >>> tree = DraftTree.chain(torch.tensor([[1, 0]]))
        >>> greedy = SamplingParams(temperature=0.0)
        >>> verify(target, tree, shard=shard, sampling=greedy, **keys).tokens.tolist()
        [[1, 2, -1]]
        >>> dist.destroy_process_group()
    """
    operation = "sharded.verify"
    refuse(operation, unserved, verification.verify)
    check_type(operation, "tree", tree, DraftTree, "a DraftTree")
    check_dtype(operation, "target_logits", target_logits, DTYPES)
    batch, device = tree.batch_size, target_logits.device
    ends_early = check_target(target_logits, tree, target_rows, bonus_tokens)
    check_shard(operation, shard, "target_logits", target_logits.shape[-1])
    check_device(operation, "tree", tree.tokens, device)
    _check_draft(draft_logits, draft_rows, draft_vocab, tree, shard, device)
    check_draft_sampling(operation, draft_sampling)
    numbers = unpack(operation, "sampling", sampling, batch, device)
    law, form = sampling if draft_sampling is None else draft_sampling, "logits"
    if isinstance(law, str):
        form, law = law, PLAIN
    name, values = all_rules.resolve(operation, rule, draft_logits is not None)
    if name not in SERVED:
        raise BackendUnavailable(f"{operation}: rule {name!r} is not served with shards")
    check_keys(operation, seeds, positions)
    seeds, positions = noise_keys(operation, seeds, positions, batch, device)
    check_bitmask(operation, token_bitmask, tree.tokens.shape[0], shard, device)
    changes = unpack_edits(operation, edits, batch, shard.vocab_size, device)
    state = None if ends is None else check_ends(operation, ends, batch, device)
    check_logprobs(operation, return_logprobs)
    if batch == 0 or tree.max_nodes == 0 or tree.tokens.numel() == 0:
        return _empty(batch, tree.max_depth + 1, return_logprobs, state, device)
    if draft_logits is not None and (draft_logits.shape[:-1].numel() == 0 or name not in READS_DRAFT):
        draft_logits = draft_rows = None
    rows, has_row = rows_of_nodes(tree, target_logits, target_rows, ends_early)
    bonus = bonus_of(bonus_tokens, tree, shard.vocab_size)
    nodes = nodes_of(tree, has_row, bonus >= 0, state)
    made = None
    if changes[0]:
        request, node = tree._owners
        made = Edits(
            shard, changes, batch, text_of(nodes, request.clamp_max(batch - 1), node, tree.max_depth)
        )
    call = Call(
        shard=shard,
        target_logits=rows,
        tree=tree,
        draft_logits=draft_logits,
        draft_rows=draft_rows,
        draft_columns=None if draft_vocab is None else draft_vocab.columns[shard.start : shard.end],
        sampling=numbers,
        draft_sampling=unpack(operation, "draft_sampling", law, batch, device),
        draft_form=form,
        token_bitmask=token_bitmask,
        seeds=seeds,
        positions=positions,
        nodes=nodes,
        bonus=None if bonus_tokens is None else bonus,
        edits=made,
        ends=state,
        rates=_rates(operation, rule, values, device),
    )
    if name == "match":
        decided = _match(call, return_logprobs)
    else:
        decided = _reject(call, name, values, return_logprobs)
    return _verified(call, decided, return_logprobs)


def _rates(operation: str, rule: Rule, values: list[float], device: torch.device) -> Tensor:
    """Those of `Synthetic`, [D]."""
    rates = all_rules.rates_on(operation, rule, device)
    if rates is not None:
        return rates
    columns = [torch.full((1,), value, dtype=torch.float64, device=device) for value in values or [0.0]]
    return torch.cat(columns)


def _check_draft(
    draft_logits: Tensor | None,
    draft_rows: Tensor | None,
    draft_vocab: DraftVocab | None,
    tree: DraftTree,
    shard: VocabShard,
    device: torch.device,
) -> None:
    operation = "sharded.verify"
    check_draft(draft_logits, draft_rows, draft_vocab, tree, shard.vocab_size, device)
    if draft_logits is None:
        return
    check_dtype(operation, "draft_logits", draft_logits, DTYPES)
    width, vocab = draft_logits.shape[-1], shard.vocab_size
    if draft_vocab is None and width != shard.size and width < vocab:
        rule = f"must have size = {shard.size} columns, those of the shard, or at least V = {vocab}"
        bad_value(operation, "draft_logits", rule, width)


def _requests(call: Call) -> Tensor:
    """The request of every row, [R] int64; rows that no request owns count as the last one's."""
    return call.tree._owners[0].clamp_max(call.tree.batch_size - 1)


def _match(call: Call, wants_mass: bool) -> Outcome:
    shard, nodes, request = call.shard, call.nodes, _requests(call)
    params = params_of(call.sampling, request)
    bits = sums.bits_for(shard.vocab_size)
    side = target_side(shard, call.target_logits, call.token_bitmask, call.edits, params)
    (law,) = laws(shard, [side], bits)
    law = settle_empty(shard, law)
    places = call.positions[request] + call.tree.depths
    keys = race_keys(call.seeds[request], places, Purpose.NEXT, shard.start, shard.size)
    won = race(shard, law.weights, keys, law.weights)
    mass = torch.ones_like(won.values)
    if wants_mass:
        mass = sums.value(shard._collectives.total(sums.parts(law.weights, bits)), bits)
    drawn, p = won.tokens[nodes.rows], (won.values / mass)[nodes.rows]
    decision = rules.match(nodes, drawn)
    last = decision.last[:, None]
    found = Outcome(
        decision=decision,
        next_tokens=drawn.gather(1, last)[:, 0],
        next_p=p.gather(1, last)[:, 0],
        p=nodes.of_parent(p),
        nan=law.nan,
        empty=law.empty,
        impossible=torch.zeros_like(nodes.tested),
    )
    return _ended(call, found, law.weights, mass, wants_mass)


def _reject(call: Call, rule: str, values: list[float], wants_logprobs: bool) -> Outcome:
    shard, nodes = call.shard, call.nodes
    target, facts, rows = ask(call, _requests(call))
    residual = Residual(shard, facts, rows, sums.bits_for(shard.vocab_size))
    noise = coins(call.seeds, call.positions, call.tree.max_nodes)
    every = torch.arange(call.tree.batch_size, device=noise.device)
    greedy = ~(params_of(call.sampling, every).temperature > 0)  # [B, 1]
    chain = call.tree._made_as_chain
    if rule == "traversal":
        decision = rules.traversal(residual, noise, chain)
    elif rule == "threshold":
        decision = rules.threshold(residual, noise, *values)
    elif rule == "lenient":
        decision = rules.lenient(residual, noise, *values)
    elif rule == "synthetic":
        decision = rules.synthetic(residual, noise, call.rates, shard.vocab_size)
    else:
        weight = torch.where(greedy, 1.0, values[0]) if values else None
        decision = rules.token(residual, noise, chain, weight)
    last = decision.last[:, None]
    places = call.positions + nodes.depths.gather(1, last)[:, 0]
    keys = race_keys(call.seeds, places, Purpose.RESIDUAL, shard.start, shard.size)
    row = nodes.rows.gather(1, last)[:, 0]
    won = race(shard, residual.left(decision.last), keys, target.weights[row])
    found = Outcome(
        decision=decision,
        next_tokens=won.tokens,
        next_p=won.values / target.mass[row],
        p=facts.p,
        nan=target.nan,
        empty=target.empty,
        impossible=facts.impossible & ~greedy if rule in GREEDILY else facts.impossible,
    )
    return _ended(call, found, target.weights, target.mass, wants_logprobs)


def _ended(call: Call, found: Outcome, weights: Tensor, mass: Tensor, wants_logprobs: bool) -> Outcome:
    """The outcome where the last node has no row, or the caller has drawn the token after it. Without a row
    the node is not kept, and its own token is the next one."""
    nodes, decision = call.nodes, found.decision
    last = decision.last[:, None]

    def of_last(values: Tensor) -> Tensor:
        return values.gather(1, last)[:, 0]

    bonus = of_last(nodes.at_bonus)
    rowless = ~of_last(nodes.has_row) & ~bonus
    tokens = torch.where(rowless, of_last(nodes.tokens), found.next_tokens)
    p = torch.where(rowless, of_last(found.p), found.next_p)
    if call.bonus is not None:
        tokens = torch.where(bonus, call.bonus, tokens)
        if wants_logprobs:
            row = of_last(nodes.rows)
            known = torch.where(
                of_last(nodes.has_row), _p_of(call, weights[row], call.bonus) / mass[row], torch.nan
            )
            p = torch.where(bonus, known, p)
    decision = decision._replace(
        last=torch.where(rowless, of_last(nodes.parents), decision.last),
        visited=decision.visited & nodes.has_row & ~nodes.at_bonus,
    )
    return found._replace(decision=decision, next_tokens=tokens, next_p=p, drafted=rowless)


def _p_of(call: Call, weights: Tensor, tokens: Tensor) -> Tensor:
    """What tokens [B] have in rows [B, size], of which each process has a part."""
    place = tokens - call.shard.start
    here = (place >= 0) & (place < call.shard.size)
    mine = weights.gather(1, torch.where(here, place, 0)[:, None])[:, 0]
    bits = torch.where(here, mine, 0.0).view(torch.int64)  # one process has them, the others 0
    return call.shard._collectives.total(bits).view(torch.float64)


def _verified(call: Call, decided: Outcome, wants_logprobs: bool) -> Verified:
    nodes = call.nodes
    last, width = decided.decision.last[:, None], call.tree.max_depth + 1
    lives = (nodes.has_row | nodes.at_bonus)[:, :1]
    own = nodes.above.gather(1, last[:, :, None].expand(-1, -1, nodes.tokens.shape[1]))[:, 0]
    own &= nodes.live & lives
    depth = nodes.depths.gather(1, last)

    def along(values: Tensor, after: Tensor | None, rest: float) -> Tensor:
        """values [B, N] at the depths of the kept nodes, or, with the value `after` the last, one before."""
        out = torch.full((len(last), width + 1), rest, dtype=values.dtype, device=values.device)
        if after is None:
            return out.scatter_(1, torch.where(own, nodes.depths, width), values)[:, :width].contiguous()
        out.scatter_(1, torch.where(own & nodes.tested, nodes.depths - 1, width), values)
        out.scatter_(1, torch.where(lives, depth, width), after[:, None])
        return out[:, :width].contiguous()

    node = torch.arange(nodes.tokens.shape[1], dtype=torch.int32, device=last.device)
    count = torch.where(lives, depth + 1, 0)[:, 0]
    status = torch.zeros_like(count)
    for bit, where in (
        (Status.NAN, decided.decision.visited & decided.nan[nodes.rows]),
        (Status.EMPTY, decided.decision.visited & decided.empty[nodes.rows]),
        (Status.IMPOSSIBLE, decided.decision.tested & decided.impossible),
    ):
        status += int(bit) * where.any(1)
    if call.edits is not None:
        status += int(Status.OVERFLOW) * call.edits.overflowed
    logprobs = along(decided.p.log().float(), decided.next_p.log().float(), torch.nan)
    return Verified(
        tokens=along(nodes.tokens, decided.next_tokens, -1),
        num_tokens=count.int(),
        num_accepted=(count - 1).clamp_min(0).int(),
        path=along(node.expand_as(nodes.tokens), None, -1),
        logprobs=logprobs if wants_logprobs else None,
        status=torch.where(lives[:, 0], status, 0).int(),
        finish=None if call.ends is None else _finish(call, decided, count),
    )


def _finish(call: Call, decided: Outcome, count: Tensor) -> Tensor:
    """Why requests end, [B] int32, after `count` [B] tokens; what is left to them is lowered."""
    ends, nodes = call.ends, call.nodes
    assert ends is not None and decided.drafted is not None
    goes_on = nodes.live[:, 0]  # not empty
    if ends.finished is not None:
        goes_on = goes_on & (ends.finished == 0)
    reason = torch.zeros_like(count)
    if ends.stop_tokens is not None:
        stopped = is_stop(ends.stop_tokens, decided.next_tokens[:, None])[:, 0] & (count > 0)
        reason += int(Finish.STOP) * stopped
    for left, bit in ((ends.new_tokens_left, Finish.LENGTH), (ends.context_left, Finish.CONTEXT)):
        if left is not None:
            left.sub_(torch.where(goes_on, count, 0).int())
            reason += int(bit) * (left <= 0)
    if ends.finished is not None:
        ends.finished.copy_(torch.where(goes_on & (reason > 0), 1, ends.finished))
    reason += int(Finish.DRAFTED) * (decided.drafted & (count > 0))
    return torch.where(goes_on, reason, 0).int()


def _empty(batch: int, width: int, wants_logprobs: bool, ends: Ends | None, device: torch.device) -> Verified:
    """Of requests without nodes."""
    nothing = torch.full((batch, width), -1, dtype=torch.int32, device=device)
    none = torch.zeros(batch, dtype=torch.int32, device=device)
    logprobs = torch.full_like(nothing, torch.nan, dtype=torch.float32) if wants_logprobs else None
    finish = None if ends is None else none.clone()
    return Verified(nothing.long(), none, none.clone(), nothing, logprobs, none.clone(), finish=finish)
