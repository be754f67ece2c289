# SPDX-License-Identifier: Apache-2.0
"""A step of TensorRT-LLM's dynamic trees: what `verify` is given in one launch, and what it found in another,
of a program per request each. Torch's operators would take more than ten."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dispatch import Launch, device_of
from .links import enter_tree


@cache
def _begin(device: Any, greedy_up_to: float, *dtypes: torch.dtype) -> Launch:
    return Launch(_dynamic_begin_kernel, device, dict(GREEDY_UP_TO=greedy_up_to, NODES=64), num_warps=1)


@cache
def _end(device: Any) -> Launch:
    return Launch(_dynamic_end_kernel, device, dict(BLOCK=64), num_warps=1)


def begin_dynamic_trees(given: tuple[Tensor, ...], out: tuple[Tensor, ...], greedy_up_to: float) -> None:
    """Tokens [B, N - 1], first children and next siblings [B, N], temperatures [B], a seed and an offset [1]:
    into tokens, parents and links [R] of a tree; temperatures, 0 up to a bound, and seeds [B]."""
    tokens, *others = given
    batch, nodes = others[0].shape
    if batch and nodes:
        if tokens.stride(1) != 1:
            tokens = tokens.contiguous()
        launch = _begin(device_of(tokens), greedy_up_to, *[tensor.dtype for tensor in given])
        contiguous = [tensor.contiguous() for tensor in others]
        launch((batch, 1, 1), tokens, tokens.stride(0), *contiguous, *out, nodes)


def end_dynamic_trees(found: Any, path: Tensor, accepted: Tensor, tokens: Tensor) -> None:
    """What `verify` found, with int32 tokens: into nodes [B, W], accepted tokens [B] and tokens [B, W] int64,
    with 0 for -1."""
    batch, width = path.shape
    if batch:
        out = path, accepted, tokens
        _end(device_of(path))((batch, 1, 1), found.path, found.num_accepted, found.tokens, *out, width)


@triton.jit(do_not_specialize=["nodes"])
def _dynamic_begin_kernel(
    tokens_ptr,  # [B, nodes - 1]
    tokens_stride,
    next_token_ptr,  # [B, nodes]
    next_sibling_ptr,  # [B, nodes]
    temperatures_ptr,  # [B]
    seed_ptr,  # [1]
    offset_ptr,  # [1]
    out_tokens_ptr,  # [R]
    out_parents_ptr,  # [R]
    out_first_child_ptr,  # [R]
    out_next_sibling_ptr,  # [R]
    out_temperatures_ptr,  # [B]
    out_seeds_ptr,  # [B]
    nodes,
    GREEDY_UP_TO: tl.constexpr,
    NODES: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    temperature = tl.load(temperatures_ptr + b).to(tl.float32)
    tl.store(out_temperatures_ptr + b, tl.where(temperature <= GREEDY_UP_TO, 0.0, temperature))
    seed = tl.load(seed_ptr).to(tl.int64) + (tl.load(offset_ptr).to(tl.int64) << 32)
    tl.store(out_seeds_ptr + b, seed)
    enter_tree(
        b,
        tokens_ptr, tokens_stride, next_token_ptr, next_sibling_ptr,
        out_tokens_ptr, out_parents_ptr, out_first_child_ptr, out_next_sibling_ptr,
        nodes, nodes - 1, NODES,
    )  # fmt: skip


@triton.jit(do_not_specialize=["width"])
def _dynamic_end_kernel(
    path_ptr,  # [B, width]
    accepted_ptr,  # [B]
    tokens_ptr,  # [B, width]
    out_path_ptr,  # [B, width]
    out_accepted_ptr,  # [B]
    out_tokens_ptr,  # [B, width]
    width,
    BLOCK: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    tl.store(out_accepted_ptr + b, tl.load(accepted_ptr + b).to(tl.int64))
    for begin in range(0, width, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        inside, entry = place < width, b * width + place
        node, token = tl.load(path_ptr + entry, mask=inside), tl.load(tokens_ptr + entry, mask=inside)
        tl.store(out_path_ptr + entry, tl.maximum(node, 0).to(tl.int64), mask=inside)
        tl.store(out_tokens_ptr + entry, tl.maximum(token, 0).to(tl.int64), mask=inside)
