# SPDX-License-Identifier: Apache-2.0
"""`warmup`: after it a serving process meets no form of a kernel that is not compiled."""

from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
import textwrap
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
import triton
from each import DEVICE

import specdec_kernels as sdk
from ptx_emulator import driver
from specdec_kernels import compilation
from specdec_kernels._ops import backends
from specdec_kernels.triton.dispatch import Launch
from specdec_kernels.verification import empty_outputs

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="needs no GPU")

V, PAGE, STEPS = 64, 16, 1000
DEVICES = itertools.count()
LAW = sdk.SamplingParams(
    torch.ones(1), torch.ones(1, dtype=torch.int32), torch.ones(1), torch.ones(1), "min_p_last"
)


@pytest.fixture
def met(monkeypatch):
    """Every kernel that Triton is asked for, by what tells it apart. Nothing is compiled or launched."""
    kernels = Counter()
    compiled = {}

    def run(self, *arguments, grid, warmup, **options):
        key = self.__name__, repr(arguments), repr(options)
        kernels[key] += 1
        nothing = SimpleNamespace(run=lambda *_: None, function=0, packed_metadata=None)
        return compiled.setdefault(key, nothing)

    device = driver.EmulatorDriver(80)
    name = f"device {next(DEVICES)} of this file"  # for which nothing is compiled yet
    device.get_current_device = lambda: name
    monkeypatch.setattr(triton.runtime.JITFunction, "run", run)
    monkeypatch.setattr(triton.runtime.driver, "_active", device)
    monkeypatch.setattr(Launch, "met", {})
    return kernels


def pick(g, low, high):
    return int(torch.randint(low, high + 1, (), generator=g))


COUNTS = [sdk.TokenCounts(64, capacity, V, recent=recent) for capacity, recent in ((5, 2), (900, 8))]
BUFFERS = {
    dtype: torch.zeros(65 * 64 * V, dtype=dtype)
    for dtype in (torch.int64, torch.int32, torch.float32, torch.bfloat16)
}


def a_slice(g, shape, dtype):
    """Of a shared buffer, wherever it begins."""
    size, begin = torch.Size(shape).numel(), pick(g, 0, 40)
    return BUFFERS[dtype][begin : begin + size].view(shape)


def logits(g, *shape):
    """The same, beginning with a row."""
    begin, rows = pick(g, 0, 3), torch.Size(shape).numel()
    return BUFFERS[torch.bfloat16].view(-1, V)[begin : begin + rows].view(*shape, V)


def edits_of(g, batch):
    """Of any number of requests, tokens and words."""
    counts, few = COUNTS[pick(g, 0, 1)], pick(g, 1, 9)
    integers = lambda *shape: a_slice(g, shape, torch.int64)  # noqa: E731
    return sdk.LogitEdits(
        counts, a_slice(g, (batch,), torch.float32), pick(g, 0, 9) / 10, bias_tokens=integers(batch, few),
        bias_values=a_slice(g, (batch, few), torch.float32), bad_words=integers(batch, few, 3),
    )  # fmt: skip


