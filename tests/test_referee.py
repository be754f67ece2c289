# SPDX-License-Identifier: Apache-2.0
"""The referee passes verifiers that are right, and finds each known mistake."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from functools import partial

import numpy as np
import plain_verifier
import pytest
import referee_loops
import torch
from each import DEVICE
from plain_verifier import CHAIN_TRAPS, TREE_TRAPS, block, ours, token_by_token

from specdec_kernels.testing import NotLossless, assert_lossless, cases, check_lossless, example, referee
from specdec_kernels.testing.cases import TREE, Problem, exact_problems, problems
from specdec_kernels.testing.exact import NotFollowed, Numbers, enumerated
from specdec_kernels.testing.statistics import Finding, chi_square_tail, compare, noncentral_tail

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="cases are on the CPU")
DRAWS = 4000


@pytest.mark.parametrize("rule", ["match", "token", "traversal"])
@pytest.mark.parametrize("chosen", [False, True], ids=["drawn", "chosen"])
def test_our_rules_pass(rule, chosen):
    verdict = assert_lossless(partial(ours, rule=rule), trees=True, chosen=chosen, draws=DRAWS)
    assert verdict.accepted > 0.2 and verdict.draws == DRAWS


def test_plain_verifiers_pass():
    assert_lossless(token_by_token, trees=True, draws=DRAWS)
    assert_lossless(block, draws=DRAWS)


def test_verifiers_of_one_request_pass():
    one = check_lossless(token_by_token, draws=1000, batched=False)
    assert one.state == "LOSSLESS" and one.accepted > 0.5


@pytest.mark.parametrize("trap", [*CHAIN_TRAPS, *TREE_TRAPS, "token-wise residual"])
def test_mistakes_are_found(trap):
    verifier = block if trap == "token-wise residual" else token_by_token
    with pytest.raises(NotLossless, match="BIASED: case '.*', first.* tokens?: total variation 0"):
        assert_lossless(partial(verifier, trap=trap), trees=trap in TREE_TRAPS, draws=DRAWS)


def test_noise_of_other_drafts_is_no_mistake():
    """So what is found above is that it is shared."""

    def verifier(case):
        other = dataclasses.replace(case, draft_seed=case.draft_seed + 10**6)
        return token_by_token(other, trap="noise of drafts")

    assert_lossless(verifier, draws=DRAWS)


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_drafts_and_verifiers_have_noise_of_their_own(seed):
    problem = problems(False, False)[0]
    case = problem.draw(100, seed)
    root = case.draft_logits[:, 0].double().softmax(-1)
    drawn = lambda random: torch.multinomial(root, 1, generator=random)[:, 0]  # noqa: E731
    first = drawn(torch.Generator().manual_seed(case.draft_seed))
    assert torch.equal(first, case.tokens[:, 1])
    assert not torch.equal(drawn(case.generator), first)
    nothing = torch.full((100, problem.length), -1)
    assert not torch.equal(problem.complete(nothing, seed) // 25, first)


def plain(case):
    laws = case.target_logits[:, 0].softmax(-1)
    return torch.multinomial(laws, 1, generator=case.generator).tolist()


def two_of_its_own(case):
    """Right, since the laws of the first case's texts are known: it reads no draft."""
    laws = problems(False, False)[0].target
    first = torch.multinomial(laws[0].expand(len(case.tokens), -1), 1, generator=case.generator)
    second = torch.multinomial(laws[first[:, 0]], 1, generator=case.generator)
    return torch.cat([first, second], 1).tolist()


def found(p_value, freedom=3, exact=False, length=1):
    return Finding("a case", length, p_value, 0.1, 0.2, (1,), 0.3, 0.2, 1000, freedom, exact)


