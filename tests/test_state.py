# SPDX-License-Identifier: Apache-2.0
"""Recurrent states: what is committed equals decoding the accepted tokens one by one."""

from __future__ import annotations

import pytest
import torch
from device import on_device
from each import BACKENDS, QUICK
from hypothesis import given, settings
from hypothesis import strategies as st
from paging import integer, random_tree
from records import opcheck, recorded

import specdec_kernels as sdk

FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def kept_rows(tree, path):
    """Rows of the kept nodes of every request."""
    starts = tree.cu_nodes.tolist()
    return [[starts[b] + node for node in row if node >= 0] for b, row in enumerate(path.tolist())]


def slots_for(g, batch, count):
    """Distinct slots, some requests having none."""
    slots = torch.randperm(count, generator=g)[:batch]
    return torch.where(torch.rand(batch, generator=g) < 0.2, -1, slots)


def gated_delta_inputs(g, rows, heads, key_heads, dk, dv, dtype):
    keys = torch.nn.functional.normalize(torch.randn(rows, key_heads, dk, generator=g), dim=-1)
    values = torch.randn(rows, heads, dv, generator=g)
    log_decay = -torch.rand(rows, heads, generator=g)
    beta = torch.rand(rows, heads, generator=g)
    return [t.to(dtype) for t in (keys, values, log_decay, beta)]


def decode_gated_delta(S, keys, values, log_decay, beta):
    """S = a S (I - beta k k^T) + beta v k^T, with S [Dv, Dk], token by token; [H, Dk, Dv] in and out."""
    S = S.clone()
    for h in range(S.shape[0]):
        s = S[h].T
        for i in range(len(values)):
            k = keys[i, h * keys.shape[1] // S.shape[0]].to(s.dtype)
            v, b, a = (t[i, h].to(s.dtype) for t in (values, beta, log_decay))
            turn = torch.eye(len(k), dtype=s.dtype) - b * torch.outer(k, k)
            s = a.exp() * s @ turn + b * torch.outer(v, k)
        S[h] = s.T
    return S


def mamba2_inputs(g, rows, heads, groups, p, n, dtype):
    x, B = torch.randn(rows, heads, p, generator=g), torch.randn(rows, groups, n, generator=g)
    dt, A = torch.rand(rows, heads, generator=g), -torch.rand(heads, generator=g) * 2
    return [t.to(dtype) for t in (x, B, dt)] + [A]


def decode_mamba2(S, x, B, dt, A):
    """S = exp(dt A) S + dt x B^T, token by token in S's dtype, [H, P, N] in and out."""
    S = S.clone()
    for i in range(len(x)):
        for h in range(S.shape[0]):
            step, b = dt[i, h].to(S.dtype), B[i, h * B.shape[1] // S.shape[0]].to(S.dtype)
            S[h] = (step * A[h].to(S.dtype)).exp() * S[h] + step * torch.outer(x[i, h].to(S.dtype), b)
    return S


GATED_DELTA = ("keys", "values", "log_decay", "beta")
MAMBA2 = ("x", "B", "dt", "A")
MODELS = {
    "gated_delta": (sdk.replay_gated_delta, GATED_DELTA, gated_delta_inputs, decode_gated_delta),
    "mamba2": (sdk.replay_mamba2, MAMBA2, mamba2_inputs, decode_mamba2),
}


def layers(names, *inputs):
    """Keyword arguments of a replay: for each name the tensors of all layers."""
    return dict(zip(names, map(list, zip(*inputs, strict=True)), strict=True))


def check_replay(kind, backend, seed, dtype, state_dtype):
    replay, names, draw, decode = MODELS[kind]
    g = torch.Generator().manual_seed(seed)
    batch, heads, count = integer(g, 1, 5), (1, 2, 4)[integer(g, 0, 3)], integer(g, 1, 3)
    groups = heads // (1 + integer(g, 0, 2) * (heads > 1))
    tree, path = random_tree(g, batch)
    rows = tree.tokens.numel()
    slots = slots_for(g, batch, batch + 2)
    sizes = [(integer(g, 1, 20), integer(g, 1, 40)) for _ in range(count)]
    inputs = [draw(g, rows, heads, groups, *size, dtype) for size in sizes]
    states = [torch.randn(batch + 2, heads, *size, generator=g).to(state_dtype) for size in sizes]
    if seed % 2:  # kept the other way round, in a pool with gaps
        pools = [torch.full((batch + 2, 3, heads, *size[::-1]), 7.0, dtype=state_dtype) for size in sizes]
        for pool, state in zip(pools, states, strict=True):
            pool[:, 1] = state.transpose(2, 3)
        states = [pool[:, 1].transpose(2, 3) for pool in pools]
    before = [state.clone() for state in states]
    replay(path, tree, slots, states=states, **layers(names, *inputs), backend=backend)
    if seed % 2:
        assert all(bool((pool[:, ::2] == 7).all()) for pool in pools)
    untouched = set(range(batch + 2))
    for b, kept in enumerate(kept_rows(tree, path)):
        slot = int(slots[b])
        if slot < 0 or not kept:
            continue
        untouched.discard(slot)
        for state, old, given_inputs in zip(states, before, inputs, strict=True):
            own = [t[kept] if t.dim() > 1 else t for t in given_inputs]
            exact = decode(old[slot].double(), *own)
            if state_dtype == torch.float64:
                torch.testing.assert_close(state[slot], exact, rtol=1e-13, atol=1e-13)
                continue
            plain = decode(old[slot].float(), *own).to(state_dtype)
            scale = exact.abs().max()
            budget = 2 * (plain.double() - exact).abs().max() + torch.finfo(state_dtype).eps * scale
            assert (state[slot].double() - exact).abs().max() <= budget
    for state, old in zip(states, before, strict=True):
        assert torch.equal(state[list(untouched)], old[list(untouched)])


@pytest.mark.parametrize("kind", MODELS)
@settings(max_examples=40)
@given(seed=st.integers(0, 2**32))
def test_replay_equals_sequential_decoding_in_float64(kind, seed):
    check_replay(kind, "auto", seed, torch.float64, torch.float64)


@pytest.mark.parametrize("backend", QUICK)
@pytest.mark.parametrize("kind", MODELS)
@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), dtype=st.sampled_from(FLOATS), state=st.sampled_from(FLOATS))
def test_replay_equals_sequential_decoding_within_rounding(kind, backend, seed, dtype, state):
    check_replay(kind, backend, seed, dtype, state)


