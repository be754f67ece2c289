"""All prompts decoded at once: trees on a paged cache against the same engine without drafts."""

import time
from dataclasses import dataclass, field

from engine import Engine, Progress, Request
from llama import Llama, Shape
from lookup import TreeLookup
from rich.console import Console
from rich.table import Table
from rich.text import Text
from smollm import SmolLM

PAGE_SIZE = 16
DRAFTS = {"plain": TreeLookup(branches=0), "trees": TreeLookup()}


@dataclass
class Run:
    """One engine at work on all prompts; reading them is not timed."""

    engine: Engine
    requests: dict[str, Request]
    steps: list[list[Progress]] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        for request in self.requests.values():
            self.engine.add(request)
        self.engine.admit()

    @property
    def written(self) -> int:
        return sum(len(request.tokens) for request in self.requests.values())

    def advance(self) -> None:
        start = time.perf_counter()
        self.steps.append(self.engine.step())
        self.seconds += time.perf_counter() - start

    def of(self, request: Request) -> list[Progress]:
        return [progress for step in self.steps for progress in step if progress.request is request]


def together(
    console: Console,
    lm: SmolLM,
    prompts: dict[str, str],
    texts: dict[tuple[str, float], list[int]],
    max_new_tokens: int,
    rounds: int,
    seed: int,
) -> list[str]:
    """Decode the prompts as one batch at every temperature and compare with `texts`, which the transformers
    model wrote for each of them alone. Returns the names of prompts whose greedy text differs."""
    console.rule(Text("several prompts at once", "bold"))
    model = Llama(Shape.of(lm.model.config), lm.model.state_dict())
    ids = {name: lm.encode_chat(message) for name, message in prompts.items()}
    console.print(
        f"A plain forward over weights alone, {PAGE_SIZE} slots a page; drafts are trees of what followed "
        "earlier repeats.\nRates are tokens per second of all prompts together after reading them; "
        "'identical' compares with transformers,\none prompt at a time.",
        soft_wrap=True,
    )
    table = _table()
    broken = []
    for temperature in dict.fromkeys(temperature for _, temperature in texts):
        requests = [
            {"prompt": prompt, "max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
            for prompt in ids.values()
        ]
        results = [_race(model, lm.eos_id, dict(zip(ids, requests, strict=True))) for _ in range(rounds)]
        runs = results[0]
        for name in ids:
            progress = runs["trees"].of(runs["trees"].requests[name])
            same = all(run.requests[name].tokens == texts[name, temperature] for run in runs.values())
            table.add_row(name, f"{temperature:g}", *_counts(progress), "", "", "yes" if same else "no")
            if not same and temperature == 0:
                broken.append(name)
        rates = {
            way: sum(run[way].written for run in results) / sum(run[way].seconds for run in results)
            for way in DRAFTS
        }
        progress = [each for step in runs["trees"].steps for each in step]
        shown = f"{rates['plain']:.1f}", f"{rates['trees']:.1f} ({rates['trees'] / rates['plain']:.2f}x)"
        table.add_row("all", f"{temperature:g}", *_counts(progress), *shown, style="bold")
    console.print(table)
    return broken


def _race(model: Llama, eos_id: int, requests: dict[str, dict]) -> dict[str, Run]:
    """Plain and tree decoding of the requests, advancing in turn: whichever has written less."""
    runs = {
        way: Run(_engine(model, draft, eos_id, requests), _fresh(requests)) for way, draft in DRAFTS.items()
    }
    while busy := [run for run in runs.values() if run.engine.running]:
        min(busy, key=lambda run: run.written).advance()
    return runs


def _fresh(requests: dict[str, dict]) -> dict[str, Request]:
    return {name: Request(**request) for name, request in requests.items()}


def _engine(model: Llama, draft: TreeLookup, eos_id: int, requests: dict[str, dict]) -> Engine:
    """With a pool that holds everything at once."""
    longest = [len(r["prompt"]) + r["max_new_tokens"] + draft.max_nodes for r in requests.values()]
    pages = sum(-(-slots // PAGE_SIZE) for slots in longest)
    return Engine(model, draft, eos_id=eos_id, pages=pages, page_size=PAGE_SIZE, max_nodes=draft.max_nodes)


def _counts(progress: list[Progress]) -> list[str]:
    """Tokens, tokens a step and nodes a step."""
    tokens = sum(len(each.tokens) for each in progress)
    nodes = sum(each.nodes for each in progress)
    return [f"{tokens}", f"{tokens / len(progress):.2f}", f"{nodes / len(progress):.1f}"]


def _table() -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False, collapse_padding=True)
    table.add_column("prompt", no_wrap=True)
    for heading in ("temp.", "tokens", "per step", "nodes", "plain", "trees", "identical"):
        table.add_column(heading, justify="right", no_wrap=True)
    return table
