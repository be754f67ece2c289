# SPDX-License-Identifier: Apache-2.0
"""Nodes without a row of the target, and bonus tokens: losslessness by exact enumeration, and mutants."""

from __future__ import annotations

import dataclasses

import pytest
from exact import Case, distance, emitted
from exact_cases import BUSHY, CASES, DEEP, EXACT, FAR, LOSSLESS, LOSSY, cases, rules
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec_kernels.reference.request import Request

REJECTING = [rules.token, rules.traversal]


@pytest.mark.parametrize("rule", LOSSLESS)
@pytest.mark.parametrize("name", CASES)
def test_every_choice_of_rows_is_lossless(name, rule):
    """Each node in turn, the leaves, and all nodes but the root."""
    case = CASES[name]
    nodes = range(1, len(case.parents) + 1)
    leaves = tuple(node for node in nodes if node not in case.parents)
    for rowless in {*((node,) for node in nodes), leaves, tuple(nodes)}:
        law, _ = emitted(dataclasses.replace(case, rowless=rowless), rule)
        assert distance(case, law) < EXACT, rowless


@given(cases(), st.sets(st.integers(1, 5), max_size=3), st.sampled_from(LOSSLESS))
@settings(max_examples=60)
def test_rows_of_any_tree_are_lossless(case, rowless, rule):
    law, _ = emitted(dataclasses.replace(case, rowless=tuple(rowless)), rule)
    assert distance(case, law) < EXACT


class LooksAbove(Case):
    """No row for a node, nor below it, where its token, or one of a node that is not below it, is even."""

    def without_rows(self, tokens):
        nodes = range(1, len(self.parents) + 1)
        even = {node for node in nodes if tokens[node] % 2 == 0}
        if tokens[len(self.parents)] == 1:  # the last node is below nobody but its own ancestors
            even |= {1} - set(self.above(len(self.parents)))
        return tuple(node for node in nodes if even & set(self.above(node)))


class LooksBelow(Case):
    """No row for a node with an even token below it."""

    def without_rows(self, tokens):
        nodes = range(1, len(self.parents) + 1)
        even = [node for node in nodes if tokens[node] % 2 == 0]
        return tuple({above for node in even for above in self.above(node)[:-1]})


SHAPES = {
    "chain": ((0, 1, 2), "III"),
    "independent": ((0, 0, 0), "III"),
    "without_replacement": ((0, 0, 0, 1), "WWWI"),
    "bushy": (BUSHY, "WPIWI"),
    "deep": (DEEP, "IWPI"),
}


@pytest.mark.parametrize("rule", LOSSLESS)
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_may_be_chosen_after_a_look_at_tokens_that_are_not_below(shape, rule):
    case = LooksAbove(*SHAPES[shape])
    assert distance(case, emitted(case, rule)[0]) < EXACT


@pytest.mark.parametrize("rule", REJECTING)
@pytest.mark.parametrize("shape", ["chain", "deep"])
def test_rows_may_not_be_chosen_after_a_look_below(shape, rule):
    case = LooksBelow(*SHAPES[shape])
    assert distance(case, emitted(case, rule)[0]) > FAR
    assert distance(case, emitted(case, rules.match)[0]) < EXACT


def test_a_node_without_a_row_is_not_kept():
    case = dataclasses.replace(CASES["chain"], rowless=(2,))
    for rule in [*LOSSLESS, *LOSSY.values()]:
        law, accepted = emitted(case, rule)
        assert max(map(len, law)) == 2 and 0 < accepted < 1, rule


@pytest.mark.parametrize("rule", LOSSLESS)
def test_a_bonus_token_is_lossless(rule):
    for chain in ("III", "WWW", "PPP", "IPW"):
        for rowless in ((), (3,)):
            case = Case((0, 1, 2), chain, bonus=True, rowless=rowless)
            law, _ = emitted(case, rule)
            assert distance(case, law) < EXACT
            whole, accepted = emitted(Case((0, 1, 2), chain), rule)
            assert abs(accepted - emitted(case, rule)[1]) < EXACT
            assert all(abs(law[output] - whole[output]) < EXACT for output in {*law, *whole})


