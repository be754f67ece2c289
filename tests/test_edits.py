# SPDX-License-Identifier: Apache-2.0
"""Edits of rows and counts of tokens: backends, rules, invariance, hostile input, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from cases import RULES, all_equal, both_with_traces, check_in_range, pick, random_case, rule_name
from each import QUICK
from edit_cases import counts_of, random_edits
from records import opcheck, recorded

import specdec_kernels as sdk
from specdec_kernels import LogitEdits, SamplingParams, Status

INF, NAN = float("inf"), float("nan")
on_every_backend = pytest.mark.parametrize("backend", QUICK)
OTHER_RULES = (sdk.Deferred(), sdk.Threshold(0.9, 0.8), sdk.Ensemble(0.7))


def case_with_edits(seed, **options):
    given = random_case(seed, **options)
    tree, vocab = given["tree"], given["target_logits"].shape[-1]
    hostile = options.get("hostile", False)
    given["edits"] = random_edits(seed, tree.batch_size, vocab, likely=tree.tokens, hostile=hostile)
    return given


@pytest.mark.slow
@pytest.mark.parametrize("rule", (*RULES, *OTHER_RULES), ids=rule_name)
def test_the_native_backend_agrees_with_the_reference(rule):
    overflowed = 0
    for seed in range(12):
        (native, _), (reference, _) = both_with_traces(case_with_edits(seed), rule)
        assert torch.equal(native.tokens, reference.tokens), seed
        assert torch.equal(native.path, reference.path) and torch.equal(native.status, reference.status)
        logprobs = dict(rtol=1e-4, atol=1e-4, equal_nan=True)
        torch.testing.assert_close(native.logprobs, reference.logprobs, **logprobs)
        overflowed += int(((native.status & Status.OVERFLOW) != 0).sum())
    assert overflowed > 2


@pytest.mark.skipif("cpu" not in QUICK, reason="needs the native backend")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_are_edited_to_the_same_bits(dtype):
    """In place by both backends; and `verify` of such rows is `verify` with the edits."""
    for seed in range(12):
        given = case_with_edits(seed, dtype=dtype, vocab=(5, 64, 1500, 3000)[seed % 4])
        edits, tree = given.pop("edits"), given["tree"]
        native, reference = (
            sdk.edit_logits_(given["target_logits"].clone(), edits, tree, backend=backend)
            for backend in ("cpu", "reference")
        )
        assert torch.equal(native, reference), seed
        if dtype != torch.float32:
            continue
        for rule in ("traversal", sdk.Typical()):
            lazy = sdk.verify(edits=edits, rule=rule, **given)
            eager = sdk.verify(rule=rule, **{**given, "target_logits": native})
            off = lazy.status & ~Status.OVERFLOW
            assert all_equal(lazy[:5], eager[:5]) and torch.equal(off, eager.status), (seed, rule)


@pytest.mark.skipif("cpu" not in QUICK, reason="needs the native backend")
@pytest.mark.parametrize("kind", ["processed", "raw", "temperature"])
def test_reports_are_those_of_edited_rows(kind):
    """But for the raw law and the one after temperature only, which know no edits."""
    for seed in range(9):
        given = case_with_edits(seed, vocab=64)
        given |= dict(return_logprobs=sdk.Logprobs(kind, top=3), return_masks=sdk.Masks("ids", 900))
        native, reference = (sdk.verify(rule="token", backend=b, **given) for b in ("cpu", "reference"))
        assert torch.equal(native.status, reference.status) and torch.equal(native.ranks, reference.ranks)
        assert torch.equal(native.masks.ids, reference.masks.ids)
        for a, b in zip(native[:9], reference[:9], strict=True):
            if a is not None:
                torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif("cpu" not in QUICK, reason="needs the native backend")
@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize(
    "sampling",
    [
        sdk.SamplingParams(0.8, top_k=50, top_p=0.9),
        sdk.SamplingParams(0.8, top_p=0.9),
        sdk.SamplingParams(0.0),
        sdk.SamplingParams(1.0, min_p=0.01),
        sdk.SamplingParams(1.0, top_k=5000, top_p=0.9),
        sdk.SamplingParams(1.0),
    ],
)
def test_rows_of_many_chunks_are_as_if_they_were_changed_before(sampling, raises):
    """To the same bits, with all that is reported: rows where edits and a bitmask change the largest scores.
    Those that raise no score are not made in chunks that cannot matter."""
    vocab, g = 20_000, torch.Generator().manual_seed(4)
    tree = sdk.DraftTree.chain(torch.randint(vocab, (3, 2), generator=g))
    logits = 3 * torch.randn(9, vocab, generator=g)
    prompts = logits[::3].topk(20).indices.tolist()  # of the roots; the largest scores are penalised
    counts = counts_of(prompts, torch.randint(vocab, (3, 3000), generator=g).tolist(), vocab)
    largest = logits[::3].topk(30).indices[:, 20:]
    edits = LogitEdits(
        counts,
        repetition_penalty=0.8 if raises else 1.2,
        frequency_penalty=0.3,
        banned_tokens=largest,
        bias_tokens=torch.randint(vocab, (3, 9), generator=g),
        bias_values=torch.full((3, 9), 25.0 if raises else -1.5),
    )
    allowed = torch.rand(9, vocab, generator=g) < 0.75
    bits = (allowed.view(9, -1, 32).long() << torch.arange(32)).sum(-1)
    keys = dict(seeds=torch.arange(3), positions=torch.arange(3), sampling=sampling, backend="cpu")
    keys |= dict(return_logprobs=sdk.Logprobs(top=20), return_masks=sdk.Masks(mass=not raises))
    before = sdk.edit_logits_(logits.clone(), edits, tree).masked_fill(~allowed, -math.inf)
    eager = sdk.verify(before, tree, **keys)
    lazy = sdk.verify(
        logits, tree, edits=edits, token_bitmask=torch.where(bits < 2**31, bits, bits - 2**32).int(), **keys
    )
    assert int(lazy.num_tokens.min()) > 0 and all_equal(lazy, eager)


@pytest.mark.skipif("cpu" not in QUICK, reason="needs the native backend")
def test_a_slot_of_a_large_context():
    """4,000 distinct tokens, chunks with and without path tokens, against the dense formula."""
    vocab, g = 20_000, torch.Generator().manual_seed(1)
    prompt, output = (torch.randint(0, vocab, (n,), generator=g).tolist() for n in (3000, 2500))
    counts = counts_of([prompt], [output], vocab)
    tree = sdk.DraftTree.chain(torch.tensor([[output[0], 19_999, prompt[0], output[0]]]))
    logits = torch.randn(5, vocab, generator=g)
    edits = LogitEdits(counts, 1.3, 0.2, 0.1)
    edited = sdk.edit_logits_(logits.clone(), edits, tree, backend="cpu")
    for node in range(5):
        path = tree.tokens[1 : node + 1].tolist()
        written = torch.tensor(output + path).bincount(minlength=vocab)
        seen = written + torch.tensor(prompt).bincount(minlength=vocab) > 0
        row = torch.where(logits[node] > 0, logits[node] / 1.3, logits[node] * 1.3)
        row = torch.where(seen, row, logits[node]) - 0.2 * written
        assert torch.equal(edited[node], row - 0.1 * (written > 0))


@on_every_backend
def test_counts_are_those_of_counting_again(backend):
    vocab, g = 30, torch.Generator().manual_seed(3)
    for _trial in range(12):
        slots, capacity = 4, pick(g, (3, 8, 30))
        counts = sdk.TokenCounts(slots, capacity, vocab, recent=3)
        prompts = [torch.randint(0, vocab, (n,), generator=g).tolist() for n in (0, 1, 5, 2)]
        outputs, overflowed = [[] for _ in prompts], [len(set(p)) > capacity for p in prompts]
        for slot, prompt in enumerate(prompts):
            counts.set_prompt_([slot], torch.tensor([prompt], dtype=torch.int64).view(1, -1))
        for _step in range(6):
            order = torch.randperm(slots, generator=g)
            order[0] = pick(g, (int(order[0]), -1, slots, 2**40))
            tokens = torch.randint(-1, vocab + 2, (slots, 4), generator=g)
            many = torch.randint(-1, 6, (slots,), generator=g).int()
            verified = sdk.Verified(
                tokens.to(pick(g, (torch.int64, torch.int32))), many, many, many, None, many
            )  # fmt: skip
            counts.update_(verified, order, backend=backend)
            for b, slot in enumerate(order.tolist()):
                if 0 <= slot < slots:
                    row = tokens[b, : max(int(many[b]), 0)].tolist()
                    outputs[slot] += [token for token in row if 0 <= token < vocab]
                    overflowed[slot] |= len({*prompts[slot], *outputs[slot]}) > capacity
        assert counts.overflowed.tolist() == overflowed
        for slot, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
            text = [-1, -1, -1, *prompt, *output]
            assert counts.recent[slot].tolist() == text[-3:]
            if overflowed[slot]:
                assert int(counts.sizes[slot]) == capacity + 1
                continue
            distinct = sorted({*prompt, *output})
            assert counts.sizes[slot] == len(distinct)
            assert counts.tokens[slot].tolist() == distinct + [2**31 - 1] * (capacity - len(distinct))
            assert counts.prompt[slot, : len(distinct)].tolist() == [prompt.count(x) for x in distinct]
            assert counts.output[slot, : len(distinct)].tolist() == [output.count(x) for x in distinct]


@on_every_backend
def test_a_text_that_goes_on_counts_its_output(backend):
    counts = sdk.TokenCounts(2, 5, 9, recent=2)
    counts.set_prompt_(
        torch.tensor([1]), torch.tensor([[4, 4, 2, 4, 8]]), lengths=[4], num_output=torch.tensor([2])
    )
    assert counts.tokens[1, :2].tolist() == [2, 4] and counts.recent[1].tolist() == [2, 4]
    assert counts.prompt[1, :2].tolist() == [0, 2] and counts.output[1, :2].tolist() == [1, 1]
    counts.update_(torch.tensor([7], dtype=torch.int32), torch.tensor([1]), backend=backend)
    assert counts.tokens[1, :3].tolist() == [2, 4, 7] and counts.sizes.tolist() == [0, 3]
    counts.reset_(torch.tensor([1]))
    assert counts.sizes.tolist() == [0, 0] and counts.recent[1].tolist() == [-1, -1]
    assert set(counts.tokens.flatten().tolist()) == {2**31 - 1} and not counts.output.any()


@on_every_backend
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_match_emits_what_sample_emits_one_at_a_time(backend, temperature):
    """With the counts advanced token by token; a model of scores that depend on the text."""
    vocab, g = 11, torch.Generator().manual_seed(5)
    table = torch.randn(vocab, vocab, generator=g)
    prompts, seeds = [[3, 3, 5], [1]], torch.tensor([4, -9])
    sampling = SamplingParams(temperature, top_p=0.95)
    extra = dict(
        repetition_penalty=1.4,
        presence_penalty=torch.tensor([0.3, -0.5]),
        frequency_penalty=0.4,
        bias_tokens=torch.tensor([[2], [7]]),
        bias_values=torch.tensor([[1.0], [-INF]]),
        bad_words=torch.tensor([[[4, 6], [-1, 9]]] * 2),
    )

    def fresh():
        return counts_of(prompts, [[], []], vocab, recent=1, capacity=vocab)

    plain, counts = [list(p) for p in prompts], fresh()
    for _ in range(24):
        edits = LogitEdits(counts, **extra)
        positions = torch.tensor([len(text) for text in plain])
        logits = table[[text[-1] for text in plain]]
        keys = dict(seeds=seeds, positions=positions)
        drawn = sdk.sample(logits, sampling, edits=edits, backend=backend, **keys)
        counts.update_(drawn, backend=backend)
        for text, token in zip(plain, drawn.tolist(), strict=True):
            text.append(token)
    texts, counts, accepted = [list(p) for p in prompts], fresh(), 0
    while min(map(len, texts)) < 20:
        drafts = torch.randint(0, vocab, (2, 7), generator=g)
        drafts[:, 0] = torch.tensor([text[-1] for text in texts])
        for node in (1, 3):  # some drafts are right
            right = torch.tensor([(plain[b] + [0] * 9)[len(texts[b]) + node // 2] for b in range(2)])
            drafts[:, node] = torch.where(torch.rand(2, generator=g) < 0.7, right, drafts[:, node])
        tree = sdk.DraftTree.from_parents(drafts, torch.tensor([[-1, 0, 0, 1, 1, 2, 3]] * 2))
        positions = torch.tensor([len(text) for text in texts])
        verified = sdk.verify(
            table[drafts].flatten(0, 1), tree, sampling=sampling, rule="match", seeds=seeds,
            positions=positions, edits=LogitEdits(counts, **extra), backend=backend,
        )  # fmt: skip
        counts.update_(verified, backend=backend)
        accepted += int(verified.num_accepted.sum())
        for text, tokens, count in zip(texts, verified.tokens.tolist(), verified.num_tokens, strict=True):
            text += tokens[: int(count)]
    assert all(a[:20] == b[:20] for a, b in zip(texts, plain, strict=True)) and accepted > 8


@on_every_backend
def test_an_overflowed_slot_has_no_penalties(backend):
    """And the request's other edits, and other requests, are as ever."""
    counts = counts_of([[0, 1, 2], [0]], [[], []], 4, capacity=2)
    bias = dict(bias_tokens=torch.tensor([[3], [3]]), bias_values=torch.full((2, 1), 0.5))
    logits = torch.tensor([[1.0, 2.0, 3.0, 3.25]] * 4)
    edits = LogitEdits(counts, repetition_penalty=2.0, presence_penalty=1.0, **bias)
    tree = sdk.DraftTree.chain(torch.tensor([[1], [0]]))
    verified = sdk.verify(logits, tree, edits=edits, backend=backend, return_logprobs=True)
    assert verified.status.tolist() == [Status.OVERFLOW, 0]
    edited = sdk.edit_logits_(logits, edits, tree, backend=backend)
    assert edited[:2].tolist() == [[1.0, 2.0, 3.0, 3.75]] * 2
    assert edited[2:].tolist() == [[0.5, 2.0, 3.0, 3.75], [-0.5, 2.0, 3.0, 3.75]]


