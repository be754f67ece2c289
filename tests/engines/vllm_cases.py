# SPDX-License-Identifier: Apache-2.0
"""What the engines of `vllm_run` write, batch by batch: a prompt's name and options of SamplingParams."""

from __future__ import annotations

from typing import Any

Batches = dict[str, list[tuple[str, dict[str, Any]]]]

GREEDY = {"temperature": 0.0, "max_tokens": 48}
SAMPLED = {"temperature": 0.8, "top_k": 50, "top_p": 0.95, "max_tokens": 32}
NAMES = ("chat_weekend", "code_rename", "json_currency", "quote_summary")
DATE = {"regex": r"(Mon|Tues|Fri)day, [1-9]/(10|11|12) 2[0-9]{3}", "max_tokens": 24}
DIGITS = list(range(32, 36))  # single characters of the vocabulary
LAW_DRAWS = 800

# Options that change the rows of a request. The greedy text under them is the plain engine's.
CHANGED: dict[str, dict[str, Any]] = {
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.3},
    "min_tokens": {"min_tokens": 30},  # the text of noise_words ends before
    "bad_words": {"bad_words": ["the", " the", "I", "def"]},
    "allowed_token_ids": {"allowed_token_ids": DIGITS, "max_tokens": 24},
    "grammar": DATE,
    "logprobs": {"logprobs": 5},
}


def seeded(seed: int) -> dict[str, Any]:
    return {**SAMPLED, "seed": seed}


def greedy(prompts: list[str]) -> Batches:
    batches: Batches = {"greedy": [(name, GREEDY) for name in prompts]}
    for name in ("code_method", "noise_words"):
        batches[f"greedy alone {name}"] = [(name, GREEDY)]
    for option, values in CHANGED.items():
        names = ("noise_words", "code_rename")
        batches[option] = [(name, {**GREEDY, **values}) for name in names]
    mixed = [("code_rename", {**GREEDY, **values}) for values in CHANGED.values()]
    batches["mixed"] = [*mixed, ("code_method", GREEDY), ("chat_soup", SAMPLED), ("chat_weekend", seeded(1))]
    return batches


def repeated() -> Batches:
    """Seeded texts, once more, in another order among others, and alone."""
    batch = [(name, seeded(place)) for place, name in enumerate(NAMES)]
    others = [
        ("chat_soup", SAMPLED),
        ("noise_words", GREEDY),
        ("code_method", {**GREEDY, **CHANGED["penalties"]}),
    ]
    batches = {"seeded": batch, "seeded again": batch, "seeded among others": others + batch[::-1]}
    return batches | {f"seeded alone {place}": [request] for place, request in enumerate(batch)}


def law() -> Batches:
    """Many short texts, with fresh noise."""
    return {"law": [("short", {"temperature": 0.7, "max_tokens": 3})] * LAW_DRAWS}
