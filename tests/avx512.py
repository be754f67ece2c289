# SPDX-License-Identifier: Apache-2.0
"""`make test-avx512`: random calls of the C interface on the emulated kernels of AVX-512, beside those on
other kernels. docs/stability.md has the last result."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from arm import CALLS, differing

import specdec_kernels

ROOT = Path(__file__).parent.parent
LIBRARY = Path(specdec_kernels.__path__[0]) / "lib"
# Calls with sums beyond float32, which become infinite or not with the number of lanes: of a draft's weights,
# and of a score of attention.
OVERFLOWING = {208, 604}


@pytest.fixture(scope="module")
def memory_after(tmp_path_factory):
    """What random calls leave in memory."""
    assert LIBRARY.parent.parent == ROOT  # the core of `make test-avx512`
    folder = tmp_path_factory.mktemp("calls")
    link = (f"-I{ROOT / 'include'}", f"-L{LIBRARY}", "-lspecdec", f"-Wl,-rpath,{LIBRARY}", "-pthread")
    subprocess.run(
        ["gcc", "-std=c11", "-O1", ROOT / "tests" / "c_fuzz.c", "-o", folder / "fuzz", *link], check=True
    )

    def run(isa, threads):
        file, environment = folder / f"{isa}-{threads}", dict(os.environ, SPECDEC_ISA=isa)
        subprocess.run([folder / "fuzz", "0", str(CALLS), file, str(threads)], env=environment, check=True)
        return file.read_bytes()

    return run


def test_the_instruction_set():
    assert specdec_kernels.cpu._native.instruction_set() == "avx512"


def test_random_calls_agree(memory_after):
    """With AVX2, which has a fused multiply-add too."""
    assert differing(memory_after("avx512", 2), memory_after("avx2", 2)) == OVERFLOWING


def test_threads_change_no_bit(memory_after):
    assert memory_after("avx512", 1) == memory_after("avx512", 3)
