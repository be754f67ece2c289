# SPDX-License-Identifier: Apache-2.0
"""Prompt lookup against searches that only compare lists, on texts over a few letters."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial

import pytest
import torch
from device import NAME, on_device
from each import BACKENDS
from hypothesis import example, given
from hypothesis import strategies as st
from records import opcheck, recorded

import specdec_kernels as sdk

P = sdk.Proposal.POINT

texts = st.lists(st.lists(st.integers(0, 2), max_size=24), min_size=1, max_size=3)
ngrams = st.tuples(st.integers(1, 4), st.integers(0, 3)).map(lambda pair: (pair[0], sum(pair)))


def batch(rows, spare=2):
    """Rows padded with what must not be read, and their lengths."""
    width = max(map(len, rows)) + spare
    padded = [row + [row[-1] if row else 1] * (width - len(row)) for row in rows]
    return torch.tensor(padded), torch.tensor([len(row) for row in rows])


def ends_of(text, n):
    """Where earlier occurrences of the last n tokens end."""
    return [
        end for end in range(n - 1, len(text) - 1) if text[end - n + 1 : end + 1] == text[len(text) - n :]
    ]


def following(text, end, count, cyclic):
    rest = text[end + 1 :]
    return (rest * count if cyclic else rest)[:count]


def expected_draft(text, count, shortest, longest, match, cyclic):
    for n in range(min(longest, len(text) - 1), shortest - 1, -1):
        ends = ends_of(text, n)
        if not ends:
            continue
        if match == "latest":
            drafted = following(text, ends[-1], count, cyclic)
            return drafted + [-1] * (count - len(drafted))
        drafted = []
        while len(drafted) < count:
            ways = [(following(text, end, count, cyclic), end) for end in ends]
            ways = [
                (w[len(drafted)], e)
                for w, e in ways
                if len(w) > len(drafted) and w[: len(drafted)] == drafted
            ]
            if not ways:
                break
            votes = Counter(token for token, _ in ways)
            drafted.append(max(ways, key=lambda way: (votes[way[0]], way[1]))[0])
        return drafted + [-1] * (count - len(drafted))
    return [-1] * count


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("match", ["latest", "frequent"])
@given(rows=texts, lengths=ngrams, count=st.integers(1, 8), cyclic=st.booleans())
def test_drafts_are_what_a_plain_search_finds(backend, match, rows, lengths, count, cyclic):
    shortest, longest = lengths
    got = sdk.ngram_draft(
        *batch(rows),
        count,
        min_ngram=shortest,
        max_ngram=longest,
        match=match,
        cyclic=cyclic,
        backend=backend,
    )
    assert got.tolist() == [expected_draft(row, count, shortest, longest, match, cyclic) for row in rows]


def expected_chances(text, max_depth, branches, shortest, longest, trust, cyclic):
    """The chance of every path from the root, by the rule's own words."""
    found = []
    for end in range(len(text) - 1):
        n = max((n for n in range(1, longest + 1) if end in ends_of(text, n)), default=0)
        if n >= shortest:
            found.append((n, end))
    chances = {(): 1.0}
    for n, end in sorted(found, reverse=True)[:branches]:
        way = following(text, end, max_depth, cyclic)
        for depth in range(1, len(way) + 1):
            path, above = tuple(way[:depth]), tuple(way[: depth - 1])
            taken = sum(c for other, c in chances.items() if other and other[:-1] == above)
            if path not in chances:
                chances[path] = trust[min(n + depth - 1, len(trust)) - 1] * (chances[above] - taken)
    return chances


