# SPDX-License-Identifier: Apache-2.0
"""What stays true around the steps of `generate`: caches, probes, modes, seeds, counts."""

import copy
import sys
import warnings
from collections import Counter
from functools import partial

import pytest
import torch
from gtest import g_test
from loop_cases import CACHE, GREEDY, PROMPTS, TARGET, chains, model, noise, nothing, plainly, trees
from transformers import DynamicCache, Lfm2Config, Lfm2ForCausalLM, LlamaForCausalLM, StaticCache

import specdec_kernels as sdk
from specdec_kernels.integrations.transformers import probe
from specdec_kernels.integrations.transformers.generate import seeds_of
from specdec_kernels.integrations.transformers.model import Target

generate = partial(sdk.generate, budget=None)


class Calls:
    """Counts a model's forwards, and the longest of them."""

    def __init__(self, target):
        self.count = self.longest = 0
        target.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module, arguments, options):
        self.count += 1
        self.longest = max(self.longest, arguments[0].shape[1])


def test_a_probe_is_short_and_remembered():
    target = model(vocab=37)
    calls = Calls(target)
    verdict = sdk.explain_model(target)
    assert verdict.serves == "trees" and str(verdict) == "trees"
    assert calls.count == verdict.forwards <= 8 and calls.longest <= 16
    assert sdk.explain_model(target) is verdict and calls.count == verdict.forwards
    target.config.rms_norm_eps = 1e-3  # another configuration, another verdict
    assert sdk.explain_model(target) is not verdict


class Uncausal(LlamaForCausalLM):
    """Every row sees all tokens of its forward."""

    def forward(self, input_ids=None, **options):
        out = super().forward(input_ids, **options)
        out.logits = out.logits + input_ids.float().mean()
        out.logits[..., 0] += input_ids[:, -1:].float()
        return out


class Spoilt(LlamaForCausalLM):
    """Its cache keeps a tensor that nobody knows, and that nobody puts back."""

    def forward(self, input_ids=None, **options):
        out = super().forward(input_ids, **options)
        if getattr(out, CACHE) is not None:
            layer = getattr(out, CACHE).layers[0]
            seen = getattr(layer, "seen", torch.zeros(1))
            layer.seen = seen + input_ids.shape[1]
            out.logits = out.logits + 0 * seen
        return out


class Static(LlamaForCausalLM):
    """Returns a static cache of its own, whatever it is given."""

    def forward(self, input_ids=None, use_cache=None, **options):
        if use_cache and not isinstance(options.get(CACHE), StaticCache):
            options[CACHE] = StaticCache(config=self.config, max_cache_len=64)
        return super().forward(input_ids, use_cache=use_cache, **options)


def as_class(kind):
    other = kind(TARGET.config).eval()
    other.load_state_dict(TARGET.state_dict())
    return other


@pytest.mark.parametrize("kind", [Spoilt, Static])
@pytest.mark.parametrize("drafter", [None, noise, chains, trees])
def test_caches_that_cannot_be_moved_are_served_one_by_one(kind, drafter):
    target = as_class(kind)
    assert sdk.explain_model(target).serves == "one by one"
    assert ("seen" if kind is Spoilt else "StaticLayer") in sdk.explain_model(target).reason
    got = generate(target, drafter, PROMPTS, max_new_tokens=12, sampling=GREEDY)
    assert got.tokens == [plainly(TARGET, prompt, 12) for prompt in PROMPTS]
    if drafter is chains:
        assert got.statistics.tokens_per_step > 2


def test_a_model_that_is_not_causal_is_refused():
    with pytest.raises(ValueError, match="generate: target must be read alike .* Uncausal: .* not causal"):
        generate(as_class(Uncausal), nothing, PROMPTS)


def test_less_than_a_model_allows_may_be_asked_for():
    for serve in ("trees", "chains", "one by one", "whole text"):
        for drafter in (chains, trees):
            got = generate(TARGET, drafter, PROMPTS, max_new_tokens=8, sampling=GREEDY, serve=serve)
            assert got.tokens == [plainly(TARGET, prompt, 8) for prompt in PROMPTS]
    with pytest.raises(ValueError, match="serve must be no more than Spoilt allows .one by one: "):
        generate(as_class(Spoilt), trees, PROMPTS, serve="trees")
    with pytest.raises(ValueError, match="serve must be 'trees' | .* or None, got 'all'"):
        generate(TARGET, trees, PROMPTS, serve="all")


