# SPDX-License-Identifier: Apache-2.0
"""Options, prompts, processors and ends: token by token they give what transformers gives."""

import copy
from unittest import mock

import pytest
import torch
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    SynthIDTextWatermarkingConfig,
)

import specdec_kernels as sdk
from specdec_kernels.integrations.transformers.options import HONOURED, MEANINGLESS, REFUSED, configuration
from specdec_kernels.integrations.transformers.processing import prepared, processing
from specdec_kernels.integrations.transformers.prompts import prompts
from specdec_kernels.integrations.transformers.texts import written_text
from specdec_kernels.reference.law import law

CPU = torch.device("cpu")
PROMPT = [3, 4, 5, 3, 4, 5, 3]
BATCH = [PROMPT, [7], [9, 9, 2, 1]]


def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=31, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.3,
        eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


TARGET = model()


def config(**options):
    return GenerationConfig(pad_token_id=0, **options)


def rules(texts=(PROMPT,), generation_config=None, target=TARGET, **options):
    return processing(target, texts, configuration(target, generation_config), device=CPU, **options)


@torch.inference_mode()
def written(texts, generation_config=None, target=TARGET, **options):
    """Greedy text and reason of every request, one token at a time."""
    made, found = rules(texts, generation_config, target, **options), []
    for request, prompt in enumerate(texts):
        text, reason = [], None
        while reason is None:
            logits = target(torch.tensor([[*prompt, *text]])).logits[:, -1]
            logits = made.apply(logits, [(request, text)]) if made.processors else logits
            _, reason = made.finish(request, text, [int(logits.argmax())], made.scores(logits, request))
            text.append(int(logits.argmax()))
        found.append((text, reason))
    return found


def own(prompt, generation_config=None, target=TARGET, **options):
    ids = target.generate(torch.tensor([prompt]), generation_config=generation_config, **options)
    return ids[0, len(prompt) :].tolist()


EVERY = list(range(20))
GREEDY = [
    dict(max_new_tokens=12),
    dict(),
    dict(max_length=15),
    dict(max_new_tokens=12, repetition_penalty=1.8),
    dict(max_new_tokens=12, no_repeat_ngram_size=2),
    dict(max_new_tokens=9, suppress_tokens=list(range(1, 12))),
    dict(max_new_tokens=9, begin_suppress_tokens=EVERY),
    dict(max_new_tokens=9, encoder_repetition_penalty=3.0),
    dict(max_new_tokens=9, encoder_no_repeat_ngram_size=1),
    dict(max_length=15, forced_eos_token_id=9),
    dict(max_new_tokens=9, forced_bos_token_id=9),
    dict(max_new_tokens=9, bad_words_ids=[[5], [20, 21]]),
    dict(max_new_tokens=9, sequence_bias={(4,): -9.0, (3, 7): 5.0}),
    dict(max_new_tokens=15, eos_token_id=EVERY),
    dict(max_new_tokens=15, eos_token_id=EVERY, min_new_tokens=5),
    dict(max_length=30, eos_token_id=EVERY, min_length=12),
    dict(max_new_tokens=10, eos_token_id=[6], exponential_decay_length_penalty=(2, 3.0)),
    dict(max_new_tokens=9, watermarking_config=dict(bias=4.0, seeding_scheme="lefthash")),
    dict(max_new_tokens=9, renormalize_logits=True, remove_invalid_values=True),
]


@pytest.mark.parametrize("options", GREEDY, ids=lambda options: "-".join(options) or "default")
def test_greedy_text_is_that_of_transformers(options):
    texts = BATCH if "encoder_no_repeat_ngram_size" not in options else BATCH[:1]
    got = written(texts, config(**options))
    for prompt, (text, reason) in zip(texts, got, strict=True):
        assert text == own(prompt, config(**options))
        stops = options.get("eos_token_id", [])
        assert reason == ("stop" if text[-1] in stops else "length")


