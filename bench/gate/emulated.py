# SPDX-License-Identifier: Apache-2.0
"""The emulator instead of a GPU, for dry runs."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .device import Call, Device, Launch, tensors

# What the tools print, in a dry run.
PRINTED = {
    "compute-sanitizer": "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n",
    "ncu": '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n'
    '"0","verify_draw_kernel","gpu__time_duration.sum","nsecond","1000"\n',
}


class Emulated(Device):
    """Kernels run in the emulator. There are no graphs, streams, clocks or tools: a graph is the call again,
    streams take turns, every launch takes a made-up microsecond, and tools print what they are to print."""

    real, kind, name = False, "cpu", "emulator"

    def __init__(self) -> None:
        import ptx_emulator

        torch.set_num_threads(1)
        ptx_emulator.activate(80, reach="live")

    def facts(self) -> dict[str, Any]:
        return {"card": self.name, "capability": "8.0", "cards": 1}

    def graph(self, call: Call) -> tuple[Call, Any]:
        result = call()

        def replay() -> None:
            for old, new in zip(tensors(result), tensors(call()), strict=True):
                old.copy_(new)

        return replay, result

    def seconds(self, call: Call, cold: bool = False) -> float:
        return 1e-6 * max(len(self.launches(call)), 1)

    def eager_seconds(self, call: Call) -> float:
        call()
        return 1e-6

    def launches(self, call: Call) -> list[Launch]:
        import ptx_emulator

        with ptx_emulator.count() as launches:
            call()
        return [Launch(each.name, each.grid, 32 * each.num_warps, 0, 1e-6) for each in launches]

    def no_synchronisation(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def together(self, calls: Sequence[Call]) -> list[Any]:
        return [call() for call in calls]

    host_seconds = eager_seconds

    def which(self, tool: str) -> str | None:
        return tool if tool in PRINTED else super().which(tool)

    def tool(self, command: Sequence[str], workload: str) -> tuple[int, str]:
        from . import workloads

        workloads.run(workload, self)
        return 0, PRINTED[Path(command[0]).name]
