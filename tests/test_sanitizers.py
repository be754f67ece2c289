# SPDX-License-Identifier: Apache-2.0
"""The native core built with AddressSanitizer and UBSan, walked through the tests of hostile input."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ and its sanitizers")
def test_hostile_input_under_sanitizers(tmp_path):
    environment = dict(os.environ, SPECDEC_SANITIZE="address,undefined")
    subprocess.run(
        [
            sys.executable,
            "setup.py",
            "-q",
            "build_ext",
            "--build-lib",
            tmp_path,
            "--build-temp",
            tmp_path / "temp",
        ],
        cwd=ROOT,
        env=environment,
        check=True,
        capture_output=True,
    )
    shutil.copytree(
        ROOT / "specdec_kernels",
        tmp_path / "specdec_kernels",
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("*.so", "__pycache__"),
    )
    runtime = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so.6")
    ]
    environment = dict(
        os.environ,
        LD_PRELOAD=" ".join(runtime),
        ASAN_OPTIONS="detect_leaks=0:abort_on_error=1",
        UBSAN_OPTIONS="halt_on_error=1:print_stacktrace=1",
        PYTHONPATH=str(tmp_path),
    )
    tests = [
        str(ROOT / "tests" / name)
        for name in (
            "test_hostile.py",
            "test_commit_hostile.py",
            "test_attention_hostile.py",
            "test_drafting_hostile.py",
            "test_match.py",
            "test_rows.py",
        )
    ]
    options = [
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-k",
        "not triton and not agree",
        "--rootdir",
        str(tmp_path),
    ]
    # Imported first: the configuration of pytest puts this project's own folder before it.
    start = f"""
import sys, pytest, specdec_kernels.cpu._native as native
assert native.__file__.startswith({str(tmp_path)!r}), native.__file__
sys.exit(pytest.main(sys.argv[1:]))"""
    run = subprocess.run(
        [sys.executable, "-c", start, *options, *tests],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
