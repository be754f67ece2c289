# SPDX-License-Identifier: Apache-2.0
"""Speculative decoding under `model.generate(...)` of the transformers library."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from ..._checks import bad_value
from .endings import stop_string_criterion
from .generate import decode, streamers_of
from .layers import filled, handed_back, taken
from .model import Target
from .options import check_options, lookup
from .processing import prepared
from .prompts import prompts
from .results import model_output, sequences

_CACHES = ("cache", "past_key_values", "cache_params")


def custom_generate(
    drafter: Any = None,
    *,
    tokenizer: Any = None,
    stop_strings: str | Collection[str] | None = None,
    streamer: Any = None,
    **options: Any,
) -> Callable[..., Any]:
    """Make the function for `model.generate(..., custom_generate=custom_generate(drafter))`.

    Batches and trees are served. Transformers builds processors and criteria, and they see the padded rows as
    they would under transformers.

    Args:
        drafter: as for `generate`; None drafts by `prompt_lookup_num_tokens` of the configuration.
        tokenizer, stop_strings, streamer: given here, because transformers does not pass them on.
        options: `draft_sampling`, `draft_vocab`, `rule`, `seeds`, `budget`, `serve`, `prefill_chunk`,
            `on_tokens` and `backend` of `generate`.

    Returns:
        A callable for the argument `custom_generate`. It returns ids [B, L + T], or a
        `GenerateDecoderOnlyOutput` under `return_dict_in_generate=True`, with `scores` and `logits` where
        they are asked for. Rows that end early are padded; their scores behind the end are those of a certain
        pad token.

    Raises:
        TypeError: an option that does not exist.
        ValueError: when called, for anything that cannot be honoured.

    Notes:
        `do_sample=True` draws seeds from torch's default generator: `torch.manual_seed` repeats a text.

    Example:
        `model.generate(ids, custom_generate=custom_generate(partial(ngram_draft, num_draft=8)))` writes what
        `model.generate(ids)` writes.
    """
    operation = "custom_generate"
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise TypeError(f"custom_generate: unknown options {unknown}; there are {sorted(OPTIONS)}")

    @torch.no_grad()
    def write(
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Any:
        check_options(generation_config, operation)
        aim = Target(model)
        length = getattr(generation_config, "_mask_length", None)  # of the caller's, which may be left out
        if length is not None and length != input_ids.shape[1]:
            rule = "must hold the whole text, what is cached of it included"
            bad_value(operation, "input_ids", rule, f"{input_ids.shape[1]} of {length} tokens")
        mask = _mask(input_ids, model_kwargs)
        texts = prompts(
            input_ids,
            mask,
            target=model,
            config=generation_config,
            vocab_size=aim.vocab_size,
            operation=operation,
        )
        criteria = list(stopping_criteria)
        if stop_strings is not None:
            criteria.append(stop_string_criterion(tokenizer, stop_strings, operation))
        rules = prepared(
            input_ids,
            logits_processor,
            criteria,
            do_sample=bool(generation_config.do_sample),
            device=aim.device,
            operation=operation,
        )
        whole = bool(generation_config.return_dict_in_generate)
        asked = {
            "scores": generation_config.output_scores,
            "logits": generation_config.output_logits,
            "cache": generation_config.use_cache,
        }
        given = {"prefill_chunk": generation_config.prefill_chunk_size} | options
        kept = {name for name, wanted in asked.items() if whole and wanted}
        own, pads = _own_cache(model_kwargs), (mask.cumsum(1) == 0).sum(1).tolist()
        if own is not None:
            kept.add("cache")
            given["fills_cache"] = True
            given["cache"] = taken(own, texts, pads, aim.key, operation)
        generated = decode(
            aim,
            texts,
            rules,
            lookup(drafter, generation_config),
            outputs=kept,
            streamers=streamers_of(streamer, len(texts)),
            operation=operation,
            **given,
        )
        pad = generation_config._pad_token_tensor
        pad = None if pad is None else int(pad)
        cache = handed_back(generated.cache, pads, own) if "cache" in kept else None
        if whole:
            return model_output(input_ids, generated, pad, cache if asked["cache"] else None)
        return sequences(input_ids, generated, pad)

    return write


OPTIONS = (
    "draft_sampling",
    "draft_vocab",
    "rule",
    "seeds",
    "budget",
    "serve",
    "prefill_chunk",
    "on_tokens",
    "backend",
)


def _mask(input_ids: Tensor, model_kwargs: dict[str, Any]) -> Tensor:
    """The mask of the call; what else transformers would hand to the model must ask for nothing."""
    mask = model_kwargs.get("attention_mask")
    mask = torch.ones_like(input_ids) if mask is None else mask
    served = {"attention_mask", "position_ids", "use_cache", "logits_to_keep", *_CACHES}
    for name, value in model_kwargs.items():
        if name not in served and value is not None and value is not False:
            bad_value("custom_generate", name, "must be None", type(value).__name__)
    places = model_kwargs.get("position_ids")
    if places is not None and mask.shape == input_ids.shape:
        usual = mask.long().cumsum(-1) - 1
        if places.shape[-1] != usual.shape[-1] or bool(((places != usual) & (mask != 0)).any()):
            rule = "must number the tokens that attention_mask keeps from 0"
            bad_value("custom_generate", "position_ids", rule, "others")
    return mask


def _own_cache(model_kwargs: dict[str, Any]) -> Any:
    """The caller's cache. One that transformers has made for the call is empty, and not needed.

    Older versions of transformers do not mark the caller's: one that is empty is then not filled.
    """
    found = next((model_kwargs[name] for name in _CACHES if model_kwargs.get(name) is not None), None)
    if found is None or getattr(found, "_is_user_defined", False):
        return found
    return found if getattr(found, "layers", None) and filled(found) else None
