# SPDX-License-Identifier: Apache-2.0
"""What parts ask of a GPU: a card, or for dry runs the emulator with stand-ins for whatever it does not have."""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).parents[2]
Call = Callable[[], Any]


@dataclass(frozen=True)
class Launch:
    """A kernel as it was launched."""

    name: str
    grid: tuple[int, ...]
    threads: int  # of a block
    registers: int  # of a thread
    seconds: float

    def __str__(self) -> str:
        registers = f" {self.registers}r" if self.registers else ""
        return f"{self.name} {'x'.join(map(str, self.grid))} x {self.threads}t{registers}"


def form(launches: Sequence[Launch]) -> str:
    """Which kernels were launched, and how: what every figure says of itself."""
    return "; ".join(map(str, launches)) or "unknown"


def tensors(value: Any) -> list[torch.Tensor]:
    """Those of a result, in order."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def same_bits(a: Any, b: Any) -> bool:
    """NaN equals NaN."""
    return all(
        x.shape == y.shape and torch.equal(x.contiguous().view(torch.uint8), y.contiguous().view(torch.uint8))
        for x, y in zip(tensors(a), tensors(b), strict=True)
        if x.numel() or y.numel()
    )


class Device:
    """`real` is False where figures are made up."""

    real: bool
    kind: str  # of torch's devices
    name: str

    def put(self, value: Any) -> Any:
        """A copy here of tensors on the host, and of whatever holds some."""
        from device import Crossing  # of the tests

        return Crossing("cpu", self.kind)(value)

    def facts(self) -> dict[str, Any]:
        """Name, processors, memory, versions."""
        raise NotImplementedError

    def synchronize(self) -> None:
        """Waits for all that was launched."""

    def graph(self, call: Call) -> tuple[Call, Any]:
        """Captures a call: what replays it, and the result that every replay fills."""
        raise NotImplementedError

    def seconds(self, call: Call, cold: bool = False) -> float:
        """The median time of a captured call; `cold`: after the L2 cache was overwritten."""
        raise NotImplementedError

    def eager_seconds(self, call: Call) -> float:
        """The median time of a call that cannot be captured, with the L2 cache overwritten before."""
        raise NotImplementedError

    def launches(self, call: Call) -> list[Launch]:
        """What a call launches."""
        raise NotImplementedError

    def no_synchronisation(self) -> contextlib.AbstractContextManager[None]:
        """Inside, a call that would wait for the device raises."""
        raise NotImplementedError

    def together(self, calls: Sequence[Call]) -> list[Any]:
        """Results of calls, each on a stream of its own."""
        raise NotImplementedError

    def thrash(self) -> None:
        """Keeps another stream busy for a while, with more memory than the caches hold."""

    def host_seconds(self, call: Call) -> float:
        """The median time after which an eager call returns."""
        raise NotImplementedError

    def which(self, tool: str) -> str | None:
        """The path of a tool, if it is here."""
        return shutil.which(tool) or shutil.which(tool, path="/usr/local/cuda/bin")

    def tool(self, command: Sequence[str], workload: str) -> tuple[int, str]:
        """Runs a workload under a tool: its exit status and what was printed."""
        raise NotImplementedError


class Card(Device):
    real, kind = True, "cuda"

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise RuntimeError("torch finds no GPU here; --dry-run needs none")
        self.properties = torch.cuda.get_device_properties(0)
        self.name = self.properties.name
        cache = getattr(self.properties, "L2_cache_size", 64 << 20)
        self.flush = torch.empty(max(2 * cache, 64 << 20), dtype=torch.int8, device="cuda")
        self.other, self.source = torch.cuda.Stream(), torch.zeros_like(self.flush)

    def facts(self) -> dict[str, Any]:
        p = self.properties
        return {
            "card": self.name,
            "capability": f"{p.major}.{p.minor}",
            "processors": p.multi_processor_count,
            "memory, GiB": round(p.total_memory / 2**30, 1),
            "L2, MiB": round(getattr(p, "L2_cache_size", 0) / 2**20, 1),
            "cards": torch.cuda.device_count(),
            "CUDA of torch": torch.version.cuda or torch.version.hip,
            "driver": _printed("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "power limit, clocks": _printed(
                "nvidia-smi", "--query-gpu=power.limit,clocks.max.sm,clocks.max.mem", "--format=csv,noheader"
            ),
        }

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def graph(self, call: Call) -> tuple[Call, Any]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = call()
        return graph.replay, result

    def seconds(self, call: Call, cold: bool = False) -> float:
        """Cold: one call a graph. Warm: ten in a row, so that the start of a graph hardly counts."""
        times = 1 if cold else 10
        replay, _ = self.graph(lambda: [call() for _ in range(times)])
        return self._median(replay, cold) / times

    def eager_seconds(self, call: Call) -> float:
        return self._median(call, cold=True)

    def _median(self, call: Call, cold: bool, count: int = 15) -> float:
        for _ in range(3):
            call()
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
        for begin, end in pairs:
            if cold:
                self.flush.fill_(1)  # and the host runs ahead meanwhile
            begin.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return statistics.median(begin.elapsed_time(end) for begin, end in pairs) / 1e3

    def launches(self, call: Call) -> list[Launch]:
        """From CUPTI's trace of kernels, whoever launched them."""
        call()
        torch.cuda.synchronize()
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            call()
            torch.cuda.synchronize()
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            profile.export_chrome_trace(file.name)
            events = json.loads(Path(file.name).read_text())["traceEvents"]
        kernels = sorted((e for e in events if e.get("cat") == "kernel"), key=lambda e: e["ts"])
        return [
            Launch(
                _short(e["name"]),
                tuple(e["args"].get("grid", ())),
                int(torch.tensor(e["args"].get("block", [0])).prod()),
                e["args"].get("registers per thread", 0),
                e["dur"] / 1e6,
            )
            for e in kernels
        ]

    @contextlib.contextmanager
    def no_synchronisation(self) -> Iterator[None]:
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def together(self, calls: Sequence[Call]) -> list[Any]:
        streams, results = [torch.cuda.Stream() for _ in calls], []
        for stream in streams:
            stream.wait_stream(torch.cuda.current_stream())
        for stream, call in zip(streams, calls, strict=True):
            with torch.cuda.stream(stream):
                results.append(call())
        torch.cuda.synchronize()
        return results

    def thrash(self) -> None:
        with torch.cuda.stream(self.other):
            self.flush.copy_(self.source)

    def host_seconds(self, call: Call) -> float:
        samples = []
        for _ in range(30):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            for _ in range(10):  # few enough for the queue of launches never to be full
                call()
            samples.append((time.perf_counter() - begin) / 10)
        return statistics.median(samples)

    def tool(self, command: Sequence[str], workload: str) -> tuple[int, str]:
        target = [sys.executable, "-m", "bench.gate", "--workload", workload]
        done = subprocess.run([*command, *target], cwd=ROOT, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr


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

        with ptx_emulator.active(80, compile_only=True), ptx_emulator.count() as launches:
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


def open_device(dry: bool) -> Device:
    return Emulated() if dry else Card()


def _printed(*command: str) -> str:
    """What a command prints, or nothing where there is none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "; ".join(done.stdout.strip().splitlines()[:1])


def _short(name: str) -> str:
    """Kernels of C++ have long names."""
    return name if len(name) <= 60 else name[:57] + "..."
