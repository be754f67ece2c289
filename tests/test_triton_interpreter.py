# SPDX-License-Identifier: Apache-2.0
"""A second opinion on the Triton kernels: Triton's own interpreter, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("name, cases", [("sample", 24), ("ngram", 6)])
def test_kernels_agree_with_the_reference(name, cases):
    script = Path(__file__).with_name(f"interpreted_{name}.py")
    run = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | dict(TRITON_INTERPRET="1"),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == f"{cases} cases agree"
