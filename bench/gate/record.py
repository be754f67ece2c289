# SPDX-License-Identifier: Apache-2.0
"""What a part says: plain data, printed as it comes and sent to the runner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..suite import Goal

Entry = dict[str, Any]


class Record:
    """Entries of one part. `judged` is False where figures are made up, as in a dry run."""

    def __init__(self, part: str, send: Callable[[Entry], None], judged: bool):
        self.part, self.send, self.judged = part, send, judged

    def add(self, entry: Entry) -> None:
        print(f"[{self.part}] {line(entry)}", flush=True)
        self.send(entry)

    def check(self, name: str, ok: object, detail: object = "") -> bool:
        """Something that must hold."""
        self.add({"kind": "check", "name": name, "ok": bool(ok), "detail": str(detail)})
        return bool(ok)

    def row(self, table: str, **cells: object) -> None:
        """A line of a table; its columns are the names of the first line."""
        self.add({"kind": "row", "table": table, "cells": cells})

    def note(self, text: str) -> None:
        self.add({"kind": "note", "text": text})

    def missing(self, what: str, why: str) -> None:
        """Something that could not be run here: never counted as passed."""
        self.add({"kind": "missing", "what": what, "why": why})

    def mark(self, name: str, goal: Goal, known: Mapping[str, float]) -> None:
        """A pass mark of a figure."""
        judged = goal.judge(known)
        if not self.judged:
            judged["state"] = "MADE UP"
        self.add({"kind": "mark", "name": name, "goal": str(goal), **judged})


def line(entry: Entry) -> str:
    """For a terminal."""
    kind = entry["kind"]
    if kind == "check":
        return f"{'ok  ' if entry['ok'] else 'FAIL'} {entry['name']}" + f": {entry['detail']}" * bool(
            entry["detail"]
        )
    if kind == "row":
        cells = (f"{name} {cell_text(cell)}" for name, cell in entry["cells"].items() if cell != "")
        return f"{entry['table']}: " + ", ".join(cells)
    if kind == "missing":
        return f"not run: {entry['what']}: {entry['why']}"
    if kind == "mark":
        return f"{entry['state']} {entry['name']}: {entry['goal']}: {figure(entry['measured'])}"
    return entry["text"]


def cell_text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def figure(value: float | None) -> str:
    return "not measured" if value is None else cell_text(float(value))


def wrong(entry: Entry) -> bool:
    return entry["kind"] == "check" and not entry["ok"]


def missed(entry: Entry) -> bool:
    return entry["kind"] == "mark" and entry["state"] in ("MISS", "NONE")
