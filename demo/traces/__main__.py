# SPDX-License-Identifier: Apache-2.0
"""Prompts answered in order: what later requests gain from the texts of earlier ones.

python -m demo.traces answers FILE    # the model's own answers, by plain decoding, and the cost of steps
python -m demo.traces replay FILE     # how many tokens of those answers each drafter brings a step
python -m demo.traces batches FILE    # the same of the demo's prompts, decoded together
python -m demo.traces race            # every way of decoding in turn, timed
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..drafters.budget import Drafter, SharedBudget, no_drafts
from ..drafters.ngrams import Ngrams
from ..drafters.tree import Tree
from ..engine import Draft, Engine, Request, pages_for
from ..files import PROMPTS, Refused, check_writable, read_prompts
from ..llama import Llama, Shape
from ..smollm import SmolLM, load
from ..timing import PAGE_SIZE, race, step_costs
from ..ways import DRAFTERS, PLAIN, drafters, trace_ways
from .outcomes import Outcome, Outcomes, Prompt, read_trace, replayed

AT_ONCE = 32  # requests that `answers` decodes together
TRACES = ("agent", "chat")
BATCHES = (PROMPTS, PROMPTS.with_name("unseen"))  # folders whose prompts are decoded together


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m demo.traces",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=["answers", "replay", "batches", "race"])
    parser.add_argument("file", type=Path, nargs="?", help="JSON of answers and costs")
    parser.add_argument("--traces", nargs="+", choices=TRACES, default=TRACES)
    parser.add_argument("--tokens", type=int, default=96, help="of an answer, at most (default: 96)")
    options = parser.parse_args()
    if (options.file is None) != (options.what == "race"):
        parser.error("all but race take a FILE")
    traces = {name: read_trace(name) for name in options.traces}
    if options.what == "answers":
        try:
            check_writable(options.file)
        except Refused as error:
            parser.error(str(error))
        lm, model = _model()
        asked = {name: [(prompt.text, 0.0) for prompt in trace] for name, trace in traces.items()}
        for folder in BATCHES:
            asked[folder.name] = [(text, t) for t in (0.0, 0.7) for text in read_prompts(folder).values()]
        answers = {name: _answers(lm, model, prompts, options.tokens) for name, prompts in asked.items()}
        options.file.write_text(json.dumps({"costs": step_costs(model).costs(), "answers": answers}))
    elif options.what == "replay":
        _replay(traces, json.loads(options.file.read_text()))
    elif options.what == "batches":
        _batches(json.loads(options.file.read_text()))
    else:
        _race(traces, options.tokens)


def _model() -> tuple[SmolLM, Llama]:
    lm = load()
    return lm, Llama(Shape.of(lm.model.config), lm.model.state_dict())


@torch.inference_mode()
def _answers(
    lm: SmolLM, model: Llama, prompts: list[tuple[str, float]], tokens: int
) -> list[list[list[int]]]:
    """Tokens of each prompt and of its answer at a temperature."""
    requests = [Request(lm.encode_chat(text), tokens, temperature) for text, temperature in prompts]
    pages = AT_ONCE * pages_for(max(request.most_slots for request in requests) + 1, PAGE_SIZE)
    engine = Engine(model, no_drafts, eos_id=lm.eos_id, pages=pages, page_size=PAGE_SIZE, max_nodes=1)
    for request in requests:
        engine.add(request)
    engine.run()
    return [[list(request.prompt), request.tokens] for request in requests]


def _costs(file: dict[str, Any]) -> dict[int, float]:
    costs = {int(rows): cost for rows, cost in file["costs"].items()}
    print("Steps over", ", ".join(f"{rows} rows cost {cost:.2f}" for rows, cost in costs.items()), "\n")
    return costs


def _batches(file: dict[str, Any]) -> None:
    """Speed-ups over plain decoding of answers that come about together. The bound drafts all that table and
    lookup find and is right, and nothing else."""
    costs, table = _costs(file), Ngrams.load()
    print("| requests | " + " | ".join([*DRAFTERS, "bound"]) + " |")
    print("|---" * (len(DRAFTERS) + 2) + "|")
    for folder in BATCHES:
        texts = file["answers"][folder.name]
        count = len(texts) // 2
        for name, some in (("greedy", texts[:count]), ("then at temperature 0.7", texts)):
            plain = replayed(no_drafts, some, costs, count).time
            found = drafters(table)
            drafts: list[Draft] = [SharedBudget(drafter, costs) for drafter in found.values()]
            times = [replayed(draft, some, costs, count).time for draft in drafts]
            every = partial(_unlimited, found[DRAFTERS[-1]])
            bound = replayed(every, some, costs, count, oracle=True)
            cells = " | ".join(f"{plain / time:.2f}x" for time in (*times, bound.time))
            print(f"| {folder.name}, {name}, {count} at once | {cells} |", flush=True)


def _unlimited(drafter: Drafter, requests: Sequence[Request]) -> Sequence[Tree]:
    return drafter([request.context for request in requests])


def _replay(traces: dict[str, list[Prompt]], file: dict[str, Any]) -> None:
    costs = _costs(file)
    for name, trace in traces.items():
        outcomes = Outcomes()
        for way, drafting in trace_ways(Ngrams.load(), costs).items():
            for prompt, (tokens, answer) in zip(trace, file["answers"][name], strict=True):
                outcomes.add(way, prompt, replayed(drafting.draft, [(tokens, answer)], costs))
        print(outcomes.table(name))


@torch.inference_mode()
def _race(traces: dict[str, list[Prompt]], tokens: int) -> None:
    lm, model = _model()
    costs = step_costs(model).costs()
    for name, trace in traces.items():
        outcomes, ways = Outcomes(), trace_ways(Ngrams.load(), costs)
        for number, prompt in enumerate(trace):
            request = {"prompt": lm.encode_chat(prompt.text), "max_new_tokens": tokens}
            runs = race(model, lm.eos_id, ways, [request], 1)
            for way, run in runs.items():
                if run.texts != runs[PLAIN].texts:
                    raise AssertionError(f"{way} wrote another answer to prompt {number} of {name}")
                outcomes.add(way, prompt, Outcome(run.written, len(run.steps), run.seconds))
        print(outcomes.table(name), flush=True)


if __name__ == "__main__":
    main()