def paths_of(tree, b):
    """The path of every used node of a request."""
    paths = [()]
    nodes = tree.max_nodes
    tokens, parents = tree.tokens.view(-1, nodes)[b].tolist(), tree.parents.view(-1, nodes)[b].tolist()
    for node in range(1, nodes):
        if tokens[node] < 0:
            assert set(tokens[node:]) == {-1} and set(parents[node:]) == {0}
            break
        assert 0 <= parents[node] < node
        paths.append((*paths[parents[node]], tokens[node]))
    return paths


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    rows=texts,
    lengths=ngrams,
    nodes=st.integers(1, 12),
    depth=st.none() | st.integers(0, 5),
    branches=st.integers(1, 5),
    cyclic=st.booleans(),
)
# the likeliest path goes on where only the third occurrence does
@example(rows=[[0, 0, 1, 0, 0]], lengths=(1, 1), nodes=4, depth=3, branches=3, cyclic=False)
def test_trees_hold_the_likeliest_paths(backend, rows, lengths, nodes, depth, branches, cyclic):
    trust, (shortest, longest) = [0.21, 0.37, 0.53], lengths
    tree, scores = sdk.ngram_tree(
        *batch(rows),
        nodes,
        max_depth=depth,
        branches=branches,
        min_ngram=shortest,
        max_ngram=longest,
        trust=trust,
        cyclic=cyclic,
        backend=backend,
    )
    assert tree.max_nodes == nodes and int(tree.depths.max()) <= tree.max_depth
    depth = nodes - 1 if depth is None else depth
    for b, row in enumerate(rows):
        chances = expected_chances(row, depth, branches, shortest, longest, trust, cyclic)
        paths = paths_of(tree, b)
        assert len(set(paths)) == len(paths) == min(nodes, len(chances))
        got = scores[b, : len(paths)].exp().tolist()
        assert got == pytest.approx([chances[path] for path in paths], rel=1e-4)
        best = sorted(chances.values(), reverse=True)[: len(paths)]
        assert sorted(got, reverse=True) == pytest.approx(best, rel=1e-4)
        assert (scores[b, len(paths) :] == -math.inf).all()
        assert int(tree.tokens.view(-1, nodes)[b, 0]) == (row[-1] if row else -1)
        likeliest = [0]  # always to the best child
        while children := [n for n in range(1, len(paths)) if paths[n][:-1] == paths[likeliest[-1]]]:
            likeliest.append(max(children, key=lambda n: (got[n], -n)))
        assert likeliest == list(range(len(likeliest)))
    assert (tree.proposals == P).all()


