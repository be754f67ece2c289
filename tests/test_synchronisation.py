# SPDX-License-Identifier: Apache-2.0
"""Operations on the triton backend never make the host wait, and their launches do not depend on data: what
capturing them in a CUDA graph takes."""

from __future__ import annotations

import pytest
import torch
from each import BACKENDS, DEVICE
from synchronisation import Synchronises, no_synchronisation

import specdec_kernels as sdk
from bench.paging import block_tables

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("triton" not in BACKENDS or DEVICE != "cpu", reason="needs the emulator"),
]


def problem(seed):
    """Trees of 3 requests with one shape whatever the seed, and their caches and states."""
    g = torch.Generator().manual_seed(seed)
    parents = torch.tensor([[-1, 0, 0, 2, 3]] * 3)
    tree = sdk.DraftTree.from_parents(torch.randint(0, 9, (3, 5), generator=g), parents)
    path = torch.tensor([[0, 2, 3, 4], [0, 1, -1, -1], [-1, -1, -1, -1]])[torch.randperm(3, generator=g)]
    caches = [torch.randn(12, 4, 2, 8, generator=g), torch.randn(12, 4, 2, 8, generator=g).bfloat16()]
    return g, tree, path.int(), caches


def commit_kv(seed, planned=True, fresh=False):
    g, tree, path, caches = problem(seed)
    rest = (path, tree, block_tables(g, 3, 4, 12), torch.randint(0, 9, (3,), generator=g).int())
    given = sdk.CachePlan(caches, page_size=4) if planned else caches
    new = [torch.ones(15, 2, 8, dtype=cache.dtype) for cache in caches] if fresh else None
    return lambda: sdk.commit_kv(given, *rest, page_size=4, new=new, backend="triton")


def states(seed, name):
    g, tree, path, _ = problem(seed)
    state, one = torch.randn(4, 2, 3, 5, generator=g), torch.rand(15, 2, generator=g)
    keys, values = torch.randn(15, 1, 3, generator=g), torch.randn(15, 2, 5, generator=g)
    given = {
        "commit_state": dict(states=[state], snapshots=[torch.randn(15, 2, 3, 5, generator=g)]),
        "replay_conv": dict(windows=[state[:, 0]], inputs=[torch.randn(15, 3, generator=g)]),
        "replay_gated_delta": dict(
            states=[state], keys=[keys], values=[values], log_decay=[-one], beta=[one]
        ),
        "replay_mamba2": dict(states=[state.transpose(2, 3)], x=[values], B=[keys], dt=[one], A=[-one[0]]),
    }[name]
    slots = torch.randperm(4, generator=g)[:3]
    return lambda: getattr(sdk, name)(path, tree, slots, **given, backend="triton")


def sample(seed, cuts):
    g = torch.Generator().manual_seed(seed)
    logits, law = torch.randn(3, 300, generator=g), sdk.SamplingParams(torch.rand(3, generator=g), *cuts)
    given = dict(seeds=torch.randint(99, (3,), generator=g), positions=torch.randint(99, (3,), generator=g))
    return lambda: sdk.sample(logits, law, **given, return_logprobs=True, backend="triton")


def verify(seed, rule, cuts=(), ends=False):
    g, tree, _, _ = problem(seed)
    target, draft = torch.randn(15, 300, generator=g), torch.randn(15, 300, generator=g).bfloat16()
    law = sdk.SamplingParams(torch.rand(3, generator=g), *cuts)
    given = dict(seeds=torch.randint(99, (3,), generator=g), positions=torch.randint(99, (3,), generator=g))
    if ends:
        left, stops = torch.randint(0, 4, (3,), generator=g).int(), torch.randint(0, 9, (3, 2), generator=g)
        given["ends"] = sdk.Ends(stops, left, left + 1, torch.arange(3) == seed)
    return lambda: sdk.verify(target, tree, draft, sampling=law, rule=rule, **given, backend="triton")


def every_option(seed):
    """Of serving: edits, a bitmask, ends, reports; then what was emitted is counted."""
    g, tree, _, _ = problem(seed)
    target, left = torch.randn(15, 300, generator=g), torch.randint(1, 4, (3,), generator=g).int()
    counts = sdk.TokenCounts(3, 32, 300, recent=1)
    counts.set_prompt_([0, 1, 2], torch.randint(300, (3, 9), generator=g))
    ids = torch.randint(300, (3, 2), generator=g)
    given = dict(
        edits=sdk.LogitEdits(
            counts, 1.2, 0.1, bias_tokens=ids, bias_values=ids / 300, bad_words=ids[:, None]
        ),
        token_bitmask=torch.randint(-(2**31), 2**31, (15, 10), generator=g).int(),
        ends=sdk.Ends(ids, left, left + 1, torch.arange(3) == seed),
        return_logprobs=sdk.Logprobs(top=5, chosen=ids),
        return_masks=sdk.Masks("ids", 99, mass=False),
        seeds=torch.randint(99, (3,), generator=g),
        positions=torch.randint(99, (3,), generator=g),
        sampling=sdk.SamplingParams(torch.rand(3, generator=g), top_p=0.9),
    )
    return lambda: counts.update_(sdk.verify(target, tree, **given, backend="triton"), backend="triton")


