# SPDX-License-Identifier: Apache-2.0
"""Problems for tree attention, and dense attention to compare with."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

import specdec_kernels as sdk
from bench.paging import random_parents

CACHES = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn)


@dataclass
class Problem:
    arguments: dict  # of sdk.tree_attention
    keys: list[torch.Tensor]  # per request [prefix + nodes, Hkv, D] float64, as stored and scaled
    values: list[torch.Tensor]
    paths: list[list[list[int]]]

    def run(self, backend="cpu", **changes):
        options = {**self.arguments, "return_lse": True, "backend": backend, **changes}
        return sdk.tree_attention(**options)


def paths_of(parents):
    paths = []
    for node, parent in enumerate(parents):
        paths.append([*(paths[parent] if parent >= 0 else []), node])
    return paths


def make_tree(trees):
    tokens = torch.zeros(sum(map(len, trees)), dtype=torch.int64)
    sizes = torch.tensor([0, *map(len, trees)], dtype=torch.int32)
    flat = torch.tensor([p for parents in trees for p in parents], dtype=torch.int32)
    depth = max((len(path) - 1 for parents in trees for path in paths_of(parents)), default=0)
    nodes = max(map(len, trees), default=0)
    return sdk.DraftTree.from_parents(
        tokens, flat, sizes.cumsum(0).int(), max_nodes=nodes, max_depth=depth, check=False
    )


def make(
    seed=0, prefixes=(5,), nodes=(4,), heads=2, group=2, head=32, value=None, page_size=8,
    dtype=torch.float32, cache=None, layout="NHD", new=False, window=None, softcap=None, sinks=False,
    latent=None, scaled=False, scale=None, trees=None, spread=1.0,
):  # fmt: skip
    """A problem in which every slot that nobody may read holds NaN, or what comes nearest to it."""
    g = torch.Generator().manual_seed(seed)
    cache = cache or dtype
    randn = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    reach = lambda: int(torch.randint(1, 6, (1,), generator=g))  # noqa: E731
    trees = trees or [random_parents(g, n, reach()) if n else [] for n in nodes]
    value = latent or value or head
    stored = [p + (0 if new else len(t)) for p, t in zip(prefixes, trees, strict=True)]
    need = [-(-n // page_size) for n in stored]
    pages, width = sum(need) + 3, max(need, default=0) + 2
    order = torch.randperm(pages, generator=g)
    table = torch.randint(-3, pages + 3, (len(trees), width), generator=g).int()
    narrow = cache in (torch.int8, torch.float8_e4m3fn)
    filler = 127 if cache == torch.int8 else math.nan
    pools = [torch.full((pages, page_size, heads, d), filler).to(cache) for d in (head, value)]
    if latent:
        pools[1] = pools[0][..., :latent]
    gains = [torch.rand(heads, generator=g) * 0.02 + 0.01 if cache == torch.int8 else
             torch.rand(heads, generator=g) + 0.5 for _ in range(2)]  # fmt: skip
    if latent:
        gains[1] = gains[0]
    clean, used, fresh = ([], []), 0, ([], [])
    for b, tree in enumerate(trees):
        table[b, : need[b]] = order[used : used + need[b]]
        used += need[b]
        for side, pool in enumerate(pools):
            if latent and side == 1:
                clean[1].append(clean[0][b][..., :latent])
                continue
            d = pool.shape[-1]
            rows = randn(stored[b], heads, d) * spread
            rows = (rows / 0.02).clamp(-126, 126) if cache == torch.int8 else rows
            rows = rows.to(cache)
            index = torch.arange(stored[b])
            seen = index >= (prefixes[b] - window + 1 if window else 0)
            page = table[b].long()[index // page_size]
            raw = (lambda x: x.view(torch.uint8)) if rows.element_size() == 1 else (lambda x: x)  # float8
            raw(pool)[page[seen], index[seen] % page_size] = raw(rows)[seen]
            rows = rows.double() * (gains[side].double()[:, None] if scaled or narrow else 1)
            if new:
                fresh[side].append(randn(len(tree), heads, d).to(dtype))
                rows = torch.cat([rows, fresh[side][-1].double()])
            clean[side].append(rows)
    if layout == "HND":
        pools = [pool.transpose(1, 2).contiguous() for pool in pools]
    tree = make_tree(trees)
    arguments = dict(
        query=(randn(tree.tokens.numel(), heads * group, head) * 2).to(dtype), tree=tree, block_table=table,
        key_cache=pools[0], value_cache=None if latent else pools[1], layout=layout,
        prefix_lens=torch.tensor(prefixes, dtype=torch.int32), window=window, softcap=softcap, scale=scale,
        sinks=randn(heads * group) if sinks else None, value_dim=latent,
    )  # fmt: skip
    if scaled or narrow:
        arguments["key_scale"], arguments["value_scale"] = gains[0], None if latent else gains[1]
    if new:
        arguments["new_key"] = torch.cat(fresh[0])
        arguments["new_value"] = None if latent else torch.cat(fresh[1])
    return Problem(arguments, *clean, [paths_of(parents) for parents in trees])


def dense(problem, dtype=torch.float64, mutant=None):
    """Attention with a dense mask in `dtype`; a mutant is a fault that the tests must notice."""
    a, rows, lses = problem.arguments, [], []
    query, start = a["query"].to(dtype), 0
    for keys, values, paths, prefix in zip(
        problem.keys, problem.values, problem.paths, a["prefix_lens"].tolist(), strict=True
    ):
        nodes, total = len(paths), prefix + len(paths)
        depth = torch.tensor([len(path) - 1 for path in paths], dtype=torch.int64)
        seen = torch.zeros(nodes, total, dtype=torch.bool)
        seen[:, :prefix] = True
        for i, path in enumerate(paths):
            seen[i, [prefix + node for node in path]] = True
            if mutant == "missing ancestor" and len(path) > 2:
                seen[i, prefix + path[1]] = False
            if mutant == "sibling visible":
                seen[i, prefix : prefix + i + 1] = True
        place = torch.cat([torch.arange(prefix), prefix + depth])
        mine = prefix + (torch.arange(nodes) if mutant == "window by index" else depth)
        if mutant == "window by index":
            place = torch.arange(total)
        if a["window"]:
            seen &= mine[:, None] - place[None] < a["window"]
        group = query.shape[1] // keys.shape[1]
        k, v = (x.to(dtype).repeat_interleave(group, 1) for x in (keys, values))
        scale = a["scale"] or 1 / math.sqrt(query.shape[-1])
        scores = torch.einsum("ihd,jhd->hij", query[start : start + nodes], k) * scale
        if a["softcap"]:
            scores = a["softcap"] * torch.tanh(scores / a["softcap"])
        scores = scores.masked_fill(~seen, -torch.inf)
        if a["sinks"] is not None:
            sink = a["sinks"].to(dtype)[:, None, None].expand(-1, nodes, 1)
            lse = torch.logsumexp(torch.cat([scores, sink], -1), -1)
        else:
            lse = torch.logsumexp(scores, -1)
        rows.append(torch.einsum("hij,jhd->ihd", torch.exp(scores - lse[..., None]), v))
        lses.append(lse.T)
        start += nodes
    return torch.cat(rows), torch.cat(lses)


def excess(problem, got, exact=None, weights=None):
    """The largest error of out and lse in units of its budget: twice that of plain float32 attention, one
    unit of the output's dtype, and what one unit of the largest sum of a score's absolute products does.
    Where a backend rounds weights to a dtype, as tensor cores need them, that costs out up to half a unit of
    each."""
    exact = exact or dense(problem)
    rounding = [0.0, 0.0]
    if weights is not None:
        absolute = replace(problem, values=[v.abs() for v in problem.values])
        rounding[0] = torch.finfo(weights).eps / 2 * dense(absolute)[0]
    a, worst = problem.arguments, 0.0
    queries = a["query"].double().abs().flatten(0, 1)
    products = max((queries @ k.abs().flatten(0, 1).T).max() for k in problem.keys if k.numel())
    products *= abs(a["scale"] or 1 / math.sqrt(a["query"].shape[-1]))
    largest = max(v.abs().max() for v in problem.values if v.numel())
    for have, want, plain, size, rounded in zip(
        got, exact, dense(problem, torch.float32), (largest, 1.0), rounding, strict=True
    ):
        unit = torch.finfo(have.dtype).eps * want.abs() + torch.finfo(torch.float32).eps * products * size
        budget = 2 * (plain.double() - want).abs().max() + unit + rounded
        error = (have.double() - want).abs().nan_to_num(nan=math.inf)
        worst = max(worst, float((error / budget).max()))
    return worst
