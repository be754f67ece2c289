# SPDX-License-Identifier: Apache-2.0
"""The standard cases: one call of each operation, the least bytes it needs, and the counts aimed at."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch

import ptx_emulator
import specdec_kernels as sdk

from .. import inputs
from ..paging import CACHE_HEADS, HEAD, HEADS, block_tables, paged_caches, random_parents, same_trees
from ..suite import Case, Goal, Suite
from ..verify import BRANCHING, verifier

VOCAB = 32768


@dataclass(frozen=True)
class Call:
    """What is counted."""

    run: Callable[[], object]
    least: Callable[[Any, ptx_emulator.Launches], int]  # bytes, of what the call returned
    flops: int = 0  # of matrix products, needed


@dataclass(frozen=True)
class GpuCase(Case):
    """Counted in the emulator."""

    name: str
    build: Callable[[], Call]
    limits: tuple[Goal, ...]
    peer: str = ""  # million instructions of the best known other project

    def parameters(self) -> dict[str, Any]:
        return {"peer": self.peer}

    def figures(self, call: Call) -> dict[str, float]:
        with ptx_emulator.active(80, reach="live"), ptx_emulator.count() as launches:
            result = call.run()
        least = call.least(result, launches)
        issued = sum(count * _flops(name) for launch in launches for name, count in launch.ops.items())
        return {
            "launches": len(launches),
            "blocks": max(math.prod(launch.grid) for launch in launches),
            "requested MB": launches.bytes() / 1e6,
            "moved MB": launches.moved() / 1e6,
            "sectors": launches.sectors(),
            "least MB": least / 1e6,
            "instructions": launches.total()["thread_insts"] / 1e6,
            "moved": launches.moved() / least,
            "requested": launches.bytes() / least,
            "flops": issued / max(call.flops, 1),
        }


UNITS = {"moved": "times the least", "requested": "times the least", "instructions": "million"}
UNITS["flops"] = "times those needed, on tensor cores"


def _goals(least_blocks: int = 0, **most: float) -> tuple[Goal, ...]:
    """Bounds of figures from above, and of the blocks of the widest launch from below."""
    goals = tuple(Goal(name, bound, ceiling=True, unit=UNITS.get(name, "")) for name, bound in most.items())
    return goals + (Goal("blocks", least_blocks),) * bool(least_blocks)


@cache
def _inputs(branching: tuple[int, ...] = (), **options: object) -> inputs.Inputs:
    batch = 1 if branching else 8
    case = inputs.Workload(batch=batch, branching=branching, vocab=VOCAB, dtype="bfloat16", **options)
    return inputs.build(case, sets=1)


def _verify_chain(rule: str, **cuts: float) -> Call:
    run = verifier(_inputs(**cuts), rule, "draft", backend="triton")
    return Call(lambda: run(0), lambda out, _: _least_of_chains(out))


def _least_of_chains(out: sdk.Verified) -> int:
    """Every target row that has a draft and every draft row once; both rows again where a draft was rejected,
    else the row of the bonus."""
    batch, depth = out.path.shape[0], out.path.shape[1] - 1
    again = sum(1 if accepted == depth else 2 for accepted in out.num_accepted.tolist())
    return (2 * batch * depth + again) * VOCAB * 2


def _verify_tree(rule: str | sdk.Rule) -> Call:
    given = _inputs(BRANCHING)
    run = verifier(given, rule, "draft", backend="triton")
    return Call(lambda: run(0), lambda out, _: _least_of_tree(given, rule, out))


def _least_of_tree(given: inputs.Inputs, rule: str | sdk.Rule, out: sdk.Verified) -> int:
    """Each row once; both rows of a node once more per rejected sampled child, and once for the draw. `match`
    and the lossy rules read no draft rows and draw once from the target's."""
    parents = given.case.parents
    rows = len(parents)
    if rule in ("token", "traversal"):
        rows += len(given.inner) + 2 * _rejected(parents, out, whole_subtrees=rule == "traversal") + 2
    else:
        rows += 1
    return rows * VOCAB * 2


def _rejected(parents: tuple[int, ...], out: sdk.Verified, whole_subtrees: bool) -> int:
    """Nodes that were tried before the walk ended: earlier siblings along the path, and all children of its
    end; under traversal with all that is below them."""
    children = {node: [c for c, p in enumerate(parents) if p == node] for node in range(len(parents))}

    def size(node: int) -> int:
        return 1 + (sum(map(size, children[node])) if whole_subtrees else 0)

    path = [node for node in out.path[0].tolist() if node >= 0]
    tried = [c for node, after in zip(path, path[1:], strict=False) for c in children[node] if c < after]
    return sum(map(size, tried + children[path[-1]]))


