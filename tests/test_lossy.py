# SPDX-License-Identifier: Apache-2.0
"""`Threshold`, `Ensemble` and `Deferred`: laws by enumeration, and every backend against the reference."""

from __future__ import annotations

import importlib
import inspect
import itertools
import math
from collections import defaultdict
from functools import partial

import pytest
import torch
from cases import both_with_traces, check_in_range, random_case
from each import BACKENDS, QUICK
from exact import Case, distance, emitted

import specdec_kernels as sdk
from specdec_kernels._random import coin
from specdec_kernels.tree import Proposal

rules = importlib.import_module("specdec_kernels.reference.verification")
EXACT, FAR = 1e-12, 1e-3
RULES = (
    sdk.Threshold(0.6, 0.7), sdk.Threshold(), sdk.Ensemble(0.7), sdk.Deferred(0.5, 0), sdk.Deferred(0.5, 1)
)  # fmt: skip
DISTINCT = {
    "chain": Case((0, 1, 2), "PPP"),
    "siblings": Case((0, 0, 0), "PPP", vocab=4),
    "bushy": Case((0, 0, 1, 1, 2), "PPPPP", vocab=4),
    "zeros": Case((0, 0, 1, 2), "PPPP", vocab=4, zeros=True),
    "reversed": Case((0, 0, 1, 1, 2), "PPPPP", reverse=True),
    "sampled without replacement": Case((0, 0, 0, 1), "WWWI", vocab=4),
    "sampled on a chain": Case((0, 1), "II"),
    "padded": Case((0, 1, 2), "IIW", draft_width=4),
}


def edited(rule, old, new):
    """A rule with one line of its text changed."""
    source = inspect.getsource(rule)
    assert source.count(old) == 1
    scope = dict(vars(rules))
    exec(source.replace(old, new), scope)
    return scope[rule.__name__]


# Threshold.


def at(single=1.0, acc=1.0, rule=None):
    return partial(rule or rules.threshold, single=single, acc=acc)


@pytest.mark.parametrize("name", DISTINCT)
def test_threshold_of_one_has_the_law_of_the_target(name):
    """However the draft was made, as long as siblings are distinct."""
    assert distance(DISTINCT[name], emitted(DISTINCT[name], at())[0]) < EXACT


def test_threshold_accepts_as_much_as_match():
    for case in (DISTINCT["bushy"], DISTINCT["chain"]):
        assert math.isclose(emitted(case, at())[1], emitted(case, rules.match)[1], rel_tol=EXACT)


def test_threshold_counts_duplicates_twice():
    duplicates = Case((0, 0, 1, 2), "PPPP", duplicates=True)
    assert distance(duplicates, emitted(duplicates, at())[0]) > FAR
    assert distance(duplicates, emitted(duplicates, rules.token)[0]) < EXACT


@pytest.mark.parametrize("single, acc", [(0.3, 1.0), (1.0, 0.5), (0.3, 0.5), (0.0, 1.0), (1.0, 0.0)])
def test_thresholds_accept_more_and_are_lossy(single, acc):
    case = DISTINCT["bushy"]
    law, accepted = emitted(case, at(single, acc))
    assert math.isclose(sum(law.values()), 1.0, rel_tol=EXACT)
    assert accepted > emitted(case, at())[1] + FAR and distance(case, law) > FAR


def test_thresholds_by_hand():
    """p = (0.5, 0.3, 0.2): the coin of the root passes 0.3 / 0.8 first, then (0.3 + 0.2) / 0.8."""

    class Fixed(Case):
        def p(self, prefix):
            return torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)

        def point_token(self, prefix, rank):
            return 1 + rank

    law, accepted = emitted(Fixed((0, 0), "PP"), at(acc=0.8))
    assert math.isclose(accepted, 0.5 / 0.8, rel_tol=EXACT)
    assert math.isclose(law[(0,)], 1 - 0.5 / 0.8, rel_tol=EXACT)  # p without both siblings
    assert math.isclose(sum(v for k, v in law.items() if k[0] == 1), 0.3 / 0.8, rel_tol=EXACT)
    law, _ = emitted(Fixed((0, 0), "PP"), at(single=0.25))
    assert math.isclose(sum(v for k, v in law.items() if k[0] == 1), 1.0, rel_tol=EXACT)


THRESHOLD_EDITS = {
    "p not summed": ("total += x", "total = x"),
    "tokens of siblings not left out": ("= 0.0\n            return", "*= 1.0\n            return"),
    "a coin for the next token is p itself": ("rest if rest.sum() > 0 else p", "p"),
}


