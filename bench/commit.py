# SPDX-License-Identifier: Apache-2.0
"""Committing paged caches: rows of every layer moved by `commit_kv`, by torch, and by plain memcpy."""

import ctypes
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import specdec_kernels as sdk

from . import report
from .cases import Goal
from .floor import library
from .timing import interleave

SETS = 4  # prefixes and paths that take turns
PREFIX = 128  # a prefix is shorter
ROUNDS, MAX_SECONDS = 15, 30.0
QUICK_ROUNDS, QUICK_MAX_SECONDS = 3, 4.0
OURS = ("commit_kv", "commit_kv, list", "commit_kv, new", "commit_kv, in place")
TORCH = ("torch, all layers", "torch, all, indexed", "torch, per layer")
FLOOR = "memcpy"


@dataclass(frozen=True)
class Case:
    """In each of `batch` requests `rows` kept rows move, in keys and values of every layer."""

    batch: int
    rows: int
    layers: int = 32
    heads: int = 8
    size: int = 128
    page_size: int = 16

    @property
    def name(self) -> str:
        return f"commit-{self.batch}x{self.rows}-bfloat16"

    @property
    def nodes(self) -> int:
        return 2 * self.rows + 1


CASES = (Case(8, 5), Case(32, 5), Case(8, 16))
GOALS = (
    Goal("commit_kv", "best torch", 3),
    Goal("commit_kv", FLOOR, 1.5, ceiling=True),
)


