# SPDX-License-Identifier: Apache-2.0
"""SpeculativeVerifier: the same results as the functions, and what it counts."""

from __future__ import annotations

import pytest
import torch
from device import on_device, to_device
from paging import random_tree

import specdec_kernels as sdk
from bench.paging import block_tables

V = 7


def problem(seed, batch=5):
    g = torch.Generator().manual_seed(seed)
    tree, _ = random_tree(g, batch)
    tokens = torch.where(torch.rand(tree.tokens.shape, generator=g) < 0.15, -1, tree.tokens % V)
    tree = sdk.DraftTree(
        tokens, tree.parents, tree.cu_nodes, tree.proposals, tree.max_nodes, max(tree.max_depth, 1)
    )
    keys = dict(seeds=torch.randint(99, (batch,), generator=g), positions=torch.arange(batch))
    return 2 * torch.randn(tokens.numel(), V, generator=g), tree, keys


def counted(tree, verified, depths):
    """The same counts, request by request."""
    steps = drafted = passes = 0
    tested, accepted = [0] * depths, [0] * depths
    for b, (start, end) in enumerate(
        zip(tree.cu_nodes.tolist()[:-1], tree.cu_nodes.tolist()[1:], strict=True)
    ):
        if start == end:
            continue
        steps, passes = steps + 1, passes + tree.max_depth
        tokens, parents = tree.tokens[start:end].tolist(), tree.parents[start:end].tolist()
        drafted += sum(token >= 0 for token in tokens[1:])
        kept = [node for node in verified.path[b].tolist() if node >= 0]
        for depth, node in enumerate(kept):
            children = [c for c, parent in enumerate(parents) if c > 0 and parent == node and tokens[c] >= 0]
            if children and depth < depths:
                tested[depth] += 1
                accepted[depth] += depth + 1 < len(kept)
    return sdk.AcceptanceStats(steps, drafted, passes, tuple(tested), tuple(accepted))


def fields(stats):
    return [getattr(stats, field) for field in ("steps", "drafted", "passes", "tested", "accepted")]


def total(stats):
    return [sum(column) if isinstance(column[0], int) else tuple(map(sum, zip(*column, strict=True)))
            for column in zip(*stats, strict=True)]  # fmt: skip


@pytest.mark.parametrize("depths", [2, 12])
def test_counts_and_results(depths):
    verifier = sdk.SpeculativeVerifier(rule="match", sampling=sdk.SamplingParams(0.5), max_depth=depths)
    expected = []
    for seed in range(40):
        logits, tree, keys = problem(seed)
        verified = verifier(logits, tree, **keys)
        plain = sdk.verify(logits, tree, rule="match", sampling=sdk.SamplingParams(0.5), **keys)
        assert torch.equal(verified.tokens, plain.tokens) and torch.equal(verified.path, plain.path)
        expected.append(counted(tree, verified, depths))
    stats = verifier.statistics()
    assert fields(stats) == total(map(fields, expected))
    assert stats.accepted[0] > 20 and stats.tested[1] > stats.accepted[1] > 0
    verifier.reset_statistics()
    assert verifier.statistics() == sdk.AcceptanceStats(0, 0, 0, (0,) * depths, (0,) * depths)
    assert not verifier.state_dict()


def test_counts_of_the_kernel_on_triton():
    verifier = sdk.SpeculativeVerifier(rule="match", max_depth=3, backend="triton")
    expected = []
    for seed in range(6):
        logits, tree, keys = problem(seed)
        verified = verifier(logits, tree, **keys)
        expected.append(counted(tree, verified, 3))
    assert fields(verifier.statistics()) == total(map(fields, expected))


def per_request(tree, verified, depths):
    """The counts of each request alone."""
    for b in range(tree.batch_size):
        start, end = tree.cu_nodes[b : b + 2].tolist()
        alone = sdk.DraftTree(
            tree.tokens[start:end],
            tree.parents[start:end],
            torch.tensor([0, end - start]).int(),
            tree.proposals[start:end],
            tree.max_nodes,
            tree.max_depth,
        )
        yield fields(counted(alone, verified._replace(path=verified.path[b : b + 1]), depths))


