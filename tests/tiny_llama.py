# SPDX-License-Identifier: Apache-2.0
"""A Llama with random weights for tests of the demo's engine."""

from __future__ import annotations

import torch

from demo.llama import Llama, Shape

VOCAB, WIDTH, EOS = 50, 32, 7
SHAPE = Shape(
    layers=2, heads=4, kv_heads=2, head_size=8, norm_epsilon=1e-5, rope_theta=1e4, max_positions=512
)
NORMS = ("input_layernorm", "post_attention_layernorm")


def random_weights(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def weight(*size):
        return torch.randn(size, generator=generator) / size[-1] ** 0.5

    weights = {"model.embed_tokens.weight": 4 * weight(VOCAB, WIDTH), "model.norm.weight": torch.ones(WIDTH)}
    rows = {"q": SHAPE.heads, "k": SHAPE.kv_heads, "v": SHAPE.kv_heads}
    for number in range(SHAPE.layers):
        layer = {f"self_attn.{name}_proj": weight(heads * 8, WIDTH) for name, heads in rows.items()}
        layer["self_attn.o_proj"] = weight(WIDTH, SHAPE.heads * 8)
        layer |= {"mlp.gate_proj": weight(48, WIDTH), "mlp.up_proj": weight(48, WIDTH)}
        layer["mlp.down_proj"] = weight(WIDTH, 48)
        layer |= {name: torch.rand(WIDTH, generator=generator) + 0.5 for name in NORMS}
        weights |= {f"model.layers.{number}.{name}.weight": value for name, value in layer.items()}
    return weights


WEIGHTS = random_weights(1)
MODEL = Llama(SHAPE, WEIGHTS)
