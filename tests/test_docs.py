# SPDX-License-Identifier: Apache-2.0
"""The examples in docstrings and pages run, and the pages' links lead somewhere."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import sglang_stand_in
from each import BACKENDS

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


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))])
def test_code_in_pages_runs(page, monkeypatch):
    for block in re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.S | re.M):
        if "import transformers" in block or "from transformers" in block:
            pytest.importorskip("transformers")
        if "import prometheus_client" in block:
            pytest.importorskip("prometheus_client")
        if "import sglang" in block:
            monkeypatch.setenv("SPECDEC_SGLANG", "0")
            sglang_stand_in.install(monkeypatch)
        exec(compile(block, page, "exec"), {})


def test_links_between_pages_lead_somewhere():
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
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