@on_every_backend
def test_a_forced_token_is_a_point_mass(backend):
    """The row is not read; a bitmask comes after, and may leave nothing."""
    logits = torch.full((3, 4), NAN)
    edits = LogitEdits(forced_tokens=torch.tensor([[2], [2], [7]]), banned_tokens=torch.tensor([[2]] * 3))
    mask = torch.tensor([[0b1111], [0b1010], [0b1111]], dtype=torch.int32)
    tree = sdk.DraftTree.chain(torch.zeros(3, 0, dtype=torch.int64))
    for rule in ("match", "token", sdk.Typical()):
        verified = sdk.verify(
            logits, tree, edits=edits, rule=rule, token_bitmask=mask, return_logprobs=True, backend=backend
        )
        assert verified.tokens.tolist() == [[2], [1], [0]]
        assert verified.status.tolist() == [0, Status.EMPTY, Status.NAN | Status.EMPTY]
        assert verified.logprobs[:2].tolist() == [[0.0], [0.0]]


@on_every_backend
def test_nan_and_infinities(backend):
    """An edited NaN is reported, banned or not; a banned +inf is gone."""
    logits = torch.tensor([[NAN, INF, -INF, 1.0]])
    counts = counts_of([[0, 1, 2, 3]], [[0]], 4)
    edits = LogitEdits(
        counts, 2.0, 1.0, bias_tokens=torch.tensor([[1]]), bias_values=torch.tensor([[-INF]]),
        banned_tokens=torch.tensor([[0]]),
    )  # fmt: skip
    edited = sdk.edit_logits_(logits.clone(), edits, backend=backend)
    assert edited[0].isnan().tolist() == [True, False, False, False]
    assert edited[0, 1:].tolist() == [-INF, -INF, 0.5]
    tree = sdk.DraftTree.chain(torch.zeros(1, 0, dtype=torch.int64))
    verified = sdk.verify(logits, tree, edits=edits, backend=backend)
    assert verified.tokens.tolist() == [[3]] and verified.status.tolist() == [Status.NAN]


