# SPDX-License-Identifier: Apache-2.0
"""Exponential races: the token of largest weight / E wins, and so is drawn with its share of the mass.

    score, token = race(weights, words, tokens, score, token)    # one tile; start with 0.0 and NO_TOKEN
    score, token = race_law(row, .., begin, end, ..)             # the part [begin, end) of a law
    score, token = merge_races(scores, tokens)                   # of all parts, their scores in one unit

Ties go to the lowest token. Nothing wins a race of zero weights: its score is 0, its token NO_TOKEN.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .random import race_floor, race_key, race_words
from .row import NO_TOKEN, exponent_of, read_tile


@triton.jit
def race(weights, words, tokens, score, token):
    """The leader (score, token) after a tile; tiles come in ascending order. A NaN weight never leads."""
    floors = race_floor(words)
    # No key is below its floor, so few tokens can still win: only their logarithms are taken, best first.
    if tl.max((weights - floors * score).to(tl.int32, bitcast=True)) > 0:
        bounds = tl.maximum(weights / floors, 0.0)  # of NaN 0
        bound = _most(bounds)
        while bound > score:
            candidate = tl.min(tl.where(bounds == bound, tokens, NO_TOKEN))
            # That bounds take part keeps the words where the weights are, or Philox would run twice.
            mine = (bounds == bound) & (tokens == candidate)
            reached = _most(tl.where(mine, weights, 0.0)) / race_key(tl.max(tl.where(mine, words, 0)))
            if (reached > score) | ((reached == score) & (candidate < token)):
                score = reached
                token = candidate
            bounds = tl.where(mine, 0.0, bounds)
            bound = _most(bounds)
    return score, token


@triton.jit
def _most(x):
    """The largest of numbers >= 0. Their bits compare as they do, and a warp compares integers in one
    step."""
    return tl.max(x.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)


@triton.jit
def race_law(row, begin, end, law, seed, position, purpose, TILE: tl.constexpr):
    """The race over tokens [begin, end) of a row's law, `begin` a multiple of 4."""
    score = tl.full([], 0.0, tl.float32)
    token = tl.full([], NO_TOKEN, tl.int32)
    for start in range(begin, end, TILE):
        tokens = start + tl.arange(0, TILE)
        x = read_tile(row, start, TILE)
        if tl.max(x) >= law.cut:  # few tiles have anything that is kept
            weights = tl.where(x >= law.cut, tl.exp2(exponent_of(x, law.top, law.slope)), 0.0)
            words = race_words(seed, position, purpose, 0, start // 4 + tl.arange(0, TILE // 4))
            score, token = race(weights, words, tokens, score, token)
    return score, token


@triton.jit
def merge_races(scores, tokens):
    """The winner of all parts."""
    top = tl.max(scores)
    return top, tl.min(tl.where(scores == top, tokens, NO_TOKEN))
