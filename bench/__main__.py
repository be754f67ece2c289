# SPDX-License-Identifier: Apache-2.0
"""`python -m bench`: checks, times and measures every case; prints and writes the tables."""

import argparse
import dataclasses
import sys
from pathlib import Path

import torch

from . import attention, check, commit, memory, ours, report
from .cases import CASES, MEMORY_LIMIT, QUICK, THREADS, Case, goals, select
from .contenders import OURS, contenders
from .floor import Floor
from .inputs import Inputs, build
from .peers import Peer
from .timing import interleave

ROUNDS, MAX_SECONDS = 15, 60.0
QUICK_ROUNDS, QUICK_MAX_SECONDS = 3, 6.0
REFERENCE_SETS = 3  # draft sets on which every token must equal the float64 reference's


def main() -> int:
    if sys.argv[1:2] == ["attention"]:
        return attention.main(sys.argv[2:])
    if sys.argv[1:2] == ["generate"]:
        from . import generate  # needs transformers and the demo's model

        return generate.main(sys.argv[2:])
    if sys.argv[1:2] == ["gpu"]:
        from .gpu import report as gpu  # needs Triton, and takes over its driver

        return gpu.main(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few cases, few rounds, no torch.compile")
    parser.add_argument("--cases", help="comma-separated globs or parts of case names")
    parser.add_argument(
        "--threads", default=",".join(map(str, THREADS)), help="comma-separated (default %(default)s)"
    )
    parser.add_argument("--json", type=Path, default=Path(__file__).with_name("results") / "verify.json")
    args = parser.parse_args()

    threads = [int(n) for n in args.threads.split(",")]
    cases = select(args.cases, QUICK if args.quick and not args.cases else CASES)
    commits = select(args.cases, commit.CASES)
    if not cases and not commits:
        parser.error(f"no case matches {args.cases!r}")
    floor = Floor()
    results = report.header()
    print(report.describe(results), flush=True)
    for case in cases:
        entry = bench_case(case, floor, threads, args.quick)
        results["cases"].append(entry)
        print(report.case_table(entry), flush=True)
    if cases:
        report.write(results, args.json)
        print(report.verdict(results))
    wrong = any(name in entry["failed"] for entry in results["cases"] for name in OURS)
    wrong |= commit.run(commits, threads, args.quick, args.json.with_name("commit.json"))
    if not args.cases:
        attention.main(["--quick"] if args.quick else [])
    return 1 if wrong else 0


def bench_case(case: Case, floor: Floor, threads: list[int], quick: bool) -> dict:
    """Everything there is to say about one case, as plain data."""
    inputs = build(case)
    peers, missing = contenders(case, with_compiled=not quick)
    wrong = floor.check(inputs.target, case.temperature)
    if wrong:
        raise RuntimeError(f"floor: {wrong}")
    failed = {peer.name: reason for peer in peers if (reason := failure(peer, inputs))}
    peers = [peer for peer in peers if peer.name not in failed]
    return {
        "name": case.name,
        "case": dataclasses.asdict(case),
        "overlap": inputs.overlap,
        "noise_scale": inputs.scale,
        "failed": failed,
        "missing": missing,
        "timings": [time_case(inputs, peers, floor, n, quick) for n in threads],
        "memory": memory.measure(case.name, inputs.scale) if memory.supported() else {},
        "memory_limit": MEMORY_LIMIT,
    }


def failure(peer: Peer, inputs: Inputs) -> str | None:
    """Why a contender is not to be timed, or None."""
    try:
        reason = check.failure(peer, inputs.case)
        if not reason and peer.name in OURS:
            reason = ours.disagreement(peer, inputs, REFERENCE_SETS)
    except (
        Exception
    ) as error:  # a contender that cannot run is a failed contender, not the end of the benchmark
        reason = f"{type(error).__name__}: {error}"
    return reason


def time_case(inputs: Inputs, peers: list[Peer], floor: Floor, threads: int, quick: bool) -> dict:
    case = inputs.case
    torch.set_num_threads(threads)

    def floor_all(_: int) -> None:
        floor(inputs.target, case.temperature)
        floor(inputs.draft, case.temperature)

    runs = {peer.name: peer.prepare(inputs) for peer in peers}
    runs |= {"floor target": lambda _: floor(inputs.target, case.temperature), "floor all": floor_all}
    rounds, seconds = (QUICK_ROUNDS, QUICK_MAX_SECONDS) if quick else (ROUNDS, MAX_SECONDS)
    timings = interleave(runs, inputs.sets, rounds, seconds)
    eager = [peer.name for peer in peers if peer.eager]
    return report.figures(timings, threads, eager, goals(case, threads))


if __name__ == "__main__":
    sys.exit(main())