@pytest.mark.parametrize("mutant", THRESHOLD_EDITS)
def test_mistaken_thresholds_are_refused(mutant):
    rule = edited(rules.threshold, *THRESHOLD_EDITS[mutant])
    assert distance(DISTINCT["siblings"], emitted(DISTINCT["siblings"], at(rule=rule))[0]) > FAR


def sglang_path(laws, tree, coins, single, acc):
    """The walk of SGLang's target-only kernel over links, with a coin for each node, as it is described."""
    first, after, tokens = tree.first_child.tolist(), tree.next_sibling.tolist(), tree.tokens.tolist()
    path, summed = [0], 0.0
    candidate = first[0]
    while candidate != -1:
        p = float(laws[path[-1], tokens[candidate]])
        summed += p
        if coins[path[-1]] <= summed / max(acc, 1e-9) or p >= single:
            path.append(candidate)
            summed, candidate = 0.0, first[candidate]
        else:
            candidate = after[candidate]
    return path


@pytest.mark.parametrize("backend", QUICK)
@pytest.mark.parametrize("single, acc", [(1.0, 1.0), (0.2, 1.0), (1.0, 0.4), (0.15, 0.3)])
def test_threshold_walks_as_sglang_does(backend, single, acc):
    """On trees with siblings that hold the same token, too."""
    g = torch.Generator().manual_seed(9)
    nodes, lengths = 12, set()
    for trial in range(25):
        logits = torch.randn(nodes, 6, generator=g)
        parents = [-1] + [int(torch.randint(max(0, i - 4), i, (1,), generator=g)) for i in range(1, nodes)]
        tokens = torch.randint(6, (1, nodes), generator=g)
        tree = sdk.DraftTree.from_parents(tokens, torch.tensor([parents]))
        keys = dict(seeds=torch.tensor([trial]), positions=torch.tensor([3]), backend=backend)
        path = sdk.verify(logits, tree, rule=sdk.Threshold(single, acc), **keys).path[0].tolist()
        coins = [coin(trial, 3, node) for node in range(nodes)]
        wanted = sglang_path(logits.double().softmax(-1), tree, coins, single, acc)
        assert [node for node in path if node >= 0] == wanted, trial
        lengths.add(len(wanted))
    assert len(lengths) > 2


# Ensemble.


def mixture_of(case, weight, steps):
    """The law of sequences of `steps` tokens, each drawn from the mixture of both laws."""
    law = {}
    for sequence in itertools.product(range(case.vocab), repeat=steps):
        chance = 1.0
        for i, token in enumerate(sequence):
            p, q = case.p(sequence[:i]), case.q(sequence[:i])
            chance *= float(weight * p[token] + (1 - weight) * q[token])
        law[sequence] = chance
    return law


def chain_law(case, rule):
    """The law of the first `depth` tokens: those emitted, completed by the mixture where the step ended."""
    law, _ = emitted(case, rule)
    assert math.isclose(sum(law.values()), 1.0, rel_tol=EXACT)
    first = defaultdict(float)
    for output, chance in law.items():
        first[output[0]] += chance
    return first


@pytest.mark.parametrize("weight", [0.0, 0.35, 0.8, 1.0])
@pytest.mark.parametrize("zeros", [False, True])
def test_ensemble_has_the_law_of_the_mixture_where_a_token_was_drafted(weight, zeros):
    case = Case((0, 1), "II", vocab=4, zeros=zeros)
    law, _ = emitted(case, partial(rules.token, weight=weight))
    one, two = mixture_of(case, weight, 1), mixture_of(case, weight, 2)
    first, second, accepted = defaultdict(float), defaultdict(float), defaultdict(float)
    for output, chance in law.items():
        first[output[:1]] += chance
        if len(output) > 1:  # the first drafted token was accepted
            accepted[output[:1]] += chance
            second[output[:2]] += chance
    for token, chance in one.items():
        assert math.isclose(first[token], chance, rel_tol=1e-10, abs_tol=EXACT)
    for pair, chance in two.items():
        if accepted[pair[:1]]:
            wanted = accepted[pair[:1]] * chance / one[pair[:1]]
            assert math.isclose(second[pair], wanted, rel_tol=1e-10, abs_tol=EXACT)


@pytest.mark.parametrize("kinds", ["IIIII", "WPIWP", "WWWWW", "PPPPP"])
def test_ensemble_of_weight_one_is_the_token_rule(kinds):
    case = Case((0, 0, 1, 1, 2), kinds)
    assert distance(case, emitted(case, partial(rules.token, weight=1.0))[0]) < EXACT
    assert distance(case, emitted(case, partial(rules.token, weight=0.8))[0]) > FAR


