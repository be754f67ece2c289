# SPDX-License-Identifier: Apache-2.0
"""Sharded vocabularies: equal to whole rows, alike in every process, exact; and what must be refused."""

from __future__ import annotations

import inspect
import itertools
import math
import re

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from cases import all_equal, random_case, rule_name
from exact import Case, distance
from exact_cases import CASES, EXACT, FAR
from shard_processes import here, process, results
from shard_threads import everywhere
from synchronisation import no_synchronisation

import specdec_kernels as sdk
from specdec_kernels import sharded
from specdec_kernels.sampling import ORDERS
from specdec_kernels.sharded import edits, facts, law, noise, residual, sums, verification
from specdec_kernels.sharded import rules as sharded_rules
from specdec_kernels.tree import Proposal

RULES = ("match", "token", "traversal", sdk.Ensemble(0.7))
LOSSY = (sdk.Threshold(0.4, 0.6), sdk.Lenient(2.0), sdk.Synthetic((0.9, 0.5)))
EDITED = (0, 1, 2, 4, 5, 10)  # seeds
NOT_SERVED = {
    "verify": ("return_masks", "out", "backend"),
    "sample": ("backend",),
}


def verify_everywhere(arguments, rule, borders, *, whole_draft=True, order=None):
    def run(shard):
        return sharded.verify(shard=shard, rule=rule, **here(arguments, shard, whole_draft))

    return everywhere(borders, run, order)


def some(seeds, **options):
    return (random_case(seed, **options) for seed in seeds)


