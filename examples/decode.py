"""Two decoding loops over a transformers model: one token at a time, and speculative.

Both are generators of steps, both draw with noise keyed by (seed, position), so they give the same text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from lookup import PromptLookup
from transformers import DynamicCache, PreTrainedModel

import specdec_kernels as sdk


class Step(NamedTuple):
    """What one forward pass of the model brought; the first `accepted` tokens had been drafted."""

    tokens: list[int]
    accepted: int = 0
    drafted: int = 0


@dataclass(frozen=True)
class Settings:
    eos_id: int
    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0

    def noise(self, position: int) -> dict:
        return {
            "sampling": sdk.SamplingParams(temperature=self.temperature),
            "seeds": torch.tensor([self.seed]),
            "positions": torch.tensor([position]),
        }


@torch.inference_mode()
def decode_plain(model: PreTrainedModel, prompt: Sequence[int], settings: Settings) -> Iterator[Step]:
    cache = DynamicCache(config=model.config)
    context = list(prompt)
    pending = context  # tokens the cache does not hold yet
    for _ in range(settings.max_new_tokens):
        logits = model(torch.tensor([pending]), past_key_values=cache, logits_to_keep=1).logits[0]
        token = sdk.sample(logits, **settings.noise(len(context))).item()
        pending = [token]
        context = context + pending
        yield Step(pending)
        if token == settings.eos_id:
            return


@torch.inference_mode()
def decode_speculative(
    model: PreTrainedModel,
    prompt: Sequence[int],
    draft: PromptLookup,
    settings: Settings,
) -> Iterator[Step]:
    draft.reset()
    cache = DynamicCache(config=model.config)
    context = list(prompt)
    pending = context  # tokens the cache does not hold yet
    end = len(prompt) + settings.max_new_tokens
    while len(context) < end:
        drafted = draft(context)[: end - len(context) - 1]  # a step adds one token beyond the accepted ones
        verified = verify_draft(model, cache, pending, drafted, settings.noise(len(context)))
        accepted = verified.num_accepted.item()
        draft.learn(len(drafted), accepted)
        rejected = len(drafted) - accepted
        if rejected:
            cache.crop(-rejected)
        tokens = verified.tokens[0, : accepted + 1].tolist()
        if settings.eos_id in tokens:
            tokens = tokens[: tokens.index(settings.eos_id) + 1]
        yield Step(tokens, min(accepted, len(tokens)), len(drafted))
        if tokens[-1] == settings.eos_id:
            return
        pending = tokens[-1:]
        context = context + tokens


@torch.inference_mode()
def verify_draft(
    model: PreTrainedModel, cache: DynamicCache, pending: list[int], drafted: list[int], noise: dict
) -> sdk.Verified:
    """One forward pass over the pending tokens and a chain of drafted ones, and its verification."""
    ids = torch.tensor([pending + drafted])
    logits = model(ids, past_key_values=cache, logits_to_keep=len(drafted) + 1).logits[0]
    tree = sdk.DraftTree.chain(torch.tensor([drafted], dtype=torch.int64), proposal=sdk.Proposal.POINT)
    return sdk.verify(logits, tree, **noise)
