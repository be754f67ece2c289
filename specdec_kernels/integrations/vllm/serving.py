# SPDX-License-Identifier: Apache-2.0
"""What both of vLLM's model runners need: methods replaced, steps counted, the rule of a step."""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

from ...rules import Rule, Synthetic

logger = logging.getLogger("vllm.specdec_kernels")  # below the logger that vLLM configures

steps: Counter[str] = Counter()
"""Steps of this process: "served", and others by the reason why vLLM's own code took them."""

Method = Callable[..., Any]


def replace(owner: type, name: str, make: Callable[[Method], Method]) -> bool:
    """Put `make(original)` in place of a method, once, if both have the same parameters."""
    original: Method | None = getattr(owner, name, None)
    if getattr(original, "is_specdec", False):
        return True
    method = make(original or _missing)
    theirs = list(inspect.signature(original).parameters) if original else None
    ours = list(inspect.signature(method).parameters)
    if theirs != ours:
        where = f"{owner.__module__}.{owner.__qualname__}.{name}"
        logger.warning("specdec_kernels: %s has parameters %s, not %s; it stays", where, theirs, ours)
        return False
    setattr(method, "is_specdec", True)  # noqa: B010 (a function has no such attribute for mypy)
    setattr(owner, name, method)
    return True


def _missing(*args: object) -> None: ...


def count(reason: str = "served") -> None:
    """Count a step. The first one of every reason is logged."""
    if reason not in steps:
        if reason == "served":
            logger.info("specdec_kernels verifies drafts")
        else:
            logger.warning("specdec_kernels leaves steps to vLLM: %s", reason)
    steps[reason] += 1


def rule_of(sampler: Any, seeded: bool, has_laws: bool) -> Rule:
    """The rule of a step, for a rejection sampler of either runner.

    Seeded text must not depend on drafts, so a step with a seeded request is verified by rule match.
    """
    if sampler.synthetic_conditional_rates is not None:
        return Synthetic(sampler.synthetic_conditional_rates)
    return "traversal" if has_laws and not seeded else "match"
