"""The demo on a terminal: answers as they come, a table under each, a summary at the end."""

import os
import sys
from collections.abc import Iterator

import torch
import transformers
from decode import Settings, Step, decode_speculative
from lookup import PromptLookup
from measure import WAYS, Tally, compare, step_costs
from rich.console import Console
from rich.table import Table
from rich.text import Text
from smollm import ModelUnavailable, SmolLM, load
from together import together
from tokenizers.decoders import DecodeStream

ACCEPTED = "bold green"


def run(
    prompts: dict[str, str], temperatures: list[float], max_new_tokens: int, rounds: int, seed: int
) -> int:
    """Show every prompt at every temperature. Returns the exit code: 1 where a greedy text differs."""
    console = Console(color_system=None if os.environ.get("NO_COLOR") else "auto", highlight=False)
    try:
        lm = load()
    except ModelUnavailable as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    costs = step_costs(lm)
    draft = PromptLookup(costs)
    _introduce(console, costs, draft)

    results = {}
    for name, message in prompts.items():
        console.rule(Text(name, "bold"))
        console.print(Text(message, "dim"), soft_wrap=True)
        for temperature in temperatures:
            console.print(Text(f"\n{_law(temperature)}:", "bold"))
            settings = Settings(lm.eos_id, max_new_tokens, temperature, seed)
            prompt = lm.encode_chat(message)
            _stream(console, lm, decode_speculative(lm.model, prompt, draft, settings))
            tallies = compare(lm, prompt, draft, settings, rounds)
            table = _table()
            table.add_row(*_row(name, temperature, tallies))
            console.print(table)
            console.print(_acceptance(tallies["speculative"]))
            results[name, temperature] = tallies

    console.rule(Text("summary", "bold"))
    console.print(_summary(results))
    broken = [name for (name, temperature), texts in results.items() if temperature == 0 and _parting(texts)]
    texts = {key: tallies["plain"].tokens for key, tallies in results.items()}
    broken += together(console, lm, prompts, texts, max_new_tokens, rounds, seed)
    if broken:
        console.print(f"The greedy text differs from plain decoding's: {', '.join(broken)}", style="bold red")
    return 1 if broken else 0


def _stream(console: Console, lm: SmolLM, steps: Iterator[Step]) -> None:
    """Print steps as text, accepted tokens in colour. A character split between tokens waits for its end."""
    decoder = DecodeStream(skip_special_tokens=True)
    for step in steps:
        for place, token in enumerate(step.tokens):
            piece = decoder.step(lm.tokenizer, token)
            if piece:
                style = ACCEPTED if place < step.accepted else ""
                console.print(Text(piece, style), end="", soft_wrap=True)
    console.print("\n")


def _introduce(console: Console, costs: dict[int, float], draft: PromptLookup) -> None:
    def line(*parts):
        console.print(Text.assemble(*parts), soft_wrap=True)

    line(f"SmolLM2-135M-Instruct, float32, torch {torch.__version__}, {torch.get_num_threads()} threads")
    line("Drafts are looked up in the text so far; the ", ("accepted tokens", ACCEPTED), " are coloured.")
    shown = ", ".join(f"{size}: {cost:.2f}" for size, cost in costs.items() if size > 1)
    line(f"A step over n tokens costs, in steps over one: {shown}.")
    shown = ", ".join(f"{matched}: {length}" for matched, length in draft.first_lengths().items())
    line(f"So this many tokens pay after a repeat of n tokens, as far as such drafts are accepted: {shown}.")
    line(
        "Rates are tokens per second after the first step and, in brackets, their ratio to plain decoding's."
    )
    theirs = f"generate(prompt_lookup_num_tokens={draft.num_draft})"
    line(f"transformers is version {transformers.__version__}'s {theirs}; what it samples is its own.")


def _law(temperature: float) -> str:
    return f"temperature {temperature:g}" if temperature else "greedy"


def _parting(tallies: dict[str, Tally]) -> str:
    """Where the speculative text leaves the plain one; empty where it does not."""
    ours, plain = tallies["speculative"].tokens, tallies["plain"].tokens
    if ours == plain:
        return ""
    pairs = zip(ours, plain, strict=False)
    place = next(
        (place for place, (one, other) in enumerate(pairs) if one != other), min(len(ours), len(plain))
    )
    return f"at {place + 1}"


def _table() -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False, collapse_padding=True)
    table.add_column("prompt", no_wrap=True)
    for heading in ("temp.", "tokens", "per step", "plain", "speculative", "transformers", "identical"):
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _row(name: str, temperature: float, tallies: dict[str, Tally]) -> list[str]:
    ours, plain, theirs = (tallies[way] for way in WAYS)
    return [
        name,
        f"{temperature:g}",
        f"{len(ours.tokens)}",
        f"{ours.tokens_per_step:.2f}",
        f"{plain.rate:.1f}",
        f"{ours.rate:.1f} ({ours.rate / plain.rate:.2f}x)",
        f"{theirs.rate:.1f} ({theirs.rate / plain.rate:.2f}x)",
        f"no, {_parting(tallies)}" if _parting(tallies) else "yes",
    ]


def _acceptance(tally: Tally) -> Text:
    places = tally.acceptance()
    if not places:
        return Text("nothing was drafted", "dim")
    shares = " ".join(f"{100 * accepted / drafted:.0f}" for accepted, drafted in places)
    return Text(f"accepted by draft position, %: {shares}", "dim")


def _summary(results: dict[tuple[str, float], dict[str, Tally]]) -> Table:
    table = _table()
    for temperature in dict.fromkeys(temperature for _, temperature in results):
        rows = {name: tallies for (name, other), tallies in results.items() if other == temperature}
        for name, tallies in rows.items():
            table.add_row(*_row(name, temperature, tallies))
        if len(rows) > 1:
            whole = {way: Tally.total(tallies[way] for tallies in rows.values()) for way in WAYS}
            table.add_row(*_row("all", temperature, whole)[:-1], style="bold")
    return table
