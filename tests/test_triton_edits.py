# SPDX-License-Identifier: Apache-2.0
"""Edits of rows and counts of tokens as Triton kernels, against the reference.

To compile few kernels, cases and their edits are brought into one form, as in test_triton_verify.py, and two
rules stand for others; `make test-rows` has all. Rows of more than 2048 tokens are edited in several splits.
"""

from __future__ import annotations

import copy
import os

import pytest
import torch
from cases import (
    all_equal,
    cases_of,
    check_agreement,
    check_in_range,
    one_bad_request,
    rule_name,
    shared_form,
    with_trace,
)
from each import DEVICE
from edit_cases import random_edits
from row_cases import EVERY

import ptx_emulator
import specdec_kernels as sdk
from specdec_kernels import reference, triton
from specdec_kernels._ops.calls import CountTokensCall

ALL = os.environ.get("SPECDEC_TEST_RULES") == "all"
VOCAB = 4501


def generator(seed):
    return torch.Generator().manual_seed(seed)


def in_one_form(edits, batch):
    """The same edits with every tensor given."""
    none = torch.full((batch, 1), -1)
    penalties = ("repetition_penalty", "frequency_penalty", "presence_penalty")
    values = {name: getattr(edits, name) * torch.ones(batch) for name in penalties}
    if edits.bias_tokens is None:
        values |= dict(bias_tokens=none, bias_values=torch.zeros(batch, 1))
    for name, absent in (
        ("banned_tokens", none),
        ("banned_until", torch.full((batch,), 99).int()),
        ("bad_words", none[:, :, None].expand(-1, -1, 2).contiguous()),
        ("forced_tokens", none),
        ("slots", torch.arange(batch)),
    ):
        if getattr(edits, name) is None:
            values[name] = absent
    return edits._replace(**values)


