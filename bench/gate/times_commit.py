# SPDX-License-Identifier: Apache-2.0
"""commit_kv of 64 caches: three rows of 2 KB of each request move in each."""

from __future__ import annotations

from functools import partial

import torch

import specdec_kernels as sdk

from ..paging import block_tables, same_trees
from ..suite import Goal
from .device import Device
from .parts import Gate
from .timing import Peer, Prepared, Timed, h100, measure

PARENTS, PATH = [-1, 0, 0, 2, 3, 0], [0, 2, 3, 4]


def cases(real: bool) -> list[Timed]:
    if not real:
        return [Timed("plan, B = 3, 2 caches", partial(build, batch=3, layers=1, heads=2, size=16))]
    shape = dict(layers=32, heads=8, size=128)
    found = [Timed(f"plan, B = {b}, 64 caches", partial(build, batch=b, **shape)) for b in (1, 8, 64)]
    return [*found, Timed("list, B = 8, 64 caches", partial(build, batch=8, planned=False, **shape))]


def run(gate: Gate) -> None:
    known = measure(gate, cases(not gate.dry))
    name = "plan, B = 8, 64 caches"
    if h100(gate.device) and (name in known or gate.device.real):
        gate.record.mark(name, Goal(name, 5, ceiling=True, unit="us"), known)


def build(device: Device, batch: int, layers: int, heads: int, size: int, planned: bool = True) -> Prepared:
    g, page, width = torch.Generator().manual_seed(0), 16, 6
    dtype = torch.bfloat16
    pool = torch.zeros(2 * layers, batch * width, page, heads, size, dtype=dtype, device=device.kind)
    tree = device.put(same_trees(PARENTS, batch))
    path = device.put(torch.tensor([PATH] * batch).int())
    table, prefixes = block_tables(g, batch, width), torch.randint(0, 80, (batch,), generator=g).int()
    kept, slots = prefixes[:, None] + torch.tensor(PATH[1:]), prefixes[:, None] + torch.arange(1, len(PATH))
    flat = pool.flatten(1, 2)
    source, target = (
        device.put((table.gather(1, (slot // page).long()) * page + slot % page).flatten().long())
        for slot in (kept, slots)
    )
    where = device.put((table, prefixes))
    caches = list(pool)
    given = sdk.CachePlan(caches, page_size=page) if planned else caches
    options = {} if planned else {"page_size": page}
    moved = 2 * 2 * layers * batch * (len(PATH) - 1) * heads * size * dtype.itemsize

    def gathered() -> torch.Tensor:
        return flat.index_copy_(1, target, flat.index_select(1, source))

    return Prepared(
        lambda: sdk.commit_kv(given, path, tree, *where, **options, backend="triton"),
        moved,
        peers=[Peer("torch, index_copy", lambda: gathered)],
    )
