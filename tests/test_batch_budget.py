# SPDX-License-Identifier: Apache-2.0
"""The budget on the device: it equals the one on the host, and leaves the law of drawn drafts alone."""

from __future__ import annotations

import copy
import itertools
import math
import random
from functools import cache, partial

import numpy as np
import pytest
import torch
from each import BACKENDS, QUICK
from exact import Case, outcomes
from synchronisation import MADE_BY_HOST, READ_BY_HOST
from torch.overrides import TorchFunctionMode

import specdec_kernels as sdk
from specdec_kernels.reference import budget as reference
from specdec_kernels.reference import verification as rules
from specdec_kernels.reference.request import Request, Tree

P, D, W = sdk.Proposal.POINT, sdk.Proposal.INDEPENDENT, sdk.Proposal.WITHOUT_REPLACEMENT
CURVES = {
    "cpu": {1: 1.0, 2: 1.09, 3: 1.17, 4: 1.65, 8: 2.17, 16: 2.21, 32: 2.89, 64: 4.41},
    "flat": {1: 1.0, 16: 1.02, 64: 1.1},
    "steep": {1: 1.0, 8: 6.0},
}
UNLIMITED = dict(credit=math.inf, max_credit=math.inf)


def batch(*requests, proposals=None):
    """Trees of (chances, parents) of all nodes, and their scores."""
    chances, parents = zip(*requests, strict=True)
    sizes = torch.tensor([0, *map(len, parents)]).cumsum(0).int()
    kinds = P if proposals is None else torch.tensor(sum(proposals, []))
    tree = sdk.DraftTree.from_parents(
        torch.arange(int(sizes[-1])), torch.tensor(sum(parents, [])), sizes, proposals=kinds
    )
    return tree, torch.tensor(sum(chances, []), dtype=torch.float64).log().float()


def random_tree(choices, nodes):
    """Chances that a float32 logarithm gives back, and parents."""
    chances, parents = [1.0], [-1]
    for node in range(1, nodes):
        parents.append(choices.randrange(node))
        score = torch.tensor(chances[parents[-1]] * choices.choice([0.05, 0.3, 0.6, 0.9, 0.99])).log()
        chances.append(math.exp(float(score)))
    return chances, parents


def verified(paths, tokens=None):
    """What `verify` would have returned for these paths."""
    width = max(map(len, paths))
    padded = torch.tensor([[*path, *[-1] * (width - len(path))] for path in paths], dtype=torch.int32)
    accepted = torch.tensor([len(path) - 1 for path in paths], dtype=torch.int32)
    counts = accepted + 1 if tokens is None else torch.tensor(tokens, dtype=torch.int32)
    return sdk.Verified(padded.long(), counts, accepted, padded, None, torch.zeros_like(accepted))


def nodes_of(selected):
    """Per request the rows that were kept."""
    ends = selected.tree.cu_nodes.tolist()
    return [selected.rows[a:b].tolist() for a, b in itertools.pairwise(ends)]


def walk(choices, parents, nodes, rate):
    """A path of kept nodes."""
    path = [0]
    while below := [n for n in nodes if parents[n] == path[-1] and choices.random() < rate]:
        path.append(choices.choice(below))
    return path


