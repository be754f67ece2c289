# SPDX-License-Identifier: Apache-2.0
"""The examples in docstrings and pages run, and the pages' links lead somewhere."""

from __future__ import annotations

import doctest
import importlib
import linecache
import os
import pkgutil
import re
import shlex
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import sglang_stand_in
from each import BACKENDS, DEVICE, NATIVE

import specdec_kernels

ROOT = Path(__file__).parent.parent
MISSING = [".cpu", *([] if "triton" in BACKENDS else [".triton"])]
MISSING += [] if find_spec("transformers") else [".transformers."]
MISSING += [] if find_spec("prometheus_client") else [".metrics"]
MISSING += [] if find_spec("click") else [".commands"]
MODULES = [
    info.name
    for info in pkgutil.walk_packages(specdec_kernels.__path__, "specdec_kernels.")
    if not any(part in info.name for part in MISSING)
]


@pytest.mark.parametrize("name", ["specdec_kernels", *MODULES])
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", specdec_kernels.__all__)
def test_public_names_are_documented(name):
    assert getattr(specdec_kernels, name).__doc__


PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```\n", re.S | re.M)
ELSEWHERE = {  # kinds of blocks that are not run here, and where they are
    "py": "tests/test_llama_cpp.py",  # excerpts of an example, which runs there
    "python example": "tests/engines/vllm_run.py",  # make test-vllm
    "python others": "tests/referee_others.py",  # make test-referee-others
}


def blocks(*kinds: str) -> list:
    found = [(page.relative_to(ROOT).as_posix(), *block) for page in PAGES for block in read_blocks(page)]
    return [pytest.param(page, text, id=page) for page, kind, text in found if kind in kinds]


def read_blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def test_no_block_of_code_runs_nowhere():
    """A block without a kind is no code. Blocks of the kinds here have a test each in this file."""
    found = [(page, kind, text) for page in PAGES for kind, text in read_blocks(page)]
    nowhere = [(page.name, kind) for page, kind, _ in found if kind not in {"", *RUN_HERE, *ELSEWHERE}]
    code = re.compile(r"^(import |from \w+ import|\$ |(make|pip|python3?|specdec|cc|vllm) )", re.M)
    nowhere += [
        (page.name, text.split("\n")[0]) for page, kind, text in found if not kind and code.search(text)
    ]
    assert len(found) > 50 and nowhere == []
    for kind, place in ELSEWHERE.items():
        pages = {page.name for page, other, _ in found if other == kind}
        assert len(pages) == 1 and all(name in (ROOT / place).read_text(encoding="utf-8") for name in pages)


@pytest.mark.parametrize("page, code", blocks("python"))
def test_code_in_pages_runs(page, code, monkeypatch):
    if "import transformers" in code or "from transformers" in code:
        pytest.importorskip("transformers")
    if "import prometheus_client" in code:
        pytest.importorskip("prometheus_client")
    if "import sglang" in code:
        monkeypatch.setenv("SPECDEC_SGLANG", "0")
        sglang_stand_in.install(monkeypatch)
    if "import triton" in code and (DEVICE != "cpu" or "triton" not in BACKENDS):
        pytest.skip("needs the emulator")
    monkeypatch.setitem(linecache.cache, page, (len(code), None, code.splitlines(True), page))  # for Triton
    exec(compile(code, page, "exec"), {"__name__": "page"})


@pytest.mark.parametrize("page, code", blocks("c"))
def test_c_code_in_pages_compiles(page, code, tmp_path):
    source = tmp_path / "page.c"
    given = "const void *logits, int64_t nodes, int64_t vocab, int threads"
    source.write_text(f"#include <stdio.h>\n#include <specdec.h>\nvoid page({given}) {{\n{code}}}\n")
    command = [
        os.environ.get("CC", "cc"),
        "-fsyntax-only",
        "-Wall",
        "-Werror",
        f"-I{ROOT / 'include'}",
        source,
    ]
    subprocess.run(command, check=True)


@pytest.mark.parametrize("page, text", blocks("sh"))
def test_commands_in_pages_exist(page, text):
    """Targets of make, modules, extras, and commands of `specdec` with their options."""
    makefile, project = ((ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", "pyproject.toml"))
    for line in text.splitlines():
        words = [word for word in shlex.split(line, comments=True) if not re.match("[A-Z_]+=", word)]
        if words[0] == "make":
            assert all(f"\n{target}:" in makefile for target in words[1:]), line
        elif words[:2] == ["python", "-m"]:
            path = words[2].replace(".", "/")
            assert (ROOT / f"{path}.py").exists() or (ROOT / path / "__main__.py").exists(), line
        elif words[:2] == ["pip", "install"]:
            extras = re.findall(r"[\w-]+", words[2].split("[")[1])
            assert re.match(r"(\.|specdec-kernels)\[", words[2]), line
            assert all(f"\n{extra} = [" in project for extra in extras), line
        elif words[0] == "specdec":
            pytest.importorskip("click")
            from specdec_kernels.cli.commands import specdec

            options = [option for parameter in specdec.commands[words[1]].params for option in parameter.opts]
            assert all(word in options for word in words if word.startswith("--")), line
        else:  # tests/test_c.py compiles and runs this program
            assert words[-1] == "build/verify", line


def test_targets_of_make_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    named = {target for text in texts for target in re.findall(r"`make\s+([\w-]+)[^`]*`", text)}
    assert len(named) > 20 and [target for target in named if f"\n{target}:" not in makefile] == []


@pytest.mark.skipif(NATIVE is None or DEVICE != "cpu", reason="shows the native core on the CPU")
@pytest.mark.parametrize("page, text", blocks("console"))
def test_commands_in_pages_print_what_is_shown(page, text, monkeypatch):
    """The lines that are shown come in this order. Figures of `doctor` are the machine's and may differ."""
    pytest.importorskip("click")
    from click.testing import CliRunner

    from specdec_kernels.cli import selfcheck
    from specdec_kernels.cli.commands import specdec

    monkeypatch.setattr(selfcheck, "ROUNDS", 1)
    monkeypatch.chdir(ROOT)
    command, *shown = text.splitlines()
    name, *arguments = shlex.split(command.removeprefix("$ specdec "))
    done = CliRunner().invoke(specdec, [name, *arguments])
    assert done.exit_code == 0, done.output
    figures = r"\d+(\.\d+)?(e-\d+)?" if name == "doctor" else "^$"
    printed = iter(re.sub(figures, "#", line) for line in done.output.splitlines())
    for line in shown:
        assert re.sub(figures, "#", line) in printed, line  # goes on after the line before


RUN_HERE = ("python", "c", "sh", "console")


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.S)
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


ENGINES = {
    "transformers": "generate",
    "vLLM": "vllm",
    "SGLang": "sglang",
    "llama.cpp": "llama_cpp",
    "LMDeploy": "patched_engines",
    "TensorRT-LLM": "patched_engines",
}


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_have_a_row_in_the_readme_and_a_short_example(engine):
    """The row has versions, which the engine's page names, the switch, what falls back, and what was run."""
    page = (ROOT / "docs" / f"{ENGINES[engine]}.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```py.*?\n(.*?)^```", page, re.S | re.M)
    assert examples and max(len(example.splitlines()) for example in examples) <= 40
    table = (ROOT / "README.md").read_text(encoding="utf-8").split("## Engines")[1].split("\n## ")[0]
    rows = re.findall(rf"^\| (?:\[{engine}\]|{engine}).*", table, re.M)
    assert rows
    for row in rows:
        _, versions, *cells, tried = (cell.strip() for cell in row.strip("|").split("|"))
        assert all(cells) and re.match("run|stand-in", tried)
        assert all(version in page for version in re.findall(r"\d+\.\d[.\d]*", versions))
