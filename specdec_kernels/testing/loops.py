# SPDX-License-Identifier: Apache-2.0
"""Small models for whole decoding loops, and what loops write with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._checks import bad_type, bad_value
from .cases import Problem

ALONE = 25  # requests by which acceptance is counted


class Use(NamedTuple):
    """What a verifier or a loop does with drafts."""

    accepted: float
    """Drafts of a request, on average."""
    drafted: bool = True
    """Whether there are drafts."""
    ignored: bool = False
    """Whether some tokens before the last of a request are no drafts."""


def loop_texts(loop: Callable[..., Any], problem: Problem, draws: int, seed: int, batched: bool) -> Tensor:
    """[draws, length] the texts that a loop writes."""
    random, size = torch.Generator().manual_seed(seed), draws if batched else 1
    assert problem.draft is not None
    models = _model(problem.target), _model(problem.draft)
    return torch.cat([_write(loop, problem, models, size, random) for _ in range(draws // size)])


def loop_use(loop: Callable[..., Any], problem: Problem, seed: int) -> Use:
    """Counted over some requests that run alone: tokens for each call of the target but for the first."""
    random, calls = torch.Generator().manual_seed(seed), {"target": 0, "drafter": 0}

    def counted(name: str, laws: Tensor) -> Callable[[Tensor], Tensor]:
        def model(tokens: Tensor) -> Tensor:
            calls[name] += 1
            return _model(laws)(tokens)

        return model

    assert problem.draft is not None
    models = counted("target", problem.target), counted("drafter", problem.draft)
    for _ in range(ALONE):
        _write(loop, problem, models, 1, random)
    return Use(problem.length * ALONE / max(calls["target"], 1) - 1.0, drafted=calls["drafter"] > 0)


def _model(laws: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda tokens: laws[tokens].log().float()


def _write(
    loop: Callable[..., Any],
    problem: Problem,
    models: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]],
    size: int,
    random: torch.Generator,
) -> Tensor:
    prompts = torch.zeros(size, 1, dtype=torch.int64)
    written = loop(*models, prompts, problem.length, random)
    rule = f"must return tokens [{size}, {problem.length}] in [0, {len(problem.target)})"
    if not isinstance(written, Tensor) or written.is_floating_point():
        bad_type("check_lossless", "loop", rule, type(written).__name__)
    if written.shape != (size, problem.length):
        bad_value("check_lossless", "loop", rule, list(written.shape))
    if not ((written >= 0) & (written < len(problem.target))).all():
        bad_value("check_lossless", "loop", rule, int(written.max()))
    return written.long()
