# SPDX-License-Identifier: Apache-2.0
"""Launch configurations of tree attention: pure functions, so they are tested without a kernel."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget

from specdec_kernels.triton import attention_launch as launch

GFX942 = GPUTarget("hip", "gfx942", 64)


def cuda(arch):
    return GPUTarget("cuda", arch, 32)


def shape(rows=64, target=None, det=False, arch=80, **changes):
    """Of one request with so many packed rows."""
    problem = launch.Problem(
        query_heads=32, kv_heads=32, head_dim=128, value_dim=128, rows=rows, requests=1,
        bytes_per_element=2, plain=True, deterministic=det,
    )  # fmt: skip
    return launch.attention_launch(target or cuda(arch), dataclasses.replace(problem, **changes))


LATENT = dict(head_dim=576, value_dim=512)


@pytest.mark.parametrize("head, parts", [
    (1, (16, 0)), (32, (32, 0)), (33, (32, 16)), (80, (64, 16)), (96, (64, 32)), (112, (128, 0)),
    (128, (128, 0)), (192, (128, 64)), (256, (256, 0)), (576, (512, 64)),
])  # fmt: skip
def test_a_key_is_padded_little(head, parts):
    chosen = shape(head_dim=head)
    assert (chosen.block_head, chosen.block_rest) == parts


def test_tiles_fit_their_rows_and_their_target():
    assert [shape(rows=rows).block_rows for rows in (1, 17, 64, 400)] == [16, 32, 64, 128]
    assert shape(rows=400, plain=False).block_rows == shape(rows=400, head_dim=80).block_rows == 64
    assert shape(rows=400, target=GFX942).block_rows == 64
    assert shape(**LATENT).block_rows == 32
    assert shape(**LATENT, target=GFX942).block_rows == 16


@pytest.mark.parametrize("version, rows", [
    ("3.4.0", 32), ("3.6.0", 32), ("3.7.0", 32),
    ("3.7.1", 128), ("3.9.0+git1", 128), ("3.10.1", 128), ("4.0.0", 128),
])  # fmt: skip
def test_no_tile_needs_a_fence_that_triton_forgets(version, rows):
    """wgmma takes 64 rows. It reads shared memory past the proxy through which copies are written."""
    problem = launch.Problem(32, 8, 128, 128, 64, 1, bytes_per_element=2, plain=True, deterministic=False)
    fixed = dataclasses.replace(problem, deterministic=True)
    assert launch.attention_launch(cuda(90), problem, version).block_rows == rows
    assert launch.attention_launch(cuda(90), fixed, version).block_rows == min(rows, 64)
    assert launch.attention_launch(cuda(80), problem, version).block_rows == 128


def test_more_warps_where_registers_are_needed_for_more_than_products():
    assert [shape(rows=rows, plain=False).warps for rows in (16, 32, 64)] == [8, 4, 8]
    assert [shape(rows=rows, plain=False, arch=90).warps for rows in (16, 32, 64)] == [8, 8, 4]
    assert [shape(rows=rows).warps for rows in (16, 32, 64, 128)] == [4, 4, 4, 8]
    wide = dict(head_dim=256, value_dim=256)
    assert [shape(**wide, rows=rows).warps for rows in (16, 64)] == [4, 8]
    assert shape(**wide, rows=16, plain=False).warps == 8
    amd = shape(plain=False, target=GFX942)
    assert (amd.warps, amd.block_keys) == (4, 32)
    assert shape(**wide, plain=False, target=GFX942).block_keys == 16
    for target, warps in ((cuda(80), 8), (GFX942, 4)):
        chosen = shape(**LATENT, plain=False, det=True, target=target)
        assert (chosen.warps, launch.path_blocks(target, chosen)) == (warps, (16, warps))


def test_keys_are_copied_steps_ahead():
    """Where 64 of them do not fit beside the accumulators, half as many are copied one step earlier."""

    def ahead(arch):
        return [
            (shape(rows=rows, arch=arch).block_keys, shape(rows=rows, arch=arch).stages) for rows in (1, 128)
        ]

    assert ahead(80) == ahead(90) == [(64, 3), (64, 3)] and ahead(120) == [(64, 3), (32, 4)]
    assert shape(**LATENT).stages == shape(head_dim=256, value_dim=256).stages == 3


def test_wide_float32_keys_are_taken_in_parts():
    wide = shape(**LATENT, bytes_per_element=4)
    assert (wide.block_head, wide.block_rest, wide.stages) == (128, 0, 1)
    assert shape(head_dim=256, value_dim=256, bytes_per_element=4).block_head == 256


def test_deterministic_launches_know_nothing_of_the_batch():
    chosen = {shape(rows=rows, requests=n, det=True) for rows in (1, 16, 100, 4000) for n in (1, 7, 64)}
    assert len(chosen) == 1 and {(each.splits, each.least) for each in chosen} == {(32, 128)}


@pytest.mark.parametrize("changes, programs", [
    (dict(kv_heads=8, rows=1), 132), (dict(kv_heads=1, rows=1), 132), (dict(kv_heads=1, rows=64), 99),
    (dict(kv_heads=1, rows=1, query_heads=16, **LATENT), 99),
    (dict(kv_heads=1, rows=1, query_heads=128, **LATENT), 99),
])  # fmt: skip
def test_one_request_fills_the_chip(changes, programs):
    """With a prefix that has positions enough."""
    chosen = shape(**changes)
    group = changes.get("query_heads", 32) // changes["kv_heads"]
    tiles = changes["kv_heads"] * -(-changes["rows"] * group // chosen.block_rows)
    assert launch.most_splits(32768, chosen.splits, chosen.least) * tiles >= programs


def test_a_batch_that_fills_the_chip_is_not_split():
    assert shape(rows=64 * 64, requests=64, kv_heads=8).splits == 1
    assert shape(rows=64, requests=64, kv_heads=8).splits == 1


@pytest.mark.parametrize("places", [132, 264])
def test_three_quarters_of_the_places_are_at_work(places):
    for tiles in range(1, 2000):
        splits = launch.splits_that_fill(tiles, places)
        waves = -(-tiles * splits // places)
        assert tiles * splits >= 0.75 * waves * places
        assert splits == 1 or tiles * splits <= 5 * places  # so their results are few


def test_every_split_has_room_for_its_result():
    """Of prefixes cut as the kernels do it; the length of a split does not depend on the host's bound."""
    for splits, least in itertools.product((1, 3, 32, 212), (64, 128, 256)):
        for positions in [*range(1, 9000, 7), *range(9000, 300_000, 997)]:
            length = launch.split_length(positions, splits, least)
            assert length % 64 == 0 and -(-positions // length) <= launch.most_splits(
                positions, splits, least
            )


