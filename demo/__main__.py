# SPDX-License-Identifier: Apache-2.0
"""Speculative decoding of a real model: watch it, time it, and check that the text stays the same.

    python -m demo

Drafted tokens that the model accepted are shown in colour. Needs the packages of demo/requirements.txt.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .files import PROMPTS, Refused, check_writable, read_prompts


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    # OpenMP reads this when torch is loaded. Threads that spin while waiting stall a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        prompts = read_prompts(options.prompts_dir, options.prompts)
        for path in (options.picture, options.json):
            if path is not None:
                check_writable(path)
        from .run import run  # not before: this takes seconds

        return run(
            prompts,
            temperatures=options.temperature,
            max_new_tokens=options.max_new_tokens,
            rounds=options.rounds,
            seed=options.seed,
            picture=options.picture,
            json=options.json,
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
        description="Speculative decoding of SmolLM2-135M-Instruct, drafted by prompt lookup.",
    )
    add = parser.add_argument
    names = ", ".join(sorted(path.stem for path in PROMPTS.glob("*.txt")))
    add("--max-new-tokens", type=positive_integer, metavar="N", help="per answer (default: 96, quick: 32)")
    add("--prompts", nargs="+", metavar="NAME", help=f"default: all, which are {names}")
    add("--prompts-dir", type=Path, default=PROMPTS, metavar="DIR", help="NAME.txt of other prompts")
    add("--temperature", nargs="+", type=temperature, default=[0, 0.7], metavar="T", help="default: 0 0.7")
    add("--rounds", type=positive_integer, metavar="N", default=1, help="timed runs of each way (default: 1)")
    add("--seed", type=int, default=0, help="of the sampled answers (default: 0)")
    add("--picture", type=Path, default=Path("demo.png"), metavar="FILE", help="default: demo.png")
    add("--json", type=Path, metavar="FILE", help="where to write tokens per second by prompt and way")
    add("--quick", action="store_true", help="short answers")
    options = parser.parse_args(arguments)
    options.max_new_tokens = options.max_new_tokens or (32 if options.quick else 96)
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
