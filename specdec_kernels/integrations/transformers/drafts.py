# SPDX-License-Identifier: Apache-2.0
"""Prepares the answer of a drafter for the target: checks it, cuts it, and prunes what does not pay.

Nodes are numbers on the host. Laws stay on their device, and rows are indices into them.
"""

from __future__ import annotations

import inspect
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import compress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._checks import FLOATS, INTEGERS, bad_type, bad_value, check_dtype, name_of
from ...drafting.budget import Budget, Calibration
from ...drafting.costs import CostCurve
from ...drafting.grow import GrownTree
from ...drafting.text_credit import TextCredit
from ...tree import DraftTree, Proposal

PROMISE = 0.7  # chance of a draft, its parent accepted, that its drafter says nothing about
PER_ROW = 0.05  # of a plain step, where nothing was measured: what as many rows again add to it
MOST_PER_ROW = 0.5  # the same of a prompt, at most
MOST_ROWS = 1024  # whose cost is told apart
SHARE = 0.02  # of plain decoding's time that a text may lose, beside errors of measuring
MOMENT = 1e-9  # seconds: the shortest time that is measured
WINDOW = 5  # times of drafting that are remembered


class Drafts(NamedTuple):
    """The full form of a drafter's answer.

    Example:
        >>> tree = DraftTree.chain(torch.tensor([[3, 4]]))
        >>> Drafts(tree, torch.zeros(1, 2, 8)).scores is None
        True
    """

    tree: DraftTree
    """Over the last tokens of the texts, one tree for each."""
    draft_logits: Tensor | None = None
    """[R, Vd], [Rq, Vd] with `draft_rows`, or [B, K, Vd] of a uniform chain, as for `verify`: the laws that
    sampled nodes were drawn from."""
    draft_rows: Tensor | None = None
    """[R] int32, row of `draft_logits` per node, -1 = none."""
    scores: Tensor | None = None
    """[B, max_nodes] floats: the logarithm of each node's chance, as of `ngram_tree` and `grow_tree`."""


class Nodes(NamedTuple):
    """The nodes of one request on the host, parents first, the root included."""

    tokens: list[int]
    parents: list[int]
    depths: list[int]
    proposals: list[int]
    rows: list[int]  # of the laws of their children, -1 = none
    chances: list[float]  # of their paths, as the drafter sees it

    @property
    def drawn(self) -> bool:
        """Whether some were drawn from a law that the verifier will be told."""
        return any(
            kind and self.rows[parent] >= 0
            for kind, parent in zip(self.proposals, self.parents, strict=True)
            if parent >= 0
        )

    def keep(self, nodes: Sequence[int]) -> Nodes:
        """These nodes alone, ascending; every one's parent is among them."""
        if len(nodes) == len(self.tokens):
            return self
        place = {node: index for index, node in enumerate(nodes)}
        columns: Iterable[Any] = ([column[node] for node in nodes] for column in self)
        tokens, parents, *rest = columns
        return Nodes(tokens, [place.get(parent, -1) for parent in parents], *rest)


ROOT = Nodes([-1], [-1], [0], [0], [-1], [1.0])
KINDS = (
    "tokens [B, K], a DraftTree, or Drafts, GrownTree or a tuple of drafts and their draft_logits or scores"
)


