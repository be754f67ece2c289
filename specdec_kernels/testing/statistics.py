# SPDX-License-Identifier: Apache-2.0
"""Whether counts come from a law."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

LEAST_EXPECTED = 10.0  # draws of a cell; rarer ones are put together
CONFIDENCE = 0.99


@dataclass(frozen=True)
class Finding:
    """A comparison of counts with a law."""

    what: str
    """Whose law: the case."""
    length: int
    """Tokens of the texts that were counted."""
    p_value: float
    """How often a right verifier differs as much; 0 where something impossible was seen."""
    distance: float
    """Total variation between the shares that were seen and the law; what sampling alone gives included."""
    bound: float
    """Of the total variation between the verifier's own law and the exact one, with 99 % confidence."""
    text: tuple[int, ...]
    """The one that differs most, after token 0."""
    seen: float
    expected: float
    """Its share of the draws, and its probability by the law."""
    draws: int
    """Requests; of an exact finding, drafts and cells of random numbers."""
    freedom: int = 0
    """Degrees of freedom of the chi-square."""
    exact: bool = False
    """Whether drafts and random numbers were enumerated, and not drawn. The p-value is then 0 or 1."""

    def power(self, level: float) -> float:
        """The total variation from the law that has a p-value below `level` with 99 % probability.

        Cells put together count as one. At total variation t the noncentrality is at least 4 t^2 draws.
        """
        if self.freedom == 0:
            return 1.0
        return min(0.5 * math.sqrt(_noncentrality(self.freedom, level) / self.draws), 1.0)


def compare(what: str, vocab: int, counts: Tensor, law: Tensor) -> Finding:
    """Pearson's chi-square of [n] counts and a law of n texts, by the number that their tokens make.

    The bound is that of McDiarmid's inequality: the empirical law of d draws over n cells is at most
    sqrt(n / d) / 2 from the true one on average, and exceeds this by e with probability exp(-2 d e^2).
    """
    draws = int(counts.sum())
    shares = counts.double() / draws
    differences = shares - law
    distance = 0.5 * float(differences.abs().sum())
    slack = 0.5 * math.sqrt(len(law) / draws) + math.sqrt(math.log(1.0 / (1.0 - CONFIDENCE)) / (2.0 * draws))
    expected = law * draws
    impossible = (law == 0) & (counts > 0)
    if impossible.any():
        cell, p_value, freedom = int((counts * impossible).argmax()), 0.0, 0
    else:
        common = expected >= LEAST_EXPECTED
        observed = torch.cat([counts[common].double(), counts[~common].double().sum()[None]])
        wanted = torch.cat([expected[common], expected[~common].sum()[None]])
        if wanted[-1] < LEAST_EXPECTED:  # with the rarest of the others, which are many
            observed, wanted = _merged(observed), _merged(wanted)
        square = float(((observed - wanted) ** 2 / wanted).sum())
        freedom = len(wanted) - 1
        p_value = chi_square_tail(square, freedom)
        deviations = differences / (law * (1.0 - law)).clamp(min=1.0 / draws).sqrt()
        cell = int(deviations.abs().argmax())
    length = round(math.log(len(law), vocab))
    text, bound = text_of(cell, vocab, length), min(distance + slack, 1.0)
    seen, expected_share = float(shares[cell]), float(law[cell])
    return Finding(what, length, p_value, distance, bound, text, seen, expected_share, draws, freedom)


def text_of(number: int, vocab: int, length: int) -> tuple[int, ...]:
    """The tokens of a text by its number."""
    return tuple(number // vocab**place % vocab for place in reversed(range(length)))


def _merged(cells: Tensor) -> Tensor:
    return torch.cat([cells[:-2], cells[-2:].sum()[None]])


def chi_square_tail(value: float, freedom: int) -> float:
    """The probability of a larger value.

    Example:
        >>> round(chi_square_tail(3.841459, 1), 6), chi_square_tail(0.0, 0)
        (0.05, 1.0)
    """
    if freedom == 0:
        return 1.0
    half = torch.tensor([freedom / 2.0, value / 2.0], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


@cache
def _noncentrality(freedom: int, level: float) -> float:
    """Of a chi-square that has a p-value below `level` with probability CONFIDENCE."""
    threshold = _bisect(lambda value: chi_square_tail(value, freedom) > level)
    return _bisect(lambda noncentrality: noncentral_tail(threshold, freedom, noncentrality) < CONFIDENCE)


def _bisect(below: Callable[[float], bool]) -> float:
    low, high = 0.0, 1.0
    while below(high):
        low, high = high, 2.0 * high
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if below(middle) else (low, middle)
    return high


def noncentral_tail(value: float, freedom: int, noncentrality: float) -> float:
    """The probability of a larger noncentral chi-square: a mixture of chi-squares by a Poisson law."""
    mean = torch.tensor(noncentrality / 2.0, dtype=torch.float64)
    terms = torch.arange(int(mean + 12.0 * mean.sqrt()) + 20, dtype=torch.float64)
    weights = (torch.xlogy(terms, mean) - mean - torch.lgamma(terms + 1.0)).exp()
    return float(weights @ torch.special.gammaincc(freedom / 2.0 + terms, torch.tensor(value / 2.0).double()))
