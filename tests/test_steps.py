# SPDX-License-Identifier: Apache-2.0
"""Several steps with one set of seeds: the joint law of the first three tokens, for every drafter.

Noise that a drafter uses again in the next step biases no first token and no single step. It shows only in
the joint law over steps, so every drafter that the package ships goes through here, and so do the drafters
that are known to be wrong.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import torch
from gtest import LEAST_P, MUTANT_P, Model, g_test

import specdec_kernels as sdk
from specdec_kernels._ops import backends

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(backends._native()[0] is None, reason="too slow without the native core"),
]

V, K, STEPS, N = 4, 4, 3, 40_000
PROMPT = [3, 1, 0, 2, 2, 1, 3, 0, 1, 1, 2, 0]
LAW = sdk.SamplingParams(temperature=0.9)
MODEL = Model(V, seed=24)  # no cell of the joint law is rare, and wrong drafters show
VOCAB = sdk.DraftVocab(torch.tensor([2, 0, 3]), V)
INDEPENDENT = sdk.Proposal.INDEPENDENT


class Step(NamedTuple):
    """What a drafter knows."""

    texts: torch.Tensor  # [N, L]
    lengths: torch.Tensor  # [N]: the positions of the step
    seeds: torch.Tensor  # [N]
    number: int

    @property
    def keys(self):
        return dict(seeds=self.seeds, positions=self.lengths, backend="cpu")

    @property
    def last(self):
        return self.texts.gather(1, self.lengths[:, None] - 1).squeeze(1)


class Draft(NamedTuple):
    tree: sdk.DraftTree
    logits: torch.Tensor | None = None
    rows: torch.Tensor | None = None
    vocab: sdk.DraftVocab | None = None


def first_tokens(drafter, rule):
    """[V, V, V] counts of the first three tokens that a loop of three steps emits."""
    lengths = torch.full((N,), len(PROMPT))
    texts = torch.zeros((N, len(PROMPT) + STEPS * 12), dtype=torch.int64)
    texts[:, : len(PROMPT)] = torch.tensor(PROMPT)
    seeds = torch.arange(N)
    for number in range(STEPS):
        step = Step(texts, lengths, seeds, number)
        draft = drafter(step)
        nodes = draft.tree.tokens.view(N, -1).clone()
        nodes[:, 0] = step.last
        verified = sdk.verify(
            MODEL.target[nodes.clamp_min(0)],
            draft.tree,
            draft.logits,
            draft_rows=draft.rows,
            draft_vocab=draft.vocab,
            sampling=LAW,
            rule=rule,
            **step.keys,
        )
        width = verified.tokens.shape[1]
        places = lengths[:, None] + torch.arange(width)
        new = torch.arange(width) < verified.num_tokens[:, None]
        texts.scatter_(1, places, torch.where(new, verified.tokens, texts.gather(1, places)))
        lengths = lengths + verified.num_tokens
    first = texts[:, len(PROMPT) : len(PROMPT) + 3]
    return np.bincount(first @ torch.tensor([V * V, V, 1]), minlength=V**3).reshape(V, V, V)


def target_law():
    """[V, V, V]: the target's own."""
    p = MODEL.p(LAW)
    return p[PROMPT[-1]][:, None, None] * p[:V, :, None] * p[None, :V]


# Drafters of chains


def chain(draw, step, columns=slice(None), vocab=None, proposal=INDEPENDENT):
    """A chain of draws from the drafter's logits after the token before; `draw` says with what noise."""
    token, tokens, logits = step.last, [], []
    for i in range(K):
        logits.append(MODEL.draft[token][:, columns].contiguous())
        token = draw(step, logits[-1], i)
        tokens.append(token)
    tree = sdk.DraftTree.chain(torch.stack(tokens, 1), proposal=proposal)
    return Draft(tree, torch.stack(logits, 1), vocab=vocab)


def with_draft_token(step, logits, i):
    token, proposal = sdk.draft_token(logits, i, sampling=LAW, **step.keys)
    assert proposal == INDEPENDENT
    return token


def with_draft_token_unseeded(step, logits, i):
    return sdk.draft_token(logits, i, sampling=LAW, backend="cpu")[0]


def with_reduced_vocabulary(step, logits, i):
    return sdk.draft_token(logits, i, sampling=LAW, draft_vocab=VOCAB, **step.keys)[0]


def with_sample_unseeded(step, logits, i):
    return sdk.sample(logits, LAW, backend="cpu")


def with_sample_and_seeds_of_the_step(step, logits, i):
    seeds = step.seeds + ((step.number + 1) << 40)
    return sdk.sample(logits, LAW, seeds=seeds, positions=step.lengths + i, backend="cpu")


def likeliest(step):
    token, tokens = step.last, []
    for _ in range(K):
        token = MODEL.draft[token].argmax(-1)
        tokens.append(token)
    return Draft(sdk.DraftTree.chain(torch.stack(tokens, 1), proposal=sdk.Proposal.POINT))


def lookup(step):
    tokens = sdk.ngram_draft(step.texts, step.lengths, K, backend="cpu")
    return Draft(sdk.DraftTree.chain(tokens, proposal=sdk.Proposal.POINT))


