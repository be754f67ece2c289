# SPDX-License-Identifier: Apache-2.0
"""The demo's second part on a terminal: all prompts decoded at once, as draft trees on a paged cache."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..drafters.ngrams import Ngrams
from ..engine import Progress
from ..llama import Llama
from ..smollm import SmolLM
from ..timing import PAGE_SIZE, Run, race, rate, ways


def together(
    console: Console,
    lm: SmolLM,
    model: Llama,
    table: Ngrams,
    costs: Mapping[int, float],
    prompts: dict[str, str],
    alone: dict[tuple[str, float], list[int]],
    max_new_tokens: int,
    rounds: int,
    seed: int,
) -> list[str]:
    """Decode the prompts at all temperatures in one queue, as many at once as there are prompts.

    Returns whose greedy text is not the one that the transformers model wrote for the prompt alone, by plain
    decoding.
    """
    console.rule(Text("several prompts at once", "bold"))
    _introduce(console)

    encoded = {name: lm.encode_chat(message) for name, message in prompts.items()}
    keys = sorted(alone, key=lambda key: key[1])  # one temperature after the other
    requests = [
        {
            "prompt": encoded[name],
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "seed": seed,
        }
        for name, temperature in keys
    ]
    results = [race(model, lm.eos_id, ways(table, costs), requests, len(prompts)) for _ in range(rounds)]

    rows = _table("prompt", "temp.", "tokens", "per step", "nodes", "identical")
    broken = []
    trees = results[0]["learned"]
    for place, (name, temperature) in enumerate(keys):
        progress = trees.progress(trees.requests[place])
        expected = alone[name, temperature]
        same = all(run.texts[place] == expected for runs in results for run in runs.values())
        rows.add_row(name, f"{temperature:g}", *_counts(progress), "yes" if same else "no")
        if not same and temperature == 0:
            broken.append(name)
    console.print(rows)
    console.print()
    console.print(_totals(results))
    return broken


def _introduce(console: Console) -> None:
    def line(text):
        console.print(Text(text), soft_wrap=True)

    line(f"Keys and values in pages of {PAGE_SIZE} slots; all prompts' trees in one forward.")
    line("The likeliest nodes of all trees are drafted, while they are expected to pay.")
    line("A text is identical where plain decoding and all drafters write what the prompt got alone.")
    line("A text that is finished gives its pages back, and the next one in the queue joins.")
    line("Rates are tokens per second of all prompts together, after reading them.\n")


def _counts(progress: list[Progress]) -> tuple[str, str, str]:
    """Tokens, tokens a step and nodes a step."""
    tokens = sum(len(each.tokens) for each in progress)
    nodes = sum(each.nodes for each in progress)
    return f"{tokens}", f"{tokens / len(progress):.2f}", f"{nodes / len(progress):.1f}"


def _totals(results: list[dict[str, Run]]) -> Table:
    table = _table("together", "tokens/s", "steps", "requests per step", "tokens", "nodes")
    plain = rate([runs["plain"] for runs in results])
    for way, run in results[0].items():
        fast = rate([runs[way] for runs in results])
        progress = [each for step in run.steps for each in step]
        tokens, nodes = sum(len(each.tokens) for each in progress), sum(each.nodes for each in progress)
        means = [f"{total / len(run.steps):.1f}" for total in (len(progress), tokens, nodes)]
        table.add_row(way, f"{fast:.1f} ({fast / plain:.2f}x)", f"{len(run.steps)}", *means)
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False, collapse_padding=True)
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