@pytest.mark.parametrize("backend", QUICK)
@pytest.mark.parametrize("curve", CURVES)
def test_it_equals_the_budget_on_the_host(curve, backend):
    """Step by step: the same nodes, credit and calibrations, over texts that turn from good to bad."""
    choices, count = random.Random(3), 3
    budget, calibrations = sdk.Budget(CURVES[curve], patience=9), [sdk.Calibration()] * count
    device = sdk.BatchBudget(budget, slots=5, max_rows=64)
    slots, drafted = torch.tensor([4, 0, 2]), 0
    for step in range(100):
        trees = [random_tree(choices, choices.randrange(1, 12)) for _ in range(count)]
        tree, scores = batch(*trees)
        weights = [choices.choice([0.0, 0.3, 1.0, 2.0]) for _ in trees] if step % 3 == 0 else None
        weighed = None if weights is None else torch.tensor(weights)
        selected = device.select(tree, scores, slots=slots, weights=weighed, backend=backend)
        expected = budget.choose(
            [calibration.believe(*drawn) for calibration, drawn in zip(calibrations, trees, strict=True)],
            weights,
        )
        starts = tree.cu_nodes.tolist()
        kept = [
            [row - start for row in rows] for rows, start in zip(nodes_of(selected), starts, strict=False)
        ]
        assert kept == expected
        rate = 0.9 if step // 25 % 2 else 0.05
        paths = [walk(choices, parents, nodes, rate) for (_, parents), nodes in zip(trees, kept, strict=True)]
        for i, ((chances, parents), nodes, path) in enumerate(zip(trees, kept, paths, strict=True)):
            renumbered = [nodes.index(parents[node]) if node else -1 for node in nodes]
            within = [nodes.index(node) for node in path]
            paths[i] = within
            calibrations[i] = calibrations[i].after([chances[n] for n in nodes], renumbered, within)
        device.update_(selected, verified(paths), backend=backend)
        budget = budget.after(sum(map(len, kept)), [len(path) for path in paths])
        drafted += sum(map(len, kept)) > count
        assert float(device.credit) == pytest.approx(budget.credit, abs=1e-12)
        assert int(device.idle_steps) == budget.idle_steps
        assert device.worth_drafting(count, 0.03) == budget.worth_drafting(count, 0.03)
        for slot, calibration in zip(slots.tolist(), calibrations, strict=True):
            assert device.promised[slot, :-1].tolist() == pytest.approx(calibration.promised, abs=1e-12)
            assert device.kept[slot, :-1].tolist() == pytest.approx(calibration.kept, abs=1e-12)
    assert drafted > 5
    assert device.promised[[1, 3]].sum() == 0 and device.promised[:, -1].sum() == 0