def test_the_models_own_configuration_counts():
    target = copy.copy(TARGET)
    target.generation_config = config(repetition_penalty=5.0, eos_token_id=[6, 30], max_new_tokens=12)
    assert written(BATCH, target=target)[0][0] == own(PROMPT, target=target)
    assert written(BATCH, config(max_new_tokens=3), target)[0][0] == own(
        PROMPT, config(max_new_tokens=3), target
    )


SAMPLED = [
    dict(),
    dict(temperature=0.7, top_k=0),
    dict(top_k=5, top_p=0.8),
    dict(temperature=1.4, top_k=12, top_p=0.9, min_p=0.06),
    dict(top_k=0, min_p=0.1),
    dict(top_h=0.5),
    dict(typical_p=0.7),
    dict(top_k=9, epsilon_cutoff=0.02),
    dict(eta_cutoff=0.05, temperature=0.8),
    dict(repetition_penalty=1.3, temperature=0.8, renormalize_logits=True),
    dict(watermarking_config=dict(bias=2.0, seeding_scheme="lefthash"), min_p=0.02),
]


@pytest.mark.parametrize("options", SAMPLED, ids=lambda options: "-".join(options) or "default")
def test_the_law_is_that_of_transformers(options):
    """At every token of a text that transformers has sampled: its scores, and the law drawn from here."""
    options = config(do_sample=True, max_new_tokens=6, output_logits=True, **options)
    torch.manual_seed(1)
    theirs = TARGET.generate(
        torch.tensor([PROMPT]), generation_config=options, output_scores=True, return_dict_in_generate=True
    )
    text = theirs.sequences[0, len(PROMPT) :].tolist()
    made = rules([PROMPT], options)
    for place, (raw, scores) in enumerate(zip(theirs.logits, theirs.scores, strict=True)):
        logits = made.apply(raw, [(0, text[:place])])
        torch.testing.assert_close(made.scores(logits, 0), scores)
        sampled = law(logits[0].double(), made.sampling)
        torch.testing.assert_close(sampled.float(), scores[0].softmax(-1), atol=2e-6, rtol=0)


def test_what_the_kernels_can_cut_is_left_to_them():
    made = rules([PROMPT], config(do_sample=True, temperature=0.5, top_k=4, top_p=0.9))
    assert made.sampling == sdk.SamplingParams(0.5, 4, 0.9, order="min_p_last") and not made.processors
    made = rules([PROMPT], config(do_sample=True, top_k=4, typical_p=0.9))
    assert made.sampling == sdk.SamplingParams(order="min_p_last") and len(made.processors) == 2
    assert rules([PROMPT], config(top_k=4)).sampling.temperature == 0.0


def test_sampling_of_the_callers_replaces_that_of_the_configuration():
    params = sdk.SamplingParams(torch.tensor([0.5, 0.0]), top_k=torch.tensor([4, 0]), min_p=0.1)
    made = rules([PROMPT, [7]], config(do_sample=True, top_k=3, repetition_penalty=1.3), sampling=params)
    assert made.sampling.top_k is params.top_k and len(made.processors) == 1
    logits = torch.randn(2, 31)
    single = sdk.SamplingParams(0.5, 4, 1.0, 0.1)
    torch.testing.assert_close(
        made.scores(logits[:1], 0)[0].softmax(-1), law(logits[0].double(), single).float(), atol=1e-6, rtol=0
    )
    assert torch.equal(made.scores(logits[1:], 1), logits[1:])


class Recorder(LogitsProcessor):
    """Bans what stands at the text's start, and notes elsewhere what it is called with."""

    def __init__(self, calls):
        self.note = calls.append

    def __call__(self, input_ids, scores):
        self.note(input_ids.tolist())
        scores[torch.arange(len(scores)), input_ids[:, 0]] = -torch.inf
        return scores


