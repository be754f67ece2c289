# SPDX-License-Identifier: Apache-2.0
"""`SuffixIndex` against a search of all texts by brute force."""

import math
import threading

import numpy as np
import pytest
import torch

import specdec_kernels as sdk
from specdec_kernels.drafting.ngram import TRUST

KEYS = (2, 5, 12)
ALL = 10**6  # candidates


class Oracle:
    """The same index, in plain Python."""

    def __init__(self):
        self.texts, self.written, self.corpora = {}, [], {}  # written: (request, position), in order

    def add(self, request, tokens=(), namespace="", reads=None):
        self.texts[request] = ([], namespace, [namespace] if reads is None else reads)
        self.extend(request, tokens)

    def extend(self, request, tokens):
        for token in tokens:
            self.written.append((request, len(self.texts[request][0])))
            self.texts[request][0].append(token)

    def remove(self, request):
        del self.texts[request]
        self.written = [place for place in self.written if place[0] != request]

    def places(self, name, request):
        """What a request sees in a namespace: text and position, the most recent first; then corpora."""
        own = (request, len(self.texts[request][0]) - 1)
        for place in reversed(self.written):
            text, space, _ = self.texts[place[0]]
            if space == name and place != own:
                yield text, place[1]
        for space, text in self.corpora.values():
            if space == name:
                yield from ((text, i) for i in reversed(range(len(text))))

    def found(self, request, min_match):
        text, _, reads = self.texts[request]
        found = []
        for key, longer in ((12, math.inf), (5, 12), (2, 5)):
            if key > len(text):
                continue
            if len(found) >= 8 or key < min_match:
                break
            for name in reads:
                for other, place in self.places(name, request):
                    n = 0
                    while (
                        n < min(64, len(text), place + 1)
                        and other[place - n] == text[-1 - n]
                        and text[-1 - n] >= 0
                    ):
                        n += 1
                    if key <= n < longer:
                        found.append((other, place, n, place))
        return found

    def draft(self, request, max_nodes, max_depth=None, min_match=2):
        text = self.texts[request][0]
        odds = [t / (1 - t) for t in TRUST]
        open_ = [(1.0, text[-1] if text else -1, -1, 0, self.found(request, min_match))]
        kept, waiting = [], [0]
        while waiting and len(kept) < max_nodes:
            best = max(waiting, key=lambda i: (open_[i][0], -i))
            waiting.remove(best)
            chance, token, parent, depth, cursors = open_[best]
            kept.append((token, parent, chance))
            if depth >= (max_nodes - 1 if max_depth is None else max_depth):
                continue
            groups, weights, total = {}, {}, 0.0  # added up in the same order, so that ties stay ties
            for other, place, n, start in cursors:
                if other is text and place + 1 == len(text):
                    place = start  # a repetition repeats
                if place + 1 < len(other) and (x := other[place + 1]) >= 0:
                    groups.setdefault(x, []).append((other, place + 1, n + 1, start))
                    weight = odds[min(n, len(odds)) - 1]
                    weights[x] = weights.get(x, 0.0) + weight
                    total += weight
            for x, group in groups.items():
                waiting.append(len(open_))
                share = chance / (total + len(groups))
                open_.append((weights[x] * share, x, len(kept) - 1, depth + 1, group))
        return kept


def drafted(index, request, max_nodes, **options):
    tree, scores = index.draft([request], max_nodes, candidates=ALL, **options)
    rows = zip(tree.tokens.tolist(), tree.parents.tolist(), scores[0].exp().tolist(), strict=True)
    return [row for row in rows if row[2] > 0]