def test_worth_drafting_reads_the_device_once():
    class Reads(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            reads.append(function) if getattr(function, "__name__", "") in READ_BY_HOST else None
            copies.append(function) if function in MADE_BY_HOST else None
            return function(*args, **(kwargs or {}))

    reads, copies = [], []
    device = sdk.BatchBudget(sdk.Budget({1: 1.0, 2: 1.1, 4: 1.2}), slots=2, max_rows=4)
    with Reads():
        assert device.worth_drafting(2, 0.03) and not device.worth_drafting(1, 1.0)
    assert len(reads) == 2 and not copies
    assert not device.worth_drafting(4, 0.0)  # there is no row left


@pytest.mark.parametrize("backend", QUICK)
def test_drawn_drafts_that_never_hit_cost_next_to_nothing(backend):
    device = sdk.BatchBudget(sdk.Budget(CURVES["cpu"]), slots=1, max_rows=16)
    tree, scores = batch(([0.9**d for d in range(9)], list(range(-1, 8))), proposals=[[0] + [D] * 8])
    time, rows = 0.0, set()
    for _ in range(300):
        selected = device.select(tree, scores, backend=backend)
        rows.add(int(selected.tree.cu_nodes[-1]))
        time += float(device.costs[int(selected.tree.cu_nodes[-1])])
        device.update_(selected, verified([[0]]), backend=backend)
    assert time <= 1.02 * 300 + 1.0 and len(rows) > 1


@pytest.mark.parametrize("backend", QUICK)
def test_drawn_siblings_go_from_the_end_of_their_order_and_mixed_ones_together(backend):
    free = sdk.Budget({1: 1.0, 2: 1.19, 3: 1.2, 4: 9.0}, **UNLIMITED)
    device = sdk.BatchBudget(free, slots=1, max_rows=8)
    chances, parents = [1.0, 0.01, 0.9, 0.02], [-1, 0, 0, 0]
    for kinds, kept in (
        ([0, 0, 0], [0, 2, 3]),
        ([W, W, W], [0, 1, 2]),
        ([D, D, D], [0, 1, 2]),
        ([W, 0, 0], [0]),
    ):
        tree, scores = batch((chances, parents), proposals=[[0, *kinds]])
        assert nodes_of(device.select(tree, scores, backend=backend)) == [kept]
    device.costs[4] = 1.3
    assert nodes_of(device.select(tree, scores, backend=backend)) == [[0, 1, 2, 3]]


@pytest.mark.parametrize("backend", QUICK)
def test_draws_are_judged_by_a_share_of_their_own(backend):
    device = sdk.BatchBudget(sdk.Budget({1: 1.0, 2: 1.2}, **UNLIMITED), slots=1, max_rows=8)
    tree, scores = batch(([1.0, 0.3, 0.2], [-1, 0, 0]), proposals=[[0, W, W]])
    for _ in range(40):
        selected = device.select(tree, scores, backend=backend)
        device.update_(selected, verified([[0, 1]]), backend=backend)
    assert selected.tree.cu_nodes.tolist() == [0, 3]
    promised, kept = device.promised[0], device.kept[0]
    assert float(kept[-1] / promised[-1]) == pytest.approx(0.5)
    assert float(promised[:-1].sum() / promised[-1]) == pytest.approx(0.25)


@pytest.mark.parametrize("backend", QUICK)
def test_what_is_kept_is_a_tree_for_verify(backend):
    """Rows, draft rows, padding slots, unused nodes and a bound on rows."""
    tokens = torch.tensor([[9, 1, 2, 3, -1], [9, 1, 2, 3, 4], [9, 4, 5, 6, 7]])
    parents = torch.tensor([[-1, 0, 1, 0, 0], [-1, 0, 0, 0, 0], [-1, 0, 0, 2, 3]])
    chances = torch.tensor([[1, 0.1, 0.05, 0.6, 0], [0, 1, 1, 1, 1], [1, 0.2, 0.7, 0.69, 0.68]])
    tree, rows = sdk.DraftTree.from_parents(tokens, parents), torch.arange(100, 115).int()
    device = sdk.BatchBudget(sdk.Budget({1: 1.0, 6: 1.0}, **UNLIMITED), slots=0, max_rows=6)
    slots = torch.tensor([-1, 7, 2**40])
    selected = device.select(tree, chances.log(), draft_rows=rows, slots=slots, backend=backend)
    assert selected.rows.tolist() == [0, 3, 10, 12, 13, 14]
    assert selected.draft_rows.tolist() == [100, 103, 110, 112, 113, 114]
    assert selected.tree.cu_nodes.tolist() == [0, 2, 2, 6]
    assert selected.tree.tokens.tolist() == [9, 3, 9, 5, 6, 7]
    assert selected.tree.parents.tolist() == [-1, 0, -1, 0, 1, 2]
    assert selected.tree.max_nodes == 5 and selected.tree.max_depth == tree.max_depth
    assert torch.equal(selected.scores, chances.log().flatten()[selected.rows])
    device.credit.fill_(0.0)
    device.costs[4:] = 2.0
    selected = device.select(tree, chances.log(), slots=slots, backend=backend)
    assert selected.rows.tolist() == [0, 10, 12, -1, -1, -1]
    assert selected.draft_rows is selected.rows and selected.scores[3:].isinf().all()
    sdk.verify(torch.zeros(6, 12), selected.tree)
    device.update_(selected, verified([[0], [-1], [0]], [1, 0, 1]), backend=backend)
    assert int(device.idle_steps) == 0


@pytest.mark.parametrize("backend", QUICK)
def test_after_patience_one_trial_is_made(backend):
    device = sdk.BatchBudget(sdk.Budget({1: 1.0, 2: 1.5, 3: 2.1}, patience=3), slots=1, max_rows=8)
    for kinds in ([P, P], [D, D]):
        device.idle_steps.fill_(0)
        tree, scores = batch(([1.0, 0.1, 0.05], [-1, 0, 1]), proposals=[[0, *kinds]])
        device.promised[0, -1] = 20.0
        counts = []
        for _ in range(5):
            selected = device.select(tree, scores, backend=backend)
            device.update_(selected, verified([[0]]), backend=backend)
            counts.append(int(selected.tree.cu_nodes[-1]))
        assert counts == [1, 1, 1, 2, 1]


@pytest.mark.parametrize("backend", QUICK)
def test_bad_data_harms_nobody(backend):
    choices = random.Random(5)
    device = sdk.BatchBudget(sdk.Budget({1: 1.0, 16: 1.0}), slots=2, max_rows=16)
    numbers = [-(2**31), -7, -1, 0, 1, 2, 3, 9, 2**31 - 1]
    values = [math.nan, math.inf, -math.inf, 5.0, 0.0, -0.5, -1e30]
    for _ in range(40):
        parents = torch.tensor([choices.choice(numbers) for _ in range(12)], dtype=torch.int32)
        ends = torch.tensor([choices.choice(numbers) for _ in range(4)], dtype=torch.int32)
        kinds = torch.tensor([choices.choice([0, 1, 2, 255]) for _ in range(12)], dtype=torch.uint8)
        scores = torch.tensor([choices.choice(values) for _ in range(12)])
        tree = sdk.DraftTree(torch.arange(12) - 1, parents, ends, kinds, 12, 11)
        slots = torch.tensor([1, -(2**62), 2**62])
        selected = device.select(tree, scores, slots=slots, backend=backend)
        kept = selected.tree.cu_nodes.tolist()
        assert kept == sorted(kept) and 0 <= kept[0] and kept[-1] <= 12
        for rows, (start, end) in zip(nodes_of(selected), itertools.pairwise(kept), strict=True):
            assert rows == sorted(set(rows)) and all(0 <= row < 12 for row in rows)
            assert all(-1 <= p < i for i, p in enumerate(selected.tree.parents[start:end].tolist()))
        path = torch.tensor(
            [[choices.choice(numbers) for _ in range(4)] for _ in range(3)], dtype=torch.int32
        )
        emitted = torch.tensor([choices.choice(numbers[1:]) for _ in range(3)], dtype=torch.int32)
        step = sdk.Verified(path.long(), emitted, emitted, path, None, emitted)
        device.update_(selected, step, backend=backend)
        device.update_(selected._replace(tree=tree), step, backend=backend)
        assert float(device.credit) <= 4.0 and device.promised.isfinite().all()
    device.reset_([1])
    assert device.promised.sum() == 0


@pytest.mark.parametrize("backend", QUICK)
def test_weights_say_what_a_token_of_a_request_is_worth(backend):
    """Every choice is the best of all, where drafted tokens count by their weights."""
    choices, costs = random.Random(8), {1: 1.0, 3: 1.1, 5: 1.6, 6: 1.7}
    device = sdk.BatchBudget(sdk.Budget(costs, **UNLIMITED), slots=0, max_rows=16)
    cost, slots = sdk.Budget(costs).cost, torch.tensor([-1, -1])
    moved = 0
    for _ in range(40):
        trees = [random_tree(choices, 4) for _ in range(2)]
        tree, scores = batch(*trees)
        weights = [choices.choice([0.01, 0.2, 1.0, 3.0]) for _ in range(2)]
        kept = nodes_of(
            device.select(tree, scores, slots=slots, weights=torch.tensor(weights), backend=backend)
        )
        moved += kept != nodes_of(device.select(tree, scores, slots=slots, backend=backend))

        def rate(rows, weights=weights, trees=trees):
            worth = sum(
                (1.0 if row in (0, 4) else weight * chances[row % 4])
                for weight, (chances, _), each in zip(weights, trees, rows, strict=True)
                for row in each
            )
            return worth / float(cost(sum(map(len, rows))))

        shapes = [
            [
                [4 * b, *(4 * b + n for n in some)]
                for size in range(4)
                for some in itertools.combinations((1, 2, 3), size)
            ]
            for b in range(2)
        ]
        assert rate(kept) == pytest.approx(max(map(rate, itertools.product(*shapes))), rel=1e-6)
    assert moved > 5


@pytest.mark.parametrize("backend", QUICK)
def test_weights_of_no_worth_bring_no_nodes(backend):
    device = sdk.BatchBudget(sdk.Budget({1: 1.0, 9: 1.0}, **UNLIMITED), slots=0, max_rows=16)
    tree, scores = batch(*[([1.0, 0.9], [-1, 0])] * 4)
    weights = torch.tensor([math.nan, 0.0, -1.0, math.inf])
    kept = nodes_of(device.select(tree, scores, slots=torch.full((4,), -1), weights=weights, backend=backend))
    assert kept == [[0], [2], [4], [6, 7]]


def both(backend, device, tree, scores, step, weights=None):
    """The trees and the budget after a step, of a backend and of the reference."""
    found = []
    for name in (backend, "reference"):
        budget = copy.deepcopy(device)
        selected = budget.select(tree, scores, slots=torch.tensor([1, 0, 5]), weights=weights, backend=name)
        kept = selected.tree
        budget.update_(selected, step(kept), backend=name)
        exact = kept.tokens, kept.parents, kept.cu_nodes, kept.proposals, selected.rows, budget.idle_steps
        found.append((exact, (selected.scores, budget.credit, budget.promised, budget.kept)))
    return found


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
def test_backends_agree(backend):
    """Trees of every kind of node, some without tokens; steps with and without trials; a curve with steps."""
    choices = random.Random(11)
    device = sdk.BatchBudget(sdk.Budget(CURVES["cpu"], patience=3), slots=2, max_rows=24)
    sizes = set()
    for _ in range(12 if backend == "triton" else 150):
        device.promised.copy_(torch.rand(2, 9) * 3)
        device.kept.copy_(device.promised * torch.rand(2, 9) * 1.5)
        device.credit.fill_(choices.choice([0.2, 1.0, 3.0]))
        device.idle_steps.fill_(choices.choice([0, 5]))
        kinds = choices.choice([[0], [0, W], [W], [0, D, W]])
        trees = [random_tree(choices, 8) for _ in range(3)]
        proposals = [[choices.choice(kinds) for _ in range(8)] for _ in range(3)]
        tree, scores = batch(*trees, proposals=proposals)
        tree.tokens[choices.randrange(24)] = -1
        accepted = [[0, choices.randrange(1, 4), -1], [0, -1, -1], [0, 1, choices.randrange(2, 6)]]
        tokens = [2, choices.choice([0, 1]), 3]
        weights = choices.choice([None, torch.rand(3)])
        step = partial(lambda kept, a, n: verified(a, n), a=accepted, n=tokens)
        found = both(backend, device, tree, scores, step, weights)
        torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)
        sizes.add(int(found[1][0][2][-1]))
    assert len(sizes) > 3


