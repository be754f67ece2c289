# SPDX-License-Identifier: Apache-2.0
"""The page of a run: what failed first, then a section for each part."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ..report import rows
from .record import Entry, cell_text, figure, missed, wrong

Results = dict[str, Any]
UNKNOWN = "unknown card"
NOT_REACHED = {"state": "not reached", "detail": "the run ended before it", "seconds": 0.0}


def state(part: dict[str, Any]) -> str:
    """In a word: what counts as passed says "passed" and nothing else does."""
    end, entries = part["end"] or NOT_REACHED, part["entries"]
    if end["state"] != "done":
        return end["state"].upper()
    if any(map(wrong, entries)):
        return "FAILED"
    if any(map(missed, entries)):
        return "MARK MISSED"
    asked = [entry for entry in entries if entry["kind"] in ("check", "mark", "row")]
    return "passed" if asked else "not run"


def failed(results: Results) -> bool:
    """Whether anything is wrong, missed a mark, or did not end by itself. What could not run here is named,
    and fails nothing."""
    return any(state(part) not in ("passed", "not run") for part in results["parts"].values())


def card(results: Results) -> str:
    entries = (entry for part in results["parts"].values() for entry in part["entries"])
    return next((entry["name"] for entry in entries if entry["kind"] == "card"), UNKNOWN)


def file_name(results: Results) -> str:
    return "gpu-" + re.sub(r"[^a-z0-9]+", "-", card(results).lower()).strip("-")


def verdict(results: Results) -> str:
    """For a terminal."""
    lines = [f"{state(part):12} {name}: {part['title']}" for name, part in results["parts"].items()]
    lines += [f"  {text}" for text in complaints(results)]
    absent = [name for name, part in results["parts"].items() if state(part) == "not run"]
    but = f", but these parts were not run: {', '.join(absent)}" if absent else ""
    lines.append("the gate: " + ("FAILED" if failed(results) else "passed" + but))
    if results["dry"]:
        lines.append("A dry run: it tells whether the gate works, and nothing about a GPU.")
    return "\n".join(lines)


def complaints(results: Results) -> Iterator[str]:
    """What is wrong, too slow or missing."""
    for name, part in results["parts"].items():
        end = part["end"] or NOT_REACHED
        if end["state"] != "done":
            last = end["detail"].strip().splitlines()[-1:]
            yield f"{name}: {state(part)}: {' '.join(last)}"
        for entry in part["entries"]:
            if wrong(entry):
                yield f"{name}: FAILED: {entry['name']}: {entry['detail']}"
            if missed(entry):
                got = figure(entry["measured"])
                yield f"{name}: MARK MISSED: {entry['name']}: {entry['goal']}, got {got}"
            if entry["kind"] == "missing":
                yield f"{name}: not run: {entry['what']}: {entry['why']}"
            if entry["kind"] == "row" and entry["cells"].get("loss"):
                yield f"{name}: LOSS: {entry['cells']['case']}: {entry['cells']['loss']}"


def markdown(results: Results) -> str:
    lines = [f"# The gate on {card(results)}", ""]
    if results["dry"]:
        lines += ["**A dry run on the emulator: times, tools and marks are made up.**", ""]
    lines += [f"`{results['command']}`", ""]
    summary = [("part", "", "state", "checks", "marks", "seconds")]
    for name, part in results["parts"].items():
        end = part["end"] or NOT_REACHED
        summary.append((name, part["title"], state(part), *tallies(part["entries"]), f"{end['seconds']:.1f}"))
    lines += [*rows(summary), ""]
    said = list(complaints(results))
    lines += ["## Failures, missed marks, losses, and what was not run", ""]
    lines += [f"- {text}" for text in said] or ["None."]
    for name, part in results["parts"].items():
        lines += ["", f"## {name}", "", part["title"] + ".", "", *section(part)]
    return "\n".join(lines).rstrip() + "\n"


def tallies(entries: list[Entry]) -> tuple[str, str]:
    checks = [entry for entry in entries if entry["kind"] == "check"]
    marks = [entry for entry in entries if entry["kind"] == "mark"]
    return (
        f"{sum(not wrong(entry) for entry in checks)} of {len(checks)}",
        f"{sum(entry['state'] == 'ok' for entry in marks)} of {len(marks)}",
    )


def section(part: dict[str, Any]) -> list[str]:
    """Notes, tables, marks and checks, in this order."""
    entries, lines = part["entries"], []
    for entry in entries:
        if entry["kind"] == "note":
            lines += [entry["text"], ""]
    tables: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        if entry["kind"] == "row":
            tables.setdefault(entry["table"], []).append(entry["cells"])
    for name, cells in tables.items():
        heads = list(dict.fromkeys(head for each in cells for head in each))
        body = [[_cell(each.get(head, "")) for head in heads] for each in cells]
        lines += [f"### {name}", "", *rows([heads, *body]), ""]
    marks = [entry for entry in entries if entry["kind"] == "mark"]
    if marks:
        cells = [(m["name"], m["goal"], figure(m["measured"]), m["state"]) for m in marks]
        lines += ["### Marks", "", *rows([("case", "mark", "measured", ""), *cells]), ""]
    checks = [entry for entry in entries if entry["kind"] == "check"]
    if checks:
        cells = [(c["name"], _cell(c["detail"]), "ok" if c["ok"] else "**FAILED**") for c in checks]
        lines += ["### Checks", "", *rows([("check", "", ""), *cells]), ""]
    if part["end"] and part["end"]["state"] != "done":
        lines += [f"**{state(part)}**", "", "```", part["end"]["detail"].strip(), "```", ""]
    return lines


def _cell(value: object) -> str:
    return cell_text(value).replace("|", "\\|").replace("\n", " ")
