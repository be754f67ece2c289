# SPDX-License-Identifier: Apache-2.0
"""Threads of one process in the place of a `torch.distributed` group, which note what they exchange."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from specdec_kernels.sharded.shard import Collectives, VocabShard


class Meeting:
    """Where the threads of a group put what they exchange."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self.barrier = threading.Barrier(ranks, timeout=60)
        self.values = [None] * ranks

    def exchange(self, rank: int, value):
        self.values[rank] = value
        self.barrier.wait()
        values = list(self.values)
        self.barrier.wait()
        return values


class ThreadCollectives(Collectives):
    """The collectives of one thread."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.group, self.ranks = None, meeting.ranks
        self.meeting, self.rank = meeting, rank
        self.sent: list[tuple[str, int]] = []

    def gather(self, values):
        assert values.dtype == torch.int64
        self.sent.append(("gather", values.numel() * 8))
        return torch.stack(self.meeting.exchange(self.rank, values.clone()))

    def total(self, values):
        assert values.dtype == torch.int64
        self.sent.append(("sum", values.numel() * 8))
        return torch.stack(self.meeting.exchange(self.rank, values.clone())).sum(0)

    def spans(self, span):
        return self.meeting.exchange(self.rank, span)


def everywhere(borders: list[int], run, order=None):
    """run(shard) in a thread for each of the shards between `borders`, in the order of ranks `order`."""
    spans = list(zip(borders[:-1], borders[1:], strict=True))
    spans = [spans[i] for i in order or range(len(spans))]
    meeting = Meeting(len(spans))

    def one(rank):
        begin, end = spans[rank]
        try:
            return run(VocabShard._over(ThreadCollectives(meeting, rank), begin, end - begin, borders[-1]))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(len(spans)) as pool:
        futures = [pool.submit(one, rank) for rank in range(len(spans))]
    errors = [error for future in futures if (error := future.exception())]
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error  # what the others wait for in vain comes last
    return [future.result() for future in futures]
