# SPDX-License-Identifier: Apache-2.0
"""Verification steps of TensorRT-LLM's PyTorch backend by `verify`, for a patch.

TensorRT-LLM has no hook for a verifier. Names, shapes and meanings are those of its main branch after pull
request 15098 (2026-06-08). `fill_tensorrt_llm` fills the packed arrays of the C++ decoder.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import INTEGERS, check_tensor
from .._kept import kept
from ..sampling import SamplingParams
from ..verification import empty_outputs, verify
from .steps import chain_of_step, links_of_step, outputs_of_step

GREEDY_UP_TO = 1e-4  # temperatures that TensorRT-LLM takes for 0


def verify_dynamic_tree_rejection_out(
    draft_tokens: Tensor,
    target_logits_tree: Tensor,
    retrieve_next_token: Tensor,
    retrieve_next_sibling: Tensor,
    tree_valid: Tensor | None,
    temperatures: Tensor,
    top_k: Tensor | None,
    top_p: Tensor | None,
    num_gens: int,
    num_spec_step: int,
    seed: int | Tensor = 0,
    offset: int | Tensor = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """What the method of this name of `DynamicTreeOpsConverter` computes, for dynamic trees of EAGLE-3.

    Args:
        draft_tokens: [G, N - 1] integers, without roots.
        target_logits_tree: [G * N, V].
        retrieve_next_token, retrieve_next_sibling: [G, N] integers, first child and next sibling, -1 = none.
        tree_valid: [G] bool; a request without a valid tree gets one token. None: all are valid.
        temperatures, top_k, top_p: [G]; a temperature up to 1e-4 is greedy.
        num_gens: G.
        num_spec_step: the largest number of tokens that a step emits.
        seed, offset: numbers, or [1] int64, which TensorRT-LLM changes at every step. They key the random
            numbers, with the place of the request and the depth.

    Returns:
        accept_index [G, num_spec_step] int64, the root's 0, accepted nodes, then 0; accept_token_num [G]
        int64, accepted tokens, the next one not counted; accept_token [G, num_spec_step] int64, accepted
        tokens and the next one, then 0.

    Raises:
        ValueError: wrong shapes.
        TypeError: wrong dtypes or devices.

    Notes:
        Rule `match`. Never synchronises, and can be captured in a CUDA graph if `seed` and `offset` are
        tensors.

    Example:
        >>> first, after = torch.tensor([[1, -1, -1]]), torch.tensor([[-1, 2, -1]])
        >>> target = torch.eye(5)[[4, 0, 2]]
        >>> index, count, tokens = verify_dynamic_tree_rejection_out(
        ...     torch.tensor([[3, 4]]), target, first, after, None, torch.zeros(1), None, None, 1, 2
        ... )
        >>> index.tolist(), count.tolist(), tokens.tolist()
        ([[0, 2]], [1], [[4, 2]])
    """
    call, device, nodes = (
        "verify_dynamic_tree_rejection_out",
        draft_tokens.device,
        retrieve_next_token.shape[-1],
    )
    for argument, value, symbols, columns in (
        ("draft_tokens", draft_tokens, "[G, N - 1]", nodes - 1),
        ("retrieve_next_token", retrieve_next_token, "[G, N]", nodes),
        ("retrieve_next_sibling", retrieve_next_sibling, "[G, N]", nodes),
    ):
        check_tensor(call, argument, value, symbols, (num_gens, columns), INTEGERS, device)
    if tree_valid is not None:
        draft_tokens = draft_tokens.masked_fill(~tree_valid.unsqueeze(1), -1)
    tree = links_of_step(draft_tokens, retrieve_next_token, retrieve_next_sibling, num_spec_step - 1)
    seeds, positions = _noise(seed, offset, num_gens, num_spec_step, target_logits_tree.device)
    out = outputs_of_step(num_gens, num_spec_step, target_logits_tree.device)
    verify(
        target_logits_tree,
        tree,
        sampling=SamplingParams(
            temperature=torch.threshold(temperatures, GREEDY_UP_TO, 0.0),
            top_k=0 if top_k is None else top_k,
            top_p=1.0 if top_p is None else top_p,
        ),
        rule="match",
        seeds=seeds,
        positions=positions,
        out=out.verified,
    )
    found = torch.maximum(out.buffer, _zero(out.buffer.device))
    shape, strides, grid = (num_gens, num_spec_step), (num_spec_step, 1), num_gens * num_spec_step
    tokens, accepted = found.as_strided(shape, strides), found.as_strided((num_gens,), (1,), grid)
    return found.as_strided(shape, strides, grid + num_gens), accepted, tokens


@kept
def _zero(device: torch.device) -> Tensor:
    """[1] int64, which makes other integers int64 too."""
    return torch.zeros(1, dtype=torch.int64, device=device)


def rejection_sampling_one_model(
    draft_probs: Tensor,
    draft_token_ids: Tensor,
    target_probs: Tensor,
    deterministic: bool = True,
    seed: int | Tensor | None = None,
    offset: int | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What the function of this name in `tensorrt_llm._torch.speculative.interface` computes, for chains.

    Args:
        draft_probs: [B, K, V] float32, the law of every drafted token, over the target's vocabulary.
        draft_token_ids: [B, K] integers.
        target_probs: [B, K + 1, V] float32, after temperature and cuts.
        deterministic: not read: results with a seed are the same in every run.
        seed, offset: as of `verify_dynamic_tree_rejection_out`; None: fresh random numbers.

    Returns:
        accepted_tokens [B, K + 1] int32, accepted tokens and the next one, then -1; num_accepted_tokens [B]
        int32, the next one counted.

    Raises:
        ValueError: wrong shapes.
        TypeError: wrong dtypes or devices.

    Notes:
        Rule `traversal`, block verification, which accepts at least as much as rejection token by token.
        Never synchronises.

    Example:
        >>> target = torch.eye(4)[torch.tensor([[2, 3, 1]])]
        >>> rejection_sampling_one_model(target[:, :2], torch.tensor([[2, 3]]), target)
        (tensor([[2, 3, 1]], dtype=torch.int32), tensor([3], dtype=torch.int32))
    """
    batch, width = target_probs.shape[:2]
    seeds = positions = None
    if seed is not None:
        seeds, positions = _noise(seed, 0 if offset is None else offset, batch, width, target_probs.device)
    verified = verify(
        target_probs.log(),
        chain_of_step(draft_token_ids),
        draft_probs,
        draft_sampling="probs",
        seeds=seeds,
        positions=positions,
        out=empty_outputs(batch, width, target_probs.device, torch.int32),
    )
    return verified.tokens, verified.num_tokens


def _noise(
    seed: int | Tensor, offset: int | Tensor, batch: int, width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Seeds and positions [B] of requests that share one seed, a number below 2^32.

    A request has `width` positions for itself, so that no two requests have random numbers in common.
    """
    seeds, positions = _first_noise(batch, width, device)
    if isinstance(offset, Tensor) or offset:
        seed = seed + offset * 2**32
    return seeds + seed, positions


@kept
def _first_noise(batch: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Those of seed and offset 0."""
    places = torch.arange(batch, device=device)
    return torch.zeros_like(places), places * width
