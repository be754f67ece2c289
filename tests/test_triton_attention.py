# SPDX-License-Identifier: Apache-2.0
"""Tree attention on the Triton backend: what it launches, and what its launches count."""

from __future__ import annotations

import itertools

import pytest
import torch
from attention_cases import make, make_tree
from each import BACKENDS, COPIED, DEVICE

import specdec_kernels as sdk

if "triton" not in BACKENDS or DEVICE == "cuda":
    pytest.skip("counts come from the emulator", allow_module_level=True)

from triton.backends.compiler import GPUTarget

import ptx_emulator
from specdec_kernels.triton import launch

BF16 = torch.bfloat16
TREE = [-1, *((i - 1) // 2 for i in range(1, 64))]  # binary


def standard(nodes):
    """The standard case: two requests, 32 query heads on 8 of the cache, 1024 positions, binary trees."""
    options = dict(heads=8, group=4, head=128, page_size=16, dtype=BF16, trees=[TREE[:nodes]] * 2)
    return make(prefixes=[1024, 1024], **options)


@pytest.mark.parametrize("nodes, instructions, programs", [(16, 70e6, 128), (64, 130e6, 64)])
def test_the_standard_case_keeps_its_counts(nodes, instructions, programs):
    problem = standard(nodes)
    with ptx_emulator.count() as launches:
        out, lse = problem.run("triton", max_prefix_len=1024)
    first, _ = launches
    total = launches.total()
    row_tiles = -(-nodes * 4 // 128)  # per request
    splits = first.grid[1]
    partials = 2 * splits * lse.numel() * (128 + 1) * 4  # written and read
    least = 2 * (2 * (1024 + nodes) * 8 * 2 * 128 + 2 * out.numel()) + partials
    needed = 4 * 128 * 32 * sum(1024 + len(path) for paths in problem.paths for path in paths)
    assert len(launches) == 2
    assert total["thread_insts"] <= instructions
    assert launches.bytes() <= 2 * least
    assert total["mma"] * 2 * 16 * 8 * 16 <= 1.6 * needed
    assert 2 * 8 * row_tiles * splits >= programs  # those that do not return at once
    assert "cp.async.cg.shared.global" in first.ptx and "mma.sync" in first.ptx
    assert all(ptx_emulator.resources(each.ptx)["spill_stores"] == 0 for each in launches)
    assert lse.isfinite().all()


@pytest.mark.parametrize("deterministic", [False, True])
def test_launches_depend_on_bounds_alone(deterministic):
    shapes = set()
    for prefixes, trees in (([90, 3], [TREE[:9], TREE[:3]]), ([0, 0], [[], [-1, *range(11)]])):
        problem = make(prefixes=prefixes, trees=trees, head=32, page_size=4)
        table = problem.arguments["block_table"]
        table = torch.cat([table, torch.full((2, 40 - table.shape[1]), -1, dtype=torch.int32)], 1)
        with ptx_emulator.active(80, compile_only=True), ptx_emulator.count() as launches:
            problem.run("triton", block_table=table, deterministic=deterministic)
        shapes.add(tuple((each.name, each.grid) for each in launches))
    assert len(shapes) == 1 and len(shapes.pop()) == 2


@pytest.mark.parametrize("options", [
    dict(), dict(window=70, softcap=9.0, sinks=True), dict(latent=40, heads=1),
    dict(cache=torch.float8_e4m3fn, new=True),
])  # fmt: skip
def test_the_rest_of_the_batch_changes_nothing_where_tiles_have_as_many_rows(options):
    """As they have if the average request needs the same power of two, not only with `deterministic=True`."""
    nodes, prefixes = [20, 30, 17], [600, 1200, 0]
    problem = make(
        prefixes=prefixes, nodes=nodes, page_size=16, dtype=BF16, **dict(group=4, head=64) | options
    )
    out, lse = problem.run("triton")
    a, start = problem.arguments, 0
    for b, n in enumerate(nodes):
        rows = slice(start, start + n)
        tree = sdk.DraftTree.from_parents(a["tree"].tokens[rows][None], a["tree"].parents[rows][None])
        mine = {name: a[name][rows] for name in ("query", "new_key", "new_value") if a.get(name) is not None}
        mine |= {name: a[name][b : b + 1] for name in ("block_table", "prefix_lens")}
        alone, alone_lse = problem.run("triton", tree=tree, max_prefix_len=prefixes[b], **mine)
        assert torch.equal(out[rows], alone) and torch.equal(lse[rows], alone_lse)
        start += n


@pytest.mark.usefixtures("untouched_memory")
@pytest.mark.skipif(COPIED, reason="would copy 4 GB")
def test_slots_of_wide_pages_lie_beyond_32_bits():
    stride = 2**31 + 16
    pool = torch.empty(2 * stride + 16, dtype=torch.int8)  # of which three rows are touched
    cache = pool.as_strided((1, 3, 1, 16), (3 * stride, stride, 16, 1))
    for slot in range(3):
        cache[0, slot] = slot
    tree = make_tree([[-1]])
    query, pages, lengths = torch.zeros(1, 1, 16), torch.zeros(1, 1).int(), torch.tensor([2]).int()
    out = sdk.tree_attention(query, cache, cache, tree, pages, lengths, backend="triton")
    torch.testing.assert_close(out, torch.ones(1, 1, 16))


# --- Launch configuration ----------------------------------------------------------------------------------


def shape(head=128, value=128, rows=64, arch=80, backend="cuda", heads=32, size=2, plain=True, det=False):
    target = GPUTarget(backend, arch, 32 if backend == "cuda" else 64)
    return launch.attention_launch(
        target, heads, head, value, rows, bytes_per_element=size, plain=plain, deterministic=det
    )


@pytest.mark.parametrize("head, parts", [
    (1, (16, 0)), (32, (32, 0)), (33, (32, 16)), (80, (64, 16)), (96, (64, 32)), (112, (128, 0)),
    (128, (128, 0)), (192, (128, 64)), (256, (256, 0)), (576, (512, 64)),
])  # fmt: skip
def test_a_key_is_padded_little(head, parts):
    chosen = shape(head=head)
    assert (chosen.block_head, chosen.block_rest) == parts


def test_tiles_fit_their_rows_and_their_target():
    assert [shape(rows=rows).block_rows for rows in (1, 17, 64, 400)] == [16, 32, 64, 128]
    assert shape(rows=400, plain=False).block_rows == shape(rows=400, head=80).block_rows == 64
    assert (shape(rows=64).warps, shape(rows=64, arch=120).warps) == (4, 8)
    assert shape(rows=400, backend="hip", arch="gfx942").block_rows == 64
    assert shape(head=576, value=512, rows=64).block_rows == 32
    assert shape(head=576, value=512, rows=64, backend="hip", arch="gfx942").block_rows == 16


def test_more_warps_where_registers_are_needed_for_more_than_products():
    assert [shape(rows=rows, plain=False).warps for rows in (16, 32, 64)] == [8, 4, 8]
    assert [shape(rows=rows, plain=False, arch=90).warps for rows in (16, 32, 64)] == [8, 4, 4]
    assert [shape(rows=rows).warps for rows in (16, 32, 64)] == [4, 4, 4]
    assert (shape(head=256, value=256, plain=False).warps, shape(head=256, value=256).warps) == (8, 4)
    amd = shape(rows=64, plain=False, backend="hip", arch="gfx942")
    assert (amd.warps, amd.block_keys) == (4, 32)
    wide = dict(head=576, value=512, plain=False, det=True)
    chosen = shape(**wide), shape(**wide, backend="hip", arch="gfx942")
    assert [(each.warps, each.merge_warps) for each in chosen] == [(8, 8), (4, 4)]


def test_wide_float32_keys_are_taken_in_parts():
    wide = shape(head=576, value=512, size=4)
    assert (wide.block_head, wide.block_rest, wide.stages) == (128, 0, 1)
    assert shape(head=256, value=256, size=4).block_head == 256
    assert shape(heads=8).block_heads == 8 and shape(heads=8).merge_warps == 1


def test_deterministic_launches_know_nothing_of_the_batch():
    assert len({shape(rows=rows, det=True) for rows in (1, 16, 100, 4000)}) == 1


def test_splits_are_longer_where_their_partial_results_are_larger():
    assert [shape(rows=rows).split for rows in (1, 64, 128)] == [128, 128, 512]
    assert shape(rows=1, det=True).split == 128


def test_splits_are_few_however_long_the_prefix():
    assert [launch.attention_splits(n, 128) for n in (0, 1, 128, 129, 1024)] == [1, 1, 1, 2, 8]
    assert [launch.attention_splits(n, 128) for n in (4096, 10**5, 10**9)] == [19, 32, 32]
    assert [launch.attention_splits(n, 512) for n in (1024, 4096)] == [2, 7]


def test_every_split_has_room_for_its_result():
    """Of prefixes cut as the kernels do it."""
    for split, positions in itertools.product((128, 512), [*range(1, 9000), *range(9000, 300_000, 997)]):
        length = split + -(-max(positions - 1024, 0) // 2048) * 64
        assert -(-positions // length) <= launch.attention_splits(positions, split)