def test_training_mode_is_left_for_the_call_and_put_back():
    target = model()
    target.config.attention_dropout = 0.5
    target.train()
    target.model.layers[0].self_attn.attention_dropout = 0.9
    target.lm_head.eval()
    got = generate(target, chains, PROMPTS, max_new_tokens=8, sampling=GREEDY)
    assert got.tokens == [plainly(TARGET, prompt, 8) for prompt in PROMPTS]
    assert target.training and target.model.layers[0].training and not target.lm_head.training


def test_training_mode_is_put_back_by_the_last_of_several_readers():
    target = Target(model().train())
    with target.reading():
        with Target(target.model).reading():
            pass
        assert not any(module.training for module in target.model.modules())
    assert all(module.training for module in target.model.modules())


def test_weights_on_no_device_are_refused():
    with torch.device("meta"):
        target = LlamaForCausalLM(TARGET.config)
    with pytest.raises(ValueError, match="generate: target must have its input embeddings on a device"):
        generate(target, nothing, PROMPTS)


def test_numbers_as_seeds_of_calls_side_by_side_share_no_noise():
    first, second = seeds_of(5, 2).tolist(), seeds_of(6, 2).tolist()
    assert first[0] == 5 and second[0] == 6
    assert len({*first, *second, *seeds_of(7, 40).tolist()}) == 44
    law = sdk.SamplingParams(temperature=1.0)
    prompts = [[1, 2]] * 2
    a = generate(TARGET, None, prompts, max_new_tokens=12, sampling=law, seeds=5).tokens
    b = generate(TARGET, None, prompts, max_new_tokens=12, sampling=law, seeds=6).tokens
    drafted = generate(TARGET, chains, prompts, max_new_tokens=12, sampling=law, seeds=5, rule="match")
    assert a == drafted.tokens
    assert len({tuple(text) for text in a + b}) == 4


@pytest.mark.parametrize(
    "limit, stop, drafter", [(1, None, trees), (7, 4, chains), (20, None, chains), (20, 9, trees)]
)
def test_statistics_are_of_what_was_written(limit, stop, drafter):
    full = plainly(TARGET, PROMPTS[0], limit)
    stops = [] if stop is None else [full[stop - 1]]
    got = generate(TARGET, drafter, PROMPTS[:1], max_new_tokens=limit, sampling=GREEDY, stop_tokens=stops)
    written = len(got.tokens[0])
    assert written == (limit if stop is None else full.index(stops[0]) + 1)
    stats = got.statistics
    assert stats.steps * stats.tokens_per_step == pytest.approx(written)
    assert stats.steps + sum(stats.accepted) == written


