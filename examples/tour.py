# SPDX-License-Identifier: Apache-2.0
"""A tour in five stops, from a toy model to a tree step that keeps the model's law, and one that does not."""

import torch

import specdec_kernels as sdk

VOCAB, REQUESTS, CHILDREN = 8, 40_000, 3
LAW = sdk.SamplingParams(temperature=0.7)

# 1. A toy model. The logits of the next token depend on the last token alone: row t is what follows token t.
# The drafter is a cheaper model, which is wrong here and there.
torch.manual_seed(0)
TARGET = 2 * torch.randn(VOCAB, VOCAB)
DRAFTER = TARGET + torch.randn(VOCAB, VOCAB)


# 2. Plain decoding: one forward pass of the model, here a row, for every token.
def decode_plainly(last: torch.Tensor, count: int) -> torch.Tensor:  # [B] -> [B, count]
    text = []
    for _ in range(count):
        last = sdk.sample(TARGET[last], LAW)
        text.append(last)
    return torch.stack(text, 1)


# 3. A tree of drafts: 3 guesses of the next token, and 3 behind each of them. Node 0 is the root, the last
# token that was written; nodes 1 to 3 are its children; nodes 4 to 12 are theirs.
PARENTS = [-1, *[0] * CHILDREN, *(1 + place // CHILDREN for place in range(CHILDREN**2))]


def draft(last: torch.Tensor, method: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [B, 13] of the nodes, and how each was obtained: the proposals to declare."""
    first = sdk.sample_children(DRAFTER[last], CHILDREN, method=method, sampling=LAW)
    second = sdk.sample_children(DRAFTER[first.tokens.flatten()], CHILDREN, method=method, sampling=LAW)
    tokens = torch.cat([last[:, None], first.tokens, second.tokens.reshape(len(last), -1)], 1)
    declared = torch.zeros_like(tokens, dtype=torch.uint8)  # the root's is not read
    declared[:, 1:] = first.proposals[0]  # all children of one method are declared alike
    return tokens, declared


# 4. One step: the model reads all nodes in one pass, and verification keeps a path and draws the token after
# it. `num_tokens` says how many of `tokens` a request got: at least 1, at most 3.
def step(last: torch.Tensor, method: str, declared_as: sdk.Proposal | None = None) -> sdk.Verified:
    tokens, proposals = draft(last, method)
    if declared_as is not None:
        proposals[:] = declared_as
    parents = torch.tensor(PARENTS, dtype=torch.int32).expand(len(last), -1)
    tree = sdk.DraftTree.from_parents(tokens, parents, proposals=proposals)
    rows = tokens.flatten()  # the row of a node has the logits after its token
    return sdk.verify(TARGET[rows], tree, DRAFTER[rows], sampling=LAW, rule="traversal")


# 5. Is it lossless? Among many requests, each pair of next tokens has to be as frequent as the model's law
# says. Where a step wrote one token, plain decoding goes on.
def distance(last: torch.Tensor, verified: sdk.Verified) -> float:
    """Of the measured law of two tokens from the model's: half the sum of the differences."""
    first, second = verified.tokens[:, 0], verified.tokens[:, 1]
    second = torch.where(verified.num_tokens > 1, second, decode_plainly(first, 1)[:, 0])
    counts = torch.bincount(first * VOCAB + second, minlength=VOCAB**2)
    p = (TARGET / LAW.temperature).softmax(-1)
    return 0.5 * float((counts / len(last) - (p[last[0], :, None] * p).flatten()).abs().sum())


def main() -> dict[str, tuple[float, float]]:
    last, found = torch.zeros(REQUESTS, dtype=torch.int64), {}
    for name, method, declared_as in (
        ("sampled without replacement", "without_replacement", None),
        ("the likeliest", "top_k", None),
        ("the likeliest, declared as sampled", "top_k", sdk.Proposal.INDEPENDENT),  # a common mistake
    ):
        verified = step(last, method, declared_as)
        found[name] = float(verified.num_tokens.double().mean()), distance(last, verified)
        print(f"{name}: {found[name][0]:.2f} tokens per step, {found[name][1]:.4f} from the model's law")
    return found


if __name__ == "__main__":
    main()
