# SPDX-License-Identifier: Apache-2.0
"""Chains from sums of drafted tokens, and trees that are refreshed in place."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
import torch.utils._pytree as pytree
from each import BACKENDS, QUICK
from hypothesis import given
from hypothesis import strategies as st
from synchronisation import Synchronises, no_synchronisation
from torch.utils._python_dispatch import TorchDispatchMode
from trees import DERIVED, FIELDS, assert_same, batches, random_parents, tokens_for

import ptx_emulator
import specdec_kernels as sdk
from specdec_kernels import DraftTree, Proposal, _compiling
from specdec_kernels import _topology as topology
from specdec_kernels import _tree_arrays as arrays
from specdec_kernels._ops import backends
from specdec_kernels.integrations import steps
from specdec_kernels.integrations.steps import (
    chain_of_step,
    chains_of_step,
    changed,
    links_of_step,
    outputs_of_step,
)

COUNTS = st.lists(st.integers(0, 4), max_size=5)


@given(COUNTS, st.integers(0, 3), st.sampled_from([torch.int32, torch.int64]))
def test_chains_of_sums_are_chains_with_roots(counts, padding, dtype):
    drafted = torch.arange(10, 10 + sum(counts) + padding)
    sums = torch.tensor(counts, dtype=dtype).cumsum(0).to(dtype)
    rows, offsets = [], [0]
    for count, chain in zip(counts, drafted.split([*counts, padding])[: len(counts)], strict=True):
        rows += [-1, *chain.tolist()]
        offsets.append(offsets[-1] + 1 + count)
    tree = DraftTree.chain(drafted, cu_drafts=sums)
    wanted = DraftTree.chain(torch.tensor(rows, dtype=torch.int64), cu_nodes=torch.tensor(offsets))
    owned = offsets[-1]
    assert tree.tokens.numel() == owned + padding and torch.equal(tree.cu_nodes, wanted.cu_nodes)
    for field in ("tokens", "parents", "proposals", "depths", "first_child"):
        assert torch.equal(getattr(tree, field)[:owned], getattr(wanted, field)), field
    assert (tree.max_nodes, tree.max_depth) == (wanted.max_nodes, wanted.max_depth)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16])
def test_backends_fill_the_arrays_that_torch_makes(dtype, monkeypatch):
    """What is asked for without a tree's values being read: the torch operators are the specification."""
    g = torch.Generator().manual_seed(7)
    for trial in range(20):
        counts = torch.randint(5, (trial % 6,), generator=g)
        padding = trial % 3 == 0
        drafts = torch.randint(99, (int(counts.sum()) + padding,), generator=g).to(dtype)
        nodes = trial % 7 + 1
        parents = [(-1, *(int(torch.randint(i, (), generator=g)) for i in range(1, nodes)))] * 2
        links = [link.to(dtype) for link in links_of(parents).values()]
        tokens = torch.randint(99, (2, nodes - 1), generator=g).to(dtype)

        sums = counts.cumsum(0).to(dtype)

        def made(sums=sums, drafts=drafts, tokens=tokens, links=links, nodes=nodes):
            flat = DraftTree.chain(drafts, cu_drafts=sums, max_depth=4, check=False)
            root = torch.nn.functional.pad(tokens, (1, 0), value=-1)
            tree = DraftTree.from_links(root, *links, max_depth=nodes, check=False)
            return flat, tree, links_of_step(tokens, *links, nodes)

        ours = made()
        with monkeypatch.context() as torchs:
            torchs.setattr(backends, "filler", lambda *given: None)
            theirs = made()
        owned = int(counts.sum()) + len(counts)
        for mine, other in zip(ours, theirs, strict=True):
            rows = owned if mine is ours[0] else mine.tokens.numel()
            for field in FIELDS:
                new, old = getattr(mine, field), getattr(other, field)
                assert torch.equal(new[:rows], old[:rows]) and new.dtype == old.dtype, field
        assert_same(ours[1], ours[2])
        assert bool((ours[0].tokens[owned:] == -1).all())  # of nobody, and no memory of others


