# SPDX-License-Identifier: Apache-2.0
"""transformers' logits processors: how each may be called, and which of them `SamplingParams` stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...sampling import SamplingParams

# transformers' own processors. These read no text at all,
_FREE = {
    "TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper", "TopHLogitsWarper", "MinPLogitsWarper",
    "TypicalLogitsWarper", "EpsilonLogitsWarper", "EtaLogitsWarper", "SuppressTokensLogitsProcessor",
    "InfNanRemoveLogitsProcessor", "LogitNormalization",
}  # fmt: skip
# these read every row's own text, whatever the row's place,
_ROWWISE = {
    "MinLengthLogitsProcessor", "MinNewTokensLengthLogitsProcessor", "RepetitionPenaltyLogitsProcessor",
    "NoRepeatNGramLogitsProcessor", "SequenceBiasLogitsProcessor", "NoBadWordsLogitsProcessor",
    "ForcedBOSTokenLogitsProcessor", "ForcedEOSTokenLogitsProcessor", "ExponentialDecayLengthPenalty",
    "SuppressTokensAtBeginLogitsProcessor", "WatermarkLogitsProcessor",
}  # fmt: skip
# these know a row by its place in the batch,
_PLACED = {
    "EncoderRepetitionPenaltyLogitsProcessor", "EncoderNoRepeatNGramLogitsProcessor",
    "PrefixConstrainedLogitsProcessor",
}  # fmt: skip
# and these remember what they were called with.
_STATEFUL = {"UnbatchedClassifierFreeGuidanceLogitsProcessor", "SynthIDTextWatermarkLogitsProcessor"}

# At most lengths n of a text these change nothing.
IDLE: dict[str, Callable[[Any, int], bool]] = {
    "MinLengthLogitsProcessor": lambda it, n: n >= it.min_length,
    "MinNewTokensLengthLogitsProcessor": lambda it, n: n - it.prompt_length_to_skip >= it.min_new_tokens,
    "ForcedBOSTokenLogitsProcessor": lambda it, n: n != 1,
    "ForcedEOSTokenLogitsProcessor": lambda it, n: n != it.max_length - 1,
    "SuppressTokensAtBeginLogitsProcessor": lambda it, n: n != it.begin_index,
}

_WARPERS = ("TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper", "MinPLogitsWarper")
_FIELDS = ("temperature", "top_k", "top_p", "min_p")


def kind_of(processor: Any) -> str:
    """How a processor may be called: "free", "penalty", "rowwise", "placed", "stateful" or "other"."""
    cls = type(processor)
    name = cls.__name__ if cls.__module__ == "transformers.generation.logits_process" else ""
    if name == "RepetitionPenaltyLogitsProcessor":
        ignored = processor.prompt_ignore_length
        return "penalty" if ignored is None else "rowwise" if isinstance(ignored, int) else "placed"
    kinds = {"free": _FREE, "rowwise": _ROWWISE, "placed": _PLACED, "stateful": _STATEFUL}
    return next((kind for kind, names in kinds.items() if name in names), "other")


def reads_text(column: list[Any]) -> bool:
    return kind_of(column[0]) != "free"


def penalised(processor: Any, texts: list[Tensor], scores: Tensor) -> Tensor:
    """Texts of all lengths in one call: what is ignored of a prompt may differ from row to row."""
    longest = max(text.shape[0] for text in texts)
    pads = [longest - text.shape[0] for text in texts]
    ids = torch.stack(
        [torch.nn.functional.pad(text, (pad, 0)) for text, pad in zip(texts, pads, strict=True)]
    )
    ignored = torch.tensor(pads, device=ids.device)
    aligned = type(processor)(processor.penalty, prompt_ignore_length=ignored)
    penalised: Tensor = aligned(ids, scores)
    return penalised


def peeled(
    lists: list[list[Any]], do_sample: bool
) -> tuple[list[list[Any]], list[list[Any]], SamplingParams]:
    """Split the last processors off where `SamplingParams` says the same: temperature, top-k, top-p, min-p.

    Normalisation at the very end changes no law.
    """
    if not lists or not do_sample:
        ends = [len(one) - bool(one and type(one[-1]).__name__ == "LogitNormalization") for one in lists]
        split = list(zip(lists, ends, strict=True))
        greedy = SamplingParams(temperature=0.0)
        return [one[:end] for one, end in split], [one[end:] for one, end in split], greedy
    names = [type(processor).__name__ for processor in lists[0]]
    end = len(names) - (names[-1:] == ["LogitNormalization"])
    values: dict[str, Any] = {}
    for name, field in zip(reversed(_WARPERS), reversed(_FIELDS), strict=True):
        warper = lists[0][end - 1] if end else None
        if type(warper).__name__ == name and kind_of(warper) == "free" and _plain(warper):
            values[field], end = getattr(warper, field), end - 1
    return (
        [one[:end] for one in lists],
        [one[end:] for one in lists],
        SamplingParams(**values, order="min_p_last"),
    )


def _plain(warper: Any) -> bool:
    return (
        getattr(warper, "filter_value", -torch.inf) == -torch.inf
        and getattr(warper, "min_tokens_to_keep", 1) == 1
    )


def warpers_of(sampling: SamplingParams, request: int) -> list[Any]:
    """transformers' warpers that do to a row what `sampling` does for one request."""
    from transformers.generation import logits_process

    values = sampling._asdict()
    last = values.pop("order") == "min_p_last"
    order = _FIELDS if last else ("temperature", "min_p", "top_k", "top_p")
    for name, value in values.items():
        if isinstance(value, Tensor):
            values[name] = value[request].item() if value.dim() else value.item()
    if values["temperature"] <= 0:
        return []
    off = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    made = []
    for name in order:
        value = int(values[name]) if name == "top_k" else float(values[name])
        if value != off[name] and value >= 0:
            made.append(getattr(logits_process, _WARPERS[_FIELDS.index(name)])(value))
    return made
