# SPDX-License-Identifier: Apache-2.0
"""What `device.py` does to values on their way to the device and back, with copies where there is no GPU."""

from __future__ import annotations

import pytest
import torch
from device import FUNCTIONS, METHODS, MOVED, moving, to_device
from each import BACKENDS, DEVICE

import specdec_kernels as sdk
from specdec_kernels._ops.calls import OPERATORS


def test_views_keep_their_form_and_share_what_they_shared():
    whole = torch.arange(24.0)
    views = (whole, whole[3:].as_strided((4, 2), (5, 2)), whole[:1].expand(7), whole.view(torch.uint8)[5:])
    taken = to_device(views)
    for view, there in zip(views, taken, strict=True):
        assert there.device.type == DEVICE and there.dtype == view.dtype
        assert there.shape == view.shape and there.stride() == view.stride()
        assert there.storage_offset() == view.storage_offset()
        assert torch.equal(there.cpu(), view)
        assert there.untyped_storage()._cdata == taken[0].untyped_storage()._cdata
        assert there.untyped_storage()._cdata != whole.untyped_storage()._cdata
    taken[0].fill_(7)
    assert (taken[1] == 7).all() and torch.equal(whole, torch.arange(24.0))


def test_holders_and_containers_are_built_anew_around_their_tensors():
    caches = list(torch.zeros(2, 3, 4, 5).unbind(0))
    tree = sdk.DraftTree.chain(torch.ones(2, 3, dtype=torch.int64))
    given = dict(
        tree=tree,
        depths=tree.depths,
        plan=sdk.CachePlan(caches, page_size=4),
        vocab=sdk.DraftVocab(torch.tensor([2, 0]), 3),
        sampling=sdk.SamplingParams(torch.tensor([0.5]), top_k=3, order="min_p_last"),
        others=[(caches[1], None), "text", torch.zeros(2, device="meta"), sdk.Status.NAN],
    )
    taken = to_device(given)
    assert taken["tree"].max_depth == 3 and taken["tree"].depths is taken["depths"]
    assert taken["tree"].tokens.tolist() == tree.tokens.tolist()
    plan = taken["plan"]
    assert plan.table[:, 0].tolist() == [cache.data_ptr() for cache in plan.caches]
    assert not set(plan.table[:, 0].tolist()) & set(given["plan"].table[:, 0].tolist())
    assert taken["vocab"].columns.tolist() == [1, -1, 0] and taken["vocab"].vocab_size == 3
    assert type(taken["sampling"]) is sdk.SamplingParams and taken["sampling"][1:] == given["sampling"][1:]
    (alias, none), text, meta, status = taken["others"]
    assert alias.data_ptr() == plan.caches[1].data_ptr() and none is None
    assert (text, meta.device.type, status) == ("text", "meta", sdk.Status.NAN)
    for tensor in (taken["depths"], taken["vocab"].ids, taken["sampling"].temperature, alias):
        assert tensor.device.type == DEVICE


def test_a_module_is_taken_with_its_counts():
    verifier = sdk.SpeculativeVerifier(states=[torch.zeros(2, 3)])
    taken = to_device(verifier)
    taken.counts[0] += 1
    assert (int(taken.counts[0]), int(verifier.counts[0])) == (1, 0)
    assert taken.counts.device.type == taken.states[0].device.type == DEVICE


def test_writes_come_back_and_results_are_what_was_given():
    memory, out = torch.zeros(3, 4), torch.zeros(2)

    @moving
    def write(view, out):
        assert view.device.type == DEVICE and view.data_ptr() != memory[:, 1:].data_ptr()
        view.fill_(5)
        return out, view[0], view + 1

    same, row, fresh = write(memory[:, 1:], out)
    assert same is out and row.data_ptr() == memory[0, 1:].data_ptr()
    assert memory.tolist() == [[0, 5, 5, 5]] * 3 and row.tolist() == [5] * 3
    assert fresh.device.type == "cpu" and fresh.tolist() == [[6] * 3] * 3


def test_counts_come_back():
    counts = sdk.TokenCounts(1, 4, 9)
    verified = sdk.verify(torch.eye(9)[:2] * 99, sdk.DraftTree.chain(torch.tensor([[0]])), rule="match")
    moving(sdk.TokenCounts.update_)(counts, verified)
    assert counts.sizes.tolist() == [2] and counts.output[0, :2].tolist() == [1, 1]


def test_writes_come_back_from_a_call_that_raises():
    state = torch.zeros(2)

    @moving
    def fail(states):
        states[0][1] = 3
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail([state])
    assert state.tolist() == [0, 3]


def test_callbacks_run_on_the_host():
    asked = []

    def double(tensor):
        asked.append(tensor)
        return dict(doubled=[tensor * 2])

    @moving
    def call(function, tensor):
        return function(tensor)["doubled"][0] + tensor

    tensor = torch.ones(2)
    assert call(double, tensor).tolist() == [3, 3]
    assert asked[0].device.type == "cpu"


def test_the_native_backend_stays_on_the_host():
    seen = []
    moving(lambda tensor, backend: seen.append(tensor))(tensor := torch.ones(2), backend="cpu")
    assert seen[0] is tensor


@pytest.mark.skipif(DEVICE != "cpu", reason="a GPU notices by itself")
def test_a_tensor_made_without_a_device_is_noticed():
    made = moving(lambda tensor, backend: tensor + torch.arange(2))
    with pytest.raises(RuntimeError, match="meta"):
        made(torch.ones(2), backend="triton")
    assert made(torch.ones(2), backend="reference").tolist() == [1, 2]


def test_every_operator_is_taken_there():
    """`count_tokens`, `select_nodes` and `update_budget` are methods."""
    methods = {"edit_logits", "count_tokens", "select_nodes", "update_budget"}
    named = {*OPERATORS, "draft_token", "grow_tree", "edit_logits_"} - methods
    assert named <= set(FUNCTIONS)
    every = [*((sdk, name) for name in FUNCTIONS), *METHODS]
    taken = [name for name in every if hasattr(getattr(*name), "__wrapped__")]
    assert taken == (every if MOVED else [])


@pytest.mark.parametrize("backend", BACKENDS)
def test_operators_write_where_the_test_looks(backend):
    """A state among others, in memory with gaps."""
    memory = torch.zeros(4, 6)
    state, snapshots = memory[1:3, :4], torch.arange(12.0).view(3, 4)
    tree = sdk.DraftTree.from_parents(torch.tensor([[-1, 5, 6]]), torch.tensor([[-1, 0, 0]]))
    path = torch.tensor([[0, 2]], dtype=torch.int32)
    sdk.commit_state(path, tree, torch.tensor([1]), states=[state], snapshots=[snapshots], backend=backend)
    expected = torch.zeros(4, 6)
    expected[2, :4] = snapshots[2]
    assert torch.equal(memory, expected)
