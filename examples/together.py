"""The demo's second part on a terminal: all prompts decoded at once, as draft trees on a paged cache."""

from batch import PAGE_SIZE, ROWS, Run, race, step_costs
from engine import Progress
from llama import Llama, Shape
from rich.console import Console
from rich.table import Table
from rich.text import Text
from smollm import SmolLM


def together(
    console: Console,
    lm: SmolLM,
    prompts: dict[str, str],
    alone: dict[tuple[str, float], list[int]],
    max_new_tokens: int,
    rounds: int,
    seed: int,
) -> list[str]:
    """Decode the prompts as one batch at every temperature. Returns whose greedy text is not the one that the
    transformers model wrote for the prompt alone, by plain decoding."""
    console.rule(Text("several prompts at once", "bold"))
    model = Llama(Shape.of(lm.model.config), lm.model.state_dict())
    costs = step_costs(model)
    _introduce(console, costs)

    texts, totals = _texts(), _totals()
    broken = []
    for temperature in dict.fromkeys(temperature for _, temperature in alone):
        requests = [
            {
                "prompt": lm.encode_chat(message),
                "max_new_tokens": max_new_tokens,
                "temperature": temperature,
                "seed": seed,
            }
            for message in prompts.values()
        ]
        results = [race(model, lm.eos_id, costs, requests) for _ in range(rounds)]
        trees = results[0]["trees"]
        for place, name in enumerate(prompts):
            progress = trees.progress(trees.requests[place])
            expected = alone[name, temperature]
            same = all(run.texts[place] == expected for runs in results for run in runs.values())
            texts.add_row(name, f"{temperature:g}", *_counts(progress), "yes" if same else "no")
            if not same and temperature == 0:
                broken.append(name)
        plain = _rate([runs["plain"] for runs in results])
        for way, run in results[0].items():
            rate = _rate([runs[way] for runs in results])
            shown = f"{rate:.1f} ({rate / plain:.2f}x)"
            totals.add_row(way, f"{temperature:g}", shown, *_sizes(run.steps))
    console.print(texts)
    console.print()
    console.print(totals)
    return broken


def _introduce(console: Console, costs: dict[int, float]) -> None:
    def line(text):
        console.print(Text(text), soft_wrap=True)

    line(
        f"The same weights in a forward of examples/llama.py; keys and values in pages of {PAGE_SIZE} slots."
    )
    shown = ", ".join(f"{rows}: {costs[rows]:.2f}" for rows in ROWS[1:])
    line(f"A step over n rows costs, in steps over one: {shown}.")
    line("So the likeliest nodes of all prompts' trees are drafted, while they are expected to pay.")
    line("A text is identical where plain, chains and trees all write what transformers writes for it alone.")
    line("Rates are tokens per second of all prompts together, after reading them.\n")


def _counts(progress: list[Progress]) -> tuple[str, str, str]:
    """Tokens, tokens a step and nodes a step."""
    tokens = sum(len(each.tokens) for each in progress)
    nodes = sum(each.nodes for each in progress)
    return f"{tokens}", f"{tokens / len(progress):.2f}", f"{nodes / len(progress):.1f}"


def _sizes(steps: list[list[Progress]]) -> tuple[str, str, str]:
    """Steps, and the mean over them of the batch's tokens and nodes."""
    tokens = sum(len(each.tokens) for step in steps for each in step)
    nodes = sum(each.nodes for step in steps for each in step)
    return f"{len(steps)}", f"{tokens / len(steps):.1f}", f"{nodes / len(steps):.1f}"


def _rate(runs: list[Run]) -> float:
    return sum(run.written for run in runs) / sum(run.seconds for run in runs)


def _texts() -> Table:
    return _table("prompt", "temp.", "tokens", "per step", "nodes", "identical")


def _totals() -> Table:
    return _table("together", "temp.", "tokens/s", "steps", "tokens per step", "nodes per step")


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False, collapse_padding=True)
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
