# SPDX-License-Identifier: Apache-2.0
"""The ways of decoding that are compared: plain decoding, the drafters, and other rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import specdec_kernels as sdk

from .drafters.budget import Drafter, LearnedBudget, SharedBudget, no_drafts
from .drafters.lookup import SuffixLookup, TreeLookup
from .drafters.ngrams import NgramLookup, Ngrams
from .engine import Draft

PLAIN = "plain"
DRAFTERS = ("chain", "tree", "learned")
RULES = ("token", "traversal")  # they keep the law of the text, and not the text
MAX_NODES = 20  # of a tree: from 22 rows of this model on, torch wakes threads for every sum and product


class Way(NamedTuple):
    """What drafts for all requests, and the rule that judges."""

    draft: Draft
    rule: str = "match"
    observe: Callable[[int, float], object] | None = None  # learns what steps cost

    @classmethod
    def of(cls, drafter: Drafter, curve: sdk.CostCurve, rule: str = "match") -> Way:
        """A drafter with as many nodes as are expected to pay; the curve learns from its steps."""
        draft = LearnedBudget(drafter, curve)
        return cls(draft, rule, draft.observe)


def drafters(table: Ngrams) -> dict[str, TreeLookup | NgramLookup]:
    """Lookup of one continuation, of several, and these with a table of what the model tends to write."""
    found = (
        TreeLookup(MAX_NODES, branches=1),
        TreeLookup(MAX_NODES),
        NgramLookup(table, TreeLookup(MAX_NODES)),
    )
    return dict(zip(DRAFTERS, found, strict=True))


def ways(table: Ngrams, curve: sdk.CostCurve) -> dict[str, Way]:
    """Plain decoding, and drafters, each with as many nodes as are expected to pay, the last one also under
    the other rules. They serve one batch after the other."""
    found = drafters(table)
    last = found[DRAFTERS[-1]]
    return (
        {PLAIN: Way(no_drafts)}
        | {name: Way.of(drafter, curve) for name, drafter in found.items()}
        | {rule: Way.of(last, curve, rule) for rule in RULES}
    )


def trace_ways(table: Ngrams, costs: Mapping[int, float]) -> dict[str, Way]:
    """Plain decoding, lookup in a request's own text, and in the texts of all requests of a trace, each also
    with the table. Kept from one request to the next."""
    lookup = drafters(table)
    own, suffix = (SuffixLookup(sdk.SuffixIndex(), MAX_NODES) for _ in range(2))
    found = {
        "tree": lookup["tree"],
        "suffix": own,
        "learned": lookup["learned"],
        "suffix, learned": NgramLookup(table, suffix),
    }
    return {PLAIN: Way(no_drafts)} | {
        name: Way(SharedBudget(drafter, costs)) for name, drafter in found.items()
    }
