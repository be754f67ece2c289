# SPDX-License-Identifier: Apache-2.0
"""`model.generate(custom_generate=...)`: what transformers returns, whatever is drafted."""

from collections import Counter

import pytest
import torch
from gtest import g_test
from loop_cases import CACHE
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    StaticCache,
    StoppingCriteria,
    StoppingCriteriaList,
)

import specdec_kernels as sdk


def model(vocab=31, cls=LlamaForCausalLM):
    torch.manual_seed(0)
    if cls is GPT2LMHeadModel:
        config = GPT2Config(vocab_size=vocab, n_embd=48, n_layer=2, n_head=4, n_positions=64)
    else:
        config = LlamaConfig(
            vocab_size=vocab, hidden_size=48, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=256,
        )  # fmt: skip
    config.initializer_range = 0.3
    config.eos_token_id = config.bos_token_id = None
    return cls(config).eval()


TARGET = model()
PADDED = torch.tensor([[0, 0, 0, 5, 6, 5], [1, 2, 3, 1, 2, 3], [0, 0, 0, 0, 0, 9]])
MASK = (PADDED != 0).long()


def noise(text, lengths):
    return torch.randint(0, 31, (len(lengths), 3))


def ngrams(text, lengths):
    return sdk.ngram_draft(text, lengths, num_draft=4)


def trees(text, lengths):
    """Likely continuations, since texts of small models repeat, beside others."""
    last = [int(row[length - 1]) for row, length in zip(text, lengths, strict=True)]
    guess = sdk.ngram_draft(text, lengths, num_draft=3).clamp_min(1).tolist()
    tokens = [
        t for x, (a, b, c) in zip(last, guess, strict=True) for t in (x, (a + 1) % 31, a, b, (c + 2) % 31, c)
    ]
    parents = [-1, 0, 0, 2, 3, 3] * len(last)
    ends = torch.arange(len(last) + 1, dtype=torch.int32) * 6
    return sdk.DraftTree.from_parents(torch.tensor(tokens), torch.tensor(parents), ends)


DRAFTERS = [None, noise, ngrams, trees]
OPTIONS = [
    dict(),
    dict(eos_token_id=list(range(8)), min_new_tokens=4),
    dict(repetition_penalty=1.7, no_repeat_ngram_size=2),
    dict(bad_words_ids=[[4]], suppress_tokens=[9], eos_token_id=3, forced_eos_token_id=3),
    dict(
        prefix_allowed_tokens_fn=lambda request, ids: list(range(request + 1, request + 25)), eos_token_id=2
    ),
    dict(encoder_repetition_penalty=2.0, exponential_decay_length_penalty=(3, 1.4), eos_token_id=7),
    dict(num_return_sequences=2, do_sample=True, top_k=1, eos_token_id=[5, 6, 7]),
]


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
def test_ids_are_those_of_transformers(options, drafter):
    given = dict(attention_mask=MASK, max_new_tokens=14, pad_token_id=0) | options
    theirs = TARGET.generate(PADDED, **given)
    got = TARGET.generate(PADDED, custom_generate=sdk.custom_generate(drafter, budget=None), **given)
    assert got.tolist() == theirs.tolist() and got.dtype == theirs.dtype


@pytest.mark.parametrize("cls", [LlamaForCausalLM, GPT2LMHeadModel])
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_outputs_are_those_of_transformers(cls, drafter):
    target = model(cls=cls)
    given = dict(
        attention_mask=MASK, max_new_tokens=12, pad_token_id=0, eos_token_id=[3, 4, 5, 6],
        repetition_penalty=1.3, return_dict_in_generate=True, output_scores=True, output_logits=True,
    )  # fmt: skip
    theirs = target.generate(PADDED, **given)
    got = target.generate(PADDED, custom_generate=sdk.custom_generate(drafter), **given)
    assert type(got) is type(theirs) and got.sequences.tolist() == theirs.sequences.tolist()
    written = theirs.sequences[:, PADDED.shape[1] :]
    kept = torch.stack([before(row, [3, 4, 5, 6]) for row in written])
    for name in ("scores", "logits"):
        ours, other = getattr(got, name), getattr(theirs, name)
        assert len(ours) == len(other)
        for step, (mine, their) in enumerate(zip(ours, other, strict=True)):
            assert mine.shape == their.shape and mine.dtype == their.dtype
            torch.testing.assert_close(mine[kept[:, step]], their[kept[:, step]], atol=2e-4, rtol=1e-4)
            assert bool((mine[~kept[:, step]].argmax(-1) == 0).all())
    transitions = target.compute_transition_scores(got.sequences, got.scores, normalize_logits=True)
    assert bool((transitions[~kept] == 0).all()) and bool(transitions.isfinite().all())


