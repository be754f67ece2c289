"""How well speculation pays, in numbers on the host."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import bad_value


@dataclass(frozen=True)
class AcceptanceStats:
    """Counts over the steps of a run; one request verified once is one step.

    Args:
        steps: number of them.
        drafted: drafted tokens, the nodes other than roots that carry one.
        passes: sum over steps of the depth drafted, so of passes of the drafter.
        tested: at index d - 1, steps in which depth d was reached and had a draft.
        accepted: at index d - 1, steps in which a draft was accepted at depth d.

    Example:
        >>> stats = AcceptanceStats(steps=10, drafted=20, passes=20, tested=(10, 8), accepted=(8, 4))
        >>> stats.mean_accepted_length, stats.tokens_per_step, stats.acceptance_by_depth
        (1.2, 2.2, [0.8, 0.5])
        >>> round(stats.measured_speedup(0.1), 3), round(stats.expected_speedup(0.1), 3)
        (1.833, 1.759)
    """

    steps: int
    drafted: int
    passes: int
    tested: tuple[int, ...]
    accepted: tuple[int, ...]

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
        """Share of the tests at each depth that accepted a draft, up to the deepest one tested."""
        return [_ratio(a, t) for a, t in zip(self.accepted, self.tested, strict=True) if t]

    @property
    def acceptance_rate(self) -> float:
        """Share of all tests that accepted a draft, the alpha of `expected_speedup`."""
        return _ratio(sum(self.accepted), sum(self.tested))

    def expected_speedup(self, cost_ratio: float, depth: float | None = None) -> float:
        """(1 - a^(k+1)) / ((1 - a) (k c + 1)), were every test to accept with probability a.

        Args:
            cost_ratio: c, time of one pass of the drafter over that of one of the target.
            depth: k, drafts per step; default `mean_depth`.

        Source: Leviathan et al. 2023, theorem 3.8.
        """
        a, k = self.acceptance_rate, self.mean_depth if depth is None else depth
        tokens = k + 1 if a == 1 else (1 - a ** (k + 1)) / (1 - a)
        return tokens / self._cost("expected_speedup", cost_ratio, k)

    def measured_speedup(self, cost_ratio: float) -> float:
        """Tokens per step over the cost of a step, both as counted: `tokens_per_step / (k c + 1)`."""
        return self.tokens_per_step / self._cost("measured_speedup", cost_ratio, self.mean_depth)

    def warning(self, cost_ratio: float) -> str | None:
        """In words, where speculation costs more than it gives; else None.

        Example:
            >>> stats = AcceptanceStats(steps=10, drafted=40, passes=40, tested=(10, 1), accepted=(1, 0))
            >>> stats.warning(0.2)[:36], stats.warning(0.2)[-33:]
            ('speculation costs more than it gives', '0.61x the speed of plain decoding')
            >>> stats.warning(0.01)
        """
        speedup = self.measured_speedup(cost_ratio)
        if not self.steps or speedup >= 1:
            return None
        return (
            f"speculation costs more than it gives: {self.tokens_per_step:.2f} tokens per step, while "
            f"{self.mean_depth:.1f} passes of the drafter at {cost_ratio:.2f} of a target pass make a step "
            f"cost {1 + self.mean_depth * cost_ratio:.2f}; {speedup:.2f}x the speed of plain decoding"
        )

    def _cost(self, operation: str, cost_ratio: float, depth: float) -> float:
        """Of a step, in passes of the target."""
        if not cost_ratio >= 0:
            bad_value(operation, "cost_ratio", "must be >= 0", cost_ratio)
        return depth * cost_ratio + 1


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
