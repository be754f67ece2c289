# SPDX-License-Identifier: Apache-2.0
"""Results of `verify` in the arrays of engines, against plain loops over requests."""

from __future__ import annotations

import inspect
import types

import pytest
import torch
from cases import random_case
from each import BACKENDS
from synchronisation import no_synchronisation

import specdec_kernels as sdk
from specdec_kernels import _compiling
from specdec_kernels._ops import backends
from specdec_kernels.integrations import layouts

KEEPS = -77  # what entries that are not written hold


def filled_sglang(verified, tree, dtype=torch.int32, spare=0):
    batch, rows = verified.path.shape[0], tree.tokens.shape[0]
    arrays = dict(
        predicts=torch.full((rows + spare,), KEEPS, dtype=dtype),
        accept_index=torch.full(verified.path.shape, KEEPS, dtype=dtype),
        accept_token_num=torch.full((batch,), KEEPS, dtype=dtype),
    )
    sdk.fill_sglang(verified, tree, **arrays)
    arrays["predicts"] = arrays["predicts"][:rows]
    return {name: array.tolist() for name, array in arrays.items()}


def plain_sglang(verified, tree):
    """As a loop that walks from row to row and leaves a token at each."""
    starts = tree.cu_nodes.tolist()
    predicts, index, accepted = [KEEPS] * tree.tokens.shape[0], [], []
    for b, path in enumerate(verified.path.tolist()):
        count = int(verified.num_tokens[b])
        kept = [starts[b] + node for node in path[:count]]
        for row, token in zip(kept, verified.tokens[b].tolist(), strict=False):
            predicts[row] = token
        index.append(kept + [-1] * (len(path) - count))
        accepted.append(max(count - 1, 0))
    return dict(predicts=predicts, accept_index=index, accept_token_num=accepted)


def filled_tensorrt_llm(verified, spare=3, tokens=True):
    batch, width = verified.path.shape
    full = lambda *shape: torch.full(shape, KEEPS, dtype=torch.int32)  # noqa: E731
    room = batch * (width - 1) + spare
    arrays = dict(
        accepted_lengths=full(batch), accepted_lengths_cumsum=full(batch + 1), paths_offsets=full(room)
    )
    if tokens:
        arrays["accepted_tokens"] = full(room)
    sdk.fill_tensorrt_llm(verified, **arrays)
    return {name: array.tolist() for name, array in arrays.items()}


def plain_tensorrt_llm(verified, spare=3):
    """As a loop that packs one request after the other, the root of each path left out."""
    batch, width = verified.path.shape
    sums, paths, tokens = [0], [], []
    for b, accepted in enumerate(verified.num_accepted.tolist()):
        paths += [node - 1 for node in verified.path[b, 1 : accepted + 1].tolist()]
        tokens += verified.tokens[b, :accepted].tolist()
        sums.append(sums[-1] + accepted)
    rest = [KEEPS] * (batch * (width - 1) + spare - len(paths))
    return dict(
        accepted_lengths=verified.num_tokens.tolist(),
        accepted_lengths_cumsum=sums,
        paths_offsets=paths + rest,
        accepted_tokens=tokens + rest,
    )


@pytest.mark.parametrize("seed", range(30))
def test_arrays_are_what_plain_loops_write(seed):
    """Ragged trees, empty requests among them."""
    given = random_case(seed, hostile=seed % 2 == 1)
    given["sampling"] = sdk.SamplingParams(0.3)
    verified = sdk.verify(**given, rule="token")
    for spare in (0, 1):
        assert filled_sglang(verified, given["tree"], spare=spare) == plain_sglang(verified, given["tree"])
    assert filled_tensorrt_llm(verified) == plain_tensorrt_llm(verified)


def test_a_tree_of_sglang_by_hand():
    """Two requests of four nodes; the second one accepts nothing."""
    parents = torch.tensor([[-1, 0, 0, 2], [-1, 0, 1, 2]])
    tree = sdk.DraftTree.from_parents(torch.tensor([[-1, 5, 6, 7], [-1, 1, 2, 3]]), parents)
    target = torch.eye(9)[[6, 0, 7, 4, 8, 2, 3, 4]]
    verified = sdk.verify(target, tree, sampling=sdk.SamplingParams(temperature=0.0))
    assert filled_sglang(verified, tree, torch.int64) == dict(
        predicts=[6, KEEPS, 7, 4, 8, KEEPS, KEEPS, KEEPS],
        accept_index=[[0, 2, 3, -1], [4, -1, -1, -1]],
        accept_token_num=[2, 0],
    )
    assert filled_tensorrt_llm(verified, spare=0, tokens=False) == dict(
        accepted_lengths=[3, 1],
        accepted_lengths_cumsum=[0, 2, 2],
        paths_offsets=[1, 2, KEEPS, KEEPS, KEEPS, KEEPS],
    )


def test_offsets_that_are_none_write_nothing_beside_the_arrays():
    """Rows of an offset out of range are dropped, and write over no other."""
    given = random_case(3, batch=3)
    verified = sdk.verify(**given, rule="match")
    rows = given["tree"].tokens.numel()
    for offsets in ([-9, 4, 2, 10**6], [10**6] * 4, [rows - 1] * 4):
        tree = sdk.DraftTree(
            given["tree"].tokens, given["tree"].parents, torch.tensor(offsets).int(),
            given["tree"].proposals, 8, given["tree"].max_depth,
        )  # fmt: skip
        for spare in (0, 1):
            found = filled_sglang(verified, tree, spare=spare)
            index = {row for line in found["accept_index"] for row in line if 0 <= row < rows}
            written = {row for row, token in enumerate(found["predicts"]) if token != KEEPS}
            assert len(found["predicts"]) == rows and written == index


