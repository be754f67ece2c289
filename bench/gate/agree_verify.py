# SPDX-License-Identifier: Apache-2.0
"""Every rule with and without cuts, on chains and trees, and random cases that use every option."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

import specdec_kernels as sdk

from . import oracle, problems
from .parts import Gate

RULES = ("match", "token", "traversal", sdk.Typical(), sdk.Relaxed(3, 0.4), sdk.Lenient(1.5))
RULES += (sdk.Synthetic((0.9, 0.5)),)
FIELDS = ("tokens", "path", "num_tokens", "num_accepted", "status")
# Kernels compute in float32, the reference in float64: a coin or a cut that lies within the rounding of its
# threshold falls to the other side. That is rare, and every request that differs is shown.
MAY_DIFFER = 0.002


@dataclass(frozen=True)
class Group:
    """Cases that share their kernels."""

    rule: str | sdk.Rule
    laws: tuple[str, ...]  # names of `problems.CUTS`; none: random cases that use every option
    tree: str = ""
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        rule = self.rule if isinstance(self.rule, str) else self.rule.name
        laws = "; ".join(self.laws) or "every option"
        return ", ".join(filter(None, (rule, self.tree, str(self.dtype)[6:], laws)))


def run(gate: Gate) -> None:
    backend, why = oracle.backend()
    gate.record.note(f"Compared with {backend}: {why}.")
    gate.each(check, groups(gate.dry))


def groups(dry: bool) -> list[Group]:
    """First those whose kernels take longest to compile."""
    whole, *cut = problems.CUTS
    if dry:
        return [Group("match", (whole,), "point"), Group("token", (whole,), "chain")]
    return [Group(rule, ()) for rule in RULES] + [
        Group(rule, laws, tree, dtype)
        for laws in (tuple(cut), (whole,))
        for rule in RULES
        for tree in problems.TREES
        for dtype in (torch.float32, torch.bfloat16)
    ]


def check(gate: Gate, group: Group) -> None:
    faults, differing, requests, number = [], 0, 0, 0
    for name, arguments in cases(group, gate.dry):
        ours, theirs = both(gate, arguments, group.rule)
        same = (ours.tokens == theirs.tokens).all(1) & (ours.path == theirs.path).all(1)
        number, requests, differing = number + 1, requests + len(same), differing + int((~same).sum())
        if not same.all():
            faults.append(f"{name}: requests {(~same).nonzero().flatten().tolist()} differ")
        for field in FIELDS[2:]:
            if not torch.equal(getattr(ours, field)[same], getattr(theirs, field)[same]):
                faults.append(f"{name}: {field} differ where tokens do not")
                differing = requests  # that is no matter of rounding
        error = difference(ours.logprobs[same], theirs.logprobs[same])
        if not error <= 1e-4:
            faults.append(f"{name}: log-probabilities are off by {error:.1e}")
            differing = requests
    allowed = requests * MAY_DIFFER
    detail = f"{number} cases, {differing} of {requests} requests differ; " + "; ".join(faults)
    gate.record.check(str(group), requests and differing <= max(allowed, 1 if requests > 100 else 0), detail)


def cases(group: Group, dry: bool) -> Any:
    """Names and arguments of `verify`, on the host."""
    for vocab, law in product((69,) if dry else (69, 1501, 32000, 128256), group.laws):
        arguments = problems.verify(group.tree, vocab, group.dtype)
        yield f"V = {vocab}, {law}", dict(arguments, sampling=problems.CUTS[law], return_logprobs=True)
    if group.laws:
        return
    from cases import random_case, shared_form

    for seed in range(60):
        arguments = random_case(seed, vocab=(69, 203, 1501)[seed % 3])
        if arguments["tree"].tokens.numel():
            yield f"seed {seed}", shared_form(arguments)


def both(gate: Gate, arguments: dict[str, Any], rule: str | sdk.Rule) -> tuple[sdk.Verified, sdk.Verified]:
    """From the device and from the oracle, on the host."""
    ours = sdk.verify(**gate.device.put(arguments), rule=rule, backend="triton")
    theirs = sdk.verify(**arguments, rule=rule, backend=oracle.backend()[0])
    return sdk.Verified(*(field if field is None else field.cpu() for field in ours)), theirs


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest, in units of 1 + |b|; NaN and infinities must be where the other has them."""
    if not a.numel():
        return 0.0
    finite = a.isfinite() & b.isfinite()
    if not torch.equal(a.nan_to_num(nan=7.0)[~finite], b.nan_to_num(nan=7.0)[~finite]):
        return float("inf")
    error = (a.double() - b.double()).abs()[finite] / (1 + b.double().abs()[finite])
    return float(error.max()) if error.numel() else 0.0
