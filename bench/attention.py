# SPDX-License-Identifier: Apache-2.0
"""`python -m bench attention`: tree attention beside PyTorch's attention and the measured read bandwidth."""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

import specdec_kernels as sdk

from .timing import interleave

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
HEADS, CACHE_HEADS, HEAD, PAGE = 32, 8, 128, 16
SQUARE = 2048
ROUNDS, SECONDS = 9, 25.0


@dataclass(frozen=True)
class Case:
    name: str
    batch: int
    nodes: int
    prefix: int
    goals: tuple[tuple[str, float], ...]  # least ratio of a contender's time to ours


CASES = (
    Case("64 nodes", 4, 64, 4096, (("sdpa", 1.3), ("sdpa with gather", 2.0), ("flex", 5.0))),
    Case("8 nodes", 4, 8, 4096, (("sdpa", 2.0), ("bound", 0.7))),
    Case("decode 4096", 1, 1, 4096, (("read", 0.7),)),
    Case("decode 32768", 1, 1, 32768, (("read", 0.7),)),
)


@dataclass
class Inputs:
    """One step: what tree_attention takes, and the same for PyTorch, already gathered."""

    ours: tuple
    query: torch.Tensor  # [B, Hkv, G * N, D]
    key: torch.Tensor  # [B, Hkv, L, D]
    value: torch.Tensor
    mask: torch.Tensor  # [B, 1, G * N, L]