def test_slots_are_reset_one_by_one():
    device = sdk.BatchBudget(
        sdk.Budget({1: 1.0}), 3, 4, calibration=sdk.Calibration(promised=(2.0,) * 8, kept=(1.0,) * 8)
    )
    device.promised.fill_(7.0)
    device.reset_(torch.tensor([2, 0, 9, -1]))
    assert device.promised[:, 0].tolist() == [2.0, 7.0, 2.0] and device.promised[:, -1].tolist() == [
        0.0,
        7.0,
        0.0,
    ]
    device.reset_()
    assert device.promised[1].tolist() == [2.0] * 8 + [0.0]
    with pytest.raises(ValueError, match="slots must be in .0, slots. = .0, 3., got 3"):
        device.reset_([3])


# The law of the text, by enumeration: every draft of a batch of two, and every way the verifier can decide


class Drawn:
    """A request of a case, and the law of its text after what was kept of a draft."""

    def __init__(self, case, rule):
        self.case, self.rule = case, rule
        self.drafts = [
            (tuple(tokens[n] for n in range(1, len(tokens) + 1)), p) for tokens, p in case.drafts()
        ]
        self.sequences = list(itertools.product(range(case.vocab), repeat=case.depth + 1))
        self.text = cache(self._text)

    def above(self, tokens, node):
        return tuple(tokens[n - 1] for n in self.case.above(node))

    def chances(self, tokens):
        chances = [1.0]
        for node, parent in enumerate(self.case.parents, 1):
            chances.append(chances[parent] * float(self.case.q(self.above(tokens, parent))[tokens[node - 1]]))
        return chances

    def target(self):
        return self._completed({(): 1.0})

    def _text(self, tokens, kept):
        """The law of depth + 1 tokens if a step verifies the kept nodes and the target goes on."""
        case, law = self.case, {}
        parents = [-1, *(kept.index(case.parents[node - 1]) for node in kept[1:])]
        tree = Tree([-1, *(tokens[node - 1] for node in kept[1:])], parents, [0, *map(case.kind, kept[1:])])

        def make(noise):
            return Request(
                tree,
                case.vocab,
                target=lambda node: (case.p(self.above(tokens, kept[node])), 0),
                draft=lambda node: case.q(self.above(tokens, kept[node])),
                noise=noise,
                max_depth=case.depth,
            )

        for output, _, probability in outcomes(self.rule, make):
            law[output] = law.get(output, 0.0) + probability
        return self._completed(law)

    def _completed(self, law):
        def rest(sequence, start):
            return math.prod(
                float(self.case.p(sequence[:i])[sequence[i]]) for i in range(start, len(sequence))
            )

        return np.array(
            [sum(law.get(s[:n], 0.0) * rest(s, n) for n in range(len(s) + 1)) for s in self.sequences]
        )


