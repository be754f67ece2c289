# SPDX-License-Identifier: Apache-2.0
"""One class of the transformers library for each way in which `generate` serves or refuses a model."""

import functools

import pytest
import torch
from sweep import cases, configs
from transformers import T5Config, T5ForConditionalGeneration

import specdec_kernels as sdk

# Model type, and how it is served.
SERVED = [
    ("llama", "trees"),
    ("mistral", "trees"),  # windows in every layer
    ("gemma3_text", "trees"),  # in some layers, with rotary embeddings of their own
    ("gpt_oss", "trees"),  # with attention sinks
    ("roberta", "trees"),  # positions count from the padding token's index
    ("deepseek_v2", "trees"),  # keys from a latent
    ("deepseek_v32", "trees"),  # index keys beside them
    ("bloom", "chains"),  # ALiBi by the attention mask
    ("mpt", "one by one"),  # ALiBi by slot
    ("bart", "one by one"),  # positions by the length of the cache
    ("falcon_h1", "one by one"),  # keys and a recurrent state in one layer
    ("bamba", "one by one"),  # in different layers; positions count from 0 in every forward
    ("lfm2", "one by one"),  # states of convolutions
    ("minimax", "one by one"),  # states beside the layers of the cache
    ("zamba2", "one by one"),  # states that a single token would move without the limit of its time step
    ("mamba", "token by token"),  # several tokens at once do not go on from the state
    ("rwkv", "one by one"),  # a state that is no cache
    ("openai-gpt", "whole text"),  # no cache at all
]


pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("ignore:generate. every step reads the whole text")
@pytest.mark.parametrize("model_type, serves", SERVED)
def test_text_is_the_models_own(model_type, serves):
    model = configs.build(model_type)
    oracle = cases.Oracle(model)
    oracle.check_causal()
    assert sdk.explain_model(model).serves == serves
    for law, shape in [("greedy", "tree"), ("greedy", "ragged chains"), ("sampled", "ragged trees")]:
        outcome = cases.run_case(model, oracle, law, shape)
        assert outcome.kind in ("right", "tie"), (law, shape, outcome)


@pytest.mark.parametrize("model_type", ["gemma3_text", "mpt", "mamba", "rwkv", "minimax", "zamba2", "bamba"])
def test_a_text_goes_on_from_its_cache(model_type):
    model = configs.build(model_type)
    options = dict(max_new_tokens=12, stop_tokens=[], outputs=["cache"])

    def drafter(text, lengths):
        return sdk.ngram_draft(text, lengths, num_draft=3)

    text = [3, 4, 5, 3, 4, 5, 3]
    cache = None
    for _ in range(3):
        got = sdk.generate(model, drafter, [text], cache=cache, **options)
        assert got.tokens == sdk.generate(model, None, [text], serve="whole text", **options).tokens
        text, cache = text + got.tokens[0] + [3, 4], got.cache


@pytest.mark.parametrize("model_type", ["zamba2", "nemotron_h"])
def test_no_single_token_follows_states_with_limited_time_steps(model_type):
    """Whose forward leaves the limit out; with an odd number of prompt tokens in every chunk, too."""
    model = configs.build(model_type)
    read = []
    inner = model.forward
    model.forward = functools.wraps(inner)(
        lambda ids, **given: read.append(ids.shape[1]) or inner(ids, **given)
    )
    prompt, new = [7, 3, 5, 9, 2, 8, 4], 40
    plain = torch.tensor([prompt])
    for chunk in (None, 1, 3):
        sdk.explain_model(model)
        read.clear()
        got = sdk.generate(
            model, None, [prompt], max_new_tokens=new, prefill_chunk=chunk, stop_tokens=[]
        ).tokens[0]
        first = read[0] if chunk == 1 else None  # a first token meets no states
        assert min(read[first is not None :]) >= 2 and max(read) < len(prompt) + 16
    while plain.shape[1] < len(prompt) + new:
        with torch.inference_mode():
            last = inner(plain, use_cache=False).logits[0, -1]
        plain = torch.cat([plain, last.argmax()[None, None]], 1)
    assert got == plain[0, len(prompt) :].tolist()
    for extra in range(1, 5):  # tokens behind a cache
        cache = sdk.generate(model, None, [prompt], max_new_tokens=2, outputs=["cache"], stop_tokens=[]).cache
        longer = plain[0, : len(prompt) + 1 + extra].tolist()
        read.clear()
        more = sdk.generate(model, None, [longer], max_new_tokens=3, cache=cache, stop_tokens=[])
        assert more.tokens[0] == plain[0, len(longer) : len(longer) + 3].tolist() and min(read) >= 2


@pytest.mark.parametrize("model_type", ["xlnet", "cpmant"])
def test_a_model_whose_text_is_not_causal_is_refused(model_type):
    model = configs.build(model_type)
    with pytest.raises(cases.NotCausal):
        cases.Oracle(model).check_causal()
    assert sdk.explain_model(model).serves == "refused"
    with pytest.raises(ValueError, match="^generate: target .*not causal"):
        sdk.generate(model, lambda text, lengths: torch.full((1, 2), -1), [[3, 4, 5]], max_new_tokens=4)


def test_an_encoder_decoder_is_refused():
    config = T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(TypeError, match="^generate: target must be a decoder"):
        sdk.explain_model(T5ForConditionalGeneration(config))


def test_the_sweep_notices_wrong_text():
    """An outcome is wrong where a clear choice differs, and a tie where the last digits decide."""
    model = configs.build("llama")
    oracle = cases.Oracle(model)
    text = list(oracle.text("greedy", 0))
    assert oracle.compare("greedy", 0, text, 0).kind == "right"
    other = text[:7] + [(text[7] + 1) % configs.VOCABULARY] + text[8:]
    outcome = oracle.compare("greedy", 0, other, 0)
    assert outcome.kind == "wrong" and "token 7" in outcome.detail
    assert oracle.compare("greedy", 0, text[:-1], 0).kind == "wrong"
