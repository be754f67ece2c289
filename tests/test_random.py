# SPDX-License-Identifier: Apache-2.0
"""Philox against its published vectors, and the keys against what is written of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from philox_vectors import VECTORS, parse
from scipy.stats import kstest

from specdec_kernels._random import Purpose, coin, philox, race_keys, words


@pytest.mark.parametrize("counter, key, result", VECTORS)
def test_philox_known_answers(counter, key, result):
    assert philox(parse(counter), parse(key)).tolist() == parse(result).tolist()


def test_philox_is_vectorised():
    counters = torch.stack([parse(counter) for counter, *_ in VECTORS])
    keys = torch.stack([parse(key) for _, key, _ in VECTORS])
    assert torch.equal(philox(counters, keys), torch.stack([parse(result) for *_, result in VECTORS]))


def scalar_philox(counter, key):
    """The same in Python integers."""
    c, (k0, k1) = list(counter), key
    for _ in range(10):
        a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [b >> 32 ^ c[1] ^ k0, b & 0xFFFFFFFF, a >> 32 ^ c[3] ^ k1, a & 0xFFFFFFFF]
        k0, k1 = k0 + 0x9E3779B9 & 0xFFFFFFFF, k1 + 0xBB67AE85 & 0xFFFFFFFF
    return c


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 0x123456789ABCDEF])
@pytest.mark.parametrize("position", [0, 7, -3, 2**40 + 5])
def test_counters_are_laid_out_as_written(seed, position):
    node, purpose, index = 37, Purpose.DRAFT, 5
    key = (seed % 2**32, seed % 2**64 >> 32)
    counter = (index, purpose + 16 * node, position % 2**32, position % 2**64 >> 32)
    assert words(seed, position, purpose, node, torch.tensor([index]))[0].tolist() == scalar_philox(
        counter, key
    )


def test_coin_is_24_bits_inside_the_unit_interval():
    word = int(words(3, 9, Purpose.ACCEPT, 4, torch.zeros(1, dtype=torch.int64))[0, 0])
    u = coin(3, 9, 4)
    assert u == (word >> 9) * 2.0**-23 + 2.0**-24
    assert float(np.float32(u)) == u
    assert 0 < 2.0**-24 <= u <= 1 - 2.0**-24 < 1


def test_race_keys_take_a_lane_of_a_word_per_token():
    keys = race_keys(11, 5, Purpose.RESIDUAL, 10)
    block = words(11, 5, Purpose.RESIDUAL, 0, torch.arange(3)).flatten().tolist()
    for token, key in enumerate(keys.tolist()):
        uniform = min((block[token] + 0.5) * 2.0**-32, 1 - 2.0**-24)
        assert math.isclose(key, -math.log1p(-uniform), rel_tol=1e-15)
    assert torch.equal(race_keys(11, 5, Purpose.RESIDUAL, 7), keys[:7])


def test_race_keys_of_an_ordinal_start_at_their_own_words():
    keys = race_keys(11, 5, Purpose.DRAFT, 4, node=3, ordinal=2)
    block = words(11, 5, Purpose.DRAFT, 3, torch.tensor([2 << 24])).flatten().double()
    assert torch.allclose(keys, -torch.log1p(-(block + 0.5) * 2.0**-32), rtol=1e-15, atol=0)


def test_everything_in_the_key_matters():
    base = dict(seed=1, position=2, purpose=Purpose.DRAFT, node=3, ordinal=4)
    changed = [base | change for change in ({"seed": 9}, {"seed": 1 + 2**32}, {"position": 9})]
    changed += [base | change for change in ({"position": 2 + 2**32}, {"node": 9}, {"ordinal": 9})]
    changed += [base | {"purpose": purpose} for purpose in (Purpose.NEXT, Purpose.RESIDUAL, Purpose.ACCEPT)]
    keys = [race_keys(vocab_size=8, **arguments) for arguments in (base, *changed)]
    assert len({tuple(key.tolist()) for key in keys}) == len(keys)


def test_race_keys_are_exponential_and_positive_at_the_small_end():
    keys = race_keys(5, 0, Purpose.NEXT, 200_000)
    assert kstest(keys.numpy(), "expon").pvalue > 1e-3
    assert 0 < float(keys.min()) < 1e-4
    assert float(keys.max()) <= 24 * math.log(2) + 1e-9