def check_slots(steps, backend):
    """Requests come and go: a new one takes a slot after its counts were set to 0."""
    slots, depths, batch = 4, 3, 5
    verifier = sdk.SpeculativeVerifier(rule="match", max_depth=depths, slots=slots, backend=backend)
    nothing = [0, 0, 0, (0,) * depths, (0,) * depths]
    wanted, everything = [nothing] * slots, []
    for seed in range(steps):
        logits, tree, keys = problem(seed)
        at = torch.tensor([seed % slots, -1, (seed + 1) % slots, slots, seed % slots])
        verified = verifier(logits, tree, slots=at, **keys)
        for slot, one in zip(at.tolist(), per_request(tree, verified, depths), strict=True):
            everything.append(one)
            if 0 <= slot < slots:
                wanted[slot] = total([wanted[slot], one])
        if seed % 3 == 2:
            verifier.reset_statistics(torch.tensor([seed % slots, -1, slots]))
            wanted[seed % slots] = nothing
        assert [fields(one) for one in verifier.statistics_by_slot()] == wanted
    assert fields(verifier.statistics()) == total(everything)
    assert fields(verifier.statistics(3)) == wanted[3] != nothing and batch * steps == len(everything)
    verifier.reset_statistics()
    assert fields(verifier.statistics()) == nothing
    assert [fields(one) for one in verifier.statistics_by_slot()] == [nothing] * slots
    assert not verifier.state_dict()


def test_counts_of_slots():
    check_slots(40, "auto")


def test_counts_of_slots_on_triton():
    check_slots(6, "triton")


def test_slots_that_are_refused():
    logits, tree, keys = problem(3)
    call = "SpeculativeVerifier.forward: slots must"
    with pytest.raises(ValueError, match=f"{call} be given to a module with slots, got None"):
        sdk.SpeculativeVerifier(slots=2)(logits, tree, **keys)
    with pytest.raises(ValueError, match=f"{call} be None for a module without slots, got .5."):
        sdk.SpeculativeVerifier()(logits, tree, slots=torch.arange(5), **keys)
    with pytest.raises(ValueError, match="statistics: slot must be in .0, 1., got 2"):
        sdk.SpeculativeVerifier(slots=2).statistics(2)
    with pytest.raises(ValueError, match="reset_statistics: slots must be None for a module without"):
        sdk.SpeculativeVerifier().reset_statistics(torch.arange(2))
    assert sdk.SpeculativeVerifier().statistics_by_slot() == []


def test_options_of_a_call_come_before_those_of_the_module():
    logits, tree, keys = problem(3)
    verifier = sdk.SpeculativeVerifier(rule="token", sampling=sdk.SamplingParams(0.0), return_logprobs=True)
    hot = sdk.SamplingParams(5.0)
    verified = verifier(logits, tree, logits, sampling=hot, draft_sampling=sdk.SamplingParams(2.0), **keys)
    plain = sdk.verify(
        logits, tree, logits, sampling=hot, draft_sampling=sdk.SamplingParams(2.0), rule="token", **keys
    )
    assert torch.equal(verified.tokens, plain.tokens) and verified.logprobs is not None
    cold = sdk.verify(logits, tree, sampling=sdk.SamplingParams(0.0), **keys)
    assert torch.equal(verifier(logits, tree, logits).tokens, cold.tokens)


def caches_and_states(tree, batch):
    g = torch.Generator().manual_seed(1)
    caches = [torch.randn(batch * 8, 4, 2, 3, generator=g) for _ in range(2)]
    states = [torch.zeros(batch, 3)]
    snapshots = [torch.randn(tree.tokens.numel(), 3, generator=g)]
    prefix_lens = torch.arange(batch).int()
    return caches, states, snapshots, block_tables(g, batch, 8, batch * 8), prefix_lens


def test_commit_puts_caches_and_states_right():
    logits, tree, keys = problem(5)
    caches, states, snapshots, table, prefix_lens = caches_and_states(tree, 5)
    wanted, states_wanted, slots = [c.clone() for c in caches], [states[0].clone()], torch.arange(5)
    verifier = sdk.SpeculativeVerifier(rule="match", plan=sdk.CachePlan(caches, page_size=4), states=states)
    verified = verifier(logits, tree, **keys)
    committed = verifier.commit(verified, tree, table, prefix_lens, snapshots=snapshots, slots=slots)
    plain = sdk.commit_kv(wanted, verified, tree, table, prefix_lens, page_size=4)
    sdk.commit_state(verified, tree, slots, states=states_wanted, snapshots=snapshots)
    assert torch.equal(committed.lengths, plain.lengths)
    assert torch.equal(committed.lengths, prefix_lens + verified.num_tokens)
    assert all(torch.equal(a, b) for a, b in zip(caches + states, wanted + states_wanted, strict=True))
    recurrent = sdk.SpeculativeVerifier(states=states)
    assert recurrent.commit(verified, tree, snapshots=snapshots, slots=slots) is None


