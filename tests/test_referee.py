# SPDX-License-Identifier: Apache-2.0
"""The referee passes verifiers that are right, and finds each known mistake."""

from __future__ import annotations

import dataclasses
import json
from functools import partial

import plain_verifier
import pytest
import referee_loops
import torch
from each import DEVICE
from plain_verifier import CHAIN_TRAPS, TREE_TRAPS, block, ours, token_by_token

from specdec_kernels.testing import NotLossless, assert_lossless, check_lossless
from specdec_kernels.testing.cases import problems
from specdec_kernels.testing.statistics import chi_square_tail, compare

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


def test_what_saw_no_draft_is_inconclusive():
    def ignores(case):
        laws = case.target_logits[:, 0].softmax(-1)
        return torch.multinomial(laws, 1, generator=case.generator).tolist()

    verdict = check_lossless(ignores, draws=DRAWS)
    assert verdict.state == "INCONCLUSIVE" and verdict.accepted == 0
    with pytest.raises(NotLossless, match="INCONCLUSIVE: no draft was accepted"):
        assert_lossless(ignores, draws=DRAWS)


@pytest.mark.parametrize("trap", [None, *referee_loops.TRAPS])
def test_loops_are_judged(trap):
    verdict = check_lossless(loop=partial(referee_loops.loop, trap=trap), draws=DRAWS)
    assert verdict.state == ("LOSSLESS" if trap is None else "BIASED"), str(verdict)


def test_a_loop_without_drafts_is_inconclusive():
    assert check_lossless(loop=referee_loops.plain, draws=DRAWS).state == "INCONCLUSIVE"


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
        ({"verifier": block, "draws": 10}, ValueError),
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
    stats = pytest.importorskip("scipy.stats")
    for value, freedom in ((0.5, 1), (30.0, 12), (300.0, 124)):
        assert chi_square_tail(value, freedom) == pytest.approx(stats.chi2.sf(value, freedom))
    law = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    counts = torch.tensor([120, 180, 310, 390])
    finding = compare("case", 4, counts, law)
    assert finding.p_value == pytest.approx(stats.chisquare(counts, 1000 * law).pvalue)
    assert finding.distance == pytest.approx(0.03) and finding.text == (0,)
    assert compare("case", 4, torch.tensor([1, 0, 9, 0]), torch.tensor([0.0, 0.0, 1.0, 0.0])).p_value == 0.0


def test_the_command_judges(monkeypatch, tmp_path):
    pytest.importorskip("click")
    from click.testing import CliRunner

    from specdec_kernels.cli.commands import specdec

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plain_verifier, "wrong", partial(block, trap="token-wise residual"), raising=False)
    for name, code, state in (("block", 0, "LOSSLESS"), ("wrong", 1, "BIASED")):
        done = CliRunner().invoke(specdec, ["check", f"plain_verifier:{name}", "--draws", "4000", "--json"])
        assert done.exit_code == code and json.loads(done.output)["state"] == state
    assert CliRunner().invoke(specdec, ["check", "plain_verifier:nothing"]).exit_code == 2