def test_a_program_merges_up_to_64_numbers_a_thread():
    for rows in (1, 64):
        for splits in (1, 2, 5, 16, 17, 200):
            at_once, heads, columns = launch.merge_blocks(shape(rows=rows), splits)
            threads = 32 * max(at_once // 16, 1)
            assert at_once * heads * columns == threads * (32 if splits == 1 else 64)
            assert at_once == (64 if splits > 16 else 1 << (splits - 1).bit_length())
    assert launch.merge_blocks(shape(**LATENT), 200) == (64, 1, 128)


def test_registers_are_allowed_where_elements_are_widened():
    some = shape()
    assert launch.attention_registers(cuda(80), some, True) == {"maxnreg": 255}
    assert (
        launch.attention_registers(cuda(80), some, False)
        == launch.attention_registers(GFX942, some, True)
        == {}
    )


def test_two_blocks_of_large_heads_have_their_registers_on_sm_90():
    for rows, head, limit in ((32, 256, {"maxnreg": 128}), (16, 256, {}), (32, 128, {}), (32, 576, {})):
        some = shape(rows=rows, head_dim=head, value_dim=min(head, 512), arch=90)
        assert launch.attention_registers(cuda(90), some, False, "3.9.0") == limit
        assert (launch.attention_registers(cuda(90), some, False, "3.7.1") == {"maxnreg": 255}) == bool(limit)
