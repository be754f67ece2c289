# SPDX-License-Identifier: Apache-2.0
"""The verification cases and the goals they are held to, as plain data."""

from dataclasses import dataclass
from fnmatch import fnmatch


@dataclass(frozen=True)
class Case:
    """One batch to verify. `branching` empty means a chain of `depth` drafted tokens."""

    batch: int = 8
    depth: int = 5
    vocab: int = 128256
    dtype: str = "float32"
    acceptance: float = 0.7  # mean over drafted rows of sum min(p, q)
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    branching: tuple[int, ...] = ()  # children per node, level by level, cut off at `max_nodes`
    max_nodes: int = 64

    @property
    def name(self) -> str:
        shape = f"tree{len(self.parents)}" if self.branching else f"chain{self.depth}"
        cuts = f"-k{self.top_k}-p{self.top_p:g}" if self.filtered else ""
        return f"{shape}-b{self.batch}-v{self.vocab}{cuts}-a{self.acceptance:g}-{self.dtype}"

    @property
    def filtered(self) -> bool:
        return self.top_k > 0 or self.top_p < 1.0

    @property
    def parents(self) -> tuple[int, ...]:
        """Parent of every node of one request, breadth first; the root's is -1."""
        if not self.branching:
            return tuple(range(-1, self.depth))
        parents, level = [-1], [0]
        for width in self.branching:
            children = [node for node in level for _ in range(width)][: self.max_nodes - len(parents)]
            level = list(range(len(parents), len(parents) + len(children)))
            parents += children
        return tuple(parents)


@dataclass(frozen=True)
class Goal:
    """`ours` is `bound` times as fast as `other`, or with `ceiling` takes at most `bound` times as long."""

    ours: str
    other: str
    bound: float
    ceiling: bool = False


DTYPES = ("float32", "bfloat16")
TREE = (4, 3, 2, 2)

CASES = tuple(
    case
    for dtype in DTYPES
    for case in (
        *(Case(acceptance=acceptance, dtype=dtype) for acceptance in (0.3, 0.7, 0.95)),
        Case(batch=1, dtype=dtype),
        Case(vocab=32000, dtype=dtype),
        Case(batch=1, vocab=32000, dtype=dtype),
        Case(top_k=50, top_p=0.9, dtype=dtype),
        Case(batch=1, branching=TREE, dtype=dtype),
    )
)
QUICK = tuple(
    case
    for case in CASES
    if case.dtype == "float32" and case.acceptance == 0.7 and case.batch * case.vocab != 32000
)

THREADS = (1, 2)
MEMORY_LIMIT = 1 << 20  # bytes of peak extra memory of one call, at every case


def select(patterns: str | None, cases: tuple[Case, ...] = CASES) -> tuple[Case, ...]:
    """Cases whose name matches any of the comma-separated globs (a bare word matches anywhere)."""
    if not patterns:
        return cases
    globs = [glob if "*" in glob else f"*{glob}*" for glob in patterns.split(",")]
    return tuple(case for case in cases if any(fnmatch(case.name, glob) for glob in globs))


def goals(case: Case, threads: int) -> tuple[Goal, ...]:
    """What is aimed at, for float32 logits and two threads; every other figure stands alone.

    The torch contenders on chains follow the token rule, so `token` is held against them. `traversal` reads
    every row, which `floor all` prices.
    """
    if case.dtype != "float32" or threads != 2:
        return ()
    if case.branching:
        return tuple(Goal(rule, f"torch {rule}", 10) for rule in ("token", "traversal"))
    if case.filtered:
        return tuple(Goal(rule, "torch sort filter", 20) for rule in ("token", "traversal"))
    peers = tuple(
        Goal("token", peer, bound)
        for peer, bound in (("torch plain", 20), ("transformers", 10), ("best eager torch", 4))
    )
    if (case.batch, case.vocab, case.acceptance) != (8, 128256, 0.7):
        return peers
    return (
        *peers,
        Goal("token", "floor target", 1.2, ceiling=True),
        Goal("token raw", "floor target", 1.7, ceiling=True),
        Goal("traversal raw", "floor all", 1.5, ceiling=True),
    )
