# SPDX-License-Identifier: Apache-2.0
"""What every benchmark is made of, whatever it measures.

A `Suite` (verify, commit, attention, generate, gpu) has cases. A `Case` has a name, builds its inputs, and
lists `Contender`s: this project's (the suite's subjects), those of others, and floors. `runner` checks every
contender before anything is timed. It leaves out those that are wrong or missing, and says why. The others
take turns; it takes medians of the rounds in which the machine was quiet, and judges the `Goal`s. The result
is one entry of plain data for each case. `report` prints entries and writes them as JSON, under one header,
and as Markdown.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

Run = Callable[[int], Any]  # run(i) works on the i-th set of inputs


@dataclass(frozen=True)
class Contender:
    name: str
    prepare: Callable[[Any], Run]  # from inputs; only the run is timed
    needs: str = ""  # a package or a command
    compiled: bool = False  # takes long to prepare, so that quick runs leave it out


def available(contenders: Iterable[Contender], quick: bool) -> tuple[list[Contender], dict[str, str]]:
    """Contenders that can run here, and what the others need."""
    asked = [c for c in contenders if not (quick and c.compiled)]
    missing = {
        c.name: f"needs {c.needs}"
        for c in asked
        if c.needs and not (importlib.util.find_spec(c.needs) or shutil.which(c.needs))
    }
    return [c for c in asked if c.name not in missing], missing


@dataclass(frozen=True)
class Goal:
    """`subject` is at least `bound` times as fast as `baseline`, or with `ceiling` takes at most `bound`
    times as long. Without a baseline: the figure `subject` is at least, or with `ceiling` at most, `bound`.
    """

    subject: str
    bound: float
    baseline: str = ""
    ceiling: bool = False
    unit: str = ""

    def __str__(self) -> str:
        text = f"{self.subject}: at {'most' if self.ceiling else 'least'} {self.bound:g}"
        if self.baseline:
            return text + f"x {'the time of' if self.ceiling else 'as fast as'} {self.baseline}"
        return f"{text} {self.unit}".rstrip()

    def judge(self, known: Mapping[str, float], noisy: bool = False) -> dict[str, Any]:
        """The goal with what was measured and a state: "ok", "MISS", "NONE" where the baseline was not timed,
        "NOISY" under foreign load, which slows some contenders down far more than others."""
        measured, state = known.get(self.subject), "MISS"
        if self.baseline and self.baseline not in known:
            measured, state = None, "NONE"
        elif measured is not None:
            if self.baseline:
                other = known[self.baseline]
                measured = measured / other if self.ceiling else other / measured
            met = measured <= self.bound if self.ceiling else measured >= self.bound
            state = "NOISY" if noisy else "ok" if met else "MISS"
        return dataclasses.asdict(self) | {"measured": measured, "state": state}


class Case:
    """A workload."""

    name: str
    sets = 1  # sets of inputs, which take turns
    # What figures are held to, and "memory": the largest of this project's contenders, in MB.
    limits: tuple[Goal, ...] = ()

    def parameters(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def build(self) -> Any:
        """What `prepare` of every contender takes."""

    def contenders(self) -> Sequence[Contender]:
        return ()

    def failure(self, inputs: Any, contender: Contender) -> str | None:
        """What is wrong with a contender, or None. It may also raise."""

    def derived(self, seconds: Mapping[str, float]) -> dict[str, float]:
        """Further times, computed from those measured."""
        return {}

    def goals(self, threads: int) -> tuple[Goal, ...]:
        """What times are held to."""
        return ()

    def figures(self, inputs: Any) -> dict[str, float]:
        """What is measured beside times."""
        return {}

    def memory(self, inputs: Any) -> dict[str, int]:
        """Bytes of peak extra memory of one call, by contender."""
        return {}


@dataclass(frozen=True)
class Rounds:
    count: int  # of quiet rounds
    seconds: float = float("inf")  # after which no further round begins
    warmup: int = 2
    cpu: bool = False  # CPU seconds of the process: no round is noisy, and all are kept in the results


@dataclass(frozen=True)
class Suite:
    name: str
    cases: tuple[Case, ...]
    legend: str
    subjects: tuple[str, ...] = ()  # contenders of this project: a wrong one fails the command
    references: tuple[str, ...] = ()  # contenders that the times of the others are given as multiples of
    floors: tuple[str, ...] = ()  # contenders that do less than the work, and derived times
    roofs: Mapping[str, str] = field(default_factory=dict)  # the floor that a contender is compared with
    quick_cases: tuple[Case, ...] = ()  # () = all
    rounds: Rounds = Rounds(15, 60.0)
    quick_rounds: Rounds = Rounds(3, 6.0)
    threads: tuple[int, ...] = (1, 2)  # () = nothing is timed

    def select(self, patterns: str = "", quick: bool = False) -> tuple[Case, ...]:
        """Cases whose name matches any of the comma-separated globs (a bare word matches anywhere)."""
        if not patterns:
            return self.quick_cases or self.cases if quick else self.cases
        globs = [glob if "*" in glob else f"*{glob}*" for glob in patterns.split(",")]
        return tuple(case for case in self.cases if any(fnmatch(case.name, glob) for glob in globs))