@on_every_backend
def test_hostile_values_harm_nobody(backend):
    for seed in range(5 if backend == "reference" else 30):
        given = case_with_edits(seed, hostile=True)
        rule = (*RULES, *OTHER_RULES)[seed % 10]
        verified = sdk.verify(rule=rule, backend=backend, **given)
        check_in_range(verified, given)
        again = sdk.verify(rule=rule, backend=backend, **given)
        assert all_equal(verified, again)
        counts = given["edits"].counts
        counts.update_(verified, given["edits"].slots, backend=backend)
        sdk.edit_logits_(given["target_logits"], given["edits"], given["tree"], backend=backend)


@on_every_backend
def test_what_is_no_penalty_is_off(backend):
    counts = counts_of([[0]] * 4, [[0]] * 4, 2)
    wrong = torch.tensor([NAN, INF, 0.0, -2.0])
    edits = LogitEdits(
        counts, wrong, torch.tensor([NAN, INF, -INF, 0.0]), torch.tensor([NAN, -INF, 0.0, 0.0])
    )
    logits = torch.ones(4, 2)
    assert torch.equal(sdk.edit_logits_(logits.clone(), edits, backend=backend), logits)


def test_results_do_not_depend_on_batch_threads_or_splits():
    backend, batch, vocab = QUICK[-1], 6, 20_000
    g = torch.Generator().manual_seed(2)
    tokens = torch.randint(0, vocab, (batch, 4), generator=g)
    target, draft = torch.randn(batch, 5, vocab, generator=g), torch.randn(batch, 4, vocab, generator=g)
    edits = random_edits(7, batch, vocab, likely=tokens.flatten())
    edits = edits._replace(slots=torch.arange(batch), repetition_penalty=1.2, frequency_penalty=0.1)
    per_request = lambda rows: LogitEdits(  # noqa: E731
        *(value[rows] if isinstance(value, torch.Tensor) and value.dim() else value for value in edits)
    )
    keys = dict(seeds=torch.arange(batch), positions=torch.arange(batch) * 3)

    def run(rows):
        verified = sdk.verify(
            target[rows],
            sdk.DraftTree.chain(tokens[rows]),
            draft[rows],
            sampling=SamplingParams(0.9, top_p=0.9),
            edits=per_request(rows),
            return_logprobs=True,
            backend=backend,
            **{name: key[rows] for name, key in keys.items()},
        )
        return [field for field in verified if field is not None]

    whole, before = run(torch.arange(batch)), torch.get_num_threads()
    order = torch.tensor([4, 1, 5, 0, 3, 2])
    assert all_equal(run(order), [field[order] for field in whole])
    for b in range(batch):
        assert all_equal(run(torch.tensor([b])), [field[b : b + 1] for field in whole])
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert all_equal(run(torch.arange(batch)), whole)
    finally:
        torch.set_num_threads(before)


