# SPDX-License-Identifier: Apache-2.0
"""Tree attention beside PyTorch's attention and the measured read bandwidth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor

import specdec_kernels as sdk

from .paging import CACHE_HEADS, HEAD, HEADS, paged_caches, random_parents, same_trees
from .suite import Case, Contender, Goal, Rounds, Run, Suite

GROUP = HEADS // CACHE_HEADS
SQUARE = 2048


class Inputs:
    """One step: what tree_attention takes, and the same for PyTorch, already gathered."""

    def __init__(self, case: AttentionCase):
        g, dtype = torch.Generator().manual_seed(1), getattr(torch, case.dtype)
        batch, nodes = case.batch, case.nodes
        self.case, self.length = case, case.prefix + nodes
        self.pools, self.table = paged_caches(g, batch, self.length, dtype)
        parents = random_parents(g, nodes)
        query = torch.randn(batch * nodes, HEADS, HEAD, generator=g).to(dtype)
        prefixes = torch.full((batch,), case.prefix).int()
        self.arguments = (query, *self.pools, same_trees(parents, batch), self.table, prefixes)
        self.query = self.packed(query)
        self.key, self.value = self.gather()
        seen = torch.zeros(nodes, self.length, dtype=torch.bool)
        seen[:, : case.prefix] = True
        for node, parent in enumerate(parents):
            seen[node, case.prefix :] = seen[parent, case.prefix :] if parent >= 0 else False
            seen[node, case.prefix + node] = True
        mask = torch.zeros(seen.shape).masked_fill(~seen, -math.inf).to(dtype).repeat(GROUP, 1)
        self.mask = mask.expand(batch, 1, -1, -1).contiguous()

    def packed(self, rows: Tensor) -> Tensor:
        """Rows of a tree [B * N, H, D] as PyTorch has them, [B, Hkv, G * N, D]."""
        split = rows.view(self.case.batch, self.case.nodes, CACHE_HEADS, GROUP, HEAD).permute(0, 2, 3, 1, 4)
        return split.reshape(self.case.batch, CACHE_HEADS, -1, HEAD).contiguous()

    def gather(self) -> list[Tensor]:
        """Keys and values, [B, Hkv, L, D]."""
        pages = self.table.long()
        return [
            pool[pages].flatten(1, 2)[:, : self.length].transpose(1, 2).contiguous() for pool in self.pools
        ]

    @cached_property
    def exact(self) -> Tensor:
        """Dense attention in float64."""
        scores = self.query.double() @ self.key.double().transpose(-1, -2) / math.sqrt(HEAD)
        return torch.softmax(scores + self.mask.double(), -1) @ self.value.double()


# Contenders


def tree_attention(inputs: Inputs) -> Run:
    return lambda _: sdk.tree_attention(*inputs.arguments, backend="cpu")


def sdpa(inputs: Inputs, with_gather: bool = False) -> Run:
    mask = inputs.mask if inputs.case.nodes > 1 else None

    def run(_: int) -> Tensor:
        key, value = inputs.gather() if with_gather else (inputs.key, inputs.value)
        return F.scaled_dot_product_attention(inputs.query, key, value, attn_mask=mask)

    return run


def flex(inputs: Inputs) -> Run:
    """FlexAttention compiled, the mask as a block mask. Not every build compiles it for cpu."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    batch, _, rows, length = inputs.mask.shape
    seen = inputs.mask[:, 0] == 0
    blocks = create_block_mask(lambda b, h, q, k: seen[b, q, k], batch, None, rows, length, device="cpu")
    torch._dynamo.reset()  # what was compiled for another number of threads
    compiled = torch.compile(flex_attention)
    return lambda _: compiled(inputs.query, inputs.key, inputs.value, block_mask=blocks)


def read(inputs: Inputs) -> Run:
    """The bytes that have to be read, by the plainest reader there is."""
    return lambda _: [pool.view(torch.float32).view(-1).sum() for pool in inputs.pools]


def product(inputs: Inputs) -> Run:
    """The rate of PyTorch's float32 matrix product."""
    square = torch.randn(SQUARE, SQUARE)
    return lambda _: square @ square


CONTENDERS = (
    Contender("tree_attention", tree_attention),
    Contender("sdpa", sdpa),
    Contender("sdpa with gather", partial(sdpa, with_gather=True)),
    Contender("read", read),
    Contender("square", product),
    Contender("flex", flex, compiled=True),
)


# Cases and goals


@dataclass(frozen=True)
class AttentionCase(Case):
    label: str
    batch: int
    nodes: int
    prefix: int
    dtype: str

    @property
    def name(self) -> str:
        return f"attention-{self.label}-{self.dtype}"

    def build(self) -> Inputs:
        return Inputs(self)

    def contenders(self) -> tuple[Contender, ...]:
        return CONTENDERS if self.nodes > 8 else CONTENDERS[:-1]

    def failure(self, inputs: Inputs, contender: Contender) -> str | None:
        """Compared with dense attention in float64."""
        if contender.name in FLOORS:
            return None
        out = contender.prepare(inputs)(0)
        out = inputs.packed(out) if contender.name == "tree_attention" else out
        error = float((out.double() - inputs.exact).abs().max())
        return None if error <= torch.finfo(out.dtype).eps * 4 else f"off by {error:.1e}"

    def derived(self, seconds: Mapping[str, float]) -> dict[str, float]:
        """The time of the matrix products at the measured rate, and the bound: that or the time to read."""
        products = 4 * self.batch * self.nodes * HEADS * HEAD * (self.prefix + self.nodes)
        needed = seconds["square"] * products / (2 * SQUARE**3)
        return {"products": needed, "bound": max(needed, seconds["read"])}

    def goals(self, threads: int) -> tuple[Goal, ...]:
        return tuple(Goal("tree_attention", bound, name) for name, bound in GOALS[self.label].items())


# By baseline, how many times as fast tree_attention is at least.
GOALS = {
    "64-nodes": {"sdpa": 1.3, "sdpa with gather": 2.0, "flex": 5.0},
    "8-nodes": {"sdpa": 2.0, "bound": 0.7},
    "decode-4096": {"read": 0.7},
    "decode-32768": {"read": 0.7},
}
SHAPES = {"64-nodes": (4, 64, 4096), "8-nodes": (4, 8, 4096)}
SHAPES |= {"decode-4096": (1, 1, 4096), "decode-32768": (1, 1, 32768)}
FLOORS = ("read", "square", "products", "bound")
SUITE = Suite(
    "attention",
    tuple(
        AttentionCase(label, *shape, dtype)
        for label, shape in SHAPES.items()
        for dtype in ("float32", "bfloat16")
    ),
    f"read: the sum of the caches, which reads every byte; square: a float32 product of matrices of {SQUARE} "
    "rows; products: the time of attention's products at that rate; bound: the longer of read and products. "
    "roof: the bound's time over that of `tree_attention`. Times in milliseconds; beside a peer, how many "
    "times as long as `tree_attention` it takes.",
    subjects=("tree_attention",),
    references=("tree_attention",),
    floors=FLOORS,
    roofs={"tree_attention": "bound"},
    rounds=Rounds(9, 25.0),
    quick_rounds=Rounds(9, 25.0),
    threads=(2,),
)
