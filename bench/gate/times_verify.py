# SPDX-License-Identifier: Apache-2.0
"""verify of bfloat16 rows of 128256 tokens: chains of 5 drafted tokens, and trees of 64 nodes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

import specdec_kernels as sdk

from ..inputs import Workload
from ..suite import Goal
from . import problems
from .device import Device
from .parts import Gate
from .peers import chain_peers
from .timing import Prepared, Timed, h100, measure

BATCHES = (1, 8, 64, 256)
BRANCHING = (4, 3, 2, 2)
TOP_K, TOP_P = problems.CUTS["top-k 50, top-p 0.9"], problems.CUTS["top-p 0.95"]


@dataclass(frozen=True)
class Kind:
    """A rule over a chain, or over a tree whose nodes are drafted by `proposal`."""

    rule: str
    sampling: sdk.SamplingParams = problems.PLAIN
    deviation: float = 2.0  # of the logits
    proposal: sdk.Proposal | None = None


KINDS = {
    "token": Kind("token"),
    "traversal": Kind("traversal"),
    "match": Kind("match"),
    "token, top-k 50, top-p 0.9": Kind("token", TOP_K),
    "match, top-k 50, top-p 0.9": Kind("match", TOP_K),
    "token, top-p 0.95, flat rows": Kind("token", TOP_P, 0.5),
    "tree of 64, POINT": Kind("token", proposal=sdk.Proposal.POINT),
    "tree of 64, WITHOUT_REPLACEMENT": Kind("token", proposal=sdk.Proposal.WITHOUT_REPLACEMENT),
}
# By case, most microseconds on an H100.
MOST = {"token, B = 1": 20, "token, B = 8": 30, "token, B = 64": 110, "match, B = 64": 100}
MOST |= {"token, top-p 0.95, flat rows, B = 8": 100, "tree of 64, WITHOUT_REPLACEMENT, B = 1": 80}


def cases(real: bool) -> list[Timed]:
    if not real:
        kinds, batches, vocab = {"match": KINDS["match"], "token": KINDS["token"]}, (3,), 69
    else:
        kinds, batches, vocab = KINDS, BATCHES, 128256
    return [
        Timed(f"{name}, B = {batch}", partial(build, kind=kind, batch=batch, vocab=vocab))
        for name, kind in kinds.items()
        for batch in batches
        if kind.proposal is None or batch <= 64
    ]


def run(gate: Gate) -> None:
    known = measure(gate, cases(not gate.dry))
    for name, bound in MOST.items():
        if h100(gate.device) and (name in known or gate.device.real):
            gate.record.mark(name, Goal(name, bound, ceiling=True, unit="us"), known)
    for name, other, bound, least in (
        ("traversal", "token", 1.5, 1),
        ("token, top-k 50, top-p 0.9", "token", 1.6, 8),
    ):
        for batch in BATCHES:
            if batch >= least and f"{name}, B = {batch}" in known:
                goal = Goal(f"{name}, B = {batch}", bound, f"{other}, B = {batch}", ceiling=True)
                gate.record.mark(name, goal, known)
    walk_beside_measure(gate)


def walk_beside_measure(gate: Gate) -> None:
    """Launch by launch, where rows have cuts: what is between the first launch and the draw."""
    name, batch, vocab = ("token, top-k 50, top-p 0.9", 8, 128256) if gate.device.real else ("match", 3, 69)
    case, times = f"{name}, B = {batch}", {"measure": 0.0, "draw": 0.0, "walk and cuts": 0.0}
    for launch in gate.device.launches(build(gate.device, KINDS[name], batch, vocab).call):
        stage = next((stage for stage in times if stage in launch.name), "walk and cuts")
        times[stage] += launch.seconds * 1e6
        gate.record.row("launch by launch", case=case, kernel=str(launch), us=launch.seconds * 1e6)
    if times["measure"]:
        gate.record.mark(case, Goal("walk and cuts", 2, "measure", ceiling=True), times)
    else:
        gate.record.missing(f"launches of {case}", "the profiler saw none")


def build(device: Device, kind: Kind, batch: int, vocab: int) -> Prepared:
    """Drafts that overlap with the target by about 0.7, drawn as they are declared."""
    g = torch.Generator(device.kind).manual_seed(batch)
    dtype = torch.bfloat16 if device.real else torch.float32
    branching = () if kind.proposal is None else BRANCHING
    workload = Workload(batch, 5 if device.real else 4, vocab, branching=branching)
    parents = workload.parents
    inner = sorted(set(parents[1:]))
    randn = partial(torch.randn, generator=g, device=device.kind, dtype=dtype)
    target = randn(batch, len(parents), vocab) * kind.deviation
    draft = (
        randn(batch, len(inner) if kind.proposal is None else len(parents), vocab) * 0.435 * kind.deviation
    )
    draft += target[:, : draft.shape[1]]
    tokens = torch.full((batch, len(parents)), -1, device=device.kind)
    for node in inner:
        children = [child for child, parent in enumerate(parents) if parent == node]
        scores = draft[:, node].float() / kind.sampling.temperature
        if kind.proposal is not sdk.Proposal.POINT:  # an exponential race draws without replacement
            scores -= torch.empty_like(scores).exponential_(generator=g).log_()
        tokens[:, children] = scores.topk(len(children), -1).indices
    keys = dict(seeds=torch.arange(batch, device=device.kind), positions=tokens[:, 0].clone())
    if kind.proposal is None:
        tree, drafted = sdk.DraftTree.chain(tokens[:, 1:].contiguous()), draft
    else:
        each = torch.tensor(parents, dtype=torch.int32, device=device.kind).expand(batch, -1)
        tree = sdk.DraftTree.from_parents(tokens, each, proposals=kind.proposal, max_depth=depth_of(parents))
        drafted = None if kind.proposal is sdk.Proposal.POINT else draft.flatten(0, 1)
    rows = target.flatten(0, 1)

    def call() -> sdk.Verified:
        options = dict(sampling=kind.sampling, rule=kind.rule, backend="triton")
        return sdk.verify(rows, tree, drafted, **keys, **options)

    least = sum(least_rows(kind, call(), len(parents), len(inner))) * vocab * rows.element_size()
    peers = list(chain_peers(kind.sampling, target, draft, tokens)) if kind.proposal is None else []
    return Prepared(call, least, peers=peers if kind.rule == "token" else [])


def depth_of(parents: tuple[int, ...]) -> int:
    depths: list[int] = []
    for parent in parents:
        depths.append(depths[parent] + 1 if parent >= 0 else 0)
    return max(depths)


def least_rows(kind: Kind, out: sdk.Verified, nodes: int, inner: int) -> Iterator[int]:
    """Rows that have to be read, request by request: each once; both rows of a node again where a draft was
    rejected, or that of the bonus."""
    for accepted in out.num_accepted.tolist():
        if kind.rule == "match" or kind.proposal is sdk.Proposal.POINT:
            yield nodes
        elif kind.proposal is not None:
            yield nodes + inner + 2
        else:
            yield 2 * inner + (1 if accepted == inner else 2)