def written_elsewhere(batch, depth, kind, device):
    chain, drafted = KEPT_CHAIN(batch, depth, kind, device)
    return chain, drafted.clone()


KEPT_CHAIN, KEPT_CHAINS, KEPT_LINKS = steps._chain, steps._chains, steps.linked


def chains_by_torch(drafts, kind):
    roots, *parts = arrays.chain_parts(*drafts.shape, kind, drafts.device)
    return [torch.cat((roots, drafts.long()), 1).view(-1), *(part.clone() for part in parts)]


FILLS_NOTHING = SimpleNamespace(
    enter_links=lambda *given: None, enter_chains=lambda *given: None, uniform_chains=chains_by_torch
)
STALE = {
    "nothing": {},
    "nothing by torch": {(backends, "filler"): lambda *given: None},
    "tokens of chains": {(steps, "_chain"): written_elsewhere},
    "tokens and links": {(backends, "filler"): lambda *given: FILLS_NOTHING},
    "derived of links": {(steps, "linked"): lambda *size: changed(KEPT_LINKS(*size), _refreshed=False)},
    "derived of chains": {(steps, "_chains"): lambda *size: changed(KEPT_CHAINS(*size), _refreshed=False)},
}


@pytest.mark.parametrize("stale", STALE)
def test_kept_trees_have_nothing_of_the_steps_before(monkeypatch, stale):
    """Steps of other tokens, links, batches and sizes, and the first again; all is read in every step."""
    for place, mutant in STALE[stale].items():
        monkeypatch.setattr(*place, mutant)
    g = torch.Generator().manual_seed(2)
    same, star, cu_drafts = True, False, [[1, 4], [3, 4], [0, 2, 4], [4, 4], [1], [2, 4]]
    for sums, (batch, nodes) in zip(cu_drafts, ((2, 4), (2, 4), (3, 4), (2, 6), (1, 2), (2, 4)), strict=True):
        star = not star
        parents = [(-1, *(0 if star else v for v in range(nodes - 1)))] * batch
        links, tokens = links_of(parents), torch.randint(99, (batch, nodes - 1), generator=g)
        roots = torch.nn.functional.pad(tokens, (1, 0), value=-1)
        pairs = [(links_of_step(tokens, *links.values(), nodes), DraftTree.from_links(roots, **links))]
        flat, ends = torch.randint(99, (sums[-1],), generator=g), torch.tensor(sums).int()
        for kind in Proposal:
            pairs.append((chain_of_step(tokens.int(), kind), DraftTree.chain(tokens, proposal=kind)))
            fresh = DraftTree.chain(flat, cu_drafts=ends, proposal=kind, max_nodes=6, max_depth=5)
            pairs.append((chains_of_step(flat.int(), ends, 5, kind), fresh))
        for kept, fresh in pairs:
            assert kept.max_nodes == fresh.max_nodes
            same &= kept._is_chain == fresh._is_chain
            names = (*FIELDS, *DERIVED)
            same &= all(torch.equal(getattr(kept, name), getattr(fresh, name)) for name in names)
    assert same == stale.startswith("nothing")


def test_threads_keep_trees_and_outputs_of_their_own():
    tokens, cpu = torch.tensor([[7, 8]]), torch.device("cpu")
    make = lambda: (chain_of_step(tokens).tokens, outputs_of_step(1, 3, cpu).buffer)  # noqa: E731
    with ThreadPoolExecutor(1) as other:
        theirs = other.submit(make).result()
    for ours, again, apart in zip(make(), make(), theirs, strict=True):
        assert ours is again and ours is not apart