def before(row, stops):
    """Which tokens a request has written itself, up to its stop token."""
    ended = torch.isin(row, torch.tensor(stops)).cumsum(0)
    return (ended == 0) | ((ended == 1) & torch.isin(row, torch.tensor(stops)))


def test_the_cache_goes_on_with_the_text():
    """Slots are columns, as in the cache of transformers."""
    given = dict(attention_mask=MASK, max_new_tokens=9, pad_token_id=0, return_dict_in_generate=True)
    theirs = TARGET.generate(PADDED, **given)
    got = TARGET.generate(PADDED, custom_generate=sdk.custom_generate(ngrams), **given)
    assert got[CACHE].get_seq_length() == theirs[CACHE].get_seq_length()
    seen = torch.cat([MASK, torch.ones(3, 8, dtype=torch.int64)], 1) != 0
    for mine, their in zip(got[CACHE].layers, theirs[CACHE].layers, strict=True):
        for name in ("keys", "values"):
            ours, other = (getattr(layer, name).transpose(1, 2)[seen] for layer in (mine, their))
            torch.testing.assert_close(ours, other, atol=1e-4, rtol=1e-4)
    longer = torch.cat([MASK, torch.ones(3, 9, dtype=torch.int64)], 1)
    more = [
        TARGET.generate(
            out.sequences, attention_mask=longer, max_new_tokens=4, pad_token_id=0, **{CACHE: out[CACHE]}
        )
        for out in (theirs, got)
    ]
    assert more[0].tolist() == more[1].tolist()


