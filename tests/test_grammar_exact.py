# SPDX-License-Identifier: Apache-2.0
"""Grammars over trees: losslessness by exact enumeration of a toy grammar, and mutants that it refuses.

The masks, tokens and rows are those of `tree_bitmask`. The emitted law has to be the masked target's own.
"""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest
import torch
from exact import Case, distance, emitted
from exact_cases import CASES, EXACT, FAR, LOSSLESS, cases, rules
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_grammar import END, Toy, random_table, run

import specdec_kernels as sdk
from specdec_kernels.reference.law import allowed_tokens
from specdec_kernels.reference.request import Request, Tree
from specdec_kernels.tree import Proposal

REJECTING = [rules.token, rules.traversal]
# By the size of the vocabulary: every state refuses one token, and other states begin with other tokens.
TABLES = {3: ((1, -1, 0), (-1, 0, 1)), 4: ((1, -1, 0, END), (-1, 0, END, 1))}


@dataclasses.dataclass(frozen=True)
class Masked(Case):
    """A case under a grammar, a random one unless it is number 0. The drafter does not know the grammar."""

    grammar: int = 0

    @property
    def table(self):
        return random_table(self.grammar, self.vocab) if self.grammar else TABLES[self.vocab]

    @cache  # noqa: B019
    def p(self, prefix):
        state = self.state(prefix)
        if state is None:
            return super().p(prefix)
        if state < 0:  # nothing comes after the end of a text; what never comes has no law
            return torch.eye(self.vocab, dtype=torch.float64)[0]
        allowed = torch.tensor([after != -1 for after in self.table[state]])
        law = torch.where(allowed, super().p(prefix), 0.0)
        return law / law.sum()

    def change(self, masks: sdk.TreeBitmask, tokens: dict[int, int]) -> list[int]:
        """The tokens that are verified, of nodes 1, 2, ..."""
        return masks.tokens.tolist()[1:]

    @cache  # noqa: B019
    def masks(self, tokens: tuple[int, ...]) -> sdk.TreeBitmask:
        kinds = torch.tensor([0, *map(self.kind, range(1, len(tokens) + 1))], dtype=torch.uint8)
        tree = sdk.DraftTree.from_parents(
            torch.tensor([[-1, *tokens]]), torch.tensor([[-1, *self.parents]]).int(), proposals=kinds[None]
        )
        return sdk.tree_bitmask([self.matcher()], tree, self.vocab)

    def matcher(self):
        return Toy(self.table)

    def state(self, prefix):
        """Of the grammar; None where it does not hold yet."""
        return run(self.table, prefix)

    def request(self, tokens, noise, trace=None, cls=Request, bonus=None):
        drafted = tuple(tokens.get(node, -1) for node in range(1, len(self.parents) + 1))
        masks = self.masks(drafted)

        def target(node):
            allowed = allowed_tokens(masks.bitmask[node], self.vocab)
            assert allowed.any()
            prefix = tuple(drafted[above - 1] for above in self.above(node))
            law = torch.where(allowed, Case.p(self, prefix), 0.0)
            return law / law.sum(), 0

        plain = super().request(tokens, noise, trace, cls, bonus)
        tree = Tree([-1, *self.change(masks, tokens)], *plain.tree[1:])
        return cls(
            tree,
            self.vocab,
            has_row=lambda node: int(masks.target_rows[node]) >= 0,
            target=target,
            draft=plain.draft,
            noise=noise,
            max_depth=self.depth,
            trace=trace,
        )


def masked(case: Case, grammar: int = 0, cls: type[Masked] = Masked) -> Masked:
    fields = {field.name: getattr(case, field.name) for field in dataclasses.fields(case)}
    return cls(**fields, grammar=grammar)


NAMES = [  # chains, siblings of every kind, bushy and deep trees, drafts beyond the vocabulary, links
    "chain_mixed",
    "chain_point",
    "independent",
    "without_replacement",
    "hybrid_sampled_first",
    "hybrid_sampled_between",
    "all_kinds_before_point",
    "bushy_mixed",
    "bushy_point",
    "deep",
    "deep_without_replacement",
    "zeros_without_replacement",
    "padded_hybrid",
    "padded_independent",
    "skipped_inside",
    "no_row_below",
    "links_hybrid",
]


