# SPDX-License-Identifier: Apache-2.0
"""Plain one-token sampling."""

from __future__ import annotations

import torch
from torch import Tensor

from . import debug, ops
from .calls import SampleCall
from .errors import FLOATS, bad_value, check_bool, check_dim, check_dtype, check_tensor, what
from .memory import check_last_stride
from .sampling import PLAIN, SamplingParams, unpack


def sample(
    logits: Tensor,
    sampling: SamplingParams = PLAIN,
    *,
    seeds: Tensor | None = None,
    positions: Tensor | None = None,
    token_bitmask: Tensor | None = None,
    return_logprobs: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Draw one token from every row, with the noise that `verify(rule="match")` uses.

    The token of row b is `argmax_x p(x) / E(x)`, p being the processed law and E standard exponential keys
    that are a function of (`seeds[b]`, `positions[b]`, x) alone.

    It is for the target's own tokens: plain decoding, one position after the other, each sampled once. It is
    not for drafting with seeds: a position that a step drafted and rejected is drafted again in the next
    step, and gets the same noise again, whatever the seeds are. Rule `traversal` then emits another law than
    the target's. Draft chains with `draft_token` and trees with `sample_children`, whose noise is new in
    every step.

    Args:
        logits: [B, V] float32 | bfloat16 | float16, last stride 1.
        sampling: what turns a row into a law.
        seeds: [B] int64; default: fresh ones from the default generator of the device.
        positions: [B] int64, index in its sequence of the token to draw; given with `seeds` and not without.
        token_bitmask: [B, ceil(V / 32)] int32, bit `x % 32` of word `x // 32` set = token x allowed.
        return_logprobs: also return the log-probability of each token under the processed law.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        tokens [B] int64 in [0, V), and with `return_logprobs` their log-probabilities [B] float32.

    Raises:
        ValueError: wrong shapes, numbers out of range, seeds without positions or positions without seeds.
        TypeError: wrong dtypes or devices.
        BackendUnavailable: the named backend cannot serve the call.

    Notes:
        Never synchronises. With seeds the result depends on (seed, position, row) only: not on the batch or
        the number of threads. NaN counts as `-inf`, `+inf` entries share all the mass, and a row with nothing
        left gives its lowest allowed token. Float64 rows are served by the reference.

    Source: the exponential race (Gumbel-max); Maddison et al. 2014, A* Sampling.

    Example:
        >>> logits = torch.tensor([[0.0, 5.0, 1.0], [2.0, 0.0, 1.0]])
        >>> sample(logits, SamplingParams(temperature=0.0)).tolist()
        [1, 0]
        >>> seeds, positions = torch.tensor([1, 1]), torch.tensor([10, 11])
        >>> first = sample(logits, seeds=seeds, positions=positions)
        >>> bool((first == sample(logits, seeds=seeds, positions=positions)).all())
        True
    """
    check_dtype("sample", "logits", logits, FLOATS)
    check_dim("sample", "logits", logits, 2, "[B, V]")
    check_last_stride("sample", "logits", logits)
    batch, vocab = logits.shape
    device = logits.device
    numbers, rows = unpack("sample", "sampling", sampling, batch, device)
    seeds, positions = noise_keys("sample", seeds, positions, batch, device)
    check_bool("sample", "return_logprobs", return_logprobs)
    check_bitmask("sample", token_bitmask, "[B, ceil(V / 32)]", batch, vocab, device)
    if debug.enabled():
        debug.check_logits("sample", "logits", logits)
    tokens = torch.empty(batch, dtype=torch.int64, device=device)
    logprobs = torch.empty(batch, dtype=torch.float32, device=device) if return_logprobs else None
    call = SampleCall(
        logits=logits,
        sampling=numbers,
        sampling_rows=rows,
        seeds=seeds,
        positions=positions,
        token_bitmask=token_bitmask,
        out_tokens=tokens,
        out_logprobs=logprobs,
    )
    ops.sample(call, backend)
    return (tokens, logprobs) if return_logprobs else tokens


def check_bitmask(
    operation: str, bitmask: Tensor | None, symbols: str, rows: int, vocab: int, device: torch.device
) -> None:
    """[rows, ceil(V / 32)] int32 with contiguous rows, or None."""
    if bitmask is not None:
        shape = (rows, (vocab + 31) // 32)
        check_tensor(operation, "token_bitmask", bitmask, symbols, shape, (torch.int32,), device)
        check_last_stride(operation, "token_bitmask", bitmask)


def noise_keys(
    operation: str,
    seeds: Tensor | None,
    positions: Tensor | None,
    batch: int,
    device: torch.device,
    symbols: str = "[B]",
) -> tuple[Tensor, Tensor]:
    """Seeds and positions [B] int64, given together, or fresh seeds and positions 0."""
    if seeds is not None and positions is None:
        bad_value(operation, "positions", "must be given with seeds", "None")
    if seeds is None and positions is not None:
        bad_value(operation, "positions", "must be None without seeds", what(positions))
    if seeds is None:
        seeds = torch.randint(-(2**63), 2**63 - 1, (batch,), dtype=torch.int64, device=device)
    else:
        check_tensor(operation, "seeds", seeds, symbols, (batch,), (torch.int64,), device)
    if positions is None:
        positions = torch.zeros(batch, dtype=torch.int64, device=device)
    else:
        check_tensor(operation, "positions", positions, symbols, (batch,), (torch.int64,), device)
    return seeds.contiguous(), positions.contiguous()
