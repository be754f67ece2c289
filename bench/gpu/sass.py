# SPDX-License-Identifier: Apache-2.0
"""What ptxas makes of a launch for some target: registers, and warp instructions by the pipe that takes them.

The emulator counts how often instructions of PTX are executed. Each machine instruction is taken to be
executed as often as the average instruction of PTX of its line in the source.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import ptx_emulator
from ptx_emulator.program import load
from ptx_emulator.resources import ptxas

LINE = re.compile(r'//## File "(?:[^"]*/)?([^"/]*)", line (\d+)')
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")
PIPES = {
    "fma": ("FADD", "FMUL", "FFMA", "HFMA2", "HADD2", "HMUL2"),
    "imad": ("IMAD",),
    "special": ("MUFU", "F2F", "F2I", "I2F", "FRND", "POPC", "FLO", "REDUX"),
    "double": ("DADD", "DMUL", "DFMA", "DSETP"),
    "memory": (
        "LD",
        "LDG",
        "LDS",
        "LDSM",
        "LDGSTS",
        "LDL",
        "ST",
        "STG",
        "STS",
        "STL",
        "ATOM",
        "ATOMG",
        "ATOMS",
    )
    + ("RED", "SHFL", "MATCH"),
    "tensor": ("HMMA", "IMMA", "DMMA"),
    "issue": ("BRA", "BSSY", "BSYNC", "EXIT", "CALL", "RET", "WARPSYNC", "BAR", "NOP", "DEPBAR", "LDGDEPBAR"),
}
PIPE_OF = {name: pipe for pipe, names in PIPES.items() for name in names}


def pipe_of(opcode: str) -> str:
    """`issue` alone for branches, barriers and the uniform datapath."""
    name = opcode.partition(".")[0]
    if name.startswith("U") and name not in PIPE_OF:
        return "issue"
    return PIPE_OF.get(name, "alu")


@functools.lru_cache(maxsize=256)
def listing(ptx: str, arch: int) -> tuple[tuple[str, str], ...]:
    """Line of the source ("draw.py:169") and opcode of every machine instruction."""
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        assembler = Path(ptxas(arch))
        options = ["-lineinfo", f"--gpu-name=sm_{arch}{'a' * (arch >= 90)}"]
        subprocess.run([assembler, *options, source, "-o", cubin], check=True, capture_output=True)
        command = [assembler.parent / "nvdisasm", "-g", "-c", cubin]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found, line = [], ""
    for row in text.splitlines():
        if marked := LINE.search(row):
            line = f"{marked[1]}:{marked[2]}"
        elif instruction := INSTRUCTION.search(row):
            found.append((line, instruction[1]))
    return tuple(found)


@functools.lru_cache(maxsize=256)
def registers(ptx: str, arch: int) -> int:
    target = f".target sm_{arch}{'a' * (arch >= 90)}"
    return ptx_emulator.resources(re.sub(r"\.target\s+sm_\w+", target, ptx), arch)["registers"]


def pipes(launch: ptx_emulator.Launch, arch: int) -> Counter[str]:
    """Warp instructions of a launch by pipe; `issue` counts them all."""
    executed, static = Counter(), Counter()
    for index, warps in launch.tally.warps_through.items():
        for instruction in load(launch.ptx).blocks[index].instructions:
            executed[instruction.source] += warps
    for block in load(launch.ptx).blocks:
        static.update(instruction.source for instruction in block.instructions)
    counts: Counter[str] = Counter()
    often = 0.0
    for line, opcode in listing(launch.ptx, arch):
        often = executed[line] / static[line] if line in static else often
        counts["issue"] += often
        if (pipe := pipe_of(opcode)) != "issue":
            counts[pipe] += often * (0.5 if opcode.startswith("HMMA.1688") else 1)
    return counts
