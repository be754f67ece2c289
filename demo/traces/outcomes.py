# SPDX-License-Identifier: Apache-2.0
"""What decoding a trace took, by way and by whether a prompt resembles an earlier one."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import specdec_kernels as sdk

from ..engine import Draft, Request
from ..ways import PLAIN

ALL, FIRST, FOLLOW_UPS = "all", "first of their kind", "follow-ups"


class Prompt(NamedTuple):
    text: str
    follows: int | None  # number of an earlier prompt that it resembles


class Outcome(NamedTuple):
    tokens: int
    steps: int
    time: float


def read_trace(name: str) -> list[Prompt]:
    """The prompts of NAME.json, in order."""
    listed = json.loads(Path(__file__).with_name(f"{name}.json").read_text(encoding="utf-8"))
    return [Prompt(entry["prompt"], entry.get("follows")) for entry in listed]


def replayed(
    draft: Draft, prompt: Sequence[int], answer: Sequence[int], costs: Mapping[int, float]
) -> Outcome:
    """How an answer that is known comes about with these drafts, where a step over n rows takes `costs` of
    it."""
    cost, request = sdk.Budget(costs).cost, Request(prompt, len(answer))
    steps, time = 0, 0.0
    while len(request.tokens) < len(answer):
        (tree,) = draft([request])
        left = answer[len(request.tokens) :]
        request.tokens += left[: len(tree.path(left))]  # as many as accepted nodes, and one more
        steps += 1
        time += float(cost(len(tree.tokens)))
    return Outcome(len(answer), steps, time)


class Outcomes:
    """Outcomes of prompts, added up."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], list[Outcome]] = defaultdict(list)  # by way and kind

    def add(self, way: str, prompt: Prompt, outcome: Outcome) -> None:
        for kind in (ALL, FIRST if prompt.follows is None else FOLLOW_UPS):
            self.found[way, kind].append(outcome)

    def table(self, name: str) -> str:
        """Tokens a step, and the rate in units of plain decoding's."""
        kinds = (ALL, FIRST, FOLLOW_UPS)
        lines = [f"| {name} | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
        for way in dict.fromkeys(way for way, _ in self.found):
            cells = [self._cell(way, kind) for kind in kinds]
            lines.append(f"| {way} | " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"

    def _cell(self, way: str, kind: str) -> str:
        found, plain = self.found[way, kind], self.found[PLAIN, kind]
        tokens, steps = sum(o.tokens for o in found), sum(o.steps for o in found)
        time, plain_time = sum(o.time for o in found), sum(o.time for o in plain)
        return f"{tokens / steps:.2f}, {plain_time / time:.2f}x"
