# SPDX-License-Identifier: Apache-2.0
"""The rules of verification.

A rule takes a `Request` and returns the last node it keeps and the token after it. p is the target's law at a
node, q the draft's, and Q the law of a child's token given its earlier siblings, as its proposal declares.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor

from .._ops.calls import VerifyCall
from .._random import Purpose
from ..rules import GREEDILY
from .edits import Edits, edits_of
from .ends import ending, finish
from .law import OVERFLOW, Params, allowed_tokens, draft_law, params_of, target_law
from .path import tokens_to
from .random import Noise
from .reporting import Report, Scores
from .request import Answer, Request, Trace, Tree, ratio


def match(request: Request) -> Answer:
    """Draw the target's own token at each node and follow the first child that carries it."""
    node = 0
    while request.has_row(node) and request.bonus(node) is None:
        token = request.draw(request.target(node), Purpose.NEXT, node)
        carriers = [child for child in request.children(node) if request.token(child) == token]
        if not carriers:
            return node, token
        node = carriers[0]
    return request.end(node)


def token(request: Request, weight: float = 1.0) -> Answer:
    """Token-level rejection; on a tree recursive, with the residual updated after every rejected sibling.
    With weight < 1 it is `Ensemble`."""
    node = 0
    while True:
        P = None  # the row of a node without children is read only if its next token is drawn
        for child in request.children(node):
            P = request.target(node) if P is None else P
            Q = request.proposal_law(child)
            P_x, Q_x = request.at(P, child), request.at(Q, child)
            if request.accepts(child, weight * P_x + (1.0 - weight) * Q_x, Q_x):
                node = child
                break
            R = (P - Q).clamp_min(0.0)
            S = float(R.sum())
            request.rejected(child, S)
            P = R / S if S > 0 else request.target(node)  # S = 0 can only come from rounding
        else:
            return request.end(node, P)


def traversal(request: Request) -> Answer:
    """Deepest nodes first: a node is tested after all its children, with the weight that they left."""

    def visit(node: int, w: float) -> Answer | None:
        P = None
        for child in request.children(node):
            P = request.target(node) if P is None else P
            Q = request.proposal_law(child)
            w_child = ratio(w * request.at(P, child), request.at(Q, child))
            if w_child > 0:
                answer = visit(child, w_child)
                if answer is not None:
                    return answer
            R = (w * P - Q).clamp_min(0.0)
            S = float(R.sum())
            request.rejected(child, S)
            if S > 0:
                w, P = S / (S + (1.0 - w)), R / S
            elif w < 1:
                return None
            else:  # S = 0 can only come from rounding
                P = request.target(node)
        return request.end(node, P) if request.accepts(node, w) else None

    return cast(Answer, visit(0, 1.0))  # the root is left with w = 1, and its coin is below 1


def threshold(request: Request, single: float, acc: float) -> Answer:
    """One coin u per node: u * acc < the sum of p over the node's children so far, or p(x) >= single."""
    node = 0
    while True:
        children = request.children(node)
        if not children:
            return request.end(node)
        p, total, bars = request.target(node), 0.0, []
        for child in children:
            x = request.at(p, child)
            total += x
            bars.append(math.inf if x > 0 and x >= single else total)
        passing = request.noise.first(node, bars, acc)
        if passing == len(children):
            rest = p.clone()
            rest[[request.token(child) for child in children if request.at(p, child) > 0]] = 0.0
            return request.end(node, rest if rest.sum() > 0 else p)
        node = children[passing]


def lossy(request: Request, passes: Callable[[int], bool]) -> Answer:
    """The deepest node that passes with all its ancestors, the lowest index among equals; next ~ p there, or
    its own token where it has no row."""
    passing = [0]
    for node in passing:  # the list grows during the loop
        passing += [child for child in request.children(node) if passes(child)]
    return request.end(min(passing, key=lambda node: (-request.depth(node), node)))


