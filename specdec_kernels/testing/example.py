# SPDX-License-Identifier: Apache-2.0
"""A program of a few lines that shows a bias by itself."""

from __future__ import annotations

from torch import Tensor

from .cases import Problem
from .statistics import Finding

DRAWS = 20_000


def example_of(finding: Finding, problem: Problem, loop: bool, batched: bool) -> str:
    """The program. The verifier or the loop has to be defined above it, as `verifier` or `loop`."""
    lines = [
        "import math",
        "import torch",
        *([] if loop else ["from specdec_kernels.testing import Case"]),
        "",
    ]
    lines += ["# Laws of the next token, by the last one.", f"target = {_table(problem.target)}"]
    if problem.draft is not None:
        lines.append(f"drafter = {_table(problem.draft)}")
    lines.append(f"n, random = {DRAWS}, torch.Generator().manual_seed(1)")
    lines += _loop(problem, batched) if loop else _drafts(problem) + _verifier(problem, batched)
    return "\n".join(
        [
            *lines,
            f"wanted, share = {list(finding.text)}, 0.0",
            "for text in texts:",
            f"    text = list(text[:{finding.length}])",
            "    if text == wanted[: len(text)]:  # what follows has the target's law",
            "        rest = zip(wanted[len(text) - 1 :], wanted[len(text) :])",
            "        share += math.prod(float(target[last, token]) for last, token in rest) / n",
            f'print(f"{{wanted}}: share {{share:.4f}}, probability {finding.expected:.4f}")',
        ]
    )


def _table(laws: Tensor) -> str:
    rows = (", ".join(f"{share:.4f}" for share in law) for law in laws.tolist())
    return "torch.tensor([" + ", ".join(f"[{row}]" for row in rows) + "])"


def _drafts(problem: Problem) -> list[str]:
    nodes, parents = len(problem.parents), list(problem.parents[1:])
    if problem.draft is None:
        return [f"tokens = torch.tensor({problem.draw(1, 0).tokens.tolist()}).repeat(n, 1)"]
    lines = [
        f"tokens = torch.zeros(n, {nodes}, dtype=torch.long)",
        f"for node, parent in enumerate({parents}, 1):",
        "    tokens[:, node] = torch.multinomial(drafter[tokens[:, parent]], 1, generator=random)[:, 0]",
    ]
    if problem.shortest is not None:
        lines += [
            f"ends = torch.randint({problem.shortest}, {nodes}, (n, 1), generator=random)",
            f"tokens = torch.where(torch.arange({nodes}) > ends, -1, tokens)",
        ]
    return lines


def _verifier(problem: Problem, batched: bool) -> list[str]:
    laws = "None" if problem.draft is None else "drafter[last].log()"
    called = "verifier(case)" if batched else "[verifier(case.one(i))[0] for i in range(n)]"
    return [
        "last, verifying = tokens.clamp(min=0), torch.Generator().manual_seed(2)",
        f'case = Case("example", tokens, {problem.parents}, target[last].log(), {laws}, verifying, 1)',
        f"texts = {called}",
    ]


def _loop(problem: Problem, batched: bool) -> list[str]:
    prompts = f"torch.zeros({'n' if batched else 1}, 1, dtype=torch.long)"
    called = f"loop(*models, {prompts}, {problem.length}, random).tolist()"
    return [
        "models = [lambda tokens, laws=laws: laws[tokens].log() for laws in (target, drafter)]",
        f"texts = {called if batched else f'[{called}[0] for _ in range(n)]'}",
    ]
