# SPDX-License-Identifier: Apache-2.0
"""What each process of a gloo group runs in the tests of sharded vocabularies."""

from __future__ import annotations

import torch
import torch.distributed as dist
from cases import random_case

from specdec_kernels import sharded

VOCAB = 200
RULES = ("match", "token", "traversal")


def here(arguments: dict, shard: sharded.VocabShard, whole_draft: bool = True) -> dict:
    """The arguments of `verify` as one process has them."""
    mine = dict(arguments, target_logits=arguments["target_logits"][..., shard.start : shard.end])
    if "draft_logits" in arguments and not whole_draft:
        mine["draft_logits"] = arguments["draft_logits"][..., shard.start : shard.end]
    if "token_bitmask" in arguments:
        mine["token_bitmask"] = arguments["token_bitmask"][:, shard.start // 32 : (shard.end + 31) // 32]
    return mine


def results(shard: sharded.VocabShard) -> list[list]:
    """Of all cases and rules, as lists."""
    return [
        [each.tolist() for each in sharded.verify(shard=shard, rule=rule, **here(arguments, shard))[:6]]
        for arguments in (random_case(seed, vocab=VOCAB, batch=3, hostile=True) for seed in range(4))
        for rule in RULES
    ]


def process(rank: int, path: str, queue) -> None:
    """A process of a group of 4, and of one of 2: what all of them have goes through the queue."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=4)
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    found = []
    for group, borders in ((None, [0, 32, 64, 128, VOCAB]), (pairs[rank // 2], [0, 64, VOCAB])):
        place = dist.get_rank(group)
        begin, end = borders[place : place + 2]
        found += results(sharded.VocabShard(begin, end - begin, VOCAB, group))
    everyone = [None] * 4
    dist.all_gather_object(everyone, found)
    if rank == 0:
        queue.put(everyone)
    dist.destroy_process_group()
