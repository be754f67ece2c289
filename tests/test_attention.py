# SPDX-License-Identifier: Apache-2.0
"""Tree attention: against dense attention in float64, and what must not change a single bit."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from attention_cases import CACHES, dense, excess, make
from device import on_device
from each import BACKENDS, QUICK
from hypothesis import example, given, settings
from hypothesis import strategies as st
from records import opcheck, recorded

import specdec_kernels as sdk

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@st.composite
def problems(draw, longest=1100, most_nodes=40):
    batch = draw(st.integers(1, 3))
    sizes = lambda few, many: draw(st.lists(st.one_of(few, many), min_size=batch, max_size=batch))  # noqa: E731
    head = draw(st.sampled_from([32, 64, 80, 96, 128, 256, 33]))
    latent = draw(st.sampled_from([None, None, None, head // 2 + 8]))
    return dict(
        seed=draw(st.integers(0, 10**6)),
        prefixes=sizes(st.integers(0, 70), st.sampled_from([0, 64, 128, longest // 2 - 37, longest])),
        nodes=sizes(st.integers(0, 8), st.integers(1, most_nodes)),
        heads=1 if latent else draw(st.sampled_from([1, 2, 3])),
        group=draw(st.sampled_from([1, 2, 3, 4, 7, 16])),
        head=head,
        value=draw(st.sampled_from([None, 48])),
        page_size=draw(st.sampled_from([1, 3, 16, 64, 100])),
        dtype=draw(st.sampled_from([F32, F32, BF16, F16])),
        cache=draw(st.sampled_from([None, None, *CACHES])),
        layout=draw(st.sampled_from(["NHD", "HND"])),
        new=draw(st.booleans()),
        window=draw(st.sampled_from([None, None, 1, 3, 20, 65, 600])),
        softcap=draw(st.sampled_from([None, None, 5.0, 30.0])),
        sinks=draw(st.booleans()),
        latent=latent,
        scaled=draw(st.booleans()),
        scale=draw(st.sampled_from([None, 0.3])),
    )  # fmt: skip


def weights_of(backend, problem):
    """The dtype that a backend rounds weights to, None where it keeps them in float32."""
    dtype = problem.arguments["query"].dtype
    return dtype if backend == "triton" and dtype != F32 else None


@settings(max_examples=100)
@given(options=problems())
@example(options=dict(
    seed=179, prefixes=[39, 0], nodes=[38, 40], heads=1, group=3, head=256, page_size=64, dtype=F32,
    cache=torch.float8_e4m3fn, new=True, window=20, latent=136,
))  # fmt: skip
def test_against_dense_attention(options):
    problem = make(**options)
    got = problem.run()
    assert got[0].dtype == problem.arguments["query"].dtype and got[1].dtype == F32
    assert got[0].numel() == 0 or excess(problem, got) <= 1


@settings(max_examples=40)
@given(options=problems())
def test_the_reference_against_dense_attention(options):
    problem = make(**options)
    got = problem.run("reference")
    assert got[0].numel() == 0 or excess(problem, got) <= 1


@settings(max_examples=4)
@given(options=problems(longest=300, most_nodes=20), deterministic=st.booleans())
def test_the_triton_backend_against_dense_attention(options, deterministic):
    problem = make(**options)
    got = problem.run("triton", deterministic=deterministic)
    assert got[0].dtype == options["dtype"] and got[1].dtype == F32
    assert got[0].numel() == 0 or excess(problem, got, weights=weights_of("triton", problem)) <= 1


@pytest.mark.parametrize("options, deterministic", [
    (dict(dtype=BF16, prefixes=[600], nodes=[70], group=4, head=128), False),
    (dict(dtype=BF16, cache=torch.float8_e4m3fn, window=7, softcap=5.0, sinks=True, new=True, head=80), True),
    (dict(dtype=F16, cache=torch.int8, prefixes=[150, 0], nodes=[5, 3], head=96, layout="HND", group=3),
     False),
    (dict(dtype=BF16, latent=512, head=576, heads=1, group=16, prefixes=[70], nodes=[3]), False),
    (dict(latent=512, head=576, heads=1, group=16, prefixes=[70], nodes=[3], new=True), True),
    (dict(dtype=BF16, latent=20, head=64, heads=1, prefixes=[70], nodes=[9]), True),
    (dict(cache=F16, latent=72, head=80, heads=1, group=3, prefixes=[40, 9], nodes=[5, 40], window=20),
     False),
])  # fmt: skip
def test_every_option_on_the_triton_backend(options, deterministic):
    problem = make(page_size=16, **dict(prefixes=[150, 20], nodes=[40, 3]) | options)
    got = problem.run("triton", deterministic=deterministic)
    assert excess(problem, got, weights=weights_of("triton", problem)) <= 1


@pytest.mark.parametrize("prefix, nodes", [(5000, 1), (0, 1024)])
def test_long_prefixes_and_large_trees_on_the_triton_backend(prefix, nodes):
    problem = make(prefixes=[prefix], nodes=[nodes], heads=1, group=2, head=64, page_size=16, dtype=BF16)
    assert excess(problem, problem.run("triton"), weights=BF16) <= 1


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("prefix, nodes", [(100_000, 1), (100_000, 9), (4096, 64), (0, 1024), (600, 1024)])
def test_long_prefixes_and_large_trees(prefix, nodes, dtype):
    problem = make(prefixes=[prefix], nodes=[nodes], heads=1, group=2, head=64, page_size=16, dtype=dtype)
    assert excess(problem, problem.run()) <= 1


def test_memory_does_not_grow_with_nodes_times_prefix():
    script = (
        "import resource, torch, attention_cases as c\n"
        "most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "torch.set_num_threads(2)\n"
        "p = c.make(prefixes=[100], nodes=[3], heads=1, group=1); p.run()\n"
        "p = c.make(prefixes=[100_000], nodes=[1024], heads=1, group=1, page_size=16)\n"
        "p.keys = p.values = None\n"
        "before = most(); p.run(); print(most() - before)"
    )
    paths = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    run = subprocess.run([sys.executable, "-c", script], env=dict(os.environ, PYTHONPATH=paths),
                         capture_output=True, text=True, check=True)  # fmt: skip
    assert int(run.stdout) < 16e6  # a byte for each pair of a node and a position would be 100 MB


@pytest.mark.parametrize("options", [
    dict(head=576, latent=512, heads=1, group=16), dict(head=576, latent=512, heads=1, group=128, dtype=BF16),
    dict(head=128, heads=1, group=300), dict(head=256, heads=2, group=1), dict(head=1, value=3),
])  # fmt: skip
def test_unusual_heads(options):
    problem = make(prefixes=[150, 0], nodes=[5, 3], **options)
    assert excess(problem, problem.run()) <= 1


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("options", [
    dict(), dict(dtype=BF16, heads=8, group=4), dict(dtype=F16, group=8, softcap=9.0), dict(cache=torch.int8),
    dict(cache=torch.float8_e4m3fn, sinks=True), dict(group=3, heads=3, head=80), dict(group=1, window=500),
    dict(heads=20, group=1, head=48, value=96),
])  # fmt: skip
def test_decoding_slot_by_slot(options, layout):
    """One or two nodes: tiles that are seen whole are read in the order of their slots."""
    for nodes in ([1, 1, 1], [2, 2, 2]):
        options = dict(head=64, group=2, layout=layout, page_size=16) | options
        problem = make(prefixes=[1000, 640, 63], nodes=nodes, **options)
        out, lse = problem.run()
        assert excess(problem, (out, lse)) <= 1
        exact, _ = problem.run(deterministic=True)
        assert torch.equal(out[-nodes[0] :], exact[-nodes[0] :])  # no whole tile
        if nodes[0] == 1 and out.dtype == F32:
            assert not torch.equal(out, exact)  # lanes were added up in another order


def rows_as_chains(problem, backend="cpu"):
    """For every row (request, node, row of the batch) the same path decoded as a chain, alone."""
    a, start = problem.arguments, 0
    for b, paths in enumerate(problem.paths):
        for i, path in enumerate(paths):
            rows = [start + node for node in path]
            chain = sdk.DraftTree.chain(torch.zeros(1, len(path) - 1, dtype=torch.int64))
            changes = {
                name: a[name][rows] for name in ("query", "new_key", "new_value") if a[name] is not None
            }
            changes |= {name: a[name][b : b + 1] for name in ("block_table", "prefix_lens")}
            yield start + i, problem.run(backend, tree=chain, deterministic=True, **changes)
        start += len(paths)


@pytest.mark.parametrize("options", [
    dict(), dict(dtype=BF16), dict(cache=torch.int8), dict(cache=torch.float8_e4m3fn, dtype=F16),
    dict(group=1), dict(group=9), dict(window=40), dict(window=3, softcap=8.0), dict(sinks=True, head=80),
    dict(latent=40, heads=1),
])  # fmt: skip
def test_a_row_is_bitwise_that_of_its_chain(options):
    nodes = [50, 7, 1]
    problem = make(
        seed=3, prefixes=[700, 90, 0], nodes=nodes, page_size=16, new=True, **dict(head=64) | options
    )
    out, lse = problem.run(deterministic=True)
    for row, (alone, alone_lse) in rows_as_chains(problem):
        assert torch.equal(out[row], alone[-1]) and torch.equal(lse[row], alone_lse[-1])


@pytest.mark.parametrize("options", [
    dict(dtype=BF16, sinks=True), dict(dtype=F16, cache=torch.float8_e4m3fn, window=5, softcap=8.0),
    dict(dtype=BF16, latent=40, heads=1, window=130),
])  # fmt: skip
def test_a_row_is_bitwise_that_of_its_chain_on_the_triton_backend(options):
    trees = [[-1, 0, 0, *range(1, 22)], [-1, 0, 0], [-1]]  # two chains in turns: paths of more than a tile
    problem = make(seed=3, prefixes=[300, 90, 0], trees=trees, page_size=16, new=True, head=64, **options)
    out, lse = problem.run("triton", deterministic=True)
    for row, (alone, alone_lse) in rows_as_chains(problem, "triton"):
        assert torch.equal(out[row], alone[-1]) and torch.equal(lse[row], alone_lse[-1])


def test_deep_rows_are_bitwise_those_of_their_chains():
    """Paths of more than one tile, whose nodes stand at other indices in the tree."""
    parents = [-1, 0, 0, *range(1, 158)]  # two chains in turns
    problem = make(prefixes=[70], trees=[parents], new=True, head=32)
    out, _ = problem.run(deterministic=True)
    for row, (alone, _) in rows_as_chains(problem):
        assert torch.equal(out[row], alone[-1])


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("backend, layout, dtype", [
    ("cpu", "NHD", F32), ("cpu", "NHD", BF16), ("cpu", "HND", F32), ("cpu", "HND", BF16),
    ("triton", "NHD", BF16),
])  # fmt: skip
def test_the_order_of_pages_changes_nothing(backend, layout, dtype):
    problem = make(prefixes=[530, 40], nodes=[30, 2], page_size=7, dtype=dtype, layout=layout)
    a = problem.arguments
    order = torch.randperm(a["key_cache"].shape[0])
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    table = a["block_table"].long()
    inside = (table >= 0) & (table < len(order))
    moved = torch.where(inside, place[table.clamp(0, len(order) - 1)], table).int()
    pools = {name: a[name][order] for name in ("key_cache", "value_cache")}
    assert same(problem.run(backend), problem.run(backend, block_table=moved, **pools))


@pytest.mark.parametrize("nodes", [[1], [1, 1, 1], [64, 3], [300]])
def test_threads_change_nothing(nodes):
    problem = make(prefixes=[3000] * len(nodes), nodes=nodes, head=64, group=3)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            results += [problem.run() for _ in range(3)]
    finally:
        torch.set_num_threads(before)
    assert all(same(results[0], other) for other in results[1:])


@pytest.mark.parametrize("backend, dtype", [("cpu", F32), ("triton", BF16)])
def test_the_rest_of_the_batch_changes_nothing(backend, dtype):
    nodes, prefixes = [20, 1, 5, 64], [600, 2000, 0, 77]
    problem = make(prefixes=prefixes, nodes=nodes, group=4, head=64, dtype=dtype)
    out, lse = problem.run(backend, deterministic=True)
    a, start = problem.arguments, 0
    for b, n in enumerate(nodes):
        rows = slice(start, start + n)
        tree = sdk.DraftTree.from_parents(a["tree"].tokens[rows][None], a["tree"].parents[rows][None])
        pages = a["block_table"][b : b + 1, : -(-(prefixes[b] + n) // 8)]
        alone = problem.run(backend, query=a["query"][rows], tree=tree, block_table=pages,
                            prefix_lens=a["prefix_lens"][b : b + 1], deterministic=True)  # fmt: skip
        assert same((out[rows], lse[rows]), alone)
        start += n


def test_padding_slots_and_rows_beyond_the_last_request():
    problem = make(prefixes=[40, 9], nodes=[5, 3])
    a = problem.arguments
    tree, expected = a["tree"], problem.run()
    pad = lambda t, n: torch.cat([t, t[:n]])  # noqa: E731
    padded = sdk.DraftTree(pad(tree.tokens, 4), pad(tree.parents, 4), torch.tensor([0, 5, 5, 8]).int(),
                           pad(tree.proposals, 4), tree.max_nodes, tree.max_depth)  # fmt: skip
    order = [0, 0, 1]
    for backend in BACKENDS:
        out, lse = problem.run(backend, query=pad(a["query"], 4), tree=padded,
                               block_table=a["block_table"][order],
                               prefix_lens=a["prefix_lens"][order])  # fmt: skip
        torch.testing.assert_close((out[:8], lse[:8]), expected)
        assert not out[8:].any() and bool((lse[8:] == -torch.inf).all())


@pytest.mark.parametrize("mutant", ["window by index", "missing ancestor", "sibling visible"])
def test_faults_are_noticed(mutant):
    problem = make(prefixes=[60], nodes=[20], window=30 if mutant == "window by index" else None)
    assert excess(problem, problem.run()) <= 1 < excess(problem, dense(problem, mutant=mutant))


@pytest.mark.slow
def test_lesser_instruction_sets_keep_the_budget():
    """Other tests run the best that the processor has."""
    script = (
        "import torch, attention_cases as c, specdec_kernels as sdk\n"
        "for o in (dict(), dict(dtype=torch.bfloat16), dict(dtype=torch.float16, softcap=9.0),\n"
        "          dict(cache=torch.int8), dict(latent=20, heads=1),\n"
        "          dict(cache=torch.float8_e4m3fn, window=50), dict(head=80, sinks=True)):\n"
        "    for nodes in ([1, 3], [30, 11]):\n"
        "        p = c.make(prefixes=[300, 70], nodes=nodes, **dict(group=2) | o)\n"
        "        assert c.excess(p, p.run()) <= 1, o\n"
        "print(sdk.explain().split('instruction set ')[1].split()[0])"
    )
    used = set()
    for isa in ("baseline", "avx2"):
        environment = dict(
            os.environ, SPECDEC_ISA=isa, PYTHONPATH=os.pathsep.join([os.path.dirname(__file__), *sys.path])
        )
        used.add(subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True,
                                text=True, check=True).stdout.strip())  # fmt: skip
    assert "baseline" in used


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_float8_is_read_right(backend):
    codes = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn)
    cache = codes.view(256, 1, 1, 1).expand(256, 1, 1, 16).contiguous()
    tree = sdk.DraftTree.chain(torch.zeros(256, 0, dtype=torch.int64))
    query, pages = torch.zeros(256, 1, 16), torch.arange(256).int()[:, None]
    for new in (1, 16):  # in place, and packed
        out = sdk.tree_attention(query.expand(-1, new, -1), cache, cache, tree, pages, torch.zeros(256).int(),
                                 max_prefix_len=0, backend=backend)  # fmt: skip
        torch.testing.assert_close(out[:, 0, 0], codes.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_that_is_seen_shows(backend):
    problem = make(prefixes=[40], nodes=[9])
    a = problem.arguments
    page, slot = a["block_table"][0, 20 // 8], 20 % 8
    a["value_cache"][page, slot, 0, 3] = torch.nan
    out, lse = problem.run(backend)
    assert out[:, :2, 3].isnan().all() and not out[:, 2:].isnan().any() and not lse.isnan().any()
    a["key_cache"][page, slot, 1, 3] = torch.nan
    out, lse = problem.run(backend)
    assert out[:, 2:].isnan().all() and lse[:, 2:].isnan().all() and not lse[:, :2].isnan().any()


# --- As PyTorch sees it ------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", QUICK)
@pytest.mark.parametrize(
    "options", [dict(), dict(new=True, sinks=True, dtype=BF16), dict(latent=20, cache=torch.int8)]
)
def test_passes_opcheck(monkeypatch, backend, options):
    opcheck(*recorded(monkeypatch, "tree_attention", lambda: make(**options).run(backend)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiles_whole(backend, compiler):
    if compiler == "inductor" and backend != "cpu":
        pytest.skip("one backend is enough for the slow compiler")
    problem = make(new=True, window=6, sinks=True)
    arguments = problem.arguments
    step = lambda arguments: tuple(x + 1 for x in problem.run(backend, **arguments))  # noqa: E731
    compiled = on_device(torch.compile(step, fullgraph=True, backend=compiler))
    assert same(compiled(arguments), step(arguments))


@pytest.mark.parametrize("backend", BACKENDS)
def test_out_and_strided_arguments(backend):
    problem = make(new=True, group=2, sinks=True)
    expected, _ = problem.run(backend)
    a = problem.arguments
    out = torch.full_like(expected, torch.nan)
    got, _ = problem.run(backend, out=out)
    assert got is out and torch.equal(out, expected)
    both = torch.stack([a["key_cache"], a["value_cache"]], 1)
    wide = torch.cat([a["query"], a["new_key"], a["new_value"]], 1)
    query, new_key, new_value = wide.split([4, 2, 2], 1)
    strided = dict(query=query, new_key=new_key, new_value=new_value, key_cache=both[:, 0],
                   value_cache=both[:, 1], prefix_lens=torch.stack([a["prefix_lens"]] * 2, 1)[:, 0],
                   sinks=a["sinks"].repeat(2)[:4])  # fmt: skip
    assert torch.equal(problem.run(backend, **strided)[0], expected)
    table = torch.cat([a["block_table"]] * 2, 1)[:, : a["block_table"].shape[1]]
    assert torch.equal(problem.run(backend, block_table=table)[0], expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_scale_for_all_heads(backend):
    problem = make(cache=torch.int8)
    half = torch.full((2,), 0.5)
    expected, _ = problem.run(backend, key_scale=half * 0.1, value_scale=half)
    for value in (0.5, torch.tensor(0.5), torch.tensor([0.5])):
        assert torch.equal(problem.run(backend, key_scale=0.05, value_scale=value)[0], expected)


VALUES = {
    "query rows": (dict(query=torch.zeros(3, 4, 32)),
                   "query must have shape [R, Hq, D] = [4, 4, 32], got [3, 4, 32]"),
    "query heads": (dict(query=torch.zeros(4, 3, 32)), "query must have Hq a multiple of Hkv = 2, got 3"),
    "query stride": (dict(query=torch.zeros(4, 32, 4).mT),
                     "query must have last stride 1, got strides [128, 1, 4]"),
    "head size": (dict(key_cache=torch.zeros(4, 8, 2, 16)),
                  "key_cache must have shape [pages, page_size, Hkv, D], D = 32, got [4, 8, 2, 16]"),
    "values": (dict(value_cache=torch.zeros(4, 8, 1, 32)),
               "value_cache must have shape [pages, page_size, Hkv, D] = [5, 8, 2, 32], got [4, 8, 1, 32]"),
    "no values": (dict(value_cache=None), "value_dim must be given where value_cache is None, got None"),
    "value_dim": (dict(value_cache=None, value_dim=33), "value_dim must be in [1, D] = [1, 32], got 33"),
    "both values": (dict(value_dim=8), "value_dim must be None where value_cache is given, got 8"),
    "table": (dict(block_table=torch.zeros(2, 3).int()),
              "block_table must have shape [B, P], B = 1, got [2, 3]"),
    "lengths": (dict(prefix_lens=torch.zeros(2).int()), "prefix_lens must have shape [B] = [1], got [2]"),
    "window": (dict(window=0), "window must be >= 1, got 0"),
    "softcap": (dict(softcap=-1.0), "softcap must be > 0, got -1.0"),
    "scale": (dict(scale=float("nan")), "scale must be finite, got nan"),
    "sinks": (dict(sinks=torch.zeros(3)), "sinks must have shape [Hq] = [4], got [3]"),
    "scales": (dict(key_scale=torch.zeros(3)), "key_scale must have shape [Hkv] = [2], got [3]"),
    "layout": (dict(layout="DNH"), "layout must be one of NHD, HND, got 'DNH'"),
    "new value": (dict(new_key=torch.zeros(4, 2, 32)), "new_value must be given with new_key, got None"),
    "bound": (dict(max_prefix_len=-1), "max_prefix_len must be >= 0, got -1"),
    "out": (dict(out=torch.zeros(4, 4, 16)), "out must have shape [R, Hq, Dv] = [4, 4, 32], got [4, 4, 16]"),
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_refused_values(name):
    changes, message = VALUES[name]
    with pytest.raises(ValueError) as error:
        make().run(**changes)
    assert str(error.value) == f"tree_attention: {message}"


@pytest.mark.parametrize("changes, message", [
    (dict(query=torch.zeros(4, 4, 32).long()),
     "query must have dtype float32 | bfloat16 | float16 | float64, got int64"),
    (dict(block_table=torch.zeros(1, 3)), "block_table must have dtype int32, got float32"),
    (dict(tree=3), "tree must be a DraftTree, got int"),
    (dict(new_key=torch.zeros(4, 2, 32).half()), "new_key must have dtype float32, got float16"),
    (dict(window=torch.tensor(3)), "window must be an int, got Tensor"),
])  # fmt: skip
def test_refused_types(changes, message):
    with pytest.raises(TypeError) as error:
        make().run(**changes)
    assert str(error.value) == f"tree_attention: {message}"


def test_float64_is_served_by_the_reference():
    problem = make(dtype=torch.float64)
    out, _ = problem.run("auto")
    torch.testing.assert_close(out, dense(problem)[0])
    with pytest.raises(sdk.BackendUnavailable, match="got float64"):
        problem.run("cpu")
