# SPDX-License-Identifier: Apache-2.0
"""The exact law of what a verifier emits, where it draws its random numbers from torch.

The random numbers of a request are those of a grid: with d numbers and G places of each there are G^d cells.
A verifier that compares a number with a threshold decides alike in a whole cell, unless the threshold lies
inside. It is called with the lowest and with the highest numbers of every cell. Where it emits the same
tokens, the cell is decided; the share of the other cells bounds how far the law that was found is from the
verifier's own. It is also called with the requests in another order. If they get other tokens, it draws from
elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .cases import Case, Problem
from .statistics import Finding, text_of

EDGE = 1e-4  # of a cell: how near its ends the lowest and the highest numbers are
TOLERANCE = 1e-3  # total variation; thresholds within EDGE of a cell's end pass for its end
UNKNOWN = {
    "bernoulli",
    "bernoulli_",
    "cauchy_",
    "exponential_",
    "geometric_",
    "log_normal_",
    "normal",
    "normal_",
}
UNKNOWN |= {"multinomial", "poisson", "randint", "randint_like", "randn", "randn_like", "random_", "randperm"}
UNKNOWN |= {"uniform_"}


class NotFollowed(Exception):
    """The verifier's random numbers cannot be enumerated; the text says why."""


class Numbers(TorchFunctionMode):
    """Gives torch.rand, rand_like, uniform_ and multinomial the numbers of each request, in their order."""

    def __init__(self, numbers: Tensor):
        """numbers: [B, d] float64 in (0, 1)."""
        super().__init__()
        self.numbers, self.taken = numbers, 0

    def take(self, name: str, shape: list[int]) -> Tensor:
        requests = len(self.numbers)
        if requests > 1 and shape[:1] != [requests]:
            raise NotFollowed(
                f"it calls torch's {name} with shape {shape} for {requests} requests; batched=False may help"
            )
        each = math.prod(shape) // requests
        given = self.numbers[:, self.taken : self.taken + each]
        self.taken += each
        if given.shape[1] < each:
            raise NotFollowed(f"it draws more than {self.numbers.shape[1]} random numbers for a request")
        return given.reshape(shape)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        dtype = kwargs.get("dtype") or torch.get_default_dtype()
        if name == "rand":
            shape = args[0] if args and not isinstance(args[0], int) else args or kwargs["size"]
            return self.take(name, list(shape)).to(dtype)
        if name == "rand_like":
            return self.take(name, list(args[0].shape)).to(kwargs.get("dtype") or args[0].dtype)
        if name == "uniform_" and len(args) == 1 and not kwargs.keys() - {"generator"}:
            return args[0].copy_(self.take(name, list(args[0].shape)))
        if name == "multinomial" and (args[1:] or [kwargs.get("num_samples")])[0] == 1:
            weights = (args[0] if args else kwargs["input"]).double()
            sums = weights.cumsum(-1)
            point = self.take(name, [*weights.shape[:-1], 1]) * sums[..., -1:]
            return (sums <= point).sum(-1, keepdim=True).clamp(max=weights.shape[-1] - 1)
        if name in UNKNOWN:
            raise NotFollowed(f"it draws by torch's {name}")
        return func(*args, **kwargs)


def enumerated(run: Callable[[Case], Tensor], problem: Problem, batched: bool) -> Finding:
    """The finding of a problem that has a grid.

    Args:
        run: `run(case) -> emitted [B, length]`, with -1 after the last token.
        batched: whether a case of many requests may be given.

    Raises:
        NotFollowed: the verifier draws from elsewhere, or too many numbers.
    """
    drafts, chance = problem.drafts()

    def emitted(tokens: Tensor, numbers: Tensor) -> tuple[Tensor, int]:
        case = problem.case(tokens, 0)
        if batched:
            with Numbers(numbers) as mode:
                return run(case), mode.taken
        rows, taken = [], 0
        for request, of_request in enumerate(numbers.split(1)):
            with Numbers(of_request) as mode:
                rows.append(run(case.one(request)))
            taken = max(taken, mode.taken)
        return torch.cat(rows), taken

    count = len(problem.parents)  # a coin for each draft, and one number for the next token
    cells = problem.grid**count
    places = torch.cartesian_prod(*[torch.arange(problem.grid, dtype=torch.float64)] * count)
    numbers = places.repeat(len(drafts), 1)
    tokens, weights = drafts.repeat_interleave(cells, 0), chance.repeat_interleave(cells) / cells
    lowest, highest = ((numbers + end) / problem.grid for end in (EDGE, 1.0 - EDGE))
    found, taken = emitted(tokens, lowest)
    if taken == 0:
        raise NotFollowed("it draws no random number from torch")
    if not torch.equal(found, emitted(tokens.flip(0), lowest.flip(0))[0].flip(0)):
        raise NotFollowed(
            "in another order the same requests get other tokens, so it draws from elsewhere, too"
        )
    undecided = float(weights[(found != emitted(tokens, highest)[0]).any(1)].sum())
    return _finding(problem, problem.completed(found, weights), undecided, len(tokens))


def _finding(problem: Problem, found: Tensor, undecided: float, draws: int) -> Finding:
    law, vocab = problem.law, len(problem.target)
    distance = 0.5 * float((found - law).abs().sum())
    biased = distance > undecided + TOLERANCE
    cell = int((found - law).abs().argmax())
    return Finding(
        problem.name,
        problem.length,
        0.0 if biased else 1.0,
        distance,
        min(distance + undecided + TOLERANCE, 1.0),
        text_of(cell, vocab, problem.length),
        float(found[cell]),
        float(law[cell]),
        draws,
        exact=True,
    )