@pytest.mark.skipif("triton" not in BACKENDS, reason="needs triton")
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("seed", range(5))
def test_triton_replays_within_rounding(kind, seed):
    check_replay(kind, "triton", seed, FLOATS[seed % 3], FLOATS[seed // 3])


@pytest.mark.parametrize(
    "mutate",
    [
        lambda path: torch.where(torch.arange(path.shape[1]) == 0, -1, path),  # keeps nothing
        lambda path: torch.cat([path[:, :-1], torch.full_like(path[:, :1], -1)], 1),  # forgets the last
        lambda path: torch.where(path >= 0, torch.arange(path.shape[1]), -1).int(),  # depths for nodes
    ],
)
def test_a_wrong_path_is_noticed(monkeypatch, mutate):
    for kind, (replay, *others) in MODELS.items():

        def mutant(path, *rest, replay=replay, **options):
            return replay(mutate(path).int(), *rest, **options)

        monkeypatch.setitem(MODELS, kind, (mutant, *others))
        with pytest.raises(AssertionError):
            for seed in range(10):
                check_replay(kind, "auto", seed, torch.float32, torch.float32)


@pytest.mark.parametrize("backend", QUICK)
@settings(max_examples=40)
@given(seed=st.integers(0, 2**32))
def test_snapshots_are_copied_bit_for_bit(backend, seed):
    check_snapshots(backend, seed)


@pytest.mark.skipif("triton" not in BACKENDS, reason="needs triton")
@pytest.mark.parametrize("seed", range(4))
def test_triton_copies_snapshots_bit_for_bit(seed):
    check_snapshots("triton", seed)


def check_snapshots(backend, seed):
    g = torch.Generator().manual_seed(seed)
    batch = integer(g, 1, 6)
    tree, path = random_tree(g, batch)
    rows, slots = tree.tokens.numel(), slots_for(g, batch, batch + 3)
    kinds = [((3, 4), torch.float32), ((5,), torch.bfloat16), ((), torch.float64), ((2, 2, 3), torch.int8)]
    pools = [torch.randint(-9, 9, (batch + 3, 2, *shape), generator=g).to(dtype) for shape, dtype in kinds]
    snapshots = [
        torch.randint(-9, 9, (rows, 3, *shape), generator=g).to(dtype)[:, 1] for shape, dtype in kinds
    ]
    wanted = [pool.clone() for pool in pools]
    for b, kept in enumerate(kept_rows(tree, path)):
        if kept and slots[b] >= 0:
            for want, snapshot in zip(wanted, snapshots, strict=True):
                want[slots[b], 1] = snapshot[kept[-1]]
    slots = slots.int() if seed % 2 else slots
    states = [pool[:, 1] for pool in pools]
    sdk.commit_state(path, tree, slots, states=states, snapshots=snapshots, backend=backend)
    assert all(torch.equal(pool, want) for pool, want in zip(pools, wanted, strict=True))


@pytest.mark.parametrize("backend", QUICK)
@settings(max_examples=40)
@given(seed=st.integers(0, 2**32))
def test_windows_hold_the_latest_inputs(backend, seed):
    check_windows(backend, seed)


@pytest.mark.skipif("triton" not in BACKENDS, reason="needs triton")
@pytest.mark.parametrize("seed", range(5))
def test_triton_windows_hold_the_latest_inputs(seed):
    check_windows("triton", seed)


def check_windows(backend, seed):
    g = torch.Generator().manual_seed(seed)
    batch, taps, channels = integer(g, 1, 5), integer(g, 1, 6), integer(g, 1, 9)
    dtype = [torch.float32, torch.bfloat16, torch.int8, torch.float64][seed % 4]
    tree, path = random_tree(g, batch)
    rows, slots = tree.tokens.numel(), slots_for(g, batch, batch + 2)
    window = torch.randint(-99, 99, (batch + 2, channels, taps), generator=g).to(dtype)
    inputs = torch.randint(-99, 99, (rows, channels), generator=g).to(dtype)
    wanted = window.clone()
    for b, kept in enumerate(kept_rows(tree, path)):
        if slots[b] >= 0:
            for row in kept:  # one token at a time
                wanted[slots[b]] = torch.cat([wanted[slots[b], :, 1:], inputs[row].unsqueeze(1)], 1)
    other = window.transpose(1, 2).clone(memory_format=torch.contiguous_format)
    for which in (window, other.transpose(1, 2)):
        sdk.replay_conv(path, tree, slots, windows=[which], inputs=[inputs], backend=backend)
        assert torch.equal(which, wanted)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif("cpu" not in QUICK, reason="needs the native core")
def test_requests_that_share_a_slot_follow_each_other(two_threads):
    requests, channels = 16, 4000
    tree = sdk.DraftTree.chain(torch.zeros(requests, 1, dtype=torch.int64))
    verified = sdk.verify(torch.zeros(2 * requests, 4), tree, sampling=sdk.SamplingParams(temperature=0.0))
    inputs, slots = [torch.randn(2 * requests, channels)], torch.zeros(requests, dtype=torch.int64)
    expected, windows = [torch.zeros(1, channels, 4)], [torch.zeros(1, channels, 4)]
    sdk.replay_conv(verified, tree, slots, windows=expected, inputs=inputs, backend="reference")
    for _ in range(60):
        sdk.replay_conv(verified, tree, slots, windows=windows, inputs=inputs, backend="cpu")
        assert torch.equal(windows[0], expected[0])
        windows[0].zero_()


def test_snapshots_and_replay_agree():
    """The state after each node as a snapshot, or its inputs: the same state is committed."""
    g = torch.Generator().manual_seed(8)
    tree, path = random_tree(g, 4, empty=0.0)
    rows, slots = tree.tokens.numel(), torch.arange(4)
    inputs = gated_delta_inputs(g, rows, 2, 1, 8, 8, torch.float32)
    state = torch.randn(4, 2, 8, 8, generator=g)
    starts, snapshots = tree.cu_nodes.tolist(), torch.zeros(rows, 2, 8, 8)
    for b in range(4):
        for row in range(starts[b], starts[b + 1]):
            parent = int(tree.parents[row])
            start = state[b] if parent < 0 else snapshots[starts[b] + parent]
            snapshots[row] = decode_gated_delta(start, *(t[row : row + 1] for t in inputs))
    replayed = state.clone()
    sdk.commit_state(path, tree, slots, states=[state], snapshots=[snapshots])
    sdk.replay_gated_delta(path, tree, slots, states=[replayed], **layers(GATED_DELTA, inputs))
    torch.testing.assert_close(replayed, state, rtol=1e-5, atol=1e-5)


def test_float64_is_served_by_the_reference():
    tree, path = random_tree(torch.Generator().manual_seed(0), 2, empty=0.0)
    rows, slots = tree.tokens.numel(), torch.arange(2)
    one, vector = torch.ones(rows, 1), torch.ones(rows, 1, 2)
    inputs = layers(GATED_DELTA, (vector, vector, one, one))
    state = torch.zeros(2, 1, 2, 2, dtype=torch.float64)
    with pytest.raises(sdk.BackendUnavailable, match="float64"):
        sdk.replay_gated_delta(path, tree, slots, states=[state], **inputs, backend="cpu")
    sdk.replay_gated_delta(path, tree, slots, states=[state], **inputs)
    assert bool((state != 0).all())


# Operators


def calls(g):
    """Every operation on states: its positional and its keyword arguments, what is written first."""
    tree, path = random_tree(g, 3, empty=0.0)
    rows, kept = tree.tokens.numel(), (path, tree, torch.tensor([2, 0, -1]))
    state = torch.randn(4, 2, 3, 5, generator=g)
    delta = gated_delta_inputs(g, rows, 2, 1, 3, 5, torch.float32)
    mamba = mamba2_inputs(g, rows, 2, 1, 3, 5, torch.float32)
    return {
        "commit_state": (kept, dict(states=[state], snapshots=[torch.randn(rows, 2, 3, 5, generator=g)])),
        "replay_conv": (
            kept,
            dict(windows=[state[:, 0].clone()], inputs=[torch.randn(rows, 3, generator=g)]),
        ),
        "replay_gated_delta": (kept, dict(states=[state.clone()], **layers(GATED_DELTA, delta))),
        "replay_mamba2": (kept, dict(states=[state.clone()], **layers(MAMBA2, mamba))),
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["commit_state", "replay_conv", "replay_gated_delta", "replay_mamba2"])
def test_operators_pass_opcheck_and_compile_whole(monkeypatch, backend, name):
    torch.compiler.reset()  # what other cases compiled counts against the limit of recompilations
    kept, tensors = calls(torch.Generator().manual_seed(9))[name]
    written, (state,) = next(iter(tensors.items()))
    function = getattr(sdk, name)
    copy = state.clone()

    def step(state):
        function(*kept, **tensors | {written: [state]}, backend=backend)
        return state.sum()

    total = on_device(torch.compile(step, fullgraph=True, backend="aot_eager"))(copy)
    call = recorded(monkeypatch, name, lambda: torch.testing.assert_close(total, step(state)))
    assert torch.equal(copy, state)
    opcheck(*call)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_do_not_hinder(backend):
    kept, tensors = calls(torch.Generator().manual_seed(9))["replay_mamba2"]
    for name in MAMBA2:
        tensors[name][0].requires_grad_()
    sdk.replay_mamba2(*kept, **tensors, backend=backend)
    assert not tensors["states"][0].requires_grad


# What is refused


@pytest.mark.parametrize(
    ["name", "error", "text", "change"],
    [
        ("commit_state", ValueError, "states must hold at least one tensor, got none", dict(states=[])),
        ("commit_state", TypeError, "states[0] must be a tensor, got int", dict(states=[3])),
        (
            "commit_state",
            ValueError,
            "snapshots must hold a tensor for each of 1 layers, got 0",
            dict(snapshots=[]),
        ),
        (
            "commit_state",
            ValueError,
            "snapshots[0] must have shape [R, ...] with the state's row",
            dict(snapshots=[torch.zeros(1, 2, 3, 5)]),
        ),
        (
            "commit_state",
            TypeError,
            "snapshots[0] must have the dtype of what it is copied to, float32, got float16",
            dict(snapshots=[torch.zeros(1).half()]),
        ),
        (
            "commit_state",
            ValueError,
            "states[0] must have contiguous rows",
            dict(states=[torch.zeros(4, 2, 5, 3).transpose(2, 3)]),
        ),
        (
            "commit_state",
            ValueError,
            "states[0] must not overlap itself",
            dict(states=[torch.zeros(1, 2, 3, 5).expand(4, -1, -1, -1)]),
        ),
        (
            "commit_state",
            ValueError,
            "slots must have shape [B] = [3], got [2]",
            dict(slots=torch.zeros(2).int()),
        ),
        (
            "commit_state",
            TypeError,
            "slots must have dtype int32 | int64, got float32",
            dict(slots=torch.zeros(3)),
        ),
        ("commit_state", TypeError, "tree must be a DraftTree, got int", dict(tree=1)),
        (
            "replay_conv",
            ValueError,
            "windows[0] must have shape [slots, C, W], got [4, 2]",
            dict(windows=[torch.zeros(4, 2)]),
        ),
        ("replay_conv", ValueError, "inputs[0] must have shape [R, C]", dict(inputs=[torch.zeros(1, 3)])),
        (
            "replay_gated_delta",
            ValueError,
            "states[0] must have shape [slots, H, Dk, Dv], got [4, 2]",
            dict(states=[torch.zeros(4, 2)]),
        ),
        (
            "replay_gated_delta",
            TypeError,
            "states[0] must have dtype float32 | bfloat16 | float16 | float64, got int64",
            dict(states=[torch.zeros(4, 2, 3, 5).long()]),
        ),
        (
            "replay_gated_delta",
            ValueError,
            "keys[0] must have shape [R, Hk, Dk] with a number of heads that divides H = 2",
            dict(keys=[torch.zeros(1, 3, 3)]),
        ),
        (
            "replay_gated_delta",
            ValueError,
            "values[0] must have shape [R, H, Dv]",
            dict(values=[torch.zeros(1, 1, 5)]),
        ),
        ("replay_gated_delta", ValueError, "beta[0] must have shape [R, H]", dict(beta=[torch.zeros(1, 1)])),
        ("replay_mamba2", ValueError, "A[0] must have shape [H] = [2], got [3]", dict(A=[torch.zeros(3)])),
        ("replay_mamba2", ValueError, "dt[0] must have shape [R, H]", dict(dt=[torch.zeros(3)])),
    ],
)
def test_refusals(name, error, text, change):
    kept, tensors = calls(torch.Generator().manual_seed(9))[name]
    arguments = dict(zip(("verified", "tree", "slots"), kept, strict=True)) | tensors | change
    with pytest.raises(error) as raised:
        getattr(sdk, name)(**arguments)
    assert str(raised.value).startswith(f"{name}: ") and text in str(raised.value)
