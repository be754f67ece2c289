# SPDX-License-Identifier: Apache-2.0
"""Interleaved timing, and what other processes were doing meanwhile."""

import gc
import os
import random
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from .suite import Rounds, Run

QUIET = 0.05  # share of the machine that other processes may use during a quiet round
ENOUGH = 3  # quiet rounds that are enough to drop the noisy ones
ROUND_SECONDS = 0.4  # shorter rounds could not be told quiet from noisy: the system counts in ticks of 10 ms
REST_SECONDS = (
    0.012  # OpenMP's threads spin for about 9 ms after their work and would slow the next contender
)


@dataclass
class Timings:
    medians: dict[str, float]  # seconds
    each_round: dict[str, list[float]]  # medians of the rounds used
    quiet: int
    noisy: int
    used: str  # "quiet", or "all" where there were too few quiet rounds


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
    runs: Mapping[str, Run], sets: int, order: random.Random, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Passes over all contenders, each in its own order, so that none always inherits the same warm cache."""
    samples: dict[str, list[float]] = {name: [] for name in runs}
    begin = time.perf_counter()
    while time.perf_counter() - begin < ROUND_SECONDS:
        i = order.randrange(sets)
        for name in order.sample(list(runs), len(runs)):
            _rest()
            start = clock()
            runs[name](i)
            samples[name].append(clock() - start)
    return samples


def interleave(runs: Mapping[str, Run], sets: int, rounds: Rounds) -> Timings:
    """Medians over quiet rounds, as many as `rounds` allows. In a pass all take the same set of inputs."""
    torch.manual_seed(2)
    order = random.Random(2)
    for i in range(rounds.warmup):
        for run in runs.values():
            run(i % sets)
    clock = time.process_time if rounds.cpu else time.perf_counter
    quiet, noisy = [], []
    gc.disable()
    begin = time.perf_counter()
    while len(quiet) < rounds.count and (time.perf_counter() - begin < rounds.seconds or not quiet + noisy):
        busy, own, start = _busy_seconds(), _own_seconds(), time.perf_counter()
        samples = _round(runs, sets, order, clock)
        elapsed = time.perf_counter() - start
        foreign = (_busy_seconds() - busy - (_own_seconds() - own)) / (elapsed * (os.cpu_count() or 1))
        (quiet if foreign <= QUIET or rounds.cpu else noisy).append(samples)
    gc.enable()
    used = quiet if rounds.cpu or len(quiet) >= ENOUGH else quiet + noisy
    return Timings(
        {name: statistics.median(t for samples in used for t in samples[name]) for name in runs},
        {name: [statistics.median(samples[name]) for samples in used] for name in runs},
        len(quiet),
        len(noisy),
        "quiet" if used is quiet else "all",
    )