def share_rows(arguments):
    """The first half of the target's rows, each for two nodes."""
    return dict(arguments, target_rows=(torch.arange(arguments["tree"].tokens.numel()) // 2).int())


def edited(arguments, seed, **options):
    """A case of `verify` with edits, often of drafted tokens, in the form that all have here."""
    tree = arguments["tree"]
    likely = tree.tokens[tree.tokens >= 0]
    edits = random_edits(
        seed, tree.batch_size, arguments["target_logits"].shape[-1], likely=likely, **options
    )
    return dict(arguments, edits=in_one_form(edits, tree.batch_size))


@pytest.mark.parametrize("rule", EVERY if ALL else ["traversal"], ids=rule_name)
def test_verify_agrees(rule):
    """On trees, with cuts and bitmasks; under `match` nodes share rows, and have other paths. Status has the
    slots that have overflowed."""
    overflowed = 0
    for seed, arguments in cases_of("rows", 8):
        arguments = edited(arguments, seed)
        if rule == "match":
            arguments = share_rows(arguments)
        check_agreement(arguments, rule, seed)
        overflowed += int((arguments["edits"].counts.overflowed).sum())
    assert overflowed


def test_what_is_reported_has_the_edits():
    """The likeliest tokens, ranks and masks of processed laws."""
    for seed, arguments in cases_of("rows", 3):
        arguments = share_rows(edited(arguments, seed))
        options = dict(return_logprobs=sdk.Logprobs(top=3), return_masks=sdk.Masks(), rule="match")
        ours, wanted = (
            sdk.verify(**{**arguments, **options}, backend=backend) for backend in ("triton", "reference")
        )
        assert torch.equal(ours.ranks, wanted.ranks) and torch.equal(ours.masks.bits, wanted.masks.bits), seed
        torch.testing.assert_close(
            ours.top_logprobs, wanted.top_logprobs, rtol=1e-4, atol=1e-4, equal_nan=True
        )


def spoil(edits, request, g):
    """The same edits with anything in what belongs to one request."""
    edits = copy.deepcopy(edits)
    counts, slot = edits.counts, int(edits.slots[request])
    wild = torch.tensor([-(2**31), -1, 0, 3, 199, 200, 2**31 - 1])

    def anything(like):
        return wild[torch.randint(len(wild), like.shape, generator=g)].to(like.dtype)

    for tensor in (counts.tokens, counts.prompt, counts.output, counts.sizes, counts.recent):
        tensor[slot] = anything(tensor[slot])
    for value in edits[1:]:
        if isinstance(value, torch.Tensor):
            value[request] = anything(value[request])
    return edits


def test_what_the_device_holds_by_mistake_disturbs_no_other_request():
    """The emulated device checks the bounds of every access."""
    arguments, _, others = one_bad_request()
    arguments = share_rows(edited(shared_form(arguments), 5))
    before = with_trace(arguments, "match", "triton")[0][:6]
    wanted, _ = with_trace(arguments, "match", "reference")
    assert torch.equal(before[0], wanted.tokens) and torch.equal(before[5], wanted.status)
    for seed in range(8):
        spoiled = dict(arguments, edits=spoil(arguments["edits"], 2, generator(seed)))
        after, _ = with_trace(spoiled, "match", "triton")
        check_in_range(after, arguments)
        assert all_equal([x[others] for x in before], [x[others] for x in after[:6]]), seed


def test_sample_agrees():
    """In several splits, from 16 bits, whose edited scores have 32."""
    for seed in range(3):
        g = generator(seed)
        logits = (torch.randn(4, VOCAB, generator=g) * 2).bfloat16()
        edits = in_one_form(random_edits(seed, 4, VOCAB, likely=logits.float().topk(40).indices.flatten()), 4)
        sampling = sdk.SamplingParams(0.9, top_k=300, top_p=0.95)
        options = dict(seeds=torch.arange(4), positions=torch.arange(4), return_logprobs=True, edits=edits)
        with ptx_emulator.count() as launches:
            tokens, logprobs = sdk.sample(logits, sampling, backend="triton", **options)
        wanted, wanted_logprobs = sdk.sample(logits, sampling, backend="reference", **options)
        assert torch.equal(tokens, wanted), seed
        torch.testing.assert_close(logprobs, wanted_logprobs, rtol=1e-5, atol=5e-6)
        assert DEVICE != "cpu" or len(launches) == 6  # one more


def test_rows_are_edited_in_place_to_the_bit():
    """Every edited score, on trees whose rows are numbered, and what is not edited."""
    for seed in range(4):
        g = generator(seed)
        tree = sdk.DraftTree.from_parents(
            torch.randint(-1, 60, (3, 5), generator=g), torch.tensor([[-1, 0, 0, 1, 3]] * 3)
        )
        logits = (torch.randn(17, VOCAB, generator=g) * 3).bfloat16()
        logits[3, 50:90] = float("nan")
        rows = torch.randperm(19, generator=g)[:15].int() - 1
        edits = in_one_form(random_edits(seed, 3, VOCAB, likely=torch.arange(60)), 3)
        ours, wanted = (
            sdk.edit_logits_(logits.clone(), edits, tree, target_rows=rows, backend=backend)
            for backend in ("triton", "reference")
        )
        torch.testing.assert_close(ours, wanted, rtol=0, atol=0, equal_nan=True)


def test_rows_without_a_tree_are_edited():
    logits = torch.zeros(2, 40)
    edits = sdk.LogitEdits(
        bias_tokens=torch.tensor([[3, 3, -1], [39, 0, 40]]),
        bias_values=torch.tensor([[1.0, 0.5, 9.0], [-float("inf"), 2.0, 9.0]]),
    )
    for backend in ("triton", "reference"):
        ours = sdk.edit_logits_(logits.clone(), edits, backend=backend)
        assert ours[0, 3] == 1.5 and ours[1, 39] == -float("inf") and ours[1, 0] == 2.0
        assert ours.count_nonzero() == 3


def random_counts(seed):
    """A record of `update_`: counts of `slots` requests, and what `batch` emitted, sometimes too much."""
    g = generator(seed)
    number = lambda low, high: int(torch.randint(low, high, (1,), generator=g))  # noqa: E731
    vocab, batch, width = (7, 60, 900)[seed % 3], number(1, 5), (3, 17, 40)[seed // 3 % 3]
    capacity, recent = number(1, min(vocab, 600) + 3), (0, 3, 300)[seed // 2 % 3]
    counted = sdk.TokenCounts(batch + 2, capacity, vocab, recent=recent)
    length = number(0, capacity + 1)
    texts = torch.randint(0, vocab, (batch + 2, length), generator=g)
    counted.set_prompt_(list(range(batch + 2)), texts, num_output=[length // 2] * (batch + 2))
    if seed % 5 == 0:
        counted.output.fill_(2**31 - 2)
    return CountTokensCall(
        torch.randint(-1, vocab + 1, (batch, width), generator=g),
        torch.randint(-1, width + 2, (batch,), generator=g).int(),
        torch.randperm(batch + 4, generator=g)[:batch] - 1,
        vocab,
        *(counted.tokens, counted.prompt, counted.output, counted.sizes, counted.recent),
    )


def counted(call, backend):
    """What `update_` leaves, without what lies in unused places."""
    call = call._replace(**{name: getattr(call, name).clone() for name in call._fields[4:]})
    backend.count_tokens(call)
    sizes, capacity = call.counts_sizes, call.counts_tokens.shape[1]
    used = torch.arange(capacity) < sizes[:, None]
    return [*(column.where(used, 0) for column in call[4:7]), sizes, call.counts_recent]


def test_counts_agree():
    overflowed = 0
    for seed in range(30):
        call = random_counts(seed)
        ours, wanted = counted(call, triton), counted(call, reference)
        assert all_equal(ours, wanted), seed
        overflowed += int((ours[3] > call.counts_tokens.shape[1]).sum())
    assert overflowed > 3


def test_slots_that_are_spoiled_or_shared_stay_in_bounds():
    """The emulated device checks the bounds of every access."""
    for seed in range(12):
        call, g = random_counts(seed), generator(seed)
        untouched = sorted(set(range(call.counts_sizes.shape[0])) - set(call.slots.tolist()))
        wild = torch.tensor([-(2**31), -1, 0, 3, 2**31 - 1]).int()
        for column in call[4:8]:
            column.copy_(wild[torch.randint(5, column.shape, generator=g)])
        call.slots[0] = call.slots[-1]
        call.num_tokens[0] = (2**31 - 1, -(2**31))[seed % 2]
        after = counted(call, triton)
        before = counted(call._replace(tokens=call.tokens[:0]), triton)
        assert all_equal([x[untouched] for x in before], [x[untouched] for x in after]), seed
