# SPDX-License-Identifier: Apache-2.0
"""A GPU of this machine."""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from .device import ROOT, Call, Device, Launch


class Card(Device):
    real, kind = True, "cuda"

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise RuntimeError("torch finds no GPU here; --dry-run needs none")
        os.environ.setdefault("TEARDOWN_CUPTI", "0")  # what was traced once is not taken down below a graph
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

        def several() -> None:
            for _ in range(times):
                call()

        replay, _ = self.graph(several)
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
        """From CUPTI's trace of kernels, whoever launched them; none where CUPTI does not serve."""
        call()
        torch.cuda.synchronize()
        activities = [torch.profiler.ProfilerActivity.CUDA]
        try:
            with torch.profiler.profile(activities=activities) as profile:
                call()
                torch.cuda.synchronize()
        except (AssertionError, RuntimeError) as error:
            print(f"the profiler does not serve: {error}", file=sys.stderr)
            return []
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            profile.export_chrome_trace(file.name)
            return launches_of(json.loads(Path(file.name).read_text())["traceEvents"])

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
        # Every tensor in memory of its own, so that an access beyond it is seen.
        env = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        done = subprocess.run([*command, *target], cwd=ROOT, env=env, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr


def launches_of(events: list[dict[str, Any]]) -> list[Launch]:
    """The kernels of a trace, in the order in which they began."""
    kernels = [event for event in events if event.get("cat") == "kernel"]
    return [
        Launch(
            _short(event["name"]),
            tuple(event["args"].get("grid", ())),
            math.prod(event["args"].get("block", (0,))),
            event["args"].get("registers per thread", 0),
            event["dur"] / 1e6,
        )
        for event in sorted(kernels, key=lambda event: event["ts"])
    ]


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
