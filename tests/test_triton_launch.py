# SPDX-License-Identifier: Apache-2.0
"""Launch configurations: pure functions, so they are tested without a kernel."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget

from specdec_kernels.triton import launch

GFX942 = GPUTarget("hip", "gfx942", 64)


def cuda(arch):
    return GPUTarget("cuda", arch, 32)


def test_commit_kv_fills_a_chip_and_shares_out_no_more():
    assert launch.commit_splits(1) == 8
    assert launch.commit_splits(32) == 4  # one request, 64 caches
    assert [launch.commit_splits(programs) for programs in (128, 256, 10**6)] == [1, 1, 1]
    assert launch.commit_splits(0) == 8  # an empty batch launches nothing, whatever this is


def test_numbers_travel_in_few_sizes_within_the_argument_limit():
    sizes = {launch.commit_numbers(count) for count in range(1, 5000)}
    assert sizes == {16, 32, 64, 128, 256}
    assert all(launch.commit_numbers(count) >= min(count, 256) for count in range(1, 5000))


@pytest.mark.parametrize("rows", [1, 16, 64, 100, 128, 256, 4096])
@pytest.mark.parametrize("columns", [1, 64, 128, 200])
def test_a_state_tile_has_all_rows_and_stays_in_registers(rows, columns):
    tile = launch.state_tile(rows, columns)
    assert rows <= tile[0] < max(2 * rows, 17) and tile[0] * tile[1] <= max(2048, tile[0])
    assert all(size & (size - 1) == 0 for size in tile)
    assert tile[1] < max(2 * columns, 17)
    assert launch.state_tile(128, 128) == (128, 16)


def test_a_text_is_shared_out_whole_and_its_last_place_left_out():
    assert [launch.ngram_splits(width) for width in (0, 1, 2, 1025, 1026)] == [1, 1, 1, 1, 2]
    assert launch.ngram_splits(100_000) == 98


@pytest.mark.parametrize("branches", [1, 4, 8, 9, 100, 256, 1000])
def test_continuations_are_compared_in_small_tiles(branches):
    block, depths, warps = launch.ngram_branches(branches)
    assert branches <= block < max(2 * branches, 9) and block * depths == max(128, block)
    assert warps == {8: 1, 16: 1, 128: 4, 256: 8, 1024: 8}[block]


def test_registers_are_limited_where_compilers_would_spill():
    assert {launch.registers(cuda(arch), 8)["maxnreg"] for arch in (80, 90, 100, 120)} == {168}
    assert launch.registers(cuda(90), 16) == {"maxnreg": 128}  # all that a processor has
    assert launch.registers(GFX942, 8) == {}