def commit_kv(layers: int = 32, batch: int = 8, heads: int = 8, head: int = 128, page: int = 16) -> Call:
    """3 of 4 kept rows of each request move, 24 in all, of 2 KB."""
    g = torch.Generator().manual_seed(0)
    tree = same_trees([-1, 0, 0, 2, 3, 0], batch)
    path = torch.tensor([[0, 2, 3, 4]] * batch).int()
    width, prefix = 6, torch.randint(0, 80, (batch,), generator=g).int()
    caches = [torch.zeros(batch * width, page, heads, head).bfloat16() for _ in range(2 * layers)]
    table = block_tables(g, batch, width)
    plan = sdk.CachePlan(caches, page_size=page)
    least = 2 * len(caches) * 3 * batch * heads * head * 2
    return Call(lambda: sdk.commit_kv(plan, path, tree, table, prefix, backend="triton"), lambda *_: least)


def _tree_attention(nodes: int, batch: int = 2, prefix: int = 1024) -> Call:
    g = torch.Generator().manual_seed(0)
    tree = same_trees(random_parents(g, nodes), batch)
    pools, table = paged_caches(g, batch, prefix + nodes, torch.bfloat16)
    query = torch.randn(batch * nodes, HEADS, HEAD, generator=g).bfloat16()
    prefixes = torch.full((batch,), prefix).int()
    rows = 2 * query.nbytes + 2 * batch * (prefix + nodes) * CACHE_HEADS * HEAD * 2
    seen = batch * nodes * prefix + int((tree.depths + 1).sum())

    def least(_: object, launches: ptx_emulator.Launches) -> int:
        """Queries, outputs, keys and values once; partial results of the splits written and read."""
        return rows + 2 * sum(launch.n["unique_st_bytes"] for launch in launches[:-1])

    def run() -> torch.Tensor:
        return sdk.tree_attention(
            query, *pools, tree, table, prefixes, max_prefix_len=prefix, backend="triton"
        )

    return Call(run, least, flops=4 * HEAD * HEADS * seen)


def _flops(instruction: str) -> int:
    """Of a warp's `mma.sync.aligned.m16n8k16...`."""
    shape = instruction.split(".m", 1)[1].split(".")[0] if instruction.startswith("mma.") else ""
    m, rest = shape.split("n") if shape else (0, "0k0")
    n, k = rest.split("k")
    return 2 * int(m) * int(n) * int(k)


SUITE = Suite(
    "gpu",
    tuple(
        GpuCase(*case)
        for case in (
            ("verify, token rule", partial(_verify_chain, "token"),
             _goals(launches=5, moved=1.05, instructions=50), "70 (SGLang)"),
            ("verify, traversal", partial(_verify_chain, "traversal"),
             _goals(launches=6, moved=1.75, instructions=60), "94 (vLLM)"),
            ("verify, top_k = 50, top_p = 0.9", partial(_verify_chain, "token", top_k=50, top_p=0.9),
             _goals(launches=7, moved=2.2, instructions=150)),
            *((f"verify, tree of 64 nodes, {rule_name}", partial(_verify_tree, rule),
               _goals(launches=launches, moved=1.05))
              for rule_name, rule, launches in (
                  ("match", "match", 3), ("token", "token", 5),
                  ("traversal", "traversal", 6), ("typical", sdk.Typical(), 5))),
            ("commit_kv, 32 layers x 24 rows x 2 KB", commit_kv,
             _goals(launches=1, moved=1.005, instructions=4), "280 (SGLang)"),
            ("tree_attention, B = 2, N = 16, prefix 1024", partial(_tree_attention, 16),
             _goals(launches=2, requested=2, instructions=70, least_blocks=128), "247 (SGLang)"),
            ("tree_attention, B = 2, N = 64, prefix 1024", partial(_tree_attention, 64),
             _goals(launches=2, requested=2, instructions=150, flops=1.6, least_blocks=128), "247 (SGLang)"),
        )
    ),
    "Counts of one call in the emulator: docs/gpu_counts.md says what each word means. Nothing is a time.",
    threads=(),
)  # fmt: skip
