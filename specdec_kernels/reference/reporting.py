# SPDX-License-Identifier: Apache-2.0
"""What is reported of emitted tokens: log-probabilities, the likeliest tokens, and sampling masks."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .law import Params, normalised, target_exponents

PLAIN = Params(1.0, 0, 1.0, 0.0, "min_p_first")


class Scores(NamedTuple):
    """Of a row that a token was drawn from."""

    given: Tensor
    """[V] as it was given, of which the laws `raw` and `temperature` are made."""
    row: Tensor
    """[V] with its edits."""
    allowed: Tensor | None
    params: Params


class Report:
    """The outputs of a call, which begin with what they hold where nothing was emitted.

    Args:
        kind: of the law of log-probabilities and ranks.
        logprobs: [B, W] or None.
        report: as `out_report` of a call, [B, W, ...].
        masks: as `out_masks` of a call.
    """

    def __init__(
        self, kind: str, logprobs: Tensor | None, report: list[Tensor], masks: list[Tensor] | None = None
    ) -> None:
        self._kind, self._logprobs, self._report, self._masks = kind, logprobs, report, masks or []
        self.asked = logprobs is not None or bool(report or masks)
        self._kept: dict[tuple[int, int], Tensor] = {}
        if logprobs is not None:
            logprobs.fill_(math.nan)
        for out, nothing in zip(report, (math.nan, -1, 0, math.nan), strict=False):
            out.fill_(nothing)
        for out, nothing in zip(self._masks, (0, math.nan), strict=False):
            out.fill_(nothing)

    def position(self, place: tuple[int, int], scores: Scores, token: int, chosen: Tensor | None) -> None:
        """Report a token that was emitted at position i of request b, `place` being (b, i)."""
        if self._logprobs is not None or self._report:
            z, score = reported_law(scores, self._kind)
            logprob = normalised(z).log()
            if self._logprobs is not None:
                self._logprobs[place] = logprob[token]
            if self._report:
                self._likeliest(place, logprob, score, token)
            if self._report and chosen is not None:
                for j, x in enumerate(chosen[place[0]].tolist()):
                    if 0 <= x < len(z):
                        self._report[3][place][j] = logprob[x]
        if self._masks:
            params = PLAIN._replace(temperature=scores.params.temperature)
            z, _ = target_exponents(scores.row, scores.params, scores.allowed)
            whole, _ = target_exponents(scores.row, params, scores.allowed)
            kept = z > -math.inf
            counts, mass = self._masks[:2]
            counts[place] = int(kept.sum())
            if mass.numel() > 0:
                mass[place] = float(normalised(whole)[kept].sum())
            self._kept[place] = kept.nonzero().squeeze(1)

    def _likeliest(self, place: tuple[int, int], logprob: Tensor, score: Tensor, token: int) -> None:
        top_logprobs, top_tokens, ranks, _ = self._report
        ranks[place] = 1 + int((score > score[token]).sum())
        order = score.sort(descending=True, stable=True).indices[: top_tokens.shape[-1]]
        order = order[score[order] > -math.inf]
        top_tokens[place][: len(order)] = order.to(top_tokens.device)
        top_logprobs[place][: len(order)] = logprob[order].to(top_logprobs)

    def finish(self) -> list[int]:
        """Write the tokens of the masks; return the requests of which some did not fit."""
        if len(self._masks) == 3:
            bits = self._masks[2]
            bits.fill_(0)
            for (b, i), tokens in self._kept.items():
                words = torch.zeros(bits.shape[-1], dtype=torch.int64)
                words.index_add_(0, tokens >> 5, 1 << (tokens & 31))
                bits[b, i] = torch.where(words >= 2**31, words - 2**32, words).to(bits)
        if len(self._masks) < 4:
            return []
        counts, _, ids, offsets = self._masks
        offsets[:1] = 0
        offsets[1:] = counts.flatten().cumsum(0)
        ids.fill_(-1)
        overflown: set[int] = set()
        for (b, i), tokens in self._kept.items():
            begin = int(offsets[b * counts.shape[1] + i])
            fitting = tokens[: max(len(ids) - begin, 0)]
            ids[begin : begin + len(fitting)] = fitting.to(ids)
            if len(fitting) < len(tokens):
                overflown.add(b)
        return sorted(overflown)


def reported_law(scores: Scores, kind: str) -> tuple[Tensor, Tensor]:
    """The law of a kind as `exponents` [V], and the scores [V] that order its tokens: -inf where there is no
    probability."""
    given, row, allowed, params = scores
    if kind != "processed":
        scaled = kind == "temperature" and params.temperature > 0
        params, row, allowed = PLAIN._replace(temperature=params.temperature if scaled else 1.0), given, None
    z, _ = target_exponents(row, params, allowed)
    score = torch.where(z > -math.inf, row.double(), -math.inf)
    if not bool((score > -math.inf).any()):  # a row without a possible token
        score = z
    return z, score
