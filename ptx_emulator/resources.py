# SPDX-License-Identifier: Apache-2.0
"""Registers and spills, as the ptxas of Triton's package reports them."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

from triton.backends.nvidia import compiler


def ptxas(arch: int) -> str:
    """Path of the assembler in Triton's package."""
    takes_arch = compiler.get_ptxas.__code__.co_argcount  # one for all before Triton 3.5
    return compiler.get_ptxas(*(arch,)[:takes_arch]).path


def resources(kernel: object, arch: int | None = None) -> dict[str, int]:
    """Of a compiled kernel, or of PTX text: `registers` of a thread, and bytes `spill_stores`, `spill_loads`,
    `stack`.

    Args:
        arch: whose ptxas; that of the text's own target unless told.
    """
    ptx = kernel if isinstance(kernel, str) else kernel.asm["ptx"]
    target = re.search(r"\.target\s+(sm_(\d+)\w*)", ptx)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        command = [ptxas(arch or int(target[2])), "-v", "--regAllocOptLevel=2"]
        command += [f"--gpu-name={target[1]}", str(source), "-o", f"{folder}/kernel.cubin"]
        report = subprocess.run(command, capture_output=True, text=True).stderr
    if "Used" not in report:
        raise RuntimeError(report)

    def number(pattern: str) -> int:
        found = re.search(pattern, report)
        return int(found[1]) if found else 0

    return {
        "registers": number(r"Used (\d+) registers"),
        "spill_stores": number(r"(\d+) bytes spill stores"),
        "spill_loads": number(r"(\d+) bytes spill loads"),
        "stack": number(r"(\d+) bytes stack frame"),
    }