def same_result(ours, theirs):
    assert all_equal(ours[:4], theirs[:4])
    assert torch.equal(ours.status, theirs.status)
    torch.testing.assert_close(ours.logprobs, theirs.logprobs, rtol=1e-6, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize("hostile", [False, True])
@pytest.mark.parametrize("rule", RULES + LOSSY, ids=rule_name)
def test_one_process_agrees_with_the_reference(rule, hostile):
    for arguments in some(range(10), hostile=hostile):
        (ours,) = verify_everywhere(arguments, rule, [0, arguments["target_logits"].shape[1]])
        same_result(ours, sdk.verify(rule=rule, backend="reference", **arguments))


def borders_for(vocab: int, masked: bool) -> list[list[int]]:
    if masked:
        return [[0, 32, vocab], [0, 32, 64, vocab] if vocab > 64 else [0, vocab]]
    return [[0, 1, vocab], [0, vocab // 3, vocab // 3 + 2, vocab - 1, vocab]]


@pytest.mark.parametrize("rule", RULES, ids=rule_name)
def test_borders_change_no_bit(rule):
    tried = 0
    for arguments in some(range(9), hostile=True):
        vocab = arguments["target_logits"].shape[1]
        if vocab < 64:
            continue
        (whole,) = verify_everywhere(arguments, rule, [0, vocab])
        for borders in borders_for(vocab, "token_bitmask" in arguments):
            last_first = range(len(borders) - 1)[::-1]  # ranks need not be in the order of tokens
            for result in verify_everywhere(arguments, rule, borders, order=last_first):
                assert all_equal(result, whole), borders
            tried += 1
    assert tried > 3


def test_drafts_may_be_sharded_alike():
    for arguments in some(range(12), vocab=200):
        if "draft_logits" not in arguments or arguments["draft_logits"].shape[1] != 200:
            continue
        whole = verify_everywhere(arguments, "traversal", [0, 96, 200])
        parts = verify_everywhere(arguments, "traversal", [0, 96, 200], whole_draft=False)
        assert all_equal(whole[0], parts[0])


def links_case():
    """Siblings in the order of links, and links that lead nowhere, back, or to another's children."""
    g = torch.Generator().manual_seed(3)
    first = torch.tensor([[4, -1, 3, -1, -1, -1], [2, 3, -1, -1, -1, -1]])
    after = torch.tensor([[-1, -1, 1, -1, 2, -1], [-1, -1, 1, 1, -1, -1]])
    tokens = torch.tensor([[-1, 3, 3, 7, 9, 2], [-1, 5, 1, 0, 4, 4]])
    tree = sdk.DraftTree.from_links(tokens, first, after, proposals=2, max_depth=4, check=False)
    row = torch.randn(12, 40, generator=g)
    draft = row + torch.randn(12, 40, generator=g)
    return [
        dict(
            target_logits=row,
            tree=tree,
            draft_logits=draft,
            seeds=torch.tensor([seed, 5 * seed]),
            positions=torch.tensor([4, 5]),
            return_logprobs=True,
        )
        for seed in range(10)
    ]


@pytest.mark.parametrize("rule", ["token", "traversal"])
def test_links_order_siblings(rule):
    for arguments in links_case():
        same_result(
            verify_everywhere(arguments, rule, [0, 40])[0],
            sdk.verify(rule=rule, backend="reference", **arguments),
        )


def test_malformed_trees_do_no_harm():
    """Any integers in the place of a tree: results are in range and every process has the same."""
    g = torch.Generator().manual_seed(1)
    for trial in range(6):
        wild = lambda low, high, n=12: torch.randint(low, high, (n,), generator=g)  # noqa: E731
        tree = sdk.DraftTree(
            tokens=wild(-3, 60),
            parents=wild(-2, 13).int(),
            cu_nodes=wild(-2, 20, 4).int(),
            proposals=wild(0, 5).to(torch.uint8),
            max_nodes=6,
            max_depth=3,
            links=(wild(-2, 9).int(), wild(-2, 9).int()) if trial % 2 else None,
        )
        rows = torch.randn(12, 50, generator=g)
        arguments = dict(target_logits=rows, tree=tree, draft_logits=rows.flip(0))
        arguments |= dict(seeds=torch.arange(3), positions=torch.arange(3))
        for rule in ("match", "token", "traversal"):
            one, two = verify_everywhere(arguments, rule, [0, 20, 50])
            assert all_equal(one[:4], two[:4])
            inside = torch.arange(4) < one.num_tokens[:, None]
            assert bool(((one.tokens >= 0) & (one.tokens < 50))[inside].all())
            assert bool((one.tokens[~inside] == -1).all())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cuts_agree_where_values_tie(dtype, order):
    """Integer logits, some -0: every cut falls on ties, all of which are kept."""
    g = torch.Generator().manual_seed(1)
    for trial in range(12):
        vocab = (7, 64, 1500)[trial % 3]
        logits = torch.randint(-3, 4, (4, vocab), generator=g).to(dtype)
        logits = torch.where((logits == 0) & (torch.rand(logits.shape, generator=g) < 0.5), -logits, logits)
        sampling = sdk.SamplingParams(
            temperature=0.7,
            top_k=(0, 1, 5, 100, 2000, vocab - 1)[trial % 6],
            top_p=(1.0, 0.77, 0.0, 0.31)[trial % 4],
            min_p=(0.0, 0.013, 1.0)[trial % 3],
            order=order,
        )
        keys = dict(seeds=torch.arange(4), positions=torch.full((4,), trial), return_logprobs=True)

        def run(shard, logits=logits, sampling=sampling, keys=keys):
            return sharded.sample(logits[:, shard.start : shard.end], sampling, shard=shard, **keys)

        reference = sdk.sample(logits, sampling, backend="reference", **keys)
        for tokens, logprobs in everywhere([0, vocab // 2, vocab], run):
            assert torch.equal(tokens, reference[0]), (trial, sampling)
            torch.testing.assert_close(logprobs, reference[1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("top_k, top_p", [(600, 1.0), (5000, 0.9), (0, 0.9999), (0, 1 - 1e-9)])
def test_wide_cuts_agree(top_k, top_p):
    logits = torch.randn(3, 20_000, generator=torch.Generator().manual_seed(top_k)) * 1.3
    keys = dict(seeds=torch.arange(3), positions=torch.arange(3), return_logprobs=True)
    sampling = sdk.SamplingParams(1.2, top_k, top_p, 2e-4)
    (tokens, logprobs), _ = everywhere(
        [0, 8192, 20_000],
        lambda shard: sharded.sample(logits[:, shard.start : shard.end], sampling, shard=shard, **keys),
    )
    reference = sdk.sample(logits, sampling, backend="reference", **keys)
    assert torch.equal(tokens, reference[0])
    torch.testing.assert_close(logprobs, reference[1], rtol=1e-6, atol=1e-7)


def with_rows(seed: int) -> dict:
    """A random case whose nodes have rows by number, or none."""
    g = torch.Generator().manual_seed(seed)
    arguments = random_case(seed, vocab=70, hostile=seed % 2 == 0)
    rows = arguments["tree"].tokens.numel()
    drawn = torch.randint(-1, rows + 1, (rows,), generator=g)
    return arguments | dict(target_rows=torch.where(torch.rand(rows, generator=g) < 0.2, -1, drawn).int())


def with_bonus(seed: int) -> dict:
    """Chains of several lengths with the tokens after them; some last nodes have rows."""
    g = torch.Generator().manual_seed(seed)
    batch, drafted, vocab = 3, 4, 70
    target = torch.randn(batch, drafted + 1, vocab, generator=g) * 2
    draft = target[:, :drafted] + torch.randn(batch, drafted, vocab, generator=g)
    lengths = torch.randint(0, drafted + 1, (batch,), generator=g)
    return dict(
        target_logits=target[:, :drafted].contiguous() if seed % 2 else target,
        tree=sdk.DraftTree.chain(draft.argmax(-1), lengths),
        draft_logits=draft,
        bonus_tokens=torch.randint(-1, vocab + 1, (batch,), generator=g),
        seeds=torch.arange(batch) + seed,
        positions=torch.arange(batch),
        return_logprobs=True,
    )


@pytest.mark.parametrize("make", [with_rows, with_bonus])
@pytest.mark.parametrize("rule", ["match", "token", "traversal"])
def test_rows_by_number_and_bonus_tokens(rule, make):
    for seed in range(8):
        arguments = make(seed)
        reference = sdk.verify(rule=rule, backend="reference", **arguments)
        for result in verify_everywhere(arguments, rule, [0, 32, 70]):
            same_result(result, reference)


def test_bonus_tokens_cost_one_sum():
    arguments = with_bonus(0)
    for rule in ("match", "traversal"):
        sent, _ = counted(arguments, rule)
        shapes = dict(drafted=True, bonus=True, return_logprobs=True)
        assert as_traffic(sent) == sharded.traffic(arguments["tree"], rule=rule, **shapes)


def with_ends(seed: int) -> dict:
    """Stops among the drafted tokens, limits, and requests that have ended."""
    g = torch.Generator().manual_seed(seed)
    arguments = [with_rows, with_bonus][seed % 2](seed)
    tree = arguments["tree"]
    batch = tree.batch_size
    stops = torch.randint(-1, 70, (batch, 3), generator=g)
    if len(tree.tokens):
        stops[:, 0] = tree.tokens[torch.randint(len(tree.tokens), (batch,), generator=g)]
    left = torch.randint(-1, 5, (2, batch), generator=g).int()
    ended = torch.rand(batch, generator=g) < 0.2
    every = sdk.Ends(stops, left[0].clone(), left[1].clone(), ended)
    some = (each if torch.rand((), generator=g) < 0.7 else None for each in every)
    return arguments | dict(ends=sdk.Ends(*some))


def test_ends_are_those_of_whole_rows():
    """The same tokens, reasons and state after the step in every process."""
    reasons = set()
    for seed in range(12):
        for rule in ("match", "traversal", LOSSY[seed % 3]):
            whole = with_ends(seed)
            reference = sdk.verify(rule=rule, backend="reference", **whole)

            def run(shard, seed=seed, rule=rule):
                mine = with_ends(seed)
                return sharded.verify(shard=shard, rule=rule, **here(mine, shard)), mine["ends"]

            for result, state in everywhere([0, 32, 70], run):
                same_result(result, reference)
                assert torch.equal(result.finish, reference.finish)
                assert repr(state) == repr(whole["ends"])
            reasons |= set(reference.finish.tolist())
    assert len(reasons) > 6


def with_edits(seed: int, **options) -> dict:
    from edit_cases import random_edits

    arguments = random_case(seed, **options)
    vocab, tree = arguments["target_logits"].shape[1], arguments["tree"]
    hostile = options.get("hostile", False)
    likely = tree.tokens.clamp(0, vocab - 1)
    return arguments | dict(edits=random_edits(seed, tree.batch_size, vocab, likely=likely, hostile=hostile))


def agrees_with_edits(seed, rule, **options) -> bool:
    arguments = with_edits(seed, **options)
    vocab = arguments["target_logits"].shape[1]
    reference = sdk.verify(rule=rule, backend="reference", **arguments)
    return all(
        all_equal(each[:4], reference[:4]) and torch.equal(each.status, reference.status)
        for each in verify_everywhere(arguments, rule, [0, 32, vocab] if vocab > 63 else [0, vocab])
    )


@pytest.mark.parametrize("rule", ["match", "traversal"])
def test_edits_are_those_of_whole_rows(rule):
    """Penalties, biases, bans, bad words and forced tokens, each made where its column is."""
    pytest.importorskip("transformers")
    for seed in EDITED:
        assert agrees_with_edits(seed, rule, hostile=seed % 2 == 0), seed


def test_edits_of_sampled_rows():
    pytest.importorskip("transformers")
    for seed in EDITED:
        arguments = with_edits(seed, vocab=70)
        rows = torch.randn(arguments["tree"].batch_size, 70, generator=torch.Generator().manual_seed(seed))
        keys = {name: arguments[name] for name in ("edits", "seeds", "positions")}

        def run(shard, rows=rows, keys=keys):
            return sharded.sample(rows[:, shard.start : shard.end], shard=shard, **keys)

        reference = sdk.sample(rows, backend="reference", **keys)
        for tokens in everywhere([0, 33, 70], run):
            assert torch.equal(tokens, reference), seed


def no_path(original):
    """Drafted tokens are not counted."""
    return lambda *args: (text := original(*args))._replace(path=torch.full_like(text.path, -1))


@pytest.mark.parametrize("counted", [True, False])
def test_drafted_tokens_are_counted(monkeypatch, counted):
    if not counted:
        monkeypatch.setattr(verification, "text_of", no_path(verification.text_of))
    arguments = dict(
        target_logits=torch.tensor([[0.0, 0.0, 0.0, 9.0], [0.0, 4.0, 0.0, 5.0]]),
        tree=sdk.DraftTree.chain(torch.tensor([[3]])),
        sampling=sdk.SamplingParams(temperature=0.0),
        edits=sdk.LogitEdits(sdk.TokenCounts(1, 4, 4), presence_penalty=2.0),
        seeds=torch.tensor([0]),
        positions=torch.tensor([0]),
    )
    for result in verify_everywhere(arguments, "match", [0, 2, 4]):
        assert result.tokens.tolist() == [[3, 1 if counted else 3]]


def test_edits_by_local_ids_are_refused(monkeypatch):
    pytest.importorskip("transformers")
    proper = edits.Edits._places

    def local(self, tokens, wanted):
        return proper(self, tokens + self.shard.start, wanted)

    monkeypatch.setattr(edits.Edits, "_places", local)
    assert not all(agrees_with_edits(seed, "match", vocab=200) for seed in EDITED)


class Recorded:
    """Thresholds of nodes, and what is left at each, from inside a call of `verify`."""

    def __init__(self, monkeypatch):
        self.calls = []
        for name in ("token", "traversal"):
            monkeypatch.setattr(sharded_rules, name, self.around(getattr(sharded_rules, name)))

    def around(self, rule):
        def recording(state, *args):
            decision = rule(state, *args)
            tree = state.facts.nodes
            every = range(tree.tokens.shape[1])
            left = [state.left(torch.full_like(tree.rows[:, 0], node)) for node in every]
            self.calls.append((state.shard.start, tree, decision.thresholds, torch.stack(left, 1)))
            return decision

        return recording

    def whole(self):
        """The trees, their thresholds, and the laws of next tokens [B, N, V]."""
        calls = sorted(self.calls, key=lambda call: call[0])
        left = torch.cat([call[3] for call in calls], -1)
        for call in calls:
            assert torch.equal(call[2], calls[0][2])
        return calls[0][1], calls[0][2], left / left.sum(-1, keepdim=True)


class Rounded(Case):
    """The same trees, with laws that are those of float32 logits."""

    def p(self, prefix):
        return super().p(prefix).log().float().double().softmax(-1)

    def q(self, prefix):
        return super().q(prefix).log().float().double().softmax(-1)


def batch_of(case: Case) -> tuple[list, dict]:
    """All drafts of a case, with their probabilities, as one batch."""
    drafts, count = list(case.drafts()), len(case.parents) + 1
    every = range(1, count)
    tokens = torch.tensor([[-1, *(tokens.get(n, -1) for n in every)] for tokens, _ in drafts])
    kinds = torch.tensor([0, *map(case.kind, every)], dtype=torch.uint8)
    first, after = [-1] * count, [-1] * count
    for parent in range(count):
        children = [n for n in every if case.parents[n - 1] == parent]
        children = children[::-1] if case.reverse else children
        first[parent] = children[0] if children else -1
        for child, following in itertools.pairwise(children):
            after[child] = following
    links = (torch.tensor([each] * len(drafts)) for each in (first, after))
    tree = sdk.DraftTree.from_links(tokens, *links, proposals=kinds.expand_as(tokens), check=False)
    prefixes = [[tuple(t.get(n, -1) for n in case.above(node)) for node in range(count)] for t, _ in drafts]
    flat = [prefix for each in prefixes for prefix in each]
    rows = torch.arange(len(flat), dtype=torch.int32)
    without = torch.isin(torch.arange(count).repeat(len(drafts)), torch.tensor(case.no_row))
    return drafts, dict(
        target_logits=torch.stack([Case.p(case, prefix) for prefix in flat]).log().float(),
        draft_logits=torch.stack([Case.q(case, prefix) for prefix in flat]).log().float(),
        draft_rows=torch.where(without, -1, rows),
        tree=tree,
        seeds=torch.arange(len(drafts)),
        positions=torch.arange(len(drafts)),
    )


def law_of(case: Case, rule: str, recorded: Recorded, drafts: list) -> dict:
    """The law of the emitted tokens that thresholds and residuals give."""
    tree, thresholds, left = recorded.whole()
    law: dict = {}
    for b, (tokens, chance) in enumerate(drafts):
        ends = descends(tree, thresholds, b) if rule == "token" else ascends(tree, thresholds, b)
        for node, probability in ends:
            prefix = tuple(tokens[n] for n in case.above(node))
            for token, p in enumerate(left[b, node].tolist()):
                key = (*prefix, token)
                law[key] = law.get(key, 0.0) + chance * probability * p
    return law


def descends(tree, thresholds, b):
    """(last node, probability) of a walk from the root to children that are accepted in their order."""
    open_nodes = [(0, 1.0)]
    for node, probability in open_nodes:
        children = [c for c in tree.order[b].tolist() if tree.tested[b, c] and tree.parents[b, c] == node]
        for child in children:
            open_nodes.append((child, probability * float(thresholds[b, child])))
            probability *= 1.0 - float(thresholds[b, child])
        yield node, probability


def ascends(tree, thresholds, b):
    """The same where the first accepted node counts, children before parents."""
    rest = 1.0
    live = [node for node in range(tree.tokens.shape[1]) if tree.live[b, node]]
    for node in sorted(live, key=lambda node: int(tree.post[b, node])):
        accepted = 1.0 if node == 0 else float(thresholds[b, node])
        yield node, rest * accepted
        rest *= 1.0 - accepted


def exact_law(monkeypatch, name, rule, borders):
    case = Rounded(**{field: getattr(CASES[name], field) for field in CASES[name].__dataclass_fields__})
    recorded = Recorded(monkeypatch)
    drafts, arguments = batch_of(case)
    verify_everywhere(arguments, rule, borders, whole_draft=True)
    return case, law_of(case, rule, recorded, drafts)


@pytest.mark.parametrize("rule", ["token", "traversal"])
@pytest.mark.parametrize("name", CASES)
def test_rule_is_lossless(monkeypatch, name, rule):
    """By enumeration of the drafts: what two shards compute gives the target's law exactly."""
    vocab = CASES[name].vocab
    case, law = exact_law(monkeypatch, name, rule, [0, 1, vocab])
    assert math.isclose(sum(law.values()), 1.0, rel_tol=0, abs_tol=EXACT)
    assert distance(case, law) < EXACT


def changed_race_keys(original):
    return lambda seeds, positions, purpose, start, size: original(seeds, positions, purpose, 0, size)


def own_nan(original):
    """NaN is not told to the others."""
    return lambda shard, side, everyone: original(shard, side, everyone)._replace(nan=side.nan)


def own_largest(original):
    """Weights are relative to the largest score of this process."""

    def changed(shard, side, everyone):
        mine = everyone.clone()
        mine[..., :1] = law._measured(shard, side)[:, :1]
        return original(shard, side, mine)

    return changed


def own_candidate(original):
    """The winner of the own shard counts."""

    def changed(shard, weights, keys, values):
        return original(Alone(shard), weights, keys, values)

    return changed


class Alone:
    """A shard whose collectives lead nowhere."""

    def __init__(self, shard):
        self.start, self.size, self.vocab_size = shard.start, shard.size, shard.vocab_size
        self._collectives = self

    def gather(self, values):
        return values[None]


def swapped_columns(original):
    """Whole draft rows are read from column 0 on."""
    return lambda shard, width: slice(0, shard.size) if width != shard.size else original(shard, width)


MUTANTS = {
    "noise by local id": (noise, "race_keys", changed_race_keys, "match"),
    "largest score stays local": (law, "_law", own_largest, "traversal"),
    "winner stays local": (noise, "race", own_candidate, "match"),
    "columns of whole drafts from 0": (facts, "_columns", swapped_columns, "token"),
}


def refused(rule) -> bool:
    """Whether two shards fail to give the reference's results, or differ."""
    for arguments in some(range(60), vocab=200, batch=4):
        reference = sdk.verify(rule=rule, backend="reference", **arguments)
        for result in verify_everywhere(arguments, rule, [0, 64, 200]):
            if not all_equal(result[:4], reference[:4]):
                return True
    return False


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_refused(monkeypatch, name):
    module, function, change, rule = MUTANTS[name]
    changed = change(getattr(module, function))
    for each in (module, verification):
        if hasattr(each, function):
            monkeypatch.setattr(each, function, changed)
    assert refused(rule)


def test_shards_in_other_places_are_refused(monkeypatch):
    """Processes that swap their columns."""

    proper = here

    def swapped(arguments, shard, whole_draft):
        rows = arguments["target_logits"].roll(100, -1)
        return proper(arguments, shard, whole_draft) | dict(target_logits=rows[..., shard.start : shard.end])

    monkeypatch.setitem(globals(), "here", swapped)
    assert refused("match")


@pytest.mark.parametrize("local", [False, True])
def test_nan_of_one_shard_is_known_to_all(monkeypatch, local):
    """And would not be, if its bit stayed where it was found."""
    if local:
        monkeypatch.setattr(law, "_law", own_nan(law._law))
    arguments = plain_arguments()
    arguments["target_logits"][0, 25] = math.nan
    for rule in ("match", "traversal"):
        status = [int(result.status) for result in verify_everywhere(arguments, rule, [0, 20, 40])]
        assert status == ([0, 1] if local else [1, 1])


def edited(source: str, old: str, new: str, scope: dict) -> dict:
    """What a text defines with one place changed."""
    assert source.count(old) == 1
    scope = dict(scope)
    exec("from __future__ import annotations\n" + source.replace(old, new), scope)
    return scope


CHANGES = {
    "token-wise residual": (
        residual.Residual,
        "(w[:, :, None] * self.at[:, None, :] - law)",
        "(self.at[:, None, :] - law)",
        "deep",
    ),
    "earlier rejections forgotten": (
        residual.Residual,
        "w * self.b.gather(1, parent) + drawn",
        "drawn",
        "deep",
    ),
    "weight not updated": (
        sharded_rules.traversal,
        "where(mass > 0, mass / (mass + (1.0 - before)), before)",
        "clone(before)",
        "deep",
    ),
    "weight forgets the path": (
        sharded_rules.traversal,
        "ratio(w.gather(1, parent) * residual",
        "ratio(residual",
        "deep",
    ),
    "without replacement as independent": (
        facts._facts,
        "once = sampled & (",
        "once = sampled & False & (",
        "without_replacement",
    ),
    "points stay in the draft's law": (
        facts._facts,
        "(by_point[:, None, :] | by_kin)",
        "by_kin",
        "hybrid_sampled_first",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_mutant_has_another_law(monkeypatch, name):
    changed, old, new, case_name = CHANGES[name]
    module = inspect.getmodule(changed)
    scope = edited(inspect.getsource(changed), old, new, vars(module))
    for each in (module, verification):
        if hasattr(each, changed.__name__):
            monkeypatch.setattr(each, changed.__name__, scope[changed.__name__])
    case, law = exact_law(monkeypatch, case_name, "traversal", [0, 1, CASES[case_name].vocab])
    assert distance(case, law) > FAR


def test_a_draft_law_of_one_token_beside_nothing():
    """What is left of q without its first token is 1e-39 of it: summed relative to its own largest."""
    q = torch.tensor([[90.0, 0.0, 0.5, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    p = torch.tensor([[0.0, 2.0, 1.0, 0.0]] * 3)
    tree = sdk.DraftTree.from_parents(
        torch.tensor([[-1, 0, 3]]), torch.tensor([[-1, 0, 0]]), proposals=Proposal.WITHOUT_REPLACEMENT
    )
    for seed in range(8):
        keys = dict(seeds=torch.tensor([seed]), positions=torch.tensor([0]))
        arguments = dict(target_logits=p, tree=tree, draft_logits=q, return_logprobs=True, **keys)
        same_result(
            verify_everywhere(arguments, "token", [0, 1, 4])[0],
            sdk.verify(rule="token", backend="reference", **arguments),
        )


def test_fixed_point_sums_do_not_depend_on_order():
    numbers = torch.rand(3, 5000, dtype=torch.float64) ** 9
    bits = sums.bits_for(5000)
    whole = sums.parts(numbers, bits)
    parts = sum(sums.parts(part, bits) for part in numbers.flip(1).split(77, 1))
    assert torch.equal(whole, parts)
    exact = torch.tensor([math.fsum(row) for row in numbers.tolist()], dtype=torch.float64)
    torch.testing.assert_close(sums.value(whole, bits), exact, rtol=4e-16, atol=0.0)
    assert bool((sums.value(whole * torch.tensor([1, 0]), bits) < exact).all())  # the finer integer counts
    largest = torch.ones(1, 5000, dtype=torch.float64)
    assert float(sums.value(sums.parts(largest, bits), bits)) == 5000.0


def counted(arguments, rule):
    """What one process exchanges in a call."""

    def run(shard):
        sharded.verify(shard=shard, rule=rule, **here(arguments, shard, True))
        return shard._collectives.sent

    return everywhere([0, 32, arguments["target_logits"].shape[-1]], run)


def as_traffic(sent):
    gathers, total = ([size for kind, size in sent if kind == name] for name in ("gather", "sum"))
    return sharded.Traffic(len(gathers), len(total), sum(gathers), sum(total))


def test_traffic_follows_from_shapes_and_rule():
    """What is exchanged is as documented, the same in every process, and for any values."""
    seen = set()
    kinds = (some(range(4), vocab=65, hostile=hostile) for hostile in (False, True))
    for arguments, spoiled in zip(*kinds, strict=True):
        for rule in RULES + LOSSY:
            shapes = ("tree", "sampling", "draft_sampling", "return_logprobs")
            given = {name: arguments[name] for name in shapes if name in arguments}
            given["dtype"] = arguments["target_logits"].dtype
            expected = sharded.traffic(rule=rule, drafted="draft_logits" in arguments, **given)
            for each in (arguments, spoiled):
                one, two = counted(each, rule)
                assert one == two and as_traffic(one) == expected, rule
            seen.add(expected.sums)
    assert len(seen) > 3


def test_chains_exchange_their_residuals_once():
    rows = torch.randn(3 * 6, 64)
    tokens = torch.randint(64, (3, 5))
    chain = sdk.DraftTree.chain(tokens)
    columns = (chain.tokens.view(3, 6), chain.parents.view(3, 6))
    tree = sdk.DraftTree.from_parents(*columns, proposals=Proposal.INDEPENDENT)
    keys = dict(seeds=torch.arange(3), positions=torch.arange(3), return_logprobs=True)
    for rule in ("token", "traversal"):
        results = []
        for each, number in ((chain, 2), (tree, 6)):
            arguments = dict(target_logits=rows, draft_logits=rows.flip(0), tree=each, **keys)
            sent, _ = counted(arguments, rule)
            assert as_traffic(sent) == sharded.traffic(each, rule=rule, drafted=True)
            assert as_traffic(sent).sums == number
            results.append(verify_everywhere(arguments, rule, [0, 32, 64])[0])
        assert all_equal(*results)


def test_sample_exchanges_what_it_says():
    for sampling, logprobs in ((sdk.SamplingParams(), False), (sdk.SamplingParams(top_k=3, top_p=0.5), True)):

        def run(shard, sampling=sampling, logprobs=logprobs):
            sharded.sample(
                torch.zeros(5, shard.size), sampling, shard=shard, return_logprobs=logprobs,
                seeds=torch.arange(5), positions=torch.arange(5),
            )  # fmt: skip
            return shard._collectives.sent

        expected = sharded.traffic(5, sampling=sampling, return_logprobs=logprobs)
        assert as_traffic(everywhere([0, 9, 20], run)[0]) == expected


def one_shard(run):
    return everywhere([0, 40], run)[0]


def plain_arguments():
    return dict(
        target_logits=torch.zeros(3, 40),
        tree=sdk.DraftTree.chain(torch.tensor([[1, 2]])),
        seeds=torch.zeros(1, dtype=torch.int64),
        positions=torch.zeros(1, dtype=torch.int64),
    )


def only_whole(operation: str) -> set[str]:
    """Arguments that the operation on whole rows has and ours does not name."""
    whole, ours = (set(inspect.signature(getattr(each, operation)).parameters) for each in (sdk, sharded))
    return whole - ours


@pytest.mark.parametrize("operation", NOT_SERVED)
def test_options_that_are_not_served_are_refused(operation):
    assert only_whole(operation) >= set(NOT_SERVED[operation])
    for name in only_whole(operation):
        arguments = plain_arguments() | {name: None}
        if operation == "sample":
            arguments["logits"] = arguments.pop("target_logits")[:1]
            del arguments["tree"]

        def run(shard, arguments=arguments):
            return getattr(sharded, operation)(shard=shard, **arguments)

        message = f"sharded.{operation}: {name} is not served with shards"
        with pytest.raises(sdk.BackendUnavailable, match=message):
            one_shard(run)


def test_reports_are_refused():
    arguments = plain_arguments() | dict(return_logprobs=sdk.Logprobs())
    with pytest.raises(sdk.BackendUnavailable, match="sharded.verify: Logprobs is not served with shards"):
        one_shard(lambda shard: sharded.verify(shard=shard, **arguments))


@pytest.mark.parametrize("rule", [sdk.Typical(), sdk.Relaxed(), sdk.Deferred()], ids=rule_name)
def test_rules_that_are_not_served_are_refused(rule):
    with pytest.raises(sdk.BackendUnavailable, match=f"rule '{rule.name}' is not served with shards"):
        one_shard(lambda shard: sharded.verify(shard=shard, rule=rule, **plain_arguments()))


COLUMNS = "must have size = 40 columns, those of the shard"
BAD = {
    "columns": (dict(target_logits=torch.zeros(3, 39)), ValueError, f"target_logits {COLUMNS}, got 39"),
    "float64": (dict(target_logits=torch.zeros(3, 40).double()), TypeError, "must have dtype float32"),
    "seeds": (dict(seeds=None), ValueError, "seeds must be given, the same in every process, got None"),
    "draft": (dict(draft_logits=torch.zeros(3, 30)), ValueError, f"{COLUMNS}, or at least V = 40, got 30"),
    "unknown": (dict(temperature=1.0), TypeError, "sharded.verify: temperature is no argument, got float"),
    "mask": (dict(token_bitmask=torch.zeros(3, 1).int()), ValueError, "[rows, ceil(size / 32)] = [3, 2]"),
    "shard": (dict(shard=3), TypeError, "sharded.verify: shard must be a VocabShard, got int"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_refused(name):
    change, kind, message = BAD[name]
    with pytest.raises(kind, match=re.escape(message)):
        one_shard(lambda shard: sharded.verify(**(dict(shard=shard) | plain_arguments() | change)))


def test_masks_need_shards_of_whole_words():
    def run(shard):
        words = torch.zeros(3, 1, dtype=torch.int32)
        mine = here(plain_arguments(), shard) | dict(token_bitmask=words)
        if shard.start % 32 == 0:
            return None
        with pytest.raises(
            ValueError, match="shard.start must be a multiple of 32 with token_bitmask, got 20"
        ):
            sharded.verify(shard=shard, **mine)
        return None

    everywhere([0, 20, 40], run)


@pytest.mark.parametrize("spans, message", [
    ([(0, 10, 30), (20, 10, 30)], "must make up [0, V) = [0, 30), got [0, 10), [20, 30)"),
    ([(0, 20, 30), (10, 20, 30)], "must make up [0, V) = [0, 30), got [0, 20), [10, 30)"),
    ([(0, 20, 30), (20, 5, 30)], "must make up [0, V) = [0, 30), got [0, 20), [20, 25)"),
    ([(0, 20, 30), (20, 10, 31)], "vocab_size must be the same in every process"),
])  # fmt: skip
def test_shards_have_to_make_up_the_vocabulary(spans, message):
    def run(shard_of):
        for rank in (0, 1):
            with pytest.raises(ValueError, match=re.escape(message)):
                sharded.VocabShard._over(Known(spans), *spans[rank])

    run(None)


class Solo(sharded.shard.Collectives):
    """The collectives of a group of one."""

    def __init__(self):
        pass

    def gather(self, values):
        return values[None]

    def total(self, values):
        return values.clone()

    def spans(self, span):
        return [span]


@pytest.mark.parametrize("rule", RULES + LOSSY, ids=rule_name)
def test_nothing_synchronises(rule):
    """Nor does the shape of any tensor depend on values."""
    shard = sharded.VocabShard._over(Solo(), 0, 70, 70)
    counts = sdk.TokenCounts(5, 4, 70, recent=2)
    bad, forced = torch.full((5, 1, 3), 3), torch.full((5, 2), -1)
    edits = sdk.LogitEdits(counts, presence_penalty=torch.ones(5), bad_words=bad, forced_tokens=forced)
    for arguments in (*some(range(3), vocab=70, batch=5), *links_case()[:1]):
        if arguments["target_logits"].shape[1] == 70:
            ends = sdk.Ends(torch.full((5, 1), 3), torch.full((5,), 9).int(), None, torch.zeros(5).bool())
            arguments |= dict(edits=edits, ends=ends)
            shard_of = shard
        else:
            shard_of = sharded.VocabShard._over(Solo(), 0, 40, 40)
        with no_synchronisation():
            sharded.verify(shard=shard_of, rule=rule, **arguments)
    keys = dict(seeds=torch.arange(5), positions=torch.arange(5), return_logprobs=True, edits=edits)
    rows, sampling = torch.randn(5, 70), sdk.SamplingParams(0.9, torch.arange(5), 0.9, 0.01)
    with no_synchronisation():
        sharded.sample(rows, sampling, shard=shard, **keys)


class Known(sharded.shard.Collectives):
    """Collectives that answer with given spans."""

    def __init__(self, spans):
        self.given = spans

    def spans(self, span):
        return self.given


def test_requests_without_nodes():
    none, ends = torch.zeros(0, dtype=torch.int64), torch.zeros(3, dtype=torch.int32)
    tree = sdk.DraftTree.from_parents(none, none, ends, max_nodes=0, max_depth=0)
    keys = dict(seeds=torch.arange(2), positions=torch.arange(2), return_logprobs=True)
    result = one_shard(lambda shard: sharded.verify(torch.zeros(0, 40), tree, shard=shard, **keys))
    assert all_equal(result, sdk.verify(torch.zeros(0, 40), tree, **keys))


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
def test_processes_of_a_group_agree_with_one(tmp_path):
    """Four processes, and two groups of two of them, over gloo."""
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["shard_processes"])  # torch is imported once for all of them
    queue = context.SimpleQueue()
    started = torch.multiprocessing.start_processes(
        process, (str(tmp_path / "init"), queue), nprocs=4, join=False, start_method="forkserver"
    )
    everyone = queue.get()
    started.join()
    (expected,) = everywhere([0, 200], results)
    for found in everyone:
        assert repr(found) == repr(2 * expected)  # NaN are alike, too


def test_attention_needs_nothing_for_shards_of_heads():
    """Processes that have some heads each get the rows of the whole, to the last bit."""
    g = torch.Generator().manual_seed(0)
    tree = sdk.DraftTree.from_parents(torch.tensor([[-1, 4, 5, 6]]), torch.tensor([[-1, 0, 0, 1]]))
    rows, heads, kv_heads, size = 4, 8, 4, 16
    query = torch.randn(rows, heads, size, generator=g)
    keys, values = (torch.randn(3, 16, kv_heads, size, generator=g) for _ in range(2))
    place = (tree, torch.tensor([[2, 0, 1]], dtype=torch.int32), torch.tensor([20], dtype=torch.int32))
    whole, lse = sdk.tree_attention(query, keys, values, *place, deterministic=True, return_lse=True)
    for shards in (2, 4):
        parts = zip(*(x.chunk(shards, dim) for x, dim in ((query, 1), (keys, 2), (values, 2))), strict=True)
        found = [sdk.tree_attention(*part, *place, deterministic=True, return_lse=True) for part in parts]
        assert torch.equal(torch.cat([out for out, _ in found], 1), whole)
        assert torch.equal(torch.cat([each for _, each in found], 1), lse)
