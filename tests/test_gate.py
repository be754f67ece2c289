# SPDX-License-Identifier: Apache-2.0
"""The gate of a GPU, run on the emulator: that every part runs and reports, and that faults are told."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from each import BACKENDS, DEVICE

if "triton" not in BACKENDS or DEVICE != "cpu":
    pytest.skip("the dry run needs the emulator", allow_module_level=True)

import specdec_kernels as sdk
from bench.gate import (
    agree_attention,
    agree_caches,
    counters,
    graphs,
    law,
    oracle,
    repeat,
    report,
    sanitizer,
    timing,
)
from bench.gate.__main__ import run, select
from bench.gate.card import launches_of
from bench.gate.device import ROOT, form, same_bits
from bench.gate.emulated import PRINTED, Emulated
from bench.gate.parts import PARTS, Gate
from bench.gate.processes import Ended, spread
from bench.gate.record import Record
from bench.suite import Goal

pytestmark = pytest.mark.slow


def gate(folder, *arguments, before=""):
    """A dry run in a process of its own, after some lines of Python: exit status, output, results, page."""
    code = f"{textwrap.dedent(before)}\nimport sys\nfrom bench.gate.__main__ import main\nsys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "--dry-run", "--json", str(folder), *arguments],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert "gpu-emulator.md" in done.stdout, done.stdout + done.stderr
    results = json.loads((folder / "gpu-emulator.json").read_text())
    return done.returncode, done.stdout, results["parts"], (folder / "gpu-emulator.md").read_text()


def test_a_dry_run_runs_every_part(tmp_path):
    status, printed, parts, page = gate(tmp_path)
    assert status == 0, printed
    assert list(parts) == [part.name for part in PARTS]
    for name, part in parts.items():
        assert part["end"]["state"] == "done" and report.state(part) == "passed", name
        assert f"\n## {name}\n" in page and f"== {name}: done in" in printed
        kinds = {entry["kind"] for entry in part["entries"]}
        assert kinds & {"check", "row"}, name
    assert "A dry run on the emulator" in page and "the gate: passed" in printed
    for name in (name for name in parts if name.startswith("times-")):
        timed = [e["cells"] for e in parts[name]["entries"] if e.get("table") == "times"]
        assert timed and all("_kernel" in row["form"] and row["cold us"] > 0 for row in timed)
    marks = [entry for part in parts.values() for entry in part["entries"] if entry["kind"] == "mark"]
    assert marks and all(mark["state"] == "MADE UP" for mark in marks)
    agreed = [e["name"] for e in parts["agree-verify"]["entries"] if e["kind"] == "check"]
    assert len(agreed) == 4 and "token, chain" in agreed[1] and "no last rows" in agreed[2]
    assert "edits, ends and reports" in agreed[3]


FAULTS = """
    import os, time
    from dataclasses import replace
    import specdec_kernels as sdk
    from bench.gate import agree_caches, law, parts, repeat, sanitizer

    sample, verify = sdk.sample, sdk.verify

    def wrong_sample(*args, backend="auto", **options):
        tokens, logprobs = sample(*args, backend=backend, **options)
        return (tokens + (backend == "triton"), logprobs)

    def wrong_verify(*args, backend="auto", **options):
        found = verify(*args, backend=backend, **options)
        if backend == "triton":
            found.num_accepted.add_(1)
        return found

    def crash(gate):
        gate.record.note("so far")
        os.abort()

    def hang(gate):
        gate.record.note("so far")
        time.sleep(600)

    def refuse(gate):
        raise ValueError("no such thing")

    sdk.sample, sdk.verify = wrong_sample, wrong_verify
    law.run, repeat.run, agree_caches.run = crash, hang, refuse
    parts.PARTS = tuple(replace(p, seconds=3) if p.name == "repeat" else p for p in parts.PARTS)