def test_filling_does_not_synchronise():
    given = random_case(5)
    verified, tree = sdk.verify(**given, rule="match"), given["tree"]
    batch, width = verified.path.shape
    arrays = dict(
        predicts=torch.empty(tree.tokens.shape[0]).int(),
        accept_index=torch.empty(batch, width).int(),
        accept_token_num=torch.empty(batch).int(),
    )
    with no_synchronisation():
        sdk.fill_sglang(verified, tree, **arrays)
        sdk.fill_tensorrt_llm(
            verified,
            accepted_lengths=torch.empty(batch).int(),
            accepted_lengths_cumsum=torch.empty(batch + 1).int(),
            paths_offsets=torch.empty(batch * width).int(),
        )


def test_no_requests():
    tree = sdk.DraftTree.chain(torch.empty((0, 2), dtype=torch.int64))
    verified = sdk.verify(torch.zeros(0, 5), tree)
    assert filled_sglang(verified, tree) == dict(predicts=[], accept_index=[], accept_token_num=[])
    assert filled_tensorrt_llm(verified, spare=0)["accepted_lengths_cumsum"] == [0]


def test_too_little_room_is_refused():
    given = random_case(5)
    verified = sdk.verify(**given, rule="match")
    batch, width = verified.path.shape
    with pytest.raises(
        ValueError, match=r"^fill_sglang: predicts must have shape \[R\] = \[\d+\] or \[R \+ 1\]"
    ):
        filled_sglang(verified, given["tree"], spare=2)
    with pytest.raises(ValueError, match=r"^fill_tensorrt_llm: paths_offsets must have at least B \* max_"):
        sdk.fill_tensorrt_llm(
            verified,
            accepted_lengths=torch.empty(batch).int(),
            accepted_lengths_cumsum=torch.empty(batch + 1).int(),
            paths_offsets=torch.empty(batch * (width - 1) - 1).int(),
        )


@pytest.mark.skipif("triton" not in BACKENDS, reason="needs the emulator")
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_paths_are_entered_in_one_launch_on_triton(monkeypatch, dtype):
    """Of ragged trees, and of offsets that are none; after `warmup` nothing is compiled."""
    import ptx_emulator
    from specdec_kernels import triton
    from specdec_kernels.triton import dispatch

    monkeypatch.setattr(backends, "filler", lambda *given: triton)
    _compiling.Task("paths", (torch.int64, dtype, dtype)).run(torch.device("cpu"))
    before = len(dispatch.Launch.met)
    for seed in range(4):
        given = random_case(seed, hostile=seed % 2 == 1)
        verified, tree = sdk.verify(**given, rule="match"), given["tree"]
        with ptx_emulator.count() as launches:
            filled = filled_sglang(verified, tree, dtype, spare=seed % 2)
        assert filled == plain_sglang(verified, tree) and len(launches) == 1
    batch = tree.batch_size
    for offsets in ([-9] + [10**6] * batch, [tree.tokens.numel() - 1] * (batch + 1)):
        other = sdk.DraftTree(
            tree.tokens, tree.parents, torch.tensor(offsets).int(), tree.proposals, 8, tree.max_depth
        )
        found = filled_sglang(verified, other, dtype)
        index = {row for line in found["accept_index"] for row in line}
        assert {row for row, token in enumerate(found["predicts"]) if token != KEEPS} <= index
    assert len(dispatch.Launch.met) == before


EDITS = {
    "nodes counted from the root": ("path[:, 1:] - 1", "path[:, 1:]"),
    "inclusive sums": ("cumsum(0), (1, 0))", "cumsum(0), (0, 1))"),
    "rows of the first request": ("torch.add(path, starts,", "torch.add(path, starts[0],"),
    "the next token counted": ("copy_(verified.num_accepted)", "copy_(verified.num_tokens)"),
    "the next token not counted": ("copy_(verified.num_tokens)", "copy_(verified.num_accepted)"),
    "no token after the last node": ("clamp(*_bounds(count, ", "clamp(*_bounds(count - 2, "),
    "the last node's place is spare": ("remainder_(count + 1)", "remainder_(count)"),
}


@pytest.mark.parametrize("mutant", EDITS)
def test_mistaken_arrays_are_noticed(monkeypatch, mutant):
    source = inspect.getsource(layouts)
    assert source.count(EDITS[mutant][0]) == 1
    edited = types.ModuleType("edited")
    edited.__dict__.update(__package__=layouts.__package__)
    exec(source.replace(*EDITS[mutant]), edited.__dict__)
    monkeypatch.setattr(sdk, "fill_sglang", edited.fill_sglang)
    monkeypatch.setattr(sdk, "fill_tensorrt_llm", edited.fill_tensorrt_llm)
    wrong = False
    for seed in range(12):
        given = random_case(seed, batch=3)
        given["sampling"] = sdk.SamplingParams(0.3)
        verified = sdk.verify(**given, rule="token")
        wrong |= filled_sglang(verified, given["tree"]) != plain_sglang(verified, given["tree"])
        wrong |= filled_tensorrt_llm(verified, spare=0) != plain_tensorrt_llm(verified, spare=0)
    assert wrong
