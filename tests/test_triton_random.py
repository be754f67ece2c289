# SPDX-License-Identifier: Apache-2.0
"""The random numbers of Triton kernels against those of specdec_kernels/random.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from device import on_device
from philox_vectors import VECTORS, parse

from specdec_kernels import _random as reference
from specdec_kernels._random import Purpose
from specdec_kernels.triton import random

SEEDS = (0, 1, -1, 2**63 - 1, -(2**63), 0x123456789ABCDEF)
POSITIONS = (0, 7, -3, 2**40 + 5)


@triton.jit
def _philox_kernel(counter_ptr, key_ptr, result_ptr, N: tl.constexpr):
    row = tl.program_id(0) * 4 + tl.zeros([N], tl.int32)
    c0, c1 = tl.load(counter_ptr + row).to(tl.uint32), tl.load(counter_ptr + row + 1).to(tl.uint32)
    c2, c3 = tl.load(counter_ptr + row + 2).to(tl.uint32), tl.load(counter_ptr + row + 3).to(tl.uint32)
    key = tl.program_id(0) * 2
    k0, k1 = tl.load(key_ptr + key).to(tl.uint32), tl.load(key_ptr + key + 1).to(tl.uint32)
    w0, w1, w2, w3 = random.philox(c0, c1, c2, c3, k0, k1)
    tl.store(result_ptr + row, w0.to(tl.int64))
    tl.store(result_ptr + row + 1, w1.to(tl.int64))
    tl.store(result_ptr + row + 2, w2.to(tl.int64))
    tl.store(result_ptr + row + 3, w3.to(tl.int64))


def test_philox_known_answers():
    counters = torch.stack([parse(counter) for counter, *_ in VECTORS])
    keys = torch.stack([parse(key) for _, key, _ in VECTORS])
    results = torch.zeros(len(VECTORS), 4, dtype=torch.int64)
    on_device(_philox_kernel[(len(VECTORS),)])(counters, keys, results, N=32)
    assert results.tolist() == [parse(result).tolist() for *_, result in VECTORS]


@triton.jit
def _words_kernel(seeds_ptr, positions_ptr, race_ptr, token_ptr, coin_ptr, purpose, node, N: tl.constexpr):
    row = tl.program_id(0)
    seed, position = tl.load(seeds_ptr + row), tl.load(positions_ptr + row)
    token = tl.arange(0, N)
    race = random.race_words(seed, position, purpose, node, tl.arange(0, N // 4))
    tl.store(race_ptr + row * N + token, race.to(tl.int64))
    some = random.token_word(seed, position, purpose, node, token)
    tl.store(token_ptr + row * N + token, some.to(tl.int64))
    tl.store(coin_ptr + row, random.coin(seed, position, node))


@pytest.mark.parametrize("purpose, node", [(Purpose.NEXT, 0), (Purpose.RESIDUAL, 0), (Purpose.DRAFT, 1037)])
def test_words_and_coins_have_the_bits_of_the_reference(purpose, node):
    keys = [(seed, position) for seed in SEEDS for position in POSITIONS]
    seeds, positions = torch.tensor(keys).unbind(1)
    race, token = torch.zeros(2, len(keys), 64, dtype=torch.int64)
    coins = torch.zeros(len(keys))
    on_device(_words_kernel[(len(keys),)])(
        seeds.contiguous(), positions.contiguous(), race, token, coins, int(purpose), node, N=64
    )
    for row, (seed, position) in enumerate(keys):
        want = reference.words(seed, position, purpose, node, torch.arange(16)).flatten()
        assert torch.equal(race[row], want)
        assert torch.equal(token[row], want)
        assert coins[row].item() == reference.coin(seed, position, node)


@triton.jit
def _keys_kernel(words_ptr, key_ptr, floor_ptr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(words_ptr + offsets).to(tl.uint32)
    tl.store(key_ptr + offsets, random.race_key(word))
    tl.store(floor_ptr + offsets, random.race_floor(word))


def hard_words():
    """Words of the whole range, dense at both ends and where the key's formula changes."""
    g = torch.Generator().manual_seed(1)
    small = (2 ** (32 * torch.rand(1 << 17, generator=g).double())).long().clamp_max(2**32 - 1)
    near = [place + torch.arange(-500, 500) for place in (500, 2**31, 2**32 // 3, 2**32 - 501)]
    words = torch.cat([torch.randint(0, 2**32, (1 << 18,), generator=g), small, 2**32 - 1 - small, *near])
    return torch.cat([words, words[: -len(words) % 4096]])


def test_race_keys_are_within_four_ulp():
    words = hard_words()
    keys, floors = torch.empty(2, len(words))
    on_device(_keys_kernel[(len(words) // 4096,)])(words, keys, floors, BLOCK=4096)
    exact = -torch.log1p(-((words.double() + 0.5) * 2.0**-32).clamp_max(1 - 2.0**-24))
    ulp = torch.from_numpy(np.spacing(exact.float().numpy())).double()
    assert ((keys.double() - exact).abs() / ulp).max() <= 4
    assert bool((floors.double() <= exact).all() and (floors <= keys).all())
    assert bool((floors.double() >= (words.double() + 0.5) * 2.0**-32 * (1 - 2.0**-20)).all())
