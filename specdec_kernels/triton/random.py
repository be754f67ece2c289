# SPDX-License-Identifier: Apache-2.0
"""The random numbers of `specdec_kernels/_random.py` as device functions: same counters, same bits.

    words = race_words(seed, position, purpose, node, index)   # [n] -> [4 n], the tokens 4 index + lane
    word = token_word(seed, position, purpose, node, token)    # one word per token, any tokens
    key = race_key(word)                                       # E, float32, within 4 ULP of the float64 key
    floor = race_floor(word)                                   # cheap, and never above E
    u = coin(seed, position, node)                             # float32, exact

`seed` and `position` are int64 scalars, `node` an int32 scalar, `purpose` NEXT, RESIDUAL, ACCEPT or DRAFT.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._random import Purpose
from .logarithm import log_binary, split_binary

NEXT = tl.constexpr(int(Purpose.NEXT))
RESIDUAL = tl.constexpr(int(Purpose.RESIDUAL))
ACCEPT = tl.constexpr(int(Purpose.ACCEPT))
DRAFT = tl.constexpr(int(Purpose.DRAFT))

_MULTIPLIER0 = tl.constexpr(0xD2511F53)
_MULTIPLIER1 = tl.constexpr(0xCD9E8D57)
_KEY_STEP0 = tl.constexpr(0x9E3779B9)
_KEY_STEP1 = tl.constexpr(0xBB67AE85)


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10 of uint32 counters and keys, scalars or tensors: four words.

    What is the same for all lanes is best passed as a scalar: the first rounds then compute half of it once.
    """
    for _ in tl.static_range(10):
        product0, product1 = c0.to(tl.uint64) * _MULTIPLIER0, c2.to(tl.uint64) * _MULTIPLIER1
        high0, high1 = (product0 >> 32).to(tl.uint32), (product1 >> 32).to(tl.uint32)
        c0, c1, c2, c3 = high1 ^ (c1 ^ k0), product1.to(tl.uint32), high0 ^ (c3 ^ k1), product0.to(tl.uint32)
        k0 += _KEY_STEP0
        k1 += _KEY_STEP1
    return c0, c1, c2, c3


@triton.jit
def words(seed, position, purpose, node, index):
    """The four words of each index word."""
    return philox(
        tl.cast(index, tl.uint32),
        tl.cast(purpose + 16 * node, tl.uint32),
        position.to(tl.uint32),
        (position >> 32).to(tl.uint32),
        seed.to(tl.uint32),
        (seed >> 32).to(tl.uint32),
    )


@triton.jit
def race_words(seed, position, purpose, node, index):
    """The words of tokens 4 index[i] + lane, in this order: [n] integers -> [4 n] uint32."""
    word0, word1, word2, word3 = words(seed, position, purpose, node, index)
    lanes = tl.join(tl.join(word0, word2), tl.join(word1, word3))
    return tl.reshape(lanes, [4 * index.shape[0]])


@triton.jit
def token_word(seed, position, purpose, node, token):
    """The words of some tokens (>= 0, a scalar or a tensor)."""
    word0, word1, word2, word3 = words(seed, position, purpose, node, token >> 2)
    even = tl.where((token & 2) != 0, word2, word0)
    odd = tl.where((token & 2) != 0, word3, word1)
    return tl.where((token & 1) != 0, odd, even)


@triton.jit
def race_floor(word):
    """A bound of the race key from below that needs no logarithm: v (1 - 2^-22), E = -log1p(-v)."""
    unit: tl.constexpr = 2.0**-32 * (1 - 2.0**-22)
    return word.to(tl.float32) * unit + 0.5 * unit


@triton.jit
def race_key(word):
    """E = -log1p(-v), v = min((word + 0.5) 2^-32, 1 - 2^-24), in float32 without a library's logarithm.

    Small v are used as they are; above one half 1 - v comes from the word's complement.
    """
    upper = word > 0x7FFFFFFF
    v = (tl.where(upper, ~word, word).to(tl.float32) + 0.5) * 2.0**-32
    rest = tl.where(upper, tl.maximum(v, 2.0**-24), 1.0 - v)
    exponent, f = split_binary(rest)
    return -log_binary(exponent, tl.where(upper | (exponent < 0), f, -v))


@triton.jit
def coin(seed, position, node):
    """The acceptance coin of a node, in (0, 1)."""
    word, _, _, _ = words(seed, position, ACCEPT, node, tl.full([], 0, tl.uint32))
    return (word >> 9).to(tl.float32) * 2.0**-23 + 2.0**-24
