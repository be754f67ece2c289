# SPDX-License-Identifier: Apache-2.0
"""Trees: constructors, what is derived from them, and what they refuse."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.utils._pytree as pytree
from hypothesis import given
from hypothesis import strategies as st
from synchronisation import Synchronises, no_synchronisation
from trees import DERIVED, assert_same, batches, random_parents, tokens_for

from specdec_kernels import DraftTree, Proposal, _kept
from specdec_kernels import _tree_arrays as arrays

CPU = torch.device("cpu")


def naive(parents):
    """Depths, first children, next siblings and ancestor sets of one tree."""
    depths, ancestors = [], []
    for node, parent in enumerate(parents):
        depths.append(0 if node == 0 else depths[parent] + 1)
        ancestors.append({node} | (ancestors[parent] if node else set()))
    first, after = [-1] * len(parents), [-1] * len(parents)
    for node in range(len(parents)):
        children = [child for child, parent in enumerate(parents) if parent == node]
        first[node : node + 1] = children[:1] or [-1]
        for elder, younger in zip(children, children[1:], strict=False):
            after[elder] = younger
    return depths, first, after, ancestors


def sets_of(bits):
    return [
        {64 * w + j for w in range(len(row)) for j in range(64) if row[w] >> j & 1} for row in bits.tolist()
    ]


def test_a_topology_of_paths_is_copied_to_a_device_once():
    """So that its later calls can be captured in a CUDA graph."""
    tokens, paths = torch.tensor([[-1, 5, 6, 7]] * 2), [(0,), (1,), (0, 0)]
    before = DraftTree.from_paths(tokens, paths, check=False)
    with no_synchronisation():
        after = DraftTree.from_paths(tokens, paths, check=False)
        with pytest.raises(Synchronises):
            DraftTree.from_paths(tokens, [*paths[:2], (1, 0)], check=False)
    assert_same(before, after)
    after.parents.fill_(0)
    assert_same(before, DraftTree.from_paths(tokens, paths, check=False))


def test_what_a_capture_makes_is_not_kept(monkeypatch):
    """It is there only after a replay. What was kept is never given up: a graph may read it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    made = arrays.chain_parts(97, 1, 0, CPU)
    assert arrays.chain_parts(97, 1, 0, CPU) is not made
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    made = arrays.chain_parts(97, 1, 0, CPU)
    monkeypatch.setattr(_kept, "MOST_KEPT", 1)
    assert arrays.chain_parts(98, 1, 0, CPU) is not arrays.chain_parts(98, 1, 0, CPU)
    assert arrays.chain_parts(97, 1, 0, CPU) is made


@given(batches())
def test_derived_fields_are_what_the_parents_say(parents):
    tree = DraftTree.from_parents(tokens_for(parents), torch.tensor(parents))
    expected = [naive(p) for p in parents]
    assert tree.depths.tolist() == [d for e in expected for d in e[0]]
    assert tree.first_child.tolist() == [d for e in expected for d in e[1]]
    assert tree.next_sibling.tolist() == [d for e in expected for d in e[2]]
    assert sets_of(tree.ancestor_bits) == [d for e in expected for d in e[3]]
    assert tree.max_nodes == len(parents[0])
    assert tree.max_depth == max(max(e[0]) for e in expected)
    for field in ("depths", "first_child", "next_sibling"):
        assert getattr(tree, field).dtype == torch.int32


@given(batches(), st.data())
def test_constructors_agree(parents, data):
    tokens = tokens_for(parents)
    batch, nodes = tokens.shape
    kinds = torch.tensor(
        data.draw(st.lists(st.integers(0, 2), min_size=batch * nodes, max_size=batch * nodes))
    )
    kinds = kinds.reshape(batch, nodes)
    tree = DraftTree.from_parents(tokens, torch.tensor(parents), proposals=kinds)
    first, after = tree.first_child.reshape(batch, nodes), tree.next_sibling.reshape(batch, nodes)
    mask = torch.tensor([[[j in a for j in range(nodes)] for a in naive(p)[3]] for p in parents])
    flat = torch.tensor([n for p in parents for n in p])
    cu_nodes = torch.arange(batch + 1) * nodes
    assert_same(tree, DraftTree.from_links(tokens, first, after, proposals=kinds))
    assert_same(tree, DraftTree.from_mask(tokens, mask, proposals=kinds))
    assert_same(tree, DraftTree.from_parents(tokens.flatten(), flat, cu_nodes, proposals=kinds.flatten()))


