# SPDX-License-Identifier: Apache-2.0
"""tree_attention in bfloat16, pages of 16 positions; heads of 128, or MLA's 576 and 512."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

import specdec_kernels as sdk

from ..paging import block_tables, random_parents, same_trees
from ..suite import Goal
from .device import Device
from .parts import Gate
from .peers import attention_peers
from .timing import Prepared, Timed, measure

PAGE = 16


@dataclass(frozen=True)
class Shape:
    batch: int
    nodes: int
    prefix: int
    heads: int = 32
    cache_heads: int = 8
    head: int = 128
    latent: int = 0  # elements of a value that are those of its key

    @property
    def name(self) -> str:
        kind = "MLA " if self.latent else ""
        heads = f"{kind}{self.heads}/{self.cache_heads}/{self.head}"
        return f"{heads}, B = {self.batch}, N = {self.nodes}, {self.prefix}"


K = 1024
SHAPES = (
    *(Shape(1, 1, prefix) for prefix in (K, 8 * K, 128 * K)),
    Shape(1, 8, 8 * K),
    *(Shape(1, 64, prefix) for prefix in (8 * K, 128 * K)),
    *(Shape(8, nodes, 8 * K) for nodes in (1, 8, 64)),
    *(Shape(64, nodes, K) for nodes in (1, 8, 64)),
    *(Shape(64, nodes, 8 * K) for nodes in (1, 8, 64)),
    *(Shape(1, 1, prefix, cache_heads=1) for prefix in (8 * K, 128 * K)),
    *(Shape(1, 1, prefix, 16, 1, 576, 512) for prefix in (8 * K, 128 * K)),
    Shape(64, 1, 8 * K, 128, 1, 576, 512),
)
TINY = (Shape(3, 5, 6, 4, 2, 16),)


def cases(real: bool) -> list[Timed]:
    return [Timed(shape.name, partial(build, shape=shape)) for shape in (SHAPES if real else TINY)]


def run(gate: Gate) -> None:
    known = measure(gate, cases(not gate.dry))
    for shape in SHAPES:
        if shape.prefix == 8 * K and shape.name in known and not shape.latent:
            bound = 1.6 if shape.nodes == 64 else 1.3
            goal = Goal(shape.name, bound, f"{shape.name} ideal", ceiling=True)
            gate.record.mark(shape.name, goal, known)


def build(device: Device, shape: Shape) -> Prepared:
    g = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if device.real else torch.float32
    page = PAGE if device.real else 4
    width = -(-(shape.prefix + shape.nodes) // page)
    made = torch.Generator(device.kind).manual_seed(1)
    randn = partial(torch.randn, generator=made, device=device.kind, dtype=dtype)
    rows = shape.batch * shape.nodes
    key = randn(shape.batch * width, page, shape.cache_heads, shape.head)
    value = None if shape.latent else randn(*key.shape)
    tree = same_trees(random_parents(g, shape.nodes), shape.batch)
    seen = shape.batch * shape.nodes * shape.prefix + int((tree.depths + 1).sum())
    tree, table = device.put((tree, block_tables(g, shape.batch, width)))
    query = randn(rows, shape.heads, shape.head)
    prefixes = torch.full((shape.batch,), shape.prefix, dtype=torch.int32, device=device.kind)
    options = dict(max_prefix_len=shape.prefix, value_dim=shape.latent or None, backend="triton")
    outputs = rows * shape.heads * (shape.latent or shape.head)
    read = shape.batch * (shape.prefix + shape.nodes) * shape.cache_heads * shape.head
    elements = query.numel() + outputs + read * (1 if shape.latent else 2)
    return Prepared(
        lambda: sdk.tree_attention(query, key, value, tree, table, prefixes, **options),
        elements * dtype.itemsize,
        2 * shape.heads * (shape.head + (shape.latent or shape.head)) * seen,
        attention_peers(query, key, value, tree, table, shape.prefix) if value is not None else (),
    )
