# SPDX-License-Identifier: Apache-2.0
"""Committing caches: every byte where it belongs, none moved that need not be."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from device import NAME, on_device, to_device
from each import BACKENDS, QUICK
from hypothesis import given, settings
from hypothesis import strategies as st
from paging import Pool, integer, random_tree
from records import opcheck, recorded
from torch.utils._python_dispatch import TorchDispatchMode

import specdec_kernels as sdk
from bench.paging import block_tables
from specdec_kernels import _ops as ops
from specdec_kernels._ops import backends
from specdec_kernels._ops.calls import CommitKVCall

DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.float8_e4m3fn, torch.int64]


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


def expected(pool, layout, new, tree, path, block_table, prefix_lens, page_size):
    """Lengths, pages, and the pool's bytes, by a dictionary of slots read before anything is written."""
    after = pool.clone()
    lengths, pages = [], []
    for b in range(path.shape[0]):
        kept = [node for node in path[b].tolist() if node >= 0]
        prefix, start = int(prefix_lens[b]), int(tree.cu_nodes[b])
        lengths.append(prefix + len(kept))
        pages.append((lengths[-1] + page_size - 1) // page_size)
        for i, (before, cache) in enumerate(zip(pool.caches, after.caches, strict=True)):
            if layout == "HND":
                before, cache = before.transpose(1, 2), cache.transpose(1, 2)

            def place(slot, b=b):
                return int(block_table[b, slot // page_size]), slot % page_size

            for j, node in enumerate(kept):
                row = before[place(prefix + node)] if new is None else new[i][start + node]
                cache[place(prefix + j)] = row
    return lengths, pages, after.bytes


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["NHD", "HND"])
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32), fresh=st.booleans(), planned=st.booleans())
def test_every_byte_is_where_it_belongs(backend, layout, seed, fresh, planned):
    g = torch.Generator().manual_seed(seed)
    batch, page_size = integer(g, 1, 6), (1, 2, 3, 4, 16)[integer(g, 0, 5)]
    tree, path = random_tree(g, batch)
    prefix_lens = torch.randint(0, 3 * page_size + 1, (batch,), generator=g).int()
    pages_each = 3 + -(-(tree.max_nodes + 1) // page_size)
    specs = [
        (batch * pages_each + integer(g, 0, 4), integer(g, 1, 4), integer(g, 1, 80), DTYPES[integer(g, 0, 6)],
         integer(g, 0, 2) * 24)
        for _ in range(integer(g, 1, 7))
    ]  # fmt: skip
    block_table = block_tables(g, batch, pages_each, batch * pages_each)
    pool = Pool(g, specs, page_size, layout)
    new = None
    if fresh:
        rows = tree.tokens.numel()
        new = [torch.randint(0, 2, (rows, heads, size), generator=g).to(dtype)
               for _, heads, size, dtype, _ in specs]  # fmt: skip
    lengths, pages, after = expected(pool, layout, new, tree, path, block_table, prefix_lens, page_size)
    if planned:
        given_caches, options = sdk.CachePlan(pool.caches, page_size=page_size, layout=layout), {}
    else:
        given_caches, options = pool.caches, dict(page_size=page_size, layout=layout)
    committed = sdk.commit_kv(
        given_caches, path, tree, block_table, prefix_lens, new=new, backend=backend, **options
    )
    assert committed.lengths.tolist() == lengths and committed.pages_kept.tolist() == pages
    assert torch.equal(pool.bytes, after)


# A model of an engine: requests grow by drafted trees, take and return pages, leave and are replaced.


def commit_in_python(caches, path, tree, block_table, prefix_lens, page_size, mutant=None):
    """The naive loop, and ways to get it wrong."""
    lengths = []
    for b, row in enumerate(path.tolist()):
        kept, prefix = [node for node in row if node >= 0], int(prefix_lens[b])
        lengths.append(prefix + len(kept))
        moves = list(enumerate(kept))
        for j, node in moves[::-1] if mutant == "descending" else moves:
            for cache in caches:
                source = prefix + node + (mutant == "source off by one")
                target = prefix + j + (mutant == "root counted twice")
                if mutant == "depth for index":
                    source = prefix + j
                table = block_table[0 if mutant == "another request's pages" else b]
                if mutant == "one page only":
                    target = min(target, prefix - prefix % page_size + page_size - 1)
                to = cache[table[target // page_size], target % page_size]
                to.copy_(cache[table[source // page_size], source % page_size])
    lengths = torch.tensor(lengths, dtype=torch.int32)
    return sdk.Committed(lengths, (lengths + page_size - 1) // page_size)


def run_engine(commit, steps, seed, batch=4, page_size=4, pages=64, limit=40):
    """Commits `steps` random trees and compares all that requests hold with lists, after every step."""
    g = torch.Generator().manual_seed(seed)
    kinds = ((2, 3), torch.int64), ((5,), torch.float64), ((), torch.int32)
    caches = [torch.full((pages, page_size, *shape), -1, dtype=dtype) for shape, dtype in kinds]
    free, next_id = list(range(pages)), 0
    held, tables = [[] for _ in range(batch)], [[] for _ in range(batch)]
    columns = (limit + 20) // page_size + 1
    for _ in range(steps):
        tree, path = random_tree(g, batch)
        for b in range(batch):
            if len(held[b]) > limit:  # leaves; another joins with nothing
                free, held[b], tables[b] = free + tables[b], [], []
            nodes = int(tree.cu_nodes[b + 1] - tree.cu_nodes[b])
            while len(tables[b]) * page_size < len(held[b]) + nodes:
                tables[b].append(free.pop(integer(g, 0, len(free))))
        block_table = torch.tensor([table + [-1] * (columns - len(table)) for table in tables]).int()
        prefix_lens = torch.tensor([len(ids) for ids in held]).int()
        drafted = []
        for b in range(batch):
            nodes = int(tree.cu_nodes[b + 1] - tree.cu_nodes[b])
            drafted.append(range(next_id, next_id + nodes))
            next_id += nodes
            for node, name in enumerate(drafted[b]):
                slot = len(held[b]) + node
                for cache in caches:
                    cache[block_table[b, slot // page_size], slot % page_size] = name
        committed = commit(caches, path, tree, block_table, prefix_lens, page_size=page_size)
        for b in range(batch):
            held[b] += [drafted[b][node] for node in path[b].tolist() if node >= 0]
            assert committed.lengths[b] == len(held[b])
            kept = int(committed.pages_kept[b])
            free, tables[b] = free + tables[b][kept:], tables[b][:kept]
            slot = torch.arange(len(held[b]))
            rows = block_table[b, slot // page_size].long(), slot % page_size
            for cache in caches:
                rest = cache[rows].flatten(1) if cache.dim() > 2 else cache[rows].unsqueeze(1)
                assert torch.equal(rest.long(), torch.tensor(held[b]).view(-1, 1).expand_as(rest))
        assert sorted(free + [page for table in tables for page in table]) == list(range(pages))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_rows_are_conserved_over_hundreds_of_steps(backend, page_size):
    def commit(*args, **options):
        return sdk.commit_kv(*args, **options, backend=backend)

    run_engine(commit, 150, seed=page_size, page_size=page_size, pages=4 * 60 // page_size + 8)


def test_the_naive_loop_passes_the_engine():
    run_engine(commit_in_python, 40, seed=0)


@pytest.mark.parametrize(
    "mutant",
    [
        "descending",
        "source off by one",
        "root counted twice",
        "depth for index",
        "another request's pages",
        "one page only",
    ],
)
def test_the_engine_refuses_mutants(mutant):
    def commit(*args, **options):
        return commit_in_python(*args, **options, mutant=mutant)

    with pytest.raises((AssertionError, IndexError)):
        run_engine(commit, 40, seed=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_verify_found_is_committed(backend):
    g = torch.Generator().manual_seed(1)
    logits = torch.full((2, 5, 8), -9.0)
    tokens = torch.tensor([[-1, 1, 2, 3, 4], [-1, 1, 2, 3, 4]])
    parents = torch.tensor([[-1, 0, 0, 2, 3], [-1, 0, 0, 1, 2]])
    logits[0, 0, 2] = logits[0, 2, 3] = logits[0, 3, 4] = logits[0, 4, 7] = 9  # keeps 0, 2, 3, 4
    logits[1, 0, 5] = 9  # keeps the root
    tree = sdk.DraftTree.from_parents(tokens, parents)
    verified = sdk.verify(logits, tree, sampling=sdk.SamplingParams(temperature=0.0))
    assert verified.path.tolist() == [[0, 2, 3, 4], [0, -1, -1, -1]]
    cache = torch.randn(6, 4, 2, generator=g)
    before, table = cache.clone(), torch.tensor([[3, 0, 5], [4, 2, 1]]).int()
    committed = sdk.commit_kv([cache], verified, tree, table, int32(3, 9), page_size=4, backend=backend)
    assert committed.lengths.tolist() == [7, 10] and committed.pages_kept.tolist() == [2, 3]
    before[0, 0:3] = before[0, 1:4].clone()
    assert torch.equal(cache, before)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("view", ["pool of keys and values", "pages last", "slots only", "scattered heads"])
def test_caches_that_are_views(backend, view):
    g = torch.Generator().manual_seed(2)
    pool = torch.randn(2, 6, 4, 3, 8, generator=g)
    if view == "pool of keys and values":
        caches, layout = list(pool.transpose(0, 1).contiguous().unbind(1)), "NHD"
    elif view == "pages last":
        caches, layout = list(pool.transpose(1, 2).contiguous().transpose(1, 2)), "NHD"
    elif view == "slots only":
        caches, layout = list(pool[..., 0, 0].contiguous()), "NHD"
    else:
        caches, layout = list(pool.transpose(2, 3)), "HND"  # NHD memory under HND's names
    copies = [cache.clone(memory_format=torch.contiguous_format) for cache in caches]
    tree, path = random_tree(g, 2, empty=0.0)
    table = block_tables(g, 2, 3, 6)
    for which, name in ((caches, backend), (copies, "reference")):
        sdk.commit_kv(which, path, tree, table, int32(1, 3), page_size=4, layout=layout, backend=name)
    assert all(torch.equal(cache, copy) for cache, copy in zip(caches, copies, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_slots_keep_their_length(backend):
    tree = sdk.DraftTree.chain(torch.tensor([-1, 5]), cu_nodes=int32(0, 0, 2, 2))
    cache = torch.arange(12.0).view(3, 4)
    path = torch.tensor([[-1, -1], [0, -1], [-1, -1]]).int()
    committed = sdk.commit_kv(
        [cache], path, tree, int32([0], [1], [2]), int32(0, 3, 4), page_size=4, backend=backend
    )
    assert committed.lengths.tolist() == [0, 4, 4] and committed.pages_kept.tolist() == [0, 1, 1]
    assert torch.equal(cache, torch.arange(12.0).view(3, 4))
    nobody = sdk.DraftTree.chain(torch.zeros(0, 2).long())
    nothing = torch.zeros(0, 3).int()
    assert (
        sdk.commit_kv(
            [cache], nothing, nobody, nothing, int32(), page_size=4, backend=backend
        ).lengths.numel()
        == 0
    )


@pytest.mark.skipif(sys.platform != "linux" or "cpu" not in BACKENDS, reason="read-only pages by mprotect")
def test_rows_in_place_are_not_touched():
    """The cache is read-only memory: a single write ends the process."""
    memory = mmap.mmap(-1, 16 * mmap.PAGESIZE)
    cache = torch.frombuffer(memory, dtype=torch.float32).view(-1, 16, 8)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    assert protect(ctypes.c_void_p(address), len(memory), mmap.PROT_READ) == 0
    tree = sdk.DraftTree.chain(torch.ones(1, 5, dtype=torch.int64))
    path = int32([0, 1, 2, 3, -1, -1])
    committed = sdk.commit_kv([cache], path, tree, int32([7, 3]), int32(14), page_size=16, backend="cpu")
    assert committed.lengths.item() == 18
    assert protect(ctypes.c_void_p(address), len(memory), mmap.PROT_READ | mmap.PROT_WRITE) == 0


@pytest.mark.skipif("cpu" not in BACKENDS, reason="needs the native extension")
def test_results_do_not_depend_on_threads():
    g = torch.Generator().manual_seed(3)
    batch, page_size, threads = 16, 16, torch.get_num_threads()
    tree, path = random_tree(g, batch, most=24)
    pools = [Pool(g, [(batch * 4, 8, 64, torch.float32, 0)] * 6, page_size, "NHD")]
    pools += [pools[0].clone() for _ in range(2)]
    table, prefix_lens = block_tables(g, batch, 4, batch * 4), torch.arange(batch).int()
    try:
        for pool, (backend, count) in zip(pools, (("reference", 1), ("cpu", 1), ("cpu", 4)), strict=True):
            torch.set_num_threads(count)
            sdk.commit_kv(pool.caches, path, tree, table, prefix_lens, page_size=page_size, backend=backend)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(pools[0].bytes, pools[1].bytes) and torch.equal(pools[0].bytes, pools[2].bytes)


# Operators


def problem(layout="NHD"):
    g = torch.Generator().manual_seed(16)  # 4 of 6 accepted rows move
    tree, path = random_tree(g, 3, empty=0.0)
    shape = (12, 4, 2, 8) if layout == "NHD" else (12, 2, 4, 8)
    caches = [torch.randn(shape, generator=g), torch.randn(shape, generator=g).bfloat16()]
    return caches, path, tree, block_tables(g, 3, 4, 12), int32(1, 3, 5)


@pytest.mark.parametrize("backend", QUICK)
@pytest.mark.parametrize("variant", ["list", "plan", "new"])
def test_commit_kv_passes_opcheck(monkeypatch, backend, variant):
    caches, path, tree, table, prefix_lens = problem()
    new = [torch.zeros(tree.tokens.numel(), 2, 8, dtype=cache.dtype) for cache in caches]
    options = dict(new=new if variant == "new" else None, backend=backend)
    given = (caches, path, tree, table, prefix_lens)
    call, backend = recorded(monkeypatch, "commit_kv", lambda: sdk.commit_kv(*given, page_size=4, **options))
    addresses = sdk.CachePlan(call.caches, page_size=4).table if variant == "plan" else None
    opcheck(call._replace(table=addresses), backend)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="needs the native extension")
def test_a_tracer_is_shown_the_caches_of_a_plan():
    shown = []

    class Tracer(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.specdec_kernels.commit_kv.default:
                shown.append(len(args[1]))
            return function(*args, **(kwargs or {}))

    caches, path, tree, table, prefix_lens = problem()
    plan, initial = sdk.CachePlan(caches, page_size=4), [cache.clone() for cache in caches]
    with Tracer():
        sdk.commit_kv(plan, path, tree, table, prefix_lens)
    assert shown == [2]
    assert not torch.equal(initial[0], caches[0])
    after = [cache.clone() for cache in caches]
    for cache in caches:
        cache.zero_()
    lengths = torch.empty(3, dtype=torch.int32)
    call = CommitKVCall(
        caches=initial, table=plan.table, new=[], path=path, cu_nodes=tree.cu_nodes, rows=tree.tokens.numel(),
        block_table=table, prefix_lens=prefix_lens, page_size=4, layout="NHD",
        out_lengths=lengths, out_pages_kept=lengths.clone(),
    )  # fmt: skip
    ops.commit_kv(call, "cpu")
    assert all(torch.equal(cache, done) for cache, done in zip(initial, after, strict=True))
    assert not any(cache.any() for cache in caches)  # those that the table names


@pytest.mark.parametrize(
    "compiler, planned", [("aot_eager", False), ("aot_eager", True), ("inductor", False)]
)
def test_commit_kv_compiles_whole(compiler, planned):
    """test_module.py compiles a plan with inductor."""
    caches, path, tree, table, prefix_lens = problem()
    wanted = [cache.clone() for cache in caches]
    committed = sdk.commit_kv(wanted, path, tree, table, prefix_lens, page_size=4)
    caches = to_device(caches)  # which the function that is compiled meets as they are
    which = sdk.CachePlan(caches, page_size=4) if planned else caches

    def step(path, tree, table, prefix_lens):
        result = sdk.commit_kv(which, path, tree, table, prefix_lens, page_size=4)
        return result, which.caches[0].sum() if planned else which[0].sum()

    compiled = on_device(torch.compile(step, fullgraph=True, backend=compiler))
    result, total = compiled(path, tree, table, prefix_lens)
    assert all(torch.equal(cache.cpu(), want) for cache, want in zip(caches, wanted, strict=True))
    assert torch.equal(result.lengths, committed.lengths)
    torch.testing.assert_close(total, wanted[0].sum())


@pytest.mark.slow
@pytest.mark.skipif("triton" not in BACKENDS, reason="needs triton")
def test_the_interpreter_is_of_the_same_opinion():
    """Triton's own, in a process of its own."""
    script = Path(__file__).with_name("interpreted_commit.py")
    run = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "24 cases agree"


# What is refused


def refused(error, text, caches=None, **changes):
    given_caches, path, tree, table, prefix_lens = problem(changes.get("layout") or "NHD")
    arguments = dict(verified=path, tree=tree, block_table=table, prefix_lens=prefix_lens, page_size=4)
    before = [cache.clone() for cache in given_caches]
    with pytest.raises(error) as raised:
        sdk.commit_kv(given_caches if caches is None else caches(given_caches), **arguments | changes)
    assert text in str(raised.value)
    assert all(torch.equal(cache, copy) for cache, copy in zip(given_caches, before, strict=True))


@pytest.mark.parametrize(
    ["error", "text", "caches", "changes"],
    [
        (ValueError, "caches must hold at least one tensor, got none", lambda c: [], {}),
        (TypeError, "commit_kv: caches[1] must be a tensor, got int", lambda c: [c[0], 3], {}),
        (
            ValueError,
            "caches[0] must have shape [pages, page_size, ...] with page_size = 8, got [12, 4, 2, 8]",
            None,
            dict(page_size=8),
        ),
        (
            ValueError,
            "caches[0] must have shape [pages, Hkv, page_size, ...] with page_size = 2",
            None,
            dict(page_size=2, layout="HND"),
        ),
        (ValueError, "page_size must be >= 1, got 0", None, dict(page_size=0)),
        (
            ValueError,
            "page_size must be an int >= 1 without a CachePlan, got None",
            None,
            dict(page_size=None),
        ),
        (ValueError, "layout must be one of NHD, HND, got 'NDH'", lambda c: c, dict(layout="NDH")),
        (
            ValueError,
            "caches[0] must have contiguous rows (dimensions 2 to 3), got shape [12, 4, 2, 7], strides "
            "[64, 16, 8, 1]",
            lambda c: [c[0][..., :7], c[1]],
            {},
        ),
        (
            ValueError,
            "caches[1] must have contiguous rows (dimensions 3 to 3)",
            lambda c: [c[0], c[1][..., ::2]],
            dict(layout="HND"),
        ),
        (ValueError, "caches[0] must not overlap itself", lambda c: [c[0][:1].expand(12, -1, -1, -1)], {}),
        (ValueError, "caches must be distinct, got 0 and 2 at one address", lambda c: [*c, c[0]], {}),
        (TypeError, f"caches[1] must be on device {NAME}, got meta", lambda c: [c[0], c[1].to("meta")], {}),
        (TypeError, "tree must be a DraftTree, got NoneType", None, dict(tree=None)),
        (
            ValueError,
            "verified must have shape [B, max_depth + 1]",
            None,
            dict(verified=torch.zeros(3, 1).int()),
        ),
        (
            TypeError,
            "verified must have dtype int32, got int64",
            None,
            dict(verified=torch.zeros(3, 9).long()),
        ),
        (
            ValueError,
            "block_table must have shape [B, P] = [3, 4], got [2, 4]",
            None,
            dict(block_table=torch.zeros(2, 4).int()),
        ),
        (
            ValueError,
            "block_table must have shape [B, P], got [3]",
            None,
            dict(block_table=torch.zeros(3).int()),
        ),
        (
            TypeError,
            "block_table must have dtype int32, got int64",
            None,
            dict(block_table=torch.zeros(3, 4).long()),
        ),
        (
            ValueError,
            "prefix_lens must have shape [B] = [3], got [4]",
            None,
            dict(prefix_lens=torch.zeros(4).int()),
        ),
        (ValueError, "new must hold a tensor for each of 2 caches, got 0", None, dict(new=[])),
        (
            TypeError,
            "new[0] must have the dtype of caches[0], float32, got float64",
            None,
            dict(new=[torch.zeros(1).double()] * 2),
        ),
        (
            ValueError,
            "new[0] must have shape [R, ...] with the cache's row",
            None,
            dict(new=[torch.zeros(1)] * 2),
        ),
    ],
)
def test_refusals(error, text, caches, changes):
    refused(error, text, caches, **changes)


def test_a_plan_is_held_to_its_word(monkeypatch):
    caches, path, tree, table, prefix_lens = problem()
    plan = sdk.CachePlan(caches, page_size=4)
    for changes, text in ((dict(page_size=8), "page_size must be the plan's, 4, got 8"),
                          (dict(layout="HND"), "layout must be the plan's, 'NHD', got 'HND'")):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            sdk.commit_kv(plan, path, tree, table, prefix_lens, **changes)
    with pytest.raises(ValueError, match="CachePlan: caches must hold"):
        sdk.CachePlan([], page_size=4)
    monkeypatch.setattr(backends, "_triton", lambda: (None, "triton is not installed"))
    with pytest.raises(sdk.BackendUnavailable, match="commit_kv: backend 'triton'"):
        sdk.commit_kv(plan, path, tree, table, prefix_lens, backend="triton")
