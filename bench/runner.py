# SPDX-License-Identifier: Apache-2.0
"""Runs the cases of a suite: checks, timings, goals. The shape of an entry is made here alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from . import report, roofs
from .suite import Case, Contender, Suite, available
from .timing import interleave


def run(suite: Suite, cases: Sequence[Case], threads: Sequence[int], quick: bool = False) -> dict[str, Any]:
    """The header and an entry for each case, printed as they come."""
    results = report.header(suite, threads, quick)
    results["roofs"] = {str(n): roofs.measure(n, quick) for n in threads}
    print(report.describe(suite, results), flush=True)
    for case in cases:
        results["cases"].append(measure(suite, case, threads, quick))
        print(report.table(suite, results["cases"][-1]), flush=True)
    print(report.verdict(results), flush=True)
    return results


def measure(suite: Suite, case: Case, threads: Sequence[int], quick: bool = False) -> dict[str, Any]:
    """Everything there is to say about one case, as plain data."""
    inputs = case.build()
    contenders, missing = available(case.contenders(), quick)
    failed = {c.name: reason for c in contenders if (reason := _failure(case, inputs, c))}
    right = [c for c in contenders if c.name not in failed]
    timings = [_time(suite, case, inputs, right, n, quick) for n in threads] if right else []
    figures, memory = case.figures(inputs), case.memory(inputs)
    peaks = [memory[name] / 2**20 for name in suite.subjects if name in memory]
    held = figures | ({"memory": max(peaks)} if peaks else {})
    return {
        "name": case.name,
        "case": case.parameters(),
        "failed": failed,
        "missing": missing,
        "figures": figures,
        "timings": timings,
        "memory": memory,
        "goals": [goal.judge(held) for goal in case.limits],
    }


def _failure(case: Case, inputs: Any, contender: Contender) -> str | None:
    try:
        return case.failure(inputs, contender)
    except Exception as error:  # a contender that cannot run is a failed one, not the end of the benchmark
        return f"{type(error).__name__}: {error}"


def _time(
    suite: Suite, case: Case, inputs: Any, contenders: list[Contender], threads: int, quick: bool
) -> dict[str, Any]:
    torch.set_num_threads(threads)
    rounds = suite.quick_rounds if quick else suite.rounds
    timings = interleave({c.name: c.prepare(inputs) for c in contenders}, case.sets, rounds)
    derived = case.derived(timings.medians)
    goals = [goal.judge(timings.medians | derived, timings.used != "quiet") for goal in case.goals(threads)]
    entry = {
        "threads": threads,
        "rounds": {"quiet": timings.quiet, "noisy": timings.noisy, "used": timings.used},
        "milliseconds": {name: 1e3 * seconds for name, seconds in timings.medians.items()},
        "derived": {name: 1e3 * seconds for name, seconds in derived.items()},
        "goals": goals,
    }
    if rounds.cpu:
        entry["each_round"] = {name: [1e3 * s for s in each] for name, each in timings.each_round.items()}
    return entry
