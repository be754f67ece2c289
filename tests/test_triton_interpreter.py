"""A second opinion on the Triton kernels: Triton's own interpreter, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_sample_agrees_with_the_reference():
    script = Path(__file__).with_name("interpreted_sample.py")
    run = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | dict(TRITON_INTERPRET="1"),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "48 cases agree"