def same(got, wanted):
    assert [row[:2] for row in got] == [row[:2] for row in wanted]
    assert [row[2] for row in got] == pytest.approx([row[2] for row in wanted], rel=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_drafts_are_those_of_brute_force(seed):
    random = np.random.default_rng(seed)
    index, oracle, alive, running = sdk.SuffixIndex(), Oracle(), [], []
    names = ["a", "b"]
    alphabet = int(random.integers(2, 6))
    for step in range(60):
        kind = random.integers(5) if alive else 0
        if kind == 0:
            tokens = random.integers(alphabet, size=random.integers(0, 90)).tolist()
            if alive and random.random() < 0.5:  # a copy, with an error
                tokens = oracle.texts[int(random.choice(alive))][0][5:] + tokens[:20]
            name, reads = names[step % 2], [None, ["a", "b"], ["b"]][random.integers(3)]
            index.add(step, tokens, namespace=name, reads=reads)
            oracle.add(step, tokens, name, reads)
            alive.append(step)
            running.append(step)
        elif kind == 1 and running:
            tokens = random.integers(alphabet, size=(len(running), 7))
            sizes = random.integers(0, 8, size=len(running))
            index.extend(running, torch.from_numpy(tokens), sizes.tolist())
            for request, row, size in zip(running, tokens.tolist(), sizes, strict=True):
                oracle.extend(request, row[:size])
        elif kind == 2 and running:
            index.finish(running.pop(0))
        elif kind == 3:
            request = alive.pop(int(random.integers(len(alive))))
            index.remove(request)
            oracle.remove(request)
            running = [other for other in running if other != request]
        elif kind == 4 and step % 3 == 0:
            text = random.integers(-1, alphabet, size=100)
            corpus = index.load(text.astype(np.int32), namespace="b")
            oracle.corpora[corpus] = ("b", text.tolist())
        for request in alive[-3:]:
            same(drafted(index, request, 12), oracle.draft(request, 12))
        if alive:
            same(drafted(index, alive[0], 9, max_depth=3, min_match=5), oracle.draft(alive[0], 9, 3, 5))
    for corpus in oracle.corpora:
        index.unload(corpus)
    oracle.corpora = {}
    for request in alive:
        same(drafted(index, request, 12), oracle.draft(request, 12))


def test_a_batch_is_its_rows():
    random = np.random.default_rng(0)
    index = sdk.SuffixIndex()
    for request in range(9):
        index.add(request, random.integers(3, size=300).tolist())
    tree, scores = index.draft(list(range(9)), 16)
    for request in range(9):
        alone, own = index.draft([request], 16)
        assert tree.tokens.view(9, 16)[request].tolist() == alone.tokens.tolist()
        assert torch.equal(scores[request], own[0])


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.uint32, np.int64])
def test_corpora_are_mapped_files(tmp_path, dtype):
    np.save(tmp_path / "corpus.npy", np.array([9, 1, 2, 3, 4, 5, 6, 7], dtype=dtype))
    index = sdk.SuffixIndex()
    corpus = index.load(tmp_path / "corpus.npy")
    index.add(0, [1, 2, 3])
    assert index.draft([0], 4).tree.tokens.tolist() == [3, 4, 5, 6]
    index.unload(corpus)
    assert index.draft([0], 4).tree.tokens.tolist() == [3, -1, -1, -1]


def test_namespaces_see_what_they_name():
    index = sdk.SuffixIndex()
    index.add(0, [1, 2, 3, 4], namespace="one")
    index.add(1, [1, 2], namespace="two")
    index.add(2, [1, 2], namespace="two", reads=["one"])
    assert index.draft([1], 2).tree.tokens.tolist() == [2, -1]
    assert index.draft([2], 2).tree.tokens.tolist() == [2, 3]


def test_many_namespaces_share_no_text():
    """Buckets are shared: chains meet positions of others."""
    index = sdk.SuffixIndex()
    for tenant in range(300):
        index.add(tenant, [1, 2, tenant + 3, 1, 2], namespace=str(tenant))
    tree, _ = index.draft(list(range(300)), 2, candidates=ALL)
    assert tree.tokens.view(300, 2)[:, 1].tolist() == [tenant + 3 for tenant in range(300)]


