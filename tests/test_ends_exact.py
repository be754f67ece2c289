# SPDX-License-Identifier: Apache-2.0
"""Stop tokens and limits: losslessness by exact enumeration, nothing beyond an end, and mutants."""

from __future__ import annotations

import dataclasses

import pytest
from exact import Case, distance, emitted
from exact_cases import BUSHY, CASES, DEEP, EXACT, FAR, LOSSLESS, LOSSY, cases, rules
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec_kernels.reference.request import Request

REJECTING = [rules.token, rules.traversal]
ENDS = [dict(stops=frozenset({1})), dict(stops=frozenset({0, 2})), dict(limit=1), dict(limit=2)]
BOTH = dict(stops=frozenset({1, 7}), limit=2)


def beyond(case, law):
    """The probability of outputs that go on behind an end."""
    ends = lambda output: any(token in case.stops for token in output[:-1]) or len(output) > case.limit  # noqa: E731
    return sum(chance for output, chance in law.items() if ends(output))


@pytest.mark.parametrize("rule", LOSSLESS)
@pytest.mark.parametrize("name", CASES)
def test_stops_and_limits_inside_trees_are_lossless(name, rule):
    """The emitted tokens, completed by the target, have the target's law, and none is behind an end."""
    for ends in (*ENDS, BOTH):
        case = dataclasses.replace(CASES[name], **ends)
        law, _ = emitted(case, rule)
        assert distance(case, law) < EXACT and beyond(case, law) == 0, ends


@given(cases(), st.sets(st.integers(0, 4), max_size=2), st.integers(1, 4), st.sampled_from(LOSSLESS))
@settings(max_examples=40)
def test_ends_in_any_tree_are_lossless(case, stops, limit, rule):
    case = dataclasses.replace(case, stops=frozenset(stops), limit=limit)
    law, _ = emitted(case, rule)
    assert distance(case, law) < EXACT and beyond(case, law) == 0


@pytest.mark.parametrize("rule", [rules.match, rules.token])
@pytest.mark.parametrize(
    "name", ["chain", "bushy_mixed", "hybrid_sampled_first", "zeros_without_replacement"]
)
def test_the_law_is_that_of_the_uncut_answer_cut(name, rule):
    """As `match` and `token` decide from the root down. Under `traversal` only the law of the text holds."""
    for ends in (*ENDS, BOTH):
        case = dataclasses.replace(CASES[name], **ends)
        cut = {}
        for output, chance in emitted(CASES[name], rule)[0].items():
            some = [i + 1 for i, token in enumerate(output) if token in case.stops or i + 1 >= case.limit]
            output = output[: some[0] if some else None]
            cut[output] = cut.get(output, 0.0) + chance
        law, _ = emitted(case, rule)
        assert all(abs(law.get(output, 0.0) - cut.get(output, 0.0)) < EXACT for output in {*law, *cut}), ends


@pytest.mark.parametrize("rule", LOSSLESS)
@pytest.mark.parametrize("ends", [*ENDS, BOTH])
def test_no_bonus_token_follows_an_end(ends, rule):
    for rowless in ((), (3,)):
        case = Case((0, 1, 2), "III", bonus=True, rowless=rowless, **ends)
        law, _ = emitted(case, rule)
        assert distance(case, law) < EXACT and beyond(case, law) == 0


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_rules_take_drafted_stops_and_emit_nothing_behind(name):
    taken = 0.0
    for seed in range(6):
        chain = dataclasses.replace(CASES["chain_point"], seed=seed)  # of tokens 0
        case = dataclasses.replace(chain, stops=frozenset({0}))
        law, accepted = emitted(case, LOSSY[name])
        first = sum(chance for output, chance in emitted(chain, LOSSY[name])[0].items() if len(output) > 1)
        assert beyond(case, law) == accepted == 0 and law.get((0,), 0.0) >= first - EXACT
        taken += first
    assert taken > 0.5


# Mutants


class BonusBehind(Request):
    """The walk as it was, and the bonus token behind a stop."""

    def bonus(self, node):
        return self._bonus if node + 1 == len(self.tree.tokens) else None


class CutAfterwards(Request):
    """The stop looked for after the walk: the path is cut there, and the token drawn at its end is kept."""

    def ends(self, node):
        return False

    def end(self, node, P=None):
        node, token = super().end(node, P)
        path = self.path(node)
        ended = [i for i, v in enumerate(path) if i and super(CutAfterwards, self).ends(v)]
        return (path[ended[0] - 1], token) if ended else (node, token)


class GoesOn(Request):
    """Nodes below an end are reached."""

    def children(self, node):
        stays, self.ends = self.ends, lambda node: False
        children = super().children(node)
        self.ends = stays
        return children


class Skips(Request):
    """A node that ends the request left out, as one without a token."""

    def children(self, node):
        return [child for child in super().children(node) if not self.ends(child)]


class NeverAccepts(Request):
    """A node that ends the request rejected whatever its coin says."""

    def accepts(self, node, p, q=1.0):
        return super().accepts(node, p, q) and not self.ends(node)


class Redraws(Request):
    """The token that ends the request drawn again."""

    def end(self, node, P=None):
        return super().end(self.tree.parents[node] if self.ends(node) else node, None)


SHAPES = {
    "chain": Case((0, 1, 2), "III"),
    "siblings": Case((0, 0, 0, 1), "WWWI"),
    "bushy": Case(BUSHY, "WPIWI"),
    "deep": Case(DEEP, "IWPI"),
}


@pytest.mark.parametrize("rule", REJECTING)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cls", [CutAfterwards, Skips, NeverAccepts, Redraws])
def test_other_readings_of_ends_change_the_law(cls, shape, rule):
    case = dataclasses.replace(SHAPES[shape], stops=frozenset({1}))
    assert distance(case, emitted(case, rule, cls=cls)[0]) > FAR


@pytest.mark.parametrize("rule", REJECTING)
def test_going_on_behind_an_end_is_refused(rule):
    for shape in ("chain", "bushy"):
        case = dataclasses.replace(SHAPES[shape], stops=frozenset({1}))
        assert beyond(case, emitted(case, rule, cls=GoesOn)[0]) > FAR
    case = Case((0, 1, 2), "III", bonus=True, stops=frozenset({1}))
    assert beyond(case, emitted(case, rule, cls=BonusBehind)[0]) > FAR
