# SPDX-License-Identifier: Apache-2.0
"""A tiny model with random weights for every causal class of the transformers library."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
)

VOCABULARY, WINDOW, LAYERS = 64, 8, 4
SEED = 0  # of the weights

# Every attribute that a configuration class has under one of these names gets the value.
GENERIC: dict[str, Any] = dict(
    vocab_size=VOCABULARY, unpadded_vocab_size=VOCABULARY, decoder_vocab_size=VOCABULARY,
    vocab_size_per_layer_input=VOCABULARY, hidden_size=32, d_model=32, n_embd=32, emb_dim=32,
    embedding_dim=32, embedding_size=32, input_embedding_size=32, output_embedding_size=32,
    word_embed_proj_dim=32, backbone_hidden_size=32, num_hidden_layers=LAYERS, n_layer=LAYERS,
    n_layers=LAYERS, num_layers=LAYERS, num_blocks=LAYERS, decoder_layers=LAYERS, encoder_layers=LAYERS,
    num_decoder_layers=LAYERS, num_encoder_layers=LAYERS, num_attention_heads=4, n_head=4, n_heads=4,
    num_heads=4, decoder_attention_heads=4, encoder_attention_heads=4, num_encoder_attention_heads=4,
    num_decoder_attention_heads=4, num_key_value_heads=2, num_kv_heads=2, head_dim=8, d_head=8,
    dim_head=8, attention_head_size=8, kv_channels=8, swa_num_attention_heads=4,
    swa_num_key_value_heads=2, swa_head_dim=8, num_query_groups=4, intermediate_size=48, ffn_dim=48,
    decoder_ffn_dim=48, encoder_ffn_dim=48, n_inner=48, d_inner=48, dim_ff=48, dff=48,
    ffn_hidden_size=48, feed_forward_size=48, intermediate_size_mlp=48, dense_intermediate_size=48,
    prefix_dense_intermediate_size=48, expert_ffn_hidden_size=16, moe_intermediate_size=16,
    shared_expert_intermediate_size=16, shared_intermediate_size=16,
    shared_experts_intermediate_size=16, moe_shared_expert_intermediate_size=16, num_experts=4,
    n_routed_experts=4, num_local_experts=4, moe_num_experts=4, num_experts_per_tok=2,
    num_experts_per_token=2, moe_topk=2, moe_k=2, top_k_experts=2, n_group=1, topk_group=1,
    num_expert_group=1, zero_expert_num=2, router_hidden_size=16, max_position_embeddings=128,
    n_positions=128, n_ctx=128, max_seq_len=128, max_target_positions=128, context_length=128,
    original_max_position_embeddings=64, rotary_dim=4, q_lora_rank=16, kv_lora_rank=16,
    qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=8, o_lora_rank=8, o_groups=2, index_n_heads=16,
    index_head_dim=8, index_topk=4, index_block_size=4, index_topk_blocks=2, gated_norm_rank=4,
    hc_mult=2, hc_count=2, hc_lowrank=4, d_rel=4, rel_extent=16, loop_gate_rank=4, mamba_d_state=8,
    mamba_n_heads=8, mamba_d_head=8, mamba_d_ssm=64, mamba_chunk_size=4, mamba_dt_rank=4,
    mamba_num_heads=8, mamba_head_dim=8, mamba_headdim=16, n_mamba_heads=4, ssm_state_size=8,
    state_size=8, time_step_rank=4, mamba_n_groups=1, mamba_ngroups=1, n_groups=1, chunk_size=4,
    linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4,
    linear_head_dim=8, linear_num_heads=4, lru_width=32, attention_hidden_size=32, attention_head_dim=8,
    adapter_rank=4, laurel_rank=4, hidden_size_per_layer_input=8, ple_embed_dim=8,
    num_kv_shared_layers=1, initializer_range=0.3, init_std=0.3, initializer_factor=0.3,
    embed_init_std=0.3, image_size=8, patch_size=4, num_channels=3, num_mem_blocks=1,
    use_mamba_kernels=False, bos_token_id=1, eos_token_id=None, pad_token_id=None, cls_token_id=None,
    sep_token_id=None, decoder_start_token_id=None, unk_index=0, mask_index=0, use_cache=True,
    tie_word_embeddings=False, image_token_id=60, video_token_id=61, audio_token_id=62,
    image_token_index=60, boi_token_id=59, eoi_token_id=58, boi_token_index=59, eoi_token_index=58,
    boa_token_id=57, eoa_token_id=56, eoa_token_index=56, vision_start_token_id=55,
    vision_end_token_id=54, num_nextn_predict_layers=0, num_mtp_layers=0,
)  # fmt: skip

WINDOWS = (
    "sliding_window", "sliding_window_size", "attention_window_size", "attention_chunk_size", "window_size",
    "local_attention_window_len",
)  # fmt: skip

# What a class needs beyond that, by model type.
DECODERS = {
    "emu3": "emu3_text_model",
    "musicgen": "musicgen_decoder",
    "musicgen_melody": "musicgen_melody_decoder",
}
# Classes whose own default is refused by their own checks.
WITHOUT = {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "num_kv_shared_layers": LAYERS}
DEFAULTS = {
    "gemma4_assistant": {"text_config": {"model_type": "gemma4_text", "num_hidden_layers": LAYERS, **WITHOUT}}
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
PAD = dict(pad_token_id=0)
SPECIAL: dict[str, dict[str, Any]] = {
    "bamba": dict(attn_layer_indices=[1, 3]),
    "blt": dict(encoder_hash_byte_group_vocab=VOCABULARY, encoder_hash_byte_group_size=[3]),
    "blt_local_encoder": dict(hidden_size_global=32, num_hidden_layers=1, num_key_value_heads=None),
    "blt_local_decoder": dict(hidden_size_global=32, num_key_value_heads=None),
    "blt_global_transformer": dict(num_key_value_heads=None),
    "blt_patcher": dict(num_key_value_heads=None, num_hidden_layers=2),
    "camembert": PAD, "data2vec-text": PAD, "roberta": PAD, "roberta-prelayernorm": PAD, "xlm-roberta": PAD,
    "xlm-roberta-xl": PAD, "prophetnet": PAD, "gemma4_unified_text": PAD,
    "cohere_compass_text": dict(
        layer_types=["full_attention", "sliding_attention"] * 2,
        rope_parameters={
            "full_attention": {**ROPE, "mrope_section": [2, 1, 1]},
            "sliding_attention": {**ROPE, "mrope_section": [2, 1, 1]},
        },
    ),
    "dbrx": dict(
        attn_config=dict(kv_n_heads=2, clip_qkv=8.0, rope_theta=10000.0),
        ffn_config=dict(hidden_size=32, ffn_hidden_size=16, moe_num_experts=4, moe_top_k=2),
        rope_parameters=ROPE,
    ),
    "dots1": dict(n_shared_experts=1, first_k_dense_replace=1),
    "dots3_note_text": dict(
        num_key_value_heads=4, swa_num_attention_heads=4, swa_num_key_value_heads=4, swa_head_dim=12,
        swa_kv_lora_rank=16, swa_qk_nope_head_dim=8, swa_q_lora_rank=16, swa_v_head_dim=8,
    ),
    "gemma4_text": dict(pad_token_id=0, per_layer_config={"01": {"head_dim": 16}, "03": {"head_dim": 16}}),
    "gpt_neo": dict(attention_types=[[["global", "local"], 2]], attention_layers=...),
    "dory": dict(
        num_hidden_layers=8, layer_types=["sliding_attention", "mlp", "full_attention", "mlp"] * 2,
        n_input_layers=2, n_recurrent_layers=4, n_output_layers=2,
    ),
    "granitemoehybrid": dict(layer_types=["linear_attention", "full_attention"] * 2),
    "lfm2": dict(layer_types=["conv", "full_attention"] * 2, full_attn_idxs=...),
    "jamba": dict(attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1),
    "lfm2_moe": dict(layer_types=["conv", "full_attention"] * 2),
    "mamba2": dict(num_heads=8),
    "reformer": dict(
        axial_pos_shape=[8, 16], axial_pos_embds_dim=[16, 16], attn_layers=["local"] * LAYERS,
        local_attn_chunk_length=8, lsh_attn_chunk_length=8, pad_token_id=0,
    ),
    "roc_bert": dict(
        pronunciation_vocab_size=VOCABULARY, shape_vocab_size=VOCABULARY, pronunciation_embed_dim=8,
        shape_embed_dim=8,
    ),
    "longcat_flash": dict(head_dim=4),
    "musicgen_decoder": dict(num_codebooks=1), "musicgen_melody_decoder": dict(num_codebooks=1),
    "qwen4_exp_text": dict(
        indexer_n_heads=16, indexer_kv_heads=1, indexer_head_dim=8, indexer_budget=8,
        indexer_compress_ratio=4,
    ),
    "xlm": PAD,
    "xlstm": dict(hidden_size=64, embedding_dim=64, qk_dim_factor=1.0),
    "xmod": dict(languages=["en_XX"], default_language="en_XX", pad_token_id=0),
    "zamba": dict(attn_layer_period=2, attn_layer_offset=1, attention_hidden_size=64, attention_head_dim=16),
    "zamba2": dict(
        hybrid_layer_ids=[1, 3], layers_block_type=["linear_attention", "hybrid"] * 2, num_key_value_heads=4,
        attention_hidden_size=64, attention_head_dim=16,
    ),
    "zaya": dict(num_experts_per_tok=1),
}  # fmt: skip


def cycled(kinds: list[str], count: int = LAYERS) -> list[str]:
    """All kinds of a list, in order of their first place, repeated to `count` layers."""
    distinct = list(dict.fromkeys(kinds))
    return [distinct[i % len(distinct)] for i in range(count)]


def settings(default: Any, changes: dict[str, Any] | None = None, window: int = WINDOW) -> dict[str, Any]:
    """The arguments of a tiny configuration, from the class's own default."""
    known = {**default.to_dict(), **{name: None for name in getattr(default, "attribute_map", {})}}
    names = getattr(default, "attribute_map", {})
    values = {**GENERIC, **dict.fromkeys(WINDOWS, window), "local_attention": 2 * window}
    chosen = {name: value for name, value in values.items() if name in known and name not in names}
    if hasattr(default, "is_decoder") and not default.is_encoder_decoder:
        chosen["is_decoder"] = True
    for name in ("layer_types", "mlp_layer_types", "layers_block_type", "layer_type_list", "indexer_types"):
        kinds = getattr(default, name, None)
        if isinstance(kinds, (list, tuple)) and kinds and name not in names:
            chosen[name] = cycled(list(kinds))
    for name, value in vars(default).items():
        if name.endswith("_config") and hasattr(value, "to_dict") and name not in chosen:
            kind = value.model_type
            chosen[name] = {**settings(value, SPECIAL.get(kind), window), "model_type": kind}
            chosen[name].pop("is_decoder", None)
            if getattr(value, "hidden_size_per_layer_input", None) == 0:
                chosen[name].update(WITHOUT)
    if "kv_lora_rank" in chosen:  # keys are made from the latent: one per head
        chosen["num_key_value_heads"] = 4
        chosen.pop("head_dim", None)
    for name in list(chosen):  # what follows from other attributes
        if isinstance(getattr(type(default), names.get(name, name), None), property):
            del chosen[name]
    fields = getattr(type(default), "__dataclass_fields__", {})
    for name in [name for name, value in chosen.items() if value is None]:
        if name in fields and "None" not in str(fields[name].type):
            chosen[name] = 0
    chosen.update(changes or {})
    return {name: value for name, value in chosen.items() if value is not ...}