def test_a_request_without_edits_is_as_without_the_argument():
    given = random_case(3, vocab=200, batch=4)
    plain = sdk.verify(rule="token", **given)
    for edits in (
        LogitEdits(),
        LogitEdits(sdk.TokenCounts(4, 3, 200), 1.0, 0.0, 0),
        LogitEdits(bias_tokens=torch.full((4, 2), -1), bias_values=torch.ones(4, 2)),
        LogitEdits(forced_tokens=torch.zeros(4, 0, dtype=torch.int64)),
        LogitEdits(sdk.TokenCounts(4, 3, 200), torch.ones(4)),
    ):
        assert all_equal(sdk.verify(rule="token", edits=edits, **given), plain)


def test_rows_by_number_are_edited_where_they_lie():
    """A drafter's rows: only the last node of each chain has one."""
    counts = counts_of([[1], [2]], [[], []], 4)
    tree = sdk.DraftTree.chain(torch.tensor([[3], [3]]))
    rows = torch.tensor([-1, 0, -1, 1], dtype=torch.int32)
    edits = LogitEdits(counts, frequency_penalty=1.0, penalize_prompt=True)
    for backend in QUICK:
        logits = torch.zeros(3, 4)
        assert sdk.edit_logits_(logits, edits, tree, target_rows=rows, backend=backend) is logits
        assert logits.tolist() == [[0, -1, 0, -1], [0, 0, -1, -1], [0, 0, 0, 0]]


