# SPDX-License-Identifier: Apache-2.0
"""The arguments of a call, checked without reading values."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._checks import BackendUnavailable, bad_type, bad_value, check_bool, check_tensor, check_type
from .._memory import check_last_stride
from ..ends import Ends
from ..reporting import Logprobs
from ..sampling import Numbers
from ..tree import DraftTree
from .edits import Edits
from .nodes import Nodes
from .shard import VocabShard

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Call(NamedTuple):
    """Of `verify`. Sampling parameters are as `unpack` returns them."""

    shard: VocabShard
    target_logits: Tensor  # [R, size], the rows of nodes
    tree: DraftTree
    draft_logits: Tensor | None  # [Rq, Vd] or [B, K, Vd]
    draft_rows: Tensor | None
    draft_columns: Tensor | None  # [size] int32 of the draft's columns, -1 = none
    sampling: Numbers
    draft_sampling: Numbers
    draft_form: str  # "logits", "logprobs" or "probs"
    token_bitmask: Tensor | None
    seeds: Tensor
    positions: Tensor
    nodes: Nodes
    bonus: Tensor | None  # [B] int64, -1 = none
    edits: Edits | None
    ends: Ends | None
    rates: Tensor  # [D], of `Synthetic`


def check_shard(operation: str, shard: object, argument: str, width: int) -> None:
    """Raise unless `shard` is a `VocabShard` of the `width` that the rows of `argument` have."""
    check_type(operation, "shard", shard, VocabShard, "a VocabShard")
    assert isinstance(shard, VocabShard)
    if width != shard.size:
        bad_value(operation, argument, f"must have size = {shard.size} columns, those of the shard", width)


def refuse(operation: str, unserved: dict[str, Any], whole: Callable[..., Any]) -> None:
    """Raise if there are arguments that only the operation on whole rows takes, or that none takes."""
    for name, value in unserved.items():
        if name not in inspect.signature(whole).parameters:
            bad_type(operation, name, "is no argument", type(value).__name__)
        raise BackendUnavailable(f"{operation}: {name} is not served with shards")


def check_logprobs(operation: str, return_logprobs: object) -> None:
    """Raise unless `return_logprobs` is a bool."""
    if isinstance(return_logprobs, Logprobs):
        raise BackendUnavailable(f"{operation}: Logprobs is not served with shards")
    check_bool(operation, "return_logprobs", return_logprobs)


def check_keys(operation: str, seeds: object, positions: object) -> None:
    """Raise unless both are given: every process would draw its own seeds."""
    for argument, value in (("seeds", seeds), ("positions", positions)):
        if value is None:
            bad_value(operation, argument, "must be given, the same in every process", None)


def check_bitmask(
    operation: str, bitmask: Tensor | None, rows: int, shard: VocabShard, device: torch.device
) -> None:
    """The words of the shard, [rows, ceil(size / 32)] int32; or None."""
    if bitmask is None:
        return
    if shard.start % 32:
        bad_value(operation, "shard.start", "must be a multiple of 32 with token_bitmask", shard.start)
    shape = (rows, (shard.size + 31) // 32)
    check_tensor(
        operation, "token_bitmask", bitmask, "[rows, ceil(size / 32)]", shape, (torch.int32,), device
    )
    check_last_stride(operation, "token_bitmask", bitmask)