def test_memory_is_bounded_and_the_oldest_go_first():
    index = sdk.SuffixIndex(max_bytes=2**21)
    for request in range(40):
        index.add(request, np.random.default_rng(request).integers(50, size=3000).tolist())
        if request > 0:
            index.finish(request)
        assert index.nbytes <= 2**21
    kept = [request for request in range(40) if request in index]
    assert kept[0] == 0 and kept[1:] == list(range(40 - len(kept) + 1, 40)) and 10 < len(kept) < 20
    before = index.draft([0], 8)
    with pytest.raises(
        ValueError, match="SuffixIndex.extend: tokens must fit into max_bytes beside running texts"
    ):
        index.extend([0], torch.zeros((1, 2**17), dtype=torch.int64))
    assert len(index) == len(kept) and torch.equal(index.draft([0], 8).scores, before.scores)


@pytest.mark.parametrize("text", ["random", "one token", "a short cycle"])
def test_bytes_for_each_token(text):
    size = 200_000
    tokens = {
        "random": np.random.default_rng(0).integers(50_000, size=size),
        "one token": np.zeros(size, dtype=np.int64),
        "a short cycle": np.arange(size) % 7,
    }[text]
    index = sdk.SuffixIndex()
    index.add(0, torch.from_numpy(tokens))
    assert index.nbytes < 64 * size
    tree, _ = index.draft([0], 32)
    if text != "random":
        expected = (tokens[-1] + np.arange(32)) % 7 if text == "a short cycle" else np.zeros(32)
        assert tree.tokens.tolist() == expected.tolist()
    index.remove(0)
    other = sdk.SuffixIndex()
    other.load(tokens.astype(np.int32))
    assert other.nbytes < 30 * size - 4 * size  # with the corpus's own tokens 30


def test_a_file_brings_the_texts_back(tmp_path):
    index = sdk.SuffixIndex()
    for request in (3, 1, 2):
        index.add(request, [request, 7, 8, request, 9], namespace="x")
        index.finish(request)
    index.add(9, [7, 8], namespace="x")
    index.save(tmp_path / "index.npz")
    other = sdk.SuffixIndex.open(tmp_path / "index.npz")
    assert len(other) == 4
    other.add(10, [7, 8], namespace="x")
    index.add(10, [7, 8], namespace="x")
    assert other.draft([10], 8).tree.tokens.tolist() == index.draft([10], 8).tree.tokens.tolist()
    assert sdk.SuffixIndex.open(tmp_path / "index.npz").nbytes > 0


def test_a_damaged_or_foreign_file_is_refused(tmp_path):
    index = sdk.SuffixIndex()
    index.add(1, list(range(200)))
    path = tmp_path / "index.npz"
    index.save(path)
    good = path.read_bytes()
    for place in range(0, len(good), 37):
        path.write_bytes(good[:place] + bytes([good[place] ^ 64]) + good[place + 1 :])
        try:
            opened = sdk.SuffixIndex.open(path)
        except ValueError as error:
            assert str(error).startswith("SuffixIndex.open: path must be a file that SuffixIndex.save wrote")
        else:  # a byte that means nothing
            assert opened._native.list() == [(1, "", 200, False)]
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(ValueError, match="SuffixIndex.open: path"):
        sdk.SuffixIndex.open(path)
    np.savez(path, tokens=np.arange(3))
    with pytest.raises(ValueError, match="another kind"):
        sdk.SuffixIndex.open(path)


