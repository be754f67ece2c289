# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.llama_cpp`: examples/llama_cpp.py beside llama-cpp-python's own loop and prompt lookup.

Prints tables in Markdown, and exits with 1 where a text is not that of plain decoding. The ways take turns.
Times are CPU seconds of the process, with one thread; reading prompts is not timed.
"""

from __future__ import annotations

import argparse
import logging
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import llama_cpp
import torch
from llama_cpp import Llama
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

import specdec_kernels as sdk
from demo.files import PROMPTS, read_prompts
from demo.smollm import CHAT, find_gguf
from examples import llama_cpp as example

NAMES = ("quote_spelling", "code_rename", "chat_soup")
SEED = 7


class Run(NamedTuple):
    """What was written, and what was counted and timed after the step that wrote the first token."""

    text: tuple[int, ...]
    tokens: int
    steps: int
    rows: int
    seconds: float


Way = Callable[[list[int], float, int], Run]  # prompt, temperature, number of tokens


class Theirs:
    """`Llama.generate`, with a drafter or without."""

    def __init__(self, path: str, num_draft: int = 0):
        drafter = LlamaPromptLookupDecoding(num_pred_tokens=num_draft) if num_draft else None
        options = {"n_threads": 1, "n_threads_batch": 1, "flash_attn": True}  # as in the example
        self.llama = Llama(path, n_ctx=2048, draft_model=drafter, verbose=False, seed=SEED, **options)
        self.rows: list[int] = []
        read = self.llama.eval

        def counted(tokens: list[int]) -> None:
            self.rows.append(len(tokens))
            read(tokens)

        self.llama.eval = counted

    def __call__(self, prompt: list[int], temperature: float, new: int) -> Run:
        self.llama.reset()
        self.llama.eval(prompt[:-1])  # as the example reads it; `generate` goes on from there
        self.llama.set_seed(SEED)
        tokens = self.llama.generate(prompt, temp=temperature, top_k=0, top_p=1.0, min_p=0.0)
        text = [next(tokens)]
        self.rows.clear()
        start = time.process_time()
        for token in islice(tokens, new - 1):
            text.append(token)
            if token == self.llama.token_eos():
                break
        return Run(tuple(text), len(text) - 1, len(self.rows), sum(self.rows), time.process_time() - start)


class Ours:
    """The example's loop, with options of `decode`."""

    def __init__(self, model: example.Model, budget: sdk.Budget, **options: int):
        self.model, self.budget, self.options = model, budget, options
        self.eos = example.llama.llama_vocab_eos(model.vocab)

    def __call__(self, prompt: list[int], temperature: float, new: int) -> Run:
        law = sdk.SamplingParams(temperature=temperature)
        steps = example.decode(self.model, prompt, self.budget, law, seed=SEED, **self.options)
        text, rows = list(next(steps).tokens), []
        first, start = len(text), time.process_time()
        while len(text) < new and self.eos not in text:
            step = next(steps)
            text += step.tokens
            rows.append(step.rows)
        return Run(tuple(text), len(text) - first, len(rows), sum(rows), time.process_time() - start)


def ways(path: str, model: example.Model, costs: dict[int, float]) -> dict[str, Way]:
    """By name; the first two are plain decoding, and each other one is compared with the one of its loop."""
    budget = sdk.Budget(costs)
    free = sdk.Budget({1: 1.0, example.NODES: 1.0})  # rows cost nothing: every node that was found is read
    return {
        "llama-cpp-python, plain": Theirs(path),
        "this loop, plain": Ours(model, budget, nodes=1),
        "its lookup, 2 tokens": Theirs(path, 2),
        "its lookup, 10 tokens": Theirs(path, 10),
        "chains": Ours(model, budget, branches=1),
        "trees": Ours(model, budget),
        "trees without a budget": Ours(model, free),
    }


