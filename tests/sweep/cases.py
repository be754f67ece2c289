# SPDX-License-Identifier: Apache-2.0
"""Cases that a causal model goes through: its text beside decoding without any cache."""

from __future__ import annotations

import inspect
import os
import traceback
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import specdec_kernels as sdk

from . import configs
from .configs import VOCABULARY

PROMPTS = [
    [3, 7, 9, 12, 30],
    [22, 41],
    [17, 8, 33, 2, 50, 9, 9, 44, 17, 8, 33, 5, 28, 13],
    [6, 25, 6, 25, 6, 25, 11],
]
NEW_TOKENS = 20
SEED = 5
LAWS = {
    "greedy": sdk.SamplingParams(temperature=0.0),
    "sampled": sdk.SamplingParams(temperature=0.7, top_p=0.95),
}
DRAFTS = ("no drafts", "chain", "tree", "ragged chains", "ragged trees")
TIE = 1e-4  # of the spread of the logits
ROUNDING = (
    1e-6  # of embeddings: what readings in other orders differ by, and discontinuous models make much of
)


class Outcome(NamedTuple):
    """Of a case: right | tie | wrong | refused | crash, and the first difference or the message."""

    kind: str
    detail: str = ""


class NotCausal(Exception):
    """No text to compare with: logits depend on later tokens, or cannot be had from tokens alone."""


def choose(seed: int) -> None:
    """Other weights, prompts and noise than those of seed 0."""
    global PROMPTS, SEED
    if seed:
        configs.SEED, SEED = seed, 100 * seed
        generator = torch.Generator().manual_seed(seed)
        PROMPTS = [
            torch.randint(1, VOCABULARY, (size,), generator=generator).tolist() for size in (5, 2, 14, 7)
        ]


