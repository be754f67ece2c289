# SPDX-License-Identifier: Apache-2.0
"""A draft model writes a chain, the target verifies it, and both roll their caches back."""

import torch
import torch.nn.functional as F

import specdec_kernels as sdk

VOCAB, WIDTH, PROMPT, NEW, K = 32, 16, [3, 1, 4, 1, 5], 60, 4  # K drafted tokens in a step
LAW, SEEDS = sdk.SamplingParams(temperature=0.8), torch.tensor([7])


class Model:  # stands for yours: one layer of causal attention, logits for every token that it reads
    def __init__(self, noise: float):
        torch.manual_seed(3)
        self.head, self.embed = torch.randn(WIDTH, VOCAB), torch.randn(VOCAB, WIDTH)
        self.embed += noise * torch.randn(VOCAB, WIDTH)
        self.cache = torch.empty(0, WIDTH)  # keys, which are the values, too

    def read(self, tokens: list[int]) -> torch.Tensor:
        x = self.embed[tokens]
        self.cache = torch.cat([self.cache, x])
        mask = torch.ones(len(x), len(self.cache)).tril(len(self.cache) - len(x)).bool()
        return F.scaled_dot_product_attention(x, self.cache, self.cache, attn_mask=mask) @ self.head


def speculative(rule: str) -> tuple[list[int], int]:  # new tokens, and steps that they took
    target, drafter, tokens, steps = Model(0.0), Model(0.2), list(PROMPT), 0
    target.read(tokens[:-1])  # the last token is always read with the drafts
    while len(tokens) < len(PROMPT) + NEW:
        noise = {"seeds": SEEDS, "positions": torch.tensor([len(tokens)])}  # of the first new token
        unread, drafted, rows = tokens[len(drafter.cache) :], [], []
        for node in range(K):
            rows.append(drafter.read(unread)[-1:])
            token, proposal = sdk.draft_token(rows[-1], node, sampling=LAW, **noise)
            drafted += (unread := token.tolist())
        logits = target.read([tokens[-1], *drafted])
        tree = sdk.DraftTree.chain(torch.tensor([drafted]), proposal=proposal)
        verified = sdk.verify(logits, tree, torch.stack(rows, 1), sampling=LAW, rule=rule, **noise)
        # Accepted tokens, then one of the residual, or the bonus token where all were accepted.
        tokens += verified.tokens[0, : int(verified.num_tokens)].tolist()
        for model in (target, drafter):
            model.cache = model.cache[: len(tokens) - 1]  # without what was rejected
        steps += 1
    return tokens[len(PROMPT) :][:NEW], steps


def main() -> tuple[list[int], dict[str, tuple[list[int], int]]]:
    plain, found = [], {}
    for position in range(len(PROMPT), len(PROMPT) + NEW):
        logits = Model(0.0).read(PROMPT + plain)[-1:]  # without a cache
        plain += sdk.sample(logits, LAW, seeds=SEEDS, positions=torch.tensor([position])).tolist()
    for rule in ("match", "traversal"):  # the same text; another one of the same law
        text, steps = found[rule] = speculative(rule)
        print(f"{rule}: {NEW / steps:.2f} tokens per step, text of plain decoding: {text == plain}\n ", *text)
    return plain, found


if __name__ == "__main__":
    main()