def step(g):
    """Of a serving process: any batch, any tree, bitmasks and log-probabilities or not."""
    batch, kind = pick(g, 1, 64), pick(g, 0, 2)
    if kind == 0:
        depth = pick(g, 1, 16)
        tree = sdk.DraftTree.chain(a_slice(g, (batch, depth), torch.int64), check=False)
        rows = batch * (depth + 1)
        draft = logits(g, batch, depth)
    else:
        sizes = torch.randint(1, 65, (batch,), generator=g)
        rows, offsets = int(sizes.sum()), torch.zeros(batch + 1, dtype=torch.int32)
        offsets[1:] = sizes.cumsum(0)
        tree = sdk.DraftTree.from_parents(
            a_slice(g, (rows,), torch.int64), a_slice(g, (rows,), torch.int32), offsets,
            max_nodes=64, max_depth=pick(g, 1, 63), check=False,
        )  # fmt: skip
        draft = logits(g, rows)
    target = logits(g, rows)
    seeds, positions = a_slice(g, (batch,), torch.int64), a_slice(g, (batch,), torch.int64)
    law = sdk.SamplingParams(*(a_slice(g, (batch,), value.dtype) for value in LAW[:4]), LAW.order)
    masked, scored, edited = bool(pick(g, 0, 1)), bool(pick(g, 0, 1)), bool(pick(g, 0, 1))
    edits = edits_of(g, batch) if edited else None
    left = a_slice(g, (batch,), torch.int32)
    ends = sdk.Ends(a_slice(g, (batch, pick(g, 0, 3)), torch.int64), left) if pick(g, 0, 1) else None
    options = dict(seeds=seeds, positions=positions, return_logprobs=scored, backend="triton")
    mask = a_slice(g, (rows, V // 32), torch.int32) if masked else None
    verifier = sdk.SpeculativeVerifier(rule="traversal", return_logprobs=scored, backend="triton")
    verified = verifier(
        target,
        tree,
        draft,
        sampling=law,
        seeds=seeds,
        positions=positions,
        token_bitmask=mask,
        edits=edits,
        ends=ends,
    )
    mask = mask[:batch] if masked else None
    sdk.sample(target[:batch], law, token_bitmask=mask, edits=edits, **options)
    if edited:
        slots = a_slice(g, (batch,), torch.int64) if masked else None
        edits.counts.update_(verified, slots, backend="triton")
    del options["return_logprobs"]
    sdk.sample_children(target[:batch], pick(g, 1, 4), sampling=law, nodes=seeds, **options)
    pages = a_slice(g, (batch, pick(g, 1, 9)), torch.int32)
    plan = sdk.CachePlan([torch.zeros(9, PAGE, 2, 8)] * 1, page_size=PAGE)
    sdk.commit_kv(plan, verified, tree, pages, a_slice(g, (batch,), torch.int32), backend="triton")


def test_a_warm_process_compiles_nothing(met, untouched_memory):
    both = (False, True)
    done = sdk.warmup(
        "cpu", vocab_size=V, rules=["traversal"], samplings=[LAW], token_bitmask=both, return_logprobs=both,
        edits=(None, edits_of(torch.Generator(), 1)), children=[("without_replacement", 4)], page_size=PAGE,
        ends=[None, sdk.Ends(BUFFERS[torch.int64], BUFFERS[torch.int32])],
        processes=0, progress=None,
    )  # fmt: skip
    warm = set(met)
    assert done.kernels == len(warm) == len(Launch.met)
    counted = Counter(name for name, _, _ in warm)
    assert sum(count for name, count in counted.items() if name.startswith("verify")) == 30
    assert counted["_edit_rows_kernel"] == 2  # of `verify` and of `sample`
    g = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        step(g)
    assert set(met) == warm and len(Launch.met) == len(warm)


def step_of_rows(g, bonus, tokens):
    """With rows by number, or a bonus token with and without rows of last nodes; chains of sums, too."""
    batch, depth = pick(g, 1, 64), pick(g, 1, 16)
    if pick(g, 0, 1):
        tree = sdk.DraftTree.chain(a_slice(g, (batch, depth), torch.int64), check=False)
    else:
        sums = torch.arange(1, batch + 1, dtype=torch.int32) * depth
        drafts = a_slice(g, (batch * depth,), torch.int32)
        tree = sdk.DraftTree.chain(drafts, cu_drafts=sums, max_depth=depth, check=False)
    rows = batch * (depth + 1)
    count, numbers, given = rows, None, None if bonus is None else a_slice(g, (batch,), bonus)
    if pick(g, 0, 1):
        numbers, count = a_slice(g, (rows,), torch.int32), pick(g, 1, 64)
    elif given is not None and pick(g, 0, 1):
        count = rows - batch
    sdk.verify(
        logits(g, count),
        tree,
        sampling=sdk.SamplingParams(0.8),
        rule="match",
        target_rows=numbers,
        bonus_tokens=given,
        seeds=a_slice(g, (batch,), torch.int64),
        positions=a_slice(g, (batch,), torch.int64),
        out=empty_outputs(batch, depth + 1, torch.device("cpu"), tokens),
        backend="triton",
    )


def test_rows_and_bonus_tokens_compile_nothing_more(met, untouched_memory, monkeypatch):
    from specdec_kernels import triton as kernels

    monkeypatch.setattr(backends, "filler", lambda name, *_: kernels if hasattr(kernels, name) else None)
    dtypes = (torch.int64, torch.int32)
    sdk.warmup(
        "cpu", vocab_size=V, samplings=[sdk.SamplingParams(0.8)], target_rows=(False, True), cu_drafts=True,
        bonus_tokens=(None, *dtypes), token_dtypes=dtypes, page_size=PAGE, processes=0, progress=None,
    )  # fmt: skip
    warm = set(met)
    g = torch.Generator().manual_seed(3)
    for _ in range(STEPS // 5):
        for bonus in (None, *dtypes):
            step_of_rows(g, bonus, dtypes[pick(g, 0, 1)])
    assert set(met) == warm and len(Launch.met) == len(warm)


class Unsendable(torch.Tensor):
    """As a tensor of a GPU is for a process without one."""

    def __reduce_ex__(self, protocol):
        raise pickle.PicklingError("sent to another process")


def test_budgets_of_all_sizes_compile_nothing_more(met, untouched_memory):
    sdk.warmup("cpu", vocab_size=V, budgets=[(32, 24), (8, 64)], page_size=PAGE, processes=0, progress=None)
    warm = set(met)
    assert sum("select" in name for name, _, _ in warm if "verify" not in name and "sample" not in name) > 10
    g = torch.Generator().manual_seed(4)
    for _ in range(STEPS // 5):
        batch, nodes = (pick(g, 1, 32), pick(g, 1, 24)) if pick(g, 0, 1) else (pick(g, 1, 8), pick(g, 1, 64))
        budget = sdk.BatchBudget(sdk.Budget({1: 1.0}), 40, pick(g, batch, 300))
        tree = sdk.DraftTree.chain(a_slice(g, (batch, nodes - 1), torch.int64), check=False)
        rows, slots = a_slice(g, (batch * nodes,), torch.int32), a_slice(g, (batch,), torch.int64)
        rows, slots = rows if pick(g, 0, 1) else None, slots if pick(g, 0, 1) else None
        scores = a_slice(g, (batch, nodes), torch.float32)
        weights = a_slice(g, (batch,), torch.float32) if pick(g, 0, 1) else None
        selected = budget.select(
            tree, scores, draft_rows=rows, slots=slots, weights=weights, backend="triton"
        )
        path, count = a_slice(g, (batch, 3), torch.int32), a_slice(g, (batch,), torch.int32)
        tokens = a_slice(g, (batch, 3), torch.int64)
        budget.update_(selected, sdk.Verified(tokens, count, count, path, None, count), backend="triton")
    assert set(met) == warm and len(Launch.met) == len(warm)


def test_rates_of_a_device_are_not_sent_to_other_processes(monkeypatch):
    sent = []
    monkeypatch.setattr(compilation, "compile_all", lambda tasks, *_: sent.extend(tasks) or 0)
    monkeypatch.setattr(backends, "load", lambda *_: None)
    rates = torch.tensor([0.9, 0.8]).as_subclass(Unsendable)
    sdk.warmup("cpu", vocab_size=V, rules=[sdk.Synthetic(rates)], progress=None)
    (task,) = [pickle.loads(pickle.dumps(task)) for task in sent if task.operation == "verify"]
    assert task.options[0].rate.tolist() == [0, 0] and task.options[0].rate.dtype == rates.dtype


def test_reports_are_compiled_for(met, untouched_memory):
    report = dict(
        return_logprobs=sdk.Logprobs("raw", 2, torch.zeros(3, 2).long()), return_masks=sdk.Masks("ids", 9)
    )
    sdk.warmup(
        "cpu", vocab_size=V, rules=["match"], **{name: [asked] for name, asked in report.items()},
        dtypes=[torch.float32], processes=0, progress=None,
    )  # fmt: skip
    warm = set(met)
    tree, keys = (
        sdk.DraftTree.chain(torch.zeros(3, 1).long()),
        dict(seeds=torch.arange(3), positions=torch.arange(3)),
    )
    sdk.verify(torch.zeros(6, V), tree, rule="match", backend="triton", **keys, **report)
    assert set(met) == warm


def attend(g, heads, layout):
    """A step of attention with any number of requests, of nodes up to the most, and any prefixes."""
    batch, most = pick(g, 1, 64), heads.max_nodes
    counts = torch.randint(1, most + 1, (batch,), generator=g)
    offsets = torch.cat((torch.zeros(1), counts.cumsum(0))).int()
    rows, longest = int(offsets[-1]), pick(g, 1, 40_000)
    none = torch.full((rows,), -1, dtype=torch.int32)
    tree = sdk.DraftTree.from_parents(
        torch.zeros(rows, dtype=torch.int64), none, offsets, max_nodes=most, max_depth=most - 1, check=False
    )
    page = (PAGE, heads.kv_heads) if layout == "NHD" else (heads.kv_heads, PAGE)
    cache = torch.zeros(1, *page, heads.head_dim).to(heads.cache_dtype or heads.dtype)
    sdk.tree_attention(
        torch.zeros(rows, heads.query_heads, heads.head_dim, dtype=heads.dtype),
        cache,
        None if heads.value_dim else cache,
        tree,
        torch.zeros(batch, -(-longest // PAGE), dtype=torch.int32),
        torch.zeros(batch, dtype=torch.int32),
        window=heads.window,
        softcap=heads.softcap,
        value_dim=heads.value_dim,
        max_prefix_len=longest,
        layout=layout,
        deterministic=heads.deterministic,
        backend="triton",
    )


@pytest.mark.parametrize(
    "heads",
    [
        sdk.Heads(8, 2, 16),
        sdk.Heads(8, 2, 16, cache_dtype=torch.int8, window=32, softcap=30.0, deterministic=True),
        sdk.Heads(16, 1, 576, value_dim=512, max_nodes=3),
    ],
)
@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_attention_of_all_sizes_of_trees(met, heads, layout):
    sdk.warmup(
        "cpu", vocab_size=V, rules=[], samplings=[], heads=[heads], layout=layout, processes=0, progress=None
    )  # fmt: skip
    kernels = Counter(name for name, _, _ in met)
    last = "_attention_paths_kernel" if heads.deterministic else "_attention_merge_kernel"
    assert kernels["_attention_splits_kernel"] and kernels[last] and len(met) <= 16
    warm, g = set(met), torch.Generator().manual_seed(2)
    for _ in range(STEPS // 10):
        attend(g, heads, layout)
    assert set(met) == warm


def test_kernels_are_compiled_in_other_processes(tmp_path):
    """And this one finds them."""
    script = textwrap.dedent("""
        import sys
        import specdec_kernels as sdk
        from bench import stub
        with stub.launches_do_nothing():
            said = []
            one = dict(vocab_size=64, rules=[], samplings=[], page_size=4, processes=2, progress=said.append)
            print(sdk.warmup("cpu", **one).kernels, sdk.warmup("cpu", **one | {"processes": 0}).kernels)
            print(*(line.split("(")[0] for line in said), sep="\\n")
    """)
    run = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    kernels, *said = run.stdout.splitlines()
    assert kernels == "3 0", run.stderr
    assert sorted(line.split(": ", 2)[1:] for line in said[:2]) == [
        ["1 of 2 compiled", said[0].split(": ")[-1]], ["2 of 2 compiled", said[1].split(": ")[-1]]
    ]  # fmt: skip
    assert {line.split(": ")[-1] for line in said} == {"commit", "count"}
    assert "error" not in run.stderr.lower()


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        (dict(vocab_size=0), ValueError, r"warmup: vocab_size must be >= 1, got 0"),
        (dict(dtypes=[torch.int8]), ValueError, r"warmup: dtypes\[0\] must be float32, bfloat16 or float16"),
        (dict(samplings=[0.8]), TypeError, r"warmup: samplings\[0\] must be a SamplingParams, got float"),
        (dict(rules=["best"]), ValueError, r"warmup: rule must be"),
        (
            dict(bonus_tokens=[torch.int8]),
            ValueError,
            r"warmup: bonus_tokens\[0\] must be int64 or int32, or N",
        ),
        (
            dict(token_dtypes=[None]),
            ValueError,
            r"warmup: token_dtypes\[0\] must be int64 or int32, got None",
        ),
        (dict(rules=5), TypeError, r"warmup: rules must be a sequence of rules, got int"),
        (dict(budgets=[(4, 0)]), ValueError, r"warmup: budgets\[0\] must be >= 1, got 0"),
        (dict(budgets=[8]), TypeError, r"warmup: budgets\[0\] must be a pair"),
        (dict(children=[("best", 2)]), ValueError, r"warmup: children\[0\] must be one of"),
        (dict(children=[("top_k", 0)]), ValueError, r"warmup: children\[0\] must be >= 1, got 0"),
        (
            dict(children=["top_k"]),
            TypeError,
            r"warmup: children\[0\] must be a pair, got str",
        ),
        (dict(draft_vocab_size=0), ValueError, r"warmup: draft_vocab_size must be >= 1, got 0"),
        (dict(draft_logits=1), TypeError, r"warmup: draft_logits must be a bool, got int"),
        (dict(token_bitmask=True), TypeError, r"warmup: token_bitmask must be a sequence of bools, got bool"),
        (
            dict(return_masks=[True]),
            TypeError,
            r"warmup: return_masks\[0\] must be a Masks or None, got bool",
        ),
        (
            dict(return_logprobs=[1]),
            TypeError,
            r"warmup: return_logprobs\[0\] must be a bool or a Logpr",
        ),
        (dict(links=[None]), TypeError, r"warmup: links\[0\] must be a bool, got NoneType"),
        (dict(aligned=2), TypeError, r"warmup: aligned must be a sequence of bools, got int"),
        (dict(edits=[1]), TypeError, r"warmup: edits\[0\] must be a LogitEdits or None, got int"),
        (dict(page_size=0), ValueError, r"warmup: page_size must be >= 1, got 0"),
        (dict(layout="DNH"), ValueError, r"warmup: layout must be one of NHD, HND, got 'DNH'"),
        (dict(max_depth=-1), ValueError, r"warmup: max_depth must be >= 0, got -1"),
        (dict(progress=3), TypeError, r"warmup: progress must be a function or None, got int"),
        (dict(heads=[(32, 8, 128)]), TypeError, r"warmup: heads\[0\] must be a Heads, got tuple"),
        (dict(processes=-1), ValueError, r"warmup: processes must be >= 0, got -1"),
    ],
)
def test_refusals(changes, error, text):
    with pytest.raises(error, match=text):
        sdk.warmup("cpu", **dict(vocab_size=V) | changes)


def test_a_device_that_triton_does_not_serve_is_refused():
    with pytest.raises(sdk.BackendUnavailable, match="backend 'triton' cannot serve this call"):
        sdk.warmup("meta", vocab_size=V)