def test_a_bias_has_to_be_seen_twice():
    small, large = found(1e-9), found(0.5)
    findings = [large, small]
    assert referee._seen_twice(findings, 1e-6, lambda finding: found(1e-4)) is small
    assert referee._seen_twice(findings, 1e-6, lambda finding: found(0.01)) is None
    assert [finding.p_value for finding in findings] == [0.5, 0.01]
    assert referee._seen_twice([small], 0.1, lambda finding: found(0.05)) is small  # a high level
    for certain in (found(0.0, freedom=0), found(0.0, freedom=0, exact=True)):  # seen, or enumerated
        assert referee._seen_twice([large, certain], 1e-6, None) is certain


def test_chance_that_looks_like_a_bias_is_none():
    """Pairs of this run have p = 2.9e-6, where the limit is 3.1e-6."""
    verifier = partial(ours, rule="token")
    assert check_lossless(verifier, trees=True, chosen=True, seed=93).state == "LOSSLESS"


def test_what_saw_no_draft_is_inconclusive():
    verdict = check_lossless(plain, draws=1000)
    assert verdict.state == "INCONCLUSIVE" and verdict.accepted == 0
    with pytest.raises(NotLossless, match="INCONCLUSIVE: no draft was accepted"):
        assert_lossless(plain, draws=1000)


def test_tokens_that_are_no_drafts_are_not_counted_as_accepted(monkeypatch):
    only = problems(False, False)[:1]
    monkeypatch.setattr(referee, "problems", lambda *kinds: only)
    monkeypatch.setattr(referee, "exact_problems", lambda *kinds: [])
    verdict = check_lossless(two_of_its_own, draws=1000)
    assert verdict.state == "INCONCLUSIVE" and "drafts were ignored" in verdict.reason
    assert verdict.accepted < 0.9
    tree = Problem("tree", TREE, torch.eye(5), None)
    tokens = torch.tensor([[0, 1, 2, 3, 4, 3]]).expand(5, -1)
    emitted = torch.tensor([[1, -1, -1], [1, 4, 0], [2, 3, 3], [2, 4, 4], [3, 3, 3]])
    assert problem_accepts(tree, tokens, emitted) == [0, 2, 2, 1, 0]


def problem_accepts(problem, tokens, emitted):
    return problem.accepted(tokens, emitted).tolist()


@pytest.mark.parametrize("draws", [1, 999])
def test_few_draws_are_inconclusive(draws):
    verdict = check_lossless(token_by_token, draws=draws)
    assert verdict.state == "INCONCLUSIVE" and f"{draws} draws of each case are too few" in verdict.reason
    assert all(finding.exact for finding in verdict.findings if finding.draws != draws)


@pytest.mark.parametrize("chosen", [False, True], ids=["drawn", "chosen"])
@pytest.mark.parametrize("verifier", [token_by_token, block])
def test_right_verifiers_are_right_to_the_last_cell(verifier, chosen):
    """No cell is undecided, so nothing but rounding is left of the bound."""

    def adapted(case):
        if case.draft_logits is None:  # a law that has one token
            drafts = torch.full_like(case.target_logits, -torch.inf)
            for node, parent in enumerate(case.parents[1:], 1):
                drafts[:, parent].scatter_(1, case.tokens[:, node, None], 0.0)
            case = dataclasses.replace(case, draft_logits=drafts)
        return verifier(case)

    for problem in exact_problems(verifier is token_by_token and not chosen, chosen):
        finding = enumerated(partial(referee._emitted, adapted, problem, batched=True), problem, True)
        assert finding.exact and finding.p_value == 1.0
        assert finding.distance < 1e-12 and finding.bound == pytest.approx(1e-3)


@pytest.mark.parametrize(
    "verifier, trap",
    [
        (token_by_token, "wrong residual"),
        (token_by_token, "bonus row off by one"),
        (token_by_token, "drafts dropped after sampling"),
        (block, "token-wise residual"),
    ],
)
def test_mistakes_are_found_without_chance(verifier, trap):
    problem = exact_problems(False, False)[0]
    wrong = partial(referee._emitted, partial(verifier, trap=trap), problem, batched=True)
    finding = enumerated(wrong, problem, True)
    assert finding.p_value == 0.0 and finding.distance > 0.01