class Drafting:
    """Calls a drafter, and removes nodes that the target cannot use or that do not pay.

    A draft is cut at its request's own limit, by depth. With a budget, it is then pruned:

    - Drafts of `POINT` may be pruned for any reason: the likeliest nodes of all requests are kept.
    - A request with nodes that were drawn from a law keeps all of them down to a depth that was chosen before
      they were drawn. To keep the likeliest of the drawn nodes would change the law of the text.
    - A drafter is not called while its time alone exceeds the credit.

    Args:
        drafter: called with copies of the texts [B, L] int64 and their lengths [B] int64. Returns tokens
            [B, K], -1 = none (chains of `POINT`); tokens and their laws [B, K, Vd] (chains of `INDEPENDENT`);
            a `DraftTree`, alone, with `draft_logits` or with scores [B, max_nodes] as `ngram_tree`; a
            `GrownTree`, alone (its nodes are then verified as `POINT`) or with its `draft_logits`; or
            `Drafts`. None: plain decoding. Optional:
            a parameter `max_draft`: a list of B depths, beyond which drafts are not used (0: none at all);
            a method `keep(places)`: told which requests stay, by their places, when others leave;
            a method `reset(batch_size)`: told of a new batch. It is given those of `sampling` (what drafts
            are to be drawn with), `seeds` ([B] or None) and `rule` that it has parameters for.
        vocab_size: of the target. A chosen token beyond it is no draft.
        budget: True: a budget whose costs are measured while the text is written; a `Budget`: this one, with
            given costs and without a clock; False or None: none. With seeds and a rule that reads laws, True
            acts as None, so that equal calls write equal texts.
        rule: as for `verify`.
        seeded: whether the caller gave seeds.
        clock: seconds.

    Attributes:
        nodes: for every request the nodes that the last `draft` returned.
        chains: whether the target reads chains, so that every node keeps only the child verified first.
        seconds: time of the last `draft`.
    """

    def __init__(
        self,
        drafter: Callable[..., Any] | None,
        *,
        vocab_size: int,
        budget: Budget | bool | None = True,
        rule: Any = "auto",
        seeded: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if drafter is not None and not callable(drafter):
            bad_type("generate", "drafter", "must be callable or None", type(drafter).__name__)
        if hasattr(drafter, "get_input_embeddings"):
            rule = "must be no model by itself, but AssistantDrafter(model)"
            bad_type("generate", "drafter", rule, type(drafter).__name__)
        if not (budget is None or isinstance(budget, (bool, Budget))):
            bad_type("generate", "budget", "must be a Budget, True, False or None", type(budget).__name__)
        self.drafter: Any = drafter
        self.vocab_size = vocab_size
        self.rule = rule
        self.clock = clock
        self.chains = False
        self.told: bool = accepts(drafter, "max_draft")
        self.budget = budget if isinstance(budget, Budget) else None
        self.curve = CostCurve({1: 1.0}, MOST_ROWS) if budget is True else None
        # Until the first drafts are seen nobody knows whether they bring laws, which "auto" would look at.
        self.unsure = self.curve is not None and seeded and rule == "auto"
        if self.curve is not None and seeded and rule not in ("auto", "match"):
            self.curve = None
        self.chosen_only: bool = False
        self.width: int = 0  # nodes of a level of the last drafts that were drawn from a law
        self.seconds: float = 0.0
        self._since = 0.0
        self._steps = 0  # measured so far
        self._prompt: tuple[int, float] | None = None  # rows and seconds of the forward that read the prompts
        self._levels: deque[float] = deque(maxlen=WINDOW)  # seconds of a level of the drafter, or of a call
        self._calls = 0
        self.reset(0)

    def reset(self, batch_size: int, **given: Any) -> None:
        """Before the first step of a batch. `given`: sampling, seeds and rule, for a drafter that asks."""
        self._calibrations = [(Calibration(), Calibration()) for _ in range(batch_size)]
        self._requests = list(range(batch_size))
        self.credit = TextCredit(0.0 if self.curve is None else SHARE)
        self.nodes: list[Nodes] = []
        if self.curve is not None:
            if not self._steps:
                known = {1: 1.0, MOST_ROWS: 1.0 + PER_ROW * (MOST_ROWS - 1) / max(batch_size, 1)}
                self.curve = CostCurve(known, MOST_ROWS)
            self.budget = None  # made when the lengths of the texts are known
        self._roots: Drafts | None = None
        if batch_size and hasattr(self.drafter, "reset"):
            taken = {name: value for name, value in given.items() if accepts(self.drafter.reset, name)}
            self.drafter.reset(batch_size, **taken)

    def read(self, rows: int, seconds: float) -> None:
        """Record how long the target took to read the prompts, `rows` tokens in all."""
        self._prompt = rows, seconds

    def draft(self, text: Tensor, lengths: Tensor, limits: Sequence[int]) -> Drafts:
        """Drafts for the texts [B, L] of these lengths [B]; request b has no use for any deeper than
        `limits[b]`.

        Returns:
            `Drafts` without nodes that have no token or lie beyond their limit. A request without drafts has
            one row. Siblings keep their order, and nodes their proposals. With laws, `draft_logits` is
            [Rq, Vd] and comes with `draft_rows`.

        Raises:
            ValueError, TypeError: the drafter returned something else than it may.
        """
        start = self.clock()
        depths = self._depths(limits)
        called = self.drafter is not None and any(depths)
        if called:
            nodes, laws = self._ask(text, lengths, depths)
            nodes = self._pruned(nodes, self._weights(limits))
        else:
            nodes, laws = [ROOT] * len(limits), None
        self.nodes = nodes
        drafts = self._built(nodes, laws, text.device)
        self._since = self.clock()
        self.seconds = self._since - start
        if called:
            self._calls += 1
            if self._calls > 1:  # the first one may read a whole prompt
                self._levels.append(self.seconds / (max(depths) if self.told else 1))
        return drafts

    def after(self, path: Sequence[Sequence[int]], tokens: Sequence[int]) -> None:
        """After a step: the accepted nodes of every request, the root included, and how many tokens were
        written."""
        batch, rows = len(self.nodes), sum(len(nodes.tokens) for nodes in self.nodes)
        extra = 0.0
        if self.curve is not None:
            excess = self._measure(self.curve, batch, rows, self.clock() - self._since)
            drafting = self.seconds / self.curve.seconds(1)
            extra = (min(drafting, 1.0) if self._calls == 1 else drafting) + (excess if rows > batch else 0.0)
        if self.budget is None:
            return
        times = self.budget.cost(range(batch + 1)).tolist()
        extra -= self.credit.after(times, dict(zip(self._requests, tokens, strict=True)))
        self.budget = self.budget.after(rows, list(tokens), extra)
        for place, (nodes, accepted) in enumerate(zip(self.nodes, path, strict=True)):
            single, levels = self._calibrations[place]
            accepted = [node for node in accepted if node >= 0]
            single = single.after(nodes.chances, nodes.parents, accepted)
            deepest = max(nodes.depths)
            levels = levels.after(*_levels(deepest), range(len(accepted)))
            self._calibrations[place] = single, levels

    def keep(self, places: Sequence[int]) -> None:
        """The requests at these places stay, in this order."""
        self._calibrations = [self._calibrations[place] for place in places]
        self._requests = [self._requests[place] for place in places]
        self._roots = None
        if hasattr(self.drafter, "keep"):
            self.drafter.keep(list(places))

    def _measure(self, curve: CostCurve, batch: int, rows: int, seconds: float) -> float:
        """Learn from a step; returns what it cost beyond the expected, in steps over one row."""
        self._steps += 1
        if self._prompt is None and self._steps == 1:
            return 0.0  # the first forward of all is often slow
        excess = curve.observe(min(rows, MOST_ROWS), max(seconds, MOMENT))
        if self._prompt is not None and self._prompt[0] > batch:
            # As far as it is plausible: the forward that read it may have been a slow one.
            read, seconds = self._prompt
            seconds = min(
                seconds, curve.seconds(min(rows, MOST_ROWS)) * (1.0 + MOST_PER_ROW * (read / batch - 1.0))
            )
            curve.observe(min(read, MOST_ROWS), max(seconds * min(MOST_ROWS / read, 1.0), MOMENT))
            self._prompt = (0, 0.0)
        return excess

    def _level(self) -> float:
        """Time of a level, or of a call, of the drafter, in steps over one row."""
        return min(self._levels) / self.curve.seconds(1) if self._levels and self.curve is not None else 0.0

    def _depths(self, limits: Sequence[int]) -> list[int]:
        """How deep to draft, by what is known before anything is drawn."""
        batch, limits = len(limits), list(limits)
        if self.drafter is None or self.unsure:
            return limits
        if self.curve is not None:
            if self._steps < (1 if self._prompt else 2):
                return [0] * batch  # the first steps are plain, to know what these cost
            costs = self.curve.costs()
            if self.budget is None:
                self.budget = Budget(costs, credit=0.0, allowance=0.0)
                times = self.budget.cost(range(batch + 1)).tolist()
                credit = self.credit.join(times, [limit + 1 for limit in limits], batch)
                self.budget = replace(self.budget, credit=credit, max_credit=4.0 * times[batch])
            self.budget = replace(self.budget, costs=costs)
            rows = min(sum(len(nodes.tokens) for nodes in self.nodes), MOST_ROWS)
            if rows > batch and self.curve.doubts(rows, batch, self.credit.pace):
                return [0] * batch
        budget = self.budget
        if budget is None:
            return limits
        level = self._level()
        if not budget.worth_drafting(batch, level):
            return [0] * batch
        if not (self.told or self.width):
            return limits
        scaled = replace(budget, costs=_per_request(budget, batch))
        width = max(self.width, 1)
        most = max((MOST_ROWS // batch - 1) // width, 1)
        depths = []
        weights = self._weights(limits)
        for limit, weight, (_, levels) in zip(limits, weights, self._calibrations, strict=True):
            believed = [weight * chance for chance in levels.believe(*_levels(min(limit, most)))]
            depths.append(scaled.depth(believed[1:], level if self.told else 0.0, width))
        return depths

    def _weights(self, limits: Sequence[int]) -> list[float]:
        """What a drafted token of each request is worth: the batch is done when its slowest request is."""
        return self.credit.weights(
            {request: limit + 1 for request, limit in zip(self._requests, limits, strict=True)}
        )

    def _ask(self, text: Tensor, lengths: Tensor, depths: list[int]) -> tuple[list[Nodes], Tensor | None]:
        told = {"max_draft": list(depths)} if self.told else {}
        answer = self.drafter(text.clone(), lengths.clone(), **told)
        read, laws = _answer(answer, len(depths))
        if self.chosen_only or self.rule == "match":
            laws = None
        nodes = [
            _usable(draft, depth, self.vocab_size, laws is not None, self.chains)
            for draft, depth in zip(read, depths, strict=True)
        ]
        unasked = not (self.told or self.width) and self.budget is not None
        if unasked and any(own.drawn for own in nodes):
            # The first that were drawn from laws, whose depth nobody was asked for before.
            nodes = [
                _usable(draft, min(depth, 1), self.vocab_size, True, self.chains)
                for draft, depth in zip(read, depths, strict=True)
            ]
        if self.unsure and any(len(own.tokens) > 1 for own in nodes):
            # Without laws "auto" is "match": what is drafted does not matter for the text, nor does a clock.
            self.unsure, self.chosen_only = False, laws is None
            self.curve = self.curve if laws is None else None
        return nodes, None if laws is None else laws.to(text.device)

    def _pruned(self, nodes: list[Nodes], weights: Sequence[float]) -> list[Nodes]:
        """The drafts without `POINT` nodes that do not pay."""
        drawn = [own.drawn for own in nodes]
        if any(drawn):
            largest = max(compress(nodes, drawn), key=lambda own: len(own.tokens))
            self.width = math.ceil((len(largest.tokens) - 1) / max(largest.depths))
        if self.curve is not None and (self.budget is None or self.unsure):
            chosen = [[0]] * len(nodes)
        elif self.budget is None or all(drawn):
            return nodes
        else:
            believed = [
                [1.0] if yes else calibration.believe(own.chances, own.parents)
                for own, yes, (calibration, _) in zip(nodes, drawn, self._calibrations, strict=True)
            ]
            credit = max(self.budget.credit - self._level(), 0.0)
            chosen = replace(self.budget, credit=credit).choose(believed, weights)
        return [own if yes else own.keep(some) for own, yes, some in zip(nodes, drawn, chosen, strict=True)]

    def _built(self, nodes: list[Nodes], laws: Tensor | None, device: torch.device) -> Drafts:
        if laws is None and all(len(own.tokens) == 1 for own in nodes):
            if self._roots is None:
                self._roots = _drafts(nodes, None, device)
            return self._roots
        return _drafts(nodes, laws, device)


def accepts(function: Any, name: str) -> bool:
    """Whether a callable has a parameter of this name."""
    function = function.forward if isinstance(function, torch.nn.Module) else function
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _levels(depth: int) -> tuple[list[float], list[int]]:
    """Chances and parents of the levels down to `depth`, known before anything is drafted."""
    return [PROMISE**d for d in range(depth + 1)], list(range(-1, depth))


def _per_request(budget: Budget, batch: int) -> dict[Any, float]:
    """Costs by the rows of each request, all having as many, which need not be whole."""
    beyond = {rows / batch: cost for rows, cost in budget.costs.items() if rows > batch}
    if not beyond:
        beyond = {2: float(budget.cost(2 * batch))}
    return {1: float(budget.cost(batch)), **beyond}


class Draft(NamedTuple):
    """What a drafter returned for one request, before anything is cut."""

    order: Iterable[int]  # in which nodes are taken: parents first, siblings as they are to be verified
    tokens: Sequence[int]
    parents: Sequence[int]
    proposals: Sequence[int]
    rows: Sequence[int]  # as in `Nodes`
    chances: Sequence[float] | None


def _answer(answer: Any, batch: int) -> tuple[list[Draft], Tensor | None]:
    """What a drafter returned, by requests, and the laws [Rq, Vd]."""
    rows = scores = laws = None
    if isinstance(answer, Drafts):
        answer, laws, rows, scores = answer
    elif isinstance(answer, GrownTree):
        answer, _, scores = answer
    elif isinstance(answer, tuple):
        if len(answer) != 2:
            bad_type("generate", "drafter", f"must return {KINDS}", _described(answer))
        answer, laws = answer
        if isinstance(answer, GrownTree):
            answer, rows, scores = answer
        elif isinstance(answer, DraftTree) and _are_scores(laws, answer, batch):
            laws, scores = None, laws
    tensors = [answer.tokens, answer.parents, answer.cu_nodes] if isinstance(answer, DraftTree) else [answer]
    for tensor in (*tensors, laws, rows, scores):
        if isinstance(tensor, Tensor) and (tensor.is_meta or tensor.layout is not torch.strided):
            bad_value("generate", "drafter", "must return dense tensors with data", f"one on {tensor.device}")
    if isinstance(answer, Tensor):
        return _chains(answer, laws, batch)
    if not isinstance(answer, DraftTree):
        bad_type("generate", "drafter", f"must return {KINDS}", _described(answer))
    return _trees(Drafts(answer, laws, rows, scores), batch)


def _are_scores(second: Any, tree: DraftTree, batch: int) -> bool:
    rows = tree.tokens.shape[0]
    return isinstance(second, Tensor) and second.dim() == 2 and second.shape[0] == batch != rows


def _chains(tokens: Tensor, laws: Any, batch: int) -> tuple[list[Draft], Tensor | None]:
    if tokens.dim() != 2 or tokens.shape[0] != batch:
        bad_value("generate", "drafter", f"must return tokens [B, K], B = {batch}", list(tokens.shape))
    if tokens.dtype not in INTEGERS:
        bad_type("generate", "drafter", "must return integer tokens", name_of(tokens.dtype))
    depth = tokens.shape[1]
    parents, order = range(-1, depth), range(depth + 1)
    kinds = [0 if laws is None else int(Proposal.INDEPENDENT)] * (depth + 1)
    if laws is not None:
        check_dtype("generate", "the drafter's draft_logits", laws, FLOATS)
        if laws.dim() != 3 or laws.shape[:2] != tokens.shape:
            rule = f"must have shape [B, K, Vd] = [{batch}, {depth}, Vd]"
            bad_value("generate", "the drafter's draft_logits", rule, list(laws.shape))
        laws = laws.flatten(0, 1)
    drafts: list[Draft] = []
    for b, row in enumerate(tokens.tolist()):
        rows = [-1] * (depth + 1) if laws is None else [*range(b * depth, (b + 1) * depth), -1]
        drafts.append(Draft(order, [-1, *row], parents, kinds, rows, None))
    return drafts, laws


def _trees(drafts: Drafts, batch: int) -> tuple[list[Draft], Tensor | None]:
    tree, laws, draft_rows, scores = drafts
    if tree.batch_size != batch:
        bad_value("generate", "drafter", f"must return trees of B = {batch} requests", tree.batch_size)
    total, ends = tree.tokens.shape[0], tree.cu_nodes.tolist()
    if ends[0] != 0 or ends[-1] > total or any(a > b for a, b in zip(ends, ends[1:], strict=False)):
        rule = f"must return cu_nodes that ascend from 0 to R = {total} at most"
        bad_value("generate", "drafter", rule, ends)
    laws, rows = _rows(laws, draft_rows, batch, total)
    tokens, parents, kinds = tree.tokens.tolist(), tree.parents.tolist(), tree.proposals.tolist()
    links = None if tree.links is None else [link.tolist() for link in tree.links]
    chances = None
    if scores is not None:
        check_dtype("generate", "the drafter's scores", scores, FLOATS)
        largest = max((b - a for a, b in zip(ends, ends[1:], strict=False)), default=0)
        if scores.dim() != 2 or scores.shape[0] != batch or scores.shape[1] < largest:
            rule = f"must have shape [B, max_nodes] = [{batch}, {largest}]"
            bad_value("generate", "the drafter's scores", rule, list(scores.shape))
        chances = scores.float().exp().nan_to_num(0.0).clamp(0.0, 1.0).tolist()
    found: list[Draft] = []
    for b in range(batch):
        own = slice(ends[b], ends[b + 1])
        order: Iterable[int] = range(ends[b + 1] - ends[b])
        if links is not None:
            order = _by_links(links[0][own], links[1][own])
        else:
            _check_parents(parents[own], b)
        of_paths = None if chances is None else chances[b]
        found.append(Draft(order, tokens[own], parents[own], kinds[own], rows[own], of_paths))
    return found, laws


def _rows(laws: Any, draft_rows: Any, batch: int, total: int) -> tuple[Tensor | None, list[int]]:
    """Laws as [Rq, Vd], and every node's row."""
    if laws is None:
        return None, [-1] * total
    check_dtype("generate", "the drafter's draft_logits", laws, FLOATS)
    if draft_rows is not None:
        check_dtype("generate", "the drafter's draft_rows", draft_rows, INTEGERS)
        if laws.dim() != 2 or draft_rows.shape != (total,):
            rule = f"and draft_rows must have shapes [Rq, Vd] and [R] = [{total}]"
            got = f"{list(laws.shape)} and {list(draft_rows.shape)}"
            bad_value("generate", "the drafter's draft_logits", rule, got)
        rows = draft_rows.tolist()
        if any(row >= laws.shape[0] for row in rows):
            rule = f"must be below Rq = {laws.shape[0]}"
            bad_value("generate", "the drafter's draft_rows", rule, max(rows))
        return laws, rows
    if laws.dim() == 3 and laws.shape[0] == batch and batch * (laws.shape[1] + 1) == total:
        depth = laws.shape[1]
        rows = [row for b in range(batch) for row in (*range(b * depth, (b + 1) * depth), -1)]
        return laws.flatten(0, 1), rows
    if laws.dim() != 2 or laws.shape[0] != total:
        rule = f"must have shape [R, Vd] = [{total}, Vd], or come with draft_rows"
        bad_value("generate", "the drafter's draft_logits", rule, list(laws.shape))
    return laws, list(range(total))


def _check_parents(parents: list[int], request: int) -> None:
    for node, parent in enumerate(parents):
        if node and not 0 <= parent < node:
            rule = "must return trees whose nodes follow their parents"
            bad_value("generate", "drafter", rule, f"parent {parent} at request {request} node {node}")


def _by_links(first_child: list[int], next_sibling: list[int]) -> list[int]:
    """The nodes in an order in which siblings ascend as they are linked."""
    order, stack, seen = [], [0] if first_child else [], set()
    while stack:
        node = stack.pop()
        if node < 0 or node in seen or node >= len(first_child):
            continue
        seen.add(node)
        order.append(node)
        stack += [next_sibling[node], first_child[node]]
    return order


def _usable(draft: Draft, limit: int, vocab_size: int, laws: bool, chains: bool) -> Nodes:
    """The nodes down to `limit` that carry a token, and whose ancestors do; of a chain, without siblings."""
    order, tokens, parents, proposals, rows, chances = draft
    kept = Nodes([], [], [], [], [], [])
    place: dict[int, int] = {}
    pointed = {above for above, kind in zip(parents, proposals, strict=True) if chains and kind == 0}
    rest: list[float] = []  # of each kept node: what its children so far have left of its chance
    for node in order:
        token = tokens[node]
        if not kept.tokens:
            token, parent, depth, chance = -1, -1, 0, 1.0
        else:
            parent = place.get(parents[node], -1)
            if parent < 0 or token < 0 or kept.depths[parent] >= limit:
                continue
            if chains and parent in kept.parents:
                continue
            depth = kept.depths[parent] + 1
            chance = PROMISE * rest[parent] if chances is None else chances[node]
            rest[parent] -= chance
        if token < vocab_size:
            place[node] = len(kept.tokens)
        elif not laws:
            continue  # one drawn from a law has to be rejected by the verifier, which then looks at the rest
        kept.tokens.append(token)
        kept.parents.append(parent)
        kept.depths.append(depth)
        kept.proposals.append(_proposal(proposals[node], parents[node] in pointed))
        kept.rows.append(rows[node] if laws else -1)
        kept.chances.append(chance)
        rest.append(chance)
    return kept if kept.tokens else ROOT


def _proposal(proposal: int, alone: bool) -> int:
    """The proposal of a node. If it is left `alone`, without its `POINT` siblings, its law is unknown to the
    verifier, so it counts as `POINT`."""
    return int(Proposal.POINT) if alone and proposal == Proposal.WITHOUT_REPLACEMENT else proposal


def _drafts(nodes: list[Nodes], laws: Tensor | None, device: torch.device) -> Drafts:
    """Flat tensors, whose every row is a node."""
    columns = [[value for own in nodes for value in own[column]] for column in (0, 1, 3, 4)]
    ends = [0]
    for own in nodes:
        ends.append(ends[-1] + len(own.tokens))
    tokens, parents, proposals, rows = torch.tensor(columns, device=device).unbind()
    tree = DraftTree(
        tokens,
        parents.int(),
        torch.tensor(ends, dtype=torch.int32, device=device),
        proposals.to(torch.uint8),
        max(len(own.tokens) for own in nodes),
        max(max(own.depths) for own in nodes),
    )
    return Drafts(tree, laws, None if laws is None else rows.int())


def _described(answer: Any) -> str:
    if isinstance(answer, tuple):
        return f"a tuple ({', '.join(type(part).__name__ for part in answer)})"
    return type(answer).__name__
