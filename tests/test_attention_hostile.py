# SPDX-License-Identifier: Apache-2.0
"""Tree attention of bad data: nothing is read out of bounds. Also run under AddressSanitizer and UBSan by
`make test-sanitized`."""

from __future__ import annotations

import ctypes
import mmap
import sys

import pytest
import torch
from attention_cases import CACHES, excess, make
from each import BACKENDS, DEVICE

import specdec_kernels as sdk


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cache", CACHES)
def test_odd_sizes(cache, dtype):
    for seed, (head, value, page, layout) in enumerate(
        [(33, 17, 3, "NHD"), (80, 96, 1, "HND"), (1, 1, 5, "NHD"), (64, 64, 16, "HND")]
    ):
        for nodes in ([2, 0, 1], [11, 9, 40]):
            problem = make(seed=seed, prefixes=[70, 5, 0], nodes=nodes, head=head, value=value,
                           page_size=page,
                           layout=layout, cache=cache, dtype=dtype, new=bool(seed % 2))  # fmt: skip
            assert excess(problem, problem.run()) <= 1


@pytest.mark.parametrize("dtype, cache", [
    (torch.float32, torch.int8), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.float16),
    (torch.bfloat16, torch.float8_e4m3fn), (torch.float16, torch.float8_e4m3fn),
])  # fmt: skip
def test_odd_sizes_on_the_triton_backend(bounds_of_arguments, dtype, cache):
    problem = make(prefixes=[70, 5, 0], nodes=[11, 9, 0], head=33, value=17, page_size=3, cache=cache,
                   dtype=dtype)  # fmt: skip
    weights = None if dtype == torch.float32 else dtype
    assert excess(problem, problem.run("triton"), weights=weights) <= 1


@pytest.fixture
def bounds_of_arguments():
    """Kernels on the emulator may touch their arguments and no other tensor, and share memory properly."""
    if DEVICE == "cuda" or "triton" not in BACKENDS:
        yield
    else:
        import ptx_emulator

        with ptx_emulator.active(80, reach="mapped", races=True):
            yield


@pytest.mark.usefixtures("bounds_of_arguments")
@pytest.mark.parametrize("backend", BACKENDS)
def test_malformed_trees_and_tables(backend):
    g = torch.Generator().manual_seed(1)
    for trial in range(30):
        problem = make(seed=trial, prefixes=[90, 3, 0], nodes=[9, 4, 1], page_size=4, new=trial % 2 == 0,
                       window=[None, 5][trial // 2 % 2])  # fmt: skip
        a = problem.arguments
        a["key_cache"].nan_to_num_()
        a["value_cache"].nan_to_num_()
        tree, rows = a["tree"], a["query"].shape[0]
        wild = lambda low, high, shape: torch.randint(low, high, shape, generator=g).int()  # noqa: E731
        parents = wild(-3, rows + 3, (rows,)) if trial % 3 else tree.parents
        cu_nodes = wild(-5, rows + 5, (4,)) if trial % 3 == 1 else tree.cu_nodes
        if trial % 5 == 0:
            parents[::2] = torch.iinfo(torch.int32).max
        broken = sdk.DraftTree(tree.tokens, parents, cu_nodes, tree.proposals, tree.max_nodes, tree.max_depth)
        pages, table = a["key_cache"].shape[0], a["block_table"]
        if trial % 4 < 2:
            table = wild(*[(-(2**31), 2**31 - 1), (-2, pages + 2)][trial % 4], table.shape)
        lengths = torch.tensor([[2**31 - 1, -7, 3], [2**30, 50, -(2**31)], [90, 3, 0]][trial % 3]).int()
        out, lse = problem.run(
            backend, tree=broken, block_table=table, prefix_lens=lengths, deterministic=trial % 7 > 3
        )
        assert out.isfinite().all() and not lse.isnan().any()
        if backend != "reference":
            expected = problem.run("reference", tree=broken, block_table=table, prefix_lens=lengths)
            torch.testing.assert_close((out, lse), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_pages_no_nodes_no_requests(backend):
    tree = sdk.DraftTree.chain(torch.zeros(2, 1, dtype=torch.int64))
    query, lengths = torch.randn(4, 2, 16), torch.tensor([3, 4]).int()
    none = torch.zeros(0, 4, 1, 16)
    for table in (torch.zeros(2, 0).int(), torch.zeros(2, 3).int()):
        out, lse = sdk.tree_attention(
            query, none, none, tree, table, lengths, return_lse=True, backend=backend
        )
        assert not out.any() and bool((lse == -torch.inf).all())
    empty = sdk.DraftTree.chain(torch.zeros(0, 1, dtype=torch.int64))
    out = sdk.tree_attention(
        query[:0], none, none, empty, torch.zeros(0, 0).int(), lengths[:0], backend=backend
    )
    assert out.shape == (0, 2, 16)


@pytest.mark.skipif(sys.platform != "linux", reason="guard pages by mprotect")
def test_nothing_is_read_beyond_the_cache():
    """The cache ends at a page that must not be touched: one byte beyond it ends the process."""
    page, pages = mmap.PAGESIZE, 20
    memory = mmap.mmap(-1, (pages + 1) * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(address + pages * page), page, 0) == 0
    for head in (1, 15, 16, 17, 33, 80):
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn):
            size = 40 * head * dtype.itemsize
            cache = torch.frombuffer(memory, dtype=dtype, count=40 * head, offset=pages * page - size)
            cache = cache.view(8, 5, 1, head)
            cache.copy_(torch.randn(cache.shape))
            for nodes in (1, 12):
                tree = sdk.DraftTree.chain(torch.zeros(1, nodes - 1, dtype=torch.int64))
                out = sdk.tree_attention(torch.randn(nodes, 2, head), cache, cache, tree,
                                         torch.arange(8).int()[None],
                                         torch.tensor([40 - nodes]).int(), backend="cpu")  # fmt: skip
                assert out.isfinite().all()