def config(model_type: str, window: int = WINDOW) -> Any:
    """The tiny configuration of a model type."""
    model_type = DECODERS.get(model_type, model_type)
    kind = CONFIG_MAPPING[model_type]
    default = kind(**DEFAULTS.get(model_type, {}))
    return kind(**settings(default, SPECIAL.get(model_type), window))


def class_of(model_type: str) -> type:
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[model_type]]
    return kind[0] if isinstance(kind, tuple) else kind


@torch.no_grad()
def enliven(model: nn.Module, scale: float = 0.3) -> None:
    """Weights large enough that every token shows in the logits, however the class initialises itself."""
    for parameter in model.parameters():
        if parameter.dim() >= 2 and parameter.is_floating_point():
            spread = float(parameter.std()) if parameter.numel() > 1 else 1.0
            if not spread > 0.1:
                parameter.normal_(0.0, scale)


@torch.no_grad()
def silence_padding(model: nn.Module) -> None:
    """Padding is never written, as it is not by a trained model; some classes number positions by it."""
    head, pad = model.get_output_embeddings(), getattr(model.config, "pad_token_id", None)
    if pad is not None and isinstance(getattr(head, "bias", None), torch.Tensor):
        head.bias[pad] = -1e4


def build(model_type: str, window: int = WINDOW) -> nn.Module:
    """A tiny model of a type, in eval mode, whose windows, if it has any, are `window` tokens long."""
    torch.manual_seed(SEED)
    model = class_of(model_type)(config(model_type, window))
    enliven(model)
    silence_padding(model)
    model.generation_config = GenerationConfig(pad_token_id=getattr(model.config, "pad_token_id", None))
    return model.float().eval()


def model_types() -> list[str]:
    """One model type for every causal class, the one of its text where a class has several."""
    chosen: dict[str, str] = {}
    for model_type, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        if name not in chosen or model_type.endswith("_text") or model_type == "llama":
            chosen[name] = model_type
    return list(chosen.values())
