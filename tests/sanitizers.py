# SPDX-License-Identifier: Apache-2.0
"""`make test-sanitized`: the native core built with sanitizers, under random calls of the C interface and the
tests of hostile input, on every instruction set that the processor has. docs/stability.md has the result."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import specdec_kernels

ROOT = Path(__file__).parent.parent
LIBRARY = Path(specdec_kernels.__path__[0]) / "lib" / "libspecdec.so"
CALLS = 5_000
INSTRUCTION_SETS = ("baseline", "avx2", "avx512", "neon")
OPTIONS = dict(
    ASAN_OPTIONS="detect_leaks=0:abort_on_error=1:allocator_may_return_null=1",
    UBSAN_OPTIONS="halt_on_error=1:print_stacktrace=1",
    TSAN_OPTIONS="halt_on_error=1:allocator_may_return_null=1",
)
HOSTILE = (
    "test_hostile",
    "test_commit_hostile",
    "test_attention_hostile",
    "test_drafting_hostile",
    "test_match",
    "test_rows",
)


@pytest.fixture(params=INSTRUCTION_SETS)
def isa(request, monkeypatch):
    """One of the instruction sets; it is in the environment of the processes that a test starts."""
    monkeypatch.setenv("SPECDEC_ISA", request.param)
    code = f"""
import ctypes
name = ctypes.CDLL({str(LIBRARY)!r}).specdec_instruction_set
name.restype = ctypes.c_char_p
print(name().decode())"""
    taken = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    if taken.strip() != request.param:
        pytest.skip("the processor does not have it")
    return request.param


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    """The package with a core under AddressSanitizer and UBSan."""
    build = tmp_path_factory.mktemp("sanitized")
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "build_ext",
        "--build-lib",
        build,
        "--build-temp",
        build / "temp",
    ]
    environment = dict(os.environ, SPECDEC_SANITIZE="address,undefined")
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "specdec_kernels", build / "specdec_kernels", dirs_exist_ok=True, ignore=ignored)
    return build


@pytest.fixture(scope="module")
def threaded(tmp_path_factory):
    """`libspecdec.so` under ThreadSanitizer."""
    build = tmp_path_factory.mktemp("threaded")
    flags = "CXXFLAGS=-O1 -g1 -fsanitize=thread"
    command = ["make", "-C", ROOT, f"-j{os.cpu_count()}", "libspecdec", f"BUILD={build}", flags]
    subprocess.run(command, check=True, capture_output=True)
    return build


def run(command, cwd=None, **options):
    environment = {**os.environ, **OPTIONS, **options}
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def program(source, sanitizer, library, target):
    link = (f"-L{library}", "-lspecdec", f"-Wl,-rpath,{library}", "-pthread")
    flags = ("-std=c11", "-g", f"-fsanitize={sanitizer}", f"-I{ROOT / 'include'}")
    subprocess.run(["gcc", *flags, ROOT / "tests" / source, "-o", target, *link], check=True)
    return target


def test_random_calls(sanitized, isa, tmp_path):
    library = sanitized / "specdec_kernels" / "lib"
    run([program("c_fuzz.c", "address,undefined", library, tmp_path / "fuzz"), "0", str(CALLS)])


def test_hostile_input(sanitized, isa):
    runtime = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so.6")
    ]
    # Imported first: the configuration of pytest puts this project's own folder before it.
    start = f"""
import sys, pytest, specdec_kernels.cpu._native as native
assert native.__file__.startswith({str(sanitized)!r}), native.__file__
sys.exit(pytest.main(sys.argv[1:]))"""
    tests = [ROOT / "tests" / f"{name}.py" for name in HOSTILE]
    chosen = ("-k", "not triton and not agree and not reference")
    run(
        [
            sys.executable,
            "-c",
            start,
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            *chosen,
            "--rootdir",
            sanitized,
            *tests,
        ],
        cwd=sanitized,
        LD_PRELOAD=" ".join(runtime),
        PYTHONPATH=str(sanitized),
        OMP_NUM_THREADS="2",
        OMP_WAIT_POLICY="passive",
    )


@pytest.mark.parametrize("source", ["c_fuzz.c", "c_checks.c"])
def test_threads(source, threaded, isa, tmp_path):
    arguments = ("0", str(CALLS)) if source == "c_fuzz.c" else ()
    run([program(source, "thread", threaded, tmp_path / "program"), *arguments])


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_an_index_that_is_read_while_it_changes(sanitizer, tmp_path):
    sources = [ROOT / name for name in ("tests/c_suffix.cpp", "csrc/suffix_index.cpp", "csrc/team.cpp")]
    flags = ("-std=c++20", "-O1", "-g1", f"-fsanitize={sanitizer}", f"-I{ROOT / 'csrc'}", "-pthread")
    subprocess.run(["g++", *flags, *sources, "-o", tmp_path / "suffix"], check=True)
    run([tmp_path / "suffix", "60"])
