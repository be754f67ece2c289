# SPDX-License-Identifier: Apache-2.0
"""commit_kv and commit_state byte by byte, replays of recurrent states within rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import specdec_kernels as sdk

from . import oracle
from .device import same_bits
from .parts import Gate


def run(gate: Gate) -> None:
    backend, why = oracle.backend()
    gate.record.note(f"Compared with {backend}: {why}.")
    seeds = range(2 if gate.dry else 40)
    for form in ("plan", "list", "new rows"):
        faults = [seed for seed in seeds if not commit(gate, seed, form, backend)]
        gate.record.check(f"commit_kv, {form}: bytewise", not faults, f"{len(seeds)} cases, wrong: {faults}")
    for name, inputs in STATES.items():
        errors = [state(gate, seed, name, inputs, backend) for seed in seeds]
        within = 0.0 if name in ("commit_state", "replay_conv") else 1e-5
        detail = f"{len(seeds)} cases, relative error at most {max(errors):.1e}"
        gate.record.check(f"{name}: within {within:g}", max(errors) <= within, detail)


def commit(gate: Gate, seed: int, form: str, backend: str) -> bool:
    """Caches in one buffer with gaps, so that a stray write shows as well."""
    from paging import Pool, integer, random_tree

    g = torch.Generator().manual_seed(seed)
    layout, page, batch = ("NHD", "HND")[seed % 2], (1, 4, 16)[seed % 3], integer(g, 1, 6)
    tree, path = random_tree(g, batch)
    width = -(-40 // page)
    size = (8, 16, 64, 128)[integer(g, 0, 4)]
    kinds = [(2, size, torch.bfloat16, (0, 16)[seed % 2]), (2, size, torch.bfloat16, (0, 16)[seed % 2])]
    kinds.append((1, 24, torch.uint8, 3))
    pool = Pool(g, [(batch * width, *kind) for kind in kinds], page, layout)
    table = torch.randperm(batch * width, generator=g).view(batch, width).int()
    prefixes = torch.randint(0, 40 - tree.max_nodes, (batch,), generator=g).int()
    rows, new = tree.tokens.numel(), None
    if form == "new rows":
        shapes = [(rows, heads, width) for heads, width, _, _ in kinds]
        new = [torch.ones(s, dtype=c.dtype) for s, c in zip(shapes, pool.caches, strict=True)]
    other = pool.clone()
    other.bytes = gate.device.put(other.bytes)
    rest = (path, tree, table, prefixes)
    options: dict[str, Any] = dict(page_size=page, layout=layout)
    sdk.commit_kv(pool.caches, *rest, **options, new=new, backend=backend)
    caches: Any = other.caches
    if form == "plan":
        caches = sdk.CachePlan(caches, **options)
    put = gate.device.put
    sdk.commit_kv(caches, *put(rest), **options, new=put(new), backend="triton")
    return torch.equal(pool.bytes, other.bytes.cpu())


def state(gate: Gate, seed: int, name: str, inputs: Callable[..., dict[str, Any]], backend: str) -> float:
    """The largest relative difference in any state."""
    from paging import integer, random_tree

    g = torch.Generator().manual_seed(seed)
    batch = integer(g, 1, 5)
    tree, path = random_tree(g, batch)
    slots = torch.randperm(batch + 2, generator=g)[:batch]
    changed, given = inputs(g, tree.tokens.numel(), batch + 2)
    ours = gate.device.put(dict(given, path=path, tree=tree, slots=slots))
    getattr(sdk, name)(path, tree, slots, **given, backend=backend)
    where = [ours.pop(key) for key in ("path", "tree", "slots")]
    getattr(sdk, name)(*where, **ours, backend="triton")
    got, want = ours[changed][0].cpu(), given[changed][0]
    if same_bits(got, want):
        return 0.0
    return float((got.double() - want.double()).abs().max() / want.double().abs().max())


def _snapshots(g: torch.Generator, rows: int, slots: int) -> tuple[str, dict[str, Any]]:
    made = [torch.randn(n, 4, 33, generator=g).bfloat16() for n in (slots, rows)]
    return "states", dict(states=made[:1], snapshots=made[1:])


def _windows(g: torch.Generator, rows: int, slots: int) -> tuple[str, dict[str, Any]]:
    windows, inputs = torch.randn(slots, 96, 4, generator=g), torch.randn(rows, 96, generator=g)
    return "windows", dict(windows=[windows], inputs=[inputs])


def _gated_delta(g: torch.Generator, rows: int, slots: int) -> tuple[str, dict[str, Any]]:
    state, keys = torch.randn(slots, 4, 64, 64, generator=g), torch.randn(rows, 2, 64, generator=g)
    keys, values = torch.nn.functional.normalize(keys, dim=-1), torch.randn(rows, 4, 64, generator=g)
    log_decay, beta = -torch.rand(rows, 4, generator=g), torch.rand(rows, 4, generator=g)
    lists = dict(states=[state], keys=[keys], values=[values], log_decay=[log_decay], beta=[beta])
    return "states", lists


def _mamba2(g: torch.Generator, rows: int, slots: int) -> tuple[str, dict[str, Any]]:
    state, x = torch.randn(slots, 4, 64, 64, generator=g), torch.randn(rows, 4, 64, generator=g)
    B, dt = torch.randn(rows, 2, 64, generator=g), torch.rand(rows, 4, generator=g)
    return "states", dict(states=[state], x=[x], B=[B], dt=[dt], A=[-torch.rand(4, generator=g)])


STATES = {
    "commit_state": _snapshots,
    "replay_conv": _windows,
    "replay_gated_delta": _gated_delta,
    "replay_mamba2": _mamba2,
}