@pytest.mark.parametrize(
    ["options", "arguments", "text"],
    [
        (
            "",
            {},
            "SpeculativeVerifier.commit: plan or states must be given to SpeculativeVerifier, "
            "got None and no states",
        ),
        ("plan", {}, "SpeculativeVerifier.commit: block_table must be given with a plan, got None"),
        (
            "plan",
            dict(slots=True),
            "SpeculativeVerifier.commit: slots must be None without states, got Tensor",
        ),
        (
            "states",
            dict(slots=True),
            "SpeculativeVerifier.commit: snapshots must be given with states, got None",
        ),
        (
            "states",
            dict(prefix_lens=True),
            "SpeculativeVerifier.commit: prefix_lens must be None without a plan, got Tensor",
        ),
    ],
)
def test_refusals(options, arguments, text):
    logits, tree, _ = problem(5)
    caches, states, snapshots, table, prefix_lens = caches_and_states(tree, 5)
    every = dict(slots=torch.arange(5), snapshots=snapshots, block_table=table, prefix_lens=prefix_lens)
    given = dict(plan=sdk.CachePlan(caches, page_size=4), states=states)
    verifier = sdk.SpeculativeVerifier(**({options: given[options]} if options else {}))
    if options == "plan" and arguments:
        arguments = arguments | dict(block_table=True, prefix_lens=True)
    with pytest.raises(ValueError) as raised:
        verifier.commit(verifier(logits, tree), tree, **{name: every[name] for name in arguments})
    assert str(raised.value) == text


def test_rows_without_a_plan_are_refused():
    logits, tree, _ = problem(5)
    _, states, snapshots, _, _ = caches_and_states(tree, 5)
    verifier = sdk.SpeculativeVerifier(states=states)
    given = dict(snapshots=snapshots, slots=torch.arange(5), new=[torch.zeros(1)])
    rule = "^SpeculativeVerifier.commit: new must be None without a plan, got list$"
    with pytest.raises(ValueError, match=rule):
        verifier.commit(verifier(logits, tree), tree, **given)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_the_whole_step_compiles(compiler):
    logits, tree, keys = problem(6)
    results = []
    for compile_it in (False, True):
        caches, states, snapshots, table, prefix_lens = caches_and_states(tree, 5)
        plan = sdk.CachePlan(caches, page_size=4)
        verifier = to_device(sdk.SpeculativeVerifier(rule="match", plan=plan, states=states))

        def step(logits, tree, table, prefix_lens, snapshots, slots, keys, verifier=verifier):
            verified = verifier(logits, tree, **keys)
            committed = verifier.commit(verified, tree, table, prefix_lens, snapshots=snapshots, slots=slots)
            return verified.tokens, *committed

        run = on_device(torch.compile(step, fullgraph=True, backend=compiler) if compile_it else step)
        for _ in range(2):
            out = run(logits, tree, table, prefix_lens, snapshots, torch.arange(5), keys)
        results.append((*out, *verifier.plan.caches, *verifier.states, *verifier.buffers()))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_nothing_is_read_on_the_host():
    """On the meta device nothing can be read."""
    with torch.device("meta"):
        tree = sdk.DraftTree.chain(torch.ones((2, 3), dtype=torch.int64))
        plan = sdk.CachePlan([torch.zeros(8, 4, 2, 3), torch.zeros(8, 4, 2, 3)], page_size=4)
        states = [torch.zeros(2, 3)]
        verifier = sdk.SpeculativeVerifier(plan=plan, states=states, slots=2)
        verified = verifier(torch.zeros(8, V), tree, slots=torch.arange(2))
        verifier.reset_statistics(torch.arange(1))
        committed = verifier.commit(
            verified,
            tree,
            torch.zeros(2, 4, dtype=torch.int32),
            torch.zeros(2, dtype=torch.int32),
            snapshots=[torch.zeros(8, 3)],
            slots=torch.zeros(2, dtype=torch.int64),
        )
        assert committed.lengths.shape == (2,)


