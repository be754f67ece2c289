# SPDX-License-Identifier: Apache-2.0
"""What `verify` found, written into the arrays that engines keep for it, in place: by a few operators of
torch, or by one launch.

Neither function reads a value on the host, so both can be captured in a CUDA graph behind `verify`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import bad_value, check_device, check_dim, check_dtype, check_tensor, check_type
from .._kept import kept
from .._ops import backends
from ..tree import DraftTree
from ..verification import Verified

_INTEGERS = (torch.int32, torch.int64)


def fill_sglang(
    verified: Verified,
    tree: DraftTree,
    *,
    predicts: Tensor,
    accept_index: Tensor,
    accept_token_num: Tensor,
) -> None:
    """Fill the arrays that SGLang's `verify_tree_greedy` and its target-only sampling fill.

    Args:
        verified: what `verify` returned for `tree`.
        tree: of R nodes.
        predicts: [R] or [R + 1], int32 | int64. The row of each kept node receives the token after that
            node. Other rows keep what they hold. Row R may receive anything; with it nothing is copied.
        accept_index: [B, max_depth + 1] int32 | int64: rows of the kept nodes, the root's first, then -1.
        accept_token_num: [B] int32 | int64: accepted tokens, the next token not counted.

    Raises:
        ValueError: wrong shapes.
        TypeError: wrong types, dtypes or devices.

    Notes:
        An empty request has -1 in all of `accept_index`, and 0. On a GPU paths take one launch, of a kernel
        that `warmup(links=[True])` or the first call compiles, before a capture.

    Source: SGLang's `tree_speculative_sampling_target_only`, as of November 2026.

    Example:
        >>> import specdec_kernels as sdk
        >>> tree = sdk.DraftTree.from_parents(torch.tensor([[-1, 5, 6, 7]]), torch.tensor([[-1, 0, 0, 2]]))
        >>> target = torch.eye(9)[[6, 0, 8, 0]]
        >>> verified = sdk.verify(target, tree, sampling=sdk.SamplingParams(temperature=0.0))
        >>> predicts, count = torch.zeros(4).int(), torch.zeros(1).int()
        >>> index = torch.zeros(1, 3).int()
        >>> fill_sglang(verified, tree, predicts=predicts, accept_index=index, accept_token_num=count)
        >>> predicts.tolist(), index.tolist(), count.tolist()
        ([6, 0, 8, 0], [[0, 2, -1]], [1])
    """
    call = "fill_sglang"
    path = _path_of(call, verified)
    check_type(call, "tree", tree, DraftTree, "a DraftTree")
    check_tensor(call, "tree.cu_nodes", tree.cu_nodes, "[B + 1]", (len(path) + 1,), _INTEGERS, path.device)
    rows = tree.tokens.shape[0]
    check_dtype(call, "predicts", predicts, _INTEGERS)
    check_device(call, "predicts", predicts, path.device)
    if predicts.dim() != 1 or predicts.shape[0] not in (rows, rows + 1):
        rule = f"must have shape [R] = [{rows}] or [R + 1]"
        bad_value(call, "predicts", rule, list(predicts.shape))
    for argument, value, symbols, shape in (
        ("accept_index", accept_index, "[B, max_depth + 1]", path.shape),
        ("accept_token_num", accept_token_num, "[B]", (len(path),)),
    ):
        check_tensor(call, argument, value, symbols, shape, _INTEGERS, path.device)
    accept_token_num.copy_(verified.num_accepted)
    cu_nodes, tokens = tree.cu_nodes.contiguous(), verified.tokens.contiguous()
    filler = backends.filler("enter_path", "auto", tokens, path, cu_nodes, predicts, accept_index)
    if filler is not None:
        filler.enter_path(tokens, path.contiguous(), cu_nodes, (predicts[:rows], accept_index), clear=False)
        return
    starts, spare = cu_nodes[:-1].unsqueeze(1), predicts.shape[0] > rows
    buffer = predicts if spare else _with_spare(predicts)
    enter_path(verified, starts, accept_index=accept_index, buffer=buffer, rows=rows)
    if not spare:
        predicts.copy_(buffer[:rows])


def enter_path(
    verified: Verified,
    starts: Tensor,
    *,
    accept_index: Tensor,
    buffer: Tensor,
    rows: int,
    inside: bool = False,
) -> None:
    """Fill SGLang's `accept_index`, and `buffer` [rows + 1 or more] with the token after each kept node.

    Trees begin at the rows `starts` [B, 1]. What belongs to no row goes to place `rows`. `inside`: the trees
    are known to lie within the rows.
    """
    path = verified.path
    index = torch.add(path, starts, out=accept_index).masked_fill_(path < 0, -1)
    _put(buffer, index, verified.tokens, rows, inside)


def fill_tensorrt_llm(
    verified: Verified,
    *,
    accepted_lengths: Tensor,
    accepted_lengths_cumsum: Tensor,
    paths_offsets: Tensor,
    accepted_tokens: Tensor | None = None,
) -> None:
    """Fill the packed arrays from which TensorRT-LLM moves the rows of its caches.

    Args:
        verified: what `verify` returned.
        accepted_lengths: [B] int32 | int64: emitted tokens, the next token counted.
        accepted_lengths_cumsum: [B + 1] int32 | int64: accepted tokens of the requests before, the next
            tokens not counted; the last entry counts those of all requests.
        paths_offsets: [P] int32 | int64, P >= B * max_depth: the accepted nodes of all requests one after the
            other, counted from the first drafted node, so 1 less than in `verified.path`. Entries after the
            last accepted node keep what they hold.
        accepted_tokens: shaped and packed as `paths_offsets`: the tokens of these nodes.

    Raises:
        ValueError: wrong shapes.
        TypeError: wrong types, dtypes or devices.

    Source: TensorRT-LLM's `packAcceptedPaths`, as of November 2026.

    Example:
        >>> import specdec_kernels as sdk
        >>> tokens, path = torch.tensor([[6, 8, -1], [4, -1, -1]]), torch.tensor([[0, 2, -1], [0, -1, -1]])
        >>> two, one = torch.tensor([2, 1]).int(), torch.tensor([1, 0]).int()
        >>> verified = sdk.Verified(tokens, two, one, path.int(), None, two * 0)
        >>> lengths, sums, paths = torch.zeros(2).int(), torch.zeros(3).int(), torch.zeros(4).int()
        >>> fill_tensorrt_llm(
        ...     verified, accepted_lengths=lengths, accepted_lengths_cumsum=sums, paths_offsets=paths
        ... )
        >>> lengths.tolist(), sums.tolist(), paths.tolist()
        ([2, 1], [0, 1, 1], [1, 0, 0, 0])
    """
    call = "fill_tensorrt_llm"
    path = _path_of(call, verified)
    batch, depth = path.shape[0], path.shape[1] - 1
    check_dtype(call, "paths_offsets", paths_offsets, _INTEGERS)
    check_dim(call, "paths_offsets", paths_offsets, 1, "[P]")
    for argument, value, symbols, shape in (
        ("accepted_lengths", accepted_lengths, "[B]", (batch,)),
        ("accepted_lengths_cumsum", accepted_lengths_cumsum, "[B + 1]", (batch + 1,)),
        ("paths_offsets", paths_offsets, "[P]", paths_offsets.shape),
        ("accepted_tokens", accepted_tokens, "paths_offsets.shape", paths_offsets.shape),
    ):
        if value is not None or argument != "accepted_tokens":
            check_tensor(call, argument, value, symbols, shape, _INTEGERS, path.device)
    if paths_offsets.shape[0] < batch * depth:
        rule = f"must have at least B * max_depth = {batch * depth} entries"
        bad_value(call, "paths_offsets", rule, paths_offsets.shape[0])
    accepted_lengths.copy_(verified.num_tokens)
    sums = torch.nn.functional.pad(verified.num_accepted.cumsum(0), (1, 0))
    accepted_lengths_cumsum.copy_(sums)
    place = torch.arange(depth, device=path.device)
    index = torch.where(place < verified.num_accepted[:, None], place + sums[:-1, None], -1)
    nodes = path[:, 1:] - 1
    for out, values in ((paths_offsets, nodes), (accepted_tokens, verified.tokens[:, :-1])):
        if out is not None:
            buffer = _with_spare(out)
            _put(buffer, index, values, out.shape[0])
            out.copy_(buffer[:-1])


def _path_of(call: str, verified: Verified) -> Tensor:
    check_type(call, "verified", verified, Verified, "a Verified")
    path = verified.path
    check_dtype(call, "verified.path", path, (torch.int32,))
    check_dim(call, "verified.path", path, 2, "[B, max_depth + 1]")
    check_tensor(
        call, "verified.tokens", verified.tokens, "[B, max_depth + 1]", path.shape, _INTEGERS, path.device
    )
    for field in ("num_tokens", "num_accepted"):
        value = getattr(verified, field)
        check_tensor(call, f"verified.{field}", value, "[B]", path.shape[:1], (torch.int32,), path.device)
    return path


def _with_spare(out: Tensor) -> Tensor:
    """A copy with one more place."""
    return torch.nn.functional.pad(out, (0, 1))


def _put(buffer: Tensor, index: Tensor, values: Tensor, count: int, inside: bool = False) -> None:
    """`buffer[index] = values`, for what is none of the first `count` places at the one behind them.
    `inside`: no index is below -1 or beyond the first places."""
    flat = index.flatten()
    place = flat.to(torch.int64, copy=True) if inside else flat.clamp(*_bounds(count, index.device))
    buffer.scatter_(0, place.remainder_(count + 1), values.flatten().to(buffer.dtype))


@kept
def _bounds(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """-1 and `count`, [1] int64 each, which make places of them."""
    low = torch.full((1,), -1, dtype=torch.int64, device=device)
    return low, torch.full_like(low, count)
