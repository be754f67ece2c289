# SPDX-License-Identifier: Apache-2.0
"""Verification rules. A lossless rule is a name; a lossy rule is an object with its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor

from . import _debug
from ._checks import (
    bad_type,
    bad_value,
    check_device,
    check_dtype,
    check_int,
    check_number,
    check_numbers,
)

LOSSLESS = ("match", "token", "traversal")
GREEDILY = (*LOSSLESS, "threshold", "ensemble")  # follow the argmax at temperature 0
READS_DRAFT = ("token", "traversal", "lenient", "ensemble")
MOST_WINDOW = 1 << 20


@dataclass(frozen=True)
class Typical:
    """Medusa's typical acceptance: a drafted token passes if `p(x) > min(epsilon, delta * exp(-H(p)))`.

    **Not lossless**: the law of the output moves towards the drafter's choices.

    Args:
        epsilon: upper limit of the required probability, in [0, 1].
        delta: scale of the entropy-dependent bound, >= 0.

    Raises:
        ValueError: a number out of range.
        TypeError: not a number.

    At temperature 0 the test uses the softmax of the unscaled logits.

    Source: Cai et al. 2024, Medusa, section 2.3.1.

    Example:
        >>> Typical(epsilon=0.1).lossless
        False
    """

    epsilon: float = 0.09
    delta: float = 0.3

    name: ClassVar[str] = "typical"
    lossless: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_number("Typical", "epsilon", self.epsilon, 0.0, 1.0)
        check_number("Typical", "delta", self.delta, 0.0)

    @property
    def values(self) -> list[float]:
        return [float(self.epsilon), float(self.delta)]


@dataclass(frozen=True)
class Relaxed:
    """Relaxed acceptance: a drafted token passes if it is in the target's top-k and `p_max - p(x) <= delta`.

    **Not lossless**: if tokens are nearly tied, the drafter decides.

    Args:
        top_k: size of the candidate set, >= 1; tokens tied with the last one belong to it.
        delta: largest accepted `p_max - p(x)`, in [0, 1].

    Raises:
        ValueError: a number out of range.
        TypeError: not a number.

    A token with `p(x) = 0` never passes. At temperature 0 the test uses the softmax of the unscaled logits.

    Source: the relaxed acceptance of TensorRT-LLM's DeepSeek-R1 multi-token prediction.

    Example:
        >>> Relaxed(top_k=5).values
        [5.0, 0.6]
    """

    top_k: int = 10
    delta: float = 0.6

    name: ClassVar[str] = "relaxed"
    lossless: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_int("Relaxed", "top_k", self.top_k, 1)
        check_number("Relaxed", "delta", self.delta, 0.0, 1.0)

    @property
    def values(self) -> list[float]:
        return [float(self.top_k), float(self.delta)]


@dataclass(frozen=True)
class Lenient:
    """The token rule with the draft's law scaled down: a drafted token passes if `u * Q(x) / factor < p(x)`.

    **Not lossless** for `factor > 1`, and on trees not for `factor = 1` either: every sibling is tested
    against the unchanged p, and the next token is drawn from p, not from a residual.

    Args:
        factor: >= 1; a larger factor accepts more.

    Raises:
        ValueError: a number out of range.
        TypeError: not a number.

    Source: the lenience of Leviathan et al. 2023, appendix A.5 (their `l = 1 / factor`).

    Example:
        >>> Lenient(2.0).name
        'lenient'
    """

    factor: float

    name: ClassVar[str] = "lenient"
    lossless: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_number("Lenient", "factor", self.factor, 1.0)

    @property
    def values(self) -> list[float]:
        return [float(self.factor)]


@dataclass(frozen=True, eq=False)
class Synthetic:
    """Accepts by coins alone and ignores the logits: for benchmarks of an engine at a chosen acceptance rate.

    **Not lossless**, and not meant to produce text.

    Args:
        rate: acceptance probability of a node given its parent, in [0, 1]; or one rate per depth 1, 2, ...,
            of which the last one also holds for greater depths. A tensor [D] or [] float32 | float64 on the
            device of `target_logits` is read there in every call: nothing synchronises, a captured graph
            sees what the tensor holds when it is replayed, and no kernel is compiled for other rates. Rates
            of a tensor count as float32; they are checked only with `SPECDEC_DEBUG=1` in the environment.

    Raises:
        ValueError: a number out of range, no rates, a tensor of more dimensions.
        TypeError: not a number, a tensor of another dtype.

    Example:
        >>> Synthetic([0.9, 0.7]).values
        [0.9, 0.7]
        >>> Synthetic(torch.tensor([0.9, 0.7])).values
        []
    """

    rate: float | Sequence[float] | Tensor

    name: ClassVar[str] = "synthetic"
    lossless: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if isinstance(self.rate, Tensor):
            check_dtype("Synthetic", "rate", self.rate, (torch.float32, torch.float64))
            if self.rate.dim() > 1 or not self.rate.numel():
                bad_value("Synthetic", "rate", "must have shape [D], D >= 1, or []", list(self.rate.shape))
            return
        if isinstance(self.rate, Real):
            check_number("Synthetic", "rate", self.rate, 0.0, 1.0)
            return
        object.__setattr__(self, "rate", tuple(check_numbers("Synthetic", "rate", self.rate, 0.0, 1.0)))
        if not self.rate:
            bad_value("Synthetic", "rate", "must hold at least one number", "none")

    @property
    def values(self) -> list[float]:
        if isinstance(self.rate, Tensor):
            return []
        rates = self.rate if isinstance(self.rate, tuple) else (self.rate,)
        return [float(rate) for rate in rates]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Synthetic):
            return NotImplemented
        if isinstance(self.rate, Tensor) or isinstance(other.rate, Tensor):
            return self.rate is other.rate
        return self.rate == other.rate

    def __hash__(self) -> int:
        return hash((self.name, id(self.rate) if isinstance(self.rate, Tensor) else self.rate))


@dataclass(frozen=True)
class Deferred:
    """FLy's deferred window: a drafted token that is not the target's likeliest passes if the target is
    unsure there, and if the tokens drafted after it agree with the target.

    **Not lossless**: where the target is unsure, the drafter decides.

    A token *matches* if no token is likelier under p. A token that does not match, at a node whose p has an
    entropy of at least `entropy`, is kept if the next `window` tokens of its path all match. If one of them
    does not match, or the path is shorter, it is not kept, nor is what follows it.

    Args:
        entropy: in nats, >= 0: where the target is less unsure, a token has to match.
        window: how many tokens have to match after one that does not, >= 0.

    Raises:
        ValueError: a number out of range.
        TypeError: not a number.

    A token with `p(x) = 0` never passes. At temperature 0 the test uses the softmax of the unscaled logits.

    Source: Li et al. 2025, Training-Free Loosely Speculative Decoding (FLy). Their code takes the entropy of
    the three likeliest tokens, and lets no token of the last `window` pass; here it is that of all tokens.

    Example:
        >>> Deferred(window=4).values
        [0.3, 4.0]
    """

    entropy: float = 0.3
    window: int = 6

    name: ClassVar[str] = "deferred"
    lossless: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_number("Deferred", "entropy", self.entropy, 0.0)
        check_int("Deferred", "window", self.window, 0, MOST_WINDOW)

    @property
    def values(self) -> list[float]:
        return [float(self.entropy), float(self.window)]


@dataclass(frozen=True)
class Threshold:
    """SGLang's target-only test: the coin of a node is held against p, summed over its children so far.

    **Not lossless** below (1, 1). With (1, 1) and distinct siblings the output has the target's law, whatever
    was drafted; siblings that hold the same token count twice, which is not lossless.

    A child with token x passes if `u * acc < p(x) + p of the siblings before it` or `p(x) >= single`. Here u
    is one coin for all children of a node. If none passes, the next token is drawn from p without their
    tokens. The draft's law is not read.

    Args:
        single: in [0, 1]; a token of at least this probability passes; 1 = off.
        acc: in [0, 1]; what the coin is multiplied by; 1 = off.

    Raises:
        ValueError: a number out of range.
        TypeError: not a number.

    Source: `tree_speculative_sampling_target_only` of SGLang, with `threshold_single` and `threshold_acc`.

    Example:
        >>> Threshold(acc=0.5).values
        [1.0, 0.5]
    """

    single: float = 1.0
    acc: float = 1.0

    name: ClassVar[str] = "threshold"
    lossless: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_number("Threshold", "single", self.single, 0.0, 1.0)
        check_number("Threshold", "acc", self.acc, 0.0, 1.0)

    @property
    def values(self) -> list[float]:
        return [float(self.single), float(self.acc)]


@dataclass(frozen=True)
class Ensemble:
    """The token rule against a mixture of both laws: a drafted token passes if
    `u * Q(x) < weight * P(x) + (1 - weight) * Q(x)`.

    **Not lossless** for `weight < 1`: where a token was drafted, the law of the output on a chain is
    `weight * p + (1 - weight) * q`. After rejections the next token comes from the residual of the token
    rule, which is that of the mixture too; after the last drafted token it comes from p.

    Args:
        weight: of the target, in [0, 1]; 1 is the token rule.

    Raises:
        ValueError: a number out of range.
        TypeError: not a number.

    A token that the target's cuts or its bitmask exclude may pass: mask the draft's logits too. Requests of
    temperature 0 are verified greedily.

    Source: `assistant_ensemble_weight` of transformers 5.24, after DIVERSE (arXiv 2604.07622). There,
    temperature 0 compares with the likeliest token of the mixture.

    Example:
        >>> Ensemble(0.9).name
        'ensemble'
    """

    weight: float

    name: ClassVar[str] = "ensemble"
    lossless: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_number("Ensemble", "weight", self.weight, 0.0, 1.0)

    @property
    def values(self) -> list[float]:
        return [float(self.weight)]


Rule = str | Typical | Relaxed | Lenient | Synthetic | Deferred | Threshold | Ensemble


def resolve(operation: str, rule: Rule, has_draft_logits: bool) -> tuple[str, list[float]]:
    """The rule's name and its numbers. `"auto"` is traversal if there are draft logits, otherwise match."""
    if isinstance(rule, str):
        if rule == "auto":
            return ("traversal" if has_draft_logits else "match"), []
        if rule not in LOSSLESS:
            names = ", ".join(("auto", *LOSSLESS))
            bad_value(operation, "rule", f"must be one of {names} or a rule object", repr(rule))
        return rule, []
    if not isinstance(rule, Rule):
        bad_type(operation, "rule", "must be a name or a rule object", type(rule).__name__)
    return rule.name, rule.values


def rates_on(operation: str, rule: Rule, device: torch.device) -> Tensor | None:
    """[D] float32, the rates of a `Synthetic` that has them in a tensor, which must be on the device."""
    if not isinstance(rule, Synthetic) or not isinstance(rule.rate, Tensor):
        return None
    check_device(operation, "rule.rate", rule.rate, device)
    rates = rule.rate.reshape(-1).to(torch.float32).contiguous()
    if _debug.enabled():
        _debug.check_rates(operation, rates)
    return rates