def typical(request: Request, epsilon: float, delta: float) -> Answer:
    """p(x) > min(epsilon, delta * exp(-H(p)))."""

    def passes(child: int) -> bool:
        p = request.test_law(request.tree.parents[child])
        entropy = float(torch.special.entr(p).sum())
        return request.at(p, child) > min(epsilon, delta * math.exp(-entropy))

    return lossy(request, passes)


def relaxed(request: Request, top_k: float, delta: float) -> Answer:
    """x is possible, in the top k of p, ties included, and p_max - p(x) <= delta."""

    def passes(child: int) -> bool:
        p = request.test_law(request.tree.parents[child])
        last = float(p.topk(min(int(top_k), p.numel())).values[-1])
        x = request.at(p, child)
        return x > 0 and x >= last and float(p.max()) - x <= delta

    return lossy(request, passes)


def deferred(request: Request, entropy: float, window: float) -> Answer:
    """x is likeliest; or H(p) >= entropy, x is possible, and the next `window` tokens of the path are the
    likeliest. The deepest node with nothing outstanding is kept."""

    def outstanding(child: int, before: float) -> float | None:
        """How many tokens have to match after the child; None if it does not pass."""
        p = request.test_law(request.tree.parents[child])
        x = request.at(p, child)
        if x > 0 and x >= float(p.max()):
            return max(before - 1, 0)
        unsure = before == 0 and float(torch.special.entr(p).sum()) >= entropy
        return window if unsure and x > 0 else None

    left = {0: 0.0}
    order = [0]
    for node in order:  # the list grows during the loop
        for child in request.children(node):
            still = outstanding(child, left[node])
            if still is not None:
                left[child] = still
                order.append(child)
    kept = [node for node in order if left[node] == 0]
    return request.end(min(kept, key=lambda node: (-request.depth(node), node)))


def lenient(request: Request, factor: float) -> Answer:
    """u * Q(x) / factor < p(x)."""

    def passes(child: int) -> bool:
        p = request.target(request.tree.parents[child])
        return request.accepts(
            child, request.at(p, child), request.at(request.proposal_law(child), child) / factor
        )

    return lossy(request, passes)


def synthetic(request: Request, *rates: float) -> Answer:
    """u < rate of the node's depth, the last rate repeating."""

    def passes(child: int) -> bool:
        if request.token(child) >= request.vocab_size:
            return False
        return request.accepts(child, rates[min(request.depth(child), len(rates)) - 1])

    return lossy(request, passes)


def verify(call: VerifyCall, noise: type[Noise] = Noise, trace: Trace | None = None) -> None:
    """Fill the outputs, request by request.

    Tests replace `Noise` by another `noise`, and read thresholds and masses from `trace`.
    """
    rows, width = call.tokens.numel(), call.out_tokens.shape[1]
    vocab_size = call.target_logits.shape[-1]
    ends = [min(max(end, 0), rows) for end in call.cu_nodes.tolist()]
    call.out_tokens.fill_(-1)
    call.out_path.fill_(-1)
    for out in (call.out_num_tokens, call.out_num_accepted, call.out_status, call.out_finish):
        if out is not None:
            out.fill_(0)
    report = Report(call.logprobs_kind, call.out_logprobs, call.out_report, call.out_masks)

    values = call.rule_values if call.rule_rates is None else call.rule_rates.tolist()
    for b, (start, end) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
        if end <= start:
            continue
        links = () if call.first_child is None else (call.first_child, call.next_sibling)
        columns = (call.tokens, call.parents, call.proposals, *links)
        tree = Tree(*(column[start:end].tolist() for column in columns))
        params = params_of(call.sampling, call.sampling_rows, b)
        draft_params = params_of(call.draft_sampling, call.draft_sampling_rows, b)
        edits = edits_of(call.edits, call.edit_numbers, b, vocab_size)
        greedy = not params.temperature > 0
        target = partial(_target, call, tree, edits, b, start)
        before = ending(call, b)
        if before.finished:
            continue
        request = Request(
            tree,
            vocab_size,
            target=partial(target, params),
            draft=partial(_draft, call, draft_params, b, start),
            noise=noise(int(call.seeds[b]), int(call.positions[b])),
            max_depth=width - 1,
            unscaled=partial(target, params._replace(temperature=1.0)) if greedy else None,
            trace=trace,
            start=start,
            has_row=partial(_has_row, call, b, start, end),
            bonus=_bonus(call, b),
            ending=before,
        )
        if not request.can_keep(0):
            finish(call, b, [], False)
            continue

        rule = RULES["match" if greedy and call.rule in GREEDILY else call.rule]
        last, token_after = rule(request, *(() if rule is match else values))
        path = request.path(last)
        emitted = [request.token(node) for node in path[1:]] + [token_after]
        call.out_path[b, : len(path)] = torch.tensor(path)
        call.out_tokens[b, : len(path)] = torch.tensor(emitted)
        call.out_num_accepted[b] = len(path) - 1
        call.out_num_tokens[b] = len(path)
        call.out_status[b] = request.status | (0 if edits is None else edits.status)
        finish(call, b, emitted, request.last_drafted)
        for i, (node, x) in enumerate(zip(path, emitted, strict=True)):
            if report.asked and request.has_row(node):
                scores = Scores(*_target_scores(call, tree, edits, b, start, node), params)
                report.position((b, i), scores, x, call.chosen_tokens)
    for b in report.finish():
        call.out_status[b] |= OVERFLOW


