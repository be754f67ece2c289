# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.gate`: runs parts, each in a process of its own; prints as it goes; writes a report."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from . import parts, report
from .device import ROOT, open_device
from .processes import Ended, Send, spread

RESULTS = ROOT / "bench" / "results"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gate", description=__doc__)
    parser.add_argument("--only", default="", help="comma-separated globs or pieces of parts' names")
    parser.add_argument("--dry-run", action="store_true", help="on the emulator, with tiny sizes")
    parser.add_argument(
        "--minutes", type=float, default=9.5, help="after which no part goes on (default: 9.5)"
    )
    parser.add_argument(
        "--json", type=Path, help="folder of the report; a complete run on a card has results/"
    )
    parser.add_argument("--workload", help=argparse.SUPPRESS)  # what a tool looks at
    args = parser.parse_args(arguments)
    if args.workload:
        from . import workloads

        workloads.run(args.workload, open_device(args.dry_run))
        return 0
    chosen = select(args.only)
    if not chosen:
        parser.error(f"no part matches {args.only!r}; there are {', '.join(p.name for p in parts.PARTS)}")
    for module in ("specdec_kernels.triton", *["ptx_emulator"] * args.dry_run):
        importlib.import_module(module)  # once, before processes are forked; nothing here touches the device
    complete = not (args.only or args.dry_run)
    target = args.json or (RESULTS if complete else None)
    command = " ".join(["python -m bench.gate", *(arguments or sys.argv[1:])])
    results: dict[str, Any] = {"command": command, "dry": args.dry_run, "parts": {}}
    with tempfile.TemporaryDirectory() as folder:
        if not args.dry_run:
            os.environ["TRITON_CACHE_DIR"] = f"{folder}/cache"  # empty, and shared by the parts
        for _ in run(results, chosen, 60 * args.minutes, Path(folder)):
            if target and report.card(results) != report.UNKNOWN:
                write(results, target)  # whoever stops the run loses no more than the part that was going on
    print("\n" + report.verdict(results))
    if target:
        print(f"written: {write(results, target)}")
    return int(report.failed(results))


def select(only: str) -> list[parts.Part]:
    globs = [glob if "*" in glob else f"*{glob}*" for glob in only.split(",")]
    return [part for part in parts.PARTS if any(fnmatch(part.name, glob) for glob in globs)]


def run(results: dict[str, Any], chosen: list[parts.Part], seconds: float, folder: Path) -> Iterator[None]:
    """Puts into `results` the entries of the parts, and how each ended. Yields after every part."""
    dry, end = results["dry"], time.monotonic() + seconds
    results["parts"] = {part.name: {"title": part.title, "entries": [], "end": None} for part in chosen}

    def begin(part: parts.Part, send: Send) -> None:
        parts.run(part, dry, folder, send)

    for part in chosen:
        print(f"\n== {part.name}: {part.title}", flush=True)
        left, found = end - time.monotonic(), results["parts"][part.name]
        if left < 1:
            found["end"] = vars(Ended("out of time", "the minutes of the run were over", 0.0))
            continue
        for _, message in spread(begin, [part], limit=lambda part, left=left: min(part.seconds, left)):
            if isinstance(message, Ended):
                found["end"] = vars(message)
                said = f"{message.state} in {message.seconds:.1f} s {message.last_line}"
                print(f"== {part.name}: {said}", flush=True)
            else:
                found["entries"].append(message)
        yield


def write(results: dict[str, Any], folder: Path) -> Path:
    """The JSON and the page; the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{report.file_name(results)}.md"
    path.write_text(report.markdown(results), encoding="utf-8")
    path.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())
