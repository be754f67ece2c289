# SPDX-License-Identifier: Apache-2.0
"""The native core built with AddressSanitizer and UBSan, walked through the tests of hostile input."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ and its sanitizers"),
]
ROOT = Path(__file__).parent.parent
CALLS = 5_000
OPTIONS = dict(
    ASAN_OPTIONS="detect_leaks=0:abort_on_error=1:allocator_may_return_null=1",
    UBSAN_OPTIONS="halt_on_error=1:print_stacktrace=1",
)


def test_hostile_input_under_sanitizers(tmp_path):
    where = ("--build-lib", tmp_path, "--build-temp", tmp_path / "temp")
    environment = dict(os.environ, SPECDEC_SANITIZE="address,undefined")
    command = [sys.executable, "setup.py", "-q", "build_ext", *where]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    make_random_calls(tmp_path)
    run_tests_of_hostile_input(tmp_path)


def make_random_calls(build):
    """Of the C interface."""
    library, program = build / "specdec_kernels" / "lib", build / "fuzz"
    link = (f"-L{library}", "-lspecdec", f"-Wl,-rpath,{library}")
    flags = ("-std=c11", "-g", "-fsanitize=address,undefined", f"-I{ROOT / 'include'}")
    subprocess.run(["gcc", *flags, ROOT / "tests" / "c_fuzz.c", "-o", program, *link], check=True)
    environment = dict(os.environ, **OPTIONS)
    run = subprocess.run([program, "0", str(CALLS)], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]


def run_tests_of_hostile_input(build):
    shutil.copytree(
        ROOT / "specdec_kernels",
        build / "specdec_kernels",
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
        **OPTIONS,
        PYTHONPATH=str(build),
        OMP_NUM_THREADS="2",
        OMP_WAIT_POLICY="passive",
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
        "not triton and not agree and not reference",
        "--rootdir",
        str(build),
    ]
    # Imported first: the configuration of pytest puts this project's own folder before it.
    start = f"""
import sys, pytest, specdec_kernels.cpu._native as native
assert native.__file__.startswith({str(build)!r}), native.__file__
sys.exit(pytest.main(sys.argv[1:]))"""
    run = subprocess.run(
        [sys.executable, "-c", start, *options, *tests],
        env=environment,
        capture_output=True,
        text=True,
        cwd=build,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_an_index_that_is_read_while_it_changes(sanitizer, tmp_path):
    sources = (
        ROOT / "tests" / "c_suffix.cpp",
        ROOT / "csrc" / "suffix_index.cpp",
        ROOT / "csrc" / "team.cpp",
    )
    flags = ("-std=c++20", "-O1", "-g1", f"-fsanitize={sanitizer}", f"-I{ROOT / 'csrc'}", "-pthread")
    subprocess.run(["g++", *flags, *sources, "-o", tmp_path / "suffix"], check=True)
    environment = dict(os.environ, TSAN_OPTIONS="halt_on_error=1", **OPTIONS)
    run = subprocess.run([tmp_path / "suffix", "60"], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr[-3000:]