def tree_attention(seed, deterministic):
    g, tree, _, _ = problem(seed)
    query, cache = torch.randn(15, 4, 16, generator=g), torch.randn(12, 4, 2, 16, generator=g)
    rest = (tree, block_tables(g, 3, 4, 12), torch.randint(0, 9, (3,), generator=g).int())
    options = dict(deterministic=deterministic, return_lse=True, backend="triton")
    return lambda: sdk.tree_attention(query, cache, cache.clone(), *rest, **options)


def ngram(seed, match):
    g = torch.Generator().manual_seed(seed)
    tokens, lengths = torch.randint(3, (3, 40), generator=g), torch.randint(41, (3,), generator=g)
    if match is None:
        return lambda: sdk.ngram_tree(tokens, lengths, 9, backend="triton")
    return lambda: sdk.ngram_draft(tokens, lengths, 4, match=match, backend="triton")


def budget(seed):
    """A step: nodes are selected, and the budget learns."""
    g, tree, _, _ = problem(seed)
    device, scores = sdk.BatchBudget(sdk.Budget({1: 1.0, 16: 2.0}), 3, 12), -torch.rand(15, generator=g)
    path, count = torch.zeros(3, 2).int(), torch.ones(3).int()
    verified = sdk.Verified(path.long(), count, count, path, None, count)
    return lambda: device.update_(device.select(tree, scores, backend="triton"), verified, backend="triton")


CALLS = {
    "sample": lambda seed: sample(seed, ()),
    "sample with cuts": lambda seed: sample(seed, (20, 0.9, 0.01)),
    "verify, match": lambda seed: verify(seed, "match"),
    "verify, match with cuts": lambda seed: verify(seed, "match", (20, 0.9, 0.01)),
    "verify, traversal": lambda seed: verify(seed, "traversal"),
    "verify, token with ends": lambda seed: verify(seed, "token", ends=True),
    "verify with every option of serving": every_option,
    "verify, typical": lambda seed: verify(seed, sdk.Typical()),
    "tree_attention": lambda seed: tree_attention(seed, False),
    "tree_attention, deterministic": lambda seed: tree_attention(seed, True),
    "ngram_draft, latest": lambda seed: ngram(seed, "latest"),
    "ngram_draft, frequent": lambda seed: ngram(seed, "frequent"),
    "ngram_tree": lambda seed: ngram(seed, None),
    "a budget": budget,
    "commit_kv with a plan": commit_kv,
    "commit_kv with a list": lambda seed: commit_kv(seed, planned=False),
    "commit_kv of new rows": lambda seed: commit_kv(seed, fresh=True),
    **{
        name: lambda seed, name=name: states(seed, name)
        for name in ("commit_state", "replay_conv", "replay_gated_delta", "replay_mamba2")
    },
}


@pytest.mark.parametrize("name", CALLS)
def test_nothing_makes_the_host_wait(name):
    call = CALLS[name](0)
    with no_synchronisation():
        call()


@pytest.mark.parametrize("name", CALLS)
def test_launches_do_not_depend_on_data(name):
    import ptx_emulator

    seen = []
    for seed in range(3):
        call = CALLS[name](seed)
        with ptx_emulator.count() as launches:
            call()
        seen.append([(launch.name, launch.grid) for launch in launches])
    assert seen[0] and seen[0] == seen[1] == seen[2]


NUMBERS, MASK = torch.arange(4.0), torch.tensor([True, False, True, False])


@pytest.mark.parametrize(
    "mutant",
    [
        lambda: NUMBERS[0].item(),
        lambda: NUMBERS.tolist(),
        lambda: bool(NUMBERS[0]),
        lambda: int(NUMBERS.sum()),
        lambda: NUMBERS.numpy(),
        lambda: NUMBERS.cpu(),
        lambda: NUMBERS.nonzero(),
        lambda: NUMBERS[MASK],
        lambda: NUMBERS.masked_select(MASK),
        lambda: NUMBERS.unique(),
        lambda: NUMBERS.repeat_interleave(torch.ones_like(NUMBERS, dtype=torch.int64)),
        lambda: torch.equal(NUMBERS, NUMBERS),
        lambda: torch.tensor([1, 2, 3]),
        lambda: torch.as_tensor([1, 2, 3]),
        lambda: NUMBERS.to("meta"),
        lambda: torch.empty(4, device="meta").copy_(NUMBERS),
    ],
)
def test_what_makes_the_host_wait_is_noticed(mutant):
    with pytest.raises(Synchronises), no_synchronisation():
        mutant()


def test_the_reference_reads_values_and_is_noticed():
    g, tree, path, caches = problem(0)
    rest = (path, tree, block_tables(g, 3, 4, 12), torch.zeros(3).int())
    with pytest.raises(Synchronises), no_synchronisation():
        sdk.commit_kv(caches, *rest, page_size=4, backend="reference")


def test_what_a_step_may_do_is_let_through():
    with no_synchronisation():
        picked = NUMBERS[torch.arange(2)] + torch.empty(2).fill_(1)
        assert picked.shape == (2,) and picked.long().contiguous().dtype == torch.int64
