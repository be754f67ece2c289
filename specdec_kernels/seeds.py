# SPDX-License-Identifier: Apache-2.0
"""Seeds of requests that bring a `torch.Generator`, as engines keep them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._checks import bad_type, check_list, device_named


def seeds_from_generators(
    generators: Sequence[torch.Generator | None], *, device: torch.device | str | None = None
) -> Tensor:
    """The seed of each request: that which its generator was made with, `generator.initial_seed()`.

    Call it once when the requests of a batch change, not in every step. Every random number of `verify`,
    `sample` and the drafters is keyed by a seed and a position, so noise is new in every step because
    `positions` grow. A request whose generator has the same initial seed gets the same tokens again,
    whatever was drawn from the generator before.

    Args:
        generators: of B requests, on any device. None is a request without a seed: it gets a fresh one from
            the default generator of the CPU.
        device: where the seeds are needed; default: the CPU.

    Returns:
        [B] int64. Seeds from 2**63 on are negative, with the same bits.

    Raises:
        ValueError: a name that is no device's.
        TypeError: anything but a generator or None; a `device` of another type.

    Notes:
        Nothing is drawn from the generators that are given. Two requests whose generators have one initial
        seed share their noise. The copy to a GPU comes from pinned memory and does not make the host wait.

    Example:
        >>> seeded = torch.Generator().manual_seed(7)
        >>> seeds = seeds_from_generators([seeded, None, torch.Generator().manual_seed(2**64 - 1)])
        >>> seeds[0].item(), seeds[2].item()
        (7, -1)
    """
    call = "seeds_from_generators"
    listed = check_list(call, "generators", generators, "torch.Generator or None")
    for i, generator in enumerate(listed):
        if generator is not None and not isinstance(generator, torch.Generator):
            rule = "must be a torch.Generator or None"
            bad_type(call, f"generators[{i}]", rule, type(generator).__name__)
    where = device_named(call, device)
    fresh = [0] * len(listed)
    if None in listed:
        fresh = torch.randint(-(2**63), 2**63 - 1, (len(listed),), device="cpu").tolist()
    pairs = zip(listed, fresh, strict=True)
    given = [new if each is None else _signed(each.initial_seed()) for each, new in pairs]
    seeds = torch.tensor(given, dtype=torch.int64, device="cpu")
    if where.type == "cuda":
        return seeds.pin_memory().to(where, non_blocking=True)
    return seeds.to(where)


def _signed(seed: int) -> int:
    """The int64 of the same 64 bits."""
    return (seed + 2**63) % 2**64 - 2**63
