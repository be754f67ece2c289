# SPDX-License-Identifier: Apache-2.0
"""Tree attention on the Triton backend: what it launches, and what its launches count."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from functools import partial
from pathlib import Path

import pytest
import torch
import triton
from attention_cases import make, make_tree
from each import BACKENDS, COPIED, DEVICE

import specdec_kernels as sdk

if "triton" not in BACKENDS or DEVICE == "cuda":
    pytest.skip("counts come from the emulator", allow_module_level=True)

import ptx_emulator
from bench.gpu import targets
from specdec_kernels.triton import attention_splits

BF16 = torch.bfloat16
TREE = [-1, *((i - 1) // 2 for i in range(1, 64))]  # binary


@pytest.mark.parametrize("deterministic", [False, True])
def test_launches_depend_on_bounds_alone(deterministic):
    shapes = set()
    for prefixes, trees in (([90, 3], [TREE[:9], TREE[:3]]), ([0, 0], [[], [-1, *range(11)]])):
        problem = make(prefixes=prefixes, trees=trees, head=32, page_size=4)
        table = problem.arguments["block_table"]
        table = torch.cat([table, torch.full((2, 40 - table.shape[1]), -1, dtype=torch.int32)], 1)
        with ptx_emulator.active(80, compile_only=True), ptx_emulator.count() as launches:
            problem.run("triton", block_table=table, deterministic=deterministic)
        shapes.add(tuple((each.name, each.grid) for each in launches))
    assert len(shapes) == 1 and len(shapes.pop()) == 2


@pytest.mark.parametrize("options", [
    dict(), dict(window=70, softcap=9.0, sinks=True), dict(latent=40, heads=1),
    dict(cache=torch.float8_e4m3fn, new=True),
])  # fmt: skip
def test_the_rest_of_the_batch_changes_nothing_where_launches_are_alike(options):
    """Where tiles have as many rows and the longest prefix may have as many splits, as they have if the
    average request needs the same power of two, not only with `deterministic=True`."""
    nodes, prefixes = [20, 30, 17], [600, 1200, 0]
    problem = make(
        prefixes=prefixes, nodes=nodes, page_size=16, dtype=BF16, **dict(group=4, head=64) | options
    )
    (out, lse), whole = counted(problem, max_prefix_len=1200)
    a, start = problem.arguments, 0
    for b, n in enumerate(nodes):
        rows = slice(start, start + n)
        tree = sdk.DraftTree.from_parents(a["tree"].tokens[rows][None], a["tree"].parents[rows][None])
        mine = {name: a[name][rows] for name in ("query", "new_key", "new_value") if a.get(name) is not None}
        mine |= {name: a[name][b : b + 1] for name in ("block_table", "prefix_lens")}
        (alone, alone_lse), few = counted(problem, tree=tree, max_prefix_len=1200, **mine)
        assert few[0].ptx == whole[0].ptx and few[0].grid[1] == whole[0].grid[1]  # rows, splits
        assert torch.equal(out[rows], alone) and torch.equal(lse[rows], alone_lse)
        start += n


def counted(problem, **changes):
    with ptx_emulator.count() as launches:
        result = problem.run("triton", **changes)
    return result, launches


def test_a_full_batch_is_split_less_than_one_request():
    grids = []
    for batch in (1, 8, 64):
        problem = make(prefixes=[1] * batch, nodes=[1] * batch, heads=8, group=4, page_size=64)
        table = torch.zeros(batch, 32).int()
        with ptx_emulator.active(80, compile_only=True):
            _, launches = counted(problem, block_table=table, max_prefix_len=2048)
        grids.append(launches[0].grid)
    assert grids == [(8, 32, 1), (72, 4, 1), (632, 1, 1)]


@pytest.mark.usefixtures("untouched_memory")
@pytest.mark.skipif(COPIED, reason="would copy 4 GB")
def test_slots_of_wide_pages_lie_beyond_32_bits():
    stride = 2**31 + 16
    pool = torch.empty(2 * stride + 16, dtype=torch.int8)  # of which three rows are touched
    cache = pool.as_strided((1, 3, 1, 16), (3 * stride, stride, 16, 1))
    for slot in range(3):
        cache[0, slot] = slot
    tree = make_tree([[-1]])
    query, pages, lengths = torch.zeros(1, 1, 16), torch.zeros(1, 1).int(), torch.tensor([2]).int()
    out = sdk.tree_attention(query, cache, cache, tree, pages, lengths, backend="triton")
    torch.testing.assert_close(out, torch.ones(1, 1, 16))


# --- Compiled kernels --------------------------------------------------------------------------------------

PROCESSORS = {processor.name: processor for processor in targets.PROCESSORS}
LOOP = re.compile(r"^( *)(?:%\S+ = )?scf\.for .*?^\1}", re.M | re.S)


def splits_kernel(target, **options):
    """The first launch of a call, not yet compiled."""
    options = dict(prefixes=[9], heads=8, group=4, head=128, page_size=16, dtype=BF16) | options
    problem = make(**options)
    kernels = targets.kernels(PROCESSORS[target], [lambda: problem.run("triton")])
    return next(kernel for kernel in kernels if kernel.name == "_attention_splits_kernel")


def copies_left(kernel):
    """How many groups of copies every wait of the loop over the prefix leaves on their way: of the code that
    Triton pipelines, and of the PTX made of it."""
    code = triton.compile(kernel.source, target=kernel.processor.target, options=kernel.options).asm
    loops = [
        loop[0] for loop in LOOP.finditer(code["ttgir"]) if "tt.dot" in loop[0] or "warp_group_dot" in loop[0]
    ]
    waits = [int(num) for num in re.findall(r"async_wait .*?num = (\d+)", loops[0])]
    return waits, [int(num) for num in re.findall(r"cp\.async\.wait_group\s+(\w+)", code["ptx"])]


FORMS = {
    "16 rows": dict(nodes=[1]),
    "64 rows": dict(nodes=[16]),
    "128 rows": dict(nodes=[64]),
    "every option": dict(nodes=[16], cache=torch.float8_e4m3fn, window=600, softcap=9.0, new=True),
    "latent": dict(nodes=[2], latent=512, head=576, heads=1, group=16),
}


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
@pytest.mark.parametrize("form", FORMS)
def test_keys_and_values_are_copied_while_others_are_multiplied(form, target):
    kernel = splits_kernel(target, **FORMS[form])
    waits, waits_of_ptx = copies_left(kernel)
    assert waits and min(waits) > 0 and set(waits) <= set(waits_of_ptx)


@pytest.mark.parametrize("mutant", ["one stage", "pages read as they are needed"])
def test_copies_that_wait_are_noticed(tmp_path, mutant):
    kernel = splits_kernel("sm_90", nodes=[1])
    if mutant == "one stage":
        kernel = dataclasses.replace(kernel, options=kernel.options | {"num_stages": 1})
    else:
        text = Path(attention_splits.__file__).read_text()
        early = "            page = find_pages(cache, after, _is_between(after, lowest, stop, FORM), FORM)\n"
        loop = "            position = at + offs_n\n"
        late = early.replace("after", "position")
        assert text.count(early) == text.count(loop) == 1
        path = tmp_path / "mutant.py"
        path.write_text(text.replace(early, "").replace(loop, loop + late))
        spec = importlib.util.spec_from_file_location(f"{attention_splits.__package__}.mutant", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        source = kernel.source
        fn = module._attention_splits_kernel
        source = type(source)(fn, source.signature, source.constants, source.attrs)
        kernel = dataclasses.replace(kernel, source=source)
    waits, _ = copies_left(kernel)
    assert not waits or min(waits) == 0


def test_serving_meets_few_kernels():
    """Ragged batches whose prefixes grow, and slices of shared buffers."""
    random = torch.Generator().manual_seed(0)
    draw = lambda low, high: int(torch.randint(low, high + 1, (), generator=random))  # noqa: E731
    heads, head, page = (32, 8), 128, 16
    cache = torch.zeros(1, page, heads[1], head, dtype=BF16)
    shared = torch.zeros(1 << 16, dtype=torch.int32)  # of which nothing is read

    def calls():
        for step in range(60):
            batch, nodes = draw(1, 64), draw(1, 64)
            sizes = [draw(1, nodes) for _ in range(batch)]
            rows = sum(sizes)
            cut = lambda n: shared[(at := draw(0, 99)) : at + n]  # noqa: B023, E731
            tokens = torch.zeros(rows, dtype=torch.int64)
            tree = sdk.DraftTree(tokens, cut(rows), cut(batch + 1), tokens.to(torch.uint8), nodes, nodes - 1)
            query = torch.zeros(rows + 1, heads[0], head, dtype=BF16)[step % 2 :][:rows]
            table = cut(batch * (16 + 2 * step)).view(batch, -1)
            given = query, cache, cache, tree, table, cut(batch)
            yield partial(sdk.tree_attention, *given, max_prefix_len=256 + 32 * step, backend="triton")

    found = [kernel.name for kernel in targets.kernels(PROCESSORS["sm_90"], calls())]
    assert 4 <= len(found) <= 16