def build(case: Case, dtype: torch.dtype) -> Inputs:
    g = torch.Generator().manual_seed(1)
    length, batch, nodes = case.prefix + case.nodes, case.batch, case.nodes
    width = -(-length // PAGE)
    pools = [torch.randn(batch * width, PAGE, CACHE_HEADS, HEAD, generator=g).to(dtype) for _ in range(2)]
    table = torch.randperm(batch * width, generator=g).view(batch, width).int()
    parents = [-1] + [int(torch.randint(max(0, i - 8), i, (1,), generator=g)) for i in range(1, nodes)]
    tree = sdk.DraftTree.from_parents(torch.zeros(batch, nodes).long(), torch.tensor([parents] * batch))
    query = torch.randn(batch * nodes, HEADS, HEAD, generator=g).to(dtype)
    prefixes = torch.full((batch,), case.prefix).int()
    group = HEADS // CACHE_HEADS
    packed = query.view(batch, nodes, CACHE_HEADS, group, HEAD).permute(0, 2, 3, 1, 4)
    seen = torch.zeros(nodes, length, dtype=torch.bool)
    seen[:, : case.prefix] = True
    for node, parent in enumerate(parents):
        seen[node, case.prefix :] = seen[parent, case.prefix :] if parent >= 0 else False
        seen[node, case.prefix + node] = True
    mask = torch.zeros(seen.shape).masked_fill(~seen, -math.inf).to(dtype).repeat(group, 1)
    key, value = (gather(pool, table, length) for pool in pools)
    return Inputs(
        (query, *pools, tree, table, prefixes),
        packed.reshape(batch, CACHE_HEADS, group * nodes, HEAD).contiguous(),
        key,
        value,
        mask.expand(batch, 1, -1, -1).contiguous(),
    )


def gather(pool: torch.Tensor, table: torch.Tensor, length: int) -> torch.Tensor:
    return pool[table.long()].flatten(1, 2)[:, :length].transpose(1, 2).contiguous()


def flex(inputs: Inputs, nodes: int):
    """FlexAttention compiled, the mask as a block mask."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    batch, _, rows, length = inputs.mask.shape
    seen = inputs.mask[:, 0] == 0
    blocks = create_block_mask(lambda b, h, q, k: seen[b, q, k], batch, None, rows, length, device="cpu")
    compiled = torch.compile(flex_attention)
    return lambda _: compiled(inputs.query, inputs.key, inputs.value, block_mask=blocks)


def contenders(case: Case, inputs: Inputs, with_flex: bool) -> tuple[dict, dict[str, str]]:
    query, *pools, tree, table, prefixes = inputs.ours
    length = case.prefix + case.nodes

    def sdpa(key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        mask = inputs.mask if case.nodes > 1 else None
        return F.scaled_dot_product_attention(inputs.query, key, value, attn_mask=mask)

    runs = {
        "ours": lambda _: sdk.tree_attention(*inputs.ours, backend="cpu"),
        "sdpa": lambda _: sdpa(inputs.key, inputs.value),
        "sdpa with gather": lambda _: sdpa(*(gather(pool, table, length) for pool in pools)),
        # The bytes that have to be read, by the plainest reader there is.
        "read": lambda _: [pool.view(torch.float32).view(-1).sum() for pool in pools],
    }
    square = torch.randn(SQUARE, SQUARE)
    runs["square"] = lambda _: square @ square  # the rate of PyTorch's float32 matrix product
    missing = {}
    if with_flex and case.nodes > 8:
        try:
            run = flex(inputs, case.nodes)
            run(0)
            runs["flex"] = run
        except Exception as error:  # optional: not every build compiles it for cpu
            missing["flex"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return runs, missing


def disagreement(case: Case, inputs: Inputs) -> float:
    """The largest difference to dense attention in float64."""
    got = sdk.tree_attention(*inputs.ours, backend="cpu").double()
    scores = inputs.query.double() @ inputs.key.double().transpose(-1, -2) / math.sqrt(HEAD)
    want = torch.softmax(scores + inputs.mask.double(), -1) @ inputs.value.double()
    want = want.view(case.batch, CACHE_HEADS, HEADS // CACHE_HEADS, case.nodes, HEAD)
    return float((got - want.permute(0, 3, 1, 2, 4).reshape(got.shape)).abs().max())


def measure(case: Case, dtype: str, with_flex: bool) -> dict:
    inputs = build(case, DTYPES[dtype])
    error = disagreement(case, inputs)
    if error > torch.finfo(DTYPES[dtype]).eps * 4:
        raise RuntimeError(f"tree_attention is off by {error:.1e} in {case.name}, {dtype}: not timed")
    runs, missing = contenders(case, inputs, with_flex)
    timings = interleave(runs, 1, ROUNDS, SECONDS)
    seconds = dict(timings.medians)
    products = 4 * case.batch * case.nodes * HEADS * HEAD * (case.prefix + case.nodes)
    seconds["products"] = seconds.pop("square") * products / (2 * SQUARE**3)
    seconds["bound"] = max(seconds["products"], seconds["read"])
    ratios = {name: value / seconds["ours"] for name, value in seconds.items() if name != "ours"}
    noisy = timings.used != "quiet"
    goals = [
        {"than": name, "least": least, "ratio": ratios[name],
         "state": "NOISY" if noisy else "ok" if ratios[name] >= least else "MISS"}
        for name, least in case.goals if name in ratios
    ]  # fmt: skip
    return {
        "case": case.name, "dtype": dtype, "milliseconds": {k: 1e3 * v for k, v in seconds.items()},
        "ratios": ratios, "goals": goals, "missing": missing, "noisy_share": timings.noisy_share,
    }  # fmt: skip


def table(entry: dict) -> str:
    lines = [f"== attention, {entry['case']}, {entry['dtype']}: {entry['noisy_share']:.0%} of rounds noisy"]
    for name, milliseconds in entry["milliseconds"].items():
        ratio = f"{entry['ratios'][name]:9.2f} x ours" if name in entry["ratios"] else ""
        lines.append(f"   {name:20}{milliseconds:10.3f} ms{ratio}")
    lines += [
        f"   {g['state']:5}  at least {g['least']:g} x against {g['than']}: {g['ratio']:.2f}"
        for g in entry["goals"]
    ]
    lines += [f"   not timed: {name}: {reason}" for name, reason in entry["missing"].items()]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench attention", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="no FlexAttention")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=Path(__file__).with_name("results") / "attention.json")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    entries = []
    for case in CASES:
        for dtype in DTYPES:
            entries.append(measure(case, dtype, not args.quick))
            print(table(entries[-1]), flush=True)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(entries, indent=1) + "\n")
    return 0
