# SPDX-License-Identifier: Apache-2.0
"""Statistics of acceptance and speed-up, as numbers on the host."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from .._checks import bad_value, check_int, check_ints, check_number

DEPTHS_SHOWN = 8  # in a repr


@dataclass(frozen=True, repr=False)
class AcceptanceStats:
    """Counts over the steps of a run. The verification of one request counts as one step.

    Args:
        steps: number of steps.
        drafted: number of drafted tokens; roots and nodes without a token do not count.
        passes: sum over steps of the drafted depth, which is the number of passes of the drafter.
        tested: at index d - 1, steps in which depth d was reached and had a draft.
        accepted: at index d - 1, steps in which a draft was accepted at depth d.
        seconds: measured time of all the steps, drafting included; 0 = not measured.
        plain_seconds: measured time of plain decoding per token of one request: the time of a step without
            drafts, divided by its number of requests; the median of several. 0 = not measured.
        rows: rows of logits that the target computed in these steps, roots included; 0 = not counted.

    Raises:
        ValueError: negative numbers, `accepted` of another length than `tested`.
        TypeError: counts that are no ints, times that are no numbers.

    Example:
        >>> stats = AcceptanceStats(steps=10, drafted=20, passes=20, tested=(10, 8), accepted=(8, 4))
        >>> stats.mean_accepted_length, stats.tokens_per_step, stats.acceptance_by_depth
        (1.2, 2.2, [0.8, 0.5])
        >>> round(stats.measured_speedup(0.1), 3), round(stats.expected_speedup(0.1), 3)
        (1.833, 1.759)
        >>> stats
        AcceptanceStats(steps=10, tokens_per_step=2.20, drafted_per_step=2.0, acceptance=0.67 (0.80, 0.50))
    """

    steps: int
    drafted: int
    passes: int
    tested: tuple[int, ...]
    accepted: tuple[int, ...]
    seconds: float = 0.0
    plain_seconds: float = 0.0
    rows: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "drafted", "passes", "rows"):
            check_int("AcceptanceStats", name, getattr(self, name), 0)
        for name in ("tested", "accepted"):
            check_ints("AcceptanceStats", name, getattr(self, name), 0)
        if len(self.accepted) != len(self.tested):
            rule = f"must have as many entries as tested, {len(self.tested)}"
            bad_value("AcceptanceStats", "accepted", rule, len(self.accepted))
        for name in ("seconds", "plain_seconds"):
            check_number("AcceptanceStats", name, getattr(self, name), 0)

    def __repr__(self) -> str:
        depths = [f"{rate:.2f}" for rate in self.acceptance_by_depth]
        shown = depths if len(depths) <= DEPTHS_SHOWN else [*depths[:DEPTHS_SHOWN], "..."]
        parts = [
            f"steps={self.steps}",
            f"tokens_per_step={self.tokens_per_step if self.steps else 0:.2f}",
            f"drafted_per_step={_ratio(self.drafted, self.steps):.1f}",
            f"acceptance={self.acceptance_rate:.2f} ({', '.join(shown)})",
        ]
        if self.rows:
            parts.append(f"rows_per_step={_ratio(self.rows, self.steps):.1f}")
        if self.seconds:
            parts.append(f"seconds={self.seconds:.3g}")
        if self.speedup is not None:
            parts.append(f"speedup={self.speedup:.2f}")
        return f"AcceptanceStats({', '.join(parts)})"

    @property
    def tokens(self) -> int:
        """Number of emitted tokens: the accepted drafts, and one next token per step. A step that ended its
        text with a draft (`Finish.DRAFTED`) has no next token, and counts as if it had one."""
        return self.steps + sum(self.accepted)

    @property
    def speedup(self) -> float | None:
        """Measured speed-up: the time of plain decoding for the same tokens divided by the time of the steps,
        `tokens * plain_seconds / seconds`. None if one of the two times was not measured.

        Example:
            >>> counts = dict(steps=10, drafted=40, passes=40, tested=(10, 1), accepted=(1, 0))
            >>> AcceptanceStats(**counts, seconds=0.6, plain_seconds=0.05).speedup
            0.9166666666666667
        """
        if not (self.seconds > 0 and self.plain_seconds > 0):
            return None
        return self.tokens * self.plain_seconds / self.seconds

    @property
    def num_spec_steps(self) -> int:
        """Steps in which the root had a draft: the `num_drafts` of vLLM's counters."""
        return self.tested[0] if self.tested else 0

    @property
    def num_draft_tokens(self) -> int:
        """`drafted`, under the name that vLLM has for it. It counts every node of a tree."""
        return self.drafted

    @property
    def num_accepted_draft_tokens(self) -> int:
        """Accepted drafts."""
        return sum(self.accepted)

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens per step that had a draft, with the next token: 1 + accepted drafts / `num_spec_steps`."""
        return 1.0 + _ratio(self.num_accepted_draft_tokens, self.num_spec_steps)

    @property
    def draft_acceptance_rate(self) -> float:
        """Accepted drafts divided by drafted tokens. On trees at most one of several siblings is accepted."""
        return _ratio(self.num_accepted_draft_tokens, self.num_draft_tokens)

    @property
    def acceptance_histogram(self) -> list[int]:
        """At index j, the steps that had a draft and accepted exactly j; the last entry is not 0. At the
        deepest depth that is counted: j or more. Its sum is `num_spec_steps`.

        Example:
            >>> AcceptanceStats(10, 20, 20, (10, 8), (8, 4)).acceptance_histogram
            [2, 4, 4]
        """
        reached = [self.num_spec_steps, *self.accepted, 0]
        counts = [before - after for before, after in pairwise(reached)]
        while counts and counts[-1] == 0:
            counts.pop()
        return counts

    @property
    def per_position_acceptance_rates(self) -> list[float]:
        """At index d - 1, the share of `num_spec_steps` that accepted a draft at depth d, up to the deepest
        tested depth. `acceptance_by_depth` divides by the steps that reached the depth instead."""
        deepest = sum(1 for count in self.tested if count)
        return [_ratio(count, self.num_spec_steps) for count in self.accepted[:deepest]]

    def to_dict(self) -> dict[str, Any]:
        """The statistics as JSON holds them, under the names that vLLM reports for a request and that load
        generators read. The histogram leaves out zeros, and its keys are strings.

        Example:
            >>> AcceptanceStats(10, 20, 20, (10, 8), (8, 0)).to_dict()["acceptance_histogram"]
            {'0': 2, '1': 8}
        """
        histogram = {str(j): count for j, count in enumerate(self.acceptance_histogram) if count}
        return {
            "mean_acceptance_length": self.mean_acceptance_length,
            "draft_acceptance_rate": self.draft_acceptance_rate,
            "acceptance_histogram": histogram,
            "per_position_acceptance_rates": self.per_position_acceptance_rates,
            "num_spec_steps": self.num_spec_steps,
            "num_draft_tokens": self.num_draft_tokens,
            "num_accepted_draft_tokens": self.num_accepted_draft_tokens,
        }

    @property
    def mean_accepted_length(self) -> float:
        """Accepted drafts per step."""
        return _ratio(sum(self.accepted), self.steps)

    @property
    def tokens_per_step(self) -> float:
        """Emitted tokens per step: the accepted drafts and the next token."""
        return 1.0 + self.mean_accepted_length

    @property
    def mean_depth(self) -> float:
        """Depth drafted per step."""
        return _ratio(self.passes, self.steps)

    @property
    def acceptance_by_depth(self) -> list[float]:
        """For each depth, the share of tests that accepted a draft, up to the deepest tested depth."""
        return [_ratio(a, t) for a, t in zip(self.accepted, self.tested, strict=True) if t]

    @property
    def acceptance_rate(self) -> float:
        """Share of all tests that accepted a draft, the alpha of `expected_speedup`."""
        return _ratio(sum(self.accepted), sum(self.tested))

    def expected_speedup(self, cost_ratio: float, depth: float | None = None) -> float:
        """(1 - a^(k+1)) / ((1 - a) (k c + 1)): the speed-up if every test accepts with probability a.

        Args:
            cost_ratio: c, the time of one pass of the drafter divided by the time of one of the target.
            depth: k, drafted depth per step; default `mean_depth`.

        Returns:
            The speed-up; 1 = as fast as plain decoding.

        Raises:
            ValueError: negative numbers.
            TypeError: no numbers.

        Source: Leviathan et al. 2023, theorem 3.8.
        """
        a, k = self.acceptance_rate, self.mean_depth
        if depth is not None:
            k = check_number("AcceptanceStats.expected_speedup", "depth", depth, 0)
        tokens = k + 1 if a == 1 else (1 - a ** (k + 1)) / (1 - a)
        return tokens / self._cost("AcceptanceStats.expected_speedup", cost_ratio, k)

    def measured_speedup(self, cost_ratio: float) -> float:
        """Tokens per step over the cost of a step: `tokens_per_step / (k c + 1)`.

        The tokens are counted. The cost is a model: it assumes that the target takes as long for a draft as
        for one token. If that is not true, use `speedup`, which is measured.
        """
        return self.tokens_per_step / self._cost(
            "AcceptanceStats.measured_speedup", cost_ratio, self.mean_depth
        )

    def warning(self, cost_ratio: float | None = None) -> str | None:
        """A warning text if speculation is slower than plain decoding; otherwise None.

        It is decided by `speedup` if that was measured, otherwise by `measured_speedup(cost_ratio)`, which
        ignores what drafts cost the target. If there is neither a measured plain step nor a cost ratio,
        timed steps give None.

        Raises:
            ValueError: no cost ratio and no time was measured; a negative cost ratio.

        Example:
            >>> stats = AcceptanceStats(steps=10, drafted=40, passes=40, tested=(10, 1), accepted=(1, 0))
            >>> stats.warning(0.2)[:36], stats.warning(0.2)[-33:]
            ('speculation costs more than it gives', '0.61x the speed of plain decoding')
            >>> stats.warning(0.01)
            >>> from dataclasses import replace
            >>> text = replace(stats, seconds=0.6, plain_seconds=0.05, rows=50).warning()
            >>> text[:36], text[-33:]
            ('speculation costs more than it gives', '0.92x the speed of plain decoding')
        """
        if cost_ratio is None and not self.seconds > 0:
            bad_value(
                "AcceptanceStats.warning", "cost_ratio", "must be given where no time was measured", "None"
            )
        if cost_ratio is not None:
            self._cost("AcceptanceStats.warning", cost_ratio, self.mean_depth)
        if (speedup := self.speedup) is not None:
            return self._slower(speedup) if self.steps and speedup < 1 else None
        if cost_ratio is None:
            return None
        speedup = self.measured_speedup(cost_ratio)
        if not self.steps or speedup >= 1:
            return None
        return (
            f"speculation costs more than it gives: {self.tokens_per_step:.2f} tokens per step, while "
            f"{self.mean_depth:.1f} passes of the drafter at {cost_ratio:.2f} of a target pass make a step "
            f"cost {1 + self.mean_depth * cost_ratio:.2f}; {speedup:.2f}x the speed of plain decoding"
        )

    def _slower(self, speedup: float) -> str:
        plain = self.tokens * self.plain_seconds
        rows = f", while the target read {self.rows / self.steps:.1f} rows" if self.rows else ""
        return (
            f"speculation costs more than it gives: {self.tokens} tokens took {self.seconds:.3g} s, "
            f"{plain:.3g} s by plain decoding at {self.plain_seconds * 1e3:.3g} ms a token; "
            f"{self.tokens_per_step:.2f} tokens per step{rows}; {speedup:.2f}x the speed of plain decoding"
        )

    def _cost(self, operation: str, cost_ratio: float, depth: float) -> float:
        """Cost of a step, in passes of the target."""
        return depth * check_number(operation, "cost_ratio", cost_ratio, 0) + 1


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
