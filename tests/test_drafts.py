# SPDX-License-Identifier: Apache-2.0
"""What drafters return: every form, cut to what is of use, pruned without a change of the law, and cheap."""

import importlib
import itertools
import math
import random
from collections import defaultdict
from dataclasses import replace
from functools import partial

import pytest
import torch
from exact import Case, distance, outcomes

import specdec_kernels as sdk
from specdec_kernels.integrations.transformers import drafts as module
from specdec_kernels.integrations.transformers.drafts import Drafting, Drafts, Nodes
from specdec_kernels.reference.request import Request, Tree

rules = importlib.import_module("specdec_kernels.reference.verification")
V = 10
TEXT, LENGTHS = torch.tensor([[1, 2, 3, 1, 2], [4, 5, 0, 0, 0]]), torch.tensor([5, 2])
FAR = [9, 9]
P, D, W = sdk.Proposal.POINT, sdk.Proposal.INDEPENDENT, sdk.Proposal.WITHOUT_REPLACEMENT


def drafted(answer, limits=FAR, *, budget=None, chains=False, **options):
    """What the target gets of an answer."""
    drafting = Drafting(lambda text, lengths: answer, vocab_size=V, budget=budget, **options)
    drafting.chains = chains
    drafting.reset(len(limits))
    return drafting.draft(TEXT[: len(limits)], LENGTHS[: len(limits)], limits)


