# SPDX-License-Identifier: Apache-2.0
"""What steps cost, learned from the steps themselves, on the host."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._checks import (
    bad_type,
    bad_value,
    check_dtype,
    check_int,
    check_number,
    check_shape,
    check_type,
    device_named,
)
from .budget import Budget, check_costs

KNOTS = 2  # of the curve, in each doubling of the rows
SURPRISE = math.log(3.0)  # the largest step from what was expected that one measurement can prove
STRANGE = 3.0  # standard deviations beyond which a step may have been interrupted
LAST = -1
NOISE = 0.05  # of a measurement, relative: one standard deviation, as all below
SPEED = 0.05  # what the machine's speed changes from step to step
SHAPE = 0.005  # what the ratio of two costs changes from step to step, from one knot to the next
DOUBTFUL = 0.15  # the error of a ratio, above which it is measured again
DOUBT = 0.15  # how wrong the given costs may be, from one knot to the next


class CostCurve:
    """The cost of a step by its number of rows, learned from the steps while they run.

    A measured time is the product of the machine's speed and the curve, whose cost of one row is 1. The
    speed may change from step to step, the curve changes slowly. So two steps of different sizes that follow
    each other tell their ratio, and steps of one size tell nothing but the speed. Old measurements are
    forgotten as the curve may have changed since. A size that was never seen moves with its neighbours.
    Beyond twice the most rows that were seen, the curve is at least as steep as if rows had nothing in
    common, whatever is known beforehand: so the first steps draft little, and no trial is too large.
    A step that took much longer than expected is left out, since it may have been interrupted, unless the one
    before it or the last one of its size did so, too.

    Args:
        costs: what is known beforehand: times of steps by their numbers of rows, at least of 1 row, in any
            unit; the same as for `Budget`.
        max_rows: the most rows of a step.

    Raises:
        ValueError: numbers out of range, no time of 1 row.
        TypeError: no numbers.

    Notes:
        A Kalman filter over the logarithms of the speed and of the ratios of neighbouring sizes, half an
        octave apart. One measurement counts for a factor of 3 at most. It is deterministic,
        and takes about 30 microseconds.

    Example:
        >>> curve = CostCurve({1: 1.0, 16: 1.2}, max_rows=16)
        >>> for _ in range(50):
        ...     excess = curve.observe(4, 0.010)
        ...     excess = curve.observe(16, 0.020)  # twice the time of 4 rows
        >>> costs = curve.costs()
        >>> round(costs[16] / costs[4], 1), curve.error(16, 4) < 0.1
        (2.0, True)
    """

    def __init__(self, costs: Mapping[int, float], max_rows: int) -> None:
        check_costs("CostCurve", costs)
        self.max_rows: int = check_int("CostCurve", "max_rows", max_rows, 1)
        knots = 1 + math.ceil(KNOTS * math.log2(max_rows))
        self._knots: np.ndarray = 2.0 ** (np.arange(knots) / KNOTS)
        steps = np.diff(np.log(Budget(costs).cost(self._knots)))
        self._seen = 0
        self._strange: set[int] = set()  # sizes whose last step was strangely long; LAST: the last step was
        self._state: np.ndarray = np.array([0.0, *steps])  # the speed; what each knot adds to the one before
        self._covariance: np.ndarray = np.diag([1e6, *[DOUBT**2] * (knots - 1)])
        self._change: np.ndarray = np.diag([SPEED**2, *[SHAPE**2] * (knots - 1)])

    def observe(self, rows: int, seconds: float) -> float:
        """Learn from a step over `rows` rows that took `seconds`. The time of drafting is not part of it.

        Returns:
            How much more the step cost than was expected, 0 where it cost less. For a step that drafted, pass
            it to `Budget.after` as if it were a time of drafting.

        Raises:
            ValueError: rows outside [1, max_rows], seconds that are not positive.
            TypeError: no numbers.
        """
        rows = check_int("CostCurve.observe", "rows", rows, 1, self.max_rows)
        if not check_number("CostCurve.observe", "seconds", seconds) > 0:
            bad_value("CostCurve.observe", "seconds", "must be > 0", seconds)
        self._seen = max(self._seen, rows)
        parts = self._parts(rows)
        expected = float(parts[1:] @ self._state[1:])
        self._covariance += self._change
        shared = self._covariance @ parts
        variance = float(parts @ shared) + NOISE**2
        surprise = math.log(seconds) - float(self._state[0]) - expected
        if variance < 1.0:  # the speed is known
            surprise = min(max(surprise, -SURPRISE), SURPRISE)
        if not self._pauses(rows, surprise > STRANGE * math.sqrt(variance)):
            self._state += shared * (surprise / variance)
            self._covariance -= np.outer(shared, shared / variance)
        return math.exp(expected) * max(math.expm1(surprise), 0.0)

    def _pauses(self, rows: int, strange: bool) -> bool:
        """Whether a step was strangely long and neither the last one nor the last one of its size was: such a
        step tells of a pause, and not of speed or curve."""
        size = round(KNOTS * math.log2(rows))
        again = self._strange & {size, LAST}
        self._strange -= {size, LAST}
        if strange:
            self._strange |= {size, LAST}
        return strange and not again

    def costs(self) -> dict[int, float]:
        """Costs for `Budget`, by rows, ascending: that of one row is 1, and more rows never cost less."""
        sizes = sorted({*np.minimum(np.round(self._knots), self.max_rows).astype(int).tolist()})
        return dict(zip(sizes, self._costs(sizes).tolist(), strict=True))

    def write_(self, out: Tensor) -> None:
        """Write the costs of 0, 1, ..., max_rows rows into a tensor, that of 0 rows as that of 1.

        Args:
            out: [max_rows + 1] float64, such as `BatchBudget.costs`, on any device.

        Raises:
            ValueError, TypeError: another shape or dtype.

        Notes:
            Does not wait for the device: the copy is queued behind the steps that read the old costs.
        """
        check_dtype("CostCurve.write_", "out", out, (torch.float64,))
        check_shape("CostCurve.write_", "out", out, "[max_rows + 1]", (self.max_rows + 1,))
        costs = torch.from_numpy(self._costs(range(self.max_rows + 1)))
        out.copy_(costs.pin_memory() if out.is_cuda else costs, non_blocking=True)

    def seconds(self, rows: int) -> float:
        """The expected time of a step, in seconds, at the present speed.

        Raises:
            ValueError: rows outside [1, max_rows].
            TypeError: no number.
        """
        rows = check_int("CostCurve.seconds", "rows", rows, 1, self.max_rows)
        return math.exp(float(self._parts(rows) @ self._state))

    def error(self, rows: int, others: int) -> float:
        """How uncertain the ratio of the costs of two sizes is: one standard deviation of its logarithm. It
        grows with the steps since both were seen. `doubts` says when to look again.

        Raises:
            ValueError: rows outside [1, max_rows].
            TypeError: no number.
        """
        rows = check_int("CostCurve.error", "rows", rows, 1, self.max_rows)
        others = check_int("CostCurve.error", "others", others, 1, self.max_rows)
        difference = self._parts(rows) - self._parts(others)
        return math.sqrt(max(float(difference @ self._covariance @ difference), 0.0))

    def doubts(self, rows: int, others: int, tokens: float) -> bool:
        """Whether it is unknown if steps over `rows` rows pay, which bring `tokens` tokens where a step over
        `others` rows brings one: what they gain by these costs is less than the error of the ratio of the
        costs, or that error exceeds 0.15. Then make a step over `others` rows, which tells their ratio.

        Raises:
            ValueError: rows outside [1, max_rows], a negative number of tokens.
            TypeError: no number.

        Example:
            >>> curve = CostCurve({1: 1.0, 2: 1.1}, max_rows=2)
            >>> for _ in range(50):
            ...     excess = curve.observe(1, 0.010) + curve.observe(2, 0.011)
            >>> curve.doubts(2, 1, tokens=1.05), curve.doubts(2, 1, tokens=1.5)
            (True, False)
        """
        call = "CostCurve.doubts"
        rows, others = (
            check_int(call, name, value, 1, self.max_rows)
            for name, value in (("rows", rows), ("others", others))
        )
        more, less = self._costs([rows, others])
        gain = check_number(call, "tokens", tokens, 0) * less / more
        return self.error(rows, others) > min(math.log(max(gain, 1.0)), DOUBTFUL)

    def _costs(self, sizes: Sequence[int]) -> np.ndarray:
        least = np.where(self._knots[1:] > 2 * self._seen, math.log(2.0) / KNOTS, 0.0)
        logs = np.cumsum([0.0, *np.maximum(self._state[1:], least)])
        places = KNOTS * np.log2(np.maximum(sizes, 1))
        costs: np.ndarray = np.exp(np.interp(places, np.arange(len(logs)), logs))
        return costs

    def _parts(self, rows: int) -> np.ndarray:
        """What the logarithm of a step's time is made of."""
        octaves = math.log2(rows) * KNOTS
        return np.array([1.0, *np.clip(octaves - np.arange(len(self._state) - 1), 0.0, 1.0)])