@given(random_parents(9))
def test_paths_agree_with_parents(parents):
    ranks, paths = {}, [()]
    for parent in parents[1:]:
        paths.append((*paths[parent], ranks.get(parent, 0)))
        ranks[parent] = ranks.get(parent, 0) + 1
    tokens = torch.arange(18).reshape(2, 9)
    expected = DraftTree.from_parents(
        tokens, torch.tensor([parents, parents]), proposals=Proposal.INDEPENDENT
    )
    assert_same(expected, DraftTree.from_paths(tokens, paths[1:], proposals=Proposal.INDEPENDENT))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.data())
def test_flat_batches_of_any_sizes(sizes, data):
    parents = [data.draw(random_parents(size)) if size else () for size in sizes]
    flat = torch.tensor(
        [n for p in parents for n in p] + [77, 88], dtype=torch.int32
    )  # two rows of no request
    cu_nodes = torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()])
    tree = DraftTree.from_parents(torch.arange(flat.numel()), flat, cu_nodes)
    owned = sum(sizes)
    expected = [naive(p) for p in parents]
    assert tree.depths[:owned].tolist() == [d for e in expected for d in e[0]]
    assert tree.first_child[:owned].tolist() == [d for e in expected for d in e[1]]
    assert tree.next_sibling[:owned].tolist() == [d for e in expected for d in e[2]]
    assert sets_of(tree.ancestor_bits[:owned]) == [d for e in expected for d in e[3]]
    assert (tree.batch_size, tree.max_nodes) == (len(sizes), max(sizes))


def test_one_launch_copies_what_chains_share():
    """As on a GPU; what is kept stays as it is when a copy is written to."""
    for _ in range(2):
        copies = arrays.copied_at_once(3, 2, 1, CPU)
        for copy, part in zip(copies, arrays.chain_parts(3, 2, 1, CPU)[1:], strict=True):
            assert copy.dtype == part.dtype and copy.tolist() == part.tolist()
            copy.fill_(7)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16])
@pytest.mark.parametrize("shape", [(2, 3), (1, 1), (3, 0), (0, 2)])
def test_chains_of_one_length_are_the_same_without_the_native_core(shape, dtype, monkeypatch):
    drafts = torch.arange(24).view(4, 6)[: shape[0], : 2 * shape[1] : 2].to(dtype)
    made = arrays.uniform_chains(drafts, 2)
    monkeypatch.setattr(arrays.backends, "filler", lambda *_: None)
    for one, other in zip(made, arrays.uniform_chains(drafts, 2), strict=True):
        assert one.dtype == other.dtype and one.tolist() == other.tolist()
    assert made[0].view(shape[0], shape[1] + 1)[:, 1:].tolist() == drafts.tolist()


def test_chain_of_a_matrix():
    tree = DraftTree.chain(torch.tensor([[4, 5, 6], [7, 8, 9]]), torch.tensor([3, 1]))
    assert tree.tokens.tolist() == [-1, 4, 5, 6, -1, 7, -1, -1]
    assert tree.parents.tolist() == [-1, 0, 1, 2] * 2
    assert tree.cu_nodes.tolist() == [0, 4, 8]
    assert set(tree.proposals.tolist()) == {Proposal.INDEPENDENT}
    assert (tree.max_nodes, tree.max_depth) == (4, 3)
    parents = torch.tensor([[-1, 0, 1, 2]] * 2)
    tokens = tree.tokens.reshape(2, 4)
    assert_same(tree, DraftTree.from_parents(tokens, parents, proposals=Proposal.INDEPENDENT))


def test_flat_chain():
    tokens = torch.tensor([3, 4, 5, 6, 7, 8])
    tree = DraftTree.chain(tokens, cu_nodes=torch.tensor([0, 3, 3, 5]), proposal=Proposal.POINT)
    assert tree.tokens.tolist() == tokens.tolist()
    assert tree.parents.tolist()[:5] == [-1, 0, 1, -1, 0]
    assert (tree.batch_size, tree.max_nodes, tree.max_depth) == (3, 3, 2)


