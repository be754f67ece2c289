# SPDX-License-Identifier: Apache-2.0
"""compute-sanitizer over every operator: bounds, races in shared memory, barriers, memory never written."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor, as_completed

from .parts import Gate

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")


def run(gate: Gate) -> None:
    record, path = gate.record, gate.device.which("compute-sanitizer")
    if path is None:
        return record.missing("compute-sanitizer", "it is not installed")
    record.note("racecheck may report the tensor-core instructions of sm_90 falsely.")

    def look(tool: str) -> tuple[str, int, str]:
        command = (path, "--tool", tool, "--error-exitcode", "9")
        return tool, *gate.device.tool(command, "every operator")

    with ThreadPoolExecutor(1 if gate.dry else len(TOOLS)) as pool:
        for done in as_completed([pool.submit(look, tool) for tool in TOOLS]):
            tool, status, text = done.result()
            found = SUMMARY.findall(text)
            lines = [line for line in text.splitlines() if line.startswith("=========")]
            said = " / ".join(lines[:6] + lines[-2:]) if lines else text.strip()[-300:]
            clean = status == 0 and found and not any(map(int, found))
            record.check(tool, clean, "nothing found" if clean else f"exit status {status}: {said}")
