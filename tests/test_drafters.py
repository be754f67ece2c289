# SPDX-License-Identifier: Apache-2.0
"""Assistant models as drafters: the text stays the target's, and their caches stay true."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest
import torch
from gtest import g_test
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

import specdec_kernels as sdk
from specdec_kernels.integrations.transformers import AssistantDrafter, generate
from specdec_kernels.integrations.transformers.drafts import Drafting

GREEDY = sdk.SamplingParams(temperature=0.0)
PROMPTS = [[3, 4, 5, 3, 4], [7], [9, 9, 2, 1, 8, 6, 9, 9]]


def llama(vocab=31, layers=2, width=48, **options):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=width, intermediate_size=width, num_hidden_layers=layers,
        num_attention_heads=width // 8, num_key_value_heads=width // 8, max_position_embeddings=256,
        initializer_range=0.3, bos_token_id=None, eos_token_id=None, **options,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def mamba():
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=31, hidden_size=16, num_hidden_layers=1, state_size=4, initializer_range=0.5,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return MambaForCausalLM(config).eval()


TARGET, SMALL = llama(), llama(layers=1)


def written(target, drafter, prompts=PROMPTS, **options):
    given = dict(max_new_tokens=20, sampling=GREEDY, budget=None) | options
    return generate(target, drafter, prompts, **given)


PLAIN = written(TARGET, None).tokens


def reading(model, serves):
    """An assistant that reads as for another verdict about its model."""
    drafter = AssistantDrafter(model, num_draft=4)
    drafter._reader.verdict = drafter._reader.verdict._replace(serves=serves)
    return drafter


class Kept:
    """A drafter that calls another one and tells it what it is told."""

    def __init__(self, draft, other):
        self.draft, self.keep, self.reset = draft, other.keep, other.reset

    def __call__(self, text, lengths):
        return self.draft(text, lengths)


def sliding():
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=31, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=6, initializer_range=0.3, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return MistralForCausalLM(config).eval()


@pytest.mark.parametrize("budget", [None, True])
@pytest.mark.parametrize("make", [llama, mamba], ids=["llama", "mamba"])
def test_greedy_text_is_the_targets_own_whoever_drafts(make, budget):
    drafter = AssistantDrafter(make(), num_draft=4)
    assert written(TARGET, drafter, budget=budget).tokens == PLAIN
    assert written(TARGET, drafter, PROMPTS[:1], budget=budget).tokens == PLAIN[:1]
    limits = [1, 20, 7]
    got = written(TARGET, drafter, budget=budget, max_new_tokens=limits).tokens
    assert got == [text[:limit] for text, limit in zip(PLAIN, limits, strict=True)]


@pytest.mark.parametrize("make", [llama, mamba], ids=["llama", "mamba"])
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]], ids=["batch", "one"])
def test_a_target_that_drafts_for_itself_is_always_right(make, prompts):
    """Which a cache that has gone wrong would not be."""
    model = make()
    got = written(model, AssistantDrafter(model, num_draft=4), prompts)
    assert got.statistics.acceptance_rate == 1.0
    first = make is mamba or len(prompts) == 1  # then the forward of a prompt brings a token
    assert got.statistics.steps == len(prompts) * (4 + first)


@pytest.mark.parametrize("make, serves", [
    *((partial(llama, layers=1), serves) for serves in ("trees", "chains", "one by one")),
    *((sliding, serves) for serves in ("trees", "one by one")),
])  # fmt: skip
def test_what_is_remembered_changes_no_draft(make, serves):
    """After rejections, too: an assistant that reads whole texts drafts the same."""
    target, assistant = make(), make()
    weight = assistant.get_output_embeddings().weight
    weight.data += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    drafted = []
    for drafter in (reading(assistant, serves), reading(assistant, "whole text")):
        said = []

        def draft(text, lengths, drafter=drafter, said=said):
            drafts = drafter(text, lengths)
            said.append(drafts.tree.tokens.tolist())
            return drafts

        draft = Kept(draft, drafter)
        statistics = written(target, draft).statistics
        assert 0.2 < statistics.acceptance_rate < 0.95
        drafted.append(said)
    assert drafted[0] == drafted[1]


def test_a_row_of_nothing_ends_a_chain():
    model = llama(layers=1)
    drafter = AssistantDrafter(model, num_draft=4)
    model.lm_head.weight.data.fill_(float("nan"))
    for law, rule in ((GREEDY, "auto"), (sdk.SamplingParams(), "token"), (sdk.SamplingParams(), "match")):
        got = written(TARGET, drafter, sampling=law, rule=rule, seeds=5)
        assert got.statistics.mean_depth <= 1
        assert got.tokens == written(TARGET, None, sampling=law, rule=rule, seeds=5).tokens


LAWS = {
    "plain": sdk.SamplingParams(),
    "cut": sdk.SamplingParams(torch.tensor([0.8, 1.0, 0.0]), top_k=12, top_p=0.9),
}


@pytest.mark.parametrize("law", LAWS)
def test_under_match_the_text_is_the_same_and_shared_noise_finds_it(law):
    options = dict(sampling=LAWS[law], seeds=5, rule="match")
    plain = written(TARGET, None, **options)
    assert written(TARGET, AssistantDrafter(SMALL), **options).tokens == plain.tokens
    own = written(TARGET, AssistantDrafter(TARGET), **options)
    assert own.tokens == plain.tokens and own.statistics.acceptance_rate == 1.0


@pytest.mark.parametrize("rule", ["token", "traversal"])
def test_a_target_that_draws_for_itself_is_never_rejected(rule):
    for law in LAWS.values():
        got = written(TARGET, AssistantDrafter(TARGET), sampling=law, seeds=5, rule=rule)
        assert got.statistics.acceptance_rate == 1.0


def test_with_seeds_the_same_call_writes_the_same_text():
    options = dict(sampling=LAWS["cut"], seeds=5, budget=True)
    first, second = (written(TARGET, AssistantDrafter(SMALL), **options).tokens for _ in range(2))
    assert first == second


TINY, OTHER = llama(vocab=4, layers=1, width=16), llama(vocab=4, layers=2, width=16)


@pytest.mark.parametrize("rule", ["token", "traversal", "match"])
@pytest.mark.parametrize("confidence", [0.0, 0.4])
def test_sampled_text_has_the_targets_law(rule, confidence):
    """All sequences of three tokens, against their probabilities under the target alone."""
    with torch.inference_mode():
        texts = torch.cartesian_prod(*[torch.arange(4)] * 3)
        whole = torch.cat([torch.tensor([1, 2]).expand(64, 2), texts], 1)
        logs = torch.log_softmax(TINY(whole).logits.double(), -1)[:, 1:4].gather(2, texts[..., None])
        law = logs.sum((1, 2)).exp().numpy()

    def p_value(drafter):
        counts = Counter()
        for _ in range(2):
            got = written(
                TINY, drafter, [[1, 2]] * 1500, sampling=sdk.SamplingParams(), rule=rule, max_new_tokens=3
            )
            counts.update(map(tuple, got.tokens))
        return g_test(torch.tensor([counts[tuple(text)] for text in texts.tolist()]).numpy(), law)

    assert p_value(AssistantDrafter(OTHER, num_draft=2, confidence=confidence)) > 1e-4
    if rule != "match" and not confidence:  # a law that is not the one that drafts were drawn from is noticed
        drafter = AssistantDrafter(OTHER, num_draft=2)
        drafter.reset = lambda size: AssistantDrafter.reset(
            drafter, size, sdk.SamplingParams(temperature=0.3)
        )
        assert p_value(drafter) < 1e-6


def test_drafts_are_drawn_as_draft_sampling_says():
    sharp = sdk.SamplingParams(temperature=torch.full((3,), 0.2))
    drafter = AssistantDrafter(TARGET)
    written(TARGET, drafter, sampling=sdk.SamplingParams(), draft_sampling=sharp, rule="token")
    assert float(sharp.temperature[0]) == pytest.approx(0.2)
    with pytest.raises(TypeError, match="generate: draft_sampling must be a SamplingParams where"):
        written(TARGET, drafter, sampling=sdk.SamplingParams(), draft_sampling="logprobs")


def test_a_vocabulary_padded_to_another_width():
    drafter = AssistantDrafter(llama(vocab=40, layers=1), num_draft=4)
    assert written(TARGET, drafter).tokens == PLAIN
    for rule in ("token", "traversal"):
        got = written(TARGET, drafter, sampling=sdk.SamplingParams(), rule=rule)
        assert all(0 <= token < 31 for text in got.tokens for token in text)


def test_confidence_ends_a_chain():
    long = written(TARGET, AssistantDrafter(SMALL, num_draft=4)).statistics
    short = written(TARGET, AssistantDrafter(SMALL, num_draft=4, confidence=0.5)).statistics
    assert short.drafted < long.drafted


def test_settings_of_the_assistants_own():
    model = llama(layers=1)
    assert AssistantDrafter(model).num_draft == 5
    model.generation_config.num_assistant_tokens = 3
    model.generation_config.assistant_confidence_threshold = 0.25
    drafter = AssistantDrafter(model)
    assert (drafter.num_draft, drafter.confidence) == (3, 0.25)


def test_it_stops_at_its_last_position():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=31, n_embd=16, n_layer=1, n_head=2, n_positions=12)
    drafter = AssistantDrafter(GPT2LMHeadModel(config).eval(), num_draft=4)
    assert written(TARGET, drafter).tokens == PLAIN


def test_training_mode_is_put_back():
    model = llama(layers=1).train()
    written(TARGET, AssistantDrafter(model))
    assert model.training


def test_alone_it_gives_drafts_for_texts():
    drafter = AssistantDrafter(SMALL, num_draft=3)
    text, lengths = torch.tensor([[3, 4, 5, 3], [7, 0, 0, 0]]), torch.tensor([4, 1])
    drafts = drafter(text, lengths, max_draft=[3, 1])
    assert drafts.tree.cu_nodes.tolist() == [0, 4, 6] and drafts.draft_rows.tolist() == [0, 2, 3, -1, 1, -1]
    assert torch.equal(text, torch.tensor([[3, 4, 5, 3], [7, 0, 0, 0]]))
    assert drafter(text, lengths, max_draft=[0, 0]).shape == (2, 0)


class Letters:
    """A tokenizer of letters and of pairs that it knows."""

    def __init__(self, alphabet, pairs=()):
        self.words = [*pairs, *alphabet]

    def __call__(self, text, add_special_tokens=True):
        ids = []
        while text:
            number, word = next((n, w) for n, w in enumerate(self.words) if text.startswith(w))
            ids, text = [*ids, number], text[len(word) :]
        return {"input_ids": ids}

    def decode(self, ids, skip_special_tokens=False):
        return "".join(self.words[int(i)] for i in ids)


LETTERS = "abcdefghijklmnopqrstuvwxyzABCDE"


def test_with_a_tokenizer_of_its_own_drafts_are_translated():
    target, assistant = Letters(LETTERS), Letters(LETTERS[::-1], pairs=("ab", "cd", "xy"))
    model = llama(vocab=34, layers=1)
    drafter = AssistantDrafter(model, num_draft=4, tokenizer=target, assistant_tokenizer=assistant)
    assert written(TARGET, drafter).tokens == PLAIN
    assert written(TARGET, drafter, budget=True).tokens == PLAIN

    text = torch.tensor([target("abcab")["input_ids"]])
    got = drafter(text, torch.tensor([5]))
    ids = torch.tensor([assistant("abcab")["input_ids"]])
    for _ in range(4):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    expected = target(assistant.decode(ids[0, -4:]))["input_ids"]
    assert got[0].tolist() == expected


def test_translation_of_the_targets_own_text_is_right():
    """The same model behind a tokenizer that numbers letters the other way round."""
    target, assistant = Letters(LETTERS), Letters(LETTERS[::-1])
    model = llama()
    with torch.no_grad():
        for weight in (model.model.embed_tokens.weight, model.lm_head.weight):
            weight.copy_(weight.flip(0))
    drafter = AssistantDrafter(model, num_draft=4, tokenizer=target, assistant_tokenizer=assistant)
    got = written(TARGET, drafter)
    assert got.tokens == PLAIN and got.statistics.acceptance_rate == 1.0


@pytest.mark.parametrize("options, kind, text", [
    (dict(num_draft=0), ValueError, "AssistantDrafter: num_draft must be >= 1, got 0"),
    (dict(num_draft=True), TypeError, "AssistantDrafter: num_draft must be an int, got bool"),
    (dict(confidence=1.0), ValueError, "AssistantDrafter: confidence must be in [0, 1), got 1.0"),
    (dict(confidence="0"), TypeError, "AssistantDrafter: confidence must be a number, got str"),
    (dict(tokenizer=Letters("ab")), ValueError, "tokenizer and assistant_tokenizer must be given together"),
])  # fmt: skip
def test_refusals(options, kind, text):
    with pytest.raises(kind) as error:
        AssistantDrafter(SMALL, **options)
    assert text in str(error.value)


def test_a_model_is_no_drafter_by_itself():
    with pytest.raises(TypeError, match="generate: drafter must be no model .* AssistantDrafter"):
        Drafting(SMALL, vocab_size=31)