def race(
    found: dict[str, Way], prompt: list[int], temperature: float, new: int, rounds: int
) -> dict[str, Run]:
    """A run of every way, with the median of its times. Every round has to write the same text."""
    runs: dict[str, list[Run]] = {name: [] for name in found}
    for _ in range(rounds):
        for name, way in found.items():
            runs[name].append(way(prompt, temperature, new))
    for name, each in runs.items():
        assert len({run[:4] for run in each}) == 1, f"{name} wrote other texts in other rounds"
    return {
        name: each[0]._replace(seconds=statistics.median(run.seconds for run in each))
        for name, each in runs.items()
    }


def differs_at(text: tuple[int, ...], plain: tuple[int, ...], new: int) -> int | None:
    """The place of the first of the first `new` tokens that is not that of plain decoding."""
    pairs = zip(text[:new], plain[:new], strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), None)


def weights(kind: str, folder: str) -> str:
    """The demo's model, whose weights are of the type Q4_1, or the same with its weights in another type."""
    path = find_gguf()
    if kind == "Q4_1":
        return str(path)
    params = llama_cpp.llama_model_quantize_default_params()
    name = "LLAMA_FTYPE_ALL_F32" if kind == "F32" else f"LLAMA_FTYPE_MOSTLY_{kind}"
    params.ftype, params.allow_requantize = getattr(llama_cpp, name), True
    out = f"{folder}/{kind}.gguf"
    if llama_cpp.llama_model_quantize(str(path).encode(), out.encode(), params) != 0:
        raise SystemExit(f"llama.cpp cannot write {out}")
    return out


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.llama_cpp", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=64, help="tokens of an answer, at most")
    parser.add_argument("--weights", nargs="*", default=["Q4_1", "F16"], help="also Q4_0, Q8_0, F32")
    parser.add_argument("--temperatures", type=float, nargs="*", default=[0.0, 0.7], help="none: costs alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
    packages = f"llama-cpp-python {llama_cpp.__version__}, torch {torch.__version__}"
    print(f"{packages}; {processor()}; {args.rounds} rounds\n")
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for kind in args.weights:
            failed |= compare(kind, weights(kind, folder), args)
    return int(failed)


def compare(kind: str, path: str, args: argparse.Namespace) -> bool:
    """Print the cost of steps and the tables of one file of weights. True where a text differs."""
    model = example.Model(path)
    costs = example.step_costs(model, clock=time.process_time)
    print(f"| rows of a step, {kind} |", " | ".join(map(str, costs)), "|")
    print("|---" * (len(costs) + 1) + "|")
    print("| CPU time |", " | ".join(f"{cost / costs[1]:.2f}x" for cost in costs.values()), "|\n", flush=True)
    if not args.temperatures:
        return False
    messages = read_prompts(PROMPTS, NAMES)
    prompts = {name: example.tokenize(model, CHAT.format(message=text)) for name, text in messages.items()}
    found, failed = ways(path, model, costs), False
    for temperature in args.temperatures:
        races = {
            name: race(found, prompt, temperature, args.new, args.rounds) for name, prompt in prompts.items()
        }
        failed |= table(races, temperature, args.new)
    return failed


def table(races: dict[str, dict[str, Run]], temperature: float, new: int) -> bool:
    """Print the tokens per step, the rows per step and the speed of every way. True where a text differs."""
    theirs, ours, *_ = names = list(next(iter(races.values())))
    print(f"| temperature {temperature} |", " | ".join(races), "| text of plain decoding |")
    print("|---" * (len(races) + 2) + "|")
    failed = False
    for name in names:
        cells, places = [], []
        for prompt, runs in races.items():
            run, plain = runs[name], runs[theirs if name == theirs or name.startswith("its ") else ours]
            per_token = run.seconds / run.tokens
            speed = plain.seconds / plain.tokens / per_token
            cells.append(f"{run.tokens / run.steps:.2f} of {run.rows / run.steps:.1f}, {speed:.2f}x")
            if plain is run:
                cells[-1] += f", {1000 * per_token:.2f} ms"
            place = differs_at(run.text, plain.text, new)
            places += [] if place is None else [f"{prompt} differs at {place}"]
        failed |= bool(places)
        print(f"| {name} |", " | ".join(cells), "|", "; ".join(places) or "yes", "|")
    print(flush=True)
    return failed


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    sys.exit(main())
