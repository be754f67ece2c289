# SPDX-License-Identifier: Apache-2.0
"""A drafter of hidden states grows a tree where it is confident, as in EAGLE-2."""

import torch

import specdec_kernels as sdk

VOCAB, WIDTH, PROMPT, NEW, NODES = 32, 24, [3, 1, 4, 1, 5], 60, 12
LAW, SEEDS = sdk.SamplingParams(temperature=0.5), torch.tensor([7])
torch.manual_seed(0)
EMBED, HEAD = torch.randn(VOCAB, WIDTH), torch.randn(WIDTH, VOCAB)


def target(tokens: list[int], tree: sdk.DraftTree | None = None) -> torch.Tensor:
    """Stands for your model: hidden states, by a layer of attention. The last tokens are a tree's nodes."""
    x, mask = EMBED[tokens], torch.ones(len(tokens), len(tokens)).tril().bool()
    if tree is not None:  # a node sees the text, its ancestors and itself
        mask[-NODES:, -NODES:] = (tree.ancestor_bits >> torch.arange(NODES)) & 1
    return torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)


def speculative(drafter: torch.Tensor, rule: str) -> tuple[list[int], int]:  # new tokens, steps they took
    tokens, steps, state = list(PROMPT), 0, target(PROMPT[:-1])[-1:]
    states, rows = [], []  # of the root's parent and of all expanded nodes; logits of the latter

    def expand(frontier: sdk.Frontier) -> sdk.Children:
        above = torch.cat(states)[frontier.parents[0] + 1]
        states.append(torch.cat([above, EMBED[frontier.tokens[0]]], 1) @ drafter)
        rows.append(states[-1] @ HEAD)
        nodes, position = frontier.nodes[0], torch.tensor([len(tokens)])  # the same at every depth
        noise = {"seeds": SEEDS.expand(len(nodes)), "positions": position.expand(len(nodes)), "nodes": nodes}
        return sdk.sample_children(rows[-1], 3, sampling=LAW, **noise)

    while len(tokens) < len(PROMPT) + NEW:
        states[:], rows[:], noise = [state], [], {"seeds": SEEDS, "positions": torch.tensor([len(tokens)])}
        tree, draft_rows, _ = sdk.grow_tree(expand, torch.tensor(tokens[-1:]), NODES, max_depth=4, width=3)
        found = target(tokens[:-1] + tree.tokens.tolist(), tree)[-NODES:]
        laws = {"draft_rows": draft_rows, "sampling": LAW, "rule": rule}
        verified = sdk.verify(found @ HEAD, tree, torch.cat(rows), **laws, **noise)
        tokens += verified.tokens[0, : int(verified.num_tokens)].tolist()
        state = found[verified.path[0, verified.num_accepted]]  # that the last token was drawn from
        steps += 1
    return tokens[len(PROMPT) :][:NEW], steps


def main() -> tuple[list[int], dict[str, tuple[list[int], int]]]:
    text, plain, found = torch.randint(VOCAB, (400,)).tolist(), [], {}
    states = target(text)  # the drafter: from a state and the token drawn from it to the next state
    drafter = torch.linalg.lstsq(torch.cat([states[:-1], EMBED[text[1:]]], 1), states[1:]).solution
    for position in range(len(PROMPT), len(PROMPT) + NEW):
        logits = target(PROMPT + plain)[-1:] @ HEAD
        plain += sdk.sample(logits, LAW, seeds=SEEDS, positions=torch.tensor([position])).tolist()
    for rule in ("match", "traversal"):  # the same text; another one of the same law
        text, steps = found[rule] = speculative(drafter, rule)
        print(f"{rule}: {NEW / steps:.2f} tokens per step, text of plain decoding: {text == plain}\n ", *text)
    return plain, found


if __name__ == "__main__":
    main()
