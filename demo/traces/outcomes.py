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


Text = tuple[Sequence[int], Sequence[int]]  # a prompt and its answer


class Outcome(NamedTuple):
    tokens: int
    steps: int
    time: float


def read_trace(name: str) -> list[Prompt]:
    """The prompts of NAME.json, in order."""
    listed = json.loads(Path(__file__).with_name(f"{name}.json").read_text(encoding="utf-8"))
    return [Prompt(entry["prompt"], entry.get("follows")) for entry in listed]


def replayed(
    draft: Draft, texts: Sequence[Text], costs: Mapping[int, float], at_once: int = 1, oracle: bool = False
) -> Outcome:
    """How answers that are known come about with these drafts, `at_once` together and the others as places
    come free, where a step over n rows takes `costs` of it. An oracle keeps only the nodes that are right."""
    cost = sdk.Budget(costs).cost
    answers = {Request(prompt, len(answer)): answer for prompt, answer in texts}
    waiting, running = list(answers), list[Request]()
    steps, time = 0, 0.0
    while waiting or running:
        while waiting and len(running) < at_once:
            running.append(waiting.pop(0))
        for request in running:
            request.followed = bool(waiting)
        left = [answers[request][len(request.tokens) :] for request in running]
        trees = draft(running)
        if oracle:
            trees = [tree.keep(tree.path(text)) for tree, text in zip(trees, left, strict=True)]
        for request, tree, text in zip(running, trees, left, strict=True):
            request.tokens += text[: len(tree.path(text))]  # as many as accepted nodes, and one more
        running = [request for request in running if len(request.tokens) < request.max_new_tokens]
        steps += 1
        time += float(cost(sum(len(tree.tokens) for tree in trees)))
    return Outcome(sum(map(len, answers.values())), steps, time)


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