@pytest.mark.parametrize(
    "old, new",
    [("(1.0 - weight) * Q_x", "(1.0 - weight)"), ("weight * P_x + (1.0 - weight) * Q_x", "weight * P_x")],
)
def test_mistaken_mixtures_are_refused(old, new):
    case = Case((0, 1), "II", vocab=4)
    law, _ = emitted(case, partial(edited(rules.token, old, new), weight=0.6))
    first = defaultdict(float)
    for output, chance in law.items():
        first[output[:1]] += chance
    assert max(abs(first[x] - chance) for x, chance in mixture_of(case, 0.6, 1).items()) > FAR


def test_ensemble_is_what_transformers_does():
    """Its acceptance ratio 1 - w + w p / q, and its residual, on a chain of one token."""
    p, q, weight = torch.tensor([0.1, 0.6, 0.3]), torch.tensor([0.5, 0.2, 0.3]), 0.4
    batch = 4000
    tokens = torch.multinomial(q, batch, replacement=True)[:, None]
    tree = sdk.DraftTree.chain(tokens)
    keys = dict(seeds=torch.arange(batch), positions=torch.zeros(batch).long())
    verified = sdk.verify(
        p.log().repeat(2 * batch, 1), tree, q.log().repeat(2 * batch, 1), rule=sdk.Ensemble(weight), **keys
    )
    for x in range(3):
        mine = tokens[:, 0] == x
        ratio = min(1.0, float(1 - weight + weight * p[x] / q[x]))
        assert abs(float((verified.num_accepted[mine] == 1).float().mean()) - ratio) < 0.05
    assert bool((verified.tokens[verified.num_accepted == 0, 0] == 1).all())  # [p - q]+


# Deferred.


def deferred_case(rows, tokens, parents, entropy=0.3, window=1, temperature=0.0, backend="reference"):
    tree = sdk.DraftTree.from_parents(torch.tensor([tokens]), torch.tensor([parents]))
    sampling = sdk.SamplingParams(temperature)
    given = dict(sampling=sampling, rule=sdk.Deferred(entropy, window), backend=backend)
    return sdk.verify(torch.tensor(rows), tree, **given).path[0].tolist()


SURE, UNSURE = [9.0, 0.0, 0.0], [1.0, 0.9, 0.0]  # token 0 is the likeliest


@pytest.mark.parametrize("backend", QUICK)
def test_deferred_windows_by_hand(backend):
    path = partial(deferred_case, backend=backend)
    chain = [-1, 0, 1, 2, 3]
    # A token that does not match passes where the target is unsure, if as many as the window match after it.
    assert path([UNSURE] * 5, [-1, 1, 0, 0, 0], chain, window=3) == [0, 1, 2, 3, 4]
    assert path([UNSURE] * 5, [-1, 1, 0, 0, 0], chain, window=4) == [0, -1, -1, -1, -1]  # the draft ends
    assert path([SURE] + [UNSURE] * 4, [-1, 1, 0, 0, 0], chain, window=1) == [0, -1, -1, -1, -1]
    assert path([UNSURE] * 5, [-1, 0, 1, 1, 0], chain, window=1) == [0, 1, -1, -1, -1]  # another one follows
    assert path([UNSURE] * 5, [-1, 0, 1, 0, 1], chain, window=1) == [0, 1, 2, 3, -1]
    assert path([UNSURE] * 5, [-1, 1, 1, 1, 1], chain, window=0) == [0, 1, 2, 3, 4]
    assert path([UNSURE] * 5, [-1, 1, 0, 0, 0], chain, entropy=2.0) == [0, -1, -1, -1, -1]
    # On a tree each path has its own window; the deepest node with nothing outstanding is kept.
    tokens, parents = [-1, 1, 0, 0, 0, 0], [-1, 0, 0, 1, 2, 3]
    assert path([UNSURE] * 6, tokens, parents, window=2) == [0, 1, 3, 5]
    assert path([UNSURE] * 6, tokens, parents, window=3) == [0, 2, 4, -1]


@pytest.mark.parametrize(
    "old, new",
    [
        ("max(before - 1, 0)", "0"),  # the window is one token
        ("before == 0 and ", ""),  # another token that does not match starts a new window
        ("sum()) >= entropy", "sum()) >= 0"),  # no gate
        ("if left[node] == 0", ""),  # windows need not be complete
    ],
)
def test_mistaken_windows_are_refused(monkeypatch, old, new):
    monkeypatch.setitem(rules.RULES, "deferred", edited(rules.deferred, old, new))
    with pytest.raises(AssertionError):
        test_deferred_windows_by_hand("reference")


