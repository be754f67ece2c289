# SPDX-License-Identifier: Apache-2.0
"""What `generate` withstands: threads that share a model, caches and arguments that do not fit."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import torch
import transformers
from sweep import configs
from transformers import BloomConfig, BloomForCausalLM, DynamicCache, LlamaConfig, LlamaForCausalLM

import specdec_kernels as sdk
from specdec_kernels.integrations.transformers import probe

GREEDY = sdk.SamplingParams(temperature=0.0)
NO_ENDS = dict(bos_token_id=None, eos_token_id=None)


def llama(vocab=31, layers=2):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=48, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=6, num_key_value_heads=2, initializer_range=0.3, **NO_ENDS,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


TARGET = llama()


def written(*arguments, **options):
    return sdk.generate(*arguments, **dict(max_new_tokens=8, sampling=GREEDY) | options)


def test_threads_that_probe_one_model_leave_its_window(monkeypatch):
    """Each thread would otherwise put back the window that the other one has narrowed."""
    config = transformers.MistralConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=5,
    )
    model = transformers.MistralForCausalLM(config).eval()
    monkeypatch.setattr(probe, "_VERDICTS", {})
    inside, both, run = threading.Event(), threading.Event(), probe._Probe._run

    def slow(self):
        if inside.is_set():
            both.set()
        else:
            inside.set()
            both.wait(0.5)
        return run(self)

    monkeypatch.setattr(probe._Probe, "_run", slow)
    verdicts = []

    def ask():
        verdicts.append(probe.explain_model(model).serves)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    threads[0].start()
    assert inside.wait(10)
    threads[1].start()
    for thread in threads:
        thread.join(10)
    assert verdicts == ["trees", "trees"]
    assert model.config.sliding_window == 5
    assert not both.is_set() and len(probe._VERDICTS) == 1


def filled(model, ids, mask=None):
    """transformers' own cache of these texts."""
    cache = DynamicCache()
    with torch.inference_mode():
        model(ids, attention_mask=torch.ones_like(ids) if mask is None else mask, past_key_values=cache)
    return cache


def bloom():
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=31, hidden_size=48, n_layer=2, n_head=4, initializer_range=0.3, **NO_ENDS)
    return BloomForCausalLM(config).eval()


@pytest.mark.parametrize("make", [bloom, llama])
def test_new_tokens_alone_behind_a_callers_cache_are_refused(make):
    """Nobody knows which tokens the cache holds; they would be taken for those given."""
    model, ids = make(), torch.tensor([[9, 2]])
    given = dict(max_new_tokens=6, pad_token_id=0, custom_generate=sdk.custom_generate())
    for mask in (None, torch.ones(1, 7, dtype=torch.int64)):
        cache = filled(model, torch.tensor([[3, 4, 5, 3, 4]]))
        with pytest.raises(ValueError, match="custom_generate: (input_ids|cache|position_ids) must"):
            model.generate(ids, attention_mask=mask, past_key_values=cache, **given)
        assert cache.get_seq_length() == 5


def test_a_cache_may_be_shorter_than_a_rows_padding():
    ids = torch.tensor([[9, 8, 7, 6, 5, 4], [0, 0, 0, 0, 5, 4]])
    mask = (ids != 0).long()
    given = dict(attention_mask=mask, max_new_tokens=6, pad_token_id=0)
    texts = [
        TARGET.generate(ids, past_key_values=filled(TARGET, ids[:, :2], mask[:, :2]), **given, **way).tolist()
        for way in ({}, dict(custom_generate=sdk.custom_generate()))
    ]
    assert texts[0] == texts[1]


def test_a_cache_that_cannot_be_filled_is_refused():
    given = dict(max_new_tokens=4, pad_token_id=0, past_key_values=DynamicCache())
    ids = torch.tensor([[3, 4, 5]])
    for serve, rows in (("whole text", 1), ("one by one", 2)):
        custom = sdk.custom_generate(serve=serve)
        with pytest.raises(ValueError, match="custom_generate: cache must be None where texts are not read"):
            TARGET.generate(ids.expand(rows, -1), custom_generate=custom, **given)


def test_a_callers_cache_of_a_model_that_is_read_alone():
    """Turn by turn; its own cache keeps every position."""
    model, cache = configs.build("mpt"), DynamicCache()
    text = torch.tensor([[3, 4, 5, 3, 4]])
    given = dict(max_new_tokens=4, pad_token_id=0, do_sample=False)
    for _ in range(3):
        right = model.generate(text, **given)
        text = model.generate(text, past_key_values=cache, custom_generate=sdk.custom_generate(), **given)
        assert text.tolist() == right.tolist() and cache.get_seq_length() == text.shape[1] - 1
        text = torch.cat([text, torch.tensor([[7, 8]])], 1)