def with_a_race(case):
    law = case.target_logits[:, 0].softmax(-1)
    noise = torch.empty_like(law).exponential_(generator=case.generator)
    return (law / noise).argmax(-1, keepdim=True).tolist()


def with_numpy(case):
    random = np.random.default_rng(case.generator.initial_seed())
    return random.choice(4, (len(case.tokens), 1), p=[1 / 6, 1 / 6, 1 / 3, 1 / 3]).tolist()


def half_with_numpy(case, seed=None):
    coins = torch.rand(len(case.tokens), generator=case.generator)
    other = torch.from_numpy((4 * np.random.default_rng(seed).random(len(coins))).astype(int))
    return torch.where(coins < 0.5, 2, other)[:, None].tolist()


def of_all_requests(case):
    return torch.multinomial(case.target_logits[0, 0].softmax(-1), len(case.tokens), True)[:, None].tolist()


@pytest.mark.parametrize(
    "verifier, said",
    [
        (with_a_race, "draws by torch's exponential_"),
        (with_numpy, "no random number from torch"),
        (half_with_numpy, "draws from elsewhere, too"),
        (partial(half_with_numpy, seed=1), "draws from elsewhere, too"),
        (of_all_requests, "draws by torch's multinomial"),
        (lambda case: torch.rand(3).long()[:, None].tolist(), r"rand with shape \[3\] for \d+ requests"),
        (lambda case: torch.rand(len(case.tokens), 9).long().tolist(), "more than 3 random numbers"),
    ],
)
def test_what_cannot_be_enumerated_is_said(verifier, said):
    problem = exact_problems(False, False)[0]
    with pytest.raises(NotFollowed, match=said):
        enumerated(lambda case: torch.tensor(verifier(case)), problem, True)


def test_torchs_ways_to_draw_take_the_numbers_of_each_request():
    numbers = torch.tensor([[0.1, 0.6, 0.9], [0.2, 0.7, 0.8]], dtype=torch.float64)
    law = torch.tensor([0.0, 0.25, 0.5, 0.25]).expand(2, 4)
    for draw, wanted in (
        (lambda: torch.rand(2, 2), numbers[:, :2]),
        (lambda: torch.rand(size=(2, 1, 2), dtype=torch.float64), numbers[:, None, :2]),
        (lambda: torch.rand_like(law[:, :1]), numbers[:, :1]),
        (lambda: torch.empty(2).uniform_(), numbers[:, 0]),
        (lambda: torch.multinomial(law, 1), torch.tensor([[1], [1]])),
        (lambda: (torch.rand(2), law.multinomial(num_samples=1))[1], torch.tensor([[2], [2]])),
        (lambda: (torch.rand(2, 2), torch.distributions.Categorical(law).sample())[1], torch.tensor([3, 3])),
    ):
        with Numbers(numbers):
            torch.testing.assert_close(draw(), wanted, check_dtype=False)


def test_torchs_own_generator_goes_on_where_the_cases_does():
    case = problems(False, False)[0].draw(4, 0)
    other = problems(False, False)[0].draw(4, 0)
    state = torch.get_rng_state()
    with case.global_generator():
        first = torch.rand(3)
    with case.global_generator():
        second = torch.rand(3)
    assert torch.equal(torch.cat([first, second]), torch.rand(6, generator=other.generator))
    assert torch.equal(torch.get_rng_state(), state)


WRONG = {  # by the case that shows it
    "chain, short drafts": partial(token_by_token, trap="-1 read as a token"),
    "chain, other law": partial(token_by_token, trap="noise of drafts"),
    "exact chain": partial(block, trap="token-wise residual"),
    "long chain, other law": partial(referee_loops.loop, trap="greedy drafts called drawn"),
}


