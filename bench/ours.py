# SPDX-License-Identifier: Apache-2.0
"""`specdec_kernels.verify` as contenders: from the draft's log-probabilities and from its raw logits."""

import torch
from torch import Tensor

import specdec_kernels as sdk

from .inputs import Inputs
from .peers import Peer, Run


def build_tree(inputs: Inputs, i: int) -> sdk.DraftTree:
    if not inputs.case.branching:
        return sdk.DraftTree.chain(inputs.tokens[i, :, 1:])
    parents = torch.tensor(inputs.case.parents, dtype=torch.int32).expand(inputs.case.batch, -1)
    return sdk.DraftTree.from_parents(
        inputs.tokens[i],
        parents,
        proposals=sdk.Proposal.WITHOUT_REPLACEMENT,
        max_nodes=len(inputs.case.parents),
    )


def verifier(inputs: Inputs, rule: str, draft: str, new_tree: bool = False, backend: str = "cpu") -> Run:
    """`draft` names the field of `inputs` to pass; `new_tree` builds the tree within every call."""
    case = inputs.case
    nodes = len(case.parents)
    options = dict(
        sampling=sdk.SamplingParams(case.temperature, top_k=case.top_k, top_p=case.top_p),
        draft_sampling="logprobs" if draft == "logprobs" else None,
        rule=rule,
        backend=backend,
    )
    target, rows = inputs.target.flatten(0, 1), getattr(inputs, draft)
    if case.branching:
        rows = rows.flatten(0, 1)
        draft_rows = torch.full((case.batch, nodes), -1, dtype=torch.int32)
        draft_rows[:, inputs.inner] = torch.arange(len(rows), dtype=torch.int32).view(case.batch, -1)
        options["draft_rows"] = draft_rows.flatten()
    trees = [build_tree(inputs, i) for i in range(inputs.sets)]

    def run(i: int) -> sdk.Verified:
        tree = build_tree(inputs, i) if new_tree else trees[i]
        return sdk.verify(target, tree, rows, seeds=inputs.seeds[i], positions=inputs.positions[i], **options)

    return run


def read(verified: sdk.Verified) -> tuple[Tensor, Tensor]:
    last = verified.num_accepted[:, None].long()
    return verified.path.gather(1, last)[:, 0].long(), verified.tokens.gather(1, last)[:, 0]


def entries() -> list[Peer]:
    variants = (
        ("token", "token", "logprobs", False),
        ("traversal", "traversal", "logprobs", False),
        ("token raw", "token", "draft", False),
        ("traversal raw", "traversal", "draft", False),
        ("match", "match", "logprobs", False),
        ("token + tree", "token", "logprobs", True),
    )
    return [
        Peer(name, lambda inputs, v=(rule, draft, new): verifier(inputs, *v), read, rule, draft, eager=False)
        for name, rule, draft, new in variants
    ]


def disagreement(peer: Peer, inputs: Inputs, sets: int) -> str | None:
    """Where the native backend and the float64 reference differ for the same seeds, or None."""
    native = verifier(inputs, peer.rule, peer.draft)
    reference = verifier(inputs, peer.rule, peer.draft, backend="reference")
    for i in range(sets):
        ours, expected = native(i), reference(i)
        for field in ("tokens", "num_accepted", "path"):
            if not torch.equal(getattr(ours, field), getattr(expected, field)):
                return f"{field} of draft set {i} differ from the float64 reference"
    return None
