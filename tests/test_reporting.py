# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities, likeliest tokens, ranks and sampling masks of emitted tokens, against `torch.softmax` in
float64 and against plain decoding."""

from __future__ import annotations

import math

import pytest
import torch
from cases import RULES, all_equal, leaves, random_case, rule_name
from each import QUICK
from reporting_cases import KINDS, V, asked, problem

import specdec_kernels as sdk
from specdec_kernels.reference import reporting, verification
from specdec_kernels.reference.law import target_law


def kept_of(row, sampling, b):
    """What top-k, top-p and min-p leave of a row, by sorting."""
    temperature = float(sampling.temperature[b])
    if temperature <= 0:
        return torch.arange(len(row)) == int((row == row.max()).nonzero()[0])
    p = (row / temperature).softmax(-1)
    keep = p >= float(sampling.min_p) * p.max()
    if sampling.top_k > 0:
        keep &= row >= row[keep].sort(descending=True).values[: int(sampling.top_k)][-1]
    rest = torch.where(keep, p, 0.0)
    greater = torch.stack([rest[row > x].sum() for x in row])
    return keep & (greater < sampling.top_p * rest.sum())


def plain_law(row, allowed, sampling, b, kind):
    """log p [V] of a kind, float64."""
    temperature = float(sampling.temperature[b])
    if kind == "raw" or (kind == "temperature" and temperature <= 0):
        return row.log_softmax(-1)
    if kind == "temperature":
        return (row / temperature).log_softmax(-1)
    row = torch.where(allowed, row, -math.inf)
    row = torch.where(kept_of(row, sampling, b), row, -math.inf)
    return (row / (temperature if temperature > 0 else 1.0)).log_softmax(-1)


def checked(verified, given, kind, top, chosen):
    """How many positions were compared with the laws as torch computes them."""
    rows = given["target_logits"].double().view(4, 7, -1)
    bits = given["token_bitmask"].view(4, 7, -1)
    count = 0
    for b in range(4):
        n = int(verified.num_tokens[b])
        for i in range(n):
            node, token = int(verified.path[b, i]), int(verified.tokens[b, i])
            x = torch.arange(rows.shape[-1])
            allowed = (bits[b, node][x >> 5] >> (x & 31).int() & 1).bool()
            law = plain_law(rows[b, node], allowed, given["sampling"], b, kind)
            close(verified.logprobs[b, i], law[token])
            close(verified.chosen_logprobs[b, i], law[chosen[b]])
            order = sorted(range(len(law)), key=lambda t: (-law[t], t))[:top]
            assert verified.top_tokens[b, i].tolist() == [t if law[t] > -math.inf else -1 for t in order]
            close(verified.top_logprobs[b, i], torch.where(law[order] > -math.inf, law[order], math.nan))
            assert int(verified.ranks[b, i]) == 1 + int((law > law[token]).sum())
            kept = plain_law(rows[b, node], allowed, given["sampling"], b, "processed") > -math.inf
            assert torch.equal(mask_at(verified.masks, b, i, len(law)), kept)
            assert int(verified.masks.counts[b, i]) == int(kept.sum())
            row, temperature = rows[b, node], float(given["sampling"].temperature[b])
            whole = torch.where(allowed, row, -math.inf).div(temperature or 1e-9).softmax(-1)
            close(verified.masks.mass[b, i], whole[kept].sum())
            count += 1
        assert verified.logprobs[b, n:].isnan().all() and verified.chosen_logprobs[b, n:].isnan().all()
        assert verified.top_logprobs[b, n:].isnan().all() and verified.masks.mass[b, n:].isnan().all()
        assert (verified.top_tokens[b, n:] == -1).all() and (verified.ranks[b, n:] == 0).all()
        assert all(not mask_at(verified.masks, b, i, V).any() for i in range(n, verified.tokens.shape[1]))
    return count


def close(got, wanted):
    torch.testing.assert_close(got.double(), wanted, rtol=2e-6, atol=2e-6, equal_nan=True)


def mask_at(masks, b, i, vocab):
    """The tokens of a position as [V] bool."""
    if masks.bits is not None:
        x = torch.arange(vocab)
        return (masks.bits[b, i][x >> 5] >> (x & 31).int() & 1).bool()
    begin, end = masks.offsets[b * masks.counts.shape[1] + i :][:2].tolist()
    ids = masks.ids[begin:end]
    assert torch.equal(ids, ids.sort().values)
    return torch.zeros(vocab, dtype=torch.bool).index_fill(0, ids, True)


@pytest.mark.parametrize("backend", QUICK)
@pytest.mark.parametrize("kind", KINDS)
def test_reports_are_what_torch_says(backend, kind):
    compared = 0
    for seed in range(4):
        given, report = problem(seed), asked(kind, 5, ("bits", "ids")[seed % 2])
        for rule in ("match", "traversal", sdk.Typical(0.1)):
            verified = sdk.verify(**given, **report, rule=rule, backend=backend)
            compared += checked(verified, given, kind, 5, report["return_logprobs"].chosen)
    assert compared > 90


@pytest.mark.parametrize("mutant", ["rank", "child's row", "kinds", "mass", "neighbour's ids"])
def test_mutants_of_reports_are_noticed(monkeypatch, mutant):
    report, law, at = reporting.Report, reporting.reported_law, verification._target_scores
    plain, whole = report._likeliest, report.position

    def likeliest(self, place, logprob, score, token):
        plain(self, place, logprob, score, token)
        self._report[2][place] -= 1

    def position(self, place, scores, token, chosen):
        whole(self, place, scores, token, chosen)
        if mutant == "mass":
            self._masks[1][place] = 1.0
        else:
            self._kept[place] = self._kept[place].clone().fill_(3)

    def law_of(call, tree, edits, b, start, params, node):
        _, row, allowed = at(call, tree, edits, b, start, node)
        return target_law(row, params, allowed)

    if mutant == "rank":
        monkeypatch.setattr(report, "_likeliest", likeliest)
    elif mutant == "child's row":
        monkeypatch.setattr(verification, "_target", law_of)  # which stays as it is
        below = lambda *a: at(*a[:-1], min(a[-1] + 1, 6))  # noqa: E731
        monkeypatch.setattr(verification, "_target_scores", below)
    elif mutant == "kinds":
        swap = {"raw": "processed", "processed": "raw"}
        monkeypatch.setattr(reporting, "reported_law", lambda scores, kind: law(scores, swap[kind]))
    else:
        monkeypatch.setattr(report, "position", position)
    given, wanted = problem(), asked("raw" if mutant == "kinds" else "processed", 5, "ids")
    verified = sdk.verify(**given, **wanted, backend="reference")
    with pytest.raises(AssertionError):
        checked(verified, given, wanted["return_logprobs"].kind, 5, wanted["return_logprobs"].chosen)


@pytest.mark.parametrize("backend", QUICK)
@pytest.mark.parametrize("kind", KINDS)
def test_a_replay_token_by_token_reports_the_same(backend, kind):
    """Under `match` the tokens are those of plain decoding, and so is all that is reported of them."""
    given = problem(3)
    report = asked(kind, 20)["return_logprobs"]
    verified = sdk.verify(**given, rule="match", return_logprobs=report, backend=backend)
    rows, bits = given["target_logits"].view(4, 7, V), given["token_bitmask"].view(4, 7, -1)
    assert int(verified.num_tokens.max()) > 2
    for i in range(verified.tokens.shape[1]):
        node = verified.path[:, i].clamp_min(0).long()
        alive, b = i < verified.num_tokens, torch.arange(4)
        plain = sdk.sample(
            rows[b, node],
            given["sampling"],
            seeds=given["seeds"],
            positions=given["positions"] + i,
            token_bitmask=bits[b, node].contiguous(),
            return_logprobs=report,
            backend=backend,
        )
        for name in plain._fields:
            assert all_equal([getattr(verified, name)[:, i][alive]], [getattr(plain, name)[alive]]), name


@pytest.mark.parametrize("backend", QUICK)
def test_plain_logprobs_are_those_of_the_processed_law(backend):
    given = problem(1)
    plain = sdk.verify(**given, return_logprobs=True, backend=backend)
    reported = sdk.verify(**given, **asked(), backend=backend)
    without = sdk.verify(**given, backend=backend)
    assert all_equal(plain[:6], reported[:6]) and all_equal(plain[:4], without[:4])
    assert set(plain[6:]) == {None} and without.logprobs is None
    named = sdk.verify(**given, return_logprobs=sdk.Logprobs(), backend=backend)
    assert all_equal(plain[:6], named[:6]) and named.top_tokens is named.chosen_logprobs is None
    assert all_equal([named.ranks], [reported.ranks])


@pytest.mark.skipif("cpu" not in QUICK, reason="needs the native backend")
@pytest.mark.parametrize("rule", RULES, ids=rule_name)
def test_the_native_backend_reports_what_the_reference_does(rule):
    """Over every option, rows of several chunks, and rows with NaN, infinities and nothing at all."""
    compared = 0
    for seed in range(24):
        given = random_case(seed, vocab=3000 if seed % 8 > 5 else None, hostile=seed % 2 > 0)
        g = torch.Generator().manual_seed(seed)
        batch, vocab = given["tree"].batch_size, given["target_logits"].shape[-1]
        chosen = torch.randint(-2, vocab + 2, (batch, 3), generator=g)
        given["return_logprobs"] = sdk.Logprobs(KINDS[seed % 3], (0, 3, 20)[seed // 3 % 3], chosen)
        given["return_masks"] = (sdk.Masks(), sdk.Masks("ids", 9), sdk.Masks("ids", 9999))[seed // 2 % 3]
        native, wanted = (sdk.verify(**given, rule=rule, backend=b) for b in ("cpu", "reference"))
        if not torch.equal(native.tokens, wanted.tokens):  # a coin at its threshold
            continue
        compared += 1
        for got, law in zip(leaves(native), leaves(wanted), strict=True):
            torch.testing.assert_close(got, law, rtol=2e-5, atol=2e-5, equal_nan=True)
    assert compared > 20


@pytest.mark.parametrize("backend", QUICK)
@pytest.mark.parametrize("form, capacity", [("bits", 0), ("ids", 400)])
def test_masks_without_their_mass_are_the_same(backend, form, capacity):
    given = problem(1)
    whole = sdk.verify(**given, return_masks=sdk.Masks(form, capacity), backend=backend)
    masks = sdk.verify(**given, return_masks=sdk.Masks(form, capacity, mass=False), backend=backend).masks
    assert masks.mass is None and all_equal(masks[:4], whole.masks[:4])


# Rows of 40,000 scores whose nuclei are found in one pass, or by counting where that fails: where the
# largest scores come first, and where the nucleus has very many.
ROWS = {
    "normal": lambda x: 3 * x,
    "peaked": lambda x: 8 * x,
    "flat": lambda x: 0.1 * x,
    "ascending": lambda x: 3 * x.sort().values,
    "descending": lambda x: 3 * x.sort(descending=True).values,
    "one large first": lambda x: (3 * x).index_fill(0, torch.tensor([7]), 14.0),
    "levels": lambda x: (2 * x).round(),
    "mostly -inf": lambda x: torch.where(x > 1.5, x, -math.inf),
}


@pytest.mark.skipif("cpu" not in QUICK, reason="needs the native backend")
@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.99])
@pytest.mark.parametrize("name", ROWS)
def test_a_nucleus_is_what_sorting_says(name, top_p):
    """Its count, its mass, and the probability of the drawn token."""
    g = torch.Generator().manual_seed(2)
    rows = torch.stack([ROWS[name](torch.randn(40_000, generator=g)) for _ in range(4)])
    tree = sdk.DraftTree.chain(torch.empty(4, 0, dtype=torch.int64))
    call = dict(sampling=sdk.SamplingParams(0.8, top_p=top_p), seeds=torch.arange(4), backend="cpu")
    call |= dict(positions=torch.arange(4), return_logprobs=True, return_masks=sdk.Masks())
    found = sdk.verify(rows, tree, **call)
    value, order = rows.double().sort(descending=True)
    p = (value / 0.8).softmax(-1)
    for b in range(4):
        sums = p[b].cumsum(0)
        reached = int((sums < top_p).sum())
        kept = int((value[b] >= value[b, reached]).sum())  # with all ties
        near = int((value[b] >= value[b, int((sums < top_p - 1e-6).sum())]).sum())
        far = int((value[b] >= value[b, min(int((sums < top_p + 1e-6).sum()), 39_999)]).sum())
        count = int(found.masks.counts[b, 0])
        assert near <= count <= far and far - near <= max(kept // 1000, 1)
        close(found.masks.mass[b, 0], sums[count - 1])
        token = int(found.tokens[b, 0])
        close(found.logprobs[b, 0], p[b][order[b] == token].log()[0] - sums[count - 1].log())


@pytest.mark.skipif("cpu" not in QUICK, reason="needs the native backend")
@pytest.mark.parametrize("name", ROWS)
def test_a_nucleus_does_not_depend_on_threads(name):
    """Bit by bit: several threads share a row, and each keeps what may be in the nucleus."""
    row = ROWS[name](torch.randn(400_000, generator=torch.Generator().manual_seed(3)))[None]
    tree = sdk.DraftTree.chain(torch.empty(1, 0, dtype=torch.int64))
    call = dict(sampling=sdk.SamplingParams(0.8, top_p=0.9), seeds=torch.tensor([1]), backend="cpu")
    call |= dict(positions=torch.tensor([1]), return_logprobs=True, return_masks=sdk.Masks())
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3, 3):
            torch.set_num_threads(number)
            found.append(sdk.verify(row, tree, **call))
    finally:
        torch.set_num_threads(threads)
    assert all(all_equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("backend", QUICK)
def test_ties_come_lowest_first_and_share_their_rank(backend):
    row = torch.zeros(1, 3000).index_fill(1, torch.tensor([2900, 17, 1030]), 1.0)
    for kind in KINDS:
        drawn = sdk.sample(row, return_logprobs=sdk.Logprobs(kind, 5), backend=backend)
        assert drawn.top_tokens.tolist() == [[17, 1030, 2900, 0, 1]]
        assert drawn.ranks.tolist() == ([1] if int(drawn.tokens) in (17, 1030, 2900) else [4])


@pytest.mark.parametrize("backend", QUICK)
def test_what_does_not_fit_leaves_other_requests_alone(backend):
    given = problem(2)
    whole = sdk.verify(**given, return_masks=sdk.Masks("ids", 400), backend=backend)
    width = whole.tokens.shape[1]
    ends = whole.masks.offsets[width::width].tolist()
    for capacity in (ends[0] + 1, ends[1], ends[1] + 1, ends[2] - 1, ends[3], 1):
        tight = sdk.verify(**given, return_masks=sdk.Masks("ids", capacity), backend=backend)
        overflown = [end > capacity for end in ends]
        assert ((tight.status & sdk.Status.OVERFLOW) != 0).tolist() == overflown
        assert all_equal([tight.masks.offsets, *tight.masks[3:]], [whole.masks.offsets, *whole.masks[3:]])
        assert torch.equal(tight.masks.ids, whole.masks.ids[:capacity])
        assert all_equal(tight[:5], whole[:5])
    assert (whole.masks.ids[ends[3] :] == -1).all() and (whole.status == 0).all()


@pytest.mark.parametrize("backend", QUICK)
def test_a_position_without_a_row_reports_nothing(backend):
    """The bonus token after a whole chain whose last node has no row."""
    target = torch.eye(8)[:4].view(2, 2, 8) * 50
    tree = sdk.DraftTree.chain(torch.tensor([[0, 1], [2, 3]]))
    verified = sdk.verify(
        target,
        tree,
        bonus_tokens=torch.tensor([5, 6]),
        return_logprobs=sdk.Logprobs(top=2, chosen=torch.tensor([[1], [1]])),
        return_masks=sdk.Masks("ids", 99),
        backend=backend,
    )
    assert verified.tokens.tolist() == [[0, 1, 5], [2, 3, 6]]
    assert verified.ranks.tolist() == [[1, 1, 0]] * 2 and (verified.top_tokens[:, 2] == -1).all()
    assert verified.logprobs[:, 2].isnan().all() and verified.chosen_logprobs[:, 2].isnan().all()
    assert verified.masks.counts.tolist() == [[8, 8, 0]] * 2 and verified.masks.mass[:, 2].isnan().all()


@pytest.mark.skipif("cpu" not in QUICK, reason="needs the native backend")
def test_reports_depend_neither_on_the_batch_nor_on_threads():
    """Bit by bit; rows of several blocks."""
    given, report = problem(4, vocab=20000), asked("temperature", 20)
    given["sampling"] = given["sampling"]._replace(top_k=0, top_p=0.999)
    whole = sdk.verify(**given, **report, backend="cpu")
    assert int(whole.masks.counts.max()) > 100
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert all_equal(whole, sdk.verify(**given, **report, backend="cpu"))
    finally:
        torch.set_num_threads(threads)
    for b in range(4):
        rows, tree = slice(7 * b, 7 * b + 7), given["tree"]
        alone = sdk.verify(
            given["target_logits"][rows],
            sdk.DraftTree.from_parents(tree.tokens[rows][None], tree.parents[rows][None]),
            sampling=given["sampling"]._replace(temperature=given["sampling"].temperature[b : b + 1]),
            token_bitmask=given["token_bitmask"][rows],
            seeds=given["seeds"][b : b + 1],
            positions=given["positions"][b : b + 1],
            return_logprobs=report["return_logprobs"]._replace(
                chosen=report["return_logprobs"].chosen[b : b + 1]
            ),
            return_masks=sdk.Masks(),
            backend="cpu",
        )
        assert all_equal([x[b : b + 1] for x in leaves(whole)], alone)


@pytest.mark.parametrize("backend", QUICK)
def test_out_is_filled_with_reports(backend):
    given = problem()
    for report in (asked("raw", 2, "ids"), asked("raw", 0), dict(return_masks=sdk.Masks())):
        wanted = sdk.verify(**given, **report, backend=backend)
        out = sdk.verify(**given | dict(seeds=given["seeds"] + 1), **report, backend=backend)
        assert sdk.verify(**given, **report, out=out, backend=backend) is out
        assert all_equal(out, wanted)


def test_what_out_lacks_or_has_too_much_is_refused():
    given, report = problem(), asked("raw", 2, "ids")
    out = sdk.verify(**given, **report)
    for changes, options, rule in (
        (dict(ranks=None), {}, "out.ranks must be a tensor with return_logprobs of Logprobs, got None"),
        (dict(top_tokens=None), {}, "out.top_tokens must be a tensor with return_logprobs of top > 0"),
        (dict(chosen_logprobs=None), {}, "out.chosen_logprobs must be a tensor with return_logprobs of cho"),
        (dict(masks=None), {}, "out.masks must be a SamplingMasks with return_masks, got NoneType"),
        ({}, dict(return_masks=None), "out.masks must be None without return_masks, got a value"),
        ({}, dict(return_logprobs=True), "out.top_logprobs must be None without return_logprobs=Logprobs"),
        ({}, dict(return_masks=sdk.Masks()), "out.masks.bits must be a tensor, got NoneType"),
        (
            {},
            dict(return_masks=sdk.Masks("ids", 400, mass=False)),
            "out.masks.mass must be None with mass=False, got a tensor",
        ),
    ):
        before = [leaf.clone() for leaf in leaves(out)]
        with pytest.raises((ValueError, TypeError)) as refused:
            sdk.verify(**given, **report | options, out=out._replace(**changes))
        assert f"verify: {rule}" in str(refused.value)
        assert all_equal(before, out)


@pytest.mark.parametrize(
    "report, rule",
    [
        (dict(return_logprobs=1), "return_logprobs must be a bool or a Logprobs, got int"),
        (
            dict(return_logprobs=sdk.Logprobs("logits")),
            "return_logprobs.kind must be one of processed, raw, temperature, got 'logits'",
        ),
        (dict(return_logprobs=sdk.Logprobs(top=21)), "return_logprobs.top must be in [0, 20], got 21"),
        (
            dict(return_logprobs=sdk.Logprobs(chosen=torch.zeros(3, 2).long())),
            "return_logprobs.chosen must have shape [B, m] = [4, 2], got [3, 2]",
        ),
        (dict(return_masks=True), "return_masks must be a Masks or None, got bool"),
        (dict(return_masks=sdk.Masks("ids")), "return_masks.capacity must be >= 1 with form 'ids', got 0"),
        (
            dict(return_masks=sdk.Masks("bits", 5)),
            "return_masks.capacity must be 0 with form 'bits', got 5",
        ),
        (dict(return_masks=sdk.Masks(mass=1)), "return_masks.mass must be a bool, got int"),
    ],
)
def test_what_is_asked_for_wrongly_is_refused(report, rule):
    with pytest.raises((ValueError, TypeError)) as refused:
        sdk.verify(**problem(), **report)
    assert str(refused.value) == f"verify: {rule}"


@pytest.mark.parametrize("backend", QUICK)
def test_raw_laws_are_those_before_edits(backend):
    given = problem(1)
    edits = sdk.LogitEdits(
        bias_tokens=torch.tensor([[3, 4], [1, -1], [2, 2], [5, 6]]),
        bias_values=torch.full((4, 2), 2.5),
        forced_tokens=torch.tensor([[-1], [8], [-1], [-1]]),
    )
    rows, first = given["target_logits"].double().view(4, 7, V)[:, 0], torch.arange(4)
    for kind, law in (("raw", rows), ("temperature", rows / given["sampling"].temperature[:, None])):
        verified = sdk.verify(**given, **asked(kind, 5), edits=edits, backend=backend)
        law = torch.where(given["sampling"].temperature[:, None] > 0, law, rows).log_softmax(-1)
        close(verified.logprobs[:, 0], law[first, verified.tokens[:, 0]])
    verified = sdk.verify(**given, **asked(), edits=edits, backend=backend)
    assert verified.masks.counts[1, 0] == 1 and verified.top_tokens[1, 0].tolist() == [8] + [-1] * 4
    assert verified.logprobs[1, 0] == 0 and verified.masks.mass[1, 0] == 1


@pytest.mark.parametrize("backend", QUICK)
def test_what_ends_cut_off_is_not_reported(backend):
    given = problem(3)
    whole = sdk.verify(**given, **asked(), rule="match", backend=backend)
    left = torch.tensor([1, 1, 9, 0], dtype=torch.int32)
    ended = sdk.verify(**given, **asked(), rule="match", backend=backend, ends=sdk.Ends(new_tokens_left=left))
    assert ended.num_tokens.tolist() == [1, 1, int(whole.num_tokens[2]), 0]
    for b, n in enumerate(ended.num_tokens.tolist()):
        for name in ("logprobs", "top_logprobs", "top_tokens", "ranks", "chosen_logprobs"):
            cut, all_of_it = getattr(ended, name)[b], getattr(whole, name)[b]
            assert all_equal([cut[:n]], [all_of_it[:n]])
        assert ended.logprobs[b, n:].isnan().all() and (ended.masks.counts[b, n:] == 0).all()
