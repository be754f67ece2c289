# SPDX-License-Identifier: Apache-2.0
"""`python -m bench`: checks and measures the cases of one suite or of several; prints and writes tables.

`python -m bench host` prints the host time of calls of the Triton backend, over a stub of the driver,
`python -m bench small` the CPU time of small calls of the native backend,
`python -m bench suffix` the time of `SuffixIndex`, `python -m bench budget` that of a step of `BatchBudget`,
`python -m bench siblings` how many tokens of trees are accepted, by how siblings are drawn, and `python -m
bench acceptance` by rule and shape; `python -m bench pictures` draws docs/pictures from results/."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from . import report, runner
from .suite import Suite

DEFAULT = ("verify", "commit", "attention")
NAMES = (*DEFAULT, "generate", "gpu")  # these need the demo's model; Triton, whose driver is taken over
RESULTS = Path(__file__).with_name("results")
PICTURES = Path(__file__).parent.parent / "docs" / "pictures"


def load(name: str) -> Suite:
    return importlib.import_module(f".{name}" if name != "gpu" else ".gpu.cases", __package__).SUITE


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "suite",
        nargs="?",
        choices=(*NAMES, "host", "small", "suffix", "budget", "siblings", "acceptance", "pictures", "all"),
        help=f"default: {', '.join(DEFAULT)}",
    )
    parser.add_argument("--quick", action="store_true", help="few cases, few rounds, nothing compiled")
    parser.add_argument("--cases", default="", help="comma-separated globs or parts of case names")
    parser.add_argument("--threads", help="comma-separated (default: the suite's)")
    parser.add_argument(
        "--json",
        type=Path,
        help="folder for JSON and Markdown, or pictures; by default all cases go to results/, by processor",
    )
    args = parser.parse_args()
    if args.suite == "host":
        from . import host

        return host.main(args.cases, args.quick)
    if args.suite == "small":
        from . import small

        return small.main(args.quick)
    if args.suite == "suffix":
        from . import suffix

        return suffix.main(args.quick)
    if args.suite == "budget":
        from . import budget

        return budget.main(args.quick)
    if args.suite == "siblings":
        from . import siblings

        return siblings.main(args.quick)
    if args.suite == "acceptance":
        from . import acceptance

        return acceptance.main(args.json or RESULTS)
    if args.suite == "pictures":
        from . import pictures

        return pictures.main(args.json or PICTURES)

    names = NAMES if args.suite == "all" else (args.suite,) if args.suite else DEFAULT
    chosen = [(suite, suite.select(args.cases, args.quick)) for suite in map(load, names)]
    if not any(cases for _, cases in chosen):
        parser.error(f"no case matches {args.cases!r}")
    complete = not (args.quick or args.cases)
    failed = False
    for suite, cases in chosen:
        if not cases:
            continue
        threads = suite.threads and map(int, args.threads.split(",")) if args.threads else suite.threads
        results = runner.run(suite, cases, tuple(threads), args.quick)
        failed |= any(name in entry["failed"] for entry in results["cases"] for name in suite.subjects)
        if args.json or complete:
            report.write(suite, results, args.json or report.folder_of(results, RESULTS))
        if suite.name == "gpu" and complete:
            from .gpu import report as gpu

            failed |= gpu.write(results)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