def trees(drafts):
    """Of each request (token, parent, proposal) of its nodes but the root."""
    tree, ends = drafts.tree, drafts.tree.cu_nodes.tolist()
    rows = list(zip(tree.tokens.tolist(), tree.parents.tolist(), tree.proposals.tolist(), strict=True))
    assert all(rows[start][1] == -1 for start in ends[:-1])
    requests = [rows[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]
    assert tree.max_nodes == max(map(len, requests))
    assert tree.max_depth == int(tree._all_depths().max())
    return [request[1:] for request in requests]


def two(*columns, proposals=P):
    """A tree for each of two requests, given by (tokens, parents)."""
    tokens, parents = zip(*columns, strict=True)
    sizes = torch.tensor([0, *map(len, tokens)]).cumsum(0).int()
    return sdk.DraftTree.from_parents(
        torch.tensor(sum(tokens, [])), torch.tensor(sum(parents, [])), sizes, proposals=proposals
    )


BRANCHED = two(([-1, 3, 4, 5, 6], [-1, 0, 0, 1, 3]), ([-1, 7], [-1, 0]))
LAWS = torch.randn(7, V)


def test_tokens_are_chains_of_chosen_ones_up_to_the_first_gap():
    got = drafted(torch.tensor([[3, 4, -1, 5], [-1, 1, 1, 1]], dtype=torch.int32))
    assert trees(got) == [[(3, 0, P), (4, 1, P)], []]
    assert got.draft_logits is None and got.draft_rows is None


def test_tokens_with_laws_are_drawn():
    laws = torch.randn(2, 3, V)
    got = drafted((torch.tensor([[3, 4, 5], [6, -1, -1]]), laws), [2, 9])
    assert trees(got) == [[(3, 0, D), (4, 1, D)], [(6, 0, D)]]
    rows = got.draft_rows.tolist()
    assert torch.equal(got.draft_logits[rows[0]], laws[0, 0])
    assert torch.equal(got.draft_logits[rows[1]], laws[0, 1])
    assert torch.equal(got.draft_logits[rows[3]], laws[1, 0])


@pytest.mark.parametrize("answer", [
    BRANCHED,
    (BRANCHED, None),
    (BRANCHED, torch.zeros(2, 5)),
    (BRANCHED, LAWS),
    Drafts(BRANCHED),
    Drafts(BRANCHED, LAWS, torch.arange(7).int(), torch.zeros(2, 5)),
], ids=["tree", "none", "scores", "laws", "drafts", "all"])  # fmt: skip
def test_trees_alone_with_laws_and_with_scores(answer):
    got = drafted(answer)
    assert trees(got) == [[(3, 0, P), (4, 0, P), (5, 1, P), (6, 3, P)], [(7, 0, P)]]
    has_laws = isinstance(answer, tuple) and any(each is LAWS for each in answer)
    assert (got.draft_logits is LAWS) == has_laws
    if has_laws:
        assert got.draft_rows.tolist() == list(range(7))


def test_what_the_helpers_return_is_taken_as_it_is():
    for drafter in (
        partial(sdk.ngram_draft, num_draft=3),
        partial(sdk.ngram_tree, max_nodes=4),
    ):
        drafting = Drafting(drafter, vocab_size=V, budget=None)
        drafting.reset(2)
        assert trees(drafting.draft(TEXT, LENGTHS, FAR)) == [[(3, 0, P), (1, 1, P), (2, 2, P)], []]

    laws = []

    def expand(frontier):
        laws.append(torch.randn(2, frontier.tokens.shape[1], V))
        return sdk.sample_children(laws[-1].flatten(0, 1), 2)

    grown = sdk.grow_tree(expand, torch.tensor([2, 5]), 6, max_depth=2, width=2)
    laws = torch.cat(laws, 1).flatten(0, 1)
    for answer in (grown, (grown, laws), Drafts(grown.tree, laws, grown.draft_rows, grown.scores)):
        got = drafted(answer)
        assert got.tree.tokens.numel() == 12 and set(got.tree.proposals.tolist()) == {P, W}
        if answer is grown:
            assert got.draft_logits is None
        else:
            assert torch.equal(got.draft_logits, laws)
            leaves = set(range(12)) - {r for r, p in enumerate(got.tree.parents.tolist())}
            assert leaves == set()
            assert torch.equal(got.draft_rows, grown.draft_rows)


def test_a_tree_is_cut_by_depth_at_its_requests_own_limit():
    got = drafted((BRANCHED, LAWS), [0, 1])
    assert trees(got) == [[], [(7, 0, P)]] and got.draft_rows.tolist() == [0, 5, 6]
    assert trees(drafted(BRANCHED, [1, 0])) == [[(3, 0, P), (4, 0, P)], []]
    assert drafted(BRANCHED, [0, 0]).tree.max_depth == 0


def test_a_drafter_is_not_asked_where_nothing_is_of_use():
    drafting = Drafting(lambda *_: pytest.fail("asked"), vocab_size=V)
    drafting.reset(2)
    assert trees(drafting.draft(TEXT, LENGTHS, [0, 0])) == [[], []]
    assert trees(Drafting(None, vocab_size=V).draft(TEXT, LENGTHS, FAR)) == [[], []]


def test_nodes_without_a_token_go_with_all_below_them():
    answer = two(([-1, -1, 4, 5, 6], [-1, 0, 0, 1, 2]), ([-1, V, 2, 3], [-1, 0, 1, 0]))
    assert trees(drafted(answer)) == [[(4, 0, P), (6, 1, P)], [(3, 0, P)]]
    flat = sdk.DraftTree(answer.tokens, answer.parents, torch.tensor([0, 0, 4]).int(), answer.proposals, 5, 3)
    assert trees(drafted(flat)) == [[], [(4, 0, P), (5, 1, P)][:1]]


def test_linked_siblings_keep_their_order():
    first, after = torch.tensor([[2, -1, 3, -1]]), torch.tensor([[-1, -1, 1, -1]])
    answer = sdk.DraftTree.from_links(torch.tensor([[-1, 5, 6, 7]]), first, after)
    got = drafted((answer, torch.randn(4, V)), [9])
    assert trees(got) == [[(6, 0, P), (7, 1, P), (5, 0, P)]]
    assert got.draft_rows.tolist() == [0, 2, 3, 1]
    assert got.tree.first_child.tolist() == [1, 2, -1, -1]
    assert got.tree.next_sibling.tolist() == [-1, 3, -1, -1]


def test_only_the_child_verified_first_where_the_target_reads_chains():
    assert trees(drafted(BRANCHED, chains=True)) == [[(3, 0, P), (5, 1, P), (6, 2, P)], [(7, 0, P)]]


def test_a_drafter_may_write_into_what_it_gets():
    def draft(text, lengths):
        text.fill_(0)
        lengths.fill_(0)
        return torch.full((2, 1), 3)

    text, lengths = TEXT.clone(), LENGTHS.clone()
    drafting = Drafting(draft, vocab_size=V, budget=None)
    drafting.reset(2)
    drafting.draft(text, lengths, FAR)
    assert torch.equal(text, TEXT) and torch.equal(lengths, LENGTHS)


class Stateful:
    """A drafter with all that it may have."""

    def __init__(self):
        self.said = []

    def reset(self, batch_size, seeds):
        self.said.append(("reset", batch_size, seeds.tolist()))

    def keep(self, places):
        self.said.append(("keep", places))

    def __call__(self, text, lengths, max_draft):
        self.said.append(("draft", max_draft))
        return torch.full((len(lengths), 4), 3)


def test_a_drafter_is_told_who_stays_and_how_deep_to_draft():
    drafter = Stateful()
    drafting = Drafting(drafter, vocab_size=V, budget=None)
    drafting.reset(2, seeds=torch.tensor([5, 6]), rule="auto")
    drafting.draft(TEXT, LENGTHS, [3, 0])
    drafting.after([[0, 1], [0]], [2, 1])
    drafting.keep([1])
    assert len(trees(drafting.draft(TEXT[1:], LENGTHS[1:], [7]))[0]) == 4
    assert drafter.said == [("reset", 2, [5, 6]), ("draft", [3, 0]), ("keep", [1]), ("draft", [7])]


KINDS = "drafter must return tokens [B, K], a DraftTree, or"


NO = torch.zeros(2, 3).long()
BACKWARDS = sdk.DraftTree.from_parents(NO, torch.tensor([[-1, 2, 0]] * 2), check=False, max_depth=2)


@pytest.mark.parametrize("answer, kind, text", [
    (None, TypeError, f"generate: {KINDS} Drafts, GrownTree or a tuple of drafts and their draft_logits"),
    ([[1, 2]], TypeError, "got list"),
    (torch.zeros(2, 2).long().numpy(), TypeError, "got ndarray"),
    ((BRANCHED,), TypeError, "got a tuple (DraftTree)"),
    ((None, LAWS), TypeError, "got NoneType"),
    (torch.zeros(2, 3), TypeError, "drafter must return integer tokens, got float32"),
    (torch.zeros(2, 3).bool(), TypeError, "drafter must return integer tokens, got bool"),
    (torch.zeros(3, 2).long(), ValueError, "drafter must return tokens [B, K], B = 2, got [3, 2]"),
    (torch.zeros(2).long(), ValueError, "drafter must return tokens [B, K], B = 2, got [2]"),
    ((NO, torch.zeros(2, 2, V)), ValueError,
     "the drafter's draft_logits must have shape [B, K, Vd] = [2, 3, Vd], got [2, 2, 10]"),
    ((NO, torch.zeros(2, 3, V).long()), TypeError, "must have dtype float32"),
    ((NO, 5), TypeError, "draft_logits must be a tensor, got int"),
    (sdk.DraftTree.chain(torch.zeros(3, 2).long()), ValueError, "must return trees of B = 2 requests, got 3"),
    ((BRANCHED, torch.zeros(5, V)), ValueError,
     "the drafter's draft_logits must have shape [R, Vd] = [7, Vd], or come with draft_rows, got [5, 10]"),
    (Drafts(BRANCHED, LAWS, torch.full((7,), 7).int()), ValueError, "draft_rows must be below Rq = 7, got 7"),
    (Drafts(BRANCHED, LAWS, torch.zeros(6).int()), ValueError, "shapes [Rq, Vd] and [R] = [7], got"),
    (Drafts(BRANCHED, scores=torch.zeros(2, 4)), ValueError, "must have shape [B, max_nodes] = [2, 5]"),
    (BACKWARDS, ValueError, "whose nodes follow their parents, got parent 2 at request 0 node 1"),
])  # fmt: skip
def test_other_answers_are_refused_by_name(answer, kind, text):
    with pytest.raises(kind) as error:
        drafted(answer)
    assert text in str(error.value)


@pytest.mark.parametrize("options, text", [
    (dict(drafter=5), "generate: drafter must be callable or None, got int"),
    (dict(drafter=None, budget=3), "generate: budget must be a Budget, True, False or None, got int"),
])  # fmt: skip
def test_options_are_refused_by_name(options, text):
    with pytest.raises(TypeError) as error:
        Drafting(**options, vocab_size=V)
    assert text in str(error.value)


# The law of the text, by enumeration: every draft, and every way the verifier can decide


def law_of(case, rule, *, budget, limit=9, asked=True, chains=False):
    """The law of what one step emits, the drafts having passed through a `Drafting`."""
    law, shapes = defaultdict(float), set()
    count = len(case.parents) + 1
    for tokens, chance in case.drafts():
        prefixes = [tuple(tokens[n] for n in case.above(child)) for child in range(count)]
        scores = [0.0]
        for child, parent in enumerate(case.parents, 1):
            scores.append(scores[parent] + float(case.q(prefixes[parent])[tokens[child]].log()))
        tree = sdk.DraftTree.from_parents(
            torch.tensor([[-1, *(tokens[n] for n in range(1, count))]]),
            torch.tensor([[-1, *case.parents]]),
            proposals=torch.tensor([[0, *(case.kind(n) for n in range(1, count))]]),
            check=False,
        )
        laws = torch.stack([case.q(prefix).log() for prefix in prefixes])
        answer = Drafts(tree, laws, None, torch.tensor([scores]))
        drafting = Drafting(lambda *_, answer=answer: answer, vocab_size=case.vocab, budget=budget)
        drafting.width, drafting.chains = int(asked), chains
        drafting.reset(1)
        got = drafting.draft(TEXT[:1], LENGTHS[:1], [limit])
        cut = Tree(got.tree.tokens.tolist(), got.tree.parents.tolist(), got.tree.proposals.tolist())
        shapes.add(tuple(cut.parents))
        above = [()]
        for token, parent in zip(cut.tokens[1:], cut.parents[1:], strict=True):
            above.append((*above[parent], token))

        def make(noise, cut=cut, above=above, got=got):
            return Request(
                cut,
                case.vocab,
                target=lambda node, above=above: (case.p(above[node]), 0),
                draft=lambda node, got=got: got.draft_logits[got.draft_rows[node]].exp(),
                noise=noise,
                max_depth=case.depth,
            )

        for output, _, probability in outcomes(rule, make):
            law[output] += chance * probability
    return law, shapes


CASES = {
    "chain": Case((0, 1), "II"),
    "tree": Case((0, 0, 1), "WWW"),
    "hybrid": Case((0, 0, 1), "WPI", vocab=4),
    "padded": Case((0, 1), "II", draft_width=4),
}
BUDGETS = {
    "dear": sdk.Budget({1: 1.0, 2: 1.55, 3: 1.7, 4: 2.6}),
    "cheap": sdk.Budget({1: 1.0, 2: 1.2, 3: 1.9, 4: 2.0}),
}


@pytest.mark.parametrize("rule", [rules.token, rules.traversal])
@pytest.mark.parametrize("name", CASES)
def test_pruning_keeps_the_law(name, rule):
    case = CASES[name]
    for budget in (None, *BUDGETS.values()):
        for limit in (1, 9):
            for asked in (False, True):
                law, shapes = law_of(case, rule, budget=budget, limit=limit, asked=asked)
                assert distance(case, law) < 1e-12
    for budget in (None, BUDGETS["cheap"]):
        law, _ = law_of(case, rule, budget=budget, chains=True)
        assert distance(case, law) < 1e-12


@pytest.mark.parametrize("rule", [rules.token, rules.traversal])
@pytest.mark.parametrize("name", ["chain", "tree"])
def test_mutant_that_prunes_by_observed_scores(name, rule, monkeypatch):
    monkeypatch.setattr(Nodes, "drawn", False)
    found = []
    for budget in BUDGETS.values():
        law, shapes = law_of(CASES[name], rule, budget=budget)
        found.append(distance(CASES[name], law) if len(shapes) > 1 else 0.0)
    assert max(found) > 1e-2


@pytest.mark.parametrize("rule", [rules.token, rules.traversal])
def test_mutant_that_leaves_a_law_to_a_child_without_its_chosen_siblings(rule, monkeypatch):
    monkeypatch.setattr(module, "_proposal", lambda proposal, alone: proposal)
    law, _ = law_of(CASES["hybrid"], rule, budget=None, chains=True)
    assert distance(CASES["hybrid"], law) > 1e-2


@pytest.mark.parametrize("rule", [rules.token, rules.traversal])
def test_mutant_that_drops_what_was_drawn_beyond_the_vocabulary(rule, monkeypatch):
    whole = module._usable

    def usable(draft, *rest):
        return whole(draft._replace(tokens=[x if x < 3 else -1 for x in draft.tokens]), *rest)

    monkeypatch.setattr(module, "_usable", usable)
    law, _ = law_of(CASES["padded"], rule, budget=None)
    assert distance(CASES["padded"], law) > 1e-2


# Time, by a clock that the target and the drafter move

CURVES = {
    "cpu": {1: 1.0, 2: 1.09, 3: 1.17, 4: 1.65, 8: 2.17, 16: 2.21, 32: 2.89, 64: 4.41},
    "flat": {1: 1.0, 16: 1.02, 64: 1.1},
    "steep": {1: 1.0, 8: 6.0},
    "bumpy": {1: 1.0, 2: 1.7, 3: 2.0, 4: 1.4, 8: 1.4, 12: 1.45, 16: 1.6, 32: 2.1, 160: 4.7},
}
LENGTH = 8


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def simulate(
    curve,
    rate,
    tokens,
    *,
    batch=1,
    most=1,
    fixed=None,
    laws=False,
    told=False,
    call=0.0,
    level=0.0,
    first=1.0,
    noise=0.0,
    prompt=0,
    seed=0,
):
    """Time by plain decoding's, of a batch that is done when its slowest text is.

    Each text has `tokens` tokens, of at most `most` times as many, and goes on with each draft with
    probability `rate`; both may be lists, by text. A call of the drafter takes `call` and `level` for each of
    its levels, in steps of the batch; the very first step takes `first` times as long, and each is longer by
    up to `noise`. With `fixed` so many nodes are drafted in every step, without a budget.
    """
    lengths = tokens if isinstance(tokens, list) else [tokens] * batch
    rates = rate if isinstance(rate, list) else [rate] * batch
    cost, clock, choices = sdk.Budget(CURVES[curve]).cost, Clock(), random.Random(seed)
    begin = float(cost(len(lengths)))

    def draft(text, places, depth=LENGTH if fixed is None else fixed):
        clock.now += (call + level * depth) * begin if depth else 0.0
        chains = torch.ones(len(places), depth, dtype=torch.int64)
        return (chains, torch.zeros(*chains.shape, 4)) if laws else chains

    def draft_as_told(text, places, max_draft):
        return draft(text, places, min(LENGTH if fixed is None else fixed, max(max_draft)))

    budget = True if fixed is None else None
    drafting = Drafting(draft_as_told if told else draft, vocab_size=V, budget=budget, clock=clock)
    drafting.reset(len(lengths))
    if prompt:
        drafting.read(prompt * len(lengths), float(cost(prompt * len(lengths))))
    running, written, steps = list(range(len(lengths))), [0] * len(lengths), 0
    while running:
        limits = [most * lengths[b] - written[b] - 1 for b in running]
        text, places = torch.ones(len(running), 4).long(), torch.full((len(running),), 4)
        tree = drafting.draft(text, places, limits).tree
        time = float(cost(tree.tokens.numel())) * (1.0 if steps else first)
        clock.now += time * (1.0 + noise * choices.random())
        path = []
        for b, size in zip(running, tree.cu_nodes.diff().tolist(), strict=True):
            hits = 0
            while hits < min(size, lengths[b] - written[b]) - 1 and choices.random() < rates[b]:
                hits += 1
            path.append(list(range(hits + 1)))
            written[b] += hits + 1
        drafting.after(path, [len(each) for each in path])
        steps += 1
        stay = [place for place, b in enumerate(running) if written[b] < lengths[b]]
        running = [running[place] for place in stay]
        if running:
            drafting.keep(stay)
    plain = sum(float(cost(sum(length > place for length in lengths))) for place in range(max(lengths)))
    return clock.now / (plain * (1.0 + noise / 2))


def best_fixed(curve, rate, tokens, **options):
    """The same of the best depth, where it is known before."""
    return min(simulate(curve, rate, tokens, fixed=n, **options) for n in range(LENGTH + 1))


DRAFTERS = {
    "lookup": {},
    "slow lookup": dict(call=0.01),
    "slower than it is worth": dict(call=0.3),
    "chosen by a model": dict(told=True, level=0.1),
    "drawn by a model": dict(told=True, level=0.1, laws=True),
    "drawn, not told": dict(laws=True),
    "four requests": dict(batch=4),
    "four drawn": dict(batch=4, laws=True),
}


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("name", DRAFTERS)
def test_useless_drafts_cost_three_percent_at_most(name, curve):
    for tokens in (100, 250):
        assert simulate(curve, 0.0, tokens, **DRAFTERS[name]) <= 1.03
    assert simulate(curve, 0.0, 200, noise=0.1, **DRAFTERS[name]) <= 1.03


@pytest.mark.parametrize("curve", CURVES)
def test_a_prompt_tells_what_many_rows_cost(curve):
    """Before a trial was made; a short text is worth drafting for, too."""
    for tokens in (100, 250):
        assert simulate(curve, 0.0, tokens, prompt=160) <= 1.03
    if curve != "steep":
        assert simulate(curve, 0.9, 64, prompt=160) <= 1.25 * best_fixed(curve, 0.9, 64)


@pytest.mark.parametrize("curve", ["cpu", "flat"])
@pytest.mark.parametrize("name", [each for each in DRAFTERS if each != "slower than it is worth"])
def test_good_drafts_are_used(name, curve):
    options = DRAFTERS[name]
    for rate in (0.6, 0.9):
        assert simulate(curve, rate, 300, **options) <= 1.12 * best_fixed(curve, rate, 300, **options)


UNEVEN = {
    "one good, another useless": ([64] * 2, [1.0, 0.0]),
    "one good, the others useless": ([64] * 8, [1.0] + [0.0] * 7),
    "from useless to good": ([64] * 8, [k / 8 for k in range(8)]),
    "short and good, long and useless": ([16, 16, 64], [1.0, 1.0, 0.0]),
    "long and good, short and useless": ([64, 16, 16], [1.0, 0.0, 0.0]),
}


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("name", UNEVEN)
def test_no_uneven_batch_takes_three_percent_longer(name, curve):
    tokens, rates = UNEVEN[name]
    for options in (dict(), dict(most=4, call=0.02)):
        assert sorted(simulate(curve, rates, tokens, seed=seed, **options) for seed in range(3))[1] <= 1.03


def test_a_good_text_gains_after_the_others_have_ended():
    assert simulate("cpu", [1.0, 0.0, 0.0], [64, 16, 16]) < 0.6


def test_mutant_that_counts_all_tokens_alike_loses_on_an_uneven_batch(monkeypatch):
    monkeypatch.setattr(module, "TextCredit", partial(sdk.TextCredit, awaited=False))
    batches = itertools.product(CURVES, UNEVEN.values())
    assert max(simulate(curve, rates, tokens, most=4) for curve, (tokens, rates) in batches) > 1.03


def test_a_slow_first_step_spoils_nothing():
    best = best_fixed("flat", 0.9, 300)
    assert simulate("flat", 0.9, 300, first=20.0) - 20.0 / 300 <= 1.12 * best
    assert simulate("flat", 0.0, 300, first=20.0) <= 1.03 + 19.0 / 300


def test_mutant_without_a_budget_loses(monkeypatch):
    monkeypatch.setattr(Drafting, "_pruned", lambda self, nodes, weights: nodes)
    endless = dict(credit=math.inf, max_credit=math.inf)
    monkeypatch.setattr(sdk.Budget, "after", lambda self, *step: replace(self, **endless))
    assert simulate("cpu", 0.0, 100) > 1.5


# With seeds the same call writes the same text


def test_no_clock_decides_where_laws_and_seeds_are_given():
    answer = (torch.ones(2, 3).long(), torch.zeros(2, 3, V))
    for rule in ("token", "traversal", "auto"):
        drafting = Drafting(lambda *_: answer, vocab_size=V, rule=rule, seeded=True, clock=Clock())
        drafting.reset(2)
        for _ in range(4):
            assert drafting.draft(TEXT, LENGTHS, FAR).tree.tokens.numel() == 8
            drafting.after([[0], [0]], [1, 1])


def test_a_clock_decides_where_the_text_is_the_same_whatever_is_drafted():
    for rule in ("match", "auto"):
        drafting = Drafting(
            lambda *_: torch.ones(2, 3).long(), vocab_size=V, rule=rule, seeded=True, clock=Clock()
        )
        drafting.reset(2)
        assert drafting.draft(TEXT, LENGTHS, FAR).tree.tokens.numel() == 2
    answers = iter([torch.ones(2, 3).long(), *[(torch.ones(2, 3).long(), torch.zeros(2, 3, V))] * 9])
    clock = Clock()
    drafting = Drafting(lambda *_: next(answers), vocab_size=V, seeded=True, clock=clock)
    drafting.reset(2)
    for _ in range(4):  # laws that come later are not looked at: whether they come is up to the clock
        assert drafting.draft(TEXT, LENGTHS, FAR).draft_logits is None
        clock.now += 1.0
        drafting.after([[0], [0]], [1, 1])


def test_a_budget_of_the_caller_s_reads_no_clock():
    drafting = Drafting(
        lambda *_: torch.ones(2, 8).long(), vocab_size=V, budget=sdk.Budget({1: 1.0, 8: 1.2, 64: 9.0}),
    )  # fmt: skip
    drafting.reset(2)
    drafting.clock = Clock()
    for step in range(30):
        drafting.clock.now = 1e6 * step
        rows = drafting.draft(TEXT, LENGTHS, FAR).tree.tokens.numel()
        assert rows <= 8
        drafting.after([[0], [0]], [1, 1])
    assert rows == 2