def test_texts_that_reach_a_window_go_on_from_shorter_ones():
    """Short texts of GPT-Neo are read together, long ones alone."""
    model, text, cache = configs.build("gpt_neo", window=32), [1, 2, 3], None
    for new in (4, 40, 4):
        got = written(model, None, [text], max_new_tokens=new, cache=cache, outputs=["cache"])
        assert got.tokens == written(model, None, [text], max_new_tokens=new, serve="whole text").tokens
        text, cache = [*text, *got.tokens[0], 5], got.cache
    assert len(text) > 32
    short = written(model, None, [text[:6]], cache=cache)
    assert short.tokens == written(model, None, [text[:6]], serve="whole text").tokens


class AfterSixCalls(transformers.StoppingCriteria):
    def __init__(self):
        self.calls = 0

    def __call__(self, ids, scores, **_):
        self.calls += 1
        return torch.full((len(ids),), self.calls >= 6)


def test_criteria_that_count_have_one_for_every_request():
    for prompts in ([[3, 4, 5]], [[3, 4, 5], [7, 7, 7]]):
        got = written(TARGET, None, prompts, max_new_tokens=12, stopping_criteria=AfterSixCalls())
        assert [len(text) for text in got.tokens] == [6] * len(prompts)


def counting_closure():
    calls = [0]

    def processor(ids, scores):
        calls[0] += 1
        scores = scores.clone()
        scores[:, calls[0] // 5 % 31] += 9.0
        return scores

    return processor


class Counting:
    def __init__(self):
        self.inner = counting_closure()

    def process(self, ids, scores):
        return self.inner(ids, scores)


@pytest.mark.parametrize(
    "make", [counting_closure, lambda: Counting().process, lambda: partial(Counting().process)]
)
def test_closures_and_methods_with_state_are_refused(make):
    with pytest.raises(ValueError, match="logits_processor must be a function of its arguments"):
        written(TARGET, None, [[3, 4, 5]], logits_processor=make())


def test_lists_of_prompts_have_no_padding():
    model = llama()
    model.generation_config.pad_token_id = 1
    alone, beside = (
        written(model, None, prompts).tokens[0] for prompts in ([[1, 7, 3]], [[1, 7, 3], [5, 6]])
    )
    assert alone == beside != written(model, None, [[7, 3]]).tokens[0]


def test_an_assistant_reads_only_what_it_can():
    """Tokens that it has no embeddings for, and texts longer than its positions."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=12, n_embd=16, n_layer=1, n_head=2, n_positions=16, **NO_ENDS)
    drafter = sdk.AssistantDrafter(transformers.GPT2LMHeadModel(config).eval(), num_draft=3)
    prompts = [[3, 20, 5], [1, 2, 3], list(range(1, 12)) * 2]
    got = written(TARGET, drafter, prompts, budget=None)
    assert got.tokens == written(TARGET, None, prompts).tokens


@pytest.mark.slow
def test_a_compiled_model_keeps_its_cache():
    assert str(sdk.explain_model(torch.compile(TARGET, backend="eager"))) == "trees"


def test_a_head_wider_than_the_embeddings_is_told():
    model = llama()
    model.lm_head = torch.nn.Linear(48, 40)
    with torch.no_grad():
        model.lm_head.bias[35] += 1e3
    with pytest.raises(ValueError, match="generate: target must write tokens that it can read"):
        written(model, None, [[3, 4]])


@pytest.mark.parametrize(
    "options, text",
    [
        (dict(cache=3), "cache must be a list, or None, got int"),
        (dict(cache=[1]), "cache must hold what `Generated.cache` held, or None, got int"),
        (dict(outputs=None), "outputs must be a collection of names, got NoneType"),
        (dict(on_tokens=3), "on_tokens must be callable or None, got int"),
        (dict(streamer=3), "streamer must have methods put and end, got int"),
    ],
)
def test_arguments_of_other_kinds_are_refused(options, text):
    with pytest.raises(TypeError, match=f"generate: {text}"):
        written(TARGET, None, [[3, 4, 5]], **options)


@pytest.mark.parametrize(
    "tensor", [torch.zeros(1, 2, dtype=torch.int64, device="meta"), torch.eye(1).long().to_sparse()]
)
def test_tensors_without_data_are_no_drafts(tensor):
    with pytest.raises(ValueError, match="generate: drafter must return dense tensors with data"):
        written(TARGET, lambda text, lengths: tensor, [[3, 4, 5]], budget=None)


def test_tokenizers_are_asked_for():
    with pytest.raises(TypeError, match="AssistantDrafter: tokenizer must be a tokenizer, got int"):
        sdk.AssistantDrafter(TARGET, tokenizer=3, assistant_tokenizer=4)
