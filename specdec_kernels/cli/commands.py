# SPDX-License-Identifier: Apache-2.0
"""The commands of `specdec`."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch

from .. import BackendUnavailable, Heads, __version__, explain
from .. import warmup as warm
from . import advice, machine, selfcheck

ROOT = Path(__file__).parents[2]
MARKS = {"ok": "ok     ", "warning": "WARNING", "failed": "FAILED "}
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, and nothing else.")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="specdec-kernels")
def specdec() -> None:
    """Verification kernels of speculative decoding.

    Exit codes: 0 = done and well; 1 = something that was checked is wrong; 2 = wrong use.
    """


@specdec.command()
@click.option("--device", default=None, help="cpu or cuda. Default: cuda where there is one, and cpu.")
@AS_JSON
def doctor(device: str | None, as_json: bool) -> None:
    """Say what is installed, which backend serves what and why, and check that it works.

    The check compares verify, sample, tree_attention and commit_kv with the reference, and their speed with
    the rate at which this machine reads memory. It takes about ten seconds.
    """
    found = machine.facts()
    devices = [device] if device else ["cpu", *(["cuda"] if found["gpus"] else [])]
    if not as_json:
        for name, value in found.items():
            if isinstance(value, dict):
                value = [f"{key} {one}" for key, one in value.items()]
            click.echo(f"{name + ':':17}{', '.join(value) or 'none' if isinstance(value, list) else value}")
        click.echo(f"\n{explain()}\n")
    checks: list[dict[str, str]] = []
    for name in devices:
        try:
            on = torch.device(name)
        except RuntimeError as error:
            raise click.BadParameter(str(error).splitlines()[0], param_hint="--device") from None
        for check in selfcheck.run(on):
            checks.append({"device": name} | asdict(check))
            if not as_json:
                click.echo(f"{MARKS[check.state]} {name}: {check.name}: {check.detail}")
    lines = machine.advice(found)
    failed = [check["name"] for check in checks if check["state"] == "failed"]
    verdict = f"failed: {', '.join(failed)}" if failed else "this installation works"
    if as_json:
        click.echo(json.dumps(found | {"checks": checks, "advice": lines, "verdict": verdict}, indent=1))
    else:
        click.echo("".join(f"\n- {line}" for line in lines) + f"\n\nVerdict: {verdict}.")
    sys.exit(1 if failed else 0)


def _pairs(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> dict[int, float]:
    try:
        costs = {int(rows): float(cost) for rows, cost in (pair.split(":") for pair in given)}
    except ValueError:
        raise click.BadParameter("must be ROWS:TIME, such as 8:1.05") from None
    return costs or {1: 1.0, 2: 1.0}


def _shares(context: click.Context, option: click.Parameter, given: str | None) -> list[float] | None:
    try:
        shares = None if given is None else [float(part) for part in given.split(",")]
    except ValueError:
        raise click.BadParameter("must be numbers with commas between them") from None
    if shares is not None and (min(shares) < 0 or sum(shares) > 1):
        raise click.BadParameter("must be at least 0 and add up to at most 1")
    return shares


@specdec.command()
@click.option(
    "--acceptance", callback=_shares, help="Of the first guess at a node; after a comma, of the second; ..."
)
@click.option("--trace", type=click.File(), help="A line for each step: accepted and drafted tokens.")
@click.option(
    "--draft-cost", type=click.FloatRange(0), default=0.0, help="Of a pass of the drafter, in plain steps."
)
@click.option(
    "--cost", "costs", multiple=True, callback=_pairs, help="ROWS:TIME of a step of the target; several."
)
@click.option(
    "--max-nodes", type=click.IntRange(1, 256), default=16, show_default=True, help="Most drafted tokens."
)
@click.option("--max-depth", type=click.IntRange(1, 64), default=16, show_default=True, help="Longest path.")
@click.option("--target-gb", type=click.FloatRange(0), default=None, help="Weights of the target, in GB.")
@click.option("--draft-gb", type=click.FloatRange(0), default=None, help="Weights of the drafter, in GB.")
@AS_JSON
def advise(acceptance, trace, draft_cost, costs, max_nodes, max_depth, target_gb, draft_gb, as_json) -> None:  # type: ignore[no-untyped-def]
    """Say whether speculation pays, and with which draft.

    It computes and measures nothing: acceptance is taken to be alike at every node, and times are those that
    you give. Example: specdec advise --acceptance 0.7,0.1 --draft-cost 0.1 --cost 1:1 --cost 16:1.3
    """
    if (acceptance is None) == (trace is None):
        raise click.UsageError("give either --acceptance or --trace")
    report: dict[str, Any] = {}
    if trace is not None:
        try:
            tested, accepted = advice.acceptance_of(trace.read())
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        if not sum(tested):
            raise click.UsageError("advise: the trace has no step with a draft")
        acceptance = [sum(accepted) / sum(tested)]
        report["acceptance_by_depth"] = [a / t for a, t in zip(accepted, tested, strict=True)]
    try:
        found = advice.best_drafts(acceptance, draft_cost, costs, max_nodes, max_depth)
    except (ValueError, TypeError) as error:
        raise click.UsageError(str(error)) from None
    best = max(found, key=lambda draft: draft.speedup)
    report["acceptance"] = acceptance
    report["drafts"] = [
        {"nodes": n, "shape": d.shape, "tokens": d.tokens, "cost": d.cost, "speedup": d.speedup}
        for n, d in enumerate(found)
    ]
    report["best"] = report["drafts"][found.index(best)]
    report["break_even"] = {
        k: advice.break_even(draft_cost, costs, k) for k in (1, 2, 4, 8) if k <= max_depth
    }
    if target_gb:
        report["memory"] = 1 + (draft_gb or 0) / target_gb
    if as_json:
        click.echo(json.dumps(report, indent=1))
        return
    for line in _advice_lines(report):
        click.echo(line)


def _advice_lines(report: dict[str, Any]) -> list[str]:
    """The report of `advise` as text."""
    lines = [f"{'drafted':>8}  {'shape':24} {'tokens a step':>14} {'cost of a step':>15} {'speed-up':>9}"]
    for draft in report["drafts"]:
        if (
            draft["nodes"] in (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256)
            or draft == report["best"]
        ):
            mark = "  <- best" if draft == report["best"] else ""
            lines.append(
                f"{draft['nodes']:8}  {draft['shape']:24} {draft['tokens']:14.2f} {draft['cost']:15.2f} "
                f"{draft['speedup']:8.2f}x{mark}"
            )
    lines.append("")
    if "acceptance_by_depth" in report:
        shares = ", ".join(f"{share:.2f}" for share in report["acceptance_by_depth"])
        lines.append(
            f"Acceptance by depth in the trace: {shares}; {report['acceptance'][0]:.2f} of all tests."
        )
    for depth, share in report["break_even"].items():
        even = (
            "is slower than plain decoding at any acceptance"
            if share is None
            else f"breaks even at {share:.2f}"
        )
        lines.append(f"A chain of {depth} {even}.")
    if "memory" in report:
        lines.append(f"Weights take {report['memory']:.2f} times the memory of the target alone.")
    if report["best"]["nodes"] == 0:
        lines.append("Speculation hurts here: no draft is faster than plain decoding.")
    lines.append(
        "It hurts where drafts are accepted less than that (AcceptanceStats.warning() says so), and where"
    )
    lines.append("batches grow: rows cost more there. Budget stops drafting by itself.")
    return lines


@specdec.command("warmup")
@click.option("--device", default="cuda", help="Default: cuda.")
@click.option("--vocab-size", type=click.IntRange(1), required=True)
@click.option(
    "--dtype", type=click.Choice(list(DTYPES)), default="bfloat16", help="Of logits. Default: bfloat16."
)
@click.option(
    "--rule", "rules", multiple=True, type=click.Choice(["match", "token", "traversal"]), default=["match"]
)
@click.option(
    "--heads",
    nargs=3,
    type=click.IntRange(1),
    default=None,
    help="Query heads, KV heads, elements of a head.",
)
@click.option("--page-size", type=click.IntRange(1), default=16, help="Default: 16.")
@AS_JSON
def warmup(
    device: str,
    vocab_size: int,
    dtype: str,
    rules: tuple[str, ...],
    heads: tuple[int, int, int] | None,
    page_size: int,
    as_json: bool,
) -> None:
    """Compile the Triton kernels of a serving process into Triton's cache, before it starts.

    Other options, such as cuts, edits and ends, are compiled by sdk.warmup() in the process itself.
    """
    kinds = [] if heads is None else [Heads(*heads, dtype=DTYPES[dtype])]
    try:
        done = warm(
            device,
            vocab_size=vocab_size,
            dtypes=[DTYPES[dtype]],
            rules=list(rules),
            heads=kinds,
            page_size=page_size,
            progress=None if as_json else click.echo,
        )
    except (BackendUnavailable, ValueError, RuntimeError) as error:
        raise click.UsageError(str(error).splitlines()[0]) from None
    click.echo(json.dumps(done._asdict()) if as_json else f"{done.kernels} kernels in {done.seconds:.0f} s")


@specdec.command()
@click.argument("name", metavar="MODULE:CALLABLE")
@click.option("--loop", is_flag=True, help="It is a whole decoding loop.")
@click.option("--trees", is_flag=True, help="It takes trees.")
@click.option("--chosen", is_flag=True, help="Drafts have no laws.")
@click.option("--one-by-one", is_flag=True, help="It takes one request at a time.")
@click.option("--draws", type=click.IntRange(1), default=8000, show_default=True, help="Requests of a case.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@AS_JSON
def check(
    name: str, loop: bool, trees: bool, chosen: bool, one_by_one: bool, draws: int, seed: int, as_json: bool
) -> None:
    """Say whether a verifier is lossless: the referee, specdec_kernels.testing.check_lossless.

    The callable gets a Case: tokens [B, N] int64 with the root in column 0 and -1 where nothing was drafted,
    target_logits and draft_logits [B, N, V], and a generator for its random numbers. It returns a list of the
    tokens that each request emits. With --loop it gets target, drafter, prompts, new_tokens and
    generator. docs/referee.md has verifiers to copy, and help(specdec_kernels.testing.Case) says the rest.

    The module is looked for in the current directory, too. Exit codes: 0 = LOSSLESS, 1 = BIASED, 2 = wrong
    use, or the callable failed, 3 = INCONCLUSIVE.
    """
    from ..testing import check_lossless

    module, _, attribute = name.partition(":")
    if not (module and attribute):
        raise click.UsageError(f"{name!r} must be MODULE:CALLABLE, such as mine:verify of mine.py")
    sys.path.insert(0, os.getcwd())
    try:
        checked = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise click.UsageError(f"{name}: {error}") from error
    try:
        verdict = check_lossless(
            None if loop else checked,
            loop=checked if loop else None,
            trees=trees,
            chosen=chosen,
            batched=not one_by_one,
            draws=draws,
            seed=seed,
        )
    except Exception as error:  # of whatever was given; its exit code is not that of a verdict
        if not str(error).startswith("check_lossless:"):
            traceback.print_exc()
        raise click.UsageError(f"{name}: {error}") from error
    click.echo(json.dumps(asdict(verdict), indent=1) if as_json else str(verdict))
    sys.exit({"LOSSLESS": 0, "BIASED": 1, "INCONCLUSIVE": 3}[verdict.state])


def _from_source(module: str, arguments: tuple[str, ...]) -> None:
    """Runs a module that the source tree has and the installed package has not."""
    if not (ROOT / module / "__main__.py").exists():
        raise click.UsageError(
            f"{module} is in the source tree alone: run it from a clone, installed by pip install -e ."
        )
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", module, *arguments]
    sys.exit(subprocess.run(command, env=os.environ | {"PYTHONPATH": path}).returncode)


PASS_ON = {"ignore_unknown_options": True, "help_option_names": []}


@specdec.command(context_settings=PASS_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> None:
    """Measure: `python -m bench` of the source tree, with its arguments."""
    _from_source("bench", arguments)


@specdec.command(context_settings=PASS_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def demo(arguments: tuple[str, ...]) -> None:
    """Watch a small model decode: `python -m demo` of the source tree, with its arguments."""
    _from_source("demo", arguments)
