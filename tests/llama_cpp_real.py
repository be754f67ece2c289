# SPDX-License-Identifier: Apache-2.0
"""The example over llama.cpp itself, and the stand-in beside it: `make test-llama-cpp`."""

from __future__ import annotations

import ctypes
import random
import time

import llama_cpp
import llama_stand_in as stand_in
import pytest
import torch
from llama_cpp import Llama, llama_get_logits, llama_memory_seq_pos_max, llama_memory_seq_pos_min

import specdec_kernels as sdk
from demo.files import PROMPTS, read_prompts
from demo.smollm import CHAT, find_gguf
from examples import llama_cpp as example

NAMES = ("quote_spelling", "code_rename", "chat_soup")
NEW, SEED = 64, 3
FREE = sdk.Budget({1: 1.0, example.NODES: 1.0})  # rows cost nothing: every node that was found is read
ROUNDING = 1.0  # of logits; see docs/llama_cpp.md


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return example.Model(str(find_gguf()))


@pytest.fixture(scope="module")
def float32_model(tmp_path_factory):
    """The same weights, cache and attention in float32, where the order of a sum matters little."""
    path = tmp_path_factory.mktemp("model") / "float32.gguf"
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = llama_cpp.LLAMA_FTYPE_ALL_F32, True, 1
    assert llama_cpp.llama_model_quantize(str(find_gguf()).encode(), str(path).encode(), params) == 0
    default = llama_cpp.llama_context_default_params

    def context_params():
        params = default()
        params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        return params

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama_cpp, "llama_context_default_params", context_params)
        return example.Model(str(path))


def extents(model) -> list[tuple[int, int]]:
    return [
        (llama_memory_seq_pos_min(model.memory, seq_id), llama_memory_seq_pos_max(model.memory, seq_id))
        for seq_id in range(example.NODES)
    ]


def prompt_of(model, name: str) -> list[int]:
    return example.tokenize(model, CHAT.format(message=read_prompts(PROMPTS, [name])[name]))


def text_of(model, prompt, budget, temperature, **options) -> tuple[list[int], list[example.Step]]:
    law = sdk.SamplingParams(temperature=temperature)
    text, steps = [], []
    for step in example.decode(model, prompt, budget, law, seed=SEED, **options):
        steps.append(step)
        text += step.tokens
        assert extents(model) == [(0, len(prompt) + len(text) - 2)] + [(-1, -1)] * (example.NODES - 1)
        if len(text) >= NEW:
            return text[:NEW], steps
    raise AssertionError("a loop without end ended")


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("name", NAMES)
def test_chains_write_the_text_of_plain_decoding(model, name, temperature):
    prompt = prompt_of(model, name)
    plain, alone = text_of(model, prompt, FREE, temperature, nodes=1)
    text, steps = text_of(model, prompt, FREE, temperature, branches=1)
    assert text == plain
    assert len(steps) < len(alone) == NEW


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("name", NAMES)
def test_trees_write_the_text_of_plain_decoding_in_float32(float32_model, name, temperature):
    prompt = prompt_of(float32_model, name)
    plain, _ = text_of(float32_model, prompt, FREE, temperature, nodes=1)
    text, steps = text_of(float32_model, prompt, FREE, temperature)
    assert text == plain
    assert len(steps) < NEW and max(step.leaves for step in steps) > 1


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("name", NAMES)
def test_trees_write_the_tokens_of_plain_decoding(model, name, temperature):
    """Where two tokens are closer than llama.cpp rounds, either may come. So the text is read again, a token
    at a time. If another token is drawn from these logits, the written one lacks less than ROUNDING."""
    prompt = prompt_of(model, name)
    text, steps = text_of(model, prompt, FREE, temperature)
    assert len(steps) < NEW and max(step.leaves for step in steps) > 1
    law, other = sdk.SamplingParams(temperature=temperature), []
    model.read_prompt(prompt[:-1])
    for position, (token, written) in enumerate(zip([prompt[-1], *text], text, strict=False), len(prompt)):
        logits = model.read([token], [position - 1], [[0]], rows=1).clone()
        noise = {"seeds": torch.tensor([SEED]), "positions": torch.tensor([position])}
        if int(sdk.sample(logits, law, **noise)) != written:
            logits[0, written] += ROUNDING
            assert int(sdk.sample(logits, law, **noise)) == written, position
            other.append(position)
    assert len(other) <= 3


