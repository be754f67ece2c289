# SPDX-License-Identifier: Apache-2.0
"""The command line: what it says, its JSON, and its exit codes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from itertools import combinations, product

import pytest
import torch
from each import DEVICE, NATIVE

import specdec_kernels as sdk
from specdec_kernels.cli import advice, selfcheck

pytest.importorskip("click")
from click.testing import CliRunner

from specdec_kernels.cli.commands import specdec

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="says what serves the CPU")


def run(*arguments, code=0):
    done = CliRunner().invoke(specdec, arguments)
    assert done.exit_code == code, done.output
    return done.output


def test_every_command_has_help():
    listed = run("--help")
    for name in specdec.commands:
        assert f"  {name} " in listed
    for name in set(specdec.commands) - {"bench", "demo"}:  # these hand --help on
        assert "Usage:" in run(name, "--help")
    assert sdk.__version__ in run("--version")


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "specdec_kernels", "nothing"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "No such command 'nothing'" in done.stderr


def test_without_click_the_command_says_what_to_install():
    code = "import sys; sys.modules['click'] = None; from specdec_kernels.cli import main; main([])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and "specdec-kernels[cli]" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(NATIVE is None, reason="needs the native core")
def test_doctor_checks_the_installation(monkeypatch):
    monkeypatch.setattr(selfcheck, "ROUNDS", 1)
    report = json.loads(run("doctor", "--device", "cpu", "--json"))
    assert report["verdict"] == "this installation works"
    checks = {check["name"]: check["state"] for check in report["checks"]}
    shapes = product(("match", "token", "traversal"), ("chain", "tree"))
    agreed = {f"verify, {rule}, {shape}" for rule, shape in shapes} | {
        "sample",
        "tree_attention",
        "commit_kv",
    }
    assert agreed <= checks.keys() and {checks[name] for name in agreed} == {"ok"}
    assert report["packages"]["torch"] == torch.__version__


@pytest.mark.skipif(NATIVE is None, reason="needs the native core")
@pytest.mark.parametrize("broken", ["verify", "sample", "tree_attention", "commit_kv"])
def test_doctor_finds_a_backend_that_is_wrong(broken, monkeypatch):
    def wrong(*arguments, backend="auto", **options):
        result = getattr(sdk, broken)(*arguments, backend=backend, **options)
        if backend == "reference":
            return result
        if broken == "commit_kv":
            plan = arguments[0]
            plan.caches[0].view(-1)[0] += 1
            return result
        if broken == "verify":
            return result._replace(tokens=result.tokens + 1)
        return result + 1

    monkeypatch.setattr(selfcheck, "ROUNDS", 1)
    monkeypatch.setattr(selfcheck, broken, wrong)
    output = run("doctor", "--device", "cpu", code=1)
    assert "FAILED" in output and f"Verdict: failed: {broken}" in output


def test_a_device_that_is_none_is_refused():
    assert "--device" in run("doctor", "--device", "teapot", code=2)


# Advice


def most_tokens(ranks, nodes, depth):
    """Of all trees of that many nodes and that depth at most, as sets of paths of ranks."""
    paths = [path for k in range(1, depth + 1) for path in product(range(len(ranks)), repeat=k)]
    trees = (set(tree) for tree in combinations(paths, nodes))
    return 1.0 + max(
        sum(math.prod(ranks[rank] for rank in path) for path in tree)
        for tree in trees
        if all(len(path) == 1 or path[:-1] in tree for path in tree)
    )


@pytest.mark.parametrize("ranks", [(0.6, 0.3), (0.9, 0.05), (0.5, 0.5)])
def test_likeliest_trees_bring_the_most_tokens(ranks):
    found = advice.likeliest(ranks, 0.0, {1: 1.0, 2: 1.0}, 5, 3)
    for nodes in range(1, 6):
        assert found[nodes].tokens == pytest.approx(most_tokens(ranks, nodes, 3))


def test_a_chain_gains_what_the_formula_says():
    """(1 - a^(k+1)) / ((1 - a) (k c + 1)): Leviathan et al. 2023, theorem 3.8."""
    a, c = 0.7, 0.1
    for k, draft in enumerate(advice.best_drafts([a], c, {1: 1.0, 2: 1.0}, 8, 8)):
        assert draft.speedup == pytest.approx((1 - a ** (k + 1)) / ((1 - a) * (k * c + 1)))
        assert draft.shape == (f"chain of {k}" if k else "no draft")


def test_chains_break_even_where_the_gain_is_one():
    costs = {1: 1.0, 9: 1.4}
    for depth in (1, 4, 8):
        share = advice.break_even(0.1, costs, depth)
        assert advice.likeliest([share], 0.1, costs, depth, depth)[-1].speedup == pytest.approx(1.0)
    assert advice.break_even(2.0, costs, 1) is None


def test_traces_are_read(tmp_path):
    trace = tmp_path / "trace.txt"
    trace.write_text('2 4\n0, 4\n\n{"accepted": 4, "drafted": 4}\n0 0\n')
    assert advice.acceptance_of(trace.read_text()) == ([3, 2, 2, 1], [2, 2, 1, 1])
    report = json.loads(run("advise", "--trace", str(trace), "--json"))
    assert report["acceptance_by_depth"] == [2 / 3, 1.0, 0.5, 1.0] and report["acceptance"] == [6 / 8]


@pytest.mark.parametrize("line", ["3 2", "one two", '{"accepted": 1}', "1", "-1 4"])
def test_lines_of_traces_that_are_wrong_are_named(line, tmp_path):
    trace = tmp_path / "trace.txt"
    trace.write_text(f"1 2\n{line}\n")
    assert "line 2 of the trace" in run("advise", "--trace", str(trace), code=2)


def test_advice_says_what_pays():
    useful = ("advise", "--acceptance", "0.8,0.1", "--draft-cost", "0.05", "--cost", "1:1", "--cost", "9:1.1")
    output = run(*useful, "--target-gb", "16", "--draft-gb", "2")
    assert (
        "<- best" in output and "1.12 times the memory" in output and "Speculation hurts here" not in output
    )
    assert "Speculation hurts here" in run("advise", "--acceptance", "0.1", "--draft-cost", "0.5")
    best = json.loads(run(*useful, "--json"))["best"]
    assert best["speedup"] > 2 and best["tokens"] / best["cost"] == pytest.approx(best["speedup"])


@pytest.mark.parametrize(
    "arguments, said",
    [
        ((), "either --acceptance or --trace"),
        (("--acceptance", "0.8,0.3"), "add up to at most 1"),
        (("--acceptance", "many"), "must be numbers"),
        (("--acceptance", "0.5", "--cost", "8"), "ROWS:TIME"),
        (("--acceptance", "0.5", "--cost", "8:1"), "costs"),
    ],
)
def test_wrong_use_of_advise_is_refused(arguments, said):
    assert said in run("advise", *arguments, code=2)


def test_warmup_without_a_gpu_says_so():
    if not torch.cuda.is_available():
        assert "cannot serve this call" in run("warmup", "--vocab-size", "100", "--device", "meta", code=2)


def test_commands_of_the_source_tree_get_their_arguments(capfd):
    run("demo", "--help")
    assert "usage: python -m demo" in capfd.readouterr().out