class Inputs:
    """A pool [2 * layers, pages, page_size, heads, size] behind shuffled block tables, and what to keep."""

    def __init__(self, case: Case):
        g = torch.Generator().manual_seed(1)
        per_request = -(-(PREFIX + case.nodes) // case.page_size)
        pages = case.batch * per_request
        shape = (2 * case.layers, pages, case.page_size, case.heads, case.size)
        self.case, self.pool = case, torch.empty(shape, dtype=torch.bfloat16)
        row = torch.arange(case.heads * case.size).view(case.heads, case.size) % 31
        for i, cache in enumerate(self.pool):
            cache.copy_(torch.arange(i, i + pages * case.page_size).view(pages, -1, 1, 1) % 227 + row)
        self.block_table = torch.randperm(pages, generator=g).view(case.batch, per_request).int()
        parents = torch.tensor([-1, *([0, 0] + list(range(1, case.nodes - 2)))]).expand(case.batch, -1)
        tokens = torch.zeros((case.batch, case.nodes), dtype=torch.int64)
        self.tree = sdk.DraftTree.from_parents(tokens, parents, max_depth=case.rows)
        self.prefix_lens = [torch.randint(0, PREFIX, (case.batch,), generator=g).int() for _ in range(SETS)]
        # The even nodes are one branch, the likeliest path the other: every kept row but the root's moves.
        self.path = torch.arange(0, case.nodes, 2, dtype=torch.int32).repeat(case.batch, 1)
        self.new = list(
            torch.ones((2 * case.layers, case.batch * case.nodes, *shape[3:]), dtype=torch.bfloat16)
        )

    def slots(self, i: int, nodes: Tensor) -> Tensor:
        """Slots of nodes [B, N] in the flattened pool, [B * N]."""
        slot = self.prefix_lens[i].unsqueeze(1) + nodes
        pages = self.block_table.gather(1, (slot // self.case.page_size).long())
        return (pages * self.case.page_size + slot % self.case.page_size).flatten()


def contenders(inputs: Inputs) -> dict[str, Callable[[int], object]]:
    case, pool = inputs.case, inputs.pool
    flat = pool.flatten(1, 2).flatten(2)
    caches, layers = list(pool), list(flat)
    plan = sdk.CachePlan(caches, page_size=case.page_size)
    places = torch.arange(1, case.rows + 1, dtype=torch.int32).expand(case.batch, -1)
    in_place = torch.arange(case.rows + 1, dtype=torch.int32).repeat(case.batch, 1)
    rest = (inputs.tree, inputs.block_table)
    copy_rows, pointers = _copy_rows(), [_pointers(inputs, flat, i, places) for i in range(SETS)]

    def all_layers(i: int) -> None:
        source, target = inputs.slots(i, inputs.path[:, 1:]), inputs.slots(i, places)
        flat.index_copy_(1, target.long(), flat.index_select(1, source))

    def all_indexed(i: int) -> None:
        source, target = inputs.slots(i, inputs.path[:, 1:]), inputs.slots(i, places)
        flat[:, target] = flat[:, source]

    def per_layer(i: int) -> None:
        source, target = inputs.slots(i, inputs.path[:, 1:]), inputs.slots(i, places).long()
        for layer in layers:
            layer.index_copy_(0, target, layer.index_select(0, source))

    def memcpy(i: int) -> None:
        target, source = pointers[i]
        row_bytes = flat.shape[2] * flat.element_size()
        copy_rows(target.data_ptr(), source.data_ptr(), target.numel(), row_bytes, torch.get_num_threads())

    return {
        "commit_kv": lambda i: sdk.commit_kv(plan, inputs.path, *rest, inputs.prefix_lens[i]),
        "commit_kv, list": lambda i: sdk.commit_kv(
            caches, inputs.path, *rest, inputs.prefix_lens[i], page_size=case.page_size
        ),
        "commit_kv, new": lambda i: sdk.commit_kv(
            plan, inputs.path, *rest, inputs.prefix_lens[i], new=inputs.new
        ),
        "commit_kv, in place": lambda i: sdk.commit_kv(plan, in_place, *rest, inputs.prefix_lens[i]),
        "torch, all layers": all_layers,
        "torch, all, indexed": all_indexed,
        "torch, per layer": per_layer,
        FLOOR: memcpy,
    }


def _copy_rows() -> Callable[[int, int, int, int, int], None]:
    function = library("copy.c").copy_rows
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    function.argtypes, function.restype = [pointer, pointer, size, size, ctypes.c_int], None
    return function


def _pointers(inputs: Inputs, flat: Tensor, i: int, places: Tensor) -> tuple[Tensor, Tensor]:
    """Addresses of every row to write and to read, layer by layer."""
    layer, row = (flat.stride(dim) * flat.element_size() for dim in (0, 1))
    base = flat.data_ptr() + layer * torch.arange(flat.shape[0]).unsqueeze(1)
    target, source = inputs.slots(i, places), inputs.slots(i, inputs.path[:, 1:])
    return (base + row * target).flatten(), (base + row * source).flatten()


def failure(name: str, case: Case) -> str | None:
    """What a contender does wrong on few layers, or None."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # plain memcpy in parallel may read a row that another thread has replaced
    try:
        inputs, wanted = (Inputs(dataclasses.replace(case, layers=2)) for _ in range(2))
        for i in range(SETS):
            contenders(inputs)[name](i)
            path = wanted.path
            if name == "commit_kv, in place":
                path = torch.arange(case.rows + 1, dtype=torch.int32).repeat(case.batch, 1)
            sdk.commit_kv(
                list(wanted.pool), path, wanted.tree, wanted.block_table, wanted.prefix_lens[i],
                page_size=case.page_size, new=wanted.new if name == "commit_kv, new" else None,
                backend="reference",
            )  # fmt: skip
            if not torch.equal(inputs.pool, wanted.pool):
                return f"the pool differs from the reference's after prefix {i}"
    except Exception as error:  # a contender that cannot run is a failed one, not the end of the benchmark
        return f"{type(error).__name__}: {error}"
    finally:
        torch.set_num_threads(threads)
    return None


def bench_case(case: Case, threads: list[int], quick: bool) -> dict:
    inputs = Inputs(case)
    runs = contenders(inputs)
    failed = {name: reason for name in runs if (reason := failure(name, case))}
    runs = {name: run for name, run in runs.items() if name not in failed}
    entry = {"name": case.name, "case": dataclasses.asdict(case), "failed": failed, "timings": []}
    rounds, seconds = (QUICK_ROUNDS, QUICK_MAX_SECONDS) if quick else (ROUNDS, MAX_SECONDS)
    for count in threads:
        torch.set_num_threads(count)
        timings = interleave(runs, SETS, rounds, seconds)
        known = dict(timings.medians)
        known["best torch"] = min(known.get(name, float("inf")) for name in TORCH)
        noisy = timings.used != "quiet"
        entry["timings"].append(
            {
                "threads": count,
                "rounds": {"quiet": timings.quiet, "noisy": timings.noisy, "used": timings.used},
                "milliseconds": {name: 1e3 * value for name, value in timings.medians.items()},
                "goals": [report.judge(goal, known, noisy) for goal in GOALS],
            }
        )
    return entry


def table(entry: dict) -> str:
    lines = [f"== {entry['name']}", *(f"   not timed: {n}: {why}" for n, why in entry["failed"].items())]
    for timing in entry["timings"]:
        ours = timing["milliseconds"].get("commit_kv")
        lines += ["", f"   {timing['threads']} thread(s); {report.rounds_line(timing)}"]
        lines.append(f"   {'':24}{'ms':>10}{'x commit_kv':>13}")
        for name, value in timing["milliseconds"].items():
            lines.append(f"   {name:24}{value:10.3f}" + (f"{value / ours:13.2f}" if ours else ""))
        lines += [f"   {report.goal_line(goal)}" for goal in timing["goals"]]
    return "\n".join(lines) + "\n"


def markdown(entries: list[dict]) -> str:
    """Times in milliseconds and the goals."""
    lines = ["Milliseconds; in brackets how many times as long as `commit_kv`.", ""]
    names = [*OURS, *TORCH, FLOOR]
    lines += [f"| case | threads | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for entry in entries:
        for timing in entry["timings"]:
            times = timing["milliseconds"]
            cells = [
                f"{times[n]:.3f} ({times[n] / times['commit_kv']:.2f}x)"
                if {n, "commit_kv"} <= set(times)
                else "-"
                for n in names
            ]
            lines.append(f"| {entry['name']} | {timing['threads']} | {' | '.join(cells)} |")
    lines += ["", "| case | threads | goal |", "|---|---|---|"]
    for entry in entries:
        for timing in entry["timings"]:
            for goal in timing["goals"]:
                lines.append(f"| {entry['name']} | {timing['threads']} | {report.goal_line(goal)} |")
    return "\n".join(lines) + "\n"


def run(cases: tuple[Case, ...], threads: list[int], quick: bool, path: Path) -> bool:
    """Prints and writes the tables; whether anything of ours is wrong."""
    entries = []
    for case in cases:
        entries.append(bench_case(case, threads, quick))
        print(table(entries[-1]), flush=True)
    if entries:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps(report.header() | {"benchmark": "commit", "cases": entries}, indent=1) + "\n"
        )
        path.with_suffix(".md").write_text(markdown(entries))
    return any(name in entry["failed"] for entry in entries for name in OURS)
