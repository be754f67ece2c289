# SPDX-License-Identifier: Apache-2.0
"""Files around the code: licences, one version, and pins that agree."""

from __future__ import annotations

import ast
import re
import subprocess
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import version
from pathlib import Path

import pytest

import specdec_kernels

ROOT = Path(__file__).parent.parent
COMMENTS = {".py": "#", ".cpp": "//", ".h": "//", ".c": "//"}
FOLDERS = ("bench", "csrc", "demo", "examples", "include", "ptx_emulator", "specdec_kernels", "tests")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def files() -> list[str]:
    """Tracked files; in an unpacked sdist, those of the source folders."""
    if (ROOT / ".git").exists():
        return subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
    inside = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))
    return [path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*"), *inside] if path.is_file()]


def test_every_source_file_names_its_licence():
    sources = {name: COMMENTS.get(Path(name).suffix) for name in files() if (ROOT / name).exists()}
    sources["Makefile"] = "#"
    sources = {name: mark for name, mark in sources.items() if mark}
    assert len(sources) > 200
    for name, mark in sources.items():
        with open(ROOT / name, encoding="utf-8") as file:
            assert file.readline() == f"{mark} SPDX-License-Identifier: Apache-2.0\n", name


def test_one_version():
    assert specdec_kernels.__version__ == version("specdec-kernels")
    assert f"\nversion: {specdec_kernels.__version__}\n" in text("CITATION.cff")
    assert specdec_kernels.__version__ in text("CHANGELOG.md")


@pytest.mark.parametrize("tool", ["ruff", "clang-format"])
def test_hooks_have_the_versions_of_the_makefile(tool):
    pinned = re.search(rf"{tool}==(\S+)", text("Makefile"))[1]
    assert (
        re.search(rf"{tool}(?:-pre-commit)?\n    rev: v(\S+)", text(".pre-commit-config.yaml"))[1] == pinned
    )


def test_workflows_run_make():
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        workflow = path.read_text(encoding="utf-8")
        steps = re.findall(r"- run: *(.*)", workflow)
        targets = re.findall(r"^ +target: \[(.*)\]", workflow, re.M)[0].split(", ")
        targets += [step.removeprefix("make ") for step in steps if "${{ matrix.target }}" not in step]
        assert len(steps) > 4 and all(step.startswith("make ") for step in steps)
        assert all(f"\n{target}:" in text("Makefile") for target in targets), path.name


def named_in_structure() -> list[str]:
    """Files of the list on the page of the structure, in their order."""
    block = text("docs/structure.md").split("```")[1]
    block = re.sub(
        r"(\w+)\{([\w,]+)\}(\.\w+)", lambda m: " ".join(m[1] + x + m[3] for x in m[2].split(",")), block
    )
    return re.findall(r"[\w-]+\.(?:py|h|cpp)\b", block)


def test_the_core_includes_only_what_is_named_before():
    """A source file that is not named stands where its header does."""
    places = {name: place for place, name in reversed(list(enumerate(named_in_structure())))}
    sources = [Path(name) for name in files() if re.fullmatch(r"csrc/\w+\.(h|cpp)", name)]
    assert sources
    for path in sources:
        included = set(re.findall(r'#include "(\w+\.h)"', text(path.as_posix()))) - {f"{path.stem}.h"}
        place = places.get(path.name, places.get(f"{path.stem}.h"))
        assert all(places[name] < place for name in included), path.name


def test_the_page_of_the_structure_names_every_file():
    """And no other: modules by their names, headers, examples and the emulator."""
    named = set(named_in_structure())
    there = [Path(name) for name in files() if Path(name).suffix in (".py", ".h", ".cpp")]
    listed = ("specdec_kernels", "specdec_kernels/drafting", "specdec_kernels/_ops", "specdec_kernels/triton")
    listed += tuple(
        f"specdec_kernels/integrations{part}" for part in ("", "/sglang", "/transformers", "/vllm")
    )
    listed += (
        "examples",
        "ptx_emulator",
        "specdec_kernels/sharded",
        "specdec_kernels/cli",
        "specdec_kernels/testing",
    )
    listed += ("demo", "demo/drafters", "demo/distil", "demo/report", "demo/traces")
    modules = {path.name for path in there if path.parent.as_posix() in listed} - {"__init__.py"}
    headers = {path.name for path in there if path.parent.name == "csrc" and path.suffix == ".h"}
    assert (modules | headers) - named == set()
    assert named - {path.name for path in there} == set()


def imports(package: str) -> dict[str, set[str]]:
    """The modules of a package that each of its modules imports, in functions and for types as well."""
    names = {
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"): path
        for suffix in ("*.py", "*.pyi")
        for path in (ROOT / package).rglob(suffix)
    }
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        found = graph.setdefault(name, set())
        parents = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                above = parents[: len(parents) + 1 - node.level] if node.level else []
                module = ".".join([*above, *filter(None, [node.module])])
                inside = (f"{module}.{alias.name}" for alias in node.names)
                found.update(full if full in names else module for full in inside)
    return {name: found & names.keys() for name, found in graph.items()}


@pytest.mark.parametrize("package", ["ptx_emulator", "specdec_kernels"])
def test_imports_go_in_no_circle(package):
    graph = imports(package)
    assert sum(map(len, graph.values())) > 50
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_no_test_file_imports_another():
    """What several share stands in modules that are no tests."""
    for name in files():
        if name.startswith("tests/") and name.endswith(".py"):
            assert not re.search(r"^ *(?:from|import) test_", text(name), re.M), name