@pytest.mark.parametrize("rule", ["auto", "match"])
def test_sampled_text_has_the_law_of_transformers(rule):
    """All texts of three tokens under a penalty and cuts, with drafts and by enumeration."""
    target = model(vocab=5)
    prompt = torch.tensor([[1, 2, 1]])
    given = dict(
        max_new_tokens=3, do_sample=True, temperature=1.2, top_k=4, top_p=0.95, min_p=0.02,
        repetition_penalty=1.3, pad_token_id=0, attention_mask=torch.ones_like(prompt),
    )  # fmt: skip
    texts = torch.cartesian_prod(*[torch.arange(5)] * 3)
    forced = iter(texts.T)
    chance = torch.ones(len(texts), dtype=torch.float64)

    def follow(input_ids, scores):  # as the last processor: every row writes its own text
        nonlocal chance
        token = next(forced)
        chance = chance * scores.double().softmax(-1).gather(1, token[:, None])[:, 0]
        return torch.full_like(scores, -torch.inf).scatter(1, token[:, None], 0.0)

    def enumerate_texts(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        return type(model)._sample(
            model, input_ids, LogitsProcessorList([*logits_processor, follow]), stopping_criteria,
            generation_config, **kwargs,
        )  # fmt: skip

    whole = dict(given, attention_mask=torch.ones(len(texts), 3, dtype=torch.int64))
    target.generate(prompt.expand(len(texts), -1), custom_generate=enumerate_texts, **whole)
    assert abs(float(chance.sum()) - 1) < 1e-5

    def drafts(text, lengths):
        return torch.randint(0, 5, (len(lengths), 2))

    torch.manual_seed(3)
    counts = Counter()
    batch = dict(given, attention_mask=torch.ones(1500, 3, dtype=torch.int64))
    for _ in range(2):
        custom = sdk.custom_generate(drafts, rule=rule, budget=None)
        ids = target.generate(prompt.expand(1500, -1), custom_generate=custom, **batch)
        counts.update(map(tuple, ids[:, 3:].tolist()))
    observed = torch.tensor([counts[tuple(text)] for text in texts.tolist()])
    possible = chance > 0
    assert int(observed[~possible].sum()) == 0
    assert g_test(observed[possible].numpy(), chance[possible].numpy()) > 1e-4


def test_torch_seeds_repeat_a_text():
    custom = sdk.custom_generate(ngrams, rule="match")
    given = dict(
        attention_mask=MASK, max_new_tokens=8, do_sample=True, pad_token_id=0, custom_generate=custom
    )
    texts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        texts.append(TARGET.generate(PADDED, **given).tolist())
    assert texts[0] == texts[1] != texts[2]


def test_prompt_lookup_of_the_configuration():
    given = dict(max_new_tokens=12, pad_token_id=0, prompt_lookup_num_tokens=3)
    theirs = TARGET.generate(PADDED[1:2], max_new_tokens=12, pad_token_id=0)
    assert (
        TARGET.generate(PADDED[1:2], custom_generate=sdk.custom_generate(), **given).tolist()
        == theirs.tolist()
    )


@pytest.mark.parametrize("cls", [LlamaForCausalLM, GPT2LMHeadModel])
@pytest.mark.parametrize("own", [True, False], ids=["drafts for itself", "another"])
def test_assisted_decoding_is_greedy_search(cls, own):
    """transformers' case, whose assisted decoding serves one text; ours serves padded batches too."""
    target = model(cls=cls)
    assistant = target
    if not own:
        torch.manual_seed(1)
        assistant = cls(target.config).eval()
    custom = sdk.custom_generate(sdk.AssistantDrafter(assistant, num_draft=4))
    given = dict(
        max_new_tokens=12, pad_token_id=0, eos_token_id=4, return_dict_in_generate=True, output_scores=True
    )
    one = PADDED[1:2]
    plain, assisted, ours = (
        target.generate(one, **given, **way)
        for way in (dict(), dict(assistant_model=assistant), dict(custom_generate=custom))
    )
    assert ours.sequences.tolist() == assisted.sequences.tolist() == plain.sequences.tolist()
    for mine, their in zip(ours.scores, assisted.scores, strict=True):
        torch.testing.assert_close(mine, their, atol=2e-4, rtol=1e-4)
    batch, mine = (
        target.generate(PADDED, attention_mask=MASK, **given, **way).sequences
        for way in (dict(), dict(custom_generate=custom))
    )
    assert mine.tolist() == batch.tolist()


@pytest.mark.parametrize("rule", ["match", "token"])
def test_assisted_sampling_repeats_with_torchs_seed(rule):
    """transformers' case of a sampled text, whose assistant is likely to be wrong."""
    torch.manual_seed(1)
    assistant = LlamaForCausalLM(TARGET.config).eval()
    drafter = sdk.AssistantDrafter(assistant, num_draft=3)
    custom = sdk.custom_generate(drafter, rule=rule, budget=None)
    given = dict(attention_mask=MASK, max_new_tokens=8, do_sample=True, pad_token_id=0)
    texts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        texts.append(TARGET.generate(PADDED, custom_generate=custom, **given).tolist())
    assert texts[0] == texts[1] != texts[2]
    torch.manual_seed(1)
    plain = TARGET.generate(PADDED, custom_generate=sdk.custom_generate(None, rule=rule), **given).tolist()
    assert (plain == texts[0]) == (rule == "match")


class Text:
    """A streamer that keeps what it gets."""

    def __init__(self):
        self.got, self.ended = [], False

    def put(self, value):
        self.got += value.flatten().tolist()

    def end(self):
        self.ended = True


def test_what_transformers_does_not_hand_on():
    streamer = Text()
    custom = sdk.custom_generate(ngrams, streamer=streamer)
    ids = TARGET.generate(PADDED[1:2], max_new_tokens=9, pad_token_id=0, custom_generate=custom)
    assert streamer.got == ids[0].tolist() and streamer.ended


def test_processors_and_criteria_of_the_caller():
    class Row(StoppingCriteria):
        def __call__(self, input_ids, scores, **_):
            assert scores is None and input_ids.shape[0] == 3
            return (torch.arange(3) + 9 <= input_ids.shape[1]) & (input_ids[:, 0] >= 0)

    given = dict(
        attention_mask=MASK, max_new_tokens=9, pad_token_id=0, eos_token_id=30,
        logits_processor=LogitsProcessorList([NoRepeatNGramLogitsProcessor(1)]),
        stopping_criteria=StoppingCriteriaList([Row()]),
    )  # fmt: skip
    theirs = TARGET.generate(PADDED, **given)
    got = TARGET.generate(PADDED, custom_generate=sdk.custom_generate(trees), **given)
    assert got.tolist() == theirs.tolist() and got.shape[1] == 11


@pytest.mark.parametrize("given, text", [
    (dict(num_beams=2), "generation_config.num_beams must be None . 1, got 2"),
    (dict(output_attentions=True), "generation_config.output_attentions must be"),
    (dict(cache_implementation="offloaded"), "generation_config.cache_implementation must be"),
    (dict(guidance_scale=2.0), "generation_config.guidance_scale must be"),
    (dict(inputs_embeds=torch.zeros(3, 6, 48)), "inputs_embeds must be None"),
    (dict(position_ids=torch.zeros(3, 6, dtype=torch.int64)), "position_ids must number the tokens"),
    (dict(attention_mask=torch.tensor([[1, 1, 0, 1, 1, 1]] * 3)), "attention_mask must be 0 at the ends"),
])  # fmt: skip
def test_refusals(given, text):
    given = dict(attention_mask=MASK, max_new_tokens=3, pad_token_id=0) | given
    with pytest.raises(ValueError, match=f"custom_generate: {text}"):
        TARGET.generate(PADDED, custom_generate=sdk.custom_generate(ngrams), **given)


@pytest.mark.parametrize("padded", [False, True])
def test_a_cache_of_the_callers_is_read_and_filled(padded):
    """Turn by turn, as under transformers, whose cache is the other column."""
    ids, mask = (PADDED, MASK) if padded else (PADDED[:1], MASK[:1])
    caches, texts = [DynamicCache(), DynamicCache()], [ids, ids]
    options = dict(max_new_tokens=5, pad_token_id=0, eos_token_id=None, do_sample=False)
    for turn in range(3):
        seen = [cache.get_seq_length() for cache in caches]
        assert seen[0] == seen[1] == (texts[0].shape[1] - 3 if turn else 0)
        for column, extra in enumerate((dict(custom_generate=sdk.custom_generate(ngrams)), {})):
            texts[column] = TARGET.generate(
                texts[column], attention_mask=mask, **{CACHE: caches[column]}, **options, **extra
            )
        assert texts[0].tolist() == texts[1].tolist()
        new = torch.tensor([[3, 4]]).expand(len(ids), 2)
        texts = [torch.cat([text, new], 1) for text in texts]
        mask = torch.cat([mask, mask.new_ones(len(ids), 7)], 1)


def test_a_cache_whose_layers_cannot_be_taken_is_refused():
    cache = StaticCache(config=TARGET.config, max_cache_len=64)
    with torch.inference_mode():
        TARGET(PADDED[:1, -3:], **{CACHE: cache})
    with pytest.raises(
        ValueError, match="custom_generate: cache must have layers of keys and values .*Static"
    ):
        TARGET.generate(PADDED[:1], custom_generate=sdk.custom_generate(ngrams), **{CACHE: cache})


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="custom_generate: unknown options .'temperature'."):
        sdk.custom_generate(ngrams, temperature=1.0)