@pytest.mark.parametrize("rule", LOSSLESS)
@pytest.mark.parametrize("rowless", [(), (1,), (1, 3)])
def test_a_bonus_token_follows_a_padded_chain_without_a_row(rule, rowless):
    """The chain ends at node 1; where that has a row, the next token is drawn from it."""
    case = Case((0, 1, 2), "III", skip=(2, 3), bonus=True, rowless=rowless)
    law, accepted = emitted(case, rule)
    assert distance(case, law) < EXACT and accepted > 0


# Mutants


class AlwaysRejects(Request):
    """A node without a row rejected whatever its coin says."""

    def accepts(self, node, p, q=1.0):
        return super().accepts(node, p, q) and self.has_row(node)


class Skips(Request):
    """A node without a row left out, as one without a token."""

    def children(self, node):
        return [child for child in super().children(node) if self.has_row(child)]


class Redraws(Request):
    """The next token drawn from what its rejected siblings left, not the accepted one."""

    def end(self, node, P=None):
        if self.has_row(node):
            return super().end(node, P)
        parent = self.tree.parents[node]
        return super().end(parent, None)


@pytest.mark.parametrize("rule", REJECTING)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cls", [AlwaysRejects, Skips, Redraws])
def test_other_readings_of_missing_rows_are_refused(cls, shape, rule):
    case = LooksAbove(*SHAPES[shape])
    assert distance(case, emitted(case, rule, cls=cls)[0]) > FAR


def test_skipping_is_right_only_without_a_look():
    fixed, looked = Case((0, 1, 2), "III", rowless=(2,)), LooksAbove((0, 1, 2), "III")
    for rule in REJECTING:
        assert distance(fixed, emitted(fixed, rule, cls=Skips)[0]) < EXACT
        assert distance(looked, emitted(looked, rule, cls=Skips)[0]) > FAR
        assert distance(fixed, emitted(fixed, rule, cls=AlwaysRejects)[0]) > FAR


class BonusAnywhere(Request):
    """The bonus token after any last kept node."""

    def bonus(self, node):
        return self._bonus


class BonusFromAbove(Case):
    """The bonus token drawn from the row above the last one."""

    def bonuses(self, tokens):
        yield from enumerate(self.p(tuple(tokens[node] for node in range(1, len(self.parents)))).tolist())


@pytest.mark.parametrize("rule", REJECTING)
def test_misplaced_bonus_tokens_are_refused(rule):
    case = Case((0, 1, 2), "III", bonus=True, rowless=(3,))
    assert distance(case, emitted(case, rule, cls=BonusAnywhere)[0]) > FAR
    case = BonusFromAbove((0, 1, 2), "III", bonus=True)
    assert distance(case, emitted(case, rule)[0]) > FAR


class BonusWithRows(Request):
    """The bonus token after a padded chain whose end has a row, though it was drawn after other tokens."""

    def bonus(self, node):
        last = node + 1 == len(self.tree.tokens) or self.tree.tokens[node + 1] < 0
        return self._bonus if last else None


class PlaceholderBonus(Case):
    """The bonus token drawn at the last node, though a placeholder before it ends the chain."""

    def bonuses(self, tokens):
        yield from enumerate(self.p((*(max(tokens[node], 0) for node in range(1, 4)),)).tolist())


@pytest.mark.parametrize("rule", LOSSLESS)
def test_a_placeholder_before_the_last_node_keeps_its_row(rule):
    case = PlaceholderBonus((0, 1, 2), "III", skip=(3,), bonus=True, rowless=(3,))
    assert distance(case, emitted(case, rule)[0]) < EXACT
    assert distance(case, emitted(case, rule, cls=BonusWithRows)[0]) > FAR