def test_nothing_that_is_deprecated_is_called():
    """A model that takes `cache` is given that; the older name would be told as a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(model(rms_norm_eps=1e-4), noise, PROMPTS, max_new_tokens=4, sampling=GREEDY)


@pytest.mark.parametrize("kind", [None, Spoilt], ids=["together", "alone"])
def test_a_text_goes_on_from_its_cache(kind):
    target = as_class(LlamaForCausalLM if kind is None else kind)
    options = dict(max_new_tokens=6, sampling=GREEDY, outputs=["cache"])
    first = generate(target, chains, PROMPTS, **options)
    prompts = [prompt + text + [3, 3] for prompt, text in zip(PROMPTS, first.tokens, strict=True)]
    calls = Calls(target)
    second = generate(target, chains, prompts, cache=first.cache, **options)
    assert second.tokens == [plainly(TARGET, prompt, 6) for prompt in prompts]
    assert calls.longest < min(map(len, prompts[::2]))
    # the first call's cache was not written into, and serves texts that go another way, or are new
    prompts = [prompts[0][:4] + [8, 8, 8], prompts[1], [2]]
    third = generate(target, chains, prompts, cache=[*first.cache[:2], None], **options)
    assert third.tokens == [plainly(TARGET, prompt, 6) for prompt in prompts]


@pytest.mark.parametrize("before", ["trees", "one by one", "whole text"])
@pytest.mark.parametrize("after", ["trees", "one by one", "whole text"])
def test_a_cache_serves_however_the_model_is_read(before, after):
    options = dict(max_new_tokens=6, sampling=GREEDY, outputs=["cache"])
    first = generate(TARGET, chains, PROMPTS, serve=before, **options)
    prompts = [prompt + text + [3] for prompt, text in zip(PROMPTS, first.tokens, strict=True)]
    second = generate(TARGET, chains, prompts, cache=first.cache, serve=after, **options)
    assert second.tokens == [plainly(TARGET, prompt, 6) for prompt in prompts]


def test_caches_of_others_are_refused():
    other = model()
    first = generate(other, None, PROMPTS[:1], max_new_tokens=2, sampling=GREEDY, outputs=["cache"])
    with pytest.raises(ValueError, match="generate: cache must come from this model, got another one's"):
        generate(TARGET, None, PROMPTS[:1], cache=first.cache)
    with pytest.raises(TypeError, match="generate: cache must hold what .* got DynamicCache"):
        generate(TARGET, None, PROMPTS[:1], cache=[DynamicCache()])


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("kind", [None, Spoilt], ids=["together", "alone"])
def test_prompts_are_read_in_chunks(kind, chunk):
    target = model() if kind is None else as_class(kind)
    sdk.explain_model(target)
    calls = Calls(target)
    got = generate(target, None, PROMPTS, max_new_tokens=3, sampling=GREEDY, prefill_chunk=chunk)
    assert got.tokens == [plainly(TARGET, prompt, 3) for prompt in PROMPTS]
    assert calls.longest <= max(chunk, 1)


def test_a_callback_ends_a_request():
    seen = []

    def callback(request, tokens):
        seen.append((request, tokens))
        return not (request == 1 and len(seen) > 4)

    got = generate(TARGET, chains, PROMPTS, max_new_tokens=20, sampling=GREEDY, on_tokens=callback)
    assert got.finish_reasons == ["length", "cancelled", "length"]
    assert 0 < len(got.tokens[1]) < 20
    for request, prompt in enumerate(PROMPTS):
        text = plainly(TARGET, prompt, 20)
        assert got.tokens[request] == text[: len(got.tokens[request])]
        assert [t for owner, tokens in seen if owner == request for t in tokens] == got.tokens[request]


class Streamer:
    def __init__(self):
        self.got, self.ended = [], 0

    def put(self, value):
        self.got += value.flatten().tolist()

    def end(self):
        self.ended += 1


def test_streamers_get_prompt_and_text():
    streams = [Streamer() for _ in PROMPTS]
    got = generate(TARGET, chains, PROMPTS, max_new_tokens=9, sampling=GREEDY, streamer=streams)
    for stream, prompt, text in zip(streams, PROMPTS, got.tokens, strict=True):
        assert stream.got == prompt + text and stream.ended == 1
    with pytest.raises(ValueError, match="streamer must be one for each of 3 texts, got 1"):
        generate(TARGET, chains, PROMPTS, streamer=Streamer())


def test_several_texts_of_a_prompt():
    law = sdk.SamplingParams(temperature=torch.tensor([0.0, 1.0, 1.2]))
    got = generate(
        TARGET, chains, PROMPTS, max_new_tokens=[4, 5, 6], sampling=law, num_return_sequences=2, seeds=3,
        rule="match",
    )  # fmt: skip
    assert [len(text) for text in got.tokens] == [4, 4, 5, 5, 6, 6]
    assert got.tokens[0] == got.tokens[1] == plainly(TARGET, PROMPTS[0], 4)
    assert got.tokens[4] != got.tokens[5]
    seeds = seeds_of(3, 6)
    for place, text in enumerate(got.tokens):
        alone = sdk.SamplingParams(temperature=float(law.temperature[place // 2]))
        assert text == plainly(TARGET, PROMPTS[place // 2], len(text), alone, int(seeds[place]))


def test_scores_logits_and_log_probabilities_of_what_was_written():
    law = sdk.SamplingParams(temperature=0.7, top_k=5)
    names = ["scores", "logits", "logprobs"]
    got = generate(
        TARGET, trees, PROMPTS, max_new_tokens=7, sampling=law, seeds=1, rule="match", outputs=names
    )
    for request, prompt in enumerate(PROMPTS):
        text = prompt + got.tokens[request]
        with torch.inference_mode():
            expected = TARGET(torch.tensor([text])).logits[0, len(prompt) - 1 : -1]
        torch.testing.assert_close(got.logits[request], expected, rtol=1e-4, atol=1e-4)
        written = torch.tensor(got.tokens[request])
        logs = got.scores[request].log_softmax(-1).gather(1, written[:, None])[:, 0]
        torch.testing.assert_close(got.logprobs[request], logs, rtol=1e-4, atol=1e-4)


def test_a_wrong_declaration_is_told_once():
    def wrong(text, lengths):
        laws = torch.zeros(len(lengths), 2, 31)
        laws[..., 4] = -torch.inf
        return torch.full((len(lengths), 2), 4), laws

    with pytest.warns(UserWarning, match="generate: a drafted token has no probability") as told:
        generate(TARGET, wrong, PROMPTS, max_new_tokens=9, sampling=sdk.SamplingParams(), seeds=1)
    assert len(told) == 1


def test_positions_that_a_model_lacks_are_refused():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=31, n_embd=16, n_layer=2, n_head=2, n_positions=24, initializer_range=0.4,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    target = GPT2LMHeadModel(config).eval()

    def tree(text, lengths):
        return sdk.DraftTree.from_parents(
            torch.randint(0, 31, (len(lengths), 6)), torch.tensor([[-1, 0, 0, 1, 3, 4]] * len(lengths))
        )

    prompts = [list(range(1, 15)), [3, 4]]
    for drafter in (tree, noise):
        got = generate(target, drafter, prompts, max_new_tokens=10, sampling=GREEDY)
        assert got.tokens == [plainly(target, prompt, 10) for prompt in prompts]
    assert len(generate(target, tree, prompts[:1], max_new_tokens=11, sampling=GREEDY).tokens[0]) == 11
    with pytest.raises(ValueError, match="into the 24 positions of .*, got a text that may take 25"):
        generate(target, tree, prompts, max_new_tokens=12)


def test_a_switch_of_the_rotary_embedding_is_not_crossed():
    scaling = dict(rope_type="dynamic", factor=2.0, rope_theta=1e4, original_max_position_embeddings=16)
    target = model(rope_parameters=scaling)
    prompt = PROMPTS[:1]
    got = generate(target, chains, prompt, max_new_tokens=12, sampling=GREEDY)
    assert got.tokens == [plainly(target, prompt[0], 12)]
    with pytest.raises(ValueError, match="must not reach 16 tokens, where all rotary embeddings"):
        generate(target, chains, prompt, max_new_tokens=20)


def test_16_bits_are_judged_by_what_plain_readings_differ_by(monkeypatch):
    target = copy.deepcopy(TARGET).bfloat16()
    verdict = sdk.explain_model(target)
    assert verdict.serves in ("trees", "one by one") and verdict.forwards <= 8
    monkeypatch.setattr(probe, "_VERDICTS", {})
    monkeypatch.setattr(probe, "COARSE", -1.0)
    verdict = sdk.explain_model(target)
    assert verdict.serves == "one by one" and "unproved" in verdict.reason and verdict.forwards <= 8
    generate(target, trees, PROMPTS, max_new_tokens=4, serve="trees")


def test_a_cache_of_transformers_comes_in_and_goes_out():
    from specdec_kernels.integrations.transformers.layers import handed_back, taken

    prompts = [[3, 4, 5, 3, 4], [9, 2, 1]]
    padded = torch.tensor([[3, 4, 5, 3, 4], [0, 0, 9, 2, 1]])
    mask = torch.tensor([[1] * 5, [0, 0, 1, 1, 1]])
    cache = DynamicCache()
    with torch.inference_mode():
        places = (mask.cumsum(1) - 1).clamp_min(0)[:, :4]
        TARGET(padded[:, :4], attention_mask=mask[:, :4], position_ids=places, **{CACHE: cache})
    cached = taken(cache, prompts, [0, 2], Target(TARGET).key, "generate")
    assert [each.tokens for each in cached] == [[3, 4, 5, 3], [9, 2]]
    options = dict(max_new_tokens=6, sampling=GREEDY, outputs=["cache"])
    got = generate(TARGET, chains, prompts, cache=cached, **options)
    assert got.tokens == [plainly(TARGET, prompt, 6) for prompt in prompts]
    back = handed_back(got.cache, [0, 2], cache)
    assert back is cache and back.get_seq_length() == 10
    whole = torch.cat([padded, torch.tensor(got.tokens)], 1)
    ones = torch.cat([mask, torch.ones(2, 6, dtype=mask.dtype)], 1)
    places = (ones.cumsum(1) - 1).clamp_min(0)
    with torch.inference_mode():
        expected = TARGET(whole, attention_mask=ones, position_ids=places).logits[:, -1]
        logits = TARGET(
            whole[:, -1:], attention_mask=ones, position_ids=places[:, -1:], **{CACHE: back}
        ).logits
    torch.testing.assert_close(logits[:, 0], expected, rtol=1e-3, atol=1e-3)


def test_values_per_request_follow_their_request():
    """Also those of the drafter's law, when the first request leaves."""

    def draft(text, lengths):
        generator = torch.Generator().manual_seed(int(lengths.sum()))
        laws = torch.randn(len(lengths), 2, 31, generator=generator)
        return laws.argmax(-1), laws

    options = dict(
        max_new_tokens=[2, 9], rule="token", seeds=torch.tensor([4, 9]),
        sampling=sdk.SamplingParams(temperature=torch.tensor([1.0, 0.6])),
    )  # fmt: skip
    law = sdk.SamplingParams(temperature=torch.tensor([1.0, 0.5]), top_k=torch.tensor([0, 3]))
    both = generate(TARGET, draft, PROMPTS[:2], draft_sampling=law, **options)
    assert [len(text) for text in both.tokens] == [2, 9]


