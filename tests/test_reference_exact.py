# SPDX-License-Identifier: Apache-2.0
"""Losslessness of the reference by exact enumeration, and mutants that the same equality refuses.

Sum over drafts of Pr(draft) * law(output | draft) equals the target's chain law to 1e-12 in total variation.
"""

from __future__ import annotations

import inspect
import math
from functools import partial

import impossible
import pytest
import torch
from exact import Case, Decisions, distance, emitted, outcomes
from exact_cases import CASES, EXACT, FAR, LOSSLESS, LOSSY, cases, rules
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

import specdec_kernels as sdk
from specdec_kernels import Status
from specdec_kernels.reference.request import Request, Trace, Tree, ratio
from specdec_kernels.tree import Proposal

PAIRS = [
    pytest.param(case, rule, id=f"{name}-{rule.__name__}")
    for name, case in CASES.items()
    for rule in LOSSLESS
]


@pytest.mark.parametrize("case, rule", PAIRS)
def test_rule_is_lossless(case, rule):
    law, _ = emitted(case, rule)
    assert math.isclose(sum(law.values()), 1.0, rel_tol=0, abs_tol=EXACT)
    assert distance(case, law) < EXACT


@given(cases(), st.sampled_from(LOSSLESS))
@settings(max_examples=120)
def test_rule_is_lossless_on_any_tree(case, rule):
    law, _ = emitted(case, rule)
    assert distance(case, law) < EXACT


@pytest.mark.parametrize("name", CASES)
def test_traversal_accepts_at_least_as_much_as_token(name):
    _, by_token = emitted(CASES[name], rules.token)
    _, by_traversal = emitted(CASES[name], rules.traversal)
    assert by_traversal >= by_token - EXACT


@pytest.mark.parametrize("rule, accepted", [(rules.token, 10 / 9), (rules.traversal, 11 / 9)])
def test_golden_case(rule, accepted):
    case = Fixed((0, 1), "II", vocab=2, laws=((1 / 3, 2 / 3), (2 / 3, 1 / 3)))
    law, count = emitted(case, rule)
    assert distance(case, law) < EXACT
    assert math.isclose(count, accepted, rel_tol=EXACT)


def test_match_accepts_the_probability_of_every_path():
    case = CASES["bushy_point"]
    ((tokens, _),) = case.drafts()
    paths = [[tokens[n] for n in case.above(node)] for node in range(1, 6)]
    expected = sum(math.prod(float(case.p(tuple(x[:i]))[x[i]]) for i in range(len(x))) for x in paths)
    for rule in LOSSLESS:  # no lossless rule does better on POINT drafts
        assert math.isclose(emitted(case, rule)[1], expected, rel_tol=EXACT)


class Fixed(Case):
    """The same target and draft law at every node."""

    def __init__(self, *args, laws, **kwargs):
        super().__init__(*args, **kwargs)
        object.__setattr__(self, "laws", [torch.tensor(law, dtype=torch.float64) for law in laws])

    def p(self, prefix):
        return self.laws[0]

    def q(self, prefix):
        return self.laws[1]


@pytest.mark.parametrize("rule", LOSSY)
@pytest.mark.parametrize("name", ["chain", "bushy_mixed"])
def test_lossy_rule_is_not_lossless(rule, name):
    law, _ = emitted(CASES[name], LOSSY[rule])
    assert math.isclose(sum(law.values()), 1.0, rel_tol=EXACT)
    assert distance(CASES[name], law) > FAR


def test_lenient_with_factor_one_is_not_lossless_on_rejection():
    law, _ = emitted(CASES["chain"], partial(rules.lenient, factor=1.0))
    assert distance(CASES["chain"], law) > FAR


# Mutants: what has shipped somewhere, and must not pass.


def off_by_one(request, node, P):
    return request.end(node, request.target(max(node - 1, 0)))


def edited(rule, old, new):
    """A rule with one line of its text changed."""
    source = inspect.getsource(rule)
    assert source.count(old) == 1
    scope = dict(vars(rules), off_by_one=off_by_one)
    exec(source.replace(old, new), scope)
    return scope[rule.__name__]


