# SPDX-License-Identifier: Apache-2.0
"""What Triton's kernels report of emitted tokens, against the reference."""

from __future__ import annotations

import pytest
import torch
from cases import all_equal, leaves, spoil
from reporting_cases import asked, problem

import ptx_emulator
import specdec_kernels as sdk

WIDE = 5000  # tokens of two splits


def narrowed(given, *requests):
    """Some of the four requests of a problem."""
    at = torch.tensor(requests)
    nodes = (7 * at[:, None] + torch.arange(7)).flatten()
    tree, sampling = given["tree"], given["sampling"]
    return dict(
        target_logits=given["target_logits"][nodes],
        tree=sdk.DraftTree.from_parents(tree.tokens[nodes].view(-1, 7), tree.parents[nodes].view(-1, 7)),
        sampling=sampling._replace(temperature=sampling.temperature[at]),
        token_bitmask=given["token_bitmask"][nodes],
        seeds=given["seeds"][at],
        positions=given["positions"][at],
    )


def check(given, report, rule, case=None):
    ours, theirs = (sdk.verify(**given, **report, rule=rule, backend=b) for b in ("triton", "reference"))
    for field, got, wanted in zip(ours._fields, ours, theirs, strict=True):
        for x, y in zip(leaves([got]), leaves([wanted]), strict=True):
            torch.testing.assert_close(
                x, y, rtol=2e-5, atol=2e-5, equal_nan=True, msg=lambda m, f=field: f"{case} {f}: {m}"
            )
    return ours


@pytest.mark.parametrize(
    "kind, form, rule",
    [("processed", "bits", "token"), ("raw", "ids", "match"), ("temperature", "ids", sdk.Typical(0.1))],
)
def test_reports_agree(kind, form, rule):
    """Cuts, a bitmask, greedy requests; rows with NaN, infinities and nothing at all."""
    given = problem(0, WIDE)
    check(given, asked(kind, 5, form), rule, "plain")
    spoil(given, torch.Generator().manual_seed(1))
    check(given, asked(kind, 5, form), rule, "hostile")


def test_rows_that_are_not_measured_are_reported():
    """Without cuts the law of a last row is found where the next token is drawn."""
    given = problem(1, WIDE)
    given["sampling"] = sdk.SamplingParams(given["sampling"].temperature)
    verified = check(given, asked("processed", 5, "bits"), "token")
    assert (verified.masks.mass[:, 0] == 1).all()


def test_positions_without_a_row_report_nothing():
    target = torch.eye(8)[:4].view(2, 2, 8) * 50
    given = dict(
        target_logits=target,
        tree=sdk.DraftTree.chain(torch.tensor([[0, 1], [2, 3]])),
        bonus_tokens=torch.tensor([5, 6]),
        seeds=torch.tensor([1, 2]),
        positions=torch.tensor([0, 0]),
    )
    report = dict(return_logprobs=sdk.Logprobs("raw", 3), return_masks=sdk.Masks("ids", 99))
    verified = check(given, report, "match")
    assert verified.ranks.tolist() == [[1, 1, 0]] * 2


def test_what_does_not_fit_leaves_other_requests_alone():
    given = problem(2, WIDE)
    whole = sdk.verify(**given, **asked("raw", 5, "ids"), rule="match", backend="reference").masks
    width = whole.counts.shape[1]
    for capacity in (int(whole.offsets[width]) + 1, int(whole.offsets[2 * width]), 1):
        report = asked("raw", 5, "ids") | dict(return_masks=sdk.Masks("ids", capacity, mass=capacity > 1))
        tight = check(given, report, "match", capacity)
        overflown = (whole.offsets[width::width] > capacity).tolist()
        assert ((tight.status & sdk.Status.OVERFLOW) != 0).tolist() == overflown


@pytest.mark.parametrize("kind, rule", [("processed", "token"), ("temperature", sdk.Typical(0.1))])
def test_reports_do_not_depend_on_the_batch(kind, rule):
    given, report = problem(3, WIDE), asked(kind, 5, "bits")
    whole = sdk.verify(**given, **report, rule=rule, backend="triton")
    chosen = report["return_logprobs"].chosen[1:2]
    alone = sdk.verify(
        **narrowed(given, 1),
        return_logprobs=sdk.Logprobs(kind, 5, chosen),
        return_masks=sdk.Masks(),
        rule=rule,
        backend="triton",
    )
    assert all_equal([x[1:2] for x in leaves(whole)], alone)


def test_sampled_tokens_are_reported():
    given = problem(4, WIDE)
    rows, bits = given["target_logits"][:4], given["token_bitmask"][:4]
    options = dict(seeds=given["seeds"], positions=given["positions"], token_bitmask=bits)
    options |= dict(return_logprobs=asked("raw", 20)["return_logprobs"])
    ours, theirs = (
        sdk.sample(rows, given["sampling"], backend=b, **options) for b in ("triton", "reference")
    )
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=2e-5, atol=2e-5, equal_nan=True)


def test_reports_add_one_launch_and_ids_one_more():
    given, launched = problem(0, WIDE), []
    for report in (
        dict(return_logprobs=True),
        asked("raw", 5, "bits"),
        asked("raw", 5, "ids"),
    ):
        with ptx_emulator.count() as launches:
            sdk.verify(**given, **report, rule="match", backend="triton")
        launched.append(len(launches))
    assert [count - launched[0] for count in launched] == [0, 1, 2]
