# SPDX-License-Identifier: Apache-2.0
"""Verification steps of TensorRT-LLM's PyTorch backend by `verify`, for a patch.

TensorRT-LLM has no hook for a verifier. Names, shapes and meanings are those of its main branch after pull
request 15098 (2026-06-08). `fill_tensorrt_llm` fills the packed arrays of the C++ decoder.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import FLOATS, INTEGERS, check_tensor
from .._kept import kept, kept_by_thread
from .._ops import backends
from ..sampling import SamplingParams
from ..tree import DraftTree
from ..verification import empty_outputs, verify
from .steps import Outputs, chain_of_step, linked, links_of_step, outputs_of_step

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
        tensors. The first call compiles kernels, before a capture. Trees and what `verify` fills are kept for
        every size: the steps of a thread have to follow each other in one stream.

    Example:
        >>> first, after = torch.tensor([[1, -1, -1]]), torch.tensor([[-1, 2, -1]])
        >>> target = torch.eye(5)[[4, 0, 2]]
        >>> index, count, tokens = verify_dynamic_tree_rejection_out(
        ...     torch.tensor([[3, 4]]), target, first, after, None, torch.zeros(1), None, None, 1, 2
        ... )
        >>> index.tolist(), count.tolist(), tokens.tolist()
        ([[0, 2]], [1], [[4, 2]])
    """
    call, device = "verify_dynamic_tree_rejection_out", draft_tokens.device
    nodes = retrieve_next_token.shape[-1]
    for argument, value, symbols, shape, dtypes in (
        ("draft_tokens", draft_tokens, "[G, N - 1]", (num_gens, nodes - 1), INTEGERS),
        ("retrieve_next_token", retrieve_next_token, "[G, N]", (num_gens, nodes), INTEGERS),
        ("retrieve_next_sibling", retrieve_next_sibling, "[G, N]", (num_gens, nodes), INTEGERS),
        ("temperatures", temperatures, "[G]", (num_gens,), FLOATS),
    ):
        check_tensor(call, argument, value, symbols, shape, dtypes, device)
    for argument, number in (("seed", seed), ("offset", offset)):
        if isinstance(number, Tensor):
            check_tensor(call, argument, number, "[1]", (1,), INTEGERS, device)
    if tree_valid is not None:
        draft_tokens = draft_tokens.masked_fill(~tree_valid.unsqueeze(1), -1)
    step = _step(num_gens, nodes, num_spec_step, device)
    given = draft_tokens, retrieve_next_token, retrieve_next_sibling, temperatures
    kernels = backends.filler("begin_dynamic_trees", "auto", *given)
    if kernels is None:
        tree = links_of_step(*given[:3], num_spec_step - 1)
        step.temperatures.copy_(torch.threshold(temperatures, GREEDY_UP_TO, 0.0))
        step.seeds.copy_(_seeds(seed, offset, num_gens, device))
    else:
        tree, noise = step.tree, (_number(seed, device), _number(offset, device))
        kernels.begin_dynamic_trees((*given, *noise), step.begun, GREEDY_UP_TO)
    verify(
        target_logits_tree,
        tree,
        sampling=SamplingParams(
            step.temperatures, 0 if top_k is None else top_k, 1.0 if top_p is None else top_p
        ),
        rule="match",
        seeds=step.seeds,
        positions=step.positions,
        out=step.out.verified,
    )
    size = num_gens, num_spec_step
    if kernels is None:
        found, grid = torch.maximum(step.out.buffer, _zero(device)), num_gens * num_spec_step
        tokens, accepted, path = found.split_with_sizes((grid, num_gens, grid))
        return path.view(size), accepted, tokens.view(size)
    path, tokens = (torch.empty(size, dtype=torch.int64, device=device) for _ in range(2))
    accepted = torch.empty(num_gens, dtype=torch.int64, device=device)
    kernels.end_dynamic_trees(step.out.verified, path, accepted, tokens)
    return path, accepted, tokens


class _Step(NamedTuple):
    """What steps of one size share."""

    tree: DraftTree
    temperatures: Tensor
    seeds: Tensor
    positions: Tensor
    out: Outputs
    begun: tuple[Tensor, ...]
    """What is written before `verify`: tokens, parents and links, temperatures and seeds."""


@kept_by_thread
def _step(batch: int, nodes: int, width: int, device: torch.device) -> _Step:
    tree, positions = linked(batch, nodes, width - 1, device), _positions(batch, width, device)
    temperatures, seeds = torch.zeros(batch, device=device), torch.zeros_like(positions)
    begun = tree.tokens, tree.parents, *(tree.links or ()), temperatures, seeds
    return _Step(tree, temperatures, seeds, positions, outputs_of_step(batch, width, device), begun)


def _number(number: int | Tensor, device: torch.device) -> Tensor:
    """[1]."""
    if isinstance(number, Tensor):
        return number
    return torch.full((1,), number, dtype=torch.int64, device=device) if number else _zero(device)


@kept
def _zero(device: torch.device) -> Tensor:
    """[1] int64."""
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
        seeds = _seeds(seed, 0 if offset is None else offset, batch, target_probs.device)
        positions = _positions(batch, width, target_probs.device)
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


def _seeds(seed: int | Tensor, offset: int | Tensor, batch: int, device: torch.device) -> Tensor:
    """[B] int64, of requests that share one seed, a number below 2^32."""
    if isinstance(offset, Tensor) or offset:
        seed = seed + offset * 2**32
    return _zeros(batch, device) + seed


@kept
def _zeros(batch: int, device: torch.device) -> Tensor:
    return torch.zeros(batch, dtype=torch.int64, device=device)


@kept
def _positions(batch: int, width: int, device: torch.device) -> Tensor:
    """[B] int64. A request has `width` for itself, so that no two requests have random numbers in common."""
    return torch.arange(batch, device=device) * width