@pytest.mark.parametrize("rule", ["match", "token", "traversal"])
@pytest.mark.parametrize("backend", QUICK)
def test_chains_of_sums_are_verified_as_chains_of_a_matrix(backend, rule):
    g = torch.Generator().manual_seed(1)
    lengths, target, draft = torch.tensor([3, 0, 2]), torch.randn(3, 4, 20), torch.randn(3, 4, 20)
    tokens = torch.randint(20, (3, 3), generator=g)
    keys = dict(seeds=torch.arange(3), positions=torch.arange(3), rule=rule, backend=backend)
    matrix = sdk.verify(target, DraftTree.chain(tokens, lengths), draft.view(12, 20), **keys)
    inside = torch.arange(4) <= lengths[:, None]
    tree = DraftTree.chain(tokens[inside[:, 1:]], cu_drafts=lengths.cumsum(0), max_depth=3)
    flat = sdk.verify(target[inside], tree, draft[inside], **keys)
    for ours, theirs in zip(flat, matrix, strict=True):
        assert ours is None or torch.equal(ours, theirs)


def test_chains_of_sums_do_not_synchronise_where_their_depth_is_bounded():
    tokens, sums = torch.tensor([7, 8, 9]), torch.tensor([2, 2, 3])
    with no_synchronisation():
        tree = DraftTree.chain(tokens, cu_drafts=sums, max_depth=4, check=False)
        with pytest.raises(Synchronises):
            DraftTree.chain(tokens, cu_drafts=sums, check=False)
    assert (tree.max_nodes, tree.max_depth) == (5, 4)
    assert tree.tokens.tolist() == [-1, 7, 8, -1, -1, 9]


@pytest.mark.parametrize(
    "sums, got",
    [([5, 2, 3], "5 after 0 at request 0"), ([2, 1, 3], "1 after 2 at request 1"), ([-4, 2, 3], "-4 after")],
)
def test_sums_that_are_none_are_refused_or_stay_in_bounds(sums, got):
    tokens, sums = torch.tensor([7, 8, 9]), torch.tensor(sums)
    rule = r"^DraftTree.chain: cu_drafts must not decrease and stay within \[0, S\] = \[0, 3\], got "
    with pytest.raises(ValueError, match=rule + got):
        DraftTree.chain(tokens, cu_drafts=sums)
    tree = DraftTree.chain(tokens, cu_drafts=sums, max_depth=3, check=False)
    assert set(tree.tokens.tolist()) <= {-1, 7, 8, 9} and tree.tokens.shape == (6,)
    verified = sdk.verify(torch.zeros(6, 10), tree)
    assert bool(((verified.tokens >= -1) & (verified.tokens < 10)).all())


def test_sums_go_with_flat_tokens_alone():
    tokens, sums = torch.tensor([7, 8, 9]), torch.tensor([2, 3])
    for given_, error, message in (
        (dict(cu_nodes=sums), ValueError, r"cu_nodes must be None with cu_drafts, got \[2\]"),
        (dict(lengths=sums), ValueError, "lengths must be None with cu_drafts, got"),
        (dict(cu_drafts=sums.float()), TypeError, "cu_drafts must have dtype"),
        (dict(cu_drafts=sums[None]), ValueError, r"cu_drafts must have shape \[B\], got \[1, 2\]"),
    ):
        with pytest.raises(error, match=f"^DraftTree.chain: {message}"):
            DraftTree.chain(tokens, **{"cu_drafts": sums, **given_})
    with pytest.raises(ValueError, match=r"tokens must have shape \[S\] with cu_drafts, got \[1, 3\]"):
        DraftTree.chain(tokens[None], cu_drafts=sums)


# Refreshing.


def links_of(parents):
    tree = DraftTree.from_parents(tokens_for(parents), torch.tensor(parents))
    shape = len(parents), len(parents[0])
    return dict(next_token=tree.first_child.view(shape), next_sibling=tree.next_sibling.view(shape))


def topology_of(parents, by):
    return links_of(parents) if by == "links" else dict(parents=torch.tensor(parents))


def made(parents, by, tokens=None, **bounds):
    tokens = tokens_for(parents) if tokens is None else tokens
    if by == "links":
        return DraftTree.from_links(tokens, **links_of(parents), **bounds)
    return DraftTree.from_parents(tokens, torch.tensor(parents), **bounds)