def test_chain_without_drafts_and_batch_without_requests():
    tree = DraftTree.chain(torch.empty((2, 0), dtype=torch.int64))
    assert (tree.tokens.tolist(), tree.parents.tolist(), tree.max_depth) == ([-1, -1], [-1, -1], 0)
    empty = DraftTree.chain(torch.empty((0, 3), dtype=torch.int64))
    assert (empty.batch_size, empty.tokens.numel(), empty.max_depth) == (0, 0, 3)
    none = torch.empty((0, 4), dtype=torch.int64)
    for field in DERIVED:
        assert getattr(DraftTree.from_parents(none, none), field).shape[0] == 0


def test_links_keep_their_order_and_may_leave_slots_unused():
    first = torch.tensor([[3, -1, -1, 4, -1, -1]])
    after = torch.tensor([[-1, 2, -1, 1, -1, -1]])
    tree = DraftTree.from_links(torch.tensor([[-1, 5, 6, 7, 8, -1]]), first, after)
    assert tree.parents.tolist() == [-1, 0, 0, 0, 3, 0]
    assert tree.first_child.tolist() == first[0].tolist()
    assert tree.next_sibling.tolist() == after[0].tolist()


def test_more_than_64_nodes_take_more_words():
    parents = torch.arange(-1, 199).unsqueeze(0)
    tree = DraftTree.from_parents(torch.zeros((1, 200), dtype=torch.int64), parents)
    assert tree.ancestor_bits.shape == (200, 4)
    assert sets_of(tree.ancestor_bits[-1:]) == [set(range(200))]
    assert tree.depths[-1] == 199


def test_bounds_are_kept():
    tokens, parents = torch.zeros((2, 3), dtype=torch.int64), torch.tensor([[-1, 0, 0], [-1, 0, 0]])
    tree = DraftTree.from_parents(tokens, parents, max_nodes=8, max_depth=5)
    assert (tree.max_nodes, tree.max_depth) == (8, 5)
    assert tree.ancestor_bits.shape == (6, 1)
    with pytest.raises(
        ValueError, match=r"DraftTree.from_parents: max_depth must be >= 2, what the trees need, got 1"
    ):
        DraftTree.from_parents(tokens, torch.tensor([[-1, 0, 1], [-1, 0, 0]]), max_depth=1)
    with pytest.raises(
        ValueError, match=r"DraftTree.from_parents: max_nodes must be >= 3, what the trees need, got 2"
    ):
        DraftTree.from_parents(tokens, parents, max_nodes=2)
    with pytest.raises(ValueError, match=r"DraftTree.chain: max_depth must be >= 3"):
        DraftTree.chain(tokens, max_depth=2)


def test_trees_are_frozen():
    tree = DraftTree.chain(torch.zeros((1, 2), dtype=torch.int64))
    with pytest.raises(dataclasses.FrozenInstanceError):
        tree.tokens = torch.zeros(3)


MALFORMED = {
    "parent after child": ([[-1, 0, 0], [-1, 2, 0]], "parent 2 at request 1 node 1"),
    "parent itself": ([[-1, 1, 0]], "parent 1 at request 0 node 1"),
    "two roots": ([[-1, 0, 0], [-1, 0, -1]], "parent -1 at request 1 node 2"),
    "root is not node 0": ([[1, -1, 0]], "parent 1 at request 0 node 0"),
    "outside": ([[-1, 0, 7]], "parent 7 at request 0 node 2"),
}


@pytest.mark.parametrize("why", MALFORMED)
def test_malformed_parents_are_refused(why):
    parents, got = MALFORMED[why]
    parents = torch.tensor(parents)
    tokens = torch.zeros_like(parents)
    rule = (
        r"DraftTree.from_parents: parents must be -1 at node 0, the root, and 0 <= parent < node elsewhere, "
        r"got "
    )
    with pytest.raises(ValueError, match=rule + got):
        DraftTree.from_parents(tokens, parents)
    with pytest.raises(ValueError, match=rule + got):
        DraftTree.from_parents(tokens.flatten(), parents.flatten(), torch.arange(len(parents) + 1) * 3)