def arguments():
    return dict(logits=torch.zeros(2, 8), edits=LogitEdits())


def long(*shape, value=0):
    return torch.full(shape, value, dtype=torch.int64)


COUNTS = sdk.TokenCounts(2, 4, 8, recent=1)
REFUSED = [
    (dict(), TypeError, "edits must be a LogitEdits, got dict"),
    (
        LogitEdits(repetition_penalty=1.1),
        ValueError,
        "edits.counts must be a TokenCounts for penalties, got None",
    ),
    (LogitEdits(bad_words=long(2, 1, 2)), ValueError, "edits.counts must be a TokenCounts for bad words of"),
    (LogitEdits(slots=long(2)), ValueError, "edits.counts must be a TokenCounts for slots, got None"),
    (LogitEdits(3), TypeError, "edits.counts must be a TokenCounts, got int"),
    (LogitEdits(sdk.TokenCounts(2, 4, 9)), ValueError, "edits.counts must have vocab_size V = 8, got 9"),
    (
        LogitEdits(sdk.TokenCounts(1, 4, 8)),
        ValueError,
        "edits.slots must be given where there are more requests",
    ),
    (LogitEdits(COUNTS, bad_words=long(2, 1, 3)), ValueError, "edits.counts must have recent >= L - 1 = 2"),
    (LogitEdits(COUNTS, 0.0), ValueError, "edits.repetition_penalty must be >= "),
    (LogitEdits(COUNTS, frequency_penalty=INF), ValueError, "edits.frequency_penalty must be in "),
    (LogitEdits(COUNTS, presence_penalty="1"), TypeError, "edits.presence_penalty must be a number or a [B]"),
    (
        LogitEdits(COUNTS, torch.ones(3)),
        ValueError,
        "edits.repetition_penalty must have shape [B] = [2], got [3]",
    ),
    (LogitEdits(COUNTS, torch.ones(2).int()), TypeError, "edits.repetition_penalty must have dtype float32"),
    (LogitEdits(penalize_prompt=1), TypeError, "edits.penalize_prompt must be a bool, got int"),
    (
        LogitEdits(bias_tokens=long(2, 1)),
        ValueError,
        "edits.bias_values must be given with bias_tokens, got None",
    ),
    (
        LogitEdits(bias_values=torch.ones(2, 1)),
        ValueError,
        "edits.bias_tokens must be given with bias_values",
    ),
    (
        LogitEdits(bias_tokens=long(2, 1), bias_values=torch.ones(2, 2)),
        ValueError,
        "edits.bias_values must have shape [B, n] = [2, 1], got [2, 2]",
    ),
    (
        LogitEdits(bias_tokens=long(2, 1), bias_values=torch.ones(2, 1).double()),
        TypeError,
        "edits.bias_values must have dtype float32, got float64",
    ),
    (
        LogitEdits(banned_tokens=long(2, 1).int()),
        TypeError,
        "edits.banned_tokens must have dtype int64, got int32",
    ),
    (LogitEdits(banned_tokens=long(3, 1)), ValueError, "edits.banned_tokens must have shape [B, n] = [2, 1]"),
    (
        LogitEdits(banned_until=long(2).int()),
        ValueError,
        "edits.banned_until must be None without banned_tokens",
    ),
    (LogitEdits(bad_words=long(2, 2)), ValueError, "edits.bad_words must have shape [B, n, L], got [2, 2]"),
    (LogitEdits(forced_tokens=long(2)), ValueError, "edits.forced_tokens must have shape [B, F], got [2]"),
    (LogitEdits(COUNTS, 1.1, slots=long(2).int()), TypeError, "edits.slots must have dtype int64, got int32"),
    (LogitEdits(COUNTS, slots=long(3)), ValueError, "edits.slots must have shape [B] = [2], got [3]"),
]


