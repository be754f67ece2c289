# SPDX-License-Identifier: Apache-2.0
"""Every causal class of transformers through the cases: `python -m sweep.run [classes] [options]`."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections import Counter
from typing import Any

warnings.filterwarnings("ignore")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
import transformers  # noqa: E402

from specdec_kernels.integrations.transformers.generate import SERVES  # noqa: E402

from . import cases, configs  # noqa: E402

WIDE = 64  # longer than any text of the cases


class OutOfTime(BaseException):
    """The class has had its time."""


def sweep(model_type: str, limit: float) -> dict[str, Any]:
    """All cases of one class."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    start = time.perf_counter()
    result: dict[str, Any] = {"type": model_type, "cases": {}, "problem": None, "verdict": None}

    def late(*_: Any) -> None:
        raise OutOfTime

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        result["class"] = configs.class_of(model_type).__name__
        for name, window in (("", configs.WINDOW), ("wide window: ", WIDE)):
            settings = [configs.config(model_type, size).to_dict() for size in (configs.WINDOW, WIDE)]
            if name and str(settings[0]) == str(settings[1]):
                break
            model = configs.build(model_type, window)
            oracle = cases.Oracle(model)
            oracle.check_causal()
            if not name:
                result["verdict"] = verdict(model)
            for law in cases.LAWS:
                for shape in cases.DRAFTS:
                    if not name or shape in ("tree", "ragged chains", "ragged trees"):
                        result["cases"][f"{name}{law}, {shape}"] = cases.run_case(model, oracle, law, shape)
    except cases.NotCausal as error:
        result["problem"] = str(error)
        result["verdict"] = verdict(model)
        for shape in cases.DRAFTS:
            result["cases"][f"greedy, {shape}"] = uncausal(model, shape)
    except OutOfTime:
        result["problem"] = f"out of time after {limit:.0f} s"
        result["cases"]["out of time"] = cases.Outcome("crash", "out of time")
    except Exception as error:
        result["problem"] = "not built: " + cases.failure(error).detail
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    result["seconds"] = round(time.perf_counter() - start, 1)
    return result


def verdict(model: torch.nn.Module) -> str:
    """What `explain_model` says."""
    try:
        return cases.explained(model)
    except Exception as error:
        return "explain_model: " + ": ".join(cases.failure(error))


def uncausal(model: torch.nn.Module, shape: str) -> cases.Outcome:
    """A class that is no causal model is to be refused, whatever is drafted."""
    oracle = cases.Oracle(model)
    oracle.texts = {(law, i): [1] * cases.NEW_TOKENS for law in cases.LAWS for i in range(len(cases.PROMPTS))}
    outcome = cases.run_case(model, oracle, "greedy", shape)
    return (
        cases.Outcome("wrong", "served although not causal") if outcome.kind in ("right", "tie") else outcome
    )


def summary(result: dict[str, Any]) -> str:
    """Right | refused | partly refused | wrong | crash | not built."""
    kinds = {outcome[0] for outcome in result["cases"].values()}
    for worst in ("crash", "wrong"):
        if worst in kinds:
            return worst
    if not kinds:
        return "not built"
    if kinds == {"refused"}:
        return "refused"
    return "partly refused" if "refused" in kinds else "right"


def run_all(model_types: list[str], jobs: int, limit: float) -> list[dict[str, Any]]:
    """In parallel; a class whose process dies or hangs costs only itself."""
    context = multiprocessing.get_context("fork")  # the imports are done once
    waiting, running, done = list(model_types), {}, []
    while waiting or running:
        while waiting and len(running) < jobs:
            model_type = waiting.pop(0)
            receive, send = context.Pipe(duplex=False)
            process = context.Process(
                target=lambda t, pipe: pipe.send(sweep(t, limit)), args=(model_type, send)
            )
            process.start()
            send.close()
            running[process] = (model_type, receive, time.perf_counter())
        for process, (model_type, receive, start) in list(running.items()):
            result = None
            if receive.poll(0.02):
                try:
                    result = receive.recv()
                except EOFError:
                    result = dead(model_type, "its process died")
            elif time.perf_counter() - start > limit + 10:
                process.kill()
                result = dead(model_type, "hung")
            if result is not None:
                process.join()
                del running[process]
                done.append(result)
                print(f"{summary(result):15}{result['seconds']:6.1f} s  {result['type']}", flush=True)
    return sorted(done, key=lambda result: model_types.index(result["type"]))


def dead(model_type: str, how: str) -> dict[str, Any]:
    name = configs.class_of(model_type).__name__
    outcome = {"process": cases.Outcome("crash", how)}
    return {
        "type": model_type,
        "class": name,
        "cases": outcome,
        "problem": how,
        "verdict": None,
        "seconds": 0.0,
    }


def reasons(result: dict[str, Any]) -> str:
    """The first of each kind of bad outcome, where the verdict does not tell it."""
    if summary(result) == "refused" and (result["verdict"] or "").startswith("refused: "):
        return ""
    told: dict[str, str] = {}
    for name, (kind, detail) in result["cases"].items():
        if kind in ("wrong", "crash", "refused"):
            told.setdefault(kind + detail, f"{name}: {kind}, {detail}")
    ties = sum(kind == "tie" for kind, _ in result["cases"].values())
    found = [*list(told.values())[:3], *([f"{ties} cases end in a tie"] if ties else [])]
    return "; ".join(found) or result["problem"] or ""


def table(results: list[dict[str, Any]]) -> str:
    """The page of the documentation."""
    counts = Counter(summary(result) for result in results)
    served = Counter((result["verdict"] or "").split(":")[0] for result in results)
    lines = [
        "# Models",
        "",
        f"Every causal class of transformers {transformers.__version__} with tiny random weights, greedy and",
        "sampled under `match`: no drafts, chain, tree, ragged chains, ragged trees, beside decoding without",
        "a cache; windows, where a class has them, shorter and longer than the text. Made by",
        "`make test-models`.",
        "",
        ", ".join(f"{kind}: {count}" for kind, count in sorted(counts.items())) + ". Served as",
        ", ".join(f"{way}: {served[way]}" for way in SERVES) + ".",
        "",
        "| class | outcome | served as | remarks |",
        "|---|---|---|---|",
    ]
    for result in results:
        cells = (result["class"], summary(result), result["verdict"] or "", reasons(result))
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", help="model types or class names; default: all")
    parser.add_argument("--json", help="file for all outcomes")
    parser.add_argument("--table", help="file for the page of the documentation, of all classes")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds for one class")
    parser.add_argument("--seed", type=int, default=0, help="of weights, prompts and noise")
    options = parser.parse_args()
    cases.choose(options.seed)
    types = configs.model_types()
    if options.types:
        asked = set(options.types)
        types = [t for t in types if t in asked or configs.class_of(t).__name__ in asked]
    start = time.perf_counter()
    results = run_all(types, options.jobs, options.limit)
    for result in results:
        if summary(result) in ("wrong", "crash"):
            print(f"{result['class']}: {reasons(result)}")
    print(dict(Counter(summary(result) for result in results)), f"{time.perf_counter() - start:.0f} s")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file, indent=1)
    if options.table and not options.types:
        with open(options.table, "w") as file:
            file.write(table(results))
    return int(any(summary(result) in ("wrong", "crash") for result in results))


if __name__ == "__main__":
    sys.exit(main())
