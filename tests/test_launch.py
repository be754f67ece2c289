# SPDX-License-Identifier: Apache-2.0
"""Launch configurations are pure functions of shapes, and cover what they must."""

from __future__ import annotations

import pytest

from specdec_kernels.triton.launch import row_passes, verify_launch
from specdec_kernels.triton.select import COLLECTED


@pytest.mark.parametrize("vocab", [1, 2, 1023, 1024, 1025, 32_000, 32_768, 50_257, 128_256, 262_144])
def test_splits_cover_a_row_once(vocab):
    splits = row_passes(vocab).splits
    assert (splits.count - 1) * splits.length < vocab <= splits.count * splits.length
    assert splits.count <= splits.padded < 2 * splits.count
    assert splits.padded & (splits.padded - 1) == 0


def test_races_start_at_words_of_philox():
    splits = row_passes(32_768).splits
    assert splits.length % splits.race_tile == 0 and splits.race_tile % 4 == 0


def test_one_request_fills_a_chip():
    assert row_passes(128_256).splits.count >= 108  # the processors of an A100


def test_the_same_shape_has_the_same_configuration():
    assert row_passes(50_257) == row_passes(50_257)


@pytest.mark.parametrize("vocab", [1, 1024, 8192, 8193, 50_257, 128_256])
@pytest.mark.parametrize("rule", ["match", "token"])
def test_the_launches_of_verify_cover_rows_once(vocab, rule):
    launch, longest = verify_launch(vocab, vocab + 7, rule), vocab + 7
    read = ((launch.rows.splits, longest), (launch.rows.collect, longest), (launch.sums, longest))
    for splits, row in (*read, (launch.draw, vocab)):
        assert (splits.count - 1) * splits.length < row <= splits.count * splits.length
        assert splits.count <= splits.padded
        assert splits.length % splits.race_tile == 0 and splits.race_tile % 4 == 0


@pytest.mark.parametrize("vocab", [1, 1024, 32_000, 128_256, 152_064, 262_144])
def test_what_one_program_holds_stays_in_registers(vocab):
    """Lists of four scores a lane of every split, and what all splits collected."""
    for rows in (row_passes(vocab), verify_launch(vocab, vocab, "token").rows):
        assert 4 * rows.splits.padded * rows.lanes <= 32 * 32 * rows.settle_warps
        assert rows.collect.padded * COLLECTED <= 32 * 32 * rows.select_warps and rows.select_warps <= 16
        assert rows.splits.length % (8 * rows.lanes) == 0