def test_the_budget_does_not_draft_at_a_loss(model):
    """Steps of this model cost nearly as much as their rows, so there is next to nothing to gain."""
    prompt = prompt_of(model, "chat_soup")
    costs = example.step_costs(model, clock=time.process_time)
    _, steps = text_of(model, prompt, sdk.Budget(costs), 0.0)
    budget = sdk.Budget(costs)
    spent = sum(float(budget.cost(step.rows)) for step in steps)
    assert spent < 1.02 * NEW * costs[1] + costs[1] + max(costs.values())


@pytest.mark.parametrize("name", NAMES)
def test_the_greedy_text_is_that_of_llama_cpp_python(model, name):
    prompt = prompt_of(model, name)
    options = {"n_threads": 1, "n_threads_batch": 1, "flash_attn": True, "verbose": False}
    llama = Llama(str(find_gguf()), n_ctx=2048, **options)
    llama.eval(prompt[:-1])
    theirs = [token for token, _ in zip(llama.generate(prompt, temp=0.0), range(NEW), strict=False)]
    assert text_of(model, prompt, FREE, 0.0, nodes=1)[0] == theirs


def test_a_node_of_a_tree_is_read_as_the_end_of_its_path(model):
    rng = random.Random(2)
    text = prompt_of(model, "code_rename")[:60]
    for _ in range(5):
        parents = [-1] + [rng.randrange(node) for node in range(1, 12)]
        tokens = [rng.randrange(1000, 40000) for _ in parents]
        paths = [[0]]
        for node in range(1, len(parents)):
            paths.append([*paths[parents[node]], node])
        seq_ids = example.sequences(parents)
        model.read_prompt(text)
        model.change([("cp", 0, leaf, -1, -1) for leaf in seq_ids[0][1:]])
        positions = [len(text) + len(path) - 1 for path in paths]
        logits = model.read(tokens, positions, seq_ids, rows=len(paths)).clone()
        for node, path in enumerate(paths):
            model.read_prompt(text)
            chain = [tokens[each] for each in path]
            alone = model.read(chain, [positions[each] for each in path], [[0]] * len(path), rows=1)[0]
            assert torch.equal(logits[node], alone)
            others = [other for other in range(len(paths)) if other != node]
            assert all((logits[other] - alone).abs().max() > 1.0 for other in others)


def test_logits_are_not_copied(model):
    model.read_prompt([1, 2, 3])
    logits = model.read([4, 5], [3, 4], [[0], [0]], rows=2)
    assert logits.shape == (2, model.vocab_size)
    assert logits.data_ptr() == ctypes.addressof(llama_get_logits(model.context).contents)


def test_the_stand_in_keeps_and_refuses_what_llama_cpp_does(model):
    rng, refused, taken = random.Random(4), 0, 0
    for _ in range(80):
        memory = stand_in.Memory(example.NODES)
        stand_in.llama_memory_clear(memory, False)
        model.read_prompt([1, 2, 3])
        memory.cells = [stand_in.Cell(place, place + 1, {0}) for place in range(3)]
        for _ in range(12):
            kind, one, other = (
                rng.choice(["rm", "cp", "keep", "read", "read"]),
                rng.randrange(3),
                rng.randrange(3),
            )
            if kind == "read":
                rows = [
                    (rng.randrange(2, 7), sorted(rng.sample(range(3), rng.randint(1, 2)))) for _ in range(3)
                ]
                rows = sorted(rows)[: rng.randint(1, 3)]
                cells = [stand_in.Cell(place, 5, set(seq_ids)) for place, seq_ids in rows]
                refusal = stand_in.refusal(memory, cells)
                try:
                    model.read(
                        [5] * len(rows), [place for place, _ in rows], [ids for _, ids in rows], rows=1
                    )
                    assert not refusal
                    memory.cells += cells
                    taken += 1
                except RuntimeError:
                    assert refusal
                    refused += 1
            else:
                places = (rng.randrange(4), rng.choice([-1, 5]))
                arguments = {"rm": (one, *places), "cp": (one, other, *places), "keep": (one,)}[kind]
                model.change([(kind, *arguments)])
                getattr(stand_in, f"llama_memory_seq_{kind}")(memory, *arguments)
            expected = [memory.extent(seq_id) or (-1, -1) for seq_id in range(example.NODES)]
            assert extents(model) == expected
    assert refused > 50 and taken > 50
