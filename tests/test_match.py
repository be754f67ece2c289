# SPDX-License-Identifier: Apache-2.0
"""Rule `match` emits exactly what `sample` emits one token at a time, whatever was drafted."""

from __future__ import annotations

import pytest
import torch
from each import BACKENDS

import specdec_kernels as sdk

VOCAB, LENGTH = 23, 40
TABLE = torch.randn(VOCAB + 1, VOCAB, generator=torch.Generator().manual_seed(2)) * 2


def rows(tokens):
    return TABLE[tokens.clamp(0, VOCAB - 1)]


def plain(seed, sampling, backend, length=LENGTH):
    out, last = [], torch.tensor([0])
    for position in range(length):
        last = sdk.sample(
            rows(last),
            sampling,
            seeds=torch.tensor([seed]),
            positions=torch.tensor([position]),
            backend=backend,
        )
        out.append(int(last))
    return out


def honest(truth, at, g):
    return truth[at : at + 4]


def adversarial(truth, at, g):
    """Right, then wrong, then right again; wrong at once; out of range."""
    wrong = [(t + 1) % VOCAB for t in truth[at : at + 4]]
    kinds = (
        [*truth[at : at + 2], *wrong[2:]],
        wrong,
        [VOCAB + 3, *truth[at : at + 3]],
        [-1, *truth[at + 1 : at + 4]],
    )
    return kinds[int(torch.randint(4, (1,), generator=g))]


def guessing(truth, at, g):
    return torch.randint(VOCAB, (4,), generator=g).tolist()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("drafter", [honest, adversarial, guessing])
@pytest.mark.parametrize(
    "sampling",
    [sdk.SamplingParams(), sdk.SamplingParams(0.7, 9, 0.9, 0.02), sdk.SamplingParams(temperature=0.0)],
)
def test_sequences_equal_plain_sampling(drafter, sampling, backend):
    length = 12 if backend == "triton" else LENGTH  # emulated, where there is no GPU
    for seed in range({"triton": 1, "reference": 3, "cpu": 20}[backend]):
        g = torch.Generator().manual_seed(seed)
        truth = plain(seed, sampling, backend, length)
        out, steps = [], 0
        while len(out) < length:
            tokens = torch.tensor([(drafter(truth, len(out), g) + [-1] * 4)[:4]])
            before = torch.cat([torch.tensor([out[-1] if out else 0]), tokens[0]])
            verified = sdk.verify(
                rows(before),
                sdk.DraftTree.chain(tokens),
                sampling=sampling,
                rule="match",
                backend=backend,
                seeds=torch.tensor([seed]),
                positions=torch.tensor([len(out)]),
            )
            out += verified.tokens[0, : verified.num_tokens.item()].tolist()
            steps += 1
        assert out[:length] == truth
        assert drafter is not honest or steps <= length // 5 + 1


def test_trees_follow_the_branch_that_matches():
    g = torch.Generator().manual_seed(0)
    paths = [(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (2, 0), (2, 0, 0)]
    for seed in range(30):
        truth = plain(seed, sdk.SamplingParams(), "cpu")
        tokens = torch.randint(VOCAB, (1, 9), generator=g)
        tokens[0, 3], tokens[0, 7], tokens[0, 8] = (
            truth[0],
            truth[1],
            truth[2],
        )  # the branch (2,), (2, 0), (2, 0, 0)
        tokens[0, 1], tokens[0, 2] = (truth[0] + 1) % VOCAB, (truth[0] + 2) % VOCAB
        tokens[0, 0] = 0
        verified = sdk.verify(
            rows(tokens[0]),
            sdk.DraftTree.from_paths(tokens, paths),
            rule="match",
            seeds=torch.tensor([seed]),
            positions=torch.tensor([0]),
        )
        assert verified.tokens[0].tolist() == truth[:4] and verified.path[0].tolist() == [0, 3, 7, 8]