@pytest.mark.parametrize(
    "name, given", list(zip(WRONG, ("verifier", "verifier", "verifier", "loop"), strict=True))
)
def test_a_bias_comes_with_a_program_that_shows_it(name, given, monkeypatch, capsys):
    for kind in ("problems", "exact_problems"):
        those = [problem for problem in getattr(cases, kind)(False, False) if problem.name == name]
        monkeypatch.setattr(referee, kind, lambda *kinds, those=those: those)
    if name == "exact chain":
        monkeypatch.setattr(referee, "problems", lambda *kinds: problems(False, False)[-1:])
    verdict = check_lossless(**{given: WRONG[name]}, draws=DRAWS)
    assert verdict.state == "BIASED" and verdict.example in str(verdict)
    for function in (WRONG[name], referee_loops.loop if given == "loop" else block):
        exec(verdict.example, {given: function})
        share, probability = map(
            float, re.findall(r"(?:share|probability) ([\d.]+)", capsys.readouterr().out)
        )
        error = math.sqrt(probability * (1.0 - probability) / example.DRAWS)
        assert (abs(share - probability) > 4.0 * error) == (function is WRONG[name])


def test_programs_for_one_request_and_for_chosen_drafts_run(monkeypatch, capsys):
    monkeypatch.setattr(example, "DRAWS", 50)
    chosen = check_lossless(lambda case: [[3]] * len(case.tokens), chosen=True, draws=1000)
    one = check_lossless(lambda case: [[3]], batched=False, draws=100)
    loop = check_lossless(
        loop=lambda *given: torch.ones(1, given[3], dtype=torch.long), batched=False, draws=100
    )
    exec(chosen.example, {"verifier": lambda case: [[3]] * len(case.tokens)})
    exec(one.example, {"verifier": lambda case: [[3]]})
    exec(loop.example, {"loop": lambda *given: torch.ones(1, given[3], dtype=torch.long)})
    assert capsys.readouterr().out.count("share") == 3


@pytest.mark.parametrize("trap", [None, *referee_loops.TRAPS])
def test_loops_are_judged(trap):
    verdict = check_lossless(loop=partial(referee_loops.loop, trap=trap), draws=DRAWS)
    assert verdict.state == ("LOSSLESS" if trap is None else "BIASED"), str(verdict)


def test_a_loop_without_drafts_is_inconclusive():
    verdict = check_lossless(loop=referee_loops.plain, draws=1000)
    assert verdict.state == "INCONCLUSIVE" and "never called the drafter" in verdict.reason

    def unread(target, drafter, prompts, *rest):
        drafter(prompts)
        return referee_loops.plain(target, drafter, prompts, *rest)

    verdict = check_lossless(loop=unread, draws=1000)
    assert verdict.state == "INCONCLUSIVE" and "no draft was accepted" in verdict.reason


@pytest.mark.parametrize(
    "returned, said",
    [
        (lambda case: None, "must return a list of 1000 lists"),
        (lambda case: [[0]], "got 1"),
        (lambda case: [[]] * len(case.tokens), "must emit 1 to 3 tokens"),
        (lambda case: [[-1]] * len(case.tokens), "must emit 1 to 3 tokens"),
        (lambda case: [[0, 5]] * len(case.tokens), "got 0 to 5"),
        (lambda case: [[0.5]] * len(case.tokens), "must emit"),
    ],
)
def test_what_is_no_text_is_refused(returned, said):
    with pytest.raises((ValueError, TypeError), match=said):
        check_lossless(returned, draws=1000)


@pytest.mark.parametrize(
    "options, error",
    [
        ({}, ValueError),
        ({"verifier": block, "loop": block}, ValueError),
        ({"verifier": 3}, TypeError),
        ({"verifier": block, "draws": 0}, ValueError),
        ({"verifier": block, "trees": 1}, TypeError),
        ({"verifier": block, "level": 1.0}, ValueError),
    ],
)
def test_wrong_arguments_are_refused(options, error):
    with pytest.raises(error, match="check_lossless: "):
        check_lossless(**options)


