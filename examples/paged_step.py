# SPDX-License-Identifier: Apache-2.0
"""Steps of a batch on a paged cache: pages, tree attention, verification, commit, pages given back."""

import torch
from torch.nn.utils.rnn import pad_sequence

import specdec_kernels as sdk

VOCAB, HEADS, D, PAGE, PAGES, NEW, PROMPTS = 16, 2, 8, 4, 64, 40, [[3, 1, 4, 1, 5], [2, 7, 1, 8, 2]]
LAW, SEEDS = sdk.SamplingParams(temperature=0.5), torch.tensor([7, 8])
torch.manual_seed(3)
EMBED, QKV, HEAD = torch.randn(VOCAB, 16), torch.randn(16, 3 * HEADS * D) / 4, torch.randn(16, VOCAB)
KEYS, VALUES = torch.full((2, PAGES, PAGE, HEADS, D), float("nan"))
PLAN = sdk.CachePlan([KEYS, VALUES], page_size=PAGE)  # of the caches of all layers


def forward(tree: sdk.DraftTree, table: torch.Tensor, prefix_lens: torch.Tensor) -> torch.Tensor:
    """Stands for your model: logits of every node. Node i is cached in slot `prefix + i` of its request."""
    query, key, value = (EMBED[tree.tokens] @ QKV).view(-1, 3, HEADS, D).unbind(1)
    request = torch.repeat_interleave(tree.cu_nodes.diff())
    slot = prefix_lens[request] + torch.arange(len(key)) - tree.cu_nodes[request]
    page, slot = table[request, slot // PAGE].long(), slot % PAGE
    KEYS[page, slot], VALUES[page, slot] = key, value
    return sdk.tree_attention(query, KEYS, VALUES, tree, table, prefix_lens).flatten(1) @ HEAD


def block_table(pages: list[list[int]], free: list[int], lengths: list[int]) -> torch.Tensor:
    for held, length in zip(pages, lengths, strict=True):  # room for every request
        while len(held) * PAGE < length:
            held.append(free.pop())
    return pad_sequence([torch.tensor(held).int() for held in pages], batch_first=True)


def decode(nodes: int) -> tuple[list[list[int]], int]:  # with one node a request: plain decoding
    texts, pages, free, steps = [list(prompt) for prompt in PROMPTS], [[], []], list(range(PAGES)), 0
    prompts = sdk.DraftTree.chain(torch.tensor(PROMPTS)[:, :-1].flatten(), cu_nodes=torch.tensor([0, 4, 8]))
    forward(prompts, block_table(pages, free, [4, 4]), torch.tensor([0, 0]).int())
    while min(map(len, texts)) < len(PROMPTS[0]) + NEW:
        lengths = torch.tensor([len(text) for text in texts])
        prefix_lens = lengths.int() - 1  # all but the last token are in the cache
        tree, _ = sdk.ngram_tree(pad_sequence([torch.tensor(text) for text in texts], True), lengths, nodes)
        table = block_table(pages, free, [len(text) - 1 + nodes for text in texts])
        logits = forward(tree, table, prefix_lens)
        verified = sdk.verify(logits, tree, sampling=LAW, rule="match", seeds=SEEDS, positions=lengths)
        for b, kept in enumerate(sdk.commit_kv(PLAN, verified, tree, table, prefix_lens).pages_kept):
            texts[b] += verified.tokens[b, : int(verified.num_tokens[b])].tolist()
            free, pages[b] = free + pages[b][kept:], pages[b][:kept]
        steps += 1
        print(f"accepted {verified.num_accepted.tolist()}, {[len(held) for held in pages]} pages kept")
    return [text[len(PROMPTS[0]) :][:NEW] for text in texts], steps


def main() -> tuple[list[list[int]], dict[str, tuple[list[list[int]], int]]]:
    (plain, _), (texts, steps) = decode(nodes=1), decode(nodes=8)
    print(f"{NEW / steps:.2f} tokens per step, texts of plain decoding: {texts == plain}\n", *texts)
    return plain, {"match": (texts, steps)}


if __name__ == "__main__":
    main()
