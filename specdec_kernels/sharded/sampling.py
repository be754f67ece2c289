# SPDX-License-Identifier: Apache-2.0
"""`sample` on logits whose vocabulary is sharded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._checks import check_dim, check_dtype
from .._memory import check_last_stride
from .._random import Purpose
from ..edits import LogitEdits, unpack_edits
from ..sampling import PLAIN, SamplingParams, noise_keys, unpack
from ..sampling import sample as whole_sample
from . import sums
from .call import DTYPES, check_bitmask, check_keys, check_logprobs, check_shard, refuse
from .edits import Edits, no_text
from .facts import settle_empty, target_side
from .law import laws, params_of
from .noise import race, race_keys
from .shard import VocabShard


def sample(
    logits: Tensor,
    sampling: SamplingParams = PLAIN,
    *,
    shard: VocabShard,
    seeds: Tensor,
    positions: Tensor,
    token_bitmask: Tensor | None = None,
    edits: LogitEdits | None = None,
    return_logprobs: bool = False,
    **unserved: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """`specdec_kernels.sample` where each process of a group has the logits of some tokens.

    Every process of the group calls it with its own columns, and with everything else alike; every process
    gets the same tokens. They are those of the whole rows, whatever the shards are.

    Args:
        logits: [B, size] float32 | bfloat16 | float16, last stride 1: columns [start, start + size).
        sampling: turns a row into a law.
        shard: which tokens this process has.
        seeds, positions: [B] int64; required, and the same in every process.
        token_bitmask: [B, ceil(size / 32)] int32: the words of this shard, whose start is a multiple of 32.
        edits: as for `specdec_kernels.sample`, the same in every process; its counts are of the whole
            vocabulary.
        return_logprobs: also return the log-probability of each token under the processed law.
        unserved: the other options of `specdec_kernels.sample`; they are refused.

    Returns:
        tokens [B] int64 in [0, V), and with `return_logprobs` their log-probabilities [B] float32.

    Raises:
        ValueError: wrong shapes, numbers out of range.
        TypeError: wrong dtypes or devices, unknown arguments.
        BackendUnavailable: an option that is not served with shards.

    Notes:
        As for `verify` of this module: every process has to make the call, with the same shapes and options.

    Example:
        >>> import tempfile
        >>> import torch.distributed as dist
        >>> folder = tempfile.mkdtemp()
        >>> dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=0, world_size=1)
        >>> keys = dict(seeds=torch.tensor([1]), positions=torch.tensor([7]))
        >>> logits = torch.tensor([[0.0, 5.0, 1.0]])
        >>> sample(logits, SamplingParams(top_k=1), shard=VocabShard(0, 3, vocab_size=3), **keys).tolist()
        [1]
        >>> dist.destroy_process_group()
    """
    operation = "sharded.sample"
    refuse(operation, unserved, whole_sample)
    check_dtype(operation, "logits", logits, DTYPES)
    check_dim(operation, "logits", logits, 2, "[B, size]")
    check_last_stride(operation, "logits", logits, "size")
    batch, device = logits.shape[0], logits.device
    check_shard(operation, shard, "logits", logits.shape[1])
    numbers = unpack(operation, "sampling", sampling, batch, device)
    check_keys(operation, seeds, positions)
    seeds, positions = noise_keys(operation, seeds, positions, batch, device)
    check_bitmask(operation, token_bitmask, batch, shard, device)
    changes = unpack_edits(operation, edits, batch, shard.vocab_size, device)
    check_logprobs(operation, return_logprobs)
    if batch == 0:
        tokens = torch.empty(0, dtype=torch.int64, device=device)
        return (tokens, tokens.float()) if return_logprobs else tokens
    bits = sums.bits_for(shard.vocab_size)
    params = params_of(numbers, torch.arange(batch, device=device))
    made = Edits(shard, changes, batch, no_text(batch, device)) if changes[0] else None
    (law,) = laws(shard, [target_side(shard, logits, token_bitmask, made, params)], bits)
    law = settle_empty(shard, law)
    keys = race_keys(seeds, positions, Purpose.NEXT, shard.start, shard.size)
    won = race(shard, law.weights, keys, law.weights)
    if not return_logprobs:
        return won.tokens
    mass = sums.value(shard._collectives.total(sums.parts(law.weights, bits)), bits)
    return won.tokens, (won.values / mass).log().float()
