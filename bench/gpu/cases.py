# SPDX-License-Identifier: Apache-2.0
"""The standard cases: one call of each operation, the least bytes it needs, and the counts aimed at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial

import torch

import ptx_emulator
import specdec_kernels as sdk

from .. import inputs, ours
from ..cases import TREE
from ..cases import Case as VerifyCase

VOCAB = 32768


@dataclass(frozen=True)
class Goals:
    """Upper bounds, except `blocks`; None = none set."""

    launches: int
    moved: float | None = None  # times the least
    requested: float | None = None  # times the least
    instructions: float | None = None  # million
    flops: float | None = None  # issued, times those needed
    blocks: int | None = None  # of the widest launch, at least


@dataclass(frozen=True)
class Job:
    """One call to be counted."""

    run: Callable[[], object]
    least: Callable[[object, ptx_emulator.Launches], int]  # bytes, of what the call returned
    goals: Goals
    peer: str = ""  # million instructions of the best known other project
    flops: int = 0  # of matrix products, needed


@dataclass
class Counts:
    """What one call did."""

    name: str
    job: Job
    launches: ptx_emulator.Launches = field(repr=False)
    least: int

    @property
    def instructions(self) -> int:
        return self.launches.total()["thread_insts"]

    @property
    def blocks(self) -> int:
        return max(launch.grid[0] * launch.grid[1] * launch.grid[2] for launch in self.launches)

    @property
    def flops(self) -> int:
        """Issued by tensor cores."""
        return sum(count * _flops(name) for launch in self.launches for name, count in launch.ops.items())

    def verdicts(self) -> dict[str, tuple[float, float, bool]]:
        """Of every goal: what was counted, the bound, and whether it is met."""
        goals = self.job.goals
        counted = {
            "launches": len(self.launches),
            "moved": self.launches.moved() / self.least,
            "requested": self.launches.bytes() / self.least,
            "instructions": self.instructions / 1e6,
            "flops": self.flops / max(self.job.flops, 1),
        }
        verdicts = {
            name: (value, bound, value <= bound)
            for name, value in counted.items()
            if (bound := getattr(goals, name)) is not None
        }
        if goals.blocks is not None:
            verdicts["blocks"] = (self.blocks, goals.blocks, self.blocks >= goals.blocks)
        return verdicts


def count(name: str) -> Counts:
    """Run a job in the emulator."""
    job = JOBS[name]()
    with ptx_emulator.active(80, reach="live"), ptx_emulator.count() as launches:
        result = job.run()
    return Counts(name, job, launches, job.least(result, launches))


@cache
def _inputs(branching: tuple[int, ...] = (), **options: object) -> inputs.Inputs:
    batch = 1 if branching else 8
    case = VerifyCase(batch=batch, branching=branching, vocab=VOCAB, dtype="bfloat16", **options)
    return inputs.build(case, sets=1)


def _verify_chain(rule: str, goals: Goals, peer: str = "", **cuts: float) -> Job:
    return Job(_verifier(_inputs(**cuts), rule), lambda out, _: _least_of_chains(out), goals, peer)


def _verifier(given: inputs.Inputs, rule: object) -> Callable[[], sdk.Verified]:
    run = ours.verifier(given, rule, "draft", backend="triton")
    return lambda: run(0)


def _least_of_chains(out: sdk.Verified) -> int:
    """Every target row that has a draft and every draft row once; both rows again where a draft was rejected,
    else the row of the bonus."""
    batch, depth = out.path.shape[0], out.path.shape[1] - 1
    again = sum(1 if accepted == depth else 2 for accepted in out.num_accepted.tolist())
    return (2 * batch * depth + again) * VOCAB * 2


def _verify_tree(rule: object, name: str) -> Job:
    given = _inputs(TREE)
    return Job(_verifier(given, rule), lambda out, _: _least_of_tree(given, name, out), Goals(4, moved=1.02))


def _least_of_tree(given: inputs.Inputs, rule: str, out: sdk.Verified) -> int:
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


def _commit_kv(layers: int = 32, batch: int = 8, heads: int = 8, head: int = 128, page: int = 16) -> Job:
    """3 of 4 kept rows of each request move, 24 in all, of 2 KB."""
    g = torch.Generator().manual_seed(0)
    parents = torch.tensor([[-1, 0, 0, 2, 3, 0]] * batch)
    tree = sdk.DraftTree.from_parents(torch.zeros(batch, 6).long(), parents)
    path = torch.tensor([[0, 2, 3, 4]] * batch).int()
    width, prefix = 6, torch.randint(0, 80, (batch,), generator=g).int()
    caches = [torch.zeros(batch * width, page, heads, head).bfloat16() for _ in range(2 * layers)]
    table = torch.randperm(batch * width, generator=g).view(batch, width).int()
    plan = sdk.CachePlan(caches, page_size=page)
    least = 2 * len(caches) * 3 * batch * heads * head * 2
    return Job(
        lambda: sdk.commit_kv(plan, path, tree, table, prefix, backend="triton"),
        lambda *_: least,
        Goals(1, moved=1.005, instructions=4),
        "280 (SGLang)",
    )


def _tree_attention(nodes: int, batch: int = 2, prefix: int = 1024) -> Job:
    g = torch.Generator().manual_seed(0)
    heads, cache_heads, head, page = 32, 8, 128, 16
    parents = [-1] + [int(torch.randint(max(0, i - 8), i, (1,), generator=g)) for i in range(1, nodes)]
    tree = sdk.DraftTree.from_parents(torch.zeros(batch, nodes).long(), torch.tensor([parents] * batch))
    width = -(-(prefix + nodes) // page)
    pools = [torch.randn(batch * width, page, cache_heads, head, generator=g).bfloat16() for _ in range(2)]
    table = torch.randperm(batch * width, generator=g).view(batch, width).int()
    query = torch.randn(batch * nodes, heads, head, generator=g).bfloat16()
    prefixes = torch.full((batch,), prefix).int()
    rows = 2 * query.nbytes + 2 * batch * (prefix + nodes) * cache_heads * head * 2
    seen = batch * nodes * prefix + int((tree.depths + 1).sum())

    def least(_: object, launches: ptx_emulator.Launches) -> int:
        """Queries, outputs, keys and values once; partial results of the splits written and read."""
        return rows + 2 * sum(launch.n["unique_st_bytes"] for launch in launches[:-1])

    def run() -> torch.Tensor:
        return sdk.tree_attention(
            query, *pools, tree, table, prefixes, max_prefix_len=prefix, backend="triton"
        )

    goals = {
        16: Goals(2, requested=2, instructions=70, blocks=128),
        64: Goals(2, requested=2, instructions=130, flops=1.6, blocks=64),
    }[nodes]
    return Job(run, least, goals, "247 (SGLang)", flops=4 * head * heads * seen)


def _flops(instruction: str) -> int:
    """Of a warp's `mma.sync.aligned.m16n8k16...`."""
    shape = instruction.split(".m", 1)[1].split(".")[0] if instruction.startswith("mma.") else ""
    m, rest = shape.split("n") if shape else (0, "0k0")
    n, k = rest.split("k")
    return 2 * int(m) * int(n) * int(k)


JOBS: dict[str, Callable[[], Job]] = {
    "verify, token rule": partial(
        _verify_chain, "token", Goals(3, moved=1.05, instructions=45), "70 (SGLang)"
    ),
    "verify, traversal": partial(
        _verify_chain, "traversal", Goals(3, moved=1.8, instructions=80), "94 (vLLM)"
    ),
    "verify, top_k = 50, top_p = 0.9": partial(
        _verify_chain, "token", Goals(4, moved=3, instructions=150), top_k=50, top_p=0.9
    ),
    "verify, tree of 64 nodes, match": partial(_verify_tree, "match", "match"),
    "verify, tree of 64 nodes, token": partial(_verify_tree, "token", "token"),
    "verify, tree of 64 nodes, traversal": partial(_verify_tree, "traversal", "traversal"),
    "verify, tree of 64 nodes, typical": partial(_verify_tree, sdk.Typical(), "typical"),
    "commit_kv, 32 layers x 24 rows x 2 KB": _commit_kv,
    "tree_attention, B = 2, N = 16, prefix 1024": partial(_tree_attention, 16),
    "tree_attention, B = 2, N = 64, prefix 1024": partial(_tree_attention, 64),
}
