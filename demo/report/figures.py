# SPDX-License-Identifier: Apache-2.0
"""What was measured, and the figures that tables, picture and JSON are made of."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..files import cannot_write
from ..timing import Race, Run, rates
from ..ways import DRAFTERS, PLAIN

Texts = Callable[[list[list[int]]], list[list[str]]]  # of the tokens of each step


@dataclass
class Results:
    """Races, one each round: of every prompt alone at every temperature, and of all together."""

    single: dict[tuple[str, float], list[Race]] = field(default_factory=dict)
    together: list[Race] = field(default_factory=list)

    @property
    def temperatures(self) -> list[float]:
        return list(dict.fromkeys(temperature for _, temperature in self.single))

    def at(self, temperature: float) -> dict[str, list[Race]]:
        """The races of every prompt."""
        return {name: races for (name, other), races in self.single.items() if other == temperature}

    def text(self, name: str, temperature: float) -> list[int]:
        """What plain decoding wrote for the prompt alone."""
        return self.single[name, temperature][0][PLAIN].texts[0]

    def speedups(self, temperature: float) -> dict[str, dict[str, float]]:
        """By way and prompt, tokens per second in units of plain decoding's."""
        ratios: dict[str, dict[str, float]] = {}
        for name, races in self.at(temperature).items():
            found = rates([races])
            plain = found.pop(PLAIN)
            for way, rate in found.items():
                ratios.setdefault(way, {})[name] = rate / plain
        return ratios


def label(temperature: float) -> str:
    return f"temperature {temperature:g}" if temperature else "greedy"


def write_json(
    results: Results,
    path: Path,
    texts: Texts,
    costs: Mapping[int, float],
    facts: Mapping[str, object],
) -> None:
    """Facts about the run. Tokens per second of plain decoding and every drafter: `single` over all
    temperatures, `by_temperature` at each, and `together`. The cost of a step by its rows. `steps`: what each
    step of the last drafter wrote, greedy or at the first temperature."""
    ways = (PLAIN, *DRAFTERS)
    by_prompt: dict[str, list[list[Race]]] = {}
    for (name, _), races in results.single.items():
        by_prompt.setdefault(name, []).append(races)
    figures = {
        **facts,
        "single": {name: rates(requests, ways) for name, requests in by_prompt.items()},
        "together": rates([results.together], ways),
        "by_temperature": {
            label(temperature): {
                name: rates([races], ways) for name, races in results.at(temperature).items()
            }
            for temperature in results.temperatures
        },
        "costs": costs,
        "steps": {
            name: texts(_steps(races[0][DRAFTERS[-1]]))
            for name, races in results.at(results.temperatures[0]).items()
        },
    }
    try:
        path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error) from None


def _steps(run: Run) -> list[list[int]]:
    return [[token for progress in step for token in progress.tokens] for step in run.steps]