@pytest.mark.parametrize("edits, error, message", REFUSED, ids=range(len(REFUSED)))
def test_what_is_refused(edits, error, message):
    logits = torch.zeros(2, 8)
    tree = sdk.DraftTree.chain(long(2, 0))
    for operation, call in (
        ("edit_logits_", lambda: sdk.edit_logits_(logits, edits)),
        ("sample", lambda: sdk.sample(logits, edits=edits)),
        ("verify", lambda: sdk.verify(logits, tree, edits=edits)),
    ):
        with pytest.raises(error) as raised:
            call()
        assert str(raised.value).startswith(f"{operation}: {message}")


def test_calls_that_are_refused():
    counts, tree = sdk.TokenCounts(2, 4, 8), sdk.DraftTree.chain(long(2, 1))
    bad = torch.tensor([[1, 8]])
    for call, error, message in (
        (
            lambda: sdk.TokenCounts(2, 0, 8),
            ValueError,
            "TokenCounts: capacity must be in [1, 2147483646], got 0",
        ),
        (lambda: sdk.TokenCounts(2, 4.0, 8), TypeError, "TokenCounts: capacity must be an int, got float"),
        (
            lambda: counts.reset_([2]),
            ValueError,
            "TokenCounts.reset_: slots must be in [0, slots) = [0, 2), got 2",
        ),
        (
            lambda: counts.set_prompt_([0], bad),
            ValueError,
            "TokenCounts.set_prompt_: tokens must be in [0, V) = [0, 8), got 8 in text 0",
        ),
        (
            lambda: counts.set_prompt_([0, 0], bad),
            ValueError,
            "TokenCounts.set_prompt_: slots must be distinct",
        ),
        (
            lambda: counts.set_prompt_([0, 1], bad),
            ValueError,
            "TokenCounts.set_prompt_: tokens must have shape",
        ),
        (
            lambda: counts.set_prompt_([0], bad, [3]),
            ValueError,
            "TokenCounts.set_prompt_: lengths must be in [0, 2], got 3 of text 0",
        ),
        (
            lambda: counts.set_prompt_([0], bad, [1], [2]),
            ValueError,
            "TokenCounts.set_prompt_: num_output must be in [0, 1], got 2 of text 0",
        ),
        (
            lambda: counts.update_(3),
            TypeError,
            "TokenCounts.update_: verified must be a Verified or a tensor",
        ),
        (
            lambda: counts.update_(torch.zeros(2)),
            TypeError,
            "TokenCounts.update_: verified.tokens must have dtype",
        ),
        (
            lambda: counts.update_(long(3)),
            ValueError,
            "TokenCounts.update_: slots must be given where there are",
        ),
        (
            lambda: counts.update_(long(2), long(3)),
            ValueError,
            "TokenCounts.update_: slots must have shape [B]",
        ),
        (
            lambda: sdk.edit_logits_(torch.zeros(3, 8), LogitEdits(), tree),
            ValueError,
            "edit_logits_: logits must have shape [R, V] = [4, 8], got [3, 8]",
        ),
        (
            lambda: sdk.edit_logits_(torch.zeros(4, 8), LogitEdits(), target_rows=long(4).int()),
            ValueError,
            "edit_logits_: target_rows must be None without a tree",
        ),
    ):
        with pytest.raises(error) as raised:
            call()
        assert str(raised.value).startswith(message), str(raised.value)
    assert not counts.sizes.any()


