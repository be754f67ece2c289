# SPDX-License-Identifier: Apache-2.0
"""`Synthetic` with rates on the device."""

from __future__ import annotations

import pytest
import torch
from cases import random_case, shared_form
from each import BACKENDS, QUICK
from synchronisation import no_synchronisation

import specdec_kernels as sdk
from specdec_kernels import _compiling, _debug

RATES = [0.9, 0.5, 0.75]
SLOW = dict(backend="reference")


def chains(batch, depth, backend):
    """Arguments of many chains, whose logits do not matter."""
    tree = sdk.DraftTree.chain(torch.zeros((batch, depth), dtype=torch.int64))
    keys = dict(seeds=torch.arange(batch), positions=torch.zeros(batch, dtype=torch.int64))
    return dict(target_logits=torch.zeros(batch * (depth + 1), 8), tree=tree, backend=backend, **keys)


@pytest.mark.parametrize("backend", QUICK)
def test_rates_of_a_tensor_are_those_of_a_list(backend):
    for seed in range(9):
        given = shared_form(random_case(seed, batch=3, vocab=40)) | dict(backend=backend)
        by_list = sdk.verify(**given, rule=sdk.Synthetic(RATES))
        for rates in (torch.tensor(RATES), torch.tensor(RATES, dtype=torch.float64)):
            by_tensor = sdk.verify(**given, rule=sdk.Synthetic(rates))
            assert torch.equal(by_tensor.tokens, by_list.tokens)
            assert torch.equal(by_tensor.path, by_list.path)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tensor_is_read_in_every_call(backend):
    """One rule object: other values in its tensor, other lengths; the last rate repeats."""
    given, rates = chains(12, 4, backend), torch.tensor([1.0, 1.0])
    rule = sdk.Synthetic(rates)
    for values, accepted in (((1.0, 1.0), 4), ((0.0, 1.0), 0), ((1.0, 0.0), 1), ((float("nan"), 1.0), 0)):
        rates.copy_(torch.tensor(values))
        assert sdk.verify(**given, rule=rule).num_accepted.tolist() == [accepted] * 12
    assert sdk.verify(**given, rule=sdk.Synthetic(torch.tensor(1.0))).num_accepted.tolist() == [4] * 12
    by_coin = sdk.verify(**given, rule=sdk.Synthetic(torch.tensor(RATES)))
    assert torch.equal(by_coin.path, sdk.verify(**given | SLOW, rule=sdk.Synthetic(RATES)).path)


@pytest.mark.skipif("triton" not in BACKENDS, reason="needs the emulator")
def test_rates_of_a_tensor_compile_nothing_and_read_nothing_on_triton():
    from specdec_kernels.triton import dispatch

    given = chains(12, 4, "triton")
    sdk.verify(**given, rule=sdk.Synthetic(torch.tensor([0.5, 0.25])))
    before = len(dispatch.Launch.met)
    rule = sdk.Synthetic(torch.tensor([0.75, 0.5, 0.25]))
    with no_synchronisation():
        sdk.verify(**given, rule=rule)
    assert len(dispatch.Launch.met) == before


def test_accepted_lengths_follow_the_rates():
    given = chains(20_000, 3, "cpu")
    accepted = sdk.verify(**given, rule=sdk.Synthetic(torch.tensor(RATES))).num_accepted
    chance = 1.0
    for depth, rate in enumerate(RATES, start=1):
        chance *= rate
        assert abs(float((accepted >= depth).float().mean()) - chance) < 0.015, depth


def test_tensors_that_hold_no_rates_are_refused(monkeypatch):
    for rate, error, message in (
        (torch.zeros(2, 2), ValueError, r"rate must have shape \[D\], D >= 1, or \[\], got \[2, 2\]"),
        (torch.zeros(0), ValueError, r"rate must have shape \[D\], D >= 1, or \[\], got \[0\]"),
        (torch.ones(2).int(), TypeError, "rate must have dtype float32 | float64, got int32"),
    ):
        with pytest.raises(error, match=f"^Synthetic: {message}"):
            sdk.Synthetic(rate)
    given = chains(2, 2, "reference")
    with pytest.raises(TypeError, match=r"^verify: rule.rate must be on device cpu, got meta"):
        sdk.verify(**given, rule=sdk.Synthetic(torch.ones(2, device="meta")))
    monkeypatch.setattr(_debug, "ENABLED", True)
    with pytest.raises(ValueError, match=r"^verify: rule.rate must be in \[0.0, 1.0\], got 1.5 at depth 2$"):
        sdk.verify(**given, rule=sdk.Synthetic(torch.tensor([0.5, 1.5])))


def test_rules_are_compared_by_their_rates():
    rates = torch.tensor(RATES)
    assert sdk.Synthetic(rates) == sdk.Synthetic(rates) != sdk.Synthetic(rates.clone())
    assert sdk.Synthetic(0.5) == sdk.Synthetic(0.5) != sdk.Synthetic(rates)
    assert len({sdk.Synthetic(rates), sdk.Synthetic(rates), sdk.Synthetic(0.5), sdk.Synthetic(0.5)}) == 2
    assert sdk.Synthetic(0.5) != 0.5


def test_workers_of_warmup_get_rates_on_the_host():
    rates = _compiling.blank(sdk.Synthetic(torch.ones(3, device="meta"))).rate
    assert rates.device.type == "cpu" and rates.shape == (3,) and rates.dtype == torch.float32
    assert _compiling.blank(sdk.Synthetic(0.5)) == sdk.Synthetic(0.5)
