# SPDX-License-Identifier: Apache-2.0
"""Files that the user names: prompts to read, results to write."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

PROMPTS = Path(__file__).with_name("prompts")


class Refused(Exception):
    """What the user asked for cannot be done; the message says why."""


def read_prompts(folder: Path, names: Sequence[str] | None = None) -> dict[str, str]:
    """The texts of the files NAME.txt of a folder by their names, all of them or those that are named."""
    try:
        files = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix == ".txt"}
    except OSError as error:
        raise Refused(f"{str(folder)!r} cannot be read: {error.strerror}") from None
    if not files:
        raise Refused(f"{str(folder)!r} has no .txt files")
    chosen = list(files) if names is None else names
    for name in chosen:
        if name not in files:
            raise Refused(f"there is no prompt {name!r} in {str(folder)!r}, only {', '.join(files)}")
    return {name: _read(files[name]) for name in chosen}


def first_of_each_kind(prompts: Mapping[str, str]) -> dict[str, str]:
    """The kind is the name up to its first underscore."""
    first: dict[str, str] = {}
    for name in prompts:
        first.setdefault(name.partition("_")[0], name)
    return {name: prompts[name] for name in first.values()}


def _read(path: Path) -> str:
    if not path.stem.isprintable():
        raise Refused(f"the name of {str(path)!r} cannot be printed")
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise Refused(f"{str(path)!r} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Refused(f"{str(path)!r} is not text in UTF-8") from None
    if not text:
        raise Refused(f"{str(path)!r} is empty")
    return text


def check_writable(path: Path) -> None:
    """Refuse a path that cannot be written to; what stands there stays as it is."""
    try:
        existed = path.exists()
        if existed and not path.is_file() and not path.is_dir():
            return  # a terminal or a pipe, which may be opened only once
        target = Path(os.path.realpath(path))
        with open(target, "ab"):
            pass
        if not existed:
            target.unlink()
    except OSError as error:
        raise cannot_write(path, error) from None


def cannot_write(path: Path, error: OSError) -> Refused:
    return Refused(f"{str(path)!r} cannot be written: {error.strerror}")
