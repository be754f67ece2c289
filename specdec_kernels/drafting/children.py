# SPDX-License-Identifier: Apache-2.0
"""Children of a draft tree's nodes, chosen or sampled from a drafter's logits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _debug, _ops
from .._checks import (
    FLOATS,
    bad_value,
    check_bool,
    check_device,
    check_dim,
    check_dtype,
    check_int,
    check_name,
    check_shape,
    check_type,
    what,
)
from .._kept import kept
from .._memory import check_last_stride
from .._ops.backends import NAMES
from .._ops.calls import SampleChildrenCall
from .._random import Purpose
from ..sampling import PLAIN, DraftVocab, SamplingParams, noise_keys, unpack
from ..tree import Proposal

METHODS = ("independent", "without_replacement", "top_k", "hybrid")
MOST_CHILDREN = 256  # the counter of the noise has room for so many ordinals


class Children(NamedTuple):
    """The k children of every parent, in the order of verification."""

    tokens: Tensor
    """[N, k] int64, -1 where fewer than k tokens have any probability."""
    proposals: Tensor
    """[k] uint8, how to declare them."""
    scores: Tensor
    """[N, k] float32, the log-probability of each token under the law of its parent, -inf for -1."""


def sample_children(
    logits: Tensor,
    k: int,
    *,
    method: str = "without_replacement",
    sampling: SamplingParams = PLAIN,
    seeds: Tensor | None = None,
    positions: Tensor | None = None,
    nodes: Tensor | None = None,
    coupled: bool = False,
    backend: str = "auto",
) -> Children:
    """Draw or choose k children of every parent, and say how to declare them.

    | method | children, in the order of verification | proposals |
    |---|---|---|
    | `independent` | k draws from q | INDEPENDENT |
    | `without_replacement` | k draws from q, each without the tokens before it | WITHOUT_REPLACEMENT |
    | `top_k` | the k likeliest tokens, descending, ties to the lowest token | POINT |
    | `hybrid` | one draw from q without the k - 1 likeliest, then these | WITHOUT_REPLACEMENT, then POINT |

    q is the processed law of the parent's row. Draws without replacement are the first k finishers of one
    exponential race, the tokens of largest q(x) / E(x).

    Of draws without replacement the most tokens are accepted, in trees of fixed shape as many of hybrids. For
    greedy texts take `top_k`. `docs/drafting.md` has the figures.

    Args:
        logits: [N, V] float32 | bfloat16 | float16, last stride 1; row n has the drafter's logits after
            parent n.
        k: in [1, 256].
        method: see the table.
        sampling: turns a row into q; pass the same to `verify` as `draft_sampling`. Its tensors are [N].
        seeds: [N] int64; default: fresh seeds from the default generator of the device.
        positions: [N] int64, the same as in this step's `verify`, at every depth; only with `seeds`.
        nodes: [N] int32 | int64, different for the parents of one request in this step, e.g. the index of
            the parent; only with `seeds`.
        coupled: draw with the noise that the target itself will use at the children's position; `positions`
            then are the positions of the children. If q is near p the target draws the same token. For rule
            `match` only. All proposals are POINT, since this noise was not made for the draft alone.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        `Children`.

    Raises:
        ValueError: wrong shapes, k or method; some of seeds, positions and nodes without the others.
        TypeError: wrong dtypes or devices.
        BackendUnavailable: the named backend cannot serve the call.

    Notes:
        Never synchronises. Noise is keyed by (seed, position, parent) and has the purpose of drafting, which
        no rule of `verify` uses. So a drafter may use the seeds of `verify`. A drafter's noise has to be new
        in every step: with `positions` that advance by the depth and a constant node, the next step draws a
        rejected depth again with the same noise, and the output of rule `traversal` no longer has the
        target's law. NaN counts as -inf. A row without a possible token has no children. At temperature 0
        one token has all the probability.

    Source: Kool et al. 2019, Stochastic Beams and Where to Find Them: the Gumbel-top-k trick.

    Example:
        >>> logits = torch.tensor([[0.0, 2.0, 1.0]])
        >>> tokens, proposals, scores = sample_children(logits, 2, method="top_k")
        >>> tokens.tolist(), proposals.tolist()
        ([[1, 2]], [0, 0])
        >>> keys = {name: torch.tensor([5]) for name in ("seeds", "positions", "nodes")}
        >>> tokens, proposals, scores = sample_children(logits, 3, **keys)
        >>> sorted(tokens[0].tolist()), proposals.tolist()
        ([0, 1, 2], [2, 2, 2])
    """
    check_dtype("sample_children", "logits", logits, FLOATS)
    check_dim("sample_children", "logits", logits, 2, "[N, V]")
    check_last_stride("sample_children", "logits", logits)
    k = check_int("sample_children", "k", k, 1, MOST_CHILDREN)
    check_name("sample_children", "method", method, METHODS)
    check_bool("sample_children", "coupled", coupled)
    rows, device = logits.shape[0], logits.device
    numbers, tensors = unpack("sample_children", "sampling", sampling, rows, device)
    if seeds is not None and nodes is None:
        bad_value("sample_children", "nodes", "must be given with seeds", "None")
    parents = _parents(nodes, rows, device)
    if seeds is None and nodes is not None:
        bad_value("sample_children", "nodes", "must be None without seeds", what(nodes))
    seeds, positions = noise_keys("sample_children", seeds, positions, rows, device, symbols="[N]")
    if _debug.enabled():
        _debug.check_logits("sample_children", "logits", logits)
    nodes = _same_nodes(rows, 0, device) if coupled else parents
    purpose = Purpose.NEXT if coupled else Purpose.DRAFT
    tokens, scores = _drawn(logits, k, method, numbers, tensors, seeds, positions, nodes, purpose, backend)
    return Children(tokens, _proposals(method, k, coupled, device).clone(), scores)


def draft_token(
    logits: Tensor,
    node: int,
    *,
    sampling: SamplingParams = PLAIN,
    draft_vocab: DraftVocab | None = None,
    seeds: Tensor | None = None,
    positions: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Proposal]:
    """The next drafted token of every request's chain, and how to declare it.

    A drafter that samples calls it for node 0, 1, ..., K - 1, each time with its logits after that node. The
    noise is keyed by (seed, position of the step, node). It is new in every step, and `verify` does not use
    it. Pass to `verify`

    - the tokens [B, K], as `DraftTree.chain(tokens, proposal=proposal)`;
    - the same K rows of logits, stacked to `draft_logits` [B, K, Vd];
    - `sampling` as `draft_sampling`, and `draft_vocab`;
    - the same `seeds` and `positions`.

    Args:
        logits: [B, Vd] float32 | bfloat16 | float16, last stride 1: the drafter's logits after the node.
        node: >= 0, index of the node in its chain: 0 after the last committed token, i after the i-th drafted
            token.
        sampling: turns a row into the law q from which the token is drawn.
        draft_vocab: the tokens of the columns of `logits`; default: column i is token i.
        seeds: [B] int64; default: fresh seeds from the default generator of the device.
        positions: [B] int64, the same as in this step's `verify`, for every node; only with `seeds`.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        tokens [B] int64, in the target's vocabulary if `draft_vocab` is given, -1 if no token has any
        probability; and `Proposal.INDEPENDENT`.

    Raises:
        ValueError: wrong shapes or node; positions without seeds or seeds without positions.
        TypeError: wrong dtypes or devices.
        BackendUnavailable: the named backend cannot serve the call.

    Notes:
        Never synchronises. The call equals `sample_children(logits, 1, method="independent")` with the node
        as parent of every row. With seeds the token depends on (seed, position, node, row) only. A drafter
        may end a chain after a look at its tokens, but must not drop a token that was drawn.

    Example:
        >>> logits, seeds, positions = torch.zeros(2, 4), torch.tensor([1, 2]), torch.tensor([9, 30])
        >>> drafted = []
        >>> for node in range(3):
        ...     tokens, proposal = draft_token(logits, node, seeds=seeds, positions=positions)
        ...     drafted.append(tokens)
        >>> torch.stack(drafted, 1).shape, proposal.name
        (torch.Size([2, 3]), 'INDEPENDENT')
    """
    check_dtype("draft_token", "logits", logits, FLOATS)
    check_dim("draft_token", "logits", logits, 2, "[B, Vd]")
    check_last_stride("draft_token", "logits", logits)
    node = check_int("draft_token", "node", node, 0)
    check_name("draft_token", "backend", backend, NAMES)
    batch, device = logits.shape[0], logits.device
    numbers, tensors = unpack("draft_token", "sampling", sampling, batch, device)
    if draft_vocab is not None:
        check_type("draft_token", "draft_vocab", draft_vocab, DraftVocab, "a DraftVocab")
        check_device("draft_token", "draft_vocab", draft_vocab.ids, device)
        width = draft_vocab.ids.shape[0]
        check_shape("draft_token", "logits", logits, "[B, Vd], Vd of draft_vocab,", (batch, width))
    seeds, positions = noise_keys("draft_token", seeds, positions, batch, device)
    if _debug.enabled():
        _debug.check_logits("draft_token", "logits", logits)
    nodes = _same_nodes(batch, node, device)
    tokens, _ = _drawn(
        logits, 1, "independent", numbers, tensors, seeds, positions, nodes, Purpose.DRAFT, backend
    )
    tokens = tokens.squeeze(1)
    if draft_vocab is not None:
        tokens = torch.where(tokens < 0, tokens, draft_vocab.ids[tokens.clamp_min(0)])
    return tokens, Proposal.INDEPENDENT


def _drawn(
    logits: Tensor,
    k: int,
    method: str,
    sampling: list[float],
    sampling_rows: list[Tensor | None],
    seeds: Tensor,
    positions: Tensor,
    nodes: Tensor,
    purpose: Purpose,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Tokens and scores [N, k]."""
    shape = logits.shape[0], k
    tokens = torch.empty(shape, dtype=torch.int64, device=logits.device)
    scores = torch.empty(shape, dtype=torch.float32, device=logits.device)
    call = SampleChildrenCall(
        logits=logits,
        method=method,
        sampling=sampling,
        sampling_rows=sampling_rows,
        seeds=seeds,
        positions=positions,
        nodes=nodes,
        purpose=purpose.value,
        out_tokens=tokens,
        out_scores=scores,
    )
    _ops.sample_children(call, backend)
    return tokens, scores


@kept
def _same_nodes(rows: int, node: int, device: torch.device) -> Tensor:
    return torch.full((rows,), node, dtype=torch.int64, device=device)


def _parents(nodes: Tensor | None, rows: int, device: torch.device) -> Tensor:
    if nodes is None:
        return _same_nodes(rows, 0, device)
    check_dtype("sample_children", "nodes", nodes, (torch.int64, torch.int32))
    check_device("sample_children", "nodes", nodes, device)
    check_shape("sample_children", "nodes", nodes, "[N]", (rows,))
    return nodes.long().contiguous()


@kept
def _proposals(method: str, k: int, coupled: bool, device: torch.device) -> Tensor:
    """[k] uint8, made where it is needed: nothing is copied from the host."""
    sampled = Proposal.INDEPENDENT if method == "independent" else Proposal.WITHOUT_REPLACEMENT
    kinds = torch.full((k,), int(sampled), dtype=torch.uint8, device=device)
    if coupled or method == "top_k":
        kinds.fill_(int(Proposal.POINT))
    elif method == "hybrid":
        kinds[1:].fill_(int(Proposal.POINT))
    return kinds