def test_a_token_that_is_masked_never_passes():
    tree = sdk.DraftTree.chain(torch.tensor([[1, 0]]))
    mask = torch.tensor([[0b101], [-1], [-1]]).int()
    for backend in QUICK:
        verified = sdk.verify(
            torch.tensor([UNSURE] * 3), tree, rule=sdk.Deferred(0.0, 0), token_bitmask=mask, backend=backend
        )
        assert verified.num_accepted.tolist() == [0]


# Backends.


def check_backend(backend, rule, seeds, change=lambda given: given, **options):
    requests = differing = 0
    for seed in seeds:
        given = change(random_case(seed, hostile=seed % 3 == 0, **options))
        if given["tree"].tokens.numel() == 0:
            continue
        (ours, _), (reference, _) = both_with_traces(given, rule, backend)
        if "target_rows" not in given:  # a root without a row leaves its request empty
            check_in_range(ours, given)
        same = (ours.tokens == reference.tokens).all(1) & (ours.path == reference.path).all(1)
        requests += len(same)
        differing += int((~same).sum())
        assert torch.equal(ours.status[same], reference.status[same]), seed
        torch.testing.assert_close(
            ours.logprobs[same], reference.logprobs[same], rtol=1e-4, atol=1e-4, equal_nan=True
        )
    assert requests > 10 and differing <= max(requests * 0.004, 0.9), f"{differing} of {requests} differ"


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_native_backend_agrees(rule):
    check_backend("cpu", rule, range(70))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_nodes_without_a_row_are_served_alike(rule):
    """Their tokens may end a path, and they are never kept."""

    def change(given):
        g = torch.Generator().manual_seed(int(given["seeds"][0]) % 1000)
        rows = torch.arange(given["tree"].tokens.numel(), dtype=torch.int32)
        return given | dict(target_rows=torch.where(torch.rand(len(rows), generator=g) < 0.3, -1, rows))

    check_backend("cpu", rule, range(60), change)


def light(given):
    """One form, in which kernels compile fast: float32 rows, no cuts, no bitmask; the draft's law is near."""
    target = given["target_logits"].float().contiguous()
    keys = {key: given[key] for key in ("tree", "seeds", "positions", "return_logprobs")}
    temperature = torch.linspace(0.0, 1.2, given["tree"].batch_size).flip(0)
    return keys | dict(
        target_logits=target,
        draft_logits=target.roll(1, 1) * 0.5,
        sampling=sdk.SamplingParams(temperature),
    )


@pytest.mark.skipif("triton" not in BACKENDS, reason="needs the emulator")
@pytest.mark.parametrize("rule", RULES[::2], ids=str)
def test_triton_agrees(rule):
    check_backend("triton", rule, range(12), light, vocab=69)


@pytest.mark.parametrize("backend", QUICK)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_greedy_requests_emit_the_argmax(backend, rule):
    given = random_case(4, batch=4, vocab=31)
    given["sampling"] = sdk.SamplingParams(0.0)
    verified = sdk.verify(**given, rule=rule, backend=backend)
    rows = given["target_logits"].float()
    assert given.get("token_bitmask") is None
    for b, count in enumerate(verified.num_tokens.tolist()):
        if count:
            last = int(given["tree"].cu_nodes[b]) + int(verified.path[b, count - 1])
            assert int(verified.tokens[b, count - 1]) == int(rows[last].argmax())


def test_names_and_numbers():
    for rule in RULES:
        assert rule.lossless is False and sdk.DraftTree and len(rule.values) in (1, 2)
    for make, error, message in (
        (lambda: sdk.Threshold(1.5), ValueError, "Threshold: single must be in"),
        (lambda: sdk.Threshold(acc=-0.1), ValueError, "Threshold: acc must be in"),
        (lambda: sdk.Ensemble(1.1), ValueError, "Ensemble: weight must be in"),
        (lambda: sdk.Deferred(-1.0), ValueError, "Deferred: entropy must be"),
        (lambda: sdk.Deferred(window=-1), ValueError, "Deferred: window must be"),
        (lambda: sdk.Deferred(window=1.5), TypeError, "Deferred: window must be an int"),
    ):
        with pytest.raises(error, match=f"^{message}"):
            make()
    assert Proposal.POINT == 0
