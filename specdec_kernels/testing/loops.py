# SPDX-License-Identifier: Apache-2.0
"""Small models for whole decoding loops, and what loops write with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._checks import bad_type, bad_value
from .cases import Problem

ALONE = 100  # requests by which acceptance is counted


def loop_texts(loop: Callable[..., Any], problem: Problem, draws: int, seed: int, batched: bool) -> Tensor:
    """Numbers of the texts that a loop writes."""
    random, size = torch.Generator().manual_seed(seed), draws if batched else 1
    texts = [_write(loop, problem, _model(problem.target), size, random) for _ in range(draws // size)]
    places = len(problem.target) ** torch.arange(problem.length - 1, -1, -1)
    return torch.cat(texts) @ places


def loop_acceptance(loop: Callable[..., Any], problem: Problem, seed: int) -> float:
    """Tokens for each call of the target, but for the first, over some requests that run alone."""
    random, calls = torch.Generator().manual_seed(seed), 0
    model = _model(problem.target)

    def counted(tokens: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return model(tokens)

    for _ in range(ALONE):
        _write(loop, problem, counted, 1, random)
    return problem.length * ALONE / max(calls, 1) - 1.0


def _model(laws: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda tokens: laws[tokens].log().float()


def _write(
    loop: Callable[..., Any],
    problem: Problem,
    target: Callable[[Tensor], Tensor],
    size: int,
    random: torch.Generator,
) -> Tensor:
    assert problem.draft is not None
    prompts = torch.zeros(size, 1, dtype=torch.int64)
    written = loop(target, _model(problem.draft), prompts, problem.length, random)
    rule = f"must return tokens [{size}, {problem.length}] in [0, {len(problem.target)})"
    if not isinstance(written, Tensor) or written.is_floating_point():
        bad_type("check_lossless", "loop", rule, type(written).__name__)
    if written.shape != (size, problem.length):
        bad_value("check_lossless", "loop", rule, list(written.shape))
    if not ((written >= 0) & (written < len(problem.target))).all():
        bad_value("check_lossless", "loop", rule, int(written.max()))
    return written.long()
