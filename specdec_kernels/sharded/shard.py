# SPDX-License-Identifier: Apache-2.0
"""Which tokens a process has, and the collectives of its group."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from .._checks import BackendUnavailable, bad_value, check_int, check_type

Span = tuple[int, int, int]
"""start, size and vocab_size of a shard."""


class Collectives:
    """The collectives of a group. Calls use `gather` and `total`, which carry int64: no order of adding
    matters."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group
        self.ranks: int = dist.get_world_size(group)

    def gather(self, values: Tensor) -> Tensor:
        """The `values` [...] int64 of every process, in the order of ranks: [ranks, ...]."""
        out = values.new_empty((self.ranks, *values.shape))
        dist.all_gather(list(out), values.contiguous(), group=self.group)
        return out

    def total(self, values: Tensor) -> Tensor:
        """The sum over the processes of `values` [...] int64."""
        out = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(out, group=self.group)
        return out

    def spans(self, span: Span) -> list[Span]:
        """The spans of all processes, on the host."""
        spans: list[Span] = [span] * self.ranks
        dist.all_gather_object(spans, span, group=self.group)
        return spans


class VocabShard:
    """The tokens [start, start + size) of a vocabulary, which one process of a group has.

    Make it once, in every process of the group: it compares the shards of all, which is a collective.
    Together they have to be the vocabulary, without gaps and overlaps. They may differ in size, and need not
    be in the order of ranks.

    Args:
        start: the first token of this process.
        size: >= 1, the number of its tokens.
        vocab_size: V, the same in every process.
        group: default: the default group of `torch.distributed`.

    Raises:
        ValueError: numbers out of range; in every process, shards that do not make up the vocabulary.
        TypeError: numbers that are no ints, a `group` that is none.
        BackendUnavailable: `torch.distributed` is not initialised.
    """

    def __init__(
        self, start: int, size: int, vocab_size: int, group: dist.ProcessGroup | None = None
    ) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise BackendUnavailable("VocabShard: torch.distributed is not initialised")
        if group is not None:
            check_type("VocabShard", "group", group, dist.ProcessGroup, "a ProcessGroup")
        self._set(start, size, vocab_size, Collectives(group))

    @classmethod
    def _over(cls, collectives: Collectives, start: int, size: int, vocab_size: int) -> VocabShard:
        """A shard with these collectives."""
        shard = cls.__new__(cls)
        shard._set(start, size, vocab_size, collectives)
        return shard

    def _set(self, start: int, size: int, vocab_size: int, collectives: Collectives) -> None:
        self.start = check_int("VocabShard", "start", start, 0)
        self.size = check_int("VocabShard", "size", size, 1)
        self.vocab_size = check_int("VocabShard", "vocab_size", vocab_size, 1, 2**31 - 1)
        self._collectives = collectives
        spans = sorted(collectives.spans((self.start, self.size, self.vocab_size)))
        end = 0
        for begin, count, vocab in spans:
            if vocab != self.vocab_size:
                bad_value("VocabShard", "vocab_size", "must be the same in every process", vocab)
            end = end + count if begin == end else -1
        if end != self.vocab_size:
            rule = f"must make up [0, V) = [0, {self.vocab_size})"
            shards = ", ".join(f"[{begin}, {begin + count})" for begin, count, _ in spans)
            bad_value("VocabShard", "the shards of all processes", rule, shards)

    @property
    def end(self) -> int:
        """The token after the last one."""
        return self.start + self.size

    def __repr__(self) -> str:
        return f"VocabShard(start={self.start}, size={self.size}, vocab_size={self.vocab_size})"
