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
    lines = table(some, dict.fromkeys(turns, 2.0), turns, dict.fromkeys(turns, 99.0))
    assert lines[2:] == [
        "| floor | 2.0 | 10 | 99 |  |  |  |",
        "| quick | 2.0 | 25 | 99 | 1.5 x floor + 5 | 10 us, 5 x `torch.empty` | met |",
        "| slow | 2.0 | 25 | 99 | 1.5 x floor + 5 | 10 us, 5 x `torch.empty` | MISSED |",
        "| alone | 2.0 | 41 | 99 | 20 | 41 us, 20 x `torch.empty` | MISSED |",
    ]
    turns["alone"] = 19.9  # the limit is never less than its microseconds
    assert table(some, dict.fromkeys(turns, 0.5), turns, turns)[-1].endswith("| met |")


@pytest.mark.skipif(NATIVE is None, reason="times the native backend")
def test_small_calls_are_timed():
    """This says that the calls run, and prints a table; it holds no time to anything."""
    run = subprocess.run([sys.executable, "-m", "bench", "small", "--quick"], capture_output=True, text=True)
    title, _, head, _, *rows = run.stdout.splitlines()
    assert title.startswith("CPU time of small calls, B = 1, V = 32000"), run.stderr
    assert head.startswith("| call | us at best | us, in turns |") and len(rows) == 13
    assert all(float(cell) > 0 for row in rows for cell in row.split("|")[2:5])