@pytest.mark.parametrize("rule", LOSSLESS)
@pytest.mark.parametrize("name", NAMES)
def test_the_law_is_the_masked_targets(name, rule):
    case = masked(CASES[name])
    law, _ = emitted(case, rule)
    assert abs(sum(law.values()) - 1) < EXACT
    assert distance(case, law) < EXACT
    assert all(run(case.table, output) != -1 for output in law)


@given(cases(), st.integers(1, 20), st.sampled_from(LOSSLESS))
@settings(max_examples=30)
def test_the_law_of_any_tree_under_any_grammar(case, grammar, rule):
    case = masked(dataclasses.replace(case, zeros=False), grammar)  # no row without a possible token
    assert distance(case, emitted(case, rule)[0]) < EXACT


class Reasoning(Masked):
    """The grammar begins after token 1."""

    def matcher(self):
        return sdk.AfterToken(Toy(self.table), 1)

    def state(self, prefix):
        return run(self.table, prefix[prefix.index(1) + 1 :]) if 1 in prefix else None


@pytest.mark.parametrize("rule", LOSSLESS)
@pytest.mark.parametrize("name", ["chain_mixed", "bushy_mixed", "deep_without_replacement"])
def test_a_grammar_that_begins_inside_a_draft(name, rule):
    case = masked(CASES[name], cls=Reasoning)
    assert distance(case, emitted(case, rule)[0]) < EXACT


# Mutants


class Drops(Masked):
    """A refused sampled child without its token."""

    new = -1

    def change(self, masks, tokens):
        return [self.new if self.spoils(node, masks) else token for node, token in tokens.items()]

    def spoils(self, node, masks):
        return self.refused(node, masks) and self.kind(node) != Proposal.POINT

    def refused(self, node, masks):
        """By its parent's mask, whose row is read."""
        parent, token = self.parents[node - 1], int(masks.tokens[node])
        if int(masks.target_rows[parent]) < 0 or not 0 <= token < self.vocab:
            return False
        return not allowed_tokens(masks.bitmask[parent], self.vocab)[token]


class Replaces(Drops):
    """A refused sampled child with a token that is in no vocabulary."""

    new = 99


class DropsPoints(Drops):
    """A refused POINT child without its token, whatever its siblings are."""

    def spoils(self, node, masks):
        return self.refused(node, masks) and self.kind(node) == Proposal.POINT


class Unmasked(Masked):
    """A mask of the root alone, for every node."""

    @cache  # noqa: B019
    def masks(self, tokens):
        masks = super().masks(tokens)
        masks.bitmask[:] = masks.bitmask[0].clone()
        return masks


def far(case: Case, mutant: type[Masked], rule) -> float:
    case = masked(case, cls=mutant)
    return distance(case, emitted(case, rule)[0])


INDEPENDENT = Case((0, 0), "II", vocab=4, seed=1)
WITHOUT_REPLACEMENT = Case((0, 0), "WW", vocab=4, seed=1)


@pytest.mark.parametrize("rule", REJECTING)
@pytest.mark.parametrize(
    ["case", "mutant"],
    [
        (CASES["chain_mixed"], Drops),
        (INDEPENDENT, Drops),
        (WITHOUT_REPLACEMENT, Drops),
        (CASES["deep"], Drops),
        (WITHOUT_REPLACEMENT, Replaces),
        (CASES["hybrid_sampled_between"], DropsPoints),
        (CASES["bushy_mixed"], Unmasked),
    ],
)
def test_other_readings_of_a_refusal_are_refused(case, mutant, rule):
    assert far(case, mutant, rule) > FAR


def test_a_refused_sampled_child_without_a_token_is_biased():
    """The figures of docs/serving.md."""
    found = [far(case, Drops, rules.token) for case in (INDEPENDENT, WITHOUT_REPLACEMENT)]
    assert found == pytest.approx([0.118, 0.185], abs=5e-4)