def test_processors_see_the_unpadded_prompt_and_the_path():
    calls = []
    made = rules(BATCH, logits_processor=[Recorder(calls)])
    raw = torch.randn(5, 31)
    before = raw.clone()
    got = made.apply(raw, [(0, []), None, (0, [8]), (2, [8, 6]), (0, [9])])
    assert torch.equal(raw, before) and torch.equal(got[1], raw[1])
    banned = {0: 3, 2: 3, 3: 9, 4: 3}
    assert {row: int(got[row].isinf().nonzero()) for row in banned} == banned
    texts = [[*PROMPT], [*PROMPT, 8], [*BATCH[2], 8, 6], [*PROMPT, 9]]
    assert all(call == [call[0]] * 3 and call[0] in texts for call in calls)
    assert {tuple(call[0]) for call in calls} == set(map(tuple, texts))


def test_a_processor_may_know_requests_by_their_rows():
    allowed = [[1, 2], [3], [4]]
    by_row = PrefixConstrainedLogitsProcessor(lambda request, _: allowed[request], 1)

    class Places(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return scores + torch.arange(len(scores))[:, None]

    made = rules(BATCH, logits_processor=[by_row, Places()])
    got = made.apply(torch.zeros(3, 31), [(2, []), (0, []), (1, [5])])
    assert [row.isfinite().nonzero()[:, 0].tolist() for row in got] == [[4], [1, 2], [3]]
    assert [float(row.max()) for row in got] == [2.0, 0.0, 1.0]


def test_a_processor_that_notes_the_prompts_length_has_one_for_every_request():
    class Banned(LogitsProcessor):
        length = None

        def __call__(self, input_ids, scores):
            self.length = self.length or input_ids.shape[1]
            return scores - self.length

    made = rules(BATCH, logits_processor=[Banned()])
    made.apply(torch.zeros(3, 31), [(0, []), (1, []), (2, [])])
    got = made.apply(torch.zeros(3, 31), [(2, [5]), (1, [5, 5]), (0, [6])])
    assert got[:, 0].tolist() == [-4.0, -1.0, -7.0]


class Counter(LogitsProcessor):
    def __init__(self):
        self.calls = 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        return scores


class Nested(Counter):
    def __init__(self):
        self.inside = [{"table": torch.zeros(2)}]

    def __call__(self, input_ids, scores):
        self.inside[0]["table"] += 1
        return scores


class Random(LogitsProcessor):
    def __call__(self, input_ids, scores):
        return scores + torch.rand_like(scores)


@pytest.mark.parametrize("kind", [Counter, Nested, Random])
def test_stateful_processors_are_refused_by_name(kind):
    made = rules(logits_processor=LogitsProcessorList([kind()]))
    with pytest.raises(
        ValueError, match=f"generate: logits_processor must be a function of .*{kind.__name__}"
    ):
        made.apply(torch.zeros(1, 31), [(0, [])])


def test_a_table_made_at_the_first_call_is_no_state():
    class Lazy(LogitsProcessor):
        table = None

        def __call__(self, input_ids, scores):
            self.table = torch.arange(31.0) if self.table is None else self.table
            return scores + self.table

    got = rules(logits_processor=Lazy()).apply(torch.zeros(1, 31), [(0, [])])
    assert torch.equal(got[0], torch.arange(31.0))


@pytest.mark.parametrize("answer, got", [(None, "NoneType"), (torch.zeros(1, 5), r"\[1, 5\]")])
def test_processors_must_return_scores(answer, got):
    made = rules(logits_processor=lambda input_ids, scores: answer)
    with pytest.raises(
        ValueError, match=rf"logits_processor must return scores \[B, V\] = \[1, 31\], got {got}"
    ):
        made.apply(torch.zeros(1, 31), [(0, [])])


@pytest.mark.parametrize("answer, got", [(None, "NoneType"), (torch.zeros(2).bool(), r"\[2\]")])
def test_criteria_must_return_bools(answer, got):
    made = rules(BATCH, stopping_criteria=lambda input_ids, scores: answer)
    with pytest.raises(ValueError, match=rf"stopping_criteria must return a bool or bools .* got {got} from"):
        made.finish(0, [], [1])


def test_watermarks_with_memory_are_refused():
    options = config(
        watermarking_config=SynthIDTextWatermarkingConfig(keys=[1, 2], ngram_len=3), do_sample=True
    )
    with pytest.raises(ValueError, match="logits_processor must .* got SynthIDTextWatermarkLogitsProcessor"):
        rules(generation_config=options)


def test_equal_texts_go_through_a_processor_in_one_call():
    """Rows of one length share a call; penalties, and what reads no text, take all rows at once."""
    options = dict(suppress_tokens=[1], repetition_penalty=1.5, no_repeat_ngram_size=2, max_new_tokens=9)
    rows = [(0, []), (0, [5]), (0, [6]), (0, [7]), (0, [5, 5]), (1, []), (1, [5])]
    logits = torch.randn(len(rows), 31)
    made = rules([PROMPT, PROMPT[::-1]], config(**options))
    alone = torch.cat([made.apply(logits[i : i + 1], rows[i : i + 1]) for i in range(len(rows))])
    counts = {}

    def counting(cls):
        call = cls.__call__

        def counted(self, *arguments):
            counts[cls.__name__] = counts.get(cls.__name__, 0) + 1
            return call(self, *arguments)

        return mock.patch.object(cls, "__call__", counted)

    kinds = [type(column[0]) for column in made.processors]
    with counting(kinds[0]), counting(kinds[1]), counting(kinds[2]):
        torch.testing.assert_close(made.apply(logits, rows), alone)
    assert list(counts.values()) == [1, 3, 1] and kinds[0] is RepetitionPenaltyLogitsProcessor


def test_ends_per_request():
    ends = rules(BATCH, max_new_tokens=[2, 3, 4], stop_tokens=[[5], [], {6, 7}])
    assert ends.limits == [2, 3, 4]
    assert ends.finish(0, [], [4, 6, 5]) == (2, "length")
    assert ends.finish(0, [], [5, 6]) == (1, "stop")
    assert ends.finish(1, [5], [5]) == (1, None)
    assert ends.finish(2, [1, 1], [1, 7, 7]) == (2, "stop")
    assert ends.finish(2, [1], [1, 1]) == (2, None)


@pytest.mark.parametrize("stops", [iter([5]), {5}, (5,), torch.tensor([5]), range(5, 6), [torch.tensor(5)]])
def test_stop_tokens_come_in_any_collection(stops):
    assert rules(max_new_tokens=9, stop_tokens=stops).finish(0, [], [4, 5, 6]) == (2, "stop")


def test_an_empty_collection_stops_nowhere():
    options = config(eos_token_id=5, min_new_tokens=3)
    assert rules(generation_config=options).finish(0, [], [5, 6]) == (1, "stop")
    assert rules(generation_config=options, stop_tokens=[]).finish(0, [], [5, 6]) == (2, None)
    made = rules(BATCH, options, stop_tokens=[[5], [], [6, 7]])  # the least length holds for each one's own
    got = made.apply(torch.zeros(3, 31), [(0, [1]), (1, [1]), (2, [1, 1])])
    assert [row.isinf().nonzero()[:, 0].tolist() for row in got] == [[5], [], [6, 7]]


class Odd(StoppingCriteria):
    def __init__(self):
        self.lengths = []

    def __call__(self, input_ids, scores, **_):
        self.lengths.append(input_ids.shape[1])
        return (input_ids[:, -1] % 2 == 1) & (torch.arange(len(input_ids)) < 2)


def test_criteria_are_asked_token_by_token():
    odd = Odd()
    ends = rules(BATCH, max_new_tokens=9, stopping_criteria=StoppingCriteriaList([odd]))
    assert ends.finish(0, [2], [4, 6, 7, 8]) == (3, "criteria")
    assert odd.lengths == [9, 10, 11]
    assert ends.finish(2, [2], [7]) == (1, None)  # its row says no


def test_criteria_get_the_scores():
    class Sure(StoppingCriteria):
        def __call__(self, input_ids, scores, **_):
            return scores[-1].softmax(-1).amax(-1) > 0.9

    ends = rules(max_new_tokens=9, stopping_criteria=[Sure()])
    scores = torch.zeros(3, 31)
    scores[1, 4] = 50.0
    assert ends.finish(0, [], [4, 4, 4], scores) == (2, "criteria")


def test_criteria_of_a_class_replace_the_configurations_own():
    ends = rules(
        BATCH,
        max_new_tokens=4,
        stop_tokens=[1],
        stopping_criteria=[MaxLengthCriteria(9), EosTokenCriteria(2)],
    )
    assert ends.limits == [2, 8, 5]
    assert ends.finish(1, [], [1, 2]) == (2, "stop")


def test_time_ends_a_text():
    assert rules(generation_config=config(max_time=1e-9)).finish(0, [], [3, 4]) == (1, "criteria")


def letters():
    """A tokenizer of one letter a token."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {chr(97 + token): token for token in range(26)} | {"[UNK]": 26}
    made = Tokenizer(models.WordLevel(vocab, "[UNK]"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Split(Regex("."), "isolated"), decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made)


def test_stop_strings():
    ends = rules(BATCH, max_new_tokens=9, stop_strings="bad", tokenizer=letters())
    assert ends.finish(0, [2, 1], [0, 3, 4]) == (2, "stop_string")
    assert ends.finish(0, [2, 1], [0, 4]) == (2, None)
    ends = rules(BATCH, max_new_tokens=9, stop_strings=[["b"], [], ["ee", "c"]], tokenizer=letters())
    assert ends.finish(0, [], [2, 1]) == (2, "stop_string")
    assert ends.finish(1, [], [2, 1]) == (2, None)
    assert ends.finish(2, [], [4, 4, 1]) == (2, "stop_string")


@pytest.mark.parametrize(
    "prompt, tokens, ends, text",
    [
        ([0], [3, 4, 5], [], "def"),
        ([0], [3, 4, 5], ["ef"], "d"),  # begins in the token before
        ([0], [3, 4, 5], ["ef", "def"], ""),
        ([2, 1], [0, 3], ["bad"], ""),  # begins in the prompt
        ([2], [1, 0, 3, 0, 3], ["ad"], "bad"),  # what was there before did not end it
        ([2], [1, 0, 3], ["no"], "bad"),
    ],
)
def test_texts_are_cut_where_a_stop_string_begins(prompt, tokens, ends, text):
    assert written_text(letters(), prompt, tokens, ends) == text


def test_a_token_longer_than_the_end_of_a_stop_string():
    tokenizer = letters()
    tokenizer.add_tokens(["xyz"])
    (long,) = tokenizer.convert_tokens_to_ids(["xyz"])
    assert written_text(tokenizer, [0], [3, long], ["dx"]) == ""
    assert written_text(tokenizer, [0], [3, long], ["y"]) == "dx"


def test_generate_returns_texts_with_a_tokenizer():
    options = dict(max_new_tokens=9, tokenizer=letters())
    whole = sdk.generate(TARGET, trees, [PROMPT], **options)
    assert whole.texts == [written_text(options["tokenizer"], PROMPT, whole.tokens[0], [])]
    string = whole.texts[0][2:4]
    got = sdk.generate(TARGET, trees, [PROMPT], stop_strings=string, **options)
    assert got.finish_reasons == ["stop_string"] and string not in got.texts[0]
    assert whole.texts[0].startswith(got.texts[0]) and len(got.tokens[0]) <= 4
    assert sdk.generate(TARGET, trees, [PROMPT], max_new_tokens=3).texts is None


def test_every_field_of_a_configuration_is_classified():
    fields = {name for name in GenerationConfig().__dict__ if name != "_from_model_config"}
    classes = [HONOURED, set(MEANINGLESS), set(REFUSED)]
    assert fields == set().union(*classes) - {"_from_model_config"}
    assert sum(map(len, classes)) == len(set().union(*classes))


@pytest.mark.parametrize("option", [
    dict(num_beams=2), dict(guidance_scale=1.5), dict(dola_layers="low"), dict(penalty_alpha=0.6),
    dict(assistant_early_exit=2), dict(constraints=[1]), dict(token_healing=True), 
    dict(cache_implementation="offloaded"), dict(output_attentions=True), dict(use_mtp=True),
])  # fmt: skip
def test_options_that_cannot_be_honoured_are_refused_by_name(option):
    options = config()
    for name, value in option.items():
        setattr(options, name, value)
    with pytest.raises(ValueError, match=f"generate: generation_config.{next(iter(option))} must be None"):
        configuration(TARGET, options)


@pytest.mark.parametrize("change, kind, text", [
    (dict(stop_tokens=["</s>"]), TypeError, "stop_tokens must be a collection of ints, or one such"),
    (dict(stop_tokens=5), TypeError, "stop_tokens must be a collection of ints"),
    (dict(stop_tokens=[5.0]), TypeError, "stop_tokens must be a collection of ints"),
    (dict(stop_tokens=[True]), TypeError, "stop_tokens must be a collection of ints"),
    (dict(stop_tokens=[[5], 6]), TypeError, "stop_tokens must be .*, got a mixture"),
    (dict(stop_tokens=[[5], [6]]), ValueError, "stop_tokens per request must be B = 1 collections, got 2"),
    (dict(stop_tokens="</s>"), TypeError, "stop_tokens must be a collection of ints"),
    (dict(max_new_tokens=0), ValueError, "max_new_tokens must be >= 1, got 0"),
    (dict(max_new_tokens=2.5), TypeError, "max_new_tokens must be an int, or one int per request, got 2.5"),
    (dict(max_new_tokens=True), TypeError, "max_new_tokens must be an int"),
    (dict(max_new_tokens=[1, 2]), ValueError, r"max_new_tokens must have length B = 1, got 2"),
    (dict(max_new_tokens=[None]), TypeError, "max_new_tokens must be an int"),
    (dict(generation_config=config(max_length=7)), ValueError, "input_ids must be .*max_length = 7"),
    (dict(generation_config={"top_k": 5}), TypeError, "generation_config must be a GenerationConfig or None"),
    (dict(stop_strings="a"), ValueError, "tokenizer must be given with stop_strings"),
    (dict(stop_strings=[5]), TypeError, "stop_strings must be a string"),
    (dict(logits_processor=5), TypeError, "logits_processor must be a callable or .*, got int"),
    (dict(logits_processor=[Random]), TypeError, "logits_processor must be .*, got the class Random"),
    (dict(generation_config=config(repetion_penalty=5.0)), ValueError, "must hold options that exist"),
    (dict(sampling=sdk.SamplingParams(torch.ones(2))), ValueError, "sampling.temperature must have shape"),
    (dict(stopping_criteria=["x"]), TypeError, "stopping_criteria must be a callable"),
    (dict(sampling=0.5), TypeError, "sampling must be a SamplingParams, got float"),
    (dict(sampling=sdk.SamplingParams(), generation_config=config(do_sample=True, typical_p=0.5)), ValueError,
     "generation_config.typical_p must be off beside sampling"),
    (dict(generation_config=config(exponential_decay_length_penalty=(2, 1.5))), ValueError,
     "generation_config.exponential_decay_length_penalty must be None without stop tokens"),
])  # fmt: skip
def test_refusals(change, kind, text):
    with pytest.raises(kind, match=text):
        rules(**change)


def read(input_ids, attention_mask=None, generation_config=None):
    options = configuration(TARGET, generation_config)
    return prompts(input_ids, attention_mask, target=TARGET, config=options, vocab_size=31)


PADDED = torch.tensor([[0, 0, 5, 6], [1, 2, 3, 4]])


def test_prompts():
    assert read([[1, 2], [3]]) == [[1, 2], [3]]
    assert read([torch.tensor([1, 2]), (3,)]) == [[1, 2], [3]]
    assert read(PADDED.int()) == PADDED.tolist()
    assert read(PADDED, (PADDED != 0).long()) == [[5, 6], [1, 2, 3, 4]]
    assert read(PADDED.flip(1), PADDED.flip(1) != 0) == [[6, 5], [4, 3, 2, 1]]
    encoded = {"input_ids": PADDED.tolist(), "attention_mask": (PADDED != 0).long().tolist()}
    assert read(encoded) == [[5, 6], [1, 2, 3, 4]]
    assert read({"input_ids": [[1], [2, 3]], "attention_mask": [[1], [1, 1]]}) == [[1], [2, 3]]


def test_padding_is_inferred_as_transformers_infers_it():
    assert read(PADDED, None, config()) == [[5, 6], [1, 2, 3, 4]]
    assert read(PADDED.tolist(), None, config()) == PADDED.tolist()  # a list has no padding
    assert read(PADDED, None, config(eos_token_id=[7, 0])) == PADDED.tolist()
    assert read(PADDED, None, GenerationConfig()) == PADDED.tolist()
    with pytest.raises(
        ValueError, match="input_ids without attention_mask must hold the pad token 0 at its ends"
    ):
        read(torch.tensor([[1, 0, 2]]), None, config())


@pytest.mark.parametrize("given, kind, text", [
    ([[3.9, 4.2]], TypeError, "input_ids must be integers .* got a float in a prompt"),
    ([[True, False]], TypeError, "input_ids must be integers .* got a bool in a prompt"),
    ([1, 2], TypeError, "input_ids must be integers .* got a int for a prompt"),
    ("text", TypeError, "input_ids must be integers .* got str"),
    (["text"], TypeError, "got a str for a prompt"),
    (5, TypeError, "got int"),
    (torch.zeros(1, 2), TypeError, "input_ids must have dtype int64"),
    (torch.tensor([[True]]), TypeError, "input_ids must have dtype int64"),
    ([torch.zeros(2)], TypeError, "got a float in a prompt"),
    ([[1, 31]], ValueError, r"input_ids must be in \[0, V\) = \[0, 31\), got 31 in prompt 0"),
    (torch.tensor([[1, -1]]), ValueError, r"got -1 in prompt 0"),
    ([], ValueError, r"must hold prompts of one token or more, got \[\]"),
    ([[1], []], ValueError, r"must hold prompts of one token or more, got \[1, 0\]"),
    (torch.zeros(3).long(), ValueError, r"input_ids must have shape \[B, L\], got \[3\]"),
    ({"input_ids": [[1]], "token_type_ids": [[0]]}, ValueError, "must hold input_ids and attention_mask"),
])  # fmt: skip
def test_prompts_that_are_refused(given, kind, text):
    with pytest.raises(kind, match=f"generate: .*{text}"):
        read(given)


@pytest.mark.parametrize("mask, kind, text", [
    (torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1]]), ValueError, "must be 0 at the ends of a row only, got"),
    (torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]]), ValueError, "must hold prompts of one token or more"),
    (torch.ones(2, 3), ValueError, r"attention_mask must have shape \[B, L\] = \[2, 4\]"),
    (torch.full((2, 4), 2), ValueError, "attention_mask must hold 0 and 1"),
    ([[1] * 4] * 2, TypeError, "attention_mask must be a tensor"),
])  # fmt: skip
def test_masks_that_are_refused(mask, kind, text):
    with pytest.raises(kind, match=text):
        read(PADDED, mask)


def test_lists_of_transformers_see_the_padded_rows():
    """What a callable of `custom_generate` gets, against the scores of transformers for the same texts."""
    options = dict(
        attention_mask=(PADDED != 0).long(), max_new_tokens=6, do_sample=True, top_p=0.9,
        repetition_penalty=1.4, no_repeat_ngram_size=2, eos_token_id=[8], min_new_tokens=3, pad_token_id=0,
        prefix_allowed_tokens_fn=lambda request, _: list(range(4 + request, 25 + request)),
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = TARGET.generate(
        PADDED, output_scores=True, output_logits=True, return_dict_in_generate=True, **options
    )
    caught = {}

    def catch(model, input_ids, **given):
        caught.update(given)
        return input_ids

    TARGET.generate(PADDED, custom_generate=catch, **options)
    made = prepared(
        PADDED, caught["logits_processor"], caught["stopping_criteria"], do_sample=True, device=CPU,
        operation="custom_generate",
    )  # fmt: skip
    assert made.limits == [6, 6] and made.sampling == sdk.SamplingParams(
        top_k=50, top_p=0.9, order="min_p_last"
    )
    texts = theirs.sequences[:, 4:]
    for place, (raw, scores) in enumerate(zip(theirs.logits, theirs.scores, strict=True)):
        logits = made.apply(raw, [(row, texts[row, :place].tolist()) for row in range(2)])
        for row in range(2):
            torch.testing.assert_close(made.scores(logits[row : row + 1], row), scores[row : row + 1])
    assert made.finish(1, [1], [2, 8, 3]) == (2, "stop")


def trees(text, lengths):
    """Five drafted nodes for every text, some of them likely."""
    last = [int(row[length - 1]) for row, length in zip(text, lengths, strict=True)]
    tokens = []
    for token, (a, b, c) in zip(last, sdk.ngram_draft(text, lengths, num_draft=3).tolist(), strict=True):
        tokens += [token, (a + 1) % 31, max(a, 0), max(b, 0), (c + 2) % 31, max(c, 0)]
    ends = torch.arange(len(last) + 1, dtype=torch.int32) * 6
    parents = torch.tensor([-1, 0, 0, 2, 3, 3] * len(last))
    return sdk.DraftTree.from_parents(torch.tensor(tokens), parents, ends)


@pytest.mark.parametrize("options", GREEDY, ids=lambda options: "-".join(options) or "default")
def test_generate_writes_what_transformers_writes(options):
    texts = BATCH if "encoder_no_repeat_ngram_size" not in options else BATCH[:1]
    got = sdk.generate(TARGET, trees, texts, generation_config=config(**options), budget=None)
    assert got.tokens == [own(prompt, config(**options)) for prompt in texts]


def test_generate_takes_options_per_prompt():
    def write(**options):
        return sdk.generate(TARGET, trees, BATCH, num_return_sequences=2, **options)

    assert [len(text) for text in write(max_new_tokens=[2, 3, 4]).tokens] == [2, 2, 3, 3, 4, 4]
    got = write(max_new_tokens=9, stop_tokens=[[], range(31), [5]])
    assert [len(text) for text in got.tokens][:4] == [9, 9, 1, 1] and got.finish_reasons[2] == "stop"
    sampling = sdk.SamplingParams(torch.tensor([0.0, 5.0, 0.0]))
    got = write(max_new_tokens=9, sampling=sampling, stop_tokens=iter([40]), seeds=0).tokens
    assert got[0] == got[1] and got[2] != got[3] and got[4] == got[5]


def test_scores_and_log_probabilities_are_those_of_transformers():
    options = dict(do_sample=True, top_k=5, temperature=0.9, repetition_penalty=1.2, max_new_tokens=8)
    got = sdk.generate(
        TARGET, trees, BATCH, generation_config=config(**options), outputs=["scores", "logits", "logprobs"]
    )
    for request, prompt in enumerate(BATCH):
        made, text = rules(BATCH, config(**options)), got.tokens[request]
        with torch.no_grad():
            raw = TARGET(torch.tensor([prompt + text])).logits[0, len(prompt) - 1 : -1]
        torch.testing.assert_close(got.logits[request], raw, atol=2e-4, rtol=1e-4)
        logits = made.apply(raw, [(request, text[:place]) for place in range(len(text))])
        torch.testing.assert_close(got.scores[request], made.scores(logits, request), atol=2e-4, rtol=1e-4)
        chances = got.scores[request].log_softmax(-1).gather(1, torch.tensor(text)[:, None])[:, 0]
        torch.testing.assert_close(got.logprobs[request], chances, atol=1e-4, rtol=1e-4)


def test_criteria_read_scores_in_generate():
    seen = []

    class Note(StoppingCriteria):
        def __call__(self, input_ids, scores, **_):
            seen.append(len(scores))
            return False

    sdk.generate(TARGET, trees, [PROMPT], max_new_tokens=6, stopping_criteria=[Note()], outputs=["scores"])
    assert seen == [1, 2, 3, 4, 5, 6]
