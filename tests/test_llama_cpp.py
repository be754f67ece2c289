# SPDX-License-Identifier: Apache-2.0
"""The loop of examples/llama_cpp.py over a stand-in of llama.cpp: sequences of trees, and their rollback.

`make test-llama-cpp` runs the same example over llama.cpp itself (tests/llama_cpp_real.py).
"""

from __future__ import annotations

import importlib.util
import random
import re
import sys
from pathlib import Path

import llama_stand_in as stand_in
import pytest
import torch

import specdec_kernels as sdk

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "llama_cpp.py"
COSTS = {1: 1.0, 16: 1.5}  # rows are cheap, so that most steps draft
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 3, 1, 4]


@pytest.fixture
def example(monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", stand_in)
    spec = importlib.util.spec_from_file_location("example_llama_cpp", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def random_tree(rng: random.Random, nodes: int) -> list[int]:
    return [-1] + [rng.randrange(node) for node in range(1, nodes)]


def path_to(parents: list[int], node: int) -> list[int]:
    return [] if node < 0 else [*path_to(parents, parents[node]), node]


def stored(memory: stand_in.Memory) -> list[tuple[int, int, tuple[int, ...]]]:
    return sorted((cell.position, cell.token, tuple(sorted(cell.seq_ids))) for cell in memory.cells)


def steps_of(example, rng: random.Random, plan) -> list[bool]:
    """Random trees read and rolled back by a plan: whether just the kept path was left, as sequence 0."""
    model, right = example.Model("", slots=512), []
    text = list(range(4))
    model.read_prompt(text)
    for _ in range(6):
        parents = random_tree(rng, rng.randint(1, 15))
        tokens = [rng.randrange(stand_in.VOCAB) for _ in parents]
        paths = [path_to(parents, node) for node in range(len(parents))]
        seq_ids = example.sequences(parents)
        model.change([("cp", 0, leaf, -1, -1) for leaf in seq_ids[0][1:]])
        model.read(tokens, [len(text) + len(path) - 1 for path in paths], seq_ids, rows=1)
        kept = rng.choice(paths)
        text += [tokens[node] for node in kept]
        model.change(plan(rng.choice(seq_ids[kept[-1]]), len(text)))
        right.append(stored(model.memory) == [(p, token, (0,)) for p, token in enumerate(text)])
        if not right[-1]:
            break
    return right


def test_every_path_is_a_sequence(example):
    rng = random.Random(1)
    for _ in range(200):
        parents = random_tree(rng, rng.randint(1, 16))
        seq_ids = example.sequences(parents)
        leaves = set(range(len(parents))) - set(parents)
        assert seq_ids[0] == list(range(len(leaves)))
        for number in seq_ids[0]:
            nodes = [node for node in range(len(parents)) if number in seq_ids[node]]
            assert nodes == path_to(parents, nodes[-1]) and nodes[-1] in leaves


def test_just_the_kept_path_stays(example):
    for seed in range(60):
        assert all(steps_of(example, random.Random(seed), example.rollback))


@pytest.mark.parametrize("left_out", range(4))
def test_every_call_of_the_rollback_is_needed(example, left_out):
    def plan(kept, length):
        return [call for i, call in enumerate(example.rollback(kept, length)) if i != left_out]

    assert not all(all(steps_of(example, random.Random(seed), plan)) for seed in range(60))


def test_a_tree_without_copies_of_the_text_is_refused(example):
    model = example.Model("")
    model.read_prompt([1, 2])
    with pytest.raises(RuntimeError, match="llama_decode returned -1"):
        model.read([3, 4, 5], [2, 3, 3], [[0, 1], [0], [1]], rows=3)
    assert "hold different positions" in model.context.refusal


def test_a_memory_that_cannot_be_rolled_back_is_refused(example, monkeypatch):
    monkeypatch.setattr(stand_in, "llama_memory_seq_rm", lambda *arguments: False)
    steps = example.decode(example.Model(""), PROMPT, sdk.Budget(COSTS), sdk.SamplingParams())
    with pytest.raises(RuntimeError, match="cannot be rolled back"):
        next(steps)


def test_logits_are_not_copied(example):
    model = example.Model("")
    model.read_prompt([1, 2])
    first = model.read([3], [2], [[0]], rows=1)
    before = first.clone()
    second = model.read([4], [3], [[0]], rows=1)
    assert first.data_ptr() == second.data_ptr() and not torch.equal(before, first)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("branches", [1, 4])
def test_the_text_is_that_of_plain_decoding(example, temperature, branches):
    law, budget, new = sdk.SamplingParams(temperature=temperature), sdk.Budget(COSTS), 150

    def decode(nodes):
        found = example.decode(example.Model(""), PROMPT, budget, law, seed=7, nodes=nodes, branches=branches)
        text, steps = [], []
        while len(text) < new:
            steps.append(next(found))
            text += steps[-1].tokens
        return text[:new], steps

    (plain, alone), (text, steps) = decode(1), decode(example.NODES)
    assert text == plain and {step.rows for step in alone} == {1}
    assert len(steps) < 0.8 * len(alone)
    most = max(step.leaves for step in steps)
    assert most == 1 if branches == 1 else most > 2


def test_costs_are_measured(example):
    model, ticks = example.Model(""), iter(range(10**6))
    costs = example.step_costs(model, prefix=20, rounds=2, clock=lambda: next(ticks))
    assert costs == dict.fromkeys((1, 2, 3, 4, 6, 8, 12, 16), 1)
    assert len(stored(model.memory)) == 20 and model.context.calls == 17


def test_the_page_shows_the_example():
    page = (ROOT / "docs" / "llama_cpp.md").read_text(encoding="utf-8")
    source = EXAMPLE.read_text(encoding="utf-8")
    excerpts = re.findall(r"^```py\n(.*?)^```", page, re.S | re.M)
    assert excerpts and sum(len(excerpt.splitlines()) for excerpt in excerpts) <= 40
    for excerpt in excerpts:
        assert excerpt in source