RESIDUAL = "R = (w * P - Q).clamp_min(0.0)"
EDITS = {
    "token: residual not updated": (
        rules.token, "P = R / S if S > 0 else request.target(node)", "pass", "independent",
    ),
    "token: residual of the last sibling only": (
        rules.token, "R = (P - Q)", "R = (request.target(node) - Q)", "independent",
    ),
    "token: bonus row off by one": (
        rules.token, "return request.end(node, P)", "return off_by_one(request, node, P)", "chain",
    ),
    "match: bonus row off by one": (
        rules.match, "request.target(node)", "request.target(max(node - 1, 0))", "chain",
    ),
    "traversal: bonus row off by one": (
        rules.traversal, "return request.end(node, P) if", "return off_by_one(request, node, P) if", "chain",
    ),
    "traversal: residual not updated": (
        rules.traversal, "w, P = S / (S + (1.0 - w)), R / S", "w = S / (S + (1.0 - w))", "independent",
    ),
    "traversal: weight not updated": (
        rules.traversal, "w, P = S / (S + (1.0 - w)), R / S", "P = R / S", "chain",
    ),
    "traversal: token-wise residual": (rules.traversal, RESIDUAL, "R = (P - Q).clamp_min(0.0)", "chain"),
    "traversal: weight forgets the path": (
        rules.traversal, "ratio(w * request.at(P, child)", "ratio(request.at(P, child)", "chain",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mutant", EDITS)
def test_edited_rule_is_refused(mutant):
    rule, old, new, name = EDITS[mutant]
    assert distance(CASES[name], emitted(CASES[name], edited(rule, old, new))[0]) > FAR


class KeepsEarlier(Request):
    """Without replacement read as independent."""

    def removed(self, child):
        return []


class KeepsPoints(Request):
    """POINT siblings not removed from the sampled ones' law."""

    def removed(self, child):
        return [t for s, t in self._kin(child) if self.proposal(s) != Proposal.POINT]

    def _kin(self, child):
        siblings = self.children(self.tree.parents[child])
        return [(s, self.token(s)) for s in siblings[: siblings.index(child)]]


class KeepsLaterPoints(KeepsPoints):
    """Only earlier POINT siblings removed."""

    def removed(self, child):
        return [t for s, t in self._kin(child) if self.proposal(s) != Proposal.INDEPENDENT]


class SkipsPadding(Request):
    """A token beyond the vocabulary treated as no draft at all."""

    def children(self, node):
        return [child for child in super().children(node) if self.token(child) < self.vocab_size]


class RenormalisesPadding(Request):
    """The draft's law renormalised on the vocabulary."""

    def proposal_law(self, child):
        Q = super().proposal_law(child)
        return Q / Q.sum() if Q.sum() > 0 else Q


class ReadsPadding(Request):
    """A token -1 read as the last one of the vocabulary."""

    def token(self, node):
        token = super().token(node)
        return self.vocab_size - 1 if token < 0 else token


REQUESTS = [
    (KeepsEarlier, "without_replacement"),
    (KeepsPoints, "hybrid_sampled_last"),
    (KeepsPoints, "hybrid_sampled_first"),
    (KeepsLaterPoints, "hybrid_sampled_first"),
    (SkipsPadding, "padded_chain"),
    (SkipsPadding, "padded_independent"),
    (RenormalisesPadding, "padded_independent"),
    (ReadsPadding, "skipped"),
]


@pytest.mark.parametrize("rule", [rules.token, rules.traversal])
@pytest.mark.parametrize("cls, name", REQUESTS)
def test_misread_proposal_is_refused(cls, name, rule):
    assert distance(CASES[name], emitted(CASES[name], rule, cls=cls)[0]) > FAR


class CountsNoRemoved(Request):
    """Duplicates of what was removed are taken for possible."""

    def removed(self, child):
        return []


class NotesPoints(Request):
    """A POINT child's token has to be possible too."""

    def proposal_law(self, child):
        q = self.draft(self.tree.parents[child])
        x = self.token(child)
        if q is not None and x < self.vocab_size and not q[x] > 0:
            self.status |= Status.IMPOSSIBLE
        return super().proposal_law(child)


class NotesPadding(Request):
    """A token beyond the vocabulary has to be possible too."""

    def proposal_law(self, child):
        q = self.draft(self.tree.parents[child])
        if q is not None and self.token(child) >= self.vocab_size:
            self.status |= Status.IMPOSSIBLE
        return super().proposal_law(child)


class NotesUntested(Request):
    """All children of a node that was looked at, tested or not."""

    def target(self, node):
        for child in self.children(node):
            self.proposal_law(child)
        return super().target(node)


@pytest.mark.parametrize("cls", [Request, CountsNoRemoved, NotesPoints, NotesPadding, NotesUntested])
def test_mistaken_notes_of_impossible_drafts_are_refused(monkeypatch, cls):
    monkeypatch.setattr(rules, "Request", cls)
    for rule in ("token", "traversal"):
        told = impossible.told(sdk.verify(**impossible.batch(), rule=rule, backend="reference"))
        assert (told == impossible.expected(rule)) == (cls is Request)


@pytest.mark.parametrize("rule", [rules.token, rules.traversal, partial(rules.lenient, factor=2.0)])
@pytest.mark.parametrize(
    "name", ["without_replacement", "bushy_mixed", "zeros", "padded_hybrid", "links_hybrid"]
)
def test_no_honest_draft_is_called_impossible(name, rule):
    """In no outcome of any draft; tokens drawn after nothing was left are left out."""
    case = CASES[name]
    for tokens, _ in case.drafts():
        requests = []

        def make(noise, tokens=tokens, requests=requests):
            requests.append(case.request(tokens, noise))
            return requests[-1]

        assert list(outcomes(rule, make))
        assert not any(request.status for request in requests), tokens


def target_only(request):
    """One coin over the siblings' summed probabilities: counts duplicates twice."""
    node = 0
    while True:
        p = request.target(node)
        left, rest = 1.0, p.clone()
        for child in request.children(node):
            x = request.at(p, child)
            if request.accepts(child, x, left):
                node = child
                break
            left, rest[request.token(child)] = left - x, 0.0
        else:
            return node, request.draw(rest, rules.Purpose.RESIDUAL, node)


def test_target_only_rule_counts_duplicates_twice():
    distinct, duplicates = CASES["bushy_point"], CASES["point_duplicates"]
    duplicates = Case(duplicates.parents, "PPPP", duplicates=True)
    assert distance(distinct, emitted(distinct, target_only)[0]) < EXACT
    assert distance(duplicates, emitted(duplicates, target_only)[0]) > FAR
    assert distance(duplicates, emitted(duplicates, rules.token)[0]) < EXACT


def drop_unlikely(case, tokens):
    """The drafter throws away what it sampled where it turned out unlikely."""
    return {
        n: t if case.q(tuple(tokens[a] for a in case.above(n)[:-1]))[t] > 0.3 else -1
        for n, t in tokens.items()
    }


def sort_by_score(case, tokens):
    """Siblings sorted by their probability after sampling."""
    q = case.q(())
    best = sorted(tokens.values(), key=lambda token: -q[token])
    return dict(zip(sorted(tokens), best, strict=True))


@pytest.mark.parametrize("rule", [rules.token, rules.traversal])
@pytest.mark.parametrize("name, change", [("chain", drop_unlikely), ("independent", sort_by_score)])
def test_draft_changed_after_sampling_is_refused(name, change, rule):
    assert distance(CASES[name], emitted(CASES[name], rule, change=change)[0]) > FAR


@pytest.mark.parametrize("rule", [rules.token, rules.traversal])
@pytest.mark.parametrize("name", ["chain", "without_replacement"])
def test_draft_law_other_than_the_sampled_one_is_refused(name, rule):
    def colder(q):
        return q**2 / (q**2).sum()

    assert distance(CASES[name], emitted(CASES[name], rule, sampled_from=colder)[0]) > FAR
    assert distance(CASES[name], emitted(CASES[name], rules.match, sampled_from=colder)[0]) < EXACT


@pytest.mark.parametrize("rule", [rules.token, rules.traversal])
def test_points_chosen_after_the_sampled_one_do_not_thin_its_law(rule):
    def runner_up(case, tokens):
        """The POINT child is the likeliest token but the sampled one."""
        q = case.q(()).clone()
        q[tokens[1]] = -1.0
        return {1: tokens[1], 2: int(q.argmax())}

    as_independent, as_thinned = Case((0, 0), "IP"), Case((0, 0), "WP")
    draws = partial(emitted, rule=rule, change=runner_up)
    assert distance(as_independent, draws(as_independent)[0]) < EXACT

    class Declared(Request):
        def __init__(self, tree, *args, **kwargs):
            super().__init__(tree._replace(proposals=[0, 2, 0]), *args, **kwargs)

    assert distance(as_thinned, draws(as_independent, cls=Declared)[0]) > FAR


def test_shared_noise_is_refused():
    """The draft and the residual drawn with the same exponential keys, by integrating over them."""
    p, q = (0.45, 0.35, 0.2), (0.2, 0.2, 0.6)
    rejected = [max(a - b, 0.0) for a, b in zip(p, q, strict=True)]

    def both(i, j):
        """Probability that token i wins the race of q and j != i that of the residual, on the same keys."""
        others = [k for k in range(3) if k not in (i, j)]

        def density(z):  # z = E_j / E_i
            return (1 + z + sum(max(q[k] / q[i], rejected[k] * z / rejected[j]) for k in others)) ** -2

        return quad(density, q[j] / q[i], math.inf)[0]

    def law(joint):
        out = [q[i] * ratio(p[i], q[i]) for i in range(3)]
        for i in range(3):
            for j in range(3):
                if rejected[j] > 0 and p[i] < q[i]:
                    out[j] += (1 - ratio(p[i], q[i])) * joint(i, j)
        return out

    def off(law):
        return sum(abs(a - b) for a, b in zip(law, p, strict=True)) / 2

    assert off(law(lambda i, j: q[i] * rejected[j] / sum(rejected))) < EXACT
    assert math.isclose(sum(law(both)), 1.0, abs_tol=1e-6)
    assert off(law(both)) > FAR


def scripted(rule, p, q, tokens, parents, kinds, script, trace):
    request = Request(
        Tree(tokens, parents, kinds), len(p), lambda _: (p, 0), lambda _: q, Decisions(script), 3, trace=trace
    )
    return rule(request)


def test_weight_keeps_a_mass_near_zero():
    """A padded child leaves 1.6e-16 of the root's mass, all of which is the root's own."""
    p = torch.tensor([1.0, 1.6e-16], dtype=torch.float64)
    q = torch.tensor([1.0, 0.0, 1.6e-16], dtype=torch.float64)
    args = (p, q, [-1, 2], [-1, 0], [0, 1], ())
    trace, mutated = Trace(2), Trace(2)
    assert scripted(rules.traversal, *args, trace) == (0, 1)
    assert trace.thresholds[0] == 1.0
    scripted(edited(rules.traversal, "S / (S + (1.0 - w))", "S / (S + 1.0 - w)"), *args, mutated)
    assert mutated.thresholds[0] < 0.9


def test_trace_notes_thresholds_and_masses():
    p = torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)
    q = torch.tensor([2 / 3, 1 / 3], dtype=torch.float64)
    tree = ([-1, 0, 0], [-1, 0, 1], [0, 1, 1])
    trace = Trace(3)
    scripted(rules.token, p, q, *tree, (0, 1), trace)
    assert torch.allclose(
        trace.thresholds, torch.tensor([torch.nan, 0.5, torch.nan]).double(), equal_nan=True
    )
    assert torch.allclose(trace.masses, torch.tensor([torch.nan, 1 / 3, torch.nan]).double(), equal_nan=True)
    trace = Trace(3)
    scripted(rules.traversal, p, q, *tree, (0, 1), trace)  # weights 1/2 and 1/4; [p / 2 - q]+ leaves nothing
    assert torch.allclose(trace.thresholds, torch.tensor([1.0, torch.nan, 0.25]).double(), equal_nan=True)
    assert torch.allclose(trace.masses, torch.tensor([torch.nan, 1 / 3, 0.0]).double(), equal_nan=True)


def test_outcomes_are_every_way_it_can_fall():
    case = CASES["chain"]
    tokens, _ = next(case.drafts())
    seen = list(outcomes(rules.token, partial(case.request, tokens)))
    assert math.isclose(sum(probability for *_, probability in seen), 1.0)
    assert len({output for output, *_ in seen}) == len(seen)
