# SPDX-License-Identifier: Apache-2.0
"""The C interface: programs compiled against `specdec.h`, with the library that the build leaves."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import specdec_kernels as sdk
from specdec_kernels.cpu._native import Rule

pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
ROOT = Path(__file__).parent.parent
LIBRARY = Path(sdk.__path__[0]) / "lib" / "libspecdec.so"
STRICT = ("-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{ROOT / 'include'}")


def compiled(program: Path, source: Path, *flags: str) -> Path:
    link = (f"-L{LIBRARY.parent}", "-lspecdec", f"-Wl,-rpath,{LIBRARY.parent}", "-pthread")
    subprocess.run(["cc", *flags, *STRICT, source, "-o", program, *link], check=True)
    return program


def test_the_example_agrees_with_the_reference(tmp_path):
    program = compiled(tmp_path / "verify", ROOT / "examples" / "verify.c", "-std=c11")
    run = subprocess.run([program], capture_output=True, text=True, check=True)
    assert run.stderr == "specdec_verify: width must be in [1, 2147483647], got 0\n"

    def scores(count, salt):
        i = torch.arange(count * 50)
        return ((i * 37 + i // 50 * salt) % 61).float().view(count, 50) / 16

    verified = sdk.verify(
        scores(8, 5),
        sdk.DraftTree.chain(torch.tensor([[23, 38, 3], [9, 24, 39]])),
        scores(6, 9).view(2, 3, 50),
        sampling=sdk.SamplingParams(0.8, top_p=0.95),
        rule="traversal",
        seeds=torch.tensor([7, 8]),
        positions=torch.tensor([100, 20]),
        backend="reference",
    )
    lines = [
        f"accepted {accepted}, status {status}: {' '.join(str(t) for t in tokens if t >= 0)}"
        for accepted, status, tokens in zip(
            verified.num_accepted.tolist(), verified.status.tolist(), verified.tokens.tolist(), strict=True
        )
    ]
    assert run.stdout.splitlines() == lines
    assert verified.num_accepted.tolist() == [3, 0]  # one goes through, one is rejected


def test_the_example_fits_a_page():
    assert len((ROOT / "examples" / "verify.c").read_text().splitlines()) <= 60


@pytest.mark.parametrize("compiler", ["cc -std=c11 -xc", "c++ -std=c++17 -xc++", "c++ -std=c++20 -xc++"])
def test_the_header_compiles_alone(compiler, tmp_path):
    (tmp_path / "only.c").write_text('#include "specdec.h"\n#include "specdec.h"\n')
    subprocess.run([*compiler.split(), *STRICT, "-fsyntax-only", tmp_path / "only.c"], check=True)


def test_only_the_interface_is_exported():
    """What the header declares, and under a version of its own."""
    names = subprocess.run(
        ["nm", "--dynamic", "--defined-only", LIBRARY], capture_output=True, text=True, check=True
    ).stdout
    exported = {line.split()[-1] for line in names.splitlines() if " A " not in line}
    header = (ROOT / "include" / "specdec.h").read_text(encoding="utf-8")
    declared = re.findall(r"^SPECDEC_API [^;]*?(specdec_\w+)\(", header, re.M)
    assert exported == {f"{name}@@SPECDEC_1" for name in declared}
    assert len(exported) > 10


def test_the_library_needs_neither_python_nor_torch():
    needed = subprocess.run(["readelf", "-d", LIBRARY], capture_output=True, text=True, check=True).stdout
    libraries = set(re.findall(r"NEEDED.*\[([\w+]+)", needed))
    assert "libc" in libraries
    assert libraries <= {"libstdc++", "libm", "libgcc_s", "libc", "libpthread", "libdl", "ld"}


def test_the_version_is_that_of_the_package(tmp_path):
    (tmp_path / "version.c").write_text(
        '#include <stdio.h>\n#include "specdec.h"\n'
        'int main(void) { return printf("%s %d %s", specdec_version(), (int)specdec_abi_version(),\n'
        "                       specdec_instruction_set()) < 0; }\n"
    )
    program = compiled(tmp_path / "version", tmp_path / "version.c", "-std=c11")
    version, abi, isa = subprocess.run([program], capture_output=True, text=True).stdout.split()
    assert (version, abi) == (sdk.__version__, "1")
    assert isa in ("avx512", "avx2", "neon", "baseline")


def test_what_callers_get_wrong(tmp_path):
    """Sizes and versions of structs, nulls, negative sizes, alignment; each error says what came. Two threads
    at once have results and messages of their own."""
    program = compiled(tmp_path / "checks", ROOT / "tests" / "c_checks.c", "-std=c11", "-g")
    run = subprocess.run([program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    said = run.stdout.splitlines()
    assert len(said) > 25 and len(set(said)) == len(said)
    for line in said:
        assert re.fullmatch(r"specdec_\w+: [\w.\[\]]+ must .+(, got .+| null.*)", line), line


@pytest.mark.parametrize("openmp", [False, True])
def test_exceptions_on_threads_reach_the_caller(openmp, tmp_path):
    """On the library's own threads, and on those of an OpenMP library that the process has loaded."""
    sources = (ROOT / "tests" / "c_team.cpp", ROOT / "csrc" / "team.cpp")
    flags = ("-std=c++20", "-O1", f"-I{ROOT / 'csrc'}", "-pthread")
    subprocess.run(["c++", *flags, *sources, "-o", tmp_path / "team"], check=True)
    environment = dict(os.environ, OMP_WAIT_POLICY="passive")
    if openmp:
        environment["LD_PRELOAD"] = "libgomp.so.1"
    subprocess.run([tmp_path / "team", "400"], env=environment, check=True, timeout=60)


def test_a_second_thread_is_woken_only_where_it_pays(tmp_path):
    """By the tokens that are read for certain: of one row under `token`, of all under `traversal`."""
    program = compiled(tmp_path / "threads", ROOT / "tests" / "c_threads.c", "-std=c11")
    rules = Rule.__members__
    for rule, nodes, vocab, threads in (
        ("token", 6, 32000, 1),
        ("match", 64, 128256, 1),
        ("traversal", 6, 32000, 1),
        ("traversal", 8, 32000, 2),
        ("token", 2, 256000, 2),
    ):
        call = [program, str(int(rules[rule])), str(nodes), str(vocab)]
        run = subprocess.run(call, capture_output=True, text=True, check=True)
        assert (rule, nodes, vocab, int(run.stdout)) == (rule, nodes, vocab, threads)


def test_hostile_calls(tmp_path):
    """The driver that `make test-sanitized` runs under the sanitizers, for a moment."""
    program = compiled(tmp_path / "fuzz", ROOT / "tests" / "c_fuzz.c", "-std=c11", "-O1")
    subprocess.run([program, "1", "300"], check=True, timeout=60)
