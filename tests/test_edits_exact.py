# SPDX-License-Identifier: Apache-2.0
"""The emitted law with edits equals plain decoding with the same processors: by enumeration, and mutants."""

from __future__ import annotations

import importlib
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from unittest import mock

import pytest
import torch
from edit_cases import biased, counts_of, openai, repeated, with_min_length, without_bad_words
from exact import Case, Decisions, distance

import specdec_kernels as sdk
from specdec_kernels import _ops as ops
from specdec_kernels.reference.edits import Edits

verification = importlib.import_module("specdec_kernels.reference.verification")
PROMPT, OUTPUT = [0, 0], [2]
EXACT, FAR = 1e-12, 1e-3
LOSSLESS = ("match", "token", "traversal")


def repetition(case, scores, prefix):
    return repeated(scores, [*PROMPT, *OUTPUT, *prefix], 1.7)


def frequency_and_presence(case, scores, prefix):
    return openai(scores, [*OUTPUT, *prefix], 0.6, 0.4)


def with_the_prompt(case, scores, prefix):
    return openai(scores, [*PROMPT, *OUTPUT, *prefix], -0.3, 0.5)


def penalties_bias_and_bans(case, scores, prefix):
    text = [*PROMPT, *OUTPUT, *prefix]
    scores = openai(repeated(scores, text, 0.6), text[len(PROMPT) :], 0.25, 0.3)
    return with_min_length(biased(scores, text, {0: 0.75, 2: -0.5}), text, len(PROMPT) + len(OUTPUT), 2, [1])


def bad_words(case, scores, prefix):
    return without_bad_words(scores, [*PROMPT, *OUTPUT, *prefix], [[0, 1], [2, 0], [1, 1]])


def forced(case, scores, prefix):
    if len(prefix) != 1:
        return scores
    return torch.full_like(scores, -torch.inf).index_fill(0, torch.tensor([1]), 0.0)


EDITS = {
    repetition: dict(repetition_penalty=1.7),
    frequency_and_presence: dict(frequency_penalty=0.6, presence_penalty=0.4),
    with_the_prompt: dict(frequency_penalty=-0.3, presence_penalty=0.5, penalize_prompt=True),
    penalties_bias_and_bans: dict(
        repetition_penalty=0.6,
        frequency_penalty=torch.tensor([0.25], dtype=torch.float64),
        presence_penalty=0.3,
        bias_tokens=torch.tensor([[2, -1, 0, 0]]),
        bias_values=torch.tensor([[-0.5, 9.0, 0.5, 0.25]]),
        banned_tokens=torch.tensor([[1]]),
        banned_until=torch.tensor([2], dtype=torch.int32),
    ),
    bad_words: dict(bad_words=torch.tensor([[[-1, 0, 1], [-1, 2, 0], [-1, 1, 1]]])),
    forced: dict(forced_tokens=torch.tensor([[-1, 1]])),
}


@dataclass(frozen=True)
class Edited(Case):
    """`p` is the law of plain decoding with `processors`."""

    processors: object = None

    @cache  # noqa: B019
    def p(self, prefix):
        return self.processors(self, self.scores(prefix), prefix).softmax(-1)

    def scores(self, prefix):
        return Case.p(self, prefix).log()

    def call(self, tokens, rule):
        """What `verify` hands to a backend for one draft."""
        count = len(self.parents) + 1
        prefixes = [tuple(tokens.get(n, -1) for n in self.above(node)) for node in range(count)]
        tree = sdk.DraftTree.from_parents(
            torch.tensor([[-1, *(tokens.get(node, -1) for node in range(1, count))]]),
            torch.tensor([[-1, *self.parents]]),
            proposals=torch.tensor([[0, *(self.kind(node) for node in range(1, count))]]),
            max_depth=self.depth,
        )
        counts = counts_of([PROMPT], [OUTPUT], self.vocab, recent=2)
        with mock.patch.object(ops, "verify") as caught:
            sdk.verify(
                torch.stack([self.scores(prefix) for prefix in prefixes]),
                tree,
                torch.stack([self.q(prefix) for prefix in prefixes]),
                draft_sampling="probs",
                rule=rule,
                edits=sdk.LogitEdits(counts, **EDITS[self.processors]),
            )
        return caught.call_args.args[0]

    def emitted(self, rule):
        """The law of the emitted tokens under the reference."""
        law = defaultdict(float)
        for tokens, chance in self.drafts():
            call, scripts = self.call(tokens, rule), [()]
            while scripts:
                noise = Decisions(scripts.pop())
                verification.verify(call, noise=lambda seed, position, noise=noise: noise)
                scripts += noise.others
                count = int(call.out_num_tokens)
                law[tuple(call.out_tokens[0, :count].tolist())] += chance * noise.probability
        return law


SHAPES = {
    "chain": dict(parents=(0, 1), kinds="II"),
    "tree": dict(parents=(0, 0, 1, 2), kinds="WWPP"),
    "repeated": dict(parents=(0, 0, 1, 3), kinds="PIPI", duplicates=True),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rule", LOSSLESS)
@pytest.mark.parametrize("processors", EDITS, ids=lambda f: f.__name__)
def test_the_law_is_that_of_plain_decoding(processors, rule, shape):
    case = Edited(**SHAPES[shape], processors=processors)
    assert distance(case, case.emitted(rule)) < EXACT


def no_path(tokens, parents, node):
    return []


def all_drafted(tokens, parents, node):
    """Every node counts what the whole tree holds."""
    return [token for token in tokens[1:] if token >= 0]


def penalized_twice(self, row, path):
    """The penalty for prompt and output, and once more for the path."""
    row, prompt, output = PENALIZED(self, row, []), self.prompt, self.output
    self.prompt, self.output = prompt * 0, output * 0
    row = PENALIZED(self, row, path)
    self.prompt, self.output = prompt, output
    return row


PENALIZED = Edits._penalized
MUTANTS = {
    "no_path": (verification, "tokens_to", no_path),
    "all_drafted": (verification, "tokens_to", all_drafted),
    "twice": (Edits, "_penalized", penalized_twice),
}


@pytest.mark.parametrize("rule", LOSSLESS)
@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_fail(mutant, rule):
    with mock.patch.object(*MUTANTS[mutant]):
        case = Edited(**SHAPES["repeated"], processors=repetition)
        assert distance(case, case.emitted(rule)) > FAR
