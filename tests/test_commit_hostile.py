# SPDX-License-Identifier: Apache-2.0
"""Committing bad data: nothing outside the caches is touched, and backends agree. Also run under
AddressSanitizer and UBSan by `make test-sanitized`."""

from __future__ import annotations

import pytest
import torch
from each import BACKENDS
from paging import Pool, integer, random_tree

import specdec_kernels as sdk
from bench.paging import block_tables

WILD = torch.tensor([-(2**31), -7, -1, 0, 1, 2, 3, 5, 40, 10**6, 2**31 - 1])


def wild(g, *shape):
    return WILD[torch.randint(0, len(WILD), shape, generator=g)].int()


OTHERS = [backend for backend in BACKENDS if backend != "reference"]


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("spoiled", ["pages", "prefix", "path", "offsets", "all"])
def test_bad_data_is_left_out(backend, layout, fresh, spoiled):
    g = torch.Generator().manual_seed(5)
    for _ in range(30):
        batch, page_size = integer(g, 1, 4), (1, 3, 4)[integer(g, 0, 3)]
        tree, path = random_tree(g, batch)
        pages_each = 4 + tree.max_nodes // page_size
        table = block_tables(g, batch, pages_each, batch * pages_each)
        prefix_lens = torch.randint(0, 9, (batch,), generator=g).int()
        if spoiled in ("pages", "all"):  # valid pages stay distinct
            bad = torch.randint(0, 3, table.shape, generator=g) == 0
            table = torch.where(bad, torch.where(wild(g, *table.shape) < 0, -5, 10**6), table).int()
        if spoiled in ("prefix", "all"):
            prefix_lens = wild(g, batch)
        if spoiled in ("path", "all"):
            path = torch.where(torch.rand(path.shape, generator=g) < 0.4, wild(g, *path.shape), path)
        if spoiled in ("offsets", "all"):
            tree = sdk.DraftTree(
                tree.tokens, tree.parents, wild(g, batch + 1), tree.proposals, tree.max_nodes, tree.max_depth
            )
        specs = [(pages, 2, 8, torch.int16, 6) for pages in (batch * pages_each, 2, 0)]
        pools = [Pool(g, specs, page_size, layout)]
        pools.append(pools[0].clone())
        rows = tree.tokens.numel()
        new = [torch.randint(0, 9, (rows, 2, 8), generator=g).short() for _ in specs] if fresh else None
        results = [
            sdk.commit_kv(
                pool.caches, path, tree, table, prefix_lens, page_size=page_size, layout=layout, new=new,
                backend=name,
            )
            for pool, name in zip(pools, (backend, "reference"), strict=True)
        ]  # fmt: skip
        assert torch.equal(pools[0].bytes, pools[1].bytes)
        assert all(torch.equal(native, reference) for native, reference in zip(*results, strict=True))
        assert bool((results[0].lengths >= 0).all() and (results[0].pages_kept >= 0).all())


@pytest.mark.parametrize("backend", OTHERS)
def test_caches_without_bytes(backend):
    tree, path = random_tree(torch.Generator().manual_seed(6), 2, empty=0.0)
    table, prefix_lens = torch.zeros(2, 3).int(), torch.zeros(2).int()
    for shape in ((0, 4, 2), (3, 4, 0), (3, 4)):
        for columns in (3, 0):
            sdk.commit_kv(
                [torch.zeros(shape)],
                path,
                tree,
                table[:, :columns],
                prefix_lens,
                page_size=4,
                backend=backend,
            )


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("spoiled", ["slots", "path", "offsets"])
def test_states_of_bad_requests_are_left_alone(backend, spoiled):
    g = torch.Generator().manual_seed(7)
    for _ in range(20):
        batch = integer(g, 1, 4)
        tree, path = random_tree(g, batch)
        rows, slots = tree.tokens.numel(), torch.randperm(batch, generator=g)
        if spoiled == "slots":
            bad = torch.rand(batch, generator=g) < 0.5
            slots = torch.where(bad, wild(g, batch).long() * 2**20 - 1, slots)
        if spoiled == "path":
            path = torch.where(torch.rand(path.shape, generator=g) < 0.4, wild(g, *path.shape), path)
        if spoiled == "offsets":
            tree = sdk.DraftTree(
                tree.tokens, tree.parents, wild(g, batch + 1), tree.proposals, tree.max_nodes, tree.max_depth
            )
        state, vectors, scalars = torch.zeros(batch, 2, 3, 3), torch.ones(rows, 2, 3), torch.ones(rows, 2)
        results = []
        for name in (backend, "reference"):
            states = [state.clone() for _ in range(4)]
            kept = (path, tree, slots)
            inputs = [scalars.repeat(1, 2)[:, :3]]
            delta = dict(keys=[vectors], values=[vectors], log_decay=[-scalars], beta=[scalars])
            mamba = dict(x=[vectors], B=[vectors], dt=[scalars], A=[-torch.ones(2)])
            snapshots = [torch.ones(rows, 2, 3, 3)]
            sdk.commit_state(*kept, states=[states[0]], snapshots=snapshots, backend=name)
            sdk.replay_conv(*kept, windows=[states[1][:, 0]], inputs=inputs, backend=name)
            sdk.replay_gated_delta(*kept, states=[states[2]], **delta, backend=name)
            sdk.replay_mamba2(*kept, states=[states[3]], **mamba, backend=name)
            results.append(states)
        for native, reference in zip(*results, strict=True):
            torch.testing.assert_close(native, reference)


@pytest.mark.parametrize("backend", OTHERS)
def test_states_without_bytes(backend):
    tree, path = random_tree(torch.Generator().manual_seed(6), 2, empty=0.0)
    rows, kept = tree.tokens.numel(), (path, tree, torch.arange(2))
    one = torch.ones(rows, 2)
    for k, v in ((0, 3), (3, 0), (0, 0)):
        state, keys, values = torch.zeros(2, 2, k, v), torch.ones(rows, 2, k), torch.ones(rows, 2, v)
        inputs = one[:, :k] if k < 3 else torch.ones(rows, 3)
        delta = dict(keys=[keys], values=[values], log_decay=[one], beta=[one])
        mamba = dict(x=[keys], B=[values], dt=[one], A=[torch.ones(2)])
        sdk.commit_state(*kept, states=[state], snapshots=[torch.zeros(rows, 2, k, v)], backend=backend)
        sdk.replay_conv(*kept, windows=[state[0]], inputs=[inputs], backend=backend)
        sdk.replay_gated_delta(*kept, states=[state], **delta, backend=backend)
        sdk.replay_mamba2(*kept, states=[state], **mamba, backend=backend)
