# SPDX-License-Identifier: Apache-2.0
"""ncu on the kernels of verify and of attention: time, memory, occupancy, and what warps wait for."""

from __future__ import annotations

import csv

from .parts import Gate

STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
METRICS = {
    "gpu__time_duration.sum": "time",
    "dram__bytes.sum": "DRAM",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "DRAM %",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "SM %",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps %",
    "launch__registers_per_thread": "registers",
    STALL.format("long_scoreboard"): "waits for memory",
    STALL.format("barrier"): "waits at barriers",
    STALL.format("math_pipe_throttle"): "waits for pipes",
    STALL.format("wait"): "waits, fixed",
}


def run(gate: Gate) -> None:
    record, path = gate.record, gate.device.which("ncu")
    if path is None:
        return record.missing("ncu", "it is not installed")
    kernels = "regex:verify_|_attention_|_commit_|_sample_"
    command = (path, "--csv", "--kernel-name", kernels, "--metrics", ",".join(METRICS))
    status, text = gate.device.tool(command, "timed")
    lines = text.splitlines()
    head = next((place for place, line in enumerate(lines) if line.startswith('"ID"')), None)
    if head is None:
        said = [line for line in lines if "ERROR" in line or "error" in line][:2] or lines[-2:]
        return record.missing("ncu", f"exit status {status}: {' / '.join(said)}")
    launches: dict[str, dict[str, str]] = {}
    for found in csv.DictReader(line for line in lines[head:] if line.startswith('"')):
        cells = launches.setdefault(found["ID"], {"kernel": found["Kernel Name"]})
        cells["grid x block"] = f"{found.get('Grid Size', '')} x {found.get('Block Size', '')}"
        name = METRICS.get(found["Metric Name"], found["Metric Name"])
        cells[name] = f"{found['Metric Value']} {found['Metric Unit']}".strip()
    for cells in launches.values():
        record.row("launches", **cells)
    record.check("every launch has its time", all("time" in cells for cells in launches.values()))
