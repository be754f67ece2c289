# SPDX-License-Identifier: Apache-2.0
"""Every rule with and without cuts, on chains and trees, and random cases that use every option."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch.utils._pytree import tree_map

import specdec_kernels as sdk

from . import oracle, problems
from .parts import Gate

RULES = ("match", "token", "traversal", sdk.Typical(), sdk.Relaxed(3, 0.4), sdk.Lenient(1.5))
RULES += (sdk.Synthetic((0.9, 0.5)),)
OTHERS = (sdk.Synthetic(torch.tensor([0.9, 0.5])), sdk.Deferred(0.8, 1), sdk.Threshold(0.7, 0.8))
OTHERS += (sdk.Ensemble(0.7),)  # of float32 rows only, as they share what reads them
BY_ROWS = ("match", "token", "traversal", sdk.Threshold(0.7, 0.8))
ROWS = ("rows by number", "bonus tokens", "bonus tokens, no last rows")
SERVED = "edits, ends and reports"
FIELDS = ("tokens", "path", "num_tokens", "num_accepted", "status", "finish", "ranks", "top_tokens")
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
    given: str = ""  # of `ROWS`, or `SERVED`

    def __str__(self) -> str:
        rule = self.rule if isinstance(self.rule, str) else self.rule.name
        if isinstance(self.rule, sdk.Synthetic) and isinstance(self.rule.rate, torch.Tensor):
            rule += " by a tensor"
        laws = "; ".join(self.laws) or "every option"
        return ", ".join(filter(None, (rule, self.tree, str(self.dtype)[6:], laws, self.given)))


def run(gate: Gate) -> None:
    backend, why = oracle.backend()
    gate.record.note(f"Compared with {backend}: {why}.")
    gate.each(check, groups(gate.dry))


def groups(dry: bool) -> list[Group]:
    """First those whose kernels take longest to compile."""
    whole, *cut = problems.CUTS
    if dry:
        return [
            Group("match", (whole,), "point"),
            Group("token", (whole,), "chain"),
            Group("match", (whole,), "chain", given=ROWS[-1]),
            Group("match", (whole,), "point", given=SERVED),
        ]
    numbered = [Group(rule, (whole,), "without replacement", given=ROWS[0]) for rule in BY_ROWS]
    numbered += [Group(rule, (whole,), "chain", given=rows) for rule in BY_ROWS for rows in ROWS]
    served = [Group(rule, (law,), "point", given=SERVED) for law in (whole, cut[0]) for rule in RULES[:3]]
    return (
        [Group(rule, ()) for rule in RULES + OTHERS]
        + served
        + numbered
        + [
            Group(rule, laws, tree, dtype)
            for laws in (tuple(cut), (whole,))
            for rule in RULES + OTHERS
            for tree in problems.TREES
            for dtype in (torch.float32, torch.bfloat16)
            if dtype == torch.float32 or rule in RULES
        ]
    )


def check(gate: Gate, group: Group) -> None:
    faults, differing, requests, number = [], 0, 0, 0
    for name, arguments in cases(group, gate.dry):
        ours, theirs = both(gate, arguments, group.rule)
        same = (ours.tokens == theirs.tokens).all(1) & (ours.path == theirs.path).all(1)
        number, requests, differing = number + 1, requests + len(same), differing + int((~same).sum())
        if not same.all():
            faults.append(f"{name}: requests {(~same).nonzero().flatten().tolist()} differ")
        results = {field: (getattr(ours, field), getattr(theirs, field)) for field in FIELDS[2:]}
        if theirs.masks is not None:
            results["masks"] = ours.masks.bits, theirs.masks.bits
        for field, (a, b) in results.items():
            if b is not None and not torch.equal(a[same], b[same]):
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
        arguments = dict(problems.verify(group.tree, vocab, group.dtype), return_logprobs=True)
        arguments = served(arguments) if group.given == SERVED else with_rows(arguments, group.given)
        yield f"V = {vocab}, {law}", dict(arguments, sampling=problems.CUTS[law])
    if group.laws:
        return
    from cases import random_case, shared_form

    for seed in range(60):
        arguments = random_case(seed, vocab=(69, 203, 1501)[seed % 3])
        if arguments["tree"].tokens.numel():
            yield f"seed {seed}", shared_form(arguments)


def with_rows(arguments: dict[str, Any], rows: str) -> dict[str, Any]:
    """The case with shared and missing rows of its target, or with bonus tokens."""
    from row_cases import choose_rows, without_last_rows

    if not rows:
        return arguments
    if rows == ROWS[0]:
        return choose_rows(arguments, 0)
    batch, vocab = arguments["tree"].batch_size, arguments["target_logits"].shape[-1]
    arguments = dict(arguments, bonus_tokens=torch.arange(batch) % vocab)
    return without_last_rows(arguments) if rows == ROWS[2] else arguments


def served(arguments: dict[str, Any]) -> dict[str, Any]:
    """The case with what serving asks for: edits of likely tokens, stops, limits, ranks and masks."""
    batch, vocab = arguments["tree"].batch_size, arguments["target_logits"].shape[-1]
    likely = arguments["target_logits"].float().topk(8).indices.view(batch, -1)
    counts = sdk.TokenCounts(batch, 64, vocab, recent=2)
    counts.set_prompt_(list(range(batch)), likely[:, ::3])
    edits = sdk.LogitEdits(
        counts, 1.3, 0.2, 0.1,
        bias_tokens=likely[:, :2].contiguous(), bias_values=torch.tensor([[0.5, -1.0]] * batch),
        banned_tokens=likely[:, 2:3].contiguous(), bad_words=likely[:, 8:12].reshape(batch, 2, 2),
    )  # fmt: skip
    ends = sdk.Ends(likely[:, 1:2].contiguous(), torch.full((batch,), 3, dtype=torch.int32))
    reports = dict(return_logprobs=sdk.Logprobs(top=5), return_masks=sdk.Masks())
    return dict(arguments, edits=edits, ends=ends, **reports)


def both(gate: Gate, arguments: dict[str, Any], rule: str | sdk.Rule) -> tuple[sdk.Verified, sdk.Verified]:
    """From the device and from the oracle, on the host."""
    there = rule
    if isinstance(rule, sdk.Synthetic) and isinstance(rule.rate, torch.Tensor):
        there = sdk.Synthetic(gate.device.put(rule.rate))
    ours = sdk.verify(**gate.device.put(arguments), rule=there, backend="triton")
    theirs = sdk.verify(**arguments, rule=rule, backend=oracle.backend()[0])
    return tree_map(lambda field: field if field is None else field.cpu(), ours), theirs


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest, in units of 1 + |b|; NaN and infinities must be where the other has them."""
    if not a.numel():
        return 0.0
    finite = a.isfinite() & b.isfinite()
    if not torch.equal(a.nan_to_num(nan=7.0)[~finite], b.nan_to_num(nan=7.0)[~finite]):
        return float("inf")
    error = (a.double() - b.double()).abs()[finite] / (1 + b.double().abs()[finite])
    return float(error.max()) if error.numel() else 0.0
