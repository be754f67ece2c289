# SPDX-License-Identifier: Apache-2.0
"""A Llama forward in plain torch over a batch of token trees, with keys and values in pages.

A chain is a tree too, so the same forward reads prompts, decodes one token or verifies a draft.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import specdec_kernels as sdk

if TYPE_CHECKING:
    from transformers import LlamaConfig


class Shape(NamedTuple):
    """What the sizes of the weights do not tell."""

    layers: int
    heads: int
    kv_heads: int
    head_size: int
    norm_epsilon: float
    rope_theta: float
    max_positions: int

    @classmethod
    def of(cls, config: LlamaConfig) -> Shape:
        return cls(
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_size=config.hidden_size // config.num_attention_heads,
            norm_epsilon=config.rms_norm_eps,
            rope_theta=config.rope_parameters["rope_theta"],
            max_positions=config.max_position_embeddings,
        )


class PagedCache:
    """Keys and values of every layer in pages: [pages, page_size, kv_heads, head_size]."""

    def __init__(self, shape: Shape, pages: int, page_size: int, dtype: torch.dtype = torch.float32):
        size = (pages, page_size, shape.kv_heads, shape.head_size)
        self.page_size = page_size
        self.keys = [torch.zeros(size, dtype=dtype) for _ in range(shape.layers)]
        self.values = [torch.zeros(size, dtype=dtype) for _ in range(shape.layers)]
        self.plan = sdk.CachePlan([*self.keys, *self.values], page_size=page_size)


class Batch(NamedTuple):
    """The trees of one forward and where their requests keep keys and values."""

    tree: sdk.DraftTree  # R rows
    block_table: Tensor  # [B, P] int32
    prefix_lens: Tensor  # [B] int32, positions in the cache before the root

    def places(self, page_size: int) -> tuple[Tensor, Tensor]:
        """Position and cache slot of every row, both [R] int64.

        A node stands as deep in the text as in its tree, but has a slot of its own.
        """
        cu_nodes = self.tree.cu_nodes.long()
        request = torch.repeat_interleave(cu_nodes.diff())
        prefix = self.prefix_lens.long()[request]
        index = prefix + torch.arange(len(request)) - cu_nodes[request]
        page = self.block_table[request, index // page_size].long()
        return prefix + self.tree.depths, page * page_size + index % page_size


class Linear:
    """x @ weight.T. A few rows should cost what one does, the time to read the weight; on a CPU they do where
    oneDNN may keep the weight in an order of its own."""

    def __init__(self, weight: Tensor):
        self.weight = weight
        self.packed = None
        if torch.backends.mkldnn.is_available() and weight.dtype == torch.float32 and weight.is_cpu:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, 8)

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed is None:
            return F.linear(x, self.weight)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")
        return product


class Layer(NamedTuple):
    attention_norm: Tensor
    query_key_value: Linear  # stacked: one product instead of three
    attention_out: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], number: int) -> Layer:
        def weight(*names: str) -> Tensor:
            return torch.cat([weights[f"model.layers.{number}.{name}.weight"] for name in names])

        return cls(
            weight("input_layernorm"),
            Linear(weight("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            Linear(weight("self_attn.o_proj")),
            weight("post_attention_layernorm"),
            Linear(weight("mlp.gate_proj", "mlp.up_proj")),
            Linear(weight("mlp.down_proj")),
        )


class Llama:
    """Weights under the names that transformers gives them; without `lm_head.weight` the head is tied."""

    def __init__(self, shape: Shape, weights: Mapping[str, Tensor]):
        self.shape = shape
        self.embedding = weights["model.embed_tokens.weight"]
        self.layers = [Layer.of(weights, number) for number in range(shape.layers)]
        self.norm = weights["model.norm.weight"]
        self.head = Linear(weights.get("lm_head.weight", self.embedding))
        exponents = torch.arange(0, shape.head_size, 2).float() / shape.head_size
        angles = torch.outer(torch.arange(shape.max_positions).float(), shape.rope_theta**-exponents)
        self.cos = torch.cat([angles.cos(), angles.cos()], dim=1).unsqueeze(1)
        self.sin = torch.cat([-angles.sin(), angles.sin()], dim=1).unsqueeze(1)

    @torch.inference_mode()
    def forward(self, batch: Batch, cache: PagedCache) -> Tensor:
        """[R, width]: what the head reads. Writes every node's key and value to the cache, in its slot."""
        positions, slots = batch.places(cache.page_size)
        rotation = self.cos[positions], self.sin[positions]
        x = self.embedding[batch.tree.tokens]
        for layer, keys, values in zip(self.layers, cache.keys, cache.values, strict=True):
            query, key, value = self._project(layer, x, rotation)
            keys.flatten(0, 1).index_copy_(0, slots, key)
            values.flatten(0, 1).index_copy_(0, slots, value)
            mixed = sdk.tree_attention(query, keys, values, batch.tree, batch.block_table, batch.prefix_lens)
            x = x + layer.attention_out(mixed.flatten(1))
            gate, up = layer.gate_up(self._normed(x, layer.mlp_norm)).chunk(2, dim=1)
            x = x + layer.down(F.silu(gate) * up)
        return x

    @torch.inference_mode()
    def logits(self, x: Tensor) -> Tensor:
        return self.head(self._normed(x, self.norm))

    def _project(self, layer: Layer, x: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Queries, keys and values, [R, heads, head_size] each, the first two rotated by position."""
        heads, kv_heads, head_size = self.shape.heads, self.shape.kv_heads, self.shape.head_size
        stacked = layer.query_key_value(self._normed(x, layer.attention_norm))
        stacked = stacked.view(len(x), heads + 2 * kv_heads, head_size)
        turning, value = stacked.split([heads + kv_heads, kv_heads], dim=1)
        cos, sin = rotation
        turned = turning * cos + turning.roll(head_size // 2, dims=-1) * sin
        query, key = turned.split([heads, kv_heads], dim=1)
        return query, key, value

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.shape.norm_epsilon)
