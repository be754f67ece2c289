# SPDX-License-Identifier: Apache-2.0
"""The demo's options: what is refused before a model is loaded, and the figures it writes."""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path

import pytest
from tiny_llama import EOS, MODEL

import specdec_kernels as sdk
from demo.__main__ import main
from demo.distil.counts import distil
from demo.drafters import budget as drafters_budget
from demo.drafters.budget import LearnedBudget, no_drafts
from demo.drafters.tree import Tree
from demo.engine import Request
from demo.files import PROMPTS, Refused, check_writable, first_of_each_kind, read_prompts
from demo.fit import LENGTHS, Schedule, answer_length
from demo.report.figures import Results, write_json
from demo.timing import race, rates
from demo.traces.outcomes import read_trace, replayed
from demo.ways import DRAFTERS, PLAIN, RULES, Way, trace_ways, ways


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "b.txt").write_text(" two\n")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "note.md").write_text("no prompt")
    (tmp_path / "blank.text").write_text("")
    return tmp_path


def test_prompts_of_any_folder(folder):
    assert list(read_prompts(folder).items()) == [("a", "one"), ("b", "two")]
    assert read_prompts(folder, ["b"]) == {"b": "two"}


def blank(folder: Path) -> list[str]:
    (folder / "c.txt").write_text(" \n")
    return ["--prompts-dir", str(folder)]


def no_text(folder: Path) -> list[str]:
    (folder / "c.txt").write_bytes(b"\xff\xfe")
    return ["--prompts-dir", str(folder)]


def no_file(folder: Path) -> list[str]:
    (folder / "c.txt").mkdir()
    return ["--prompts-dir", str(folder)]


def no_name(folder: Path) -> list[str]:
    (folder / "\x1b[2J.txt").write_text("three")
    return ["--prompts-dir", str(folder)]


def no_prompts(folder: Path) -> list[str]:
    (folder / "inside").mkdir()
    return ["--prompts-dir", str(folder / "inside")]


