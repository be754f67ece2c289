# SPDX-License-Identifier: Apache-2.0
"""The loop over transformers models: its text is the model's own, whatever is drafted."""

from collections import Counter
from functools import partial

import pytest
import torch
from gtest import g_test
from loop_cases import GREEDY, PROMPTS, TARGET, chains, model, noise, nothing, plainly, trees

import specdec_kernels as sdk

generate = partial(sdk.generate, budget=None)


@pytest.mark.parametrize("drafter", [nothing, noise, chains, trees])
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS[1:2], PROMPTS], ids=["one", "short", "batch"])
def test_greedy_text_is_the_models_own(drafter, prompts):
    generated = generate(TARGET, drafter, prompts, max_new_tokens=20, sampling=GREEDY)
    assert generated.tokens == [plainly(TARGET, prompt, 20) for prompt in prompts]
    if drafter in (chains, trees):
        assert generated.statistics.mean_accepted_length > 0.5


def test_greedy_text_equals_that_of_transformers():
    prompt = torch.tensor([PROMPTS[2]])
    own = TARGET.generate(prompt, max_new_tokens=24, do_sample=False, pad_token_id=0, eos_token_id=None)
    text = generate(TARGET, chains, prompt, max_new_tokens=24, sampling=GREEDY).tokens[0]
    assert text == own[0, prompt.shape[1] :].tolist()


@pytest.mark.parametrize("drafter", [nothing, noise, chains, trees])
def test_under_match_the_draft_changes_nothing(drafter):
    law = sdk.SamplingParams(torch.tensor([0.8, 1.0, 0.0]), top_k=12, top_p=0.95, min_p=0.01)
    seeds = torch.tensor([5, 6, 7])
    got = generate(TARGET, drafter, PROMPTS, max_new_tokens=15, sampling=law, seeds=seeds, rule="match")
    for row, prompt in enumerate(PROMPTS):
        alone = sdk.SamplingParams(float(law.temperature[row]), 12, 0.95, 0.01)
        assert got.tokens[row] == plainly(TARGET, prompt, 15, alone, int(seeds[row]))


def test_padding_on_either_side_is_left_out():
    ids, mask = torch.zeros(2, 9, dtype=torch.int64), torch.zeros(2, 9, dtype=torch.int64)
    ids[0, 4:], mask[0, 4:] = torch.tensor(PROMPTS[0]), 1
    ids[1, :8], mask[1, :8] = torch.tensor(PROMPTS[2]), 1
    got = generate(TARGET, noise, ids, attention_mask=mask, max_new_tokens=6, sampling=GREEDY)
    assert got.tokens == [plainly(TARGET, prompt, 6) for prompt in (PROMPTS[0], PROMPTS[2])]


def test_a_stop_token_inside_an_accepted_path_ends_the_text_there():
    full = plainly(TARGET, PROMPTS[0], 20)
    stop = full[9]
    steps = []
    got = generate(
        TARGET, chains, PROMPTS, max_new_tokens=20, sampling=GREEDY, stop_tokens=[stop],
        on_tokens=lambda request, tokens: steps.append((request, tokens)),
    )  # fmt: skip
    for request, prompt in enumerate(PROMPTS):
        text = plainly(TARGET, prompt, 20)
        expected = text[: text.index(stop) + 1] if stop in text else text
        assert got.tokens[request] == expected
        assert [token for owner, tokens in steps if owner == request for token in tokens] == expected
    assert len(got.tokens[0]) <= 10


def sampled_chain(draft_model, depth=2):
    """A drafter that samples from a model of its own and hands over its laws."""

    def draft(text, lengths):
        text, tokens, laws = text.clone(), [], []
        for step in range(depth):
            logits = draft_model(text[:, : int(lengths.max()) + step]).logits
            law = logits[torch.arange(len(lengths)), lengths - 1 + step]
            token = torch.multinomial(torch.softmax(law, -1), 1)
            text = torch.cat([text, token], 1) if text.shape[1] <= lengths.max() + step else text
            text[torch.arange(len(lengths)), lengths + step] = token[:, 0]
            tokens.append(token)
            laws.append(law)
        return sdk.DraftTree.chain(torch.cat(tokens, 1)), torch.stack(laws, 1)

    return draft


def counted(target, drafter, rule, rounds, batch=2000):
    counts = Counter()
    for _ in range(rounds):
        got = generate(
            target, drafter, [[1, 2]] * batch, max_new_tokens=3, rule=rule, sampling=sdk.SamplingParams()
        )
        counts.update(tuple(text) for text in got.tokens)
    return counts


@pytest.mark.parametrize("rule", ["token", "traversal", "match"])
def test_sampled_text_has_the_models_law(rule):
    """All sequences of three tokens, against their probabilities under the target alone."""
    target, other = model(vocab=4, layers=1), model(vocab=4, layers=2)
    with torch.inference_mode():
        texts = torch.cartesian_prod(*[torch.arange(4)] * 3)
        whole = torch.cat([torch.tensor([1, 2]).expand(64, 2), texts], 1)
        logs = torch.log_softmax(target(whole).logits.double(), -1)[:, 1:4].gather(2, texts[..., None])
        law = logs.sum((1, 2)).exp().numpy()
    counts = counted(target, sampled_chain(other), rule, 3)
    observed = torch.tensor([counts[tuple(text)] for text in texts.tolist()]).numpy()
    assert g_test(observed, law) > 1e-4
    if rule != "match":  # a loop that takes the laws for those of another place is noticed
        shifted = sampled_chain(other)

        def wrong(text, lengths):
            tree, laws = shifted(text, lengths)
            return tree, laws.flip(1)

        counts = counted(target, wrong, rule, 3)
        assert g_test(torch.tensor([counts[tuple(text)] for text in texts.tolist()]).numpy(), law) < 1e-6


@pytest.mark.parametrize("change, kind, text", [
    (dict(input_ids=[]), ValueError, "generate: input_ids must hold prompts of one token or more, got []"),
    (dict(input_ids=[[1], []]), ValueError, "prompts of one token or more, got [1, 0]"),
    (dict(input_ids=torch.zeros(3).long()), ValueError, "input_ids must have shape [B, L], got [3]"),
    (dict(attention_mask=torch.ones(1, 2)), ValueError, "attention_mask must be None for prompts in a list"),
    (dict(max_new_tokens=0), ValueError, "max_new_tokens must be >= 1, got 0"),
    (dict(seeds=torch.zeros(2).long()), ValueError, "seeds must have shape [B] = [1], got [2]"),
    (dict(drafter=lambda *_: torch.zeros(2, 2)), ValueError, "drafter must return tokens [B, K], B = 1"),
    (dict(drafter=lambda *_: [1]), TypeError, "drafter must return tokens [B, K], a DraftTree, or"),
])  # fmt: skip
def test_refusals(change, kind, text):
    given = dict(target=TARGET, drafter=nothing, input_ids=[[1, 2]]) | change
    with pytest.raises(kind) as error:
        generate(**given)
    assert text in str(error.value)
