# SPDX-License-Identifier: Apache-2.0
"""Seeds from the generators of requests."""

from __future__ import annotations

import pytest
import torch
from synchronisation import no_synchronisation

import specdec_kernels as sdk


def generator(seed):
    return torch.Generator().manual_seed(seed)


def test_seeds_are_those_that_generators_began_with():
    given = [generator(seed) for seed in (0, 5, 2**63, 2**64 - 1, 2**63 - 1)]
    states = [each.get_state() for each in given]
    seeds = sdk.seeds_from_generators(given)
    assert seeds.dtype == torch.int64
    assert seeds.tolist() == [0, 5, -(2**63), -1, 2**63 - 1]
    assert all(torch.equal(each.get_state(), state) for each, state in zip(given, states, strict=True))
    torch.rand(9, generator=given[1])  # a request that has drawn from it keeps its seed
    assert sdk.seeds_from_generators(given).tolist() == seeds.tolist()


def test_requests_without_a_generator_get_fresh_seeds():
    given = [generator(5), None, None]
    torch.manual_seed(1)
    first, second = sdk.seeds_from_generators(given), sdk.seeds_from_generators(given)
    assert first[0] == second[0] == 5
    assert len({*first[1:].tolist(), *second[1:].tolist()}) == 4
    torch.manual_seed(1)
    assert torch.equal(sdk.seeds_from_generators(given), first)
    before = torch.get_rng_state()
    sdk.seeds_from_generators(given[:1])
    assert torch.equal(torch.get_rng_state(), before)  # nothing is drawn where nothing is missing


def test_no_requests():
    assert sdk.seeds_from_generators([]).tolist() == [] and sdk.seeds_from_generators([]).dtype == torch.int64


def test_positions_make_the_noise_of_each_step_new():
    """One seed for all steps: the tokens of a request are those of its seed, and change with the position."""
    logits = torch.zeros(1, 1000)
    seeds = sdk.seeds_from_generators([generator(3)])
    tokens = [sdk.sample(logits, seeds=seeds, positions=torch.tensor([i])).item() for i in range(20)]
    again = [sdk.sample(logits, seeds=seeds, positions=torch.tensor([i])).item() for i in range(20)]
    assert tokens == again and len(set(tokens)) > 15


def test_a_device_is_taken_by_name():
    assert sdk.seeds_from_generators([generator(1)], device="meta").device.type == "meta"
    with pytest.raises(TypeError, match=r"^seeds_from_generators: generators\[1\] must be a torch.Generator"):
        sdk.seeds_from_generators([None, 7])


def test_seeds_need_no_device():
    given = [generator(1)]
    with pytest.raises(AssertionError), no_synchronisation():
        sdk.seeds_from_generators(given)  # made of Python's numbers: outside of a captured step


def test_a_default_device_changes_nothing():
    with torch.device("meta"):
        assert sdk.seeds_from_generators([generator(4)]).tolist() == [4]
        assert sdk.seeds_from_generators([None]).device.type == "cpu"
