# SPDX-License-Identifier: Apache-2.0
"""Speculative decoding of a real model: watch it, time it, and check that the text stays the same.

    python -m demo

The short form takes less than three minutes; `--full` has all prompts, temperatures, drafters and rules, and
a batch. Drafted tokens that the model accepted are shown in colour. Needs the packages of
demo/requirements.txt.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .files import PROMPTS, Refused, check_writable, first_of_each_kind, read_prompts

SECONDS = 150  # of the short form, up to its table


def main(arguments: Sequence[str] | None = None) -> int:
    start = time.perf_counter()
    options = _parse(arguments)
    # OpenMP reads this when torch is loaded. Threads that spin while waiting stall a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        prompts = read_prompts(options.prompts_dir, options.prompts)
        if not options.full and options.prompts is None and options.prompts_dir == PROMPTS:
            prompts = first_of_each_kind(prompts)
        for path in (options.picture, options.json):
            if path is not None:
                check_writable(path)
        print("Loading SmolLM2-135M-Instruct ...", flush=True)
        from .run import run  # not before: this takes seconds

        return run(
            prompts,
            temperatures=options.temperature,
            max_new_tokens=options.max_new_tokens,
            rounds=options.rounds,
            seed=options.seed,
            picture=options.picture,
            json=options.json,
            full=options.full,
            end=start + (float("inf") if options.full else SECONDS),
        )
    except KeyboardInterrupt:
        print("\033[0m\ninterrupted" if sys.stdout.isatty() else "\ninterrupted")
        return 130
    except Refused as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"demo: {error}: install this package and demo/requirements.txt", file=sys.stderr)
        return 2


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m demo",
        description="Speculative decoding of SmolLM2-135M-Instruct, drafted by lookup.",
    )
    add = parser.add_argument
    names = ", ".join(sorted(path.stem for path in PROMPTS.glob("*.txt")))
    add("--full", action="store_true", help="all prompts, temperatures, drafters and rules, and a batch")
    add("--max-new-tokens", type=positive_integer, metavar="N", help="per answer (default: 96, or what fits)")
    add("--prompts", nargs="+", metavar="NAME", help=f"default: the first of each kind, or all of {names}")
    add("--prompts-dir", type=Path, default=PROMPTS, metavar="DIR", help="NAME.txt of other prompts, all")
    add("--temperature", nargs="+", type=temperature, metavar="T", help="default: 0, and 0.7 with --full")
    add("--rounds", type=positive_integer, metavar="N", help="timed runs (default: up to 3; --full: 1)")
    add("--seed", type=int, default=0, help="of the sampled answers (default: 0)")
    add("--picture", type=Path, default=Path("demo.png"), metavar="FILE", help="default: demo.png")
    add("--json", type=Path, metavar="FILE", help="where --full, which it implies, writes its figures")
    options = parser.parse_args(arguments)
    options.full |= options.json is not None
    options.temperature = options.temperature or ([0, 0.7] if options.full else [0])
    return options


def positive_integer(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def temperature(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(text)
    return value


if __name__ == "__main__":
    sys.exit(main())
