# SPDX-License-Identifier: Apache-2.0
"""A hook of MkDocs: pages of the site whose text stands outside docs/, and links to them.

README.md is the home page. A file that a page links to, such as an example, gets a page with its text. So the
same links lead somewhere in the source tree and on the site. `Docstrings` is an extension of Griffe, which
reads the docstrings.
"""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

from griffe import Extension
from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
LINK = re.compile(r"(\]\()([^)#:\s]+)(#[^)\s]*)?(\))")
PICTURE = re.compile(r"(!\[[^\]]*\]\([\w/]+-)light\.svg\)")
CODE = re.compile(r"(^```.*?^```|`[^`\n]*`)", re.S | re.M)
LANGUAGES = {".py": "python", ".c": "c", ".h": "c"}


def page_of(path: str) -> str:
    """Where the site has a file of the source tree."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return PAGES.get(path) or f"source/{path.removesuffix('.md')}.md"


def links(text: str) -> list[str]:
    return [link[2] for prose in CODE.split(text)[::2] for link in LINK.finditer(prose)]


def on_files(files, config):
    def add(path):
        text = (ROOT / path).read_text(encoding="utf-8")
        if not path.endswith(".md"):
            text = f"# {path}\n\n```{LANGUAGES.get(Path(path).suffix, 'text')}\n{text}```\n"
        file = File.generated(config, page_of(path), content=text)
        file.origin = path
        files.append(file)

    for path in PAGES:
        add(path)
    for file in list(files.documentation_pages()):
        origin = getattr(file, "origin", f"docs/{file.src_uri}")
        for link in links(file.content_string):
            path = normpath(join(dirname(origin), link))
            if not path.startswith("docs/") and files.get_file_from_path(page_of(path)) is None:
                add(path)
    return files


def on_page_markdown(markdown, page, config, files):
    """Links between files become links between pages. A light picture gets its dark form beside it; the theme
    hides one of them. A block of code keeps nothing but its language."""
    origin = getattr(page.file, "origin", f"docs/{page.file.src_uri}")

    def rewrite(link):
        target = page_of(normpath(join(dirname(origin), link[2])))
        return f"{link[1]}{relpath(target, dirname(page.file.src_uri) or '.')}{link[3] or ''}{link[4]}"

    markdown = PICTURE.sub(r"\1light.svg#only-light)\n\1dark.svg#only-dark)", markdown)
    parts = CODE.split(markdown)
    parts[::2] = [LINK.sub(rewrite, prose) for prose in parts[::2]]
    return re.sub(r"^(```\w+) .*$", r"\1", "".join(parts), flags=re.M)


class Docstrings(Extension):
    """Griffe knows examples by another heading, and to Markdown `>= 0` is a quotation. The path of
    a page becomes a link."""

    def on_object(self, *, obj, **others):
        if obj.docstring:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.M)
            text = re.sub(r"^( *[\w, ]+: )>", r"\1\>", text, flags=re.M)
            obj.docstring.value = re.sub(r"`?docs/(\w+)\.md`?", r"[\1](../\1.md)", text)
