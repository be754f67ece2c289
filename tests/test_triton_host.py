# SPDX-License-Identifier: Apache-2.0
"""`python -m bench host`: the table, and a run of it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from each import DEVICE

from bench.host import Call, Limit, table

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="a stub takes the driver library's place")


def test_a_limit_is_met_in_microseconds_or_in_launches():
    some = [
        Call("one", print),
        Call("quick", print, Limit(25, 3)),
        Call("slow host", print, Limit(15, 3)),
        Call("slow", print, Limit(15, 1)),
        Call("more", print, Limit(10), beyond="slow"),
    ]
    took = {"one": 8.0, "quick": 20.0, "slow host": 20.0, "slow": 20.0, "more": 31.0}
    lines, missed = table(some, took)
    assert lines[2:] == [
        "| one | 8.0 | 1.0 |  |",
        "| quick | 20.0 | 2.5 | 25 us or 3 launches: met |",
        "| slow host | 20.0 | 2.5 | 15 us or 3 launches: met |",
        "| slow | 20.0 | 2.5 | 15 us or 1 launches: MISSED |",
        "| more, beyond slow | 11.0 | 1.4 | 10 us: MISSED |",
    ]
    assert missed and not table(some[:3], took)[1]


def test_calls_are_timed_over_a_stub_of_the_driver():
    """Fifty times the limits here: this says that the calls run without a GPU, and prints a table."""
    command = [sys.executable, "-W", "ignore", "-m", "bench", "host", "--quick", "--cases", "plan,chain"]
    run = subprocess.run(command, capture_output=True, text=True)
    title, says, _, head, _, *rows = run.stdout.splitlines()
    assert title.startswith("Host time of eager calls, Triton 3.") and "no GPU timing" in says, run.stderr
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in (head, *rows)]
    assert [row[0] for row in cells] == [
        "call", "a launch of three arguments", "commit_kv, plan of 64 caches", "DraftTree.chain"
    ]  # fmt: skip
    for (_, micros, launches, _), most in zip(cells[1:], (500, 1250, 750), strict=True):
        assert 0.2 < float(micros) < most and 0.2 < float(launches) < 200