def test_the_operators_pass_opcheck(monkeypatch):
    backend = QUICK[-1]
    counts = counts_of([[1, 2], [3]], [[2], []], 8, recent=1, capacity=6)
    edits = LogitEdits(
        counts,
        torch.tensor([1.5, 1.0]),
        0.5,
        bad_words=torch.tensor([[[2, 4]]] * 2),
        slots=torch.tensor([1, 0]),
    )
    logits, tree = torch.zeros(6, 8), sdk.DraftTree.chain(torch.tensor([[2, 4], [4, 2]]))
    verified = sdk.verify(logits, tree)
    opcheck(*recorded(monkeypatch, "verify", lambda: sdk.verify(logits, tree, edits=edits, backend=backend)))
    opcheck(*recorded(monkeypatch, "sample", lambda: sdk.sample(logits[:2], edits=edits, backend=backend)))
    run = lambda: sdk.edit_logits_(logits, edits, tree, backend=backend)  # noqa: E731
    opcheck(*recorded(monkeypatch, "edit_logits", run))
    run = lambda: counts.update_(verified, edits.slots, backend=backend)  # noqa: E731
    opcheck(*recorded(monkeypatch, "count_tokens", run))


def test_a_step_with_edits_compiles_whole():
    """Verification, counts and a drafter's edits in one graph, under a module."""
    logits, tokens = (
        torch.randn(6, 8, generator=torch.Generator().manual_seed(1)),
        torch.tensor([[2, 4], [4, 2]]),
    )
    seeds, positions = torch.tensor([1, 2]), torch.tensor([3, 4])
    verifier = sdk.SpeculativeVerifier(rule="match")

    def step(counts, logits, tokens):
        tree = sdk.DraftTree.chain(tokens)
        edits = LogitEdits(counts, repetition_penalty=1.5, frequency_penalty=0.5)
        verified = verifier(logits, tree, seeds=seeds, positions=positions, edits=edits)
        counts.update_(verified)
        return verified.tokens, sdk.edit_logits_(logits.clone(), edits, tree)

    eager, traced = (counts_of([[1, 2], [3]], [[2], []], 8, recent=1, capacity=8) for _ in range(2))
    expected = step(eager, logits, tokens)
    found = torch.compile(step, fullgraph=True, backend="aot_eager")(traced, logits, tokens)
    assert all_equal(expected, found)
    for name in ("tokens", "prompt", "output", "sizes", "recent"):
        assert torch.equal(getattr(eager, name), getattr(traced, name))
