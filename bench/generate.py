# SPDX-License-Identifier: Apache-2.0
"""The loop over a real transformers model beside transformers' own.

Every contender writes the greedy texts of the same prompts, all of them in turn in every round. Times are
CPU seconds of the process, so that others on the machine disturb little. All texts must be equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import torch

import specdec_kernels as sdk

from .suite import Case, Contender, Rounds, Run, Suite

ROOT = Path(__file__).resolve().parent.parent
TOKENS = 96
DRAFTED = 20  # tokens that a lookup drafts at most; a budget cuts them
COUNTS = (10, 20)  # the default of transformers, and what it is fastest with on these prompts
Texts = list[list[int]]


@cache
def load() -> tuple[Any, Callable[[str], list[int]]]:
    """The model, and the tokens of a prompt by its name."""
    import transformers

    from demo import smollm

    transformers.logging.set_verbosity_error()
    lm = smollm.load()

    def prompt(name: str) -> list[int]:
        return lm.encode_chat((ROOT / "demo" / "prompts" / f"{name}.txt").read_text().strip())

    return lm.model, prompt


class Inputs:
    def __init__(self, names: Sequence[str]):
        self.model, prompt = load()
        self.prompts = [prompt(name) for name in names]
        self.eos = self.model.config.eos_token_id

    @cached_property
    def texts(self) -> Texts:
        """What has to be written, with the end-of-sequence token and without padding."""
        return plain(self)(0)


def plain(inputs: Inputs, **options: object) -> Run:
    eos, longest = inputs.eos, max(map(len, inputs.prompts))
    ids = torch.tensor([[eos] * (longest - len(prompt)) + prompt for prompt in inputs.prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in inputs.prompts])

    def run(_: int) -> Texts:
        text = inputs.model.generate(
            ids, attention_mask=mask, max_new_tokens=TOKENS, do_sample=False, pad_token_id=eos, **options
        )
        rows = text[:, longest:].tolist()
        return [row[: row.index(eos) + 1] if eos in row else row for row in rows]

    return run


def lookup(inputs: Inputs, drafter: Callable[..., Any]) -> Run:
    options = dict(max_new_tokens=TOKENS, sampling=sdk.SamplingParams(0.0), stop_tokens=[inputs.eos])
    return lambda _: sdk.generate(inputs.model, drafter, inputs.prompts, **options).tokens


CHAIN, TREE = partial(sdk.ngram_draft, num_draft=DRAFTED), partial(sdk.ngram_tree, max_nodes=DRAFTED + 1)
SUBJECTS = (
    Contender("specdec_kernels lookup", partial(lookup, drafter=CHAIN)),
    Contender("specdec_kernels lookup tree", partial(lookup, drafter=TREE)),
)
TRANSFORMERS_LOOKUPS = tuple(
    Contender(f"transformers lookup, {count}", partial(plain, prompt_lookup_num_tokens=count))
    for count in COUNTS
)


@dataclass(frozen=True)
class GenerateCase(Case):
    name: str
    prompts: tuple[str, ...]

    def build(self) -> Inputs:
        return Inputs(self.prompts)

    def contenders(self) -> tuple[Contender, ...]:
        lookups = TRANSFORMERS_LOOKUPS if len(self.prompts) == 1 else ()  # they serve no batches
        return (Contender("transformers plain", plain), *SUBJECTS, *lookups)

    def failure(self, inputs: Inputs, contender: Contender) -> str | None:
        """This also warms up."""
        if contender.name == "transformers plain":
            return None if inputs.texts else "no text"
        return None if contender.prepare(inputs)(0) == inputs.texts else "another text"

    def figures(self, inputs: Inputs) -> dict[str, float]:
        return {"batch": len(inputs.prompts), "tokens": sum(map(len, inputs.texts))}


SUITE = Suite(
    "generate",
    (
        *(GenerateCase(name, (name,)) for name in ("chat_soup", "code_method", "quote_summary")),
        GenerateCase("code", ("code_method", "code_rename") * 2),
        GenerateCase("chat", ("chat_soup", "chat_weekend") * 2),
    ),
    f"SmolLM2-135M-Instruct in float32, {TOKENS} new tokens a text, greedy. CPU milliseconds; in brackets "
    "how many times as long as specdec_kernels' lookup / lookup tree: the ratio of medians, and the middle "
    "half of the rounds' ratios.",
    subjects=tuple(subject.name for subject in SUBJECTS),
    references=tuple(subject.name for subject in SUBJECTS),
    rounds=Rounds(9, warmup=0, cpu=True),
    quick_rounds=Rounds(3, warmup=0, cpu=True),
    threads=(torch.get_num_threads(),),
)