class StepTimer:
    """Measures steps for a `CostCurve`, on a GPU without waiting for it.

    On a GPU a step is measured by two events. The curve learns of it when both have passed, which is looked
    up at the next steps.

    Args:
        curve: learns the times.
        device: where the steps run; default: the default device.
        clock: seconds, where the device is no GPU.

    Raises:
        TypeError: wrong types.

    Example:
        >>> curve = CostCurve({1: 1.0}, max_rows=16)
        >>> timer = StepTimer(curve, "cpu")
        >>> with timer.step(rows=4):
        ...     pass  # the forward over 4 rows, and what follows it
        >>> curve.seconds(4) < 1.0
        True
    """

    def __init__(
        self,
        curve: CostCurve,
        device: torch.device | str | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        check_type("StepTimer", "curve", curve, CostCurve, "a CostCurve")
        if not callable(clock):
            bad_type("StepTimer", "clock", "must be callable", type(clock).__name__)
        self.curve = curve
        self.device: torch.device = device_named("StepTimer", device)
        self.clock = clock
        self._pending: deque[tuple[int, Any, Any]] = deque()

    def step(self, rows: int) -> AbstractContextManager[None]:
        """Measure what is done within: a step over `rows` rows, as the host knows them. Nothing is learned
        where an exception is raised.

        Raises:
            ValueError: rows outside [1, max_rows] of the curve.
            TypeError: no number.
        """
        return self._measured(check_int("StepTimer.step", "rows", rows, 1, self.curve.max_rows))

    @contextmanager
    def _measured(self, rows: int) -> Iterator[None]:
        if self.device.type != "cuda":
            start = self.clock()
            yield
            self.curve.observe(rows, max(self.clock() - start, 1e-9))
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        stream = torch.cuda.current_stream(self.device)
        begin.record(stream)
        yield
        end.record(stream)
        self._pending.append((rows, begin, end))
        while self._pending and self._pending[0][2].query():
            rows, begin, end = self._pending.popleft()
            self.curve.observe(rows, max(begin.elapsed_time(end) / 1000.0, 1e-9))