# Drafters of trees


def lookup_tree(step):
    return Draft(sdk.ngram_tree(step.texts, step.lengths, 6, backend="cpu")[0])


def grown(method, step, coupled=False):
    """Trees of `sample_children`, grown by `grow_tree`."""
    levels = []

    def expand(frontier):
        width = frontier.tokens.shape[1]
        roots = step.last[:, None] if frontier.depth == 0 else frontier.tokens
        levels.append(MODEL.draft[roots.clamp_min(0)])
        depth = frontier.depth if coupled else 0
        return sdk.sample_children(
            levels[-1].flatten(0, 1),
            2,
            method=method,
            sampling=LAW,
            seeds=step.seeds.repeat_interleave(width),
            positions=(step.lengths + depth).repeat_interleave(width),
            nodes=frontier.nodes.flatten(),
            coupled=coupled,
            backend="cpu",
        )

    tree, rows, _ = sdk.grow_tree(expand, step.last, 6, max_depth=3, width=2)
    return Draft(tree, torch.cat(levels, 1).flatten(0, 1), rows)


def whole(method, step):
    """Two children of the root and two of each, all kept: `sample_children` alone."""
    tokens, logits = [step.last[:, None]], []
    for node in range(3):
        parent = torch.cat(tokens, 1)[:, node]
        logits.append(MODEL.draft[parent])
        children, kinds, _ = sdk.sample_children(
            logits[-1], 2, method=method, sampling=LAW, nodes=torch.full((N,), node), **step.keys
        )
        tokens.append(children)
    tree = sdk.DraftTree.from_parents(
        torch.cat(tokens, 1),
        torch.tensor([-1, 0, 0, 1, 1, 2, 2], dtype=torch.int32).expand(N, 7),
        proposals=torch.cat([kinds[:1], kinds.repeat(3)]).expand(N, 7),
        max_depth=2,
        check=False,
    )
    rows = torch.full((N, 7), -1, dtype=torch.int32)
    rows[:, :3] = torch.arange(3 * N).view(3, N).T
    return Draft(tree, torch.cat(logits), rows.flatten())


METHODS = ("independent", "without_replacement", "top_k", "hybrid")
RIGHT = {
    "draft_token": partial(chain, with_draft_token),
    "draft_token, unseeded": partial(chain, with_draft_token_unseeded),
    "draft_token, reduced vocabulary": partial(
        chain, with_reduced_vocabulary, columns=VOCAB.ids.tolist(), vocab=VOCAB
    ),
    "sample, unseeded": partial(chain, with_sample_unseeded),
    "sample, other seeds in every step": partial(chain, with_sample_and_seeds_of_the_step),
    "likeliest": likeliest,
    "ngram_draft": lookup,
    "ngram_tree": lookup_tree,
    **{f"sample_children, {method}": partial(whole, method) for method in METHODS},
    **{f"grow_tree, {method}": partial(grown, method) for method in METHODS},
}


# Wrong: a position that is drafted again gets the noise that an earlier step has looked at.


def wrong_sample(step, logits, i):
    return sdk.sample(logits, LAW, seeds=step.seeds, positions=step.lengths + i, backend="cpu")


def wrong_sample_of_other_seeds(step, logits, i):
    return sdk.sample(logits, LAW, seeds=step.seeds + (1 << 40), positions=step.lengths + i, backend="cpu")


def wrong_children(step, logits, i):
    tokens, _, _ = sdk.sample_children(
        logits,
        1,
        method="independent",
        sampling=LAW,
        seeds=step.seeds,
        positions=step.lengths + i,
        nodes=torch.zeros(N, dtype=torch.int64),
        backend="cpu",
    )
    return tokens.squeeze(1)


WRONG = {
    "sample, positions + i": partial(chain, wrong_sample),
    "sample, other seeds, positions + i": partial(chain, wrong_sample_of_other_seeds),
    "sample_children, positions + i, nodes = 0": partial(chain, wrong_children),
}

# The same tokens are right where no law is declared: the rule then asks nothing of how they were drawn.
RIGHT["sample, positions + i, declared POINT"] = partial(chain, wrong_sample, proposal=sdk.Proposal.POINT)


@pytest.mark.parametrize("rule", ["match", "token", "traversal"])
@pytest.mark.parametrize("drafter", RIGHT)
def test_three_steps_follow_the_target(drafter, rule):
    assert g_test(first_tokens(RIGHT[drafter], rule), target_law()) > LEAST_P


@pytest.mark.parametrize("method", METHODS)
def test_three_steps_of_coupled_drafts_follow_the_target_under_match(method):
    counts = first_tokens(partial(grown, method, coupled=True), "match")
    assert g_test(counts, target_law()) > LEAST_P


@pytest.mark.parametrize("drafter", WRONG)
def test_mutant_draft_noise_that_comes_again(drafter):
    """Under traversal, where deeper drafts decide how a step ends."""
    assert g_test(first_tokens(WRONG[drafter], "traversal"), target_law()) < MUTANT_P
