# SPDX-License-Identifier: Apache-2.0
"""The documentation site: every page is reached, every public name has a reference, and links lead somewhere.

`make docs` builds it, with warnings as errors. These tests need no MkDocs.
"""

from __future__ import annotations

import inspect
import pkgutil
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

import specdec_kernels
from specdec_kernels import sharded, testing

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PUBLIC = [
    f"{package.__name__}:{name}"
    for package in (specdec_kernels, sharded, testing)
    for name in package.__all__
]
GENERATED = {"index.md", "contributing.md", "changelog.md", "security.md"}  # by docs/site.py


def test_the_navigation_has_every_page_once():
    found = re.findall(
        r"^ +- (?:[^:\n]+: )?([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M
    )
    there = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    assert sorted(found) == sorted([*there, *GENERATED])


def test_every_public_name_is_in_the_reference_once():
    """Under a path that is no module: the builder takes a module where there is one of the same name."""
    pages = "".join(path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.md"))
    found = [pkgutil.resolve_name(path) for path in re.findall(r"^::: ([\w.]+)$", pages, re.M)]
    times = {name: sum(one is pkgutil.resolve_name(name) for one in found) for name in PUBLIC}
    assert times == dict.fromkeys(PUBLIC, 1) and len(found) == len(PUBLIC)


def documented(text: str) -> list[str]:
    """Names of the arguments in a docstring; one line may tell of several."""
    section = re.search(r"^( *)Args:\n((?:\1 .*\n|\n)+)", f"{text}\n", re.M)
    found = re.findall(rf"^{section[1]}    ([*\w]+(?:, [*\w]+)*): ", section[2], re.M) if section else []
    return [name.strip(" *") for names in found for name in names.split(",")]


def arguments(function) -> set[str]:
    return set(inspect.signature(function).parameters)


@pytest.mark.parametrize("name", PUBLIC)
def test_docstrings_name_arguments_and_pages_that_exist(name):
    """The builder is told not to ask, since a line may tell of several arguments."""
    public = pkgutil.resolve_name(name)
    members = inspect.getmembers(public, inspect.isfunction) if inspect.isclass(public) else []
    for what, function in [(name, public), *members]:
        text = inspect.getdoc(function) or ""
        if not what.startswith("_") and (named := documented(text)):
            assert set(named) <= arguments(function), f"{name}.{what}"
        assert all((ROOT / page).exists() for page in re.findall(r"docs/\w+\.md", text)), f"{name}.{what}"


def slug(heading: str) -> str:
    """The anchor of a heading, on the site and where the source is shown."""
    return (
        re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower())
        .strip()
        .replace(" ", "-")
    )


def headings(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", text, re.M)}


def test_links_lead_to_headings():
    seen = 0
    for page in (*ROOT.glob("*.md"), *DOCS.rglob("*.md")):
        text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.S)
        for target, anchor in re.findall(r"\]\(([^)#:\s]*)#([^)\s]+)\)", text):
            seen += 1
            there = page.parent / target if target else page
            assert anchor in headings(there), f"{page.name}: {target}#{anchor}"
    assert seen > 50


def test_names_of_transformers_are_those_of_its_source():
    """Options and functions in the first column of its table, on the page for those who come from it."""
    if not (spec := find_spec("transformers")):
        pytest.skip("needs transformers")
    source = "".join(
        path.read_text(encoding="utf-8") for path in (Path(spec.origin).parent / "generation").glob("*.py")
    )
    table = (DOCS / "migration.md").read_text(encoding="utf-8").split("## transformers")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    names = {name for cell in cells for name in re.findall(r"\b[a-z]+(?:_[a-z]+)+\b|_spec\w+", cell)}
    assert len(names) > 10 and {name for name in names if name not in source} == set()
