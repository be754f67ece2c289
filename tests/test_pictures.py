# SPDX-License-Identifier: Apache-2.0
"""Pictures are drawn from the files of results, and what the README shows is what the files say."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

pytest.importorskip("matplotlib")

from bench import pictures
from bench.acceptance import SHAPES, laws, tokens_per_step
from bench.recording import recording

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "pictures"
NAMES = [f"{name}-{page.name}" for name in (*pictures.PICTURES, "recording") for page in pictures.PAGES]


def texts(path: Path) -> list[str]:
    return [
        "".join(node.itertext()).strip()
        for node in ElementTree.parse(path).iter()
        if node.tag.endswith("}text")
    ]


def test_one_command_draws_them_all(tmp_path, monkeypatch):
    """The committed ones say what is drawn now."""
    pictures.main(tmp_path)
    assert {path.stem for path in tmp_path.iterdir()} == set(NAMES)
    for path in tmp_path.iterdir():
        assert path.stat().st_size < 50_000
        assert texts(path) == texts(PICTURES / path.name), f"{path.name}: python -m bench pictures"


def test_every_committed_picture_is_drawn_and_shown():
    assert {path.stem for path in PICTURES.glob("*")} == set(NAMES)
    page = (ROOT / "docs" / "pictures.md").read_text(encoding="utf-8")
    assert all(f"pictures/{name}.svg" in page for name in NAMES)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "](docs/pictures/demo-light.svg)" in readme.split("\n## ")[0]


def test_the_demos_table_is_its_file():
    found = json.loads((ROOT / "bench/results/amd-epyc-avx-512/demo.json").read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, speedups in found["speedups"].items():
        row = next(line for line in readme.splitlines() if line.startswith(f"| {name} |"))
        figures = [f"{found['plain'][name]}", *(f"{speedup:.2f}x" for speedup in speedups.values())]
        assert all(figure in row for figure in figures), row


def test_steps_are_recorded_with_what_was_accepted():
    drawn = recording({"model": "M", "steps": {"x": [["<a", "b\n", "c"], ["d"]]}}, "x", *"1234")
    ElementTree.fromstring(drawn)
    assert '<tspan class="a">&lt;ab⏎</tspan><tspan class="n">c</tspan>' in drawn
    assert "4 tokens in 2 steps; plain decoding takes 4 steps" in drawn


def test_the_simulation_of_a_chain_is_what_its_laws_say():
    """1 + a + a b tokens, where a and b are the overlaps at the root and after one token."""
    p, q = (logits.double().softmax(-1) for logits in laws(0.5))
    overlap = torch.minimum(p, q).sum(-1)
    assert abs(overlap.mean() - 0.5) < 1e-3
    expected = float((1 + overlap + overlap * overlap.roll(-13)).mean())
    mean = tokens_per_step("token", (1, 1), 0.5)
    assert abs(mean.tokens - expected) < 4 * mean.error < 0.07
    assert abs(tokens_per_step("match", (1, 1), 0.5).tokens - expected) > 10 * mean.error


def test_the_file_of_acceptance_is_written_by_the_simulation():
    found = json.loads((ROOT / "bench/results/acceptance.json").read_text(encoding="utf-8"))
    mean = tokens_per_step("traversal", SHAPES["14 siblings"], found["overlaps"][2])
    assert mean.tokens == found["14 siblings"]["traversal"][2]


def test_more_overlap_is_more_tokens():
    found = json.loads((ROOT / "bench/results/acceptance.json").read_text(encoding="utf-8"))
    for shape in SHAPES:
        rows = found[shape]
        assert all(a <= b + 0.05 for row in rows.values() for a, b in pairwise(row))
        assert all(t <= v + 0.05 for t, v in zip(rows["token"], rows["traversal"], strict=True))
