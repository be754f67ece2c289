# SPDX-License-Identifier: Apache-2.0
"""Whether a verifier is lossless: texts that it emits, beside their exact law."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._checks import bad_type, bad_value, check_bool, check_int, check_number
from .cases import NEVER, Case, Problem, problems
from .loops import loop_acceptance, loop_texts
from .statistics import CONFIDENCE, Finding, compare

Verifier = Callable[[Case], Sequence[Sequence[int]]]
DRAWS = 8000  # requests of a case
LEAST_ACCEPTED = 0.01  # drafts of a request


@dataclass(frozen=True)
class Verdict:
    """What the referee found. `str(verdict)` is to be read."""

    state: str
    """"LOSSLESS", "BIASED" or "INCONCLUSIVE"."""
    reason: str
    """Why, in a sentence; of a bias its smallest example."""
    findings: tuple[Finding, ...]
    """Every comparison that was made."""
    accepted: float
    """Mean number of accepted drafts of a request."""
    draws: int
    """Requests of each case."""
    level: float
    """How often a right verifier is called biased, at most."""

    def __str__(self) -> str:
        lines = [f"{self.state}: {self.reason}"]
        lines.append(
            f"{len(self.findings)} comparisons of {self.draws} requests each, {self.accepted:.2f} drafts "
            f"accepted on average; a right verifier is called biased in at most {self.level:g} of all runs."
        )
        return "\n".join(lines)


class NotLossless(AssertionError):
    """Raised by `assert_lossless`; `verdict` has what was found."""

    def __init__(self, verdict: Verdict):
        super().__init__(str(verdict))
        self.verdict = verdict


def check_lossless(
    verifier: Verifier | None = None,
    *,
    loop: Callable[..., Any] | None = None,
    trees: bool = False,
    chosen: bool = False,
    batched: bool = True,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = 1e-4,
) -> Verdict:
    """Compare the law of what a verifier emits with the target's.

    A verifier gets a `Case`: drafts, the target's and the drafter's logits, and a generator. It returns for
    each request the tokens that it emits: the accepted drafts and the next token. The referee completes these
    texts with draws from the target. Then whole texts must have the target's law, which is known exactly.
    The counts of first tokens, of pairs and of whole texts are compared with it by chi-square tests.

    Args:
        verifier: `verifier(case) -> [[token, ...], ...]`.
        loop: a whole decoding loop in its place: `loop(target, drafter, prompts, new_tokens, generator) ->
            tokens [B, new_tokens]`. `target` and `drafter` map tokens [B, T] int64 to logits [B, T, V]
            float32, the row of a place being the law of the token after it; `prompts` is [B, 1] int64.
        trees: whether the verifier takes trees. Without, all cases are chains.
        chosen: whether drafts are chosen by the drafter, and have no law (`case.draft_logits` is None).
            Otherwise they are drawn from `case.draft_logits`.
        batched: False: the verifier or loop is called for one request at a time.
        draws: requests of each case, >= 1000. Differences of about 3 / sqrt(draws) are found.
        seed: of drafts and of `case.generator`. With one seed the verdict is deterministic, if the verifier
            draws from `case.generator` alone.
        level: how often a right verifier may be called biased, in all comparisons together.

    Returns:
        `Verdict`. BIASED: at least one law is not the target's. INCONCLUSIVE: no law differs, but nothing was
        drafted or accepted, so there was nothing to see. LOSSLESS: neither.

    Raises:
        ValueError, TypeError: wrong arguments; what the verifier returns is no list of tokens per request, or
            has other lengths than 1 to the depth of the drafts + 1.

    Notes:
        LOSSLESS is no proof. The verdict has the bound on the total variation that the draws give.

    Example:
        >>> import specdec_kernels as sdk
        >>> def ours(case):
        ...     laws = case.draft_logits.flatten(0, 1)
        ...     logits = case.target_logits.flatten(0, 1)
        ...     seeds = torch.randint(1 << 40, (len(case.tokens),), generator=case.generator)
        ...     verified = sdk.verify(logits, case.tree, laws, rule="traversal", seeds=seeds, positions=seeds)
        ...     return [row[:n] for row, n in zip(verified.tokens.tolist(), verified.num_tokens.tolist())]
        >>> check_lossless(ours, trees=True).state
        'LOSSLESS'
    """
    call = "check_lossless"
    if (verifier is None) == (loop is None):
        bad_value(call, "verifier", "or loop must be given, and not both", "both" if loop else "neither")
    for name, function in (("verifier", verifier), ("loop", loop)):
        if function is not None and not callable(function):
            bad_type(call, name, "must be callable", type(function).__name__)
    for name, flag in (("trees", trees), ("chosen", chosen), ("batched", batched)):
        check_bool(call, name, flag)
    check_int(call, "draws", draws, 1000)
    check_int(call, "seed", seed, 0)
    if not 0 < check_number(call, "level", level) < 1:
        bad_value(call, "level", "must be in (0, 1)", level)
    findings: list[Finding] = []
    accepted = []
    found = problems(trees and loop is None, chosen and loop is None)
    for place, problem in enumerate(found):
        number = seed * len(found) + place
        if loop is not None:
            texts = loop_texts(loop, problem, draws, number, batched)
            accepted.append(loop_acceptance(loop, problem, number))
        else:
            assert verifier is not None
            emitted = _emitted(verifier, problem, draws, number, batched)
            texts = problem.complete(emitted, number)
            accepted.append(float((emitted >= 0).sum()) / draws - 1.0)
        findings += _findings(problem, texts)
    return _verdict(tuple(findings), sum(accepted) / len(accepted), draws, level)


def assert_lossless(verifier: Verifier | None = None, **options: Any) -> Verdict:
    """`check_lossless`, for tests.

    Args:
        verifier, options: as for `check_lossless`.

    Returns:
        The `Verdict`, which is LOSSLESS.

    Raises:
        NotLossless: an `AssertionError` with the verdict.
        ValueError, TypeError: as `check_lossless`.

    Example:
        >>> greedy = lambda case: case.target_logits[:, :1].argmax(-1).tolist()
        >>> assert_lossless(greedy)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        specdec_kernels.testing.referee.NotLossless: BIASED: ...
    """
    verdict = check_lossless(verifier, **options)
    if verdict.state != "LOSSLESS":
        raise NotLossless(verdict)
    return verdict


def _emitted(verifier: Verifier, problem: Problem, draws: int, seed: int, batched: bool) -> Tensor:
    """[draws, length] the tokens of each request, then -1."""
    case = problem.draw(draws, seed)
    rows: list[Sequence[int]] = []
    for part in [case] if batched else map(case.one, range(draws)):
        rows += _rows(verifier(part), len(part.tokens))
    lengths = torch.tensor([len(row) for row in rows])
    flat = torch.tensor([token for row in rows for token in row])
    rule = (
        f"in the case '{problem.name}' must emit 1 to {problem.length} tokens in [0, {len(problem.target)})"
    )
    if flat.is_floating_point():
        bad_type("check_lossless", "verifier", rule, flat.dtype)
    if not ((lengths >= 1) & (lengths <= problem.length)).all():
        bad_value("check_lossless", "verifier", rule, f"{lengths.min()} to {lengths.max()} tokens")
    if not ((flat >= 0) & (flat < len(problem.target))).all():
        bad_value("check_lossless", "verifier", rule, f"{flat.min()} to {flat.max()}")
    emitted = torch.full((draws, problem.length), NEVER)
    emitted[torch.arange(problem.length) < lengths[:, None]] = flat
    return emitted


def _rows(returned: Any, requests: int) -> list[Sequence[int]]:
    rule = f"must return a list of {requests} lists of tokens"
    if not isinstance(returned, Sequence) or not all(isinstance(row, Sequence) for row in returned):
        bad_type("check_lossless", "verifier", rule, type(returned).__name__)
    if len(returned) != requests:
        bad_value("check_lossless", "verifier", rule, len(returned))
    return list(returned)


def _findings(problem: Problem, texts: Tensor) -> Iterator[Finding]:
    """First tokens, pairs and whole texts."""
    vocab, law = len(problem.target), problem.law
    counts = torch.bincount(texts, minlength=len(law))
    for length in sorted({1, 2, problem.length}):
        shape = (vocab**length, -1)
        yield compare(problem.name, vocab, counts.view(shape).sum(1), law.view(shape).sum(1))


def _verdict(findings: tuple[Finding, ...], accepted: float, draws: int, level: float) -> Verdict:
    worst = min(findings, key=lambda finding: finding.p_value)
    if worst.p_value < level / len(findings):
        state = "BIASED"
        reason = (
            f"case '{worst.what}', {_first(worst.length)}: total variation {worst.distance:.3f}, "
            f"p = {worst.p_value:.1e}. After token 0, {list(worst.text)} has probability "
            f"{worst.expected:.4f} and was emitted with frequency {worst.seen:.4f}"
        )
    elif accepted < LEAST_ACCEPTED:
        state, reason = "INCONCLUSIVE", "no draft was accepted, so what follows one was not seen"
    else:
        state = "LOSSLESS"
        first = max(finding.bound for finding in findings if finding.length == 1)
        texts = max(finding.bound for finding in findings)
        reason = (
            f"the total variation of no law of first tokens is over {first:.3f}, and of no law of texts over "
            f"{texts:.3f}, each with {CONFIDENCE:.0%} confidence"
        )
    return Verdict(state, reason, findings, accepted, draws, level)


def _first(length: int) -> str:
    return "first token" if length == 1 else f"first {length} tokens"
