# SPDX-License-Identifier: Apache-2.0
"""A tiny model, prompts and drafters, shared by the tests of the loop over transformers models."""

import inspect

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import specdec_kernels as sdk

GREEDY = sdk.SamplingParams(temperature=0.0)
# What this version of transformers calls the cache, in calls and outputs.
CACHE = "cache" if "cache" in inspect.signature(LlamaForCausalLM.forward).parameters else "past_key_values"


def model(vocab=31, layers=2, **options):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=48, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.3,
        bos_token_id=None, eos_token_id=None,
        **options,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


TARGET = model()
PROMPTS = [[3, 4, 5, 3, 4], [7], [9, 9, 2, 1, 8, 6, 9, 9]]


@torch.inference_mode()
def plainly(target, prompt, count, sampling=GREEDY, seed=0):
    """One token at a time, without a cache."""
    text = list(prompt)
    for _ in range(count):
        logits = target(torch.tensor([text])).logits[:, -1]
        text += sdk.sample(
            logits, sampling, seeds=torch.tensor([seed]), positions=torch.tensor([len(text)])
        ).tolist()
    return text[len(prompt) :]


def nothing(text, lengths):
    return torch.full((len(lengths), 3), -1)


def noise(text, lengths):
    return torch.randint(0, 33, (len(lengths), 4))  # two tokens are not the target's


def chains(text, lengths):
    """The true greedy continuation, cut short or spoilt by turns."""
    drafts = []
    for row, length in zip(text, lengths.tolist(), strict=True):
        draft = plainly(TARGET, row[:length].tolist(), 4)
        spoilt = length % 5
        if spoilt < 4:
            draft[spoilt] = -1 if length % 2 else (draft[spoilt] + 1) % 31
        drafts.append(draft)
    return torch.tensor(drafts)


def trees(text, lengths):
    """Ragged trees whose true continuation is on a branch that is not the first."""
    tokens, parents, sizes = [], [], []
    for row, length in zip(text, lengths.tolist(), strict=True):
        last = int(row[length - 1])
        a, b, c = plainly(TARGET, row[:length].tolist(), 3)
        if length % 3 == 0:
            tree = [(last, -1)]
        elif length % 3 == 1:
            tree = [(last, -1), ((a + 1) % 31, 0), (a, 0), (b, 1), (b, 2), ((c + 1) % 31, 4), (c, 4)]
        else:
            tree = [(last, -1), (a, 0), ((b + 1) % 31, 1), (b, 1)]
        tokens += [token for token, _ in tree]
        parents += [parent for _, parent in tree]
        sizes.append(len(tree))
    return sdk.DraftTree.from_parents(
        torch.tensor(tokens), torch.tensor(parents), torch.tensor([0, *sizes]).cumsum(0).int()
    )