def test_statistics_count_deep_drafts():
    right = plainly(TARGET, PROMPTS[0], 150)

    def draft(text, lengths):
        written = int(lengths[0]) - len(PROMPTS[0])
        return torch.tensor([right[written : written + 100]])

    got = generate(TARGET, draft, PROMPTS[:1], max_new_tokens=150, sampling=GREEDY)
    assert got.tokens[0] == right and got.statistics.tokens == 150
    assert len(got.statistics.accepted) == 100


@pytest.mark.parametrize("rule", ["token", "traversal"])
@pytest.mark.parametrize("serve", ["chains", "one by one", "whole text", "states"])
def test_sampled_text_has_the_models_law_however_it_is_read(serve, rule):
    """All triples of tokens, against their probabilities under the target alone."""
    if serve == "states":
        config = Lfm2Config(
            vocab_size=3, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, layer_types=["conv", "full_attention"], initializer_range=0.5,
            bos_token_id=None, eos_token_id=None, pad_token_id=None,
        )  # fmt: skip
        target, how = Lfm2ForCausalLM(config).eval(), {}
        assert sdk.explain_model(target).serves == "one by one"
    else:
        target, how = model(vocab=3, layers=1), dict(serve=serve)
    with torch.inference_mode():
        texts = torch.cartesian_prod(*[torch.arange(3)] * 3)
        whole = torch.cat([torch.tensor([1, 2]).expand(27, 2), texts], 1)
        logs = torch.log_softmax(target(whole, use_cache=False).logits.double(), -1)[:, 1:4]
        law = logs.gather(2, texts[..., None]).sum((1, 2)).exp().numpy()

    def draft(text, lengths):
        laws = torch.tensor([0.5, 0.0, -1.0]).expand(len(lengths), 1, 3)
        return torch.multinomial(laws[:, 0].softmax(-1), 1), laws

    got = generate(
        target, draft, [[1, 2]] * 1200, max_new_tokens=3, sampling=sdk.SamplingParams(), rule=rule,
        stop_tokens=[], budget=None, **how,
    )  # fmt: skip
    counts = Counter(tuple(text) for text in got.tokens)
    assert g_test(torch.tensor([counts[tuple(text)] for text in texts.tolist()]).numpy(), law) > 1e-4
    assert 0.2 < got.statistics.acceptance_rate < 0.98


def test_a_step_synchronises_once_beside_its_drafter(monkeypatch):
    """By the reads of tensors to the host that the loop's own files make, over trees in a ragged batch."""
    reads = Counter()

    def counted(name):
        inner = getattr(torch.Tensor, name)

        def read(tensor, *arguments):
            caller = sys._getframe(1)
            if "integrations" in caller.f_code.co_filename and not isinstance(tensor, torch.nn.Parameter):
                reads[caller.f_code.co_filename.rsplit("/", 1)[-1]] += 1
            return inner(tensor, *arguments)

        return read

    sdk.explain_model(TARGET)
    for name in ("tolist", "item", "__bool__", "__int__", "__float__", "__index__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, counted(name))
    steps = []

    def draft(text, lengths):
        steps.append(reads.pop("loop.py", 0))
        return torch.tensor([[3, 4], [5, -1]]).expand(2, 2)

    got = generate(TARGET, draft, [[1, 2, 3], [4, 5]], max_new_tokens=6, sampling=GREEDY, budget=None)
    assert got.tokens == [plainly(TARGET, prompt, 6) for prompt in ([1, 2, 3], [4, 5])]
    assert len(steps) > 2 and set(steps[1:]) == {1} and "caches.py" not in reads
