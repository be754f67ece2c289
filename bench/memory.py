# SPDX-License-Identifier: Apache-2.0
"""Peak extra memory of one call, in a fresh process: high-water mark of the resident set, reset before."""

import ctypes
import dataclasses
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

THREADS = 2
# A fixed threshold sends every buffer of this size back to the system when it is freed; otherwise a call
# could live on what an earlier one left behind, and its peak would not show.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def measure(name: str, scale: float) -> dict[str, int]:
    """Bytes by contender for the case of this name, its inputs built with a noise `scale` already known."""
    command = [sys.executable, "-m", "bench.memory", name, repr(scale)]
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    environment = os.environ | ALLOCATOR | {"PYTHONPATH": path}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"memory of {name}: {result.stderr.strip()}")
    return json.loads(result.stdout.splitlines()[-1])


def supported() -> bool:
    return Path("/proc/self/clear_refs").exists()


def _resident(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(field))


def _peak(run: Callable[[int], object]) -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmHWM:")
    run(0)
    return _resident("VmHWM:") - before


def _main() -> None:
    import torch

    from .inputs import build
    from .peers import Verifier
    from .suite import available
    from .verify import CASES

    name, scale = sys.argv[1:]
    case = next(case for case in CASES if case.name == name)
    torch.set_num_threads(THREADS)
    inputs = build(case, sets=1, scale=float(scale))
    tiny = build(dataclasses.replace(case, batch=1, vocab=256), sets=1, scale=float(scale))
    peaks = {}
    for contender in available(case.contenders(), quick=True)[0]:
        if isinstance(contender, Verifier):
            contender.prepare(tiny)(0)
            peaks[contender.name] = _peak(contender.prepare(inputs))
    print(json.dumps(peaks))


if __name__ == "__main__":
    _main()
