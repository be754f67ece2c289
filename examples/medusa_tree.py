# SPDX-License-Identifier: Apache-2.0
"""Several heads on the model's last hidden state draft one fixed tree, as in Medusa."""

import torch

import specdec_kernels as sdk

VOCAB, WIDTH, PROMPT, NEW = 32, 24, [3, 1, 4, 1, 5], 60
PATHS = [(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (1, 0, 0)]  # ranks of children from the root
LAW, SEEDS = sdk.SamplingParams(temperature=0.5), torch.tensor([7])
torch.manual_seed(0)
EMBED, HEAD = torch.randn(VOCAB, WIDTH), torch.randn(WIDTH, VOCAB)


def hidden_states(tokens: list[int], tree: sdk.DraftTree | None = None) -> torch.Tensor:
    """Stands for your model: a layer of attention. The last tokens are a tree's nodes."""
    x, mask = EMBED[tokens], torch.ones(len(tokens), len(tokens)).tril().bool()
    if tree is not None:  # a node sees the text, its ancestors and itself
        mask[-len(PATHS) - 1 :, -len(PATHS) - 1 :] = (tree.ancestor_bits >> torch.arange(len(PATHS) + 1)) & 1
    return torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)


def decode_plainly(count: int) -> list[int]:
    tokens = list(PROMPT)
    while len(tokens) < len(PROMPT) + count:
        logits = hidden_states(tokens)[-1:] @ HEAD
        tokens += sdk.sample(logits, LAW, seeds=SEEDS, positions=torch.tensor([len(tokens)])).tolist()
    return tokens[len(PROMPT) :]


def train_heads(text: list[int]) -> torch.Tensor:
    """[3, WIDTH, VOCAB], by least squares: from the state that a token was drawn from to those after it."""
    states, targets = hidden_states(text), torch.eye(VOCAB)[text]
    return torch.stack([torch.linalg.lstsq(states[:-d], targets[d:]).solution for d in (2, 3, 4)])


def speculative(heads: torch.Tensor) -> tuple[list[int], int]:  # new tokens, and steps that they took
    tokens, steps, state = list(PROMPT), 0, hidden_states(PROMPT[:-1])[-1]
    while len(tokens) < len(PROMPT) + NEW:
        guesses = sdk.sample_children(state @ heads, 3, method="top_k").tokens  # of each depth
        nodes = [tokens[-1]] + [int(guesses[len(path) - 1, path[-1]]) for path in PATHS]
        tree = sdk.DraftTree.from_paths(torch.tensor([nodes]), PATHS)
        states = hidden_states(tokens[:-1] + nodes, tree)[-len(nodes) :]
        noise = {"seeds": SEEDS, "positions": torch.tensor([len(tokens)])}  # of the first new token
        verified = sdk.verify(states @ HEAD, tree, sampling=LAW, rule="match", **noise)
        tokens += verified.tokens[0, : int(verified.num_tokens)].tolist()
        state = states[verified.path[0, int(verified.num_accepted)]]  # that the last token was drawn from
        steps += 1
    return tokens[len(PROMPT) :][:NEW], steps


def main() -> tuple[list[int], dict[str, tuple[list[int], int]]]:
    plain = decode_plainly(NEW)
    text, steps = speculative(train_heads(decode_plainly(400)))
    print(f"match: {NEW / steps:.2f} tokens per step, text of plain decoding: {text == plain}\n ", *text)
    return plain, {"match": (text, steps)}


if __name__ == "__main__":
    main()