def joint_law(requests, costs, weights=None):
    """The total variation between both texts and the target's, and how many choices were made."""
    device = sdk.BatchBudget(sdk.Budget(costs, **UNLIMITED), slots=2, max_rows=16)
    joint, shapes = 0.0, set()
    for (first, p), (second, q) in itertools.product(*(request.drafts for request in requests)):
        drafted = (first, second)
        tree, scores = batch(
            *((r.chances(t), [-1, *r.case.parents]) for r, t in zip(requests, drafted, strict=True)),
            proposals=[[0, *map(r.case.kind, range(1, 1 + len(r.case.parents)))] for r in requests],
        )
        rows = nodes_of(device.select(tree, scores, weights=weights, backend="reference"))
        kept = [
            tuple(row - start for row in each)
            for each, start in zip(rows, tree.cu_nodes.tolist(), strict=False)
        ]
        shapes.add(tuple(kept))
        laws = [r.text(t, nodes) for r, t, nodes in zip(requests, drafted, kept, strict=True)]
        joint = joint + p * q * np.outer(*laws)
    return np.abs(joint - np.outer(*(request.target() for request in requests))).sum() / 2, len(shapes)


COSTS = {1: 0.9, 2: 1.0, 3: 1.6, 4: 2.1, 5: 2.6, 6: 2.75, 7: 2.9}
PAIRS = {
    "chains": (Case((0, 1), "II"), Case((0, 1), "II", seed=1)),
    "siblings": (Case((0, 0, 1), "WWW"), Case((0, 1), "II", seed=2)),
    "hybrid": (Case((0, 0, 1), "WPI"), Case((0, 1), "PI", seed=3)),
}


