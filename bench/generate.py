# SPDX-License-Identifier: Apache-2.0
"""`python -m bench generate`: the loop over a real transformers model beside transformers' own.

Every contender writes the greedy texts of the same prompts, all of them in turn in every round. Times are
CPU seconds of the process, so that others on the machine disturb little; what is reported are medians, and
ratios of medians with the middle half of the rounds' ratios. All texts must be equal.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

import specdec_kernels as sdk

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = ("chat_soup", "code_method", "quote_summary")
TOGETHER = {"code": ("code_method", "code_rename") * 2, "chat": ("chat_soup", "chat_weekend") * 2}
ROUNDS, TOKENS = 9, 96
OURS = 20  # tokens that a lookup drafts at most; a budget cuts them
THEIRS = (10, 20)  # the default of transformers, and what it is fastest with on these prompts
GREEDY = sdk.SamplingParams(temperature=0.0)


def contenders(model, prompts: Sequence[list[int]], tokens: int) -> dict[str, Callable[[], list[list[int]]]]:
    """Each writes the texts of the prompts, with the end-of-sequence token and without padding."""
    eos = model.config.eos_token_id
    longest = max(map(len, prompts))
    ids = torch.tensor([[eos] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])

    def theirs(**options) -> list[list[int]]:
        text = model.generate(
            ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, pad_token_id=eos, **options
        )
        rows = text[:, longest:].tolist()
        return [row[: row.index(eos) + 1] if eos in row else row for row in rows]

    def ours(drafter, **options) -> list[list[int]]:
        return sdk.generate(
            model, drafter, prompts, max_new_tokens=tokens, sampling=GREEDY, stop_tokens=[eos], **options
        ).tokens

    chain = partial(sdk.ngram_draft, num_draft=OURS)
    tree = partial(sdk.ngram_tree, max_nodes=OURS + 1)
    found = {
        "transformers plain": theirs,
        "ours lookup": partial(ours, chain),
        "ours lookup tree": partial(ours, tree),
    }
    if len(prompts) == 1:  # it serves no batches
        for count in THEIRS:
            found[f"transformers lookup, {count}"] = partial(theirs, prompt_lookup_num_tokens=count)
    return found


def compare(name: str, model, prompts: Sequence[list[int]], rounds: int, tokens: int) -> dict:
    """CPU seconds of every contender in every round."""
    ways = contenders(model, prompts, tokens)
    texts = {way: run() for way, run in ways.items()}  # also warms up
    wrong = [way for way, text in texts.items() if text != texts["transformers plain"]]
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds):
        order = list(ways)
        for way in order[number % len(order) :] + order[: number % len(order)]:
            start = time.process_time()
            ways[way]()
            times[way].append(time.process_time() - start)
    written = sum(map(len, texts["transformers plain"]))
    return {"name": name, "batch": len(prompts), "tokens": written, "wrong": wrong, "seconds": times}


def ratio(entry: dict, way: str, base: str) -> tuple[float, float, float]:
    """How many times as fast `way` is as `base`: the ratio of medians, and the middle half by rounds."""
    a, b = entry["seconds"][base], entry["seconds"][way]
    each = sorted(x / y for x, y in zip(a, b, strict=True))
    quarter = len(each) // 4
    return statistics.median(a) / statistics.median(b), each[quarter], each[-1 - quarter]


def table(entries: Sequence[dict]) -> str:
    """Markdown."""
    ways = list(dict.fromkeys(way for entry in entries for way in entry["seconds"]))
    lines = [
        "| texts | batch | tokens | " + " | ".join(ways) + " |",
        "|" + "---|" * (len(ways) + 3),
    ]
    for entry in entries:
        cells = [entry["name"], str(entry["batch"]), str(entry["tokens"])]
        for way in ways:
            if way not in entry["seconds"]:
                cells.append("")
            elif way in entry["wrong"]:
                cells.append("another text")
            elif way == "transformers plain":
                cells.append(f"{statistics.median(entry['seconds'][way]):.2f} s")
            else:
                cells.append("{:.2f}x ({:.2f}-{:.2f})".format(*ratio(entry, way, "transformers plain")))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench generate", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--prompts", default=",".join((*PROMPTS, *TOGETHER)))
    options = parser.parse_args(arguments)
    import transformers

    from demo import smollm

    transformers.logging.set_verbosity_error()
    lm = smollm.load()

    def prompt(name: str) -> list[int]:
        return lm.encode_chat((ROOT / "demo" / "prompts" / f"{name}.txt").read_text().strip())

    entries = []
    for name in options.prompts.split(","):
        prompts = [prompt(each) for each in TOGETHER.get(name, (name,))]
        entries.append(compare(name, lm.model, prompts, options.rounds, options.tokens))
        print(table(entries[-1:]), flush=True)
    folder = Path(__file__).with_name("results")
    known = folder / "generate.json"
    before = json.loads(known.read_text(encoding="utf-8")) if known.exists() else []
    fresh = {entry["name"] for entry in entries}
    entries += [entry for entry in before if entry["name"] not in fresh]  # of earlier runs
    text = table(entries)
    header = (
        f"# The loop over a transformers model\n\nSmolLM2-135M-Instruct in float32, {options.tokens} new "
        f"tokens a text, greedy, {torch.get_num_threads()} threads. CPU seconds of transformers' plain "
        "decoding, and how many times as fast the others are: the ratio of medians over "
        f"{options.rounds} interleaved rounds, in parentheses the middle half of the rounds. transformers "
        f"{transformers.__version__}, torch {torch.__version__}.\n\n"
    )
    (folder / "generate.md").write_text(header + text + "\n", encoding="utf-8")
    (folder / "generate.json").write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    return 1 if any(entry["wrong"] for entry in entries) else 0
