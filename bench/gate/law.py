# SPDX-License-Identifier: Apache-2.0
"""G-tests of a million draws against the exact law of the target."""

from __future__ import annotations

import numpy as np
import torch

import specdec_kernels as sdk

from .parts import Gate

TREES = {
    "chain": ([-1, 0, 1, 2], sdk.Proposal.INDEPENDENT, {}),
    "without replacement": ([-1, 0, 0, 0, 1, 1, 2], sdk.Proposal.WITHOUT_REPLACEMENT, {}),
    "point": ([-1, 0, 0, 1, 1, 2], sdk.Proposal.POINT, {1: 0, 2: 1, 3: 0, 4: 1, 5: 2}),
}
LAWS = {
    "no cuts": sdk.SamplingParams(0.9),
    "every cut": sdk.SamplingParams(1.1, top_k=5, top_p=0.93, min_p=0.02),
}


def run(gate: Gate) -> None:
    groups = [(tree, rule, law) for law in LAWS for rule in ("token", "traversal", "match") for tree in TREES]
    gate.each(check, [("point", "match", "no cuts")] if gate.dry else groups)
    if not gate.dry:
        gate.each(check_sample, list(LAWS))


def check(gate: Gate, group: tuple[str, str, str]) -> None:
    """First tokens, and first pairs, the second drawn from the target where a step emits one."""
    from gtest import Model, choose, draft_tree, rows_of

    tree, rule, law = group
    parents, kind, points = TREES[tree]
    kinds, sampling, model = [kind] * len(parents), LAWS[law], Model(7, seed=3)
    count, chunks = (63, 1) if gate.dry else (100_000, 10)
    p, generator = torch.from_numpy(model.p(sampling)), torch.Generator().manual_seed(5)
    pairs = np.zeros(model.vocab**2)
    for chunk in range(chunks):
        tokens = draft_tree(model.q(sampling), parents, kinds, points, count, generator)
        drafted = sdk.DraftTree.from_parents(
            tokens, torch.tensor(parents).int().expand(count, -1), proposals=kind, max_depth=3, check=False
        )
        arguments = dict(
            target_logits=rows_of(model.target, tokens).flatten(0, 1),
            tree=drafted,
            draft_logits=rows_of(model.draft, tokens).flatten(0, 1),
            seeds=torch.arange(count) + chunk * count,
            positions=torch.full((count,), 11),
        )
        options = dict(sampling=sampling, rule=rule, backend="triton")
        verified = sdk.verify(**gate.device.put(arguments), **options)
        out = verified.tokens.cpu()
        second = torch.where(verified.num_tokens.cpu() > 1, out[:, 1], choose(p[out[:, 0]], generator))
        pairs += np.bincount(out[:, 0] * model.vocab + second, minlength=model.vocab**2)
    p = p.numpy()
    _judge(gate, f"verify, {rule}, {tree}, {law}", pairs, p[-1][:, None] * p[:-1])


def check_sample(gate: Gate, law: str) -> None:
    from gtest import Model

    model, count = Model(7, seed=3), 1_000_000
    rows = model.target[torch.zeros(count, dtype=torch.int64)]
    keys = dict(seeds=torch.arange(count), positions=torch.zeros(count, dtype=torch.int64))
    tokens = sdk.sample(*gate.device.put((rows, LAWS[law])), **gate.device.put(keys), backend="triton")
    seen = np.bincount(tokens.cpu(), minlength=model.vocab)
    _judge(gate, f"sample, {law}", seen, model.p(LAWS[law])[0])


def _judge(gate: Gate, name: str, counts: np.ndarray, law: np.ndarray) -> None:
    from gtest import LEAST_P, g_test

    value = g_test(counts, law)
    gate.record.check(name, value > LEAST_P, f"{int(counts.sum())} draws, p-value {value:.3g}")
