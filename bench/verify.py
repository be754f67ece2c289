# SPDX-License-Identifier: Apache-2.0
"""Verification: the rules of `specdec_kernels.verify` beside PyTorch, other projects and plain C."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

import specdec_kernels as sdk

from . import check, memory
from .floor import Floor
from .inputs import PENALTIES, SETS, Inputs, Workload, build
from .peers import CHAIN, FILTERED_CHAIN, Verifier, edited
from .suite import Case, Contender, Goal, Run, Suite
from .tree_peers import TREE

REFERENCE_SETS = 3  # draft sets on which every token must equal the float64 reference's


# The contenders of this project


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


def packed(allowed: Tensor) -> Tensor:
    """[R, V] bool -> [R, ceil(V / 32)] int32."""
    bits = torch.nn.functional.pad(allowed, (0, -allowed.shape[-1] % 32)).unflatten(-1, (-1, 32))
    words = sum(bits[..., i].int() << i for i in range(32))
    assert isinstance(words, Tensor)
    return words


def verifier(
    inputs: Inputs,
    rule: str | sdk.Rule,
    draft: str,
    new_tree: bool = False,
    backend: str = "cpu",
    edits: bool = True,
    everything: bool = False,
    mass: bool = True,
) -> Run:
    """`draft` names the field of `inputs` to pass; `new_tree` builds the tree within every call;
    `everything` asks for the top 5 of every emitted token and for masks, with their `mass`, and brings a
    bitmask and limits that change no token. Without `edits` a case's penalties are left out."""
    case = inputs.case
    nodes = len(case.parents)
    options = dict(
        sampling=sdk.SamplingParams(case.temperature, top_k=case.top_k, top_p=case.top_p),
        draft_sampling="logprobs" if draft == "logprobs" else None,
        rule=rule,
        backend=backend,
    )
    if case.distinct and edits:
        counts = sdk.TokenCounts(case.batch, inputs.text.shape[1], case.vocab)
        counts.set_prompt_(range(case.batch), inputs.text, num_output=[inputs.text.shape[1]] * case.batch)
        options["edits"] = sdk.LogitEdits(counts, **PENALTIES)
    if everything:
        most = torch.full((case.batch,), torch.iinfo(torch.int32).max, dtype=torch.int32)
        options |= dict(
            token_bitmask=packed(inputs.allowed.flatten(0, 1)),
            ends=sdk.Ends(
                stop_tokens=torch.full((case.batch, 2), case.vocab),  # emitted by none
                new_tokens_left=most,
                context_left=most.clone(),
                finished=torch.zeros(case.batch, dtype=torch.bool),
            ),
            return_logprobs=sdk.Logprobs(top=5),
            return_masks=sdk.Masks(mass=mass),
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


SUBJECTS = tuple(
    Verifier(
        name,
        partial(verifier, rule=rule, draft=draft, **options),
        read=read,
        rule=rule,
        draft=draft,
        masked="everything" in options,
    )
    for name, rule, draft, options in (
        ("token", "token", "logprobs", {}),
        ("traversal", "traversal", "logprobs", {}),
        ("token raw", "token", "draft", {}),
        ("traversal raw", "traversal", "draft", {}),
        ("match", "match", "logprobs", {}),
        ("token + tree", "token", "logprobs", dict(new_tree=True)),
        ("token + everything", "token", "logprobs", dict(everything=True)),
    )
)


def disagreement(subject: Verifier, inputs: Inputs) -> str | None:
    """Where the native backend and the float64 reference differ for the same seeds, or None."""
    native, reference = (
        verifier(inputs, subject.rule, subject.draft, backend=backend) for backend in ("cpu", "reference")
    )
    for i in range(REFERENCE_SETS):
        got, expected = native(i), reference(i)
        for field in ("tokens", "num_accepted", "path"):
            if not torch.equal(getattr(got, field), getattr(expected, field)):
                return f"{field} of draft set {i} differ from the float64 reference"
    return None


floor = cache(Floor)


def log_sum_exps(inputs: Inputs, tensors: tuple[str, ...]) -> Run:
    logits = [getattr(inputs, name) for name in tensors]
    return lambda _: [floor()(rows, inputs.case.temperature) for rows in logits]


# What the edits of a case cost: the same call without them. What the mass of masks costs: everything else.
BARE = (
    *(
        Contender(f"{rule} without edits", partial(verifier, rule=rule, draft="logprobs", edits=False))
        for rule in ("token", "traversal")
    ),
    Contender(
        "token + everything but mass",
        partial(verifier, rule="token", draft="logprobs", everything=True, mass=False),
    ),
)
FLOORS = (
    Contender("floor target", partial(log_sum_exps, tensors=("target",))),
    Contender("floor all", partial(log_sum_exps, tensors=("target", "draft"))),
)


# Cases and goals


@dataclass(frozen=True)
class VerifyCase(Workload, Case):
    sets = SETS
    limits = (Goal("memory", 1, ceiling=True, unit="MB"),) if memory.supported() else ()

    def build(self) -> Inputs:
        return build(self)

    def contenders(self) -> tuple[Contender, ...]:
        if self.distinct:
            return (*SUBJECTS, *BARE, *edited(self.filtered), *FLOORS)
        peers = TREE if self.branching else FILTERED_CHAIN if self.filtered else CHAIN
        return (*SUBJECTS, *peers, *FLOORS)

    def failure(self, inputs: Inputs, contender: Contender) -> str | None:
        if not isinstance(contender, Verifier):
            return floor().check(inputs.target, self.temperature)
        reason = check.failure(contender, self)
        return reason or (disagreement(contender, inputs) if contender in SUBJECTS else None)

    def derived(self, seconds: Mapping[str, float]) -> dict[str, float]:
        eager = [s for name, s in seconds.items() if name.startswith("torch ") and name != "torch compiled"]
        return {"best eager torch": min(eager)} if eager else {}

    def goals(self, threads: int) -> tuple[Goal, ...]:
        """For float32 logits and two threads; every other figure stands alone.

        The torch contenders on chains follow the token rule, so `token` is held against them. `traversal`
        reads every row, which `floor all` prices.
        """
        if self.dtype != "float32" or threads != 2:
            return ()
        if self.distinct:
            return (
                *(Goal(rule, 1.2, f"{rule} without edits", ceiling=True) for rule in ("token", "traversal")),
                Goal("token + everything", 1.35, "token without edits", ceiling=True),
                Goal("token + everything", 30, "torch everything"),
            )
        if self.branching:
            return tuple(Goal(rule, 10, f"torch {rule}") for rule in ("token", "traversal"))
        if self.filtered:
            return tuple(Goal(rule, 20, "torch sort filter") for rule in ("token", "traversal"))
        peers = tuple(
            Goal("token", bound, peer)
            for peer, bound in (("torch plain", 20), ("transformers", 10), ("best eager torch", 4))
        )
        if (self.batch, self.vocab, self.acceptance) != (8, 128256, 0.7):
            return peers
        return (
            *peers,
            Goal("token", 1.2, "floor target", ceiling=True),
            Goal("token raw", 1.7, "floor target", ceiling=True),
            Goal("traversal raw", 1.5, "floor all", ceiling=True),
        )

    def figures(self, inputs: Inputs) -> dict[str, float]:
        return {"overlap": inputs.overlap, "noise scale": inputs.scale}

    def memory(self, inputs: Inputs) -> dict[str, int]:
        return memory.measure(self.name, inputs.scale) if memory.supported() else {}


BRANCHING = (4, 3, 2, 2)
CASES = tuple(
    case
    for dtype in ("float32", "bfloat16")
    for case in (
        *(VerifyCase(acceptance=acceptance, dtype=dtype) for acceptance in (0.3, 0.7, 0.95)),
        VerifyCase(batch=1, dtype=dtype),
        VerifyCase(vocab=32000, dtype=dtype),
        VerifyCase(batch=1, vocab=32000, dtype=dtype),
        VerifyCase(top_k=50, top_p=0.9, dtype=dtype),
        VerifyCase(distinct=4000, dtype=dtype),
        VerifyCase(top_p=0.9, distinct=4000, dtype=dtype),
        VerifyCase(top_k=50, top_p=0.9, distinct=4000, dtype=dtype),
        VerifyCase(batch=1, branching=BRANCHING, dtype=dtype),
    )
)
SUITE = Suite(
    "verify",
    CASES,
    "floor target: plain C log-sum-exp of every target row; floor all: of the draft's rows too. "
    "roof: that floor's time over a contender's (floor all for `traversal raw`, which needs every row); a "
    "rule that reads only the rows it needs can exceed 100 %. Times in milliseconds; beside a peer, how many "
    "times as long as `token` / `traversal` it takes. memory: the most that a call of this project takes.",
    subjects=tuple(subject.name for subject in SUBJECTS),
    references=("token", "traversal"),
    floors=tuple(floor.name for floor in FLOORS),
    roofs={s.name: "floor all" if s.name == "traversal raw" else "floor target" for s in SUBJECTS},
    quick_cases=tuple(
        case
        for case in CASES
        if case.dtype == "float32" and case.acceptance == 0.7 and case.batch * case.vocab != 32000
    ),
)