def spread(logits: Tensor) -> float:
    """How far logits lie apart, without the lowest ones: a token may be forbidden."""
    ordered = logits.flatten(0, -2).sort(-1).values if logits.dim() > 1 else logits[None].sort(-1).values
    return float(ordered[:, -1].max() - ordered[:, ordered.shape[1] // 8].min())


class Oracle:
    """The model's text, read as a whole for every token."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        names = inspect.signature(model.forward).parameters
        takes = "use_cache" in names or any(p.kind is p.VAR_KEYWORD for p in names.values())
        self.options = {"use_cache": False} if takes else {}
        self.texts: dict[tuple[str, int], list[int]] = {}

    @torch.inference_mode()
    def logits(self, text: list[int]) -> Tensor:
        return self.model(torch.tensor([text]), **self.options).logits[0].float()

    @torch.inference_mode()
    def moved(self, text: list[int], count: int = 20) -> list[Tensor]:
        """The logits behind a text, read plainly with embeddings that are off by a rounding: a router between
        experts, or a recurrence that is chaotic with random weights, may then answer otherwise."""

        def move(module: nn.Module, given: Any, out: Tensor) -> Tensor:
            return out * (1 + ROUNDING * torch.randn_like(out))

        hook = self.model.get_input_embeddings().register_forward_hook(move)
        try:
            return [self.logits(text)[-1] for _ in range(count)]
        finally:
            hook.remove()

    def check_causal(self) -> None:
        """Raise if a later token changes what stands before it."""
        text = PROMPTS[2]
        try:
            before, after = self.logits(text), self.logits([*text[:-1], 60 if text[-1] != 60 else 59])
        except Exception as error:
            raise NotCausal(f"reading a text fails: {type(error).__name__}: {str(error)[:80]}") from error
        if not torch.isfinite(before).all() or not spread(before) > 0:
            raise NotCausal("logits are not finite")
        if before.shape[0] != len(text):
            raise NotCausal("logits are not those of every place")
        leak = float((before[:-1] - after[:-1]).abs().max()) / spread(before)
        if leak > TIE:
            raise NotCausal(f"a later token moves earlier logits by {leak:.2g} of their spread")

    def draw(self, logits: Tensor, law: sdk.SamplingParams, request: int, length: int) -> int:
        seeds, positions = torch.tensor([SEED + request]), torch.tensor([length])
        return int(sdk.sample(logits[None], law, seeds=seeds, positions=positions))

    def text(self, law: str, request: int) -> list[int]:
        """The tokens that follow a prompt."""
        if (law, request) not in self.texts:
            text = list(PROMPTS[request])
            for _ in range(NEW_TOKENS):
                text.append(self.draw(self.logits(text)[-1], LAWS[law], request, len(text)))
            self.texts[law, request] = text[len(PROMPTS[request]) :]
        return self.texts[law, request]

    def compare(self, law: str, request: int, got: list[int], seed: int) -> Outcome:
        """Right, wrong, or a draw that the last digits of the logits decide."""
        expected = self.text(law, request)
        if got == expected:
            return Outcome("right")
        place = next((i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), None)
        if place is None:
            return Outcome("wrong", f"request {request}: {len(got)} tokens for {len(expected)}")
        text = PROMPTS[request] + expected[:place]
        logits = self.logits(text)[-1]
        moved = [logits + TIE * spread(logits) * torch.randn_like(logits) for _ in range(50)]
        moved += self.moved(text)
        drawn = {self.draw(row, LAWS[law], seed, len(text)) for row in moved}
        top = logits.topk(2).values
        margin = f"margin of the first two {float(top[0] - top[1]) / spread(logits):.2g} of the spread"
        return Outcome("tie" if len(drawn) > 1 else "wrong", f"request {request}, token {place} ({margin})")


def drafter(oracle: Oracle, law: str, shape: str) -> Any:
    """Drafts that are partly the true text: spoilt chains, and trees whose first branch is wrong."""
    known = [PROMPTS[i] + oracle.text(law, i) for i in range(len(PROMPTS))]

    def ahead(text: list[int], count: int) -> list[int]:
        for whole in known:
            if whole[: len(text)] == text:
                return (whole[len(text) :] + [1] * count)[:count]
        return [1] * count

    def draft(text: Tensor, lengths: Tensor) -> Any:
        rows = [row[:length].tolist() for row, length in zip(text, lengths.tolist(), strict=True)]
        if shape == "no drafts":
            return torch.full((len(rows), 3), -1)
        if shape.endswith(("chain", "chains")):
            drafts = torch.tensor([ahead(row, 4) for row in rows])
            for place, row in enumerate(rows):
                spoilt = (len(row) + place) % 5
                if spoilt < 4:
                    drafts[place, spoilt] = (
                        -1 if len(row) % 4 == 3 else (drafts[place, spoilt] + 1) % VOCABULARY
                    )
            return drafts
        tokens, parents, sizes = [], [], []
        for place, row in enumerate(rows):
            a, b, c = ahead(row, 3)
            x, y, z = ((token + 1) % VOCABULARY for token in (a, b, c))
            tree = [(row[-1], -1), (x, 0), (a, 0), (b, 1), (b, 2), (z, 4), (c, 4)]
            if (len(row) + place) % 3 == 0:
                tree = [(row[-1], -1), (a, 0), (y, 1), (b, 1)]
            tokens += [token for token, _ in tree]
            parents += [parent for _, parent in tree]
            sizes.append(len(tree))
        starts = torch.tensor([0, *sizes]).cumsum(0).int()
        return sdk.DraftTree.from_parents(torch.tensor(tokens), torch.tensor(parents), starts)

    return draft


def run_case(model: nn.Module, oracle: Oracle, law: str, shape: str) -> Outcome:
    """One call of `sdk.generate` beside the oracle's text."""
    requests = [1, 2, 3] if shape.startswith("ragged") else [0]
    rule = {"rule": "match"} if law == "sampled" else {}
    seeds = torch.tensor([SEED + request for request in requests])
    draft = drafter(oracle, law, shape)
    try:
        generated = sdk.generate(
            model,
            draft,
            [list(PROMPTS[request]) for request in requests],
            max_new_tokens=NEW_TOKENS,
            sampling=LAWS[law],
            seeds=seeds,
            **rule,
        )
    except Exception as error:
        return failure(error)
    outcomes = [
        oracle.compare(law, request, list(tokens), request)
        for request, tokens in zip(requests, generated.tokens, strict=True)
    ]
    order = ["wrong", "tie", "right"]
    return min(outcomes, key=lambda outcome: order.index(outcome.kind))


def failure(error: Exception) -> Outcome:
    """A refusal in this library's own words, or a crash and its place."""
    text = " ".join(str(error).split())
    if isinstance(error, (ValueError, TypeError, NotImplementedError)) and text.startswith("generate:"):
        return Outcome("refused", text)
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{os.path.basename(frame.filename)}:{frame.lineno}" for frame in frames[-2:]]
    return Outcome("crash", f"{type(error).__name__}: {text[:160]} [{' > '.join(places)}]")


def explained(model: nn.Module) -> str:
    """What `explain_model` says."""
    return " ".join(str(sdk.explain_model(model)).split())