def _target_row(call: VerifyCall, request: int, start: int, node: int) -> int:
    """The row of `target_logits` of a node, which may be out of range."""
    if call.target_rows is not None:
        return int(call.target_rows[start + node])
    return start + node - (request if call.rows_end_early else 0)


def _has_row(call: VerifyCall, request: int, start: int, end: int, node: int) -> bool:
    if call.rows_end_early and call.target_rows is None and start + node + 1 == end:
        return False
    count = math.prod(call.target_logits.shape[:-1])
    return 0 <= _target_row(call, request, start, node) < count


def _bonus(call: VerifyCall, request: int) -> int | None:
    if call.bonus_tokens is None:
        return None
    token = int(call.bonus_tokens[request])
    return token if 0 <= token < call.target_logits.shape[-1] else None


def _target(
    call: VerifyCall, tree: Tree, edits: Edits | None, request: int, start: int, params: Params, node: int
) -> tuple[Tensor, int]:
    _, row, allowed = _target_scores(call, tree, edits, request, start, node)
    return target_law(row, params, allowed)


def _target_scores(
    call: VerifyCall, tree: Tree, edits: Edits | None, request: int, start: int, node: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The row of a node that has one, as it was given and with its edits, and the tokens that its bitmask
    allows."""
    logits, allowed = call.target_logits, None
    if call.token_bitmask is not None:
        allowed = allowed_tokens(call.token_bitmask[start + node].cpu(), logits.shape[-1])
    row = _target_row(call, request, start, node)
    row_logits = logits[row] if logits.dim() == 2 else logits[row // logits.shape[1], row % logits.shape[1]]
    given = row_logits.cpu()
    if edits is not None:
        row_logits = edits.row(row_logits, tokens_to(tree.tokens, tree.parents, node))
    return given, row_logits.cpu(), allowed


def _draft(call: VerifyCall, params: Params, request: int, start: int, node: int) -> Tensor | None:
    if call.draft_logits is None:
        return None
    if call.draft_logits.dim() == 3:
        row, table = node, call.draft_logits[request]
    else:
        row = start + node if call.draft_rows is None else int(call.draft_rows[start + node])
        table = call.draft_logits
    if not 0 <= row < table.shape[0]:
        return None
    ids = None if call.draft_ids is None else call.draft_ids.cpu()
    form = "logprobs" if call.draft_is_logprobs else "probs" if call.draft_is_probs else "logits"
    return draft_law(table[row].cpu(), params, form, ids, call.target_logits.shape[-1])


RULES: dict[str, Callable[..., Answer]] = {
    "match": match,
    "token": token,
    "traversal": traversal,
    "typical": typical,
    "relaxed": relaxed,
    "lenient": lenient,
    "synthetic": synthetic,
    "deferred": deferred,
    "threshold": threshold,
    "ensemble": token,
}
