# SPDX-License-Identifier: Apache-2.0
"""The standard calls, their launches counted, and what the model makes of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch

import torch

import specdec_kernels as sdk

from .. import inputs
from ..report import rows
from ..verify import BRANCHING
from . import facts, model
from .cards import CARDS, Card
from .model import Facts

BATCHES = (1, 8, 64, 256)
VOCAB = 128256
SCALE = 0.4355  # of the noise with which sum min(p, q) is 0.70 where nothing is cut
SINGLE = 4  # calls with one request, whose mean time is taken


@dataclass(frozen=True)
class VerifyCall:
    """A call of `verify` with some requests, as many as are counted; other batches are as much of everything."""

    name: str
    rule: str = "token"
    top_k: int = 0
    top_p: float = 1.0
    flat: bool = False  # the logits divided by four: a nucleus of most of the vocabulary
    tree: bool = False
    point: bool = False  # no draft logits
    requests: int = 8

    def build(self) -> inputs.Inputs:
        case = inputs.Workload(
            batch=self.requests, vocab=VOCAB, dtype="bfloat16", top_k=self.top_k, top_p=self.top_p,
            branching=BRANCHING if self.tree else (),
        )  # fmt: skip
        given = inputs.build(case, sets=1, scale=SCALE)
        if self.flat:
            given = replace(given, target=given.target / 4, draft=given.draft / 4)
        return given

    def call(self, given: inputs.Inputs, chosen: slice) -> Callable[[], object]:
        case, count = given.case, len(range(*chosen.indices(given.case.batch)))
        tokens, target, draft = given.tokens[0, chosen], given.target[chosen], given.draft[chosen]
        options = {}
        if self.tree:
            kind = sdk.Proposal.POINT if self.point else sdk.Proposal.WITHOUT_REPLACEMENT
            parents = torch.tensor(case.parents, dtype=torch.int32).expand(count, -1)
            tree = sdk.DraftTree.from_parents(tokens, parents, proposals=kind, max_nodes=len(case.parents))
            places = torch.full((count, len(case.parents)), -1, dtype=torch.int32)
            places[:, given.inner] = torch.arange(count * len(given.inner), dtype=torch.int32).view(count, -1)
            options["draft_rows"] = None if self.point else places.flatten()
            draft = draft.flatten(0, 1)
        else:
            tree = sdk.DraftTree.chain(tokens[:, 1:])
        sampling = sdk.SamplingParams(case.temperature, top_k=self.top_k, top_p=self.top_p)
        return lambda: sdk.verify(
            target.flatten(0, 1), tree, None if self.point else draft, sampling=sampling, rule=self.rule,
            seeds=given.seeds[0, chosen], positions=given.positions[0, chosen], backend="triton", **options,
        )  # fmt: skip


CUT = dict(top_k=50, top_p=0.9)
CALLS = (
    VerifyCall("token"),
    VerifyCall("traversal", rule="traversal"),
    VerifyCall("match", rule="match"),
    VerifyCall("token k50 p.9", **CUT),
    VerifyCall("traversal k50 p.9", rule="traversal", **CUT),
    VerifyCall("match k50 p.9", rule="match", **CUT),
    VerifyCall("token p.95 flat rows", top_p=0.95, flat=True),
    VerifyCall("tree of 64 POINT token", tree=True, point=True, requests=2),
    VerifyCall("tree of 64 WITHOUT_REPLACEMENT token", tree=True, requests=2),
)

Counted = dict[int, list[list[Facts]]]  # of a batch: calls, whose mean time is meant


def count(call: VerifyCall, archs: Sequence[int], batches: Sequence[int]) -> dict[int, Counted]:
    """For each target the launches of each batch."""
    given = call.build()
    single = [
        facts.of_call(call.call(given, slice(b, b + 1)), archs) for b in range(min(SINGLE, call.requests))
    ]
    several = facts.of_call(call.call(given, slice(None)), archs)
    found: dict[int, Counted] = {}
    for arch in archs:
        found[arch] = {1: [one[arch] for one in single]}
        for batch in batches:
            if batch > 1:
                found[arch][batch] = [[launch.times(batch / call.requests) for launch in several[arch]]]
    return found


def mean_times(calls: list[list[Facts]], card: Card) -> list[tuple[str, float, str]]:
    """Name, mean seconds and, in the first call, the bound of each launch."""
    times = [model.operation_times(launches, card) for launches in calls]
    return [
        (same[0].name, sum(time.seconds for time in same) / len(same), same[0].bound)
        for same in zip(*times, strict=True)
    ]


def table(calls: Sequence[VerifyCall], cards: Sequence[Card], batches: Sequence[int]) -> Iterator[str]:
    """Lines of a table, as the calls are counted."""
    yield from rows([("call", "card", *(f"B = {batch}" for batch in batches))])
    for call in calls:
        counted = count(call, [card.arch for card in cards], batches)
        for card in cards:
            cells = []
            for batch in batches:
                times = mean_times(counted[card.arch][batch], card)
                total = 1e6 * sum(seconds for _, seconds, _ in times)
                parts = " + ".join(f"{short(name)} {1e6 * seconds:.1f} ({bound})" for name, seconds, bound in times)
                cells.append(f"**{total:.0f}** = {parts}")
            yield "| " + " | ".join([call.name, card.name, *cells]) + " |"


def short(name: str) -> str:
    """`_attention_merge_kernel` to `merge`."""
    return name.removesuffix("_kernel").strip("_").rpartition("_")[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", default="*", help="comma-separated globs of names")
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)))
    parser.add_argument("--cards", default="H100")
    args = parser.parse_args()
    globs = args.cases.split(",")
    calls = [call for call in CALLS if any(fnmatch(call.name, glob.strip()) for glob in globs)]
    cards = [card for card in CARDS if card.name in args.cards.split(",")]
    for line in table(calls, cards, list(map(int, args.batches.split(",")))):
        print(line, flush=True)


if __name__ == "__main__":
    main()