REFUSED = {
    "no such folder": (lambda folder: ["--prompts-dir", str(folder / "none")], "none' cannot be read"),
    "a file": (lambda folder: ["--prompts-dir", str(folder / "a.txt")], "a.txt' cannot be read"),
    "nothing there": (no_prompts, "inside' has no .txt files"),
    "empty": (blank, "c.txt' is empty"),
    "not UTF-8": (no_text, "c.txt' is not text in UTF-8"),
    "a folder as prompt": (no_file, "c.txt' cannot be read"),
    "unprintable": (no_name, "cannot be printed"),
    "no such prompt": (
        lambda folder: ["--prompts-dir", str(folder), "--prompts", "a", "c"],
        "there is no prompt 'c'",
    ),
    "json in no folder": (lambda folder: ["--json", str(folder / "none" / "x.json")], "cannot be written"),
    "json is a folder": (lambda folder: ["--json", str(folder)], "cannot be written: Is a directory"),
    "json with a long name": (lambda folder: ["--json", str(folder / ("x" * 300))], "cannot be written"),
    "picture in no folder": (
        lambda folder: ["--picture", str(folder / "none" / "x.png")],
        "cannot be written",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_is_loaded(name, folder, capsys, monkeypatch):
    arguments, words = REFUSED[name][0](folder), REFUSED[name][1]
    monkeypatch.chdir(folder)
    monkeypatch.setitem(sys.modules, "demo.run", None)  # importing it fails
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("demo: ") and words in message and message.count("\n") == 1


def test_an_earlier_result_survives_the_check(folder):
    check_writable(folder / "b.txt")
    check_writable(folder / "new.json")
    assert (folder / "b.txt").read_text() == " two\n" and not (folder / "new.json").exists()


REQUEST = {"prompt": [8, 9, 8, 9, 8], "max_new_tokens": 5}
COSTS = {1: 1.0, 20: 2.0}
CURVE = sdk.CostCurve(COSTS, max_rows=64)
TEXTS = [([20, 8, 9], [10, 11, 8, 9, 10, number]) for number in range(16)]  # 8 9 goes on with 10


def test_a_table_of_ngrams():
    table, share = distil(TEXTS)
    (token, chance), *others = table.after([20, 8, 9])
    assert token == 10 and chance > 0.6 and not others
    assert 0.5 < share < 1.0  # all but the last token of each text


def compared(*more: str) -> dict[str, Way]:
    found = ways(distil(TEXTS)[0], CURVE)
    return {way: found[way] for way in (PLAIN, *DRAFTERS, *more)}


def letters(steps: list[list[int]]) -> list[list[str]]:
    return [[f"<{token}>" for token in step] for step in steps]


def test_rates_are_of_the_median_rounds():
    some = {
        way: found for way, found in ways(distil(TEXTS)[0], CURVE).items() if way in (PLAIN, DRAFTERS[-1])
    }
    rounds = [race(MODEL, EOS, some, [REQUEST], 1) for _ in range(3)]
    for seconds, runs in zip((1.0, 50.0, 2.0), rounds, strict=True):
        for run in runs.values():
            run.seconds = seconds
    written = rounds[0][PLAIN].written
    assert rates([rounds]) == {PLAIN: written / 2, DRAFTERS[-1]: written / 2}
    assert rates([rounds, rounds[:1]], [PLAIN]) == {PLAIN: 2 * written / 3}


def test_the_short_form_has_one_prompt_of_each_kind():
    chosen = first_of_each_kind(read_prompts(PROMPTS))
    assert list(chosen) == ["chat_soup", "code_method", "json_currency", "noise_words", "quote_spelling"]


@pytest.mark.parametrize("rate", [0.5, 5.0, 15.0, 30.0, 300.0])
def test_answers_are_as_long_as_fits(rate):
    length = answer_length(120.0, 1 / rate, answers=10)
    assert length in LENGTHS
    assert length == min(LENGTHS) or 3 * 10 * length / rate <= 120.0
    assert length == max(LENGTHS) or 3 * 10 * LENGTHS[LENGTHS.index(length) - 1] / rate > 120.0


@pytest.mark.parametrize("seconds", [1.0, 7.0, 13.0, 60.0])
def test_work_ends_in_time(seconds):
    now = [100.0]
    schedule = Schedule(100.0 + seconds, lambda: now[0])
    lasts = {"a": 2.0, "b": 3.0, "c": 1.0}
    done = []
    for number, key in schedule.rounds(list(lasts), 3):
        done.append((number, key))
        now[0] += lasts[key]
    assert done == [(number, key) for number in range(3) for key in lasts][: len(done)]
    assert len(done) == {1.0: 1, 7.0: 2, 13.0: 5, 60.0: 9}[seconds]
    assert now[0] <= 100.0 + seconds or len(done) == 1
    assert schedule.left() == max(100.0 + seconds - now[0], 0.0)


def test_json(folder):
    results = Results()
    for name, prompt in {"first": [8, 9, 8, 9, 8], "second": [20, 21, 22]}.items():
        for temperature in (0.0, 0.7):
            request = REQUEST | {"prompt": prompt, "temperature": temperature}
            tried = compared(*(RULES if temperature else ()))
            results.single[name, temperature] = [race(MODEL, EOS, tried, [request], 1)]
    results.together = [race(MODEL, EOS, compared(), [REQUEST, REQUEST], 1)]
    for races in results.single.values():
        for way, run in races[0].items():
            run.seconds = 2.0 if way == PLAIN else 0.5
    write_json(results, folder / "out.json", letters, COSTS, {"threads": 2})
    figures = json.loads((folder / "out.json").read_text())
    assert figures["threads"] == 2 and figures["costs"] == {"1": 1.0, "20": 2.0}
    assert list(figures["single"]) == ["first", "second"]
    assert list(figures["by_temperature"]) == ["greedy", "temperature 0.7"]
    for found in (
        *figures["single"].values(),
        figures["together"],
        *figures["by_temperature"]["greedy"].values(),
    ):
        assert list(found) == [PLAIN, *DRAFTERS] and all(rate > 0 for rate in found.values())
    written = sum(len(results.text("first", temperature)) for temperature in (0.0, 0.7))
    assert figures["single"]["first"] == {PLAIN: written / 4} | {way: written for way in DRAFTERS}
    run = results.single["first", 0.0][0][DRAFTERS[-1]]
    tokens = [[token for progress in step for token in progress.tokens] for step in run.steps]
    assert figures["steps"]["first"] == letters(tokens)


@pytest.mark.parametrize("full", [False, True])
def test_the_picture_says_what_it_shows(folder, full):
    chart = pytest.importorskip("demo.report.chart")
    raced = race(MODEL, EOS, compared(), [REQUEST], 1)
    for way, run in raced.items():
        run.seconds = run.written / (30.0 if way == PLAIN else 45.0)
    facts = {"model": "a model", "processor": "a processor", "tokens": 5}
    with chart.matplotlib.rc_context({"svg.fonttype": "none"}):
        chart.draw(Results({("first", 0.0): [raced]}), folder / "x.svg", facts, full)
    drawn = (folder / "x.svg").read_text(encoding="utf-8")
    words = ["a model, on a processor; at most 5 tokens", "forward pass of the model", "first"]
    words += (
        ["Mean speed-up"]
        if full
        else ["30.0 plain", "45.0 drafted, 1.50x", f"{len(raced[DRAFTERS[-1]].steps)} steps"]
    )
    assert all(word in drawn for word in words)


def test_json_that_cannot_be_written_in_the_end(folder):
    raced = race(MODEL, EOS, compared(), [REQUEST], 1)
    results = Results({("first", 0.0): [raced]}, [raced])
    with pytest.raises(Refused, match="cannot be written"):
        write_json(results, folder / "none" / "x.json", letters, COSTS, {})


def test_a_replay_takes_the_steps_of_a_race():
    table, _ = distil(TEXTS)
    raced, again = trace_ways(table, COSTS), trace_ways(table, COSTS)
    request = REQUEST | {"max_new_tokens": 16}
    for number in range(2):
        runs = race(MODEL, EOS, raced, [request], 1)
        steps = {way: len(run.steps) for way, run in runs.items()}
        for way, run in runs.items():
            outcome = replayed(again[way].draft, [(request["prompt"], runs[PLAIN].texts[0])], COSTS)
            assert (outcome.tokens, outcome.steps) == (run.written, steps[way])
        assert (steps["suffix"] < steps["tree"]) == (number == 1)  # the same request again


def test_a_replay_of_a_batch():
    """Two texts at once and then a third; an oracle drafts what is right and nothing else."""
    texts = [([8], [9, 9, 9, 9]), ([8], [9, 7]), ([8], [9, 9])]

    def draft(requests):
        return [Tree([8, 9, 9], [-1, 0, 1], [1.0, 0.9, 0.8]) for _ in requests]

    def time(*rows: int):
        return pytest.approx(sum(sdk.Budget(COSTS).cost(rows)))

    assert replayed(no_drafts, texts, COSTS, 2) == (8, 4, time(2, 2, 2, 2))
    assert replayed(draft, texts, COSTS, 2) == (8, 2, time(6, 6))
    assert replayed(draft, texts, COSTS, 2, oracle=True) == (8, 2, time(5, 5))


class Machine:
    """A clock by which steps and drafting take time, with noise of 3 % and now and then a pause."""

    costs = {1: 1.0, 2: 1.09, 3: 1.17, 4: 1.45, 8: 1.6, 16: 1.96, 32: 2.89}
    drafting = 0.02  # of a step over one row

    def __init__(self, seed: int) -> None:
        self.now, self.lost, self.choices = 0.0, 0.0, random.Random(seed)

    def clock(self) -> float:
        return self.now

    def spend(self, time: float) -> float:
        """The time that passes, pauses included, which are no fault of the drafts."""
        pause = 3.0 if self.choices.random() < 0.02 else 0.0
        self.now += (passed := time * math.exp(self.choices.gauss(0, 0.03)) + pause)
        self.lost += pause
        return passed

    def draft(self, contexts: list[list[int]]) -> list[Tree]:
        self.spend(self.drafting)
        return [Tree([context[-1], *[0] * 15], list(range(-1, 15)), [0.8**d for d in range(16)])
                for context in contexts]  # fmt: skip


def speed_up(lengths: list[int], accepts, seed: int, most: int = 1) -> float:
    """Over plain decoding, of texts whose drafts of the token at a place are right or not, and which may be
    `most` times as long."""
    return decoded(*drafting_on(Machine(seed)), lengths, accepts, most)


def drafting_on(machine: Machine) -> tuple[LearnedBudget, Machine]:
    cost = sdk.Budget(machine.costs).cost
    curve = sdk.CostCurve(machine.costs, 512)
    for rows in (1, 32, 1, 16, 1, 8):  # measured before the texts begin
        curve.observe(rows, float(cost(rows)))
    return LearnedBudget(machine.draft, curve, machine.clock), machine


def decoded(drafting: LearnedBudget, machine: Machine, lengths: list[int], accepts, most: int = 1) -> float:
    cost, begin = sdk.Budget(machine.costs).cost, machine.now - machine.lost
    requests = [Request([1], most * length) for length in lengths]
    ends = dict(zip(requests, lengths, strict=True))
    right = dict(zip(requests, accepts, strict=True))
    while running := [request for request in requests if len(request.tokens) < ends[request]]:
        trees = drafting(running)
        rows = sum(len(tree.tokens) for tree in trees)
        for request, tree in zip(running, trees, strict=True):
            place, hits = len(request.tokens), 0
            while hits < len(tree.tokens) - 1 and right[request](place + hits):
                hits += 1
            request.tokens += ([0] * hits + [1])[: ends[request] - place]
        drafting.observe(rows, machine.spend(float(cost(rows))))
    plain = sum(float(cost(sum(length > place for length in lengths))) for place in range(max(lengths)))
    return plain / (machine.now - machine.lost - begin)


def never(place: int) -> bool:
    return False


def median_speed_up(lengths: list[int], accepts, most: int = 1) -> float:
    return sorted(speed_up(lengths, accepts, seed, most) for seed in range(3))[1]


@pytest.mark.parametrize("length, most", [(16, 1), (40, 4), (64, 4), (96, 1)])
def test_no_text_of_the_demo_takes_three_percent_longer(length, most, monkeypatch):
    """Whatever the drafts are worth, by a clock that stutters, and also where the text ends early."""
    for accepts in (never, lambda place: place < 10, lambda place: place // 10 % 2 == 0):
        assert median_speed_up([length], [accepts], most) >= 0.97
    monkeypatch.setattr(drafters_budget, "SHARE", 1e9)  # a mutant whose credit is not bounded
    assert median_speed_up([length], [never], most) < 0.97


UNEVEN = {
    "one good, another useless": ([64] * 2, [lambda place: True, never]),
    "one good, the others useless": ([64] * 8, [lambda place: True, *[never] * 7]),
    "from useless to good": ([64] * 8, [lambda place, k=k: place * 7 % 8 < k for k in range(8)]),
    "short and good, long and useless": ([16, 16, 64], [lambda place: True, lambda place: True, never]),
}


@pytest.mark.parametrize("name", UNEVEN)
def test_no_uneven_batch_takes_three_percent_longer(name):
    lengths, accepts = UNEVEN[name]
    assert min(median_speed_up(lengths, accepts, most) for most in (1, 4)) >= 0.97


def test_mutant_that_counts_all_tokens_alike_loses_on_an_uneven_batch(monkeypatch):
    alike = property(lambda self: False, lambda self, awaited: None)
    monkeypatch.setattr(sdk.TextCredit, "awaited", alike, raising=False)
    assert min(median_speed_up(*batch, most=4) for batch in UNEVEN.values()) < 0.97


@pytest.mark.parametrize("seed", range(3))
def test_a_slow_first_draft_does_not_end_those_of_later_texts(seed):
    """And no text lives on the credit of an earlier one."""
    drafting, machine = drafting_on(Machine(seed))
    machine.drafting = 0.7  # of a step: more than the credit of a text
    decoded(drafting, machine, [32], [lambda place: True])
    machine.drafting = Machine.drafting
    assert sorted(decoded(drafting, machine, [64], [lambda place: True]) for _ in range(5))[2] > 3.0
    assert min(decoded(drafting, machine, [64], [never]) for _ in range(3)) >= 0.96


def test_two_wrong_drafts_do_not_end_all_drafts_of_a_text():
    assert median_speed_up([96], [lambda place: place >= 2]) > 3.0


@pytest.mark.parametrize("name", ["agent", "chat"])
def test_traces_repeat_little(name):
    trace = read_trace(name)
    assert len({prompt.text for prompt in trace}) == len(trace)
    follow_ups = [number for number, prompt in enumerate(trace) if prompt.follows is not None]
    assert 5 * len(follow_ups) <= len(trace)
    assert all(trace[number].follows < number for number in follow_ups)
