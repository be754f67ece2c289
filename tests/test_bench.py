# SPDX-License-Identifier: Apache-2.0
"""The runner and the report of the benchmarks, with contenders that are known; no figure of a real one."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field

import pytest
import torch
from exact import Case as Drafts
from exact import distance, emitted
from exact_cases import CASES, EXACT, FAR, rules

from bench import __main__ as command
from bench import attention, check, commit, generate, peers, report, roofs, runner, siblings, timing, verify
from bench.suite import Case, Contender, Goal, Rounds, Suite


class Clock:
    """Stands for `time`: it goes on when it is looked at, and when a contender takes its time."""

    now = 0.0
    cpu = 0.0

    def perf_counter(self):
        self.now += 1e-4
        return self.now

    def process_time(self):
        self.cpu += 1e-4
        return self.cpu

    def sleep(self, seconds):
        self.now += seconds


CLOCK = Clock()


@dataclass(frozen=True)
class FakeCase(Case):
    size: int = 3
    ran: Counter = field(default_factory=Counter)
    name = "fake-3"
    limits = (Goal("nodes", 7), Goal("memory", 1, ceiling=True, unit="MB"))

    def parameters(self):
        return {"size": self.size}

    def build(self):
        return self.ran

    def contenders(self):
        def counted(name, seconds=0.0):
            def prepare(ran):
                def run(i):
                    ran[name] += 1
                    CLOCK.sleep(seconds)

                return run

            return prepare

        slow = [Contender(name, counted(name, 0.004)) for name in ("slow", "wrong", "broken")]
        absent = Contender("absent", counted("absent"), needs="no_such_package")
        compiled = Contender("compiled", counted("compiled"), compiled=True)
        return [Contender("fast", counted("fast")), *slow, absent, compiled]

    def failure(self, inputs, contender):
        if contender.name == "broken":
            raise ValueError("cannot run")
        return "is wrong" if contender.name == "wrong" else None

    def derived(self, seconds):
        return {"half slow": seconds["slow"] / 2}

    def goals(self, threads):
        return (
            Goal("fast", 2, "slow"),
            Goal("slow", 2, "fast"),
            Goal("slow", 1.1, "half slow", ceiling=True),
            Goal("fast", 1.1, "half slow", ceiling=True),
            Goal("fast", 2, "absent"),
            Goal("wrong", 2, "fast"),
        )

    def figures(self, inputs):
        return {"nodes": 7}

    def memory(self, inputs):
        return {"fast": 2**21, "slow": 2**30}


SUITE = Suite(
    "fake",
    (FakeCase(),),
    "A legend.",
    subjects=("fast",),
    references=("fast",),
    floors=("half slow",),
    roofs={"slow": "half slow"},
    rounds=Rounds(3, 5.0, warmup=1),
    quick_rounds=Rounds(1, 0.0, warmup=0, cpu=True),
    threads=(1,),
)
STATES = ["ok", "MISS", "MISS", "ok", "NONE", "MISS"]


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """As if nothing else ran on this machine."""
    monkeypatch.setattr(timing, "time", CLOCK)
    monkeypatch.setattr(timing, "_own_seconds", lambda: 0.0)
    monkeypatch.setattr(timing, "_busy_seconds", lambda: 0.0)
    monkeypatch.setattr(roofs, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(roofs, "SQUARE", 16)
    monkeypatch.setattr(roofs, "QUICK_SQUARE", 8)


@pytest.fixture
def results(capsys):
    return runner.run(SUITE, SUITE.cases, (1,))


def test_what_is_wrong_or_missing_is_not_timed_and_said(results, capsys):
    (entry,) = results["cases"]
    assert entry["failed"] == {"wrong": "is wrong", "broken": "ValueError: cannot run"}
    assert entry["missing"] == {"absent": "needs no_such_package"}
    assert list(entry["timings"][0]["milliseconds"]) == ["fast", "slow", "compiled"]
    ran = SUITE.cases[0].ran
    assert ran["fast"] == ran["slow"] >= 4 and not {"wrong", "broken", "absent"} & ran.keys()
    text = report.table(SUITE, entry)
    assert "not timed: wrong: is wrong\n" in text
    assert "not timed: absent: needs no_such_package\n" in text


def test_goals_met_and_missed_are_said(results):
    (entry,) = results["cases"]
    goals = entry["timings"][0]["goals"]
    assert [goal["state"] for goal in goals] == STATES
    assert goals[2]["measured"] == pytest.approx(2)  # the time of slow in halves of it
    assert [goal["measured"] for goal in goals[4:]] == [None, None]
    assert [(goal["measured"], goal["state"]) for goal in entry["goals"]] == [(7, "ok"), (2.0, "MISS")]
    for text in (report.table(SUITE, entry), report.markdown(SUITE, results)):
        assert "slow: at most 1.1x the time of half slow" in text and "2.00x" in text
        assert "wrong: at least 2x as fast as fast" in text and "not measured" in text
        assert "memory: at most 1 MB" in text and text.count("MISS") == 4
    assert report.verdict(results).startswith("8 goals of fake: 3 met, 4 missed, 0 too noisy to tell, 1 ")


def test_noisy_rounds_settle_no_goal(monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr(timing, "_busy_seconds", lambda: float(next(clock)))
    timed = runner.measure(SUITE, FakeCase(), (1,))["timings"][0]
    assert timed["rounds"]["used"] == "all" and timed["rounds"]["noisy"] > 0
    assert [goal["state"] for goal in timed["goals"]] == ["NOISY"] * 4 + ["NONE", "MISS"]


def test_a_few_noisy_rounds_are_dropped(monkeypatch):
    busy = iter([0.0, 9.0] + [9.0] * 100)
    monkeypatch.setattr(timing, "_busy_seconds", lambda: next(busy))
    timed = runner.measure(SUITE, FakeCase(), (1,))["timings"][0]
    assert timed["rounds"] == {"quiet": 3, "noisy": 1, "used": "quiet"}
    assert timed["milliseconds"]["slow"] == pytest.approx(4.1)
    assert [goal["state"] for goal in timed["goals"]] == STATES


def test_results_survive_json_and_have_a_table(results, tmp_path):
    report.write(SUITE, results, tmp_path)
    again = json.loads((tmp_path / "fake.json").read_text())
    assert again == results
    page = (tmp_path / "fake.md").read_text()
    assert page == report.markdown(SUITE, again)
    (head,) = (line for line in page.splitlines() if line.startswith("| case | nodes | threads "))
    names = "half slow | fast | slow | compiled | wrong | broken | absent | noisy rounds"
    assert head == f"| case | nodes | threads | {names} |"
    (row,) = (line for line in page.splitlines() if line.startswith("| fake-3 | 7 | 1 "))
    assert "(1.00x)" in row and "(roof 50%)" in row and row.count("| - ") == 3
    assert "| fake-3 | 2.00 | 1024.00 |" in page


def test_one_header():
    """The same but for the name, whatever the suite."""
    suites = (verify.SUITE, commit.SUITE, attention.SUITE, generate.SUITE)
    headers = [report.header(suite, (1, 2), quick=False) for suite in suites]
    assert [header.pop("benchmark") for header in headers] == ["verify", "commit", "attention", "generate"]
    assert headers.count(headers[0]) == 4
    assert headers[0]["versions"]["torch"] == torch.__version__


def test_roofs_are_rates_and_stand_in_the_header(results, monkeypatch):
    assert set(results["roofs"]) == {"1"} and min(results["roofs"]["1"].values()) > 0
    seconds = {"read": 0.5, "float32": 0.25, "bfloat16": 0.125}
    timings = timing.Timings(seconds, {}, 1, 0, "quiet")
    taken = []
    monkeypatch.setattr(roofs, "interleave", lambda runs, sets, rounds: taken.append(rounds) or timings)
    monkeypatch.setattr(roofs, "READ_BYTES", 4 * 10**9)
    monkeypatch.setattr(torch, "ones", lambda n: torch.empty(0))
    rates = roofs.measure(1)
    assert rates == {"read": 8.0, "float32": 2 * 16**3 / 0.25e9, "bfloat16": 2 * 16**3 / 0.125e9}
    quick = roofs.measure(1, quick=True)
    assert quick == {"read": 8.0, "float32": 2 * 8**3 / 0.25e9, "bfloat16": 2 * 8**3 / 0.125e9}
    assert taken[1].count * taken[1].seconds < taken[0].count
    results["roofs"] = {"1": {"read": 8.0, "float32": 90.4, "bfloat16": 41.0}}
    said = "1 thread: reads 8.0 GB/s, float32 products 90 GFLOP/s, bfloat16 products 41 GFLOP/s."
    assert said in report.describe(SUITE, results)


def test_results_are_kept_by_processor(results, tmp_path):
    results["machine"] |= {"cpu": "Intel(R) Xeon(R) CPU @ 2.60GHz, AVX-512", "generation": "6.143"}
    kept = report.folder_of(results, tmp_path)
    results["machine"] |= {"cpu": "AMD EPYC, AVX-512"}
    assert {kept.name, report.folder_of(results, tmp_path).name} == {
        "intel-xeon-avx-512-6-143",
        "amd-epyc-avx-512-6-143",
    }
    assert report.folder_of(results | {"roofs": {}}, tmp_path) == tmp_path  # counts: the same on each


def test_cpu_seconds_are_kept_round_by_round():
    timed = runner.measure(SUITE, FakeCase(), (1,), quick=True)["timings"][0]
    assert set(timed["each_round"]) == {"fast", "slow"} and len(timed["each_round"]["slow"]) == 1
    assert timed["milliseconds"]["slow"] == pytest.approx(0.1)  # it sleeps


def test_the_command(monkeypatch, tmp_path, capsys):
    """It writes where it is told, selects cases, and fails if a contender of this project is wrong."""

    def bench(*arguments, suite=SUITE):
        monkeypatch.setattr(command, "load", lambda name: suite)
        monkeypatch.setattr("sys.argv", ["bench", *arguments])
        return command.main()

    assert bench("verify", "--cases", "fake-*", "--json", str(tmp_path)) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"fake.json", "fake.md"}
    monkeypatch.setattr(command, "RESULTS", tmp_path / "results")
    assert bench("verify", "--quick") == 0 and not command.RESULTS.exists()
    assert "compiled" not in capsys.readouterr().out.rsplit("== fake-3", 1)[1]
    spoiled = Suite("fake", SUITE.cases, "", subjects=("wrong",), rounds=SUITE.rounds, threads=(1,))
    assert bench("verify", suite=spoiled) == 1 and command.RESULTS.exists()
    with pytest.raises(SystemExit):
        bench("verify", "--cases", "nothing")


@pytest.mark.parametrize("suite", (verify.SUITE, commit.SUITE, attention.SUITE, generate.SUITE))
def test_suites_speak_of_contenders_that_they_have(suite):
    assert len({case.name for case in suite.cases}) == len(suite.cases)
    assert set(suite.quick_cases) <= set(suite.cases)
    for case in suite.cases:
        names = [contender.name for contender in case.contenders()]
        assert len(set(names)) == len(names)
        names += case.derived(dict.fromkeys(names, 1.0))
        assert {*suite.subjects, *suite.references, *suite.floors, *suite.roofs, *suite.roofs.values()} <= {
            *names
        }
        goals = [goal for threads in suite.threads for goal in case.goals(threads)]
        assert {name for goal in goals for name in (goal.subject, goal.baseline)} <= {*names}


def test_a_verifier_of_another_law_is_refused():
    case = verify.VerifyCase()
    assert check.failure(peers.CHAIN[0], case) is None

    def accepts_everything(inputs):
        count = torch.full((inputs.case.batch,), inputs.case.depth)
        return lambda i: (count, torch.zeros_like(count))

    assert "expected" in check.failure(peers.Verifier("greedy", accepts_everything), case)


@pytest.mark.parametrize("rule", ["token", "traversal"])
@pytest.mark.parametrize("name", ["bushy_mixed", "skipped"])
def test_accepted_tokens_of_siblings(name, rule):
    """What the benchmark expects of a drawn tree is what the rule accepts on average."""
    case = CASES[name]
    expected = sum(
        chance * siblings.accepted(case.request(tokens, None), rule) for tokens, chance in case.drafts()
    )
    assert expected == pytest.approx(emitted(case, getattr(rules, rule))[1], rel=EXACT)


INDEPENDENT = Drafts((0, 0, 1), "III")


@pytest.mark.parametrize("rule", [rules.token, rules.traversal])
def test_siblings_by_class_are_lossless(rule):
    assert distance(INDEPENDENT, emitted(INDEPENDENT, rule, cls=siblings.ByClass)[0]) < EXACT


def test_mutant_siblings_by_class_declared_independent():
    """The best one first, though not with the law of the best one."""

    class Sorted(siblings.ByClass):
        proposal_law = siblings.Request.proposal_law

    assert distance(INDEPENDENT, emitted(INDEPENDENT, rules.token, cls=Sorted)[0]) > FAR
