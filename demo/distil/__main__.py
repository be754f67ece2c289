# SPDX-License-Identifier: Apache-2.0
"""Distils a table of n-grams from the model's own answers.

python -m demo.distil texts FILE    # answers to training prompts, written by the model
python -m demo.distil table FILE    # the table of those texts, and how it fares on held-out prompts
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ..drafters.budget import Drafter, no_drafts
from ..drafters.ngrams import WEIGHTS
from ..engine import Engine, Request, pages_for
from ..llama import Llama, Shape
from ..smollm import load
from ..timing import PAGE_SIZE
from ..ways import drafters
from .counts import distil
from .topics import HELD_OUT, training_prompts

AT_ONCE = 48  # requests decoded together
Answer = tuple[list[int], list[int]]  # with its prompt before it


def write(prompts: list[str], tokens: int) -> list[Answer]:
    """(prompt, answer) for each prompt; every third at temperature 0.7, the others greedy."""
    lm = load()
    model = Llama(Shape.of(lm.model.config), lm.model.state_dict())
    pages = AT_ONCE * pages_for(128 + tokens, PAGE_SIZE)
    engine = Engine(model, no_drafts, eos_id=lm.eos_id, pages=pages, page_size=PAGE_SIZE, max_nodes=1)
    requests = [
        Request(lm.encode_chat(prompt), tokens, 0.7 if number % 3 == 0 else 0.0, number)
        for number, prompt in enumerate(prompts)
    ]
    for request in requests:
        engine.add(request)
    engine.run()
    return [(list(request.prompt), request.tokens) for request in requests]


def accepted(drafter: Drafter, texts: list[Answer], depths: int = 6) -> str:
    """Share of the places in greedy answers where a whole tree's path of each depth is what follows."""
    places, found = 0, [0] * depths
    for prompt, answer in texts:
        for place in range(len(answer)):
            (tree,) = drafter([[*prompt, *answer[:place]]])
            length = len(tree.path(answer[place:])) - 1
            places += 1
            for depth in range(min(length, depths)):
                found[depth] += 1
    return " ".join(f"{count / places:.3f}" for count in found)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m demo.distil",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=["texts", "table"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--prompts", type=int, default=1440)
    parser.add_argument("--tokens", type=int, default=160)
    options = parser.parse_args()
    if options.what == "texts":
        texts, prompts = [], training_prompts(options.prompts)
        for first in range(0, len(prompts), 240):
            texts += write(prompts[first : first + 240], options.tokens)
            torch.save(texts, options.file)
            print(f"{len(texts)} answers, {sum(len(answer) for _, answer in texts)} tokens", flush=True)
        return
    texts = torch.load(options.file)
    table, hit = distil(texts)
    table.save(WEIGHTS)
    size = WEIGHTS.stat().st_size / 1e6
    tokens = sum(len(answer) for _, answer in texts)
    print(f"{len(texts)} answers of {tokens} tokens; {size:.1f} MB")
    print(f"first guess right in answers left out of the table: {hit:.3f}")
    held_out = write(list(HELD_OUT), options.tokens)
    for name, drafter in drafters(table).items():
        print(f"{name}, held-out prompts, accepted by depth: {accepted(drafter, held_out)}")


if __name__ == "__main__":
    main()
