# SPDX-License-Identifier: Apache-2.0
"""Edited scores of rows, as one launch leaves them to all others.

    words    [ceil(V / 32)] int64: which of 32 tokens are edited, in the lower half a bit for each,
             and in the upper half the place of the first of them
    scores   [n] float32: of the edited tokens of a word side by side

    x = edited(row, x, offsets, inside)         # x with the edited scores in their places
    x = edited_tile(row, x, begin)

A row without edits has words of 0. In a row whose next token is forced all bits are set; all words but one
share the places [0, 32) of scores, which are -inf.
"""

from __future__ import annotations

import triton
import triton.language as tl

FORCED = tl.constexpr(32)  # the first place of the word of a forced token


def edited_words(vocab: int, places: int) -> int:
    """Of 8 bytes, a row's, where at most so many tokens can be edited; a multiple of 16 bytes."""
    return -(-(-(-vocab // 32) + -(-max(places, 64) // 2)) // 2) * 2


@triton.jit
def places_of(edits, size):
    """-> the scores."""
    return (edits + ((size + 31) >> 5)).to(tl.pointer_type(tl.float32))


@triton.jit
def word_of(bits, first):
    """From int32 bits and the place of the first of them."""
    return (first.to(tl.int64) << 32) | (bits.to(tl.int64) & 0xFFFFFFFF)


@triton.jit
def place_in(word, token):
    """Whether tokens are edited, and the places of their scores."""
    bits, shift = word.to(tl.int32), (token & 31).to(tl.int32)
    below = bits & ((1 << shift) - 1)
    return ((bits >> shift) & 1) != 0, (word >> 32).to(tl.int32) + ones(below)


@triton.jit
def ones(bits):
    """How many bits of int32 are set: what compilers know as one instruction."""
    x = bits.to(tl.uint32, bitcast=True)
    x -= (x >> 1) & 0x55555555
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def edited(row, x, offsets, inside):
    """Scores of some entries of a row, float32; x is what the row has there."""
    word = tl.load(row.edits + (offsets >> 5), mask=inside, other=0)
    there, place = place_in(word, offsets)
    return tl.load(places_of(row.edits, row.size) + place, mask=inside & there, other=x)


@triton.jit
def edited_tile(row, x, begin):
    """The same of entries side by side, from a multiple of eight on. What a thread reads at once is looked up
    at once: sixteen bytes have one word."""
    SIZE: tl.constexpr = x.shape[0]
    TOGETHER: tl.constexpr = 128 // row.data.dtype.element_ty.primitive_bitwidth
    first = begin + tl.arange(0, SIZE // TOGETHER) * TOGETHER
    word = tl.load(row.edits + (first >> 5), mask=first < row.size, other=0)
    _, place = place_in(word, first)
    bits = (word.to(tl.int32) >> (first & 31))[:, None] >> tl.arange(0, TOGETHER)[None, :] & 1
    place = place[:, None] + tl.cumsum(bits, 1) - bits
    there, place = tl.reshape(bits != 0, [SIZE]), tl.reshape(place, [SIZE])
    return tl.load(places_of(row.edits, row.size) + place, mask=there, other=x)