@pytest.mark.parametrize("why", MALFORMED)
def test_unchecked_malformed_trees_stay_in_bounds(why):
    parents = torch.tensor(MALFORMED[why][0])
    tree = DraftTree.from_parents(torch.zeros_like(parents), parents, check=False)
    for field in ("first_child", "next_sibling"):
        assert bool(((getattr(tree, field) >= -1) & (getattr(tree, field) < 3)).all())
    assert bool(((tree.depths >= 0) & (tree.depths < 3)).all())
    assert tree.ancestor_bits.shape == (parents.numel(), 1)


@pytest.mark.parametrize(
    "cu_nodes, got",
    [([0, 3, 2], "2 after 3 at request 1"), ([0, 2, 9], "9 after 2"), ([-1, 2, 3], "-1 after 0")],
)
def test_malformed_offsets_are_refused(cu_nodes, got):
    tokens = torch.zeros(3, dtype=torch.int64)
    rule = r"cu_nodes must not decrease and stay within \[0, R\] = \[0, 3\], got " + got
    with pytest.raises(ValueError, match="DraftTree.from_parents: " + rule):
        DraftTree.from_parents(tokens, torch.tensor([-1, 0, 1]), torch.tensor(cu_nodes))
    with pytest.raises(ValueError, match="DraftTree.chain: " + rule):
        DraftTree.chain(tokens, cu_nodes=torch.tensor(cu_nodes))


@pytest.mark.parametrize(
    "first, after, got",
    [
        ([1, 9, -1], [-1, 2, -1], "next_token must be -1 or a node in .*, got 9 at request 1 node 1"),
        ([1, -1, -1], [-1, -1, -1], "got 0 links to request 1 node 2"),
        ([1, -1, -1], [-1, 2, 1], "got 2 links to request 1 node 1"),
        ([1, 0, -1], [-1, 2, -1], "got 1 links to request 1 node 0"),
        ([-1, -1, -1], [-1, 2, 1], "parent -1 at request 1 node 1"),
        ([-1, 2, 1], [-1, -1, -1], "parent 2 at request 1 node 1"),
    ],
)
def test_malformed_links_are_refused(first, after, got):
    fine = [1, 2, -1], [-1, -1, -1]
    tokens = torch.tensor([[-1, 5, 6], [-1, 5, 6]])
    with pytest.raises(ValueError, match=got):
        DraftTree.from_links(tokens, torch.tensor([fine[0], first]), torch.tensor([fine[1], after]))
    unchecked = torch.tensor([fine[0], first]), torch.tensor([fine[1], after])
    tree = DraftTree.from_links(tokens, *unchecked, check=False)
    assert bool((tree.parents < 3).all())


@pytest.mark.parametrize(
    "mask, got",
    [
        ([[1, 0, 0], [1, 1, 0], [0, 1, 1]], r"got \[1, 2\] at request 0 node 2"),
        ([[1, 0, 0], [1, 1, 0], [0, 0, 1]], r"got \[2\] at request 0 node 2"),
        ([[1, 0, 0], [1, 0, 0], [1, 0, 1]], r"got \[0\] at request 0 node 1"),
        ([[1, 0, 0], [1, 1, 1], [1, 0, 1]], r"got \[0, 1, 2\] at request 0 node 1"),
    ],
)
def test_malformed_masks_are_refused(mask, got):
    tokens = torch.zeros((1, 3), dtype=torch.int64)
    with pytest.raises(ValueError, match="DraftTree.from_mask: mask must hold each node, .*" + got):
        DraftTree.from_mask(tokens, torch.tensor([mask], dtype=torch.bool))


@pytest.mark.parametrize("paths", [[(0, 0), (0,)], [(0,), (0,)], [(), (0,)]])
def test_malformed_paths_are_refused(paths):
    with pytest.raises(
        ValueError, match="DraftTree.from_paths: paths must be distinct, not empty, and each after the path"
    ):
        DraftTree.from_paths(torch.zeros((1, 3), dtype=torch.int64), paths)