"""


def test_faults_are_told_and_other_parts_still_run(tmp_path):
    only = "agree-verify,agree-caches,agree-drafting,repeat,law,times-commit"
    status, printed, parts, page = gate(tmp_path, "--only", only, before=FAULTS)
    assert status == 1 and "the gate: FAILED" in printed
    assert {name: report.state(part) for name, part in parts.items()} == {
        "agree-verify": "FAILED",
        "agree-caches": "RAISED",
        "agree-drafting": "FAILED",
        "repeat": "HUNG",
        "law": "CRASHED",
        "times-commit": "passed",
    }
    assert "num_accepted differ where tokens do not" in page and "law: CRASHED: SIGABRT" in page
    assert "ValueError: no such thing" in page and "repeat: HUNG: stopped after 3 s" in page
    assert all("so far" in parts[name]["entries"][0]["text"] for name in ("repeat", "law"))
    wrong = [e["name"] for e in parts["agree-drafting"]["entries"] if e["kind"] == "check" and not e["ok"]]
    assert wrong and all(name.startswith("sample") for name in wrong)


def changed(function, change):
    """An operator whose results on the triton backend are changed."""

    def called(*args, **options):
        result = function(*args, **options)
        if options["backend"] == "triton":
            change(result)
        return result

    return called


def left_out(function):
    """An operator that does nothing on the triton backend."""
    return lambda *args, backend, **options: (
        backend == "triton" or function(*args, backend=backend, **options)
    )


calls = itertools.count()
WRONG = {  # a part, what is broken, and how
    "graphs that do nothing": (graphs, Emulated, "graph", lambda device, call: (lambda: None, call())),
    "streams": (graphs, Emulated, "together", lambda device, calls: [call() for call in calls][::-1]),
    "bits that change": (
        repeat, sdk, "tree_attention", changed(sdk.tree_attention, lambda out: out[0].add_(next(calls) == 2))
    ),
    "attention": (
        agree_attention, sdk, "tree_attention", changed(sdk.tree_attention, lambda out: out[0].mul_(1.0001))
    ),
    "commit_kv": (agree_caches, sdk, "commit_kv", left_out(sdk.commit_kv)),
    "replay_conv": (agree_caches, sdk, "replay_conv", left_out(sdk.replay_conv)),
    "law": (law, sdk, "verify", changed(sdk.verify, lambda out: out.tokens[:, 0].add_(1).remainder_(7))),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_part_notices_its_fault(name, monkeypatch, tmp_path):
    part, *wrong = WRONG[name]
    monkeypatch.setattr(*wrong)
    seen = recorded(lambda record: part.run(Gate(record, tmp_path, dry=True)))
    assert report.state(seen) == "FAILED"


class Forked(Exception):
    pass


FORKING = ("agree-verify", "agree-attention", "agree-drafting", "law")
FORKING += ("times-verify", "times-sample", "times-attention", "times-commit")


@pytest.mark.parametrize("name", FORKING)
def test_processes_are_forked_before_the_card_is_opened(name, monkeypatch, tmp_path):
    """A process that was forked later could not use it."""

    def fork(gate, check, groups):
        assert len(groups) > 1 and len(set(map(str, groups))) == len(groups)
        raise Forked

    monkeypatch.setattr(Gate, "each", fork)
    (module,) = (part.module for part in PARTS if part.name == name)
    gate = Gate(Record("part", lambda entry: None, True), tmp_path, dry=False)
    with pytest.raises(Forked):
        importlib.import_module(f"bench.gate.{module}").run(gate)
    assert "device" not in vars(gate)


# --- Processes ---------------------------------------------------------------------------------------------


def test_processes_end_as_they_do_and_no_other_minds():
    def work(item, send):
        send(item)
        if item == "raises":
            raise KeyError(item)
        if item == "crashes":
            os.kill(os.getpid(), signal.SIGKILL)
        if item == "hangs":
            time.sleep(600)

    items = ["ends", "raises", "crashes", "hangs", "ends too"]
    seen = list(spread(work, items, at_once=2, limit=lambda item: 0.3 if item == "hangs" else 60))
    assert sorted(item for item, message in seen if message == item) == sorted(items)
    ends = {item: message for item, message in seen if isinstance(message, Ended)}
    assert {item: end.state for item, end in ends.items()} == {
        "ends": "done", "raises": "raised", "crashes": "crashed", "hangs": "hung", "ends too": "done",
    }  # fmt: skip
    assert "KeyError" in ends["raises"].detail and ends["crashes"].detail == "SIGKILL"


def test_what_a_part_has_started_ends_with_it(tmp_path):
    def inner(item, send):
        (tmp_path / "pid").write_text(str(os.getpid()))
        time.sleep(600)

    def outer(item, send):
        list(spread(inner, [1]))

    (_, end), *_ = spread(outer, [0], limit=lambda _: 1.0)
    assert end.state == "hung"
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not os.path.exists(f"/proc/{pid}") or open(f"/proc/{pid}/stat").read().split()[2] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("it still runs")


# --- Judgement ---------------------------------------------------------------------------------------------


TWICE = Goal("x", 2, "y", ceiling=True)


def recorded(work, judged=True):
    """The part of a report that holds what `work` records."""
    entries = []
    work(Record("part", entries.append, judged))
    return {"title": "", "entries": entries, "end": vars(Ended("done", "", 1.0))}


@pytest.mark.parametrize(
    "work, state",
    [
        (lambda record: record.check("a", True), "passed"),
        (lambda record: record.check("a", False), "FAILED"),
        (lambda record: record.missing("a", "b"), "not run"),
        (lambda record: None, "not run"),
        (lambda record: record.mark("a", TWICE, {"x": 3.0, "y": 2.0}), "passed"),
        (lambda record: record.mark("a", TWICE, {"x": 5.0, "y": 2.0}), "MARK MISSED"),
        (lambda record: record.mark("a", TWICE, {"x": 3.0}), "MARK MISSED"),
        (lambda record: record.mark("a", TWICE, {}), "MARK MISSED"),
    ],
)
def test_states(work, state):
    part = recorded(work)
    assert report.state(part) == state
    results = {"dry": False, "command": "", "parts": {"part": part}}
    assert report.failed(results) == (state in ("FAILED", "MARK MISSED"))
    assert f"| {state} |" in report.markdown(results)


def test_a_report_of_a_run_that_was_stopped_is_no_success():
    part = {"title": "", "entries": [], "end": None}
    results = {"command": "", "dry": False, "parts": {"law": part}}
    assert report.failed(results) and "| NOT REACHED |" in report.markdown(results)


def test_parts_are_chosen_by_pieces_of_their_names():
    assert [part.name for part in select("attention")] == ["agree-attention", "times-attention"]
    assert select("") == list(PARTS) and select("no such part") == []
    assert [part.name for part in select("law,st*")] == ["start", "law"]


def test_a_slower_time_than_a_peers_is_named():
    part = recorded(lambda record: record.row("times", case="c", loss="peer takes 0.50 of the time"))
    results = {"dry": False, "command": "", "parts": {"times": part}}
    assert "times: LOSS: c: peer takes 0.50 of the time" in report.verdict(results)


def test_parts_without_time_are_no_success(tmp_path):
    results = {"command": "", "dry": True}
    list(run(results, list(PARTS[:2]), 0.0, tmp_path))
    assert report.failed(results)
    assert {part["end"]["state"] for part in results["parts"].values()} == {"out of time"}
    assert "OUT OF TIME" in report.verdict(results) and "| OUT OF TIME |" in report.markdown(results)


class Timer:
    """A device on which everything has a time."""

    real, name, kind = True, "a card", "cpu"
    seconds = staticmethod(lambda call, cold=False: call() or 1e-6)
    no_synchronisation = staticmethod(contextlib.nullcontext)
    synchronize = staticmethod(lambda: None)
    launches = staticmethod(lambda call: [])


def test_times_stand_beside_those_of_peers(monkeypatch, tmp_path):
    def broken():
        raise ValueError("of another version")

    peers = [
        timing.Peer("fast", lambda: lambda: 1e-7),
        timing.Peer("slow", lambda: lambda: 1e-5),
        timing.Peer("absent", broken, needs="no_such_package"),
        timing.Peer("broken", broken),
    ]
    cases = [
        timing.Timed("ours", lambda device: timing.Prepared(lambda: 1e-6, 4e6, peers=peers)),
        timing.Timed("too large", lambda device: torch.empty(2**60)),
    ]
    monkeypatch.setattr(Gate, "each", lambda *_: None)
    monkeypatch.setattr(timing.Roof, "measure", lambda _: timing.Roof(1e12, 1e15, 0.0))

    def work(record):
        gate = Gate(record, tmp_path, dry=False)
        vars(gate)["device"] = Timer()
        assert timing.measure(gate, cases) == {"ours": 1.0, "ours ideal": 4.0}

    part = recorded(work)
    cells = next(e["cells"] for e in part["entries"] if e.get("table") == "times")
    assert [cells[name] for name in ("fast us", "slow us", "x ideal")] == pytest.approx([0.1, 10.0, 0.25])
    assert cells["loss"] == "fast takes 0.10 of the time" and cells["broken us"] == "-"
    said = "\n".join(report.complaints({"parts": {"times": part}}))
    assert "times: FAILED: too large" in said and "ours: broken: ValueError: of another version" in said
    assert "absent: no_such_package is not installed" in said and "not judged here" in str(part)


class Tools:
    """A device with tools that print what they are told to."""

    def __init__(self, status, text):
        self.answer, self.real = (status, text), True

    def which(self, tool):
        return tool if self.answer[1] is not None else None

    def tool(self, command, workload):
        return self.answer


def with_tool(part, status, text):
    class Gate:
        device, dry = Tools(status, text), False

    def work(record):
        Gate.record = record
        part.run(Gate)

    return recorded(work)


def test_what_the_sanitizer_finds_fails():
    clean = PRINTED["compute-sanitizer"]
    assert report.state(with_tool(sanitizer, 0, clean)) == "passed"
    assert report.state(with_tool(sanitizer, 9, clean.replace("0 errors", "2 errors"))) == "FAILED"
    assert report.state(with_tool(sanitizer, 0, "RACECHECK SUMMARY: 1 hazards displayed")) == "FAILED"
    assert report.state(with_tool(sanitizer, 0, "cannot start")) == "FAILED"
    assert report.state(with_tool(sanitizer, 0, None)) == "not run"


def test_counters_are_read_or_their_absence_is_told():
    rows = with_tool(counters, 0, "==PROF== Connected\n" + PRINTED["ncu"])
    (cells,) = (entry["cells"] for entry in rows["entries"] if entry["kind"] == "row")
    assert cells["kernel"] == "verify_draw_kernel" and cells["time"] == "1000 nsecond"
    refused = with_tool(counters, 1, "==ERROR== ERR_NVGPUCTRPERM\n")
    assert report.state(refused) == "not run" and "ERR_NVGPUCTRPERM" in refused["entries"][0]["why"]
    assert report.state(with_tool(counters, 0, None)) == "not run"


def test_launches_are_read_from_a_trace():
    kernel = {"cat": "kernel", "name": "verify_draw_kernel", "dur": 2.5}
    args = {"grid": [8, 4, 1], "block": [32, 2, 1], "registers per thread": 40}
    events = [
        {"ph": "M", "name": "process_name"},
        kernel | {"ts": 7, "args": args},
        {"cat": "gpu_memcpy", "name": "Memcpy DtoD", "ts": 1, "dur": 1, "args": {}},
        kernel | {"ts": 3, "args": {}, "name": "void " + "x" * 90},
    ]
    first, second = launches_of(events)
    assert len(first.name) == 60 and second.seconds == 2.5e-6
    assert form([second]) == "verify_draw_kernel 8x4x1 x 64t 40r" and form([]) == "unknown"


def test_without_a_compiler_the_reference_is_the_oracle(monkeypatch, tmp_path):
    monkeypatch.setattr(oracle, "PACKAGE", tmp_path)
    monkeypatch.setenv("CXX", "no-such-compiler")
    backend, why = oracle.backend.__wrapped__()
    assert backend == "reference" and "there is no no-such-compiler" in why


def test_bits_are_compared_and_not_values():
    a = torch.tensor([1.0, float("nan"), 0.0])
    assert same_bits((a, None), (a.clone(), None))
    assert not same_bits(a, torch.tensor([1.0, float("nan"), -0.0]))
    with pytest.raises(ValueError):
        same_bits((a,), (a, a))
