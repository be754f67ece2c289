# SPDX-License-Identifier: Apache-2.0
"""Interleaved timing, and what other processes were doing meanwhile."""

import gc
import os
import random
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

QUIET = 0.05  # share of the machine that other processes may use during a quiet round
ENOUGH = 3  # quiet rounds that are enough to drop the noisy ones
ROUND_SECONDS = 0.4  # shorter rounds could not be told quiet from noisy: the system counts in ticks of 10 ms
REST_SECONDS = (
    0.012  # OpenMP's threads spin for about 9 ms after their work and would slow the next contender
)


@dataclass
class Timings:
    medians: dict[str, float]  # seconds
    quiet: int
    noisy: int
    used: str  # "quiet", or "all" where there were too few quiet rounds

    @property
    def noisy_share(self) -> float:
        return self.noisy / (self.quiet + self.noisy)


def _busy_seconds() -> float:
    """CPU time spent by the whole machine; 0 where the system does not tell."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, stat.read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _rest() -> None:
    """Waits without sleeping: a core that woke up just now would be measured cold."""
    end = time.perf_counter() + REST_SECONDS
    while time.perf_counter() < end:
        pass


def _round(
    contenders: dict[str, Callable[[int], object]], sets: int, order: random.Random
) -> dict[str, list[float]]:
    """Passes over all contenders, each in its own order, so that none always inherits the same warm cache."""
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    begin = time.perf_counter()
    while time.perf_counter() - begin < ROUND_SECONDS:
        i = order.randrange(sets)
        for name in order.sample(list(contenders), len(contenders)):
            _rest()
            start = time.perf_counter()
            contenders[name](i)
            samples[name].append(time.perf_counter() - start)
    return samples


def interleave(
    contenders: dict[str, Callable[[int], object]],
    sets: int,
    rounds: int,
    max_seconds: float,
    warmup: int = 2,
) -> Timings:
    """Medians over `rounds` quiet rounds, or what `max_seconds` allow. In a pass all take the same drafts."""
    torch.manual_seed(2)
    order = random.Random(2)
    for i in range(warmup):
        for run in contenders.values():
            run(i % sets)
    quiet, noisy = [], []
    gc.disable()
    begin = time.perf_counter()
    while len(quiet) < rounds and (time.perf_counter() - begin < max_seconds or not quiet + noisy):
        busy, own, start = _busy_seconds(), _own_seconds(), time.perf_counter()
        samples = _round(contenders, sets, order)
        elapsed = time.perf_counter() - start
        foreign = (_busy_seconds() - busy - (_own_seconds() - own)) / (elapsed * (os.cpu_count() or 1))
        (quiet if foreign <= QUIET else noisy).append(samples)
    gc.enable()
    used = quiet if len(quiet) >= ENOUGH else quiet + noisy
    medians = {name: statistics.median(t for samples in used for t in samples[name]) for name in contenders}
    return Timings(medians, len(quiet), len(noisy), "quiet" if used is quiet else "all")
