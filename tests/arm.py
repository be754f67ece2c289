# SPDX-License-Identifier: Apache-2.0
"""`make test-arm`: the C interface compiled for 64-bit Arm and run under qemu, beside this machine's library.
docs/c.md has the last result."""

from __future__ import annotations

import os
import re
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

import specdec_kernels

ROOT = Path(__file__).parent.parent
HERE = Path(specdec_kernels.__path__[0]) / "lib"
ARM = ROOT / "build" / "arm"
QEMU = ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")
CALLS = 4_000
KINDS, ATTENTION = 13, 6  # of the calls of c_fuzz.c
NAME = """#include <stdio.h>
#include "specdec.h"
int main(void) { return puts(specdec_instruction_set()) < 0; }
"""


def on_both(source, target):
    """The commands of a program for this machine and for Arm."""
    for compiler, library, suffix in (("gcc", HERE, "here"), ("aarch64-linux-gnu-gcc", ARM, "arm")):
        link = (f"-I{ROOT / 'include'}", f"-L{library}", "-lspecdec", f"-Wl,-rpath,{library}", "-pthread")
        subprocess.run([compiler, "-std=c11", "-O1", source, "-o", f"{target}-{suffix}", *link], check=True)
    return [f"{target}-here"], [*QEMU, f"{target}-arm"]


def said(command, *arguments, isa=""):
    environment = dict(os.environ, SPECDEC_ISA=isa)
    return subprocess.run([*command, *arguments], env=environment, capture_output=True, check=True).stdout


@pytest.mark.parametrize("source", ["examples/verify.c", "tests/c_checks.c"])
def test_programs_say_the_same(source, tmp_path):
    here, arm = on_both(ROOT / source, tmp_path / "program")
    ours, theirs = (re.sub(rb"0x\w+", b"an address", said(command)) for command in (arm, here))
    assert ours == theirs != b""


@pytest.mark.parametrize("asked, taken", [("", b"neon\n"), ("neon", b"neon\n"), ("baseline", b"baseline\n")])
def test_the_instruction_set(asked, taken, tmp_path):
    (tmp_path / "name.c").write_text(NAME)
    assert said(on_both(tmp_path / "name.c", tmp_path / "name")[1], isa=asked) == taken


@pytest.fixture(scope="module")
def memory_after(tmp_path_factory):
    """What random calls leave in memory."""
    folder = tmp_path_factory.mktemp("calls")
    commands = on_both(ROOT / "tests" / "c_fuzz.c", folder / "fuzz")

    def run(on_arm, isa, threads):
        file = folder / f"{on_arm}-{isa}-{threads}"
        said(commands[on_arm], "0", str(CALLS), file, str(threads), isa=isa)
        return file.read_bytes()

    return run


def pieces(data):
    """The number and result of every call, then each piece of its memory."""
    at = 0
    while at < len(data):
        call, result, count = struct.unpack_from("<3q", data, at)
        at += 24
        yield call, result, count
        for _ in range(count):
            (size,) = struct.unpack_from("<q", data, at)
            at += 8 + size
            yield data[at - size : at]


def numbers(data):
    """As float32, bfloat16 and float16, with the relative error that a few units in the last place are."""
    if len(data) % 4 == 0:
        yield np.frombuffer(data, "<f4"), 2.0**-19
    if len(data) % 2 == 0:
        yield (np.frombuffer(data, "<u2").astype("u4") << 16).view("f4"), 2.0**-7
        yield np.frombuffer(data, "<f2").astype("f4"), 2.0**-9


def agree(ours, theirs, exactly):
    """Whether pieces of memory are equal, or hold equal numbers of one of the dtypes. Any NaN equals any."""
    if isinstance(ours, tuple) or ours == theirs:
        return ours == theirs
    return len(ours) == len(theirs) and any(
        np.allclose(a, b, rtol=0 if exactly else error, atol=0 if exactly else 1e-5, equal_nan=True)
        for (a, error), (b, _) in zip(numbers(ours), numbers(theirs), strict=True)
    )


def same_integers(ours, theirs):
    """Of memory that may hold int32 numbers, which as float32 numbers are too small for `agree`."""
    if isinstance(ours, tuple) or ours == theirs or len(ours) % 4 or len(ours) != len(theirs):
        return True
    a, b = np.frombuffer(ours, "<i4"), np.frombuffer(theirs, "<i4")
    return not ((a != b) & (a > 0) & (b > 0) & (np.maximum(a, b) < 2**23)).any()


def differing(ours, theirs, exactly=False):
    """The calls after which memory differs by more than a few units in the last place, or in an integer.
    Attention gives no integers."""
    call, wrong = None, set()
    with np.errstate(all="ignore"):
        for mine, other in zip(pieces(ours), pieces(theirs), strict=True):
            call = mine[0] if isinstance(mine, tuple) else call
            integers = call % KINDS == ATTENTION or same_integers(mine, other)
            if not integers or not agree(mine, other, exactly):
                wrong.add(call)
    return wrong


@pytest.mark.parametrize("arm_isa, isa", [("baseline", "baseline"), ("neon", "avx2")])
def test_random_calls_agree(arm_isa, isa, memory_after):
    """The portable kernels to the last bit; NEON with AVX2, since both have a fused multiply-add."""
    assert differing(memory_after(1, arm_isa, 2), memory_after(0, isa, 2), isa == "baseline") == set()


def test_threads_change_no_bit(memory_after):
    assert memory_after(1, "neon", 1) == memory_after(1, "neon", 3)