@given(rows=texts, nodes=st.integers(1, 16), cyclic=st.booleans())
def test_backends_draw_the_same_trees(rows, nodes, cyclic):
    given = dict(cyclic=cyclic, branches=6)
    native, reference = (
        sdk.ngram_tree(*batch(rows), nodes, **given, backend=b) for b in ("cpu", "reference")
    )
    assert torch.equal(native[0].tokens, reference[0].tokens)
    assert torch.equal(native[0].parents, reference[0].parents)
    torch.testing.assert_close(native[1], reference[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_lengths_beyond_the_text_are_clamped(backend):
    tokens = torch.tensor([[1, 2, 1], [1, 2, 1], [1, 2, 1]])
    drafted = sdk.ngram_draft(tokens, torch.tensor([99, -5, 0]), 2, backend=backend)
    assert drafted.tolist() == [[2, 1], [-1, -1], [-1, -1]]
    tree, _ = sdk.ngram_tree(tokens, torch.tensor([99, -5, 0]), 2, backend=backend)
    assert tree.tokens.tolist() == [1, 2, -1, -1, -1, -1]
    none = sdk.ngram_draft(torch.zeros((2, 0), dtype=torch.int64), torch.tensor([3, 0]), 2, backend=backend)
    assert none.tolist() == [[-1, -1]] * 2


def test_drafts_verify():
    text = torch.tensor([[1, 2, 3, 4, 1, 2]])
    drafted = sdk.ngram_draft(text, torch.tensor([6]), 3)
    target = torch.full((4, 6), -9.0)
    target[torch.arange(4), torch.tensor([3, 4, 0, 0])] = 9.0
    verified = sdk.verify(
        target, sdk.DraftTree.chain(drafted, proposal=P), sampling=sdk.SamplingParams(temperature=0.0)
    )
    assert verified.tokens.tolist() == [[3, 4, 0, -1]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_they_pass_opcheck(monkeypatch, backend):
    for operation, run in (("ngram_draft", sdk.ngram_draft), ("ngram_tree", sdk.ngram_tree)):
        run = partial(run, torch.tensor([[1, 2, 1, 2]]), torch.tensor([4]), 3, backend=backend)
        opcheck(*recorded(monkeypatch, operation, run))


def test_they_compile_whole_and_read_no_values():
    tokens, lengths = torch.randint(3, (4, 20)), torch.tensor([20, 11, 3, 0])

    def step(tokens, lengths):
        tree, scores = sdk.ngram_tree(tokens, lengths, 6)
        return sdk.ngram_draft(tokens, lengths, 3) + 1, tree.tokens, tree.parents, scores

    compiled = on_device(torch.compile(step, fullgraph=True, backend="aot_eager"))
    for value, expected in zip(compiled(tokens, lengths), step(tokens, lengths), strict=True):
        assert torch.equal(value, expected)
    with torch.device("meta"):
        tokens, lengths = torch.zeros((2, 5), dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
        assert sdk.ngram_draft(tokens, lengths, 3).shape == (2, 3)
        assert sdk.ngram_tree(tokens, lengths, 3)[1].shape == (2, 3)


def test_threads_change_nothing():
    tokens = torch.randint(2, (8, 40_000), generator=torch.Generator().manual_seed(4))
    lengths = torch.arange(8) * 5000 + 100
    threads, drafted = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            drafted.append(sdk.ngram_draft(tokens, lengths, 9, max_ngram=30, match="frequent"))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*drafted)


@pytest.mark.parametrize("name", ["ngram_draft", "ngram_tree"])
@pytest.mark.parametrize(
    "changes, kind, message",
    [
        (dict(tokens=torch.zeros(2, 3)), TypeError, "tokens must have dtype int64, got float32"),
        (dict(tokens=torch.tensor([1, 2])), ValueError, "tokens must have shape [B, L], got [2]"),
        (dict(lengths=torch.tensor([1])), ValueError, "lengths must have shape [B] = [2], got [1]"),
        (dict(lengths=torch.zeros(2)), TypeError, "lengths must have dtype"),
        (
            dict(lengths=torch.zeros(2, device="meta").int()),
            TypeError,
            f"lengths must be on device {NAME}, got meta",
        ),
        (dict(min_ngram=0), ValueError, "min_ngram must be >= 1, got 0"),
        (dict(min_ngram=3, max_ngram=2), ValueError, "max_ngram must be >= 3, got 2"),
        (dict(max_ngram=2.0), TypeError, "max_ngram must be an int, got float"),
        (dict(backend="cuda"), ValueError, "backend must be one of auto, reference, cpu, triton, got 'cuda'"),
    ],
)
def test_they_refuse(name, changes, kind, message):
    given = dict(tokens=torch.ones((2, 4), dtype=torch.int64), lengths=torch.tensor([4, 4])) | changes
    with pytest.raises(kind) as error:
        getattr(sdk, name)(given.pop("tokens"), given.pop("lengths"), 3, **given)
    assert f"{name}: {message}" in str(error.value)


@pytest.mark.parametrize(
    "run, message",
    [
        (lambda *text: sdk.ngram_draft(*text, 0), "ngram_draft: num_draft must be >= 1, got 0"),
        (
            lambda *text: sdk.ngram_draft(*text, 2, match="best"),
            "ngram_draft: match must be one of latest, frequent, got 'best'",
        ),
        (lambda *text: sdk.ngram_tree(*text, 0), "ngram_tree: max_nodes must be >= 1, got 0"),
        (lambda *text: sdk.ngram_tree(*text, 2, max_depth=-1), "ngram_tree: max_depth must be >= 0, got -1"),
        (lambda *text: sdk.ngram_tree(*text, 2, branches=0), "ngram_tree: branches must be >= 1, got 0"),
        (
            lambda *text: sdk.ngram_tree(*text, 2, trust=()),
            "ngram_tree: trust must be at least one number in (0, 1], got []",
        ),
        (
            lambda *text: sdk.ngram_tree(*text, 2, trust=[0.5, 1.5]),
            "ngram_tree: trust must be at least one number in (0, 1], got [0.5, 1.5]",
        ),
    ],
)
def test_they_refuse_numbers(run, message):
    with pytest.raises(ValueError) as error:
        run(torch.ones((2, 4), dtype=torch.int64), torch.tensor([4, 4]))
    assert message in str(error.value)
