# SPDX-License-Identifier: Apache-2.0
"""N-grams counted in texts, and how far each is to be trusted."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ..drafters.ngrams import BEST, ORDERS, Ngrams, keys_of

Text = tuple[Sequence[int], Sequence[int]]  # prompt and answer
Counts = dict[int, dict[int, Counter[int]]]  # by order and key, how often each token came next
Kind = tuple[int, ...]  # what an entry's chance is estimated from


def distil(texts: Sequence[Text], folds: int = 4, least: float = 0.1) -> tuple[Ngrams, float]:
    """The table of some texts, and the share of next tokens that its first guess hits in texts left out.

    Chances are those of a table of the other texts, on each fold in turn. Entries whose chance is below
    `least` are left out.
    """
    chances, share = _chances(texts, folds)
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for order, entries in _count(texts).items():
        keys, tokens, percents = [], [], []
        for key, counter in sorted(entries.items()):
            best = counter.most_common(BEST)
            found = [chances.get(_kind(order, counter, rank), 0.0) for rank in range(len(best))]
            if found[0] < least:
                continue
            missing = [0] * (BEST - len(best))
            keys.append(key)
            tokens.append([token for token, _ in best] + missing)
            percents.append([round(100 * chance) if chance >= least / 2 else 0 for chance in found] + missing)
        arrays[f"keys{order}"] = np.array(keys, dtype=np.uint64)
        arrays[f"tokens{order}"] = np.array(tokens, dtype=np.uint16).reshape(-1, BEST)
        arrays[f"chances{order}"] = np.array(percents, dtype=np.uint8).reshape(-1, BEST)
    return Ngrams(arrays), share


def _chances(texts: Sequence[Text], folds: int) -> tuple[dict[Kind, float], float]:
    """How often entries of each kind are right in texts left out, and how often a table's first guess is."""
    hits: Counter[Kind] = Counter()
    cases: Counter[Kind] = Counter()
    right = places = 0
    for fold in range(folds):
        counts = _count(text for number, text in enumerate(texts) if number % folds != fold)
        for context, token in _places(texts[fold::folds]):
            places += 1
            keys = ((order, key) for order, key in keys_of(context).items() if key in counts[order])
            order, key = next(keys, (0, 0))
            if not order:
                continue
            counter = counts[order][key]
            guesses = [guess for guess, _ in counter.most_common(BEST)]
            for rank, guess in enumerate(guesses):
                cases[_kind(order, counter, rank)] += 1
                hits[_kind(order, counter, rank)] += guess == token
            right += guesses[0] == token
    return {kind: (hits[kind] + 0.5) / (cases[kind] + 5) for kind in cases}, right / max(places, 1)


def _count(texts: Iterable[Text]) -> Counts:
    counts: Counts = {order: defaultdict(Counter) for order in ORDERS}
    for context, token in _places(texts):
        for order, key in keys_of(context).items():
            counts[order][key][token] += 1
    return counts


def _places(texts: Iterable[Text]) -> Iterator[tuple[Sequence[int], int]]:
    """Every token of the answers, with the few before it; prompts are context alone."""
    for prompt, answer in texts:
        text = [*prompt[-ORDERS[0] :], *answer]
        for place in range(len(text) - len(answer), len(text)):
            yield text[max(place - ORDERS[0], 0) : place], text[place]


def _kind(order: int, counter: Counter[int], rank: int) -> Kind:
    """Order, place, and how often and how mostly the entry was seen."""
    total = sum(counter.values())
    seen = counter.most_common(BEST)[rank][1]
    return order, rank, min(total, 8).bit_length(), min(seen, 8).bit_length(), round(4 * seen / total)
