# SPDX-License-Identifier: Apache-2.0
"""Every field of transformers' `GenerationConfig`: honoured, without meaning here, or refused by name."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ..._checks import bad_type, bad_value
from ...drafting.ngram import ngram_draft

HONOURED = {
    "max_length", "max_new_tokens", "min_length", "min_new_tokens", "max_time", "stop_strings", "do_sample",
    "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "repetition_penalty", "encoder_repetition_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "renormalize_logits", "forced_bos_token_id",
    "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens",
    "begin_suppress_tokens", "sequence_bias", "watermarking_config", "num_return_sequences", "output_scores",
    "output_logits", "pad_token_id", "eos_token_id", "prompt_lookup_num_tokens", "max_matching_ngram_size",
    "prefill_chunk_size",
}  # fmt: skip

MEANINGLESS = {
    "early_stopping": "only beam search reads it",
    "length_penalty": "only beam search reads it",
    "use_cache": "the text is the same, and a cache is used where the model has one that can be trusted",
    "low_memory": "only beam and contrastive search read it",
    "bos_token_id": "only an empty prompt is started by it",
    "decoder_start_token_id": "only encoder-decoder models read it",
    "max_cache_len": "only static caches read it",
    "compile_config": "only static caches are compiled",
    "disable_compile": "nothing is compiled",
    "return_dict_in_generate": "generate returns a Generated; custom_generate honours it",
    "num_assistant_tokens": "a setting of transformers' own drafting",
    "num_assistant_tokens_schedule": "a setting of transformers' own drafting",
    "assistant_confidence_threshold": "a setting of transformers' own drafting",
    "assistant_lookbehind": "a setting of transformers' own drafting",
    "target_lookbehind": "a setting of transformers' own drafting",
    "transformers_version": "a note",
    "_from_model_config": "a note",
}

# Refused unless None or among the values that ask for nothing.
REFUSED: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0.0,),
    "penalty_alpha": (0.0,),
    "dola_layers": (),
    "constraints": (),
    "force_words_ids": (),
    "guidance_scale": (1.0,),
    "token_healing": (False,),
    "use_mtp": (False,),
    "is_assistant": (False,),
    "assistant_early_exit": (),
    "assistant_ensemble_weight": (0.0,),
    "speculation_type": (),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "cache_implementation": (
        "dynamic",
        "dynamic_full",
        "static",
        "hybrid",
        "hybrid_chunked",
        "sliding_window",
    ),  # the same text
    "cache_config": (),
    "continuous_batching_config": (),
}


def configuration(target: Any, generation_config: Any = None, *, operation: str = "generate") -> Any:
    """The options of a call: those given, then the target's own, then transformers' defaults.

    Args:
        target: a model; without the methods of transformers' `GenerationMixin` it has no options of its own.
        generation_config: a `GenerationConfig` or None.
        operation: that messages name.

    Returns:
        A `GenerationConfig` of its own, with special tokens as tensors as transformers prepares them.
        `max_length` is None where nobody has set it.

    Raises:
        TypeError: `generation_config` is of another type.
        ValueError: an option that cannot be honoured.
    """
    from transformers import GenerationConfig

    if generation_config is not None and not isinstance(generation_config, GenerationConfig):
        rule = "must be a GenerationConfig or None"
        bad_type(operation, "generation_config", rule, type(generation_config).__name__)
    own = mixin(target)
    if generation_config is not None:
        known = {*GenerationConfig().__dict__, *own.generation_config.__dict__}
        unknown = [name for name in generation_config.__dict__ if name not in known and name[0] != "_"]
        if unknown:
            bad_value(operation, "generation_config", "must hold options that exist", unknown)
    given = (generation_config, own.generation_config)
    config, _ = own._prepare_generation_config(generation_config)
    if all(options is None or options.max_length is None for options in given):
        config.max_length = None
    check_options(config, operation)
    own._prepare_special_tokens(config, device=torch.device("cpu"))
    return config


def lookup(drafter: Any, config: Any) -> Any:
    """The drafter of a call: without one, prompt lookup where the configuration asks for it."""
    if drafter is not None or config.prompt_lookup_num_tokens is None:
        return drafter
    longest = config.max_matching_ngram_size or 2
    return partial(ngram_draft, num_draft=config.prompt_lookup_num_tokens, max_ngram=longest)


def check_options(config: Any, operation: str) -> None:
    """Raise `ValueError` for an option that cannot be honoured, or that this module has not heard of."""
    from transformers import GenerationConfig

    for name in GenerationConfig().__dict__:
        value = getattr(config, name, None)
        if value is None or name in HONOURED or name in MEANINGLESS or name.startswith("_"):
            continue
        neutral = REFUSED.get(name, ())
        if not isinstance(value, (bool, int, float, str)) or value not in neutral:
            rule = " | ".join(["None", *map(str, neutral)])
            bad_value(operation, f"generation_config.{name}", f"must be {rule}", value)


def mixin(target: Any) -> Any:
    """The target, or a stand-in where it lacks transformers' methods for generation."""
    if hasattr(target, "_get_logits_processor"):
        return target
    from transformers import GenerationConfig, GenerationMixin, PretrainedConfig

    plain = GenerationMixin()
    config = getattr(target, "config", None)
    plain.config = config if isinstance(config, PretrainedConfig) else PretrainedConfig()
    plain.generation_config = getattr(target, "generation_config", None) or GenerationConfig()
    return plain
