# SPDX-License-Identifier: Apache-2.0
"""Whether a verifier is lossless: texts that it emits, beside their exact law."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._checks import bad_type, bad_value, check_bool, check_int, check_number
from .cases import NEVER, Case, Problem, exact_problems, problems
from .exact import NotFollowed, enumerated
from .example import example_of
from .loops import Use, loop_texts, loop_use
from .statistics import CONFIDENCE, Finding, compare

Verifier = Callable[[Case], Sequence[Sequence[int]]]
DRAWS = 8000  # requests of a case
LEAST_DRAWS = 1000  # for LOSSLESS
LEAST_ACCEPTED = 0.01  # drafts of a request
AGAIN = 1e-3  # the largest p-value of a bias in its second comparison, which has twice the draws
OTHER_DRAWS = 1 << 30  # added to the number of a case's draws for that comparison


@dataclass(frozen=True)
class Verdict:
    """What the referee found. `str(verdict)` is to be read."""

    state: str
    """"LOSSLESS", "BIASED" or "INCONCLUSIVE"."""
    reason: str
    """Why, in a sentence."""
    findings: tuple[Finding, ...]
    """Every comparison that was made. What was a bias and was none when it was repeated is there as it was
    then."""
    enumeration: str
    """Which cases were enumerated, or why none was."""
    accepted: float
    """Mean number of accepted drafts of a request."""
    draws: int
    """Requests of each case."""
    level: float
    """How often a right verifier is called biased, at most."""
    example: str = ""
    """Of a bias: a program that shows it, with the `verifier` or the `loop` defined above it."""

    def __str__(self) -> str:
        drawn = sum(not finding.exact for finding in self.findings)
        lines = [
            f"{self.state}: {self.reason}.",
            f"{self.enumeration}.",
            f"{drawn} comparisons of {self.draws} requests each, {self.accepted:.2f} drafts accepted on "
            f"average; a right verifier is called biased in at most {self.level:g} of all runs.",
        ]
        if self.example:
            lines += ["This program shows it:", "", self.example]
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
    The counts of first tokens, of pairs and of whole texts are compared with it by chi-square tests. A bias
    has to be seen twice: its case is drawn again, with twice the requests.

    Where a verifier draws by torch's `rand`, `rand_like`, `uniform_` or `multinomial` alone, one or two more
    cases are enumerated: all drafts, and a grid of its random numbers. What they say is no matter of chance,
    as far as a number is compared with probabilities and used for nothing else.

    Args:
        verifier: `verifier(case) -> [[token, ...], ...]`.
        loop: a whole decoding loop in its place: `loop(target, drafter, prompts, new_tokens, generator) ->
            tokens [B, new_tokens]`. `target` and `drafter` map tokens [B, T] int64 to logits [B, T, V]
            float32, the row of a place being the law of the token after it; `prompts` is [B, 1] int64.
        trees: whether the verifier takes trees. Without, all cases are chains.
        chosen: whether drafts are chosen by the drafter, and have no law (`case.draft_logits` is None).
            Otherwise they are drawn from `case.draft_logits`.
        batched: False: the verifier or loop is called for one request at a time.
        draws: requests of each case. With fewer than 1000 no verdict is LOSSLESS.
        seed: of drafts and of `case.generator`. With one seed the verdict is deterministic, if the verifier
            draws from `case.generator` alone.
        level: how often a right verifier is called biased at most, in all comparisons together.

    Returns:
        `Verdict`. BIASED: at least one law is not the target's. INCONCLUSIVE: no law differs, but there was
        too little to see: too few draws, no draft, or none that was accepted. LOSSLESS: neither.

    Raises:
        ValueError, TypeError: wrong arguments; what the verifier returns is no list of tokens per request, or
            has other lengths than 1 to the depth of the drafts + 1.

    Notes:
        LOSSLESS is no proof. The verdict says which total variation would have been found.

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
    check_int(call, "draws", draws, 1)
    check_int(call, "seed", seed, 0)
    if not 0 < check_number(call, "level", level) < 1:
        bad_value(call, "level", "must be in (0, 1)", level)
    kinds = trees and loop is None, chosen and loop is None
    findings: list[Finding] = []
    uses: list[Use] = []
    found = problems(*kinds)

    def emitted_of(problem: Problem, requests: int, number: int) -> Tensor:
        if loop is not None:
            return loop_texts(loop, problem, requests, number, batched)
        assert verifier is not None
        return _emitted(verifier, problem, problem.draw(requests, number), batched)

    def use_of(problem: Problem, emitted: Tensor, number: int) -> Use:
        if loop is not None:
            return loop_use(loop, problem, number)
        return _use(problem, problem.draw(len(emitted), number).tokens, emitted)

    for place, problem in enumerate(found):
        number = seed * len(found) + place
        emitted = emitted_of(problem, draws, number)
        uses.append(use_of(problem, emitted, number))
        findings += _findings(problem, emitted, number)
    enumeration = "No case was enumerated: it is a loop"
    if verifier is not None:
        exact = exact_problems(*kinds, batched)
        enumeration = _enumerate(verifier, exact, batched, findings)
        found += exact
    limit = level / sum(not finding.exact for finding in findings)

    def again(finding: Finding) -> Finding:
        place = next(place for place, problem in enumerate(found) if problem.name == finding.what)
        problem, number = found[place], seed * len(found) + place + OTHER_DRAWS
        repeated = _findings(problem, emitted_of(problem, 2 * draws, number), number)
        return next(other for other in repeated if other.length == finding.length)

    shown = _seen_twice(findings, limit, again)
    state, reason = _judge(findings, shown, uses, draws, limit)
    example = ""
    if shown is not None:
        problem = next(problem for problem in found if problem.name == shown.what)
        example = example_of(shown, problem, loop is not None, batched)
    accepted = sum(use.accepted for use in uses) / len(uses)
    return Verdict(state, reason, tuple(findings), enumeration, accepted, draws, level, example)


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


def _emitted(verifier: Verifier, problem: Problem, case: Case, batched: bool) -> Tensor:
    """[B, length] the tokens of each request, then -1."""
    draws = len(case.tokens)
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
    if not isinstance(returned, Sequence) or not all(isinstance(row, (list, Sequence)) for row in returned):
        bad_type("check_lossless", "verifier", rule, type(returned).__name__)
    if len(returned) != requests:
        bad_value("check_lossless", "verifier", rule, len(returned))
    return list(returned)


def _findings(problem: Problem, emitted: Tensor, number: int) -> Iterator[Finding]:
    """First tokens, pairs and whole texts."""
    vocab, law, texts = len(problem.target), problem.law, problem.complete(emitted, number)
    counts = torch.bincount(texts, minlength=len(law))
    for length in sorted({1, 2, problem.length}):
        shape = (vocab**length, -1)
        yield compare(problem.name, vocab, counts.view(shape).sum(1), law.view(shape).sum(1))


def _use(problem: Problem, drafts: Tensor, emitted: Tensor) -> Use:
    accepted, others = problem.accepted(drafts, emitted), (emitted >= 0).sum(1) - 1
    return Use(float(accepted.double().mean()), ignored=bool((others > accepted).any()))


def _enumerate(verifier: Verifier, exact: list[Problem], batched: bool, findings: list[Finding]) -> str:
    """Adds the findings of cases that can be enumerated, and says which."""
    done = []
    for problem in exact:
        try:
            run = partial(_emitted, verifier, problem, batched=True)
            done.append(enumerated(run, problem, batched))
        except NotFollowed as reason:
            return f"No case was enumerated: {reason}"
    findings += done
    listed = ", ".join(f"'{f.what}' (total variation at most {f.bound:.3f})" for f in done)
    return f"Enumerated, all drafts and random numbers: {listed}"


def _seen_twice(findings: list[Finding], limit: float, again: Callable[[Finding], Finding]) -> Finding | None:
    """The smallest bias. What is no bias the second time takes its place in the list: the counts of rare
    texts have small p-values more often than a chi-square has."""
    while biased := [finding for finding in findings if finding.p_value < limit]:
        shown = min(biased, key=lambda f: (not f.exact, f.length, f.p_value))
        if not shown.freedom or (repeated := again(shown)).p_value < max(AGAIN, limit):
            return shown  # where freedom is 0, something impossible was seen or the law is known
        findings[findings.index(shown)] = repeated
    return None


def _judge(
    findings: list[Finding], shown: Finding | None, uses: list[Use], draws: int, limit: float
) -> tuple[str, str]:
    """The state and the reason."""
    if shown is not None:
        how = "by enumeration" if shown.exact else f"p = {shown.p_value:.1e}"
        reason = (
            f"case '{shown.what}', {_first(shown.length)}: total variation {shown.distance:.3f}, {how}. "
            f"After token 0, {list(shown.text)} has probability {shown.expected:.4f} and was emitted with "
            f"frequency {shown.seen:.4f}"
        )
        return "BIASED", reason
    if not any(use.drafted for use in uses):
        return "INCONCLUSIVE", "nothing was drafted: the loop never called the drafter"
    if any(use.ignored for use in uses):
        return "INCONCLUSIVE", "drafts were ignored: tokens before the last are no drafts"
    if sum(use.accepted for use in uses) / len(uses) < LEAST_ACCEPTED:
        return "INCONCLUSIVE", "no draft was accepted, so what follows one was not seen"
    if draws < LEAST_DRAWS:
        return "INCONCLUSIVE", f"{draws} draws of each case are too few: {LEAST_DRAWS} are needed"
    uncertain = [finding for finding in findings if finding.freedom]
    first = max(finding.power(limit) for finding in uncertain if finding.length == 1)
    texts = max(finding.power(limit) for finding in uncertain)
    reason = (
        f"no law differs. A total variation of {first:.3f} in a law of first tokens, or of {texts:.3f} in a "
        f"law of texts, would have been found with {CONFIDENCE:.0%} probability"
    )
    return "LOSSLESS", reason


def _first(length: int) -> str:
    return "first token" if length == 1 else f"first {length} tokens"