@pytest.mark.parametrize(
    "paths, got",
    [
        ([(0,), (2,)], r"got \(2,\) at node 2 of every request, no \(1,\)"),
        ([(1,), (2,)], r"got \(1,\) at node 1 of every request, no \(0,\)"),
        ([(0,), (0, 1)], r"got \(0, 1\) at node 2 of every request, no \(0, 0\)"),
        ([(0,), (-1,)], r"got \(-1,\) at node 2"),
    ],
)
def test_gaps_between_the_ranks_of_siblings_are_refused(paths, got):
    rule = "DraftTree.from_paths: paths must rank the children of a node 0, 1, 2, ... without a gap"
    with pytest.raises(ValueError, match=f"{rule}, {got}"):
        DraftTree.from_paths(torch.zeros((1, 3), dtype=torch.int64), paths)


def test_siblings_are_verified_in_the_order_of_their_paths():
    tree = DraftTree.from_paths(torch.tensor([[-1, 5, 6]]), [(1,), (0,)])
    assert tree.first_child.tolist()[0] == 1 and tree.next_sibling.tolist() == [-1, 2, -1]


def test_unknown_proposals_are_refused():
    tokens, parents = torch.zeros((1, 3), dtype=torch.int64), torch.tensor([[-1, 0, 0]])
    with pytest.raises(
        ValueError, match="proposals must be values of Proposal, 0, 1 or 2, got 3 at request 0 node 2"
    ):
        DraftTree.from_parents(tokens, parents, proposals=torch.tensor([[0, 1, 3]]))
    with pytest.raises(ValueError, match="proposals must be values of Proposal, 0, 1 or 2, got 5"):
        DraftTree.from_parents(tokens, parents, proposals=5)


