# SPDX-License-Identifier: Apache-2.0
"""Committing paged caches: rows of every layer moved by `commit_kv`, by torch, and by plain memcpy."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

import specdec_kernels as sdk

from .floor import library
from .paging import block_tables, same_trees
from .suite import Case, Contender, Goal, Rounds, Run, Suite

SETS = 4  # prefixes and paths that take turns
PREFIX = 128  # a prefix is shorter
FLOOR = "memcpy"


class Inputs:
    """A pool [2 * layers, pages, page_size, heads, size] behind shuffled block tables, and what to keep."""

    def __init__(self, case: CommitCase):
        g = torch.Generator().manual_seed(1)
        per_request = -(-(PREFIX + case.nodes) // case.page_size)
        pages = case.batch * per_request
        shape = (2 * case.layers, pages, case.page_size, case.heads, case.size)
        self.case, self.pool = case, torch.empty(shape, dtype=torch.bfloat16)
        row = torch.arange(case.heads * case.size).view(case.heads, case.size) % 31
        for i, layer in enumerate(self.pool):
            layer.copy_(torch.arange(i, i + pages * case.page_size).view(pages, -1, 1, 1) % 227 + row)
        self.flat = self.pool.flatten(1, 2).flatten(2)
        self.caches, self.layers = list(self.pool), list(self.flat)
        self.block_table = block_tables(g, case.batch, per_request)
        self.tree = same_trees([-1, 0, 0, *range(1, case.nodes - 2)], case.batch)
        self.prefix_lens = [torch.randint(0, PREFIX, (case.batch,), generator=g).int() for _ in range(SETS)]
        # The even nodes are one branch, the likeliest path the other: every kept row but the root's moves.
        self.path = torch.arange(0, case.nodes, 2, dtype=torch.int32).repeat(case.batch, 1)
        self.in_place = torch.arange(case.rows + 1, dtype=torch.int32).repeat(case.batch, 1)
        self.new = list(
            torch.ones((2 * case.layers, case.batch * case.nodes, *shape[3:]), dtype=torch.bfloat16)
        )

    def moves(self, i: int) -> tuple[Tensor, Tensor]:
        """Slots in the flattened pool that kept rows come from and go to, [B * rows] each."""
        return self._slots(i, self.path[:, 1:]), self._slots(i, self.in_place[:, 1:])

    def _slots(self, i: int, nodes: Tensor) -> Tensor:
        slot = self.prefix_lens[i].unsqueeze(1) + nodes
        pages = self.block_table.gather(1, (slot // self.case.page_size).long())
        return (pages * self.case.page_size + slot % self.case.page_size).flatten()


# Contenders


def commit_kv(inputs: Inputs, form: str = "", backend: str = "auto") -> Run:
    caches: object = sdk.CachePlan(inputs.caches, page_size=inputs.case.page_size)
    path = inputs.in_place if form == "in place" else inputs.path
    options: dict[str, object] = {"backend": backend}
    if form == "list":
        caches, options["page_size"] = inputs.caches, inputs.case.page_size
    if form == "new":
        options["new"] = inputs.new
    rest = (inputs.tree, inputs.block_table)
    return lambda i: sdk.commit_kv(caches, path, *rest, inputs.prefix_lens[i], **options)


def torch_moves(inputs: Inputs, move: Callable[[Inputs, Tensor, Tensor], None]) -> Run:
    return lambda i: move(inputs, *inputs.moves(i))


def all_layers(inputs: Inputs, source: Tensor, target: Tensor) -> None:
    inputs.flat.index_copy_(1, target.long(), inputs.flat.index_select(1, source))


def all_indexed(inputs: Inputs, source: Tensor, target: Tensor) -> None:
    inputs.flat[:, target] = inputs.flat[:, source]


def per_layer(inputs: Inputs, source: Tensor, target: Tensor) -> None:
    target = target.long()
    for layer in inputs.layers:
        layer.index_copy_(0, target, layer.index_select(0, source))


def memcpy(inputs: Inputs) -> Run:
    """Given the addresses of every row to read and to write, layer by layer."""
    flat, copy_rows = inputs.flat, _copy_rows()
    layer, row = (flat.stride(dim) * flat.element_size() for dim in (0, 1))
    base = flat.data_ptr() + layer * torch.arange(flat.shape[0]).unsqueeze(1)
    pointers = [[(base + row * slots).flatten() for slots in inputs.moves(i)] for i in range(SETS)]
    row_bytes = flat.shape[2] * flat.element_size()

    def run(i: int) -> None:
        source, target = pointers[i]
        copy_rows(target.data_ptr(), source.data_ptr(), target.numel(), row_bytes, torch.get_num_threads())

    return run


@cache
def _copy_rows() -> Callable[[int, int, int, int, int], None]:
    function = library("copy.c").copy_rows
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    function.argtypes, function.restype = [pointer, pointer, size, size, ctypes.c_int], None
    return function


SUBJECTS = tuple(
    Contender(f"commit_kv, {form}".rstrip(", "), partial(commit_kv, form=form))
    for form in ("", "list", "new", "in place")
)
TORCH = tuple(
    Contender(f"torch, {name}", partial(torch_moves, move=move))
    for name, move in (("all layers", all_layers), ("all, indexed", all_indexed), ("per layer", per_layer))
)


# Cases and goals


@dataclass(frozen=True)
class CommitCase(Case):
    """In each of `batch` requests `rows` kept rows move, in keys and values of every layer."""

    batch: int
    rows: int
    layers: int = 32
    heads: int = 8
    size: int = 128
    page_size: int = 16
    sets = SETS

    @property
    def name(self) -> str:
        return f"commit-{self.batch}x{self.rows}-bfloat16"

    @property
    def nodes(self) -> int:
        return 2 * self.rows + 1

    def build(self) -> Inputs:
        return Inputs(self)

    def contenders(self) -> tuple[Contender, ...]:
        return (*SUBJECTS, *TORCH, Contender(FLOOR, memcpy))

    def failure(self, inputs: Inputs, contender: Contender) -> str | None:
        """Compared with the reference on few layers."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # plain memcpy in parallel may read a row that another thread has replaced
        try:
            given, wanted = (Inputs(dataclasses.replace(self, layers=2)) for _ in range(2))
            form = contender.name.partition(", ")[2] if contender in SUBJECTS else ""
            run, reference = contender.prepare(given), commit_kv(wanted, form, backend="reference")
            for i in range(SETS):
                run(i)
                reference(i)
                if not torch.equal(given.pool, wanted.pool):
                    return f"the pool differs from the reference's after prefix {i}"
        finally:
            torch.set_num_threads(threads)
        return None

    def derived(self, seconds: Mapping[str, float]) -> dict[str, float]:
        times = [seconds[contender.name] for contender in TORCH if contender.name in seconds]
        return {"best torch": min(times)} if times else {}

    def goals(self, threads: int) -> tuple[Goal, ...]:
        return Goal("commit_kv", 3, "best torch"), Goal("commit_kv", 1.5, FLOOR, ceiling=True)


SUITE = Suite(
    "commit",
    (CommitCase(8, 5), CommitCase(32, 5), CommitCase(8, 16)),
    "Times in milliseconds; in brackets how many times as long as `commit_kv`. roof: memcpy's time over that "
    "of `commit_kv`.",
    subjects=tuple(subject.name for subject in SUBJECTS),
    references=("commit_kv",),
    floors=(FLOOR,),
    roofs={"commit_kv": FLOOR},
    rounds=Rounds(15, 30.0),
    quick_rounds=Rounds(3, 4.0),
)