def test_laws_of_texts_are_those_of_plain_decoding():
    for problem in problems(True, False):
        assert float(problem.law.sum()) == pytest.approx(1.0)
        texts = torch.cartesian_prod(*[torch.arange(len(problem.target))] * problem.length)
        chance, last = torch.ones(len(texts), dtype=torch.float64), torch.zeros(len(texts), dtype=torch.long)
        for token in texts.unbind(1):
            chance, last = chance * problem.target[last, token], token
        torch.testing.assert_close(problem.law, chance)


def test_p_values_are_those_of_scipy():
    """Of stats.chi2, stats.ncx2 and stats.chisquare in scipy 1.17."""
    for value, freedom, wanted in (
        (0.5, 1, 0.479500122187),
        (30.0, 12, 2.792429333e-3),
        (300.0, 124, 1.3043e-16),
    ):
        assert chi_square_tail(value, freedom) == pytest.approx(wanted, rel=1e-4)
    for value, freedom, noncentrality, wanted in (
        (30.0, 4, 10.0, 0.02521213182),
        (60.0, 24, 55.0, 0.8827228082),
        (200.0, 120, 90.0, 0.6475011361),
    ):
        assert noncentral_tail(value, freedom, noncentrality) == pytest.approx(wanted)
    law = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    finding = compare("case", 4, torch.tensor([120, 180, 310, 390]), law)
    assert finding.p_value == pytest.approx(0.08643334644) and finding.freedom == 3
    assert finding.distance == pytest.approx(0.03) and finding.text == (0,)
    assert compare("case", 4, torch.tensor([1, 0, 9, 0]), torch.tensor([0.0, 0.0, 1.0, 0.0])).p_value == 0.0


@pytest.mark.parametrize("share, least, most", [(1.0, 0.97, 1.0), (0.5, 0.0, 0.6)])
def test_a_bias_is_found_as_often_as_the_verdict_says(share, least, most):
    """Of a law that differs by what is found in 99 of 100 runs, and by half of it."""
    law, level = problems(False, False)[0].target[0], 1e-4 / 21
    bound = compare("case", 5, (law * 8000).round().long(), law).power(level)
    other = (
        law
        + share
        * bound
        * law
        * (torch.arange(5) % 2 * 2 - 1)
        / torch.stack([law[0::2].sum(), law[1::2].sum()])[torch.arange(5) % 2]
    )
    assert float((other - law).abs().sum()) / 2 == pytest.approx(share * bound)
    random = torch.Generator().manual_seed(5)
    counts = torch.multinomial(other.expand(300, 5), 8000, True, generator=random)
    found = [compare("case", 5, row.bincount(minlength=5), law).p_value < level for row in counts]
    assert least <= sum(found) / 300 <= most


def test_the_command_judges(monkeypatch, tmp_path):
    pytest.importorskip("click")
    from click.testing import CliRunner

    from specdec_kernels.cli.commands import specdec

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plain_verifier, "wrong", partial(block, trap="token-wise residual"), raising=False)
    for name, draws, code, state in (
        ("block", 1000, 0, "LOSSLESS"),
        ("block", 10, 3, "INCONCLUSIVE"),
        ("wrong", 1000, 1, "BIASED"),
    ):
        command = ["check", f"plain_verifier:{name}", "--draws", str(draws), "--json"]
        done = CliRunner().invoke(specdec, command)
        assert done.exit_code == code and json.loads(done.output)["state"] == state
    monkeypatch.setattr(plain_verifier, "failing", lambda case: [][1], raising=False)
    monkeypatch.setattr(plain_verifier, "natural", lambda target, draft: [], raising=False)
    for name, words in {
        "plain_verifier:nothing": "no attribute 'nothing'",
        "plain_verifier": "must be MODULE:CALLABLE",
        "plain_verifier:failing": "IndexError",  # with where it happened
        "plain_verifier:natural": "missing 1 required positional argument",
    }.items():
        done = CliRunner().invoke(specdec, ["check", name])
        assert done.exit_code == 2 and words in done.output, name
    assert "target_logits" in CliRunner().invoke(specdec, ["check", "--help"]).output