def test_wrong_shapes_and_dtypes_are_refused():
    tokens = torch.zeros((2, 3), dtype=torch.int64)
    with pytest.raises(
        ValueError, match=r"DraftTree.chain: lengths must have shape \[B\] = \[2\], got \[3\]"
    ):
        DraftTree.chain(tokens, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(
        ValueError,
        match=r"DraftTree.chain: tokens must have shape \[B, K\], \[R\] with cu_nodes, or \[S\] with "
        r"cu_drafts, got \[3\]",
    ):
        DraftTree.chain(tokens[0])
    with pytest.raises(ValueError, match=r"DraftTree.chain: lengths must be None with cu_nodes"):
        DraftTree.chain(tokens[0], torch.ones(1, dtype=torch.int64), cu_nodes=torch.tensor([0, 3]))
    with pytest.raises(TypeError, match=r"DraftTree.chain: tokens must have dtype int64 \| .*, got float32"):
        DraftTree.chain(tokens.float())
    with pytest.raises(TypeError, match=r"DraftTree.chain: tokens must be a tensor, got list"):
        DraftTree.chain([[1, 2]])
    with pytest.raises(
        ValueError,
        match=r"DraftTree.from_parents: parents must have shape tokens.shape = \[2, 3\], got \[2, 2\]",
    ):
        DraftTree.from_parents(tokens, tokens[:, :2])
    with pytest.raises(TypeError, match=r"DraftTree.from_mask: mask must have dtype bool, got int64"):
        DraftTree.from_mask(tokens, torch.zeros((2, 3, 3), dtype=torch.int64))
    with pytest.raises(
        ValueError, match=r"DraftTree.from_mask: mask must have shape \[B, N, N\] = \[2, 3, 3\]"
    ):
        DraftTree.from_mask(tokens, torch.zeros((2, 3, 2), dtype=torch.bool))
    with pytest.raises(
        ValueError, match=r"DraftTree.from_paths: tokens must have shape \[B, len\(paths\) \+ 1\] = \[2, 2\]"
    ):
        DraftTree.from_paths(tokens, [(0,)])
    with pytest.raises(TypeError, match=r"DraftTree: parents must have dtype int32, got int64"):
        DraftTree(tokens[0], tokens[0], torch.tensor([0, 3]).int(), tokens[0].byte(), 3, 2)


@pytest.mark.parametrize("lengths, got", [([0, 4], "4 at request 1"), ([-1, 3], "-1 at request 0")])
def test_lengths_beyond_the_tokens_are_refused_where_values_are_read(lengths, got):
    tokens, lengths = torch.zeros((2, 3), dtype=torch.int64), torch.tensor(lengths)
    rule = rf"^DraftTree.chain: lengths must be in \[0, K\] = \[0, 3\], got {got}$"
    for check in (None, True):
        with pytest.raises(ValueError, match=rule):
            DraftTree.chain(tokens, lengths, check=check)
    assert DraftTree.chain(tokens, lengths, check=False).tokens.shape == (8,)


def test_chains_are_no_deeper_than_their_bound():
    tokens, cu_nodes = torch.zeros(5, dtype=torch.int64), torch.tensor([0, 2, 5])
    with pytest.raises(
        ValueError, match="^DraftTree.chain: max_depth must be >= 2, what the trees need, got 1$"
    ):
        DraftTree.chain(tokens, cu_nodes=cu_nodes, max_depth=1)
    assert DraftTree.chain(tokens, cu_nodes=cu_nodes, max_depth=1, check=False).max_depth == 1


def test_links_are_two_tensors():
    rows, offsets = torch.zeros(3, dtype=torch.int32), torch.tensor([0, 3]).int()
    given = (rows.long(), rows - 1, offsets, rows.byte(), 3, 2)
    with pytest.raises(TypeError, match="^DraftTree: links must be None or two tensors, got list$"):
        DraftTree(*given, [rows, rows])
    with pytest.raises(ValueError, match=r"^DraftTree: links\[1\] must have shape \[R\] = \[3\], got \[2\]$"):
        DraftTree(*given, (rows, rows[:2]))


def test_trees_on_other_devices_are_built_without_reading_them():
    tokens = torch.zeros((2, 4), dtype=torch.int64, device="meta")
    tree = DraftTree.chain(tokens, torch.zeros(2, dtype=torch.int64, device="meta"))
    assert tree.tokens.shape == (10,) and tree.ancestor_bits.shape == (10, 1)
    tree = DraftTree.from_parents(tokens, tokens.int(), max_depth=3)
    assert tree.depths.shape == tree.first_child.shape == (8,)
    assert DraftTree.from_links(tokens, tokens, tokens, max_depth=3).parents.shape == (8,)
    mask = torch.zeros((2, 4, 4), dtype=torch.bool, device="meta")
    assert DraftTree.from_mask(tokens, mask, max_depth=3).parents.shape == (8,)


def test_trees_are_pytrees():
    tokens = torch.tensor([[-1, 5, 6]])
    links = torch.tensor([[2, -1, -1]]), torch.tensor([[-1, -1, 1]])
    for tree in (DraftTree.chain(tokens), DraftTree.from_links(tokens, *links)):
        leaves, spec = pytree.tree_flatten(tree)
        assert_same(tree, pytree.tree_unflatten(leaves, spec))
        assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)
        names = pytree.tree_map(lambda leaf: str(leaf.dtype), tree)
        assert (names.tokens, names.parents, names.max_depth) == (
            "torch.int64",
            "torch.int32",
            tree.max_depth,
        )


def test_trees_are_built_inside_compiled_functions():
    tokens, parents = torch.arange(10).reshape(2, 5), torch.tensor([[-1, 0, 0, 1, 2]] * 2)

    def build(tokens, parents):
        chain = DraftTree.chain(tokens)
        tree = DraftTree.from_parents(tokens, parents, max_depth=2)
        return chain, tree, chain.depths, tree.ancestor_bits, tree.next_sibling

    chain, tree, depths, bits, siblings = torch.compile(build, fullgraph=True, backend="aot_eager")(
        tokens, parents
    )
    assert_same(chain, DraftTree.chain(tokens))
    assert_same(tree, DraftTree.from_parents(tokens, parents))
    assert torch.equal(depths, chain.depths) and torch.equal(bits, tree.ancestor_bits)
    assert torch.equal(siblings, tree.next_sibling)


def test_a_proposal_by_name_is_refused():
    with pytest.raises(
        TypeError, match="chain: proposal must be a Proposal, such as Proposal.POINT, got 'sampled'"
    ):
        DraftTree.chain(torch.tensor([[1, 2]]), proposal="sampled")