@st.composite
def two_batches(draw):
    before = draw(batches())
    nodes = st.just(len(before[0])).flatmap(random_parents)
    return before, draw(st.lists(nodes, min_size=len(before), max_size=len(before)))


@given(two_batches(), st.sampled_from(["links", "parents"]), st.sets(st.sampled_from(DERIVED)), st.booleans())
def test_a_refreshed_tree_is_the_tree_that_would_be_made(pair, by, asked, check):
    before, after = pair
    bounds = dict(max_nodes=len(before[0]), max_depth=len(before[0]))
    tree = made(before, by, **bounds)
    held = {name: getattr(tree, name) for name in (*FIELDS, *asked)}
    tokens, kinds = tokens_for(after) + 100, torch.full((len(after), len(after[0])), 2)
    assert tree.refresh_(tokens, proposals=kinds, check=check, **topology_of(after, by)) is tree
    wanted = made(after, by, tokens, proposals=Proposal.WITHOUT_REPLACEMENT, **bounds)
    assert_same(tree, wanted)
    for name, tensor in held.items():  # a captured graph has their addresses
        assert getattr(tree, name).data_ptr() == tensor.data_ptr(), name
        assert torch.equal(tensor, getattr(wanted, name)), name


class Captured(TorchDispatchMode):
    """Records operators and runs them again on the same tensors, as a CUDA graph does."""

    def __init__(self):
        super().__init__()
        self.ran = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        self.ran.append((function, args, kwargs or {}, results))
        return results

    def replay(self):
        for function, args, kwargs, results in self.ran:
            again = function(*args, **kwargs)
            for old, new in zip(pytree.tree_leaves(results), pytree.tree_leaves(again), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def stale(by):
    """Whether anything is not what the parents say after replays of a captured `refresh_`: what was asked for
    before it, and what was asked for after it."""
    batches = [(-1, 0, 0, 0)], [(-1, 0, 1, 1)], [(-1, 0, 1, 2)]
    wrong = False
    for before, after in (DERIVED, ()), ((), DERIVED), (DERIVED[:1], DERIVED[1:]):
        tree = made(batches[0], by, max_nodes=4, max_depth=3, check=False)
        held = [getattr(tree, name) for name in before]
        buffers = {"tokens": tokens_for(batches[1]).clone(), **topology_of(batches[1], by)}
        with Captured() as graph:
            tree.refresh_(**buffers, check=False)
        for parents in batches:
            given_ = {"tokens": tokens_for(parents), **topology_of(parents, by)}
            for name, buffer in buffers.items():
                buffer.copy_(given_[name])
            graph.replay()
            wanted = made(parents, by, max_nodes=4, max_depth=3)
            for name in (*FIELDS, *before, *after):
                wrong |= not torch.equal(getattr(tree, name), getattr(wanted, name))
            for name, tensor in zip(before, held, strict=True):
                wrong |= not torch.equal(tensor, getattr(wanted, name))
    return wrong


@pytest.mark.parametrize("by", ["links", "parents"])
def test_nothing_is_stale_after_replays(by):
    assert not stale(by)


class Forgetful:
    """`object`, but for noting that a tree was refreshed."""

    @staticmethod
    def __setattr__(tree, name, value):
        object.__setattr__(tree, name, False if name == "_refreshed" else value)


@pytest.mark.parametrize("by", ["links", "parents"])
@pytest.mark.parametrize("mutant", ["stays", "other tensors", "kept after a capture"])
def test_stale_depths_are_noticed(monkeypatch, mutant, by):
    if mutant == "stays":
        monkeypatch.setattr(DraftTree, "_derive_again", lambda tree: None)
    elif mutant == "other tensors":
        monkeypatch.setattr(DraftTree, "_derive_again", lambda tree: tree._cache.clear())
    else:
        monkeypatch.setattr("specdec_kernels.tree.object", Forgetful, raising=False)
    assert stale(by)


@pytest.mark.parametrize("by", ["links", "parents"])
def test_refreshing_does_not_synchronise(by):
    tree = made([(-1, 0, 0, 1)], by, max_depth=3)
    for name in DERIVED:
        getattr(tree, name)
    tokens, topology = tokens_for([(-1, 0, 1, 2)]), topology_of([(-1, 0, 1, 2)], by)
    with no_synchronisation():
        tree.refresh_(tokens, check=False, **topology)
        with pytest.raises(Synchronises):
            tree.refresh_(tokens, **topology)
    assert tree.depths.tolist() == [0, 1, 2, 3]


def test_a_chain_that_is_refreshed_to_a_tree_is_no_chain():
    """So that a bonus token is refused."""
    tree = DraftTree.chain(torch.tensor([[5, 6]]))
    given_ = dict(bonus_tokens=torch.tensor([3]), backend="reference")
    logits = torch.zeros(3, 9)
    sdk.verify(logits, tree, **given_)
    sdk.verify(logits, tree.refresh_(torch.tensor([[7, 8]])), **given_)
    tree.refresh_(torch.tensor([[-1, 7, 8]]), parents=torch.tensor([[-1, 0, 0]]))
    with pytest.raises(ValueError, match="bonus_tokens"):
        sdk.verify(logits, tree, **given_)


def test_tokens_alone_leave_the_topology():
    tree = DraftTree.from_paths(torch.tensor([[3, 5, 6], [4, 7, 8]]), [(0,), (0, 0)])
    depths = tree.depths
    tree.refresh_(torch.tensor([[15, 16], [17, -1]]))
    assert tree.tokens.tolist() == [3, 15, 16, 4, 17, -1]
    tree.refresh_(torch.arange(6, dtype=torch.int32))
    assert tree.tokens.tolist() == list(range(6))
    assert tree.depths is depths and depths.tolist() == [0, 1, 2] * 2


@pytest.mark.parametrize("backend", QUICK)
def test_a_refreshed_tree_is_verified_as_a_new_one(backend):
    g = torch.Generator().manual_seed(3)
    before, after = [(-1, 0, 0, 1, 1)] * 2, [(-1, 0, 1, 2, 0)] * 2
    logits = torch.randn(10, 12, generator=g)
    tokens = torch.randint(12, (2, 5), generator=g)
    keys = dict(seeds=torch.arange(2), positions=torch.arange(2), backend=backend)
    for by in ("links", "parents"):
        tree = made(before, by, max_depth=4)
        sdk.verify(logits, tree, **keys)
        refreshed = sdk.verify(logits, tree.refresh_(tokens, **topology_of(after, by)), **keys)
        for ours, theirs in zip(refreshed, sdk.verify(logits, made(after, by, tokens), **keys), strict=True):
            assert ours is None or torch.equal(ours[..., :3], theirs[..., :3])


def test_what_is_refused_leaves_the_tree_as_it_was():
    links, parents = made([(-1, 0, 0)], "links", max_depth=1), made([(-1, 0, 0)], "parents", max_depth=1)
    tokens, deep, ring = torch.tensor([[-1, 8, 9]]), [(-1, 0, 1)], torch.tensor([[1, 1, -1]])
    cases = [
        (parents, dict(tokens=tokens[:, :1]), ValueError, r"tokens must have shape \[R\] = \[3\] or"),
        (parents, dict(tokens=tokens.float()), TypeError, "tokens must have dtype"),
        (parents, links_of(deep), ValueError, "next_token must be None for a tree that from_links did not"),
        (links, dict(parents=torch.tensor(deep)), ValueError, "parents must be None for a tree of links"),
        (links, dict(next_token=ring), ValueError, "next_sibling must be given with the other link"),
        (links, dict(next_sibling=ring), ValueError, "next_token must be given with the other link"),
        (links, dict(next_token=ring, next_sibling=-ring.abs()), ValueError, "next_token and next_sibling"),
        (links, links_of(deep), ValueError, "next_token must be of a tree no deeper than max_depth = 1, got"),
        (parents, dict(parents=torch.tensor(deep)), ValueError, "parents must be of a tree no deeper than"),
        (parents, dict(parents=torch.tensor([[-1, 2, 0]])), ValueError, "parents must be -1 at node 0"),
        (parents, dict(proposals=tokens), ValueError, "proposals must be values of Proposal"),
        (parents, dict(check="no"), TypeError, "check must be a bool"),
    ]
    for tree, given_, error, message in cases:
        with pytest.raises(error, match=f"^DraftTree.refresh_: {message}"):
            tree.refresh_(**{"tokens": tokens, **given_})
        assert_same(tree, made([(-1, 0, 0)], "links" if tree is links else "parents"))
    ragged = DraftTree.chain(torch.tensor([4, 5]), cu_drafts=torch.tensor([2, 2]))
    with pytest.raises(ValueError, match="tokens must be flat for requests of different sizes"):
        ragged.refresh_(torch.tensor([[-1, 7], [-1, 8]]))
    assert ragged.refresh_(torch.tensor([-1, 7, 8, -1])).tokens.tolist() == [-1, 7, 8, -1]


def test_unchecked_malformed_links_stay_in_bounds():
    tree = made([(-1, 0, 0, 1)] * 2, "links", max_depth=3)
    for name in DERIVED:
        getattr(tree, name)
    g = torch.Generator().manual_seed(5)
    for _ in range(40):
        links = torch.randint(-9, 9, (2, 2, 4), generator=g)
        tree.refresh_(tokens_for([(0,) * 4] * 2), next_token=links[0], next_sibling=links[1], check=False)
        assert bool(((tree.parents >= -1) & (tree.parents < 4)).all())
        assert bool(((tree.depths >= 0) & (tree.depths < 4)).all())
        verified = sdk.verify(torch.zeros(8, 20), tree)
        assert bool(((verified.tokens >= -1) & (verified.tokens < 20)).all())


def test_a_refreshed_tree_is_a_pytree_and_compiles():
    tree = made([(-1, 0, 0)], "parents", max_depth=2)
    tree.refresh_(torch.tensor([[-1, 5, 6]]))
    leaves, spec = pytree.tree_flatten(tree)
    assert_same(tree, pytree.tree_unflatten(leaves, spec))

    def step(tree, tokens, parents):
        return tree.refresh_(tokens, parents=parents).depths

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    after = torch.tensor([[-1, 7, 8]]), torch.tensor([[-1, 0, 1]])
    assert compiled(tree, *after).tolist() == [0, 1, 2]
    assert tree.tokens.tolist() == [-1, 7, 8] and tree.parents.tolist() == [-1, 0, 1]


# On the triton backend tokens and links take one launch.


@pytest.fixture
def by_kernels(monkeypatch):
    triton = pytest.importorskip("specdec_kernels.triton")
    monkeypatch.setattr(backends, "filler", lambda *args: triton)


@pytest.mark.skipif("triton" not in BACKENDS, reason="needs the emulator")
@pytest.mark.parametrize("nodes", [1, 7, 64, 150])
def test_links_are_entered_in_one_launch_on_triton(by_kernels, nodes):
    g = torch.Generator().manual_seed(nodes)

    def parents():
        first = lambda node: int(torch.randint(max(0, node - 40), node, (1,), generator=g))  # noqa: E731
        return [(-1, *map(first, range(1, nodes))) for _ in range(3)]

    tree = made(parents(), "links", max_nodes=nodes, max_depth=nodes)
    for name in DERIVED:
        getattr(tree, name)
    for kind in (torch.int32, torch.int64):
        after = parents()
        links = {name: link.to(kind) for name, link in links_of(after).items()}
        tokens = torch.randint(99, (3, nodes), generator=g)
        with ptx_emulator.count() as launches:
            tree.refresh_(tokens[:, 1:] if kind == torch.int64 else tokens, **links)
        assert len(launches) == 1
        if kind == torch.int64:
            tokens[:, 0] = tree.tokens.view(3, nodes)[:, 0]
        assert_same(tree, made(after, "links", tokens, max_nodes=nodes, max_depth=nodes))


@pytest.mark.skipif("triton" not in BACKENDS, reason="needs the emulator")
def test_unchecked_malformed_links_stay_in_bounds_on_triton(by_kernels):
    tree = made([(-1, 0, 0, 1)] * 2, "links", max_depth=3)
    g = torch.Generator().manual_seed(5)
    for _ in range(12):
        links = torch.randint(-9, 9, (2, 2, 4), generator=g)
        tree.refresh_(tokens_for([(0,) * 4] * 2), next_token=links[0], next_sibling=links[1], check=False)
        assert bool(((tree.parents >= -1) & (tree.parents < 4)).all())
        assert tree.parents.view(2, 4)[:, 0].tolist() == [-1, -1]


@pytest.mark.skipif("triton" not in BACKENDS, reason="needs the emulator")
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_warmup_compiles_what_refreshes_links_on_triton(by_kernels, dtype):
    from specdec_kernels.triton import dispatch

    tree = made([(-1, 0, 0)] * 2, "links", max_depth=2)
    links = {name: link.to(dtype) for name, link in links_of([(-1, 0, 1)] * 2).items()}
    _compiling.Task("links", (dtype, torch.int64)).run(torch.device("cpu"))
    before = len(dispatch.Launch.met)
    tree.refresh_(torch.tensor([[-1, 5, 6]] * 2), **links)
    assert len(dispatch.Launch.met) == before and tree.depths.tolist() == [0, 1, 2] * 2


@pytest.mark.skipif("triton" not in BACKENDS, reason="needs the emulator")
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_chains_of_sums_are_entered_in_one_launch_on_triton(by_kernels, dtype):
    """Of none to many requests, rows of nobody, and sums that are none."""
    g = torch.Generator().manual_seed(3)
    for batch, padding in ((0, 0), (1, 3), (3, 0), (70, 40)):
        sums = torch.randint(5, (batch,), generator=g).cumsum(0).to(dtype)
        drafts = torch.arange(10, 10 + int(sums[-1:].sum()) + padding, dtype=dtype)
        with ptx_emulator.count() as launches:
            tree = DraftTree.chain(drafts, cu_drafts=sums, max_depth=4, check=False)
        assert len(launches) == 1
        wanted = topology.with_roots(drafts.long(), sums)
        owned = int(wanted[1][-1])
        assert torch.equal(tree.cu_nodes, wanted[1])
        assert torch.equal(tree.tokens[:owned], wanted[0][:owned])
        assert torch.equal(tree.parents[:owned], wanted[2][:owned].int() - 1)
        assert bool((tree.tokens[owned:] == -1).all())
    for sums in ([5, 2, 3], [-4, 2, 3], [2**30, -(2**31), 7]):
        given_ = torch.tensor(sums, dtype=dtype)
        tree = DraftTree.chain(torch.tensor([7, 8, 9]), cu_drafts=given_, max_depth=3, check=False)
        assert set(tree.tokens.tolist()) <= {-1, 7, 8, 9} and bool((tree.parents >= -1).all())


@pytest.mark.skipif("triton" not in BACKENDS, reason="needs the emulator")
def test_warmup_compiles_what_enters_chains_and_links_on_triton(by_kernels):
    from specdec_kernels.triton import dispatch

    _compiling.Task("chains", (torch.int32, torch.int32)).run(torch.device("cpu"))
    for tokens in (None, torch.int32):
        _compiling.Task("links", (torch.int32, tokens)).run(torch.device("cpu"))
    before = len(dispatch.Launch.met)
    DraftTree.chain(torch.tensor([7, 8]).int(), cu_drafts=torch.tensor([2]).int(), max_depth=2, check=False)
    links = [link.int() for link in links_of([(-1, 0, 1)] * 2).values()]
    tokens = torch.tensor([[5, 6]] * 2)
    DraftTree.from_links(torch.nn.functional.pad(tokens, (1, 0)), *links, max_depth=2, check=False)
    links_of_step(tokens.int(), *links, 2)
    assert len(dispatch.Launch.met) == before
