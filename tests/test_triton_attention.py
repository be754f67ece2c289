"""Tree attention on the Triton backend: what it launches, and what its launches count."""

from __future__ import annotations

import pytest
import torch
from attention_cases import make, make_tree
from each import BACKENDS, DEVICE

import specdec_kernels as sdk

if "triton" not in BACKENDS or DEVICE == "cuda":
    pytest.skip("counts come from the emulator", allow_module_level=True)

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
    return launch.attention_launch(
        backend, arch, heads, head, value, rows, bytes_per_element=size, plain=plain, deterministic=det
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
    assert shape(heads=8).block_heads == 8 and shape(heads=8).merge_warps == 1


def test_deterministic_launches_know_nothing_of_the_batch():
    assert len({shape(rows=rows, det=True) for rows in (1, 16, 100, 4000)}) == 1
    assert {launch.attention_splits(10_000, warps, True) for warps in (1, 64, 10_000)} == {32}


def test_splits_fill_the_chip_and_stay_few():
    assert launch.attention_splits(1024, 16 * 4, False) == 8
    assert launch.attention_splits(1024, 32 * 8, False) == 2
    assert launch.attention_splits(1024, 10_000, False) == 1
    assert launch.attention_splits(10**6, 1, False) == 32
    assert launch.attention_splits(0, 1, False) == launch.attention_splits(100, 1, True) == 1