def drawn(name, rule=rules.token):
    return [Drawn(case, rule) for case in PAIRS[name]]


@pytest.mark.parametrize("rule", [rules.token, rules.traversal])
@pytest.mark.parametrize("name", PAIRS)
def test_what_is_kept_leaves_the_law(name, rule):
    for weights in (None, torch.tensor([0.7, 1.0])):
        far, shapes = joint_law(drawn(name, rule), COSTS, weights)
        assert far < 1e-12 and shapes > 1


@pytest.mark.parametrize("name", ["chains", "siblings"])
def test_mutant_that_takes_the_best_of_all_observed_scores(name, monkeypatch):
    monkeypatch.setattr(reference, "stopping", reference.best)
    assert joint_law(drawn(name), COSTS)[0] > 1e-3


@pytest.mark.parametrize("name", ["siblings", "hybrid"])
def test_mutant_that_ranks_draws_by_their_own_scores(name, monkeypatch):
    costs = {1: 0.9, 2: 1.0, 3: 1.2, 8: 2.2}
    assert joint_law(drawn(name), costs)[0] < 1e-12
    draft = reference.draft
    monkeypatch.setattr(reference, "draft", lambda *tree: draft(*tree)._replace(drawn=set(), mixed=set()))
    assert joint_law(drawn(name), costs)[0] > 1e-3


def test_mutant_that_parts_a_draw_from_its_chosen_siblings(monkeypatch):
    costs = {1: 0.9, 2: 1.0, 3: 1.1, 4: 3.0}
    assert joint_law(drawn("hybrid"), costs)[0] < 1e-12
    draft = reference.draft
    monkeypatch.setattr(reference, "draft", lambda *tree: draft(*tree)._replace(mixed=set()))
    assert joint_law(drawn("hybrid"), costs)[0] > 1e-3