def test_speculative_sampling():
    """transformers' case: near-certain laws that agree on two of three candidates."""
    inf = float("inf")
    certain = [-10.0, 10.0]
    sure = torch.full((4, 10), certain[0])
    sure[torch.arange(3), torch.tensor([1, 4, 5])] = certain[1]  # of the candidates 1, 4, 5
    target = torch.full((4, 10), -inf)
    target[torch.arange(4), torch.tensor([1, 4, 8, 5])] = certain[1]
    got = sdk.verify(target, sdk.DraftTree.chain(torch.tensor([[1, 4, 5]])), sure[None, :3], rule="token")
    assert got.num_accepted.tolist() == [2] and got.tokens[0, :3].tolist() == [1, 4, 8]


def test_speculative_sampling_keeps_the_targets_law():
    """transformers' case: a candidate that the target likes less than the draft, many times over."""
    count = 20_000
    draft = torch.tensor([-10.0, 10.0]).repeat(5)[None]  # tokens 1, 3, 5, 7, 9 are proposed
    target = torch.tensor([3.0, 4.0, 3.0, 1.0, 2.0, 1.5, 0.5, 2.0, 1.0, 0.0])[None]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.multinomial(draft.softmax(-1), count, replacement=True, generator=generator).T
    tree = sdk.DraftTree.chain(tokens)
    rows = target.expand(2 * count, -1)
    seeds, places = torch.arange(count), torch.zeros(count, dtype=torch.int64)
    laws = draft.expand(count, 1, -1)
    got = sdk.verify(rows, tree, laws, seeds=seeds, positions=places, rule="token")
    observed = torch.bincount(got.tokens[:, 0], minlength=10)
    assert g_test(observed.numpy(), target[0].double().softmax(-1).numpy()) > 1e-4


@pytest.mark.parametrize("do_sample", [False, True])
def test_a_draft_that_ends_the_text_ends_it(do_sample):
    """transformers' cases of drafts with end tokens inside: nothing is written behind one."""
    ids = torch.tensor([[1, 2, 3, 1, 2, 3, 1]])
    given = dict(max_new_tokens=20, pad_token_id=0, eos_token_id=3, do_sample=do_sample)
    got = TARGET.generate(ids, custom_generate=sdk.custom_generate(ngrams), **given)[0, 7:]
    assert 3 not in got[:-1].tolist()
