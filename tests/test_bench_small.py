# SPDX-License-Identifier: Apache-2.0
"""`python -m bench small`: the table, and a run of it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from each import NATIVE

from bench.small import Call, table


def test_a_limit_counts_from_the_floor_and_in_allocations():
    some = [
        Call("floor", print),
        Call("quick", print, 5, "floor", 1.5),
        Call("slow", print, 5, "floor", 1.5),
        Call("alone", print, 20),
    ]
    turns = {"floor": 10.0, "quick": 25.0, "slow": 25.2, "alone": 41.0}
    lines = table(some, turns, dict.fromkeys(turns, 99.0), unit=2.0)
    assert lines[2:] == [
        "| floor | 10.0 | 99 |  |  |  |",
        "| quick | 25.0 | 99 | 1.5 x floor + 5 | 10 us, 5 x `torch.empty` | met |",
        "| slow | 25.2 | 99 | 1.5 x floor + 5 | 10 us, 5 x `torch.empty` | MISSED |",
        "| alone | 41.0 | 99 | 20 | 41 us, 20 x `torch.empty` | MISSED |",
    ]
    assert table(some, turns, turns, unit=0.5)[-1].endswith("MISSED |")  # never less than the microseconds
    assert table(some[:2], turns, turns, unit=2.0)[-1].endswith("met |")


@pytest.mark.skipif(NATIVE is None, reason="times the native backend")
def test_small_calls_are_timed():
    """This says that the calls run, and prints a table; it holds no time to anything."""
    run = subprocess.run([sys.executable, "-m", "bench", "small", "--quick"], capture_output=True, text=True)
    title, unit, _, head, _, *rows = run.stdout.splitlines()
    assert title.startswith("CPU time of small calls, B = 1, V = 32000") and "at best" in unit, run.stderr
    assert head.startswith("| call | us, in turns |") and len(rows) == 13
    assert all(float(cell) > 0 for row in rows for cell in row.split("|")[2:4])