def test_readers_work_beside_a_writer():
    index = sdk.SuffixIndex(max_bytes=2**22)
    index.add(0, [1, 2, 3] * 50)
    failed = []

    def read():
        for _ in range(200):
            tree, scores = index.draft([0, 0], 16)
            rows = tree.tokens.view(2, 16)
            if not (torch.equal(rows[0], rows[1]) and bool((scores[:, 0] == 0).all())):
                failed.append(rows)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for request in range(1, 60):
        index.add(request, np.random.default_rng(request).integers(4, size=2000).tolist())
        index.finish(request)
        if request % 3 == 0:
            index.remove(request)
    for reader in readers:
        reader.join()
    assert not failed


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda index: index.add(1, [2]), "SuffixIndex.add: request must not be in the index, got 1"),
        (lambda index: index.add(5, [-1]), "SuffixIndex.add: tokens must be in [0, 2**31), got -1"),
        (
            lambda index: index.extend([7], torch.ones(1, 1).long()),
            "SuffixIndex.extend: requests must be in the index, got 7",
        ),
        (
            lambda index: index.extend([1, 1], torch.ones(2, 1).long()),
            "SuffixIndex.extend: requests must be distinct, got 1 twice",
        ),
        (
            lambda index: index.extend([2], torch.ones(1, 1).long()),
            "SuffixIndex.extend: requests must be running, got 2",
        ),
        (
            lambda index: index.extend([1], torch.ones(1, 1).long(), [2]),
            "SuffixIndex.extend: num_tokens must be in [0, W] = [0, 1], got 2",
        ),
        (lambda index: index.finish(2), "SuffixIndex.finish: request must be running, got 2"),
        (lambda index: index.remove(8), "SuffixIndex.remove: request must be in the index, got 8"),
        (lambda index: index.unload(0), "SuffixIndex.unload: corpus must be in the index, got 0"),
        (lambda index: index.draft([8], 4), "SuffixIndex.draft: requests must be in the index, got 8"),
        (lambda index: index.draft([1], 0), "SuffixIndex.draft: max_nodes must be >= 1, got 0"),
        (
            lambda index: index.draft([1], 4, trust=[0.0]),
            "SuffixIndex.draft: trust must be at least one number",
        ),
        (
            lambda index: index.load(np.zeros((2, 2), np.int32)),
            "SuffixIndex.load: tokens must have shape [N]",
        ),
        (lambda index: index.load(np.zeros(2)), "SuffixIndex.load: tokens must be an array of uint16"),
        (lambda index: index.add(6, torch.ones(2)), "SuffixIndex.add: tokens must have dtype"),
        (lambda index: sdk.SuffixIndex(max_bytes=5), "SuffixIndex: max_bytes must be >= 1048576, got 5"),
    ],
)
def test_errors_name_what_was_wrong(call, message):
    index = sdk.SuffixIndex()
    index.add(1, [1, 2, 3])
    index.add(2, [4])
    index.finish(2)
    with pytest.raises((ValueError, TypeError)) as caught:
        call(index)
    assert str(caught.value).startswith(message)
    assert len(index) == 2 and index._native.list()[-1][2] == 3


def test_a_drafter_keeps_the_texts_of_a_batch():
    index = sdk.SuffixIndex()
    drafter = sdk.SuffixDrafter(index, max_nodes=4)
    texts = torch.tensor([[1, 2, 3, 4, 0, 0], [9, 1, 2, 0, 0, 0]])
    tree = drafter(texts, torch.tensor([4, 3])).tree
    assert tree.tokens.view(2, 4).tolist() == [[4, -1, -1, -1], [2, 3, 4, -1]]
    texts[1, 3:] = torch.tensor([3, 4, 5])
    drafter(texts[1:], torch.tensor([6]))  # the other request has left
    stranger = sdk.SuffixDrafter(index, max_nodes=4, namespace="other")
    assert stranger(texts[:1, :2], torch.tensor([2])).tree.tokens.tolist() == [2, -1, -1, -1]
    reader = sdk.SuffixDrafter(index, max_nodes=4, namespace="third", reads=["", "third"])
    assert reader(texts[:1, :2], torch.tensor([2])).tree.tokens.tolist() == [2, 3, 4, 5]
    for other in (stranger, reader):
        index.remove(other._rows[0][0])
    assert [text[2:] for text in sorted(index._native.list())] == [(6, True), (4, False)]
    drafter.reset()
    assert not any(text[3] for text in index._native.list())


def test_generate_learns_from_earlier_texts():
    """With what an equal request wrote before, every draft is right."""
    from loop_cases import PROMPTS, model

    drafter = sdk.SuffixDrafter(sdk.SuffixIndex(), max_nodes=8)
    target, options = model(vocab=37), dict(max_new_tokens=24, seeds=torch.arange(len(PROMPTS)), budget=None)
    first, second = (sdk.generate(target, drafter, PROMPTS, **options) for _ in range(2))
    plain = sdk.generate(target, None, PROMPTS, **options)
    assert first.tokens == second.tokens == plain.tokens
    assert second.statistics.steps < first.statistics.steps