def test_speedups():
    perfect = sdk.AcceptanceStats(steps=4, drafted=12, passes=12, tested=(4, 4, 4), accepted=(4, 4, 4))
    assert perfect.expected_speedup(0.0) == perfect.measured_speedup(0.0) == 4
    assert perfect.expected_speedup(1.0) == 1 and perfect.warning(0.9) is None
    # Leviathan's alpha = 0.8, gamma = 5, c = 0.05: (1 - 0.8^6) / (0.2 * 1.25)
    steady = sdk.AcceptanceStats(steps=100, drafted=500, passes=500, tested=(100,), accepted=(80,))
    assert steady.expected_speedup(0.05) == pytest.approx((1 - 0.8**6) / (0.2 * 1.25))
    assert steady.expected_speedup(0.05, depth=0) == 1
    useless = sdk.AcceptanceStats(steps=10, drafted=50, passes=50, tested=(10,), accepted=(0,))
    assert useless.expected_speedup(0.1) == useless.measured_speedup(0.1) == pytest.approx(1 / 1.5)
    assert "1.00 tokens per step" in useless.warning(0.1) and "0.67x the speed" in useless.warning(0.1)
    nothing = sdk.AcceptanceStats(0, 0, 0, (0,), (0,))
    assert nothing.warning(3.0) is None and nothing.mean_accepted_length == 0
    with pytest.raises(
        ValueError, match="AcceptanceStats.expected_speedup: cost_ratio must be finite and >= 0, got -1"
    ):
        nothing.expected_speedup(-1)


def test_measured_times_decide_whether_it_pays():
    """Drafts that cost rows: by the counts a gain, by the clock a loss."""
    counts = dict(steps=100, drafted=400, passes=400, tested=(100, 20), accepted=(20, 5))
    counted = sdk.AcceptanceStats(**counts)
    assert counted.speedup is None and counted.warning(0) is None and counted.measured_speedup(0) > 1
    with pytest.raises(
        ValueError,
        match="AcceptanceStats.warning: cost_ratio must be given where no time was measured, got N",
    ):
        counted.warning()
    slow = sdk.AcceptanceStats(**counts, seconds=5.0, plain_seconds=0.0368, rows=500)
    assert slow.tokens == 125 and slow.speedup == pytest.approx(0.92)
    for text in (slow.warning(), slow.warning(0), slow.warning(cost_ratio=0.1)):
        assert "0.92x the speed" in text and "5.0 rows" in text and "125 tokens took 5 s, 4.6 s" in text
    with pytest.raises(
        ValueError, match="AcceptanceStats.warning: cost_ratio must be finite and >= 0, got -1"
    ):
        slow.warning(-1)
    fast = sdk.AcceptanceStats(**counts, seconds=2.0, plain_seconds=0.0368)
    assert fast.speedup == pytest.approx(2.3) and fast.warning() is None and fast.warning(5.0) is None
    alone = sdk.AcceptanceStats(**counts, seconds=2.0)  # no plain step was timed
    assert alone.speedup is None and alone.warning() is None and "0.42x" in alone.warning(0.5)
    assert sdk.AcceptanceStats(0, 0, 0, (0,), (0,), 1.0, 0.1).warning() is None


def test_statistics_print_in_one_line():
    counts = dict(
        steps=38, drafted=152, passes=152, tested=(38, 30) + (0,) * 62, accepted=(30, 11) + (0,) * 62
    )
    assert repr(sdk.AcceptanceStats(**counts)) == (
        "AcceptanceStats(steps=38, tokens_per_step=2.08, drafted_per_step=4.0, acceptance=0.60 (0.79, 0.37))"
    )
    timed = sdk.AcceptanceStats(**counts, seconds=3.2, plain_seconds=0.03, rows=190)
    assert repr(timed).endswith("(0.79, 0.37), rows_per_step=5.0, seconds=3.2, speedup=0.74)")
    deep = sdk.AcceptanceStats(9, 90, 90, (9,) * 64, (9,) * 64)
    assert repr(deep).count("1.00") == 9 and "1.00, ...)" in repr(deep) and "\n" not in repr(deep)
    nothing = "AcceptanceStats(steps=0, tokens_per_step=0.00, drafted_per_step=0.0, acceptance=0.00 ())"
    assert repr(sdk.AcceptanceStats(0, 0, 0, (0,), (0,))) == nothing
