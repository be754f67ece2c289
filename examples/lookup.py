"""Prompt lookup: the text so far is the draft model."""

from collections.abc import Mapping, Sequence

import numpy as np

# How often the token after a repeated n-gram is the one that followed it before. Counted on texts that this
# model wrote for prompts other than the demo's; longer repeats count as the last entry.
TRUST = {1: 0.15, 2: 0.4, 3: 0.55, 4: 0.65, 5: 0.8, 6: 0.95}


class PromptLookup:
    """Draft what followed the most recent earlier occurrence of the context's longest repeated suffix.

    Suffixes of max_ngram tokens down to min_ngram are considered; where none occurred before, nothing is
    drafted. Given step_costs, the duration of a step by the number of tokens it feeds to the model, a draft
    is only as long as it is expected to pay: after a short repeat that may be not at all.
    """

    def __init__(
        self,
        num_draft: int = 15,
        max_ngram: int = 6,
        min_ngram: int = 2,
        step_costs: Mapping[int, float] | None = None,
    ):
        self.num_draft = num_draft
        self.max_ngram = max_ngram
        self.min_ngram = min_ngram
        self.lengths = {
            matched: num_draft if step_costs is None else _best_length(matched, num_draft, step_costs)
            for matched in range(min_ngram, max_ngram + 1)
        }

    def __call__(self, context: Sequence[int]) -> list[int]:
        tokens = np.asarray(context)
        ends = np.flatnonzero(tokens[:-1] == tokens[-1])  # where an earlier occurrence of the suffix ends
        matched = 1 if ends.size else 0
        while 0 < matched < self.max_ngram:
            longer = ends[ends >= matched]
            longer = longer[tokens[longer - matched] == tokens[-1 - matched]]
            if not longer.size:
                break
            ends = longer
            matched += 1
        if matched < self.min_ngram:
            return []
        # Where the continuation reaches the end of the context it goes on with itself: a repetition repeats.
        return np.resize(tokens[ends[-1] + 1 :], self.lengths[matched]).tolist()


def _best_length(matched: int, num_draft: int, step_costs: Mapping[int, float]) -> int:
    """The draft length with the most expected tokens per second."""
    trust = TRUST[min(matched, max(TRUST))]
    lengths = np.arange(num_draft + 1)
    expected_tokens = np.cumsum(trust**lengths)
    costs = np.interp(lengths + 1, list(step_costs), list(step_costs.values()))
    return int(np.argmax(expected_tokens / costs))
