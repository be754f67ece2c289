# SPDX-License-Identifier: Apache-2.0
"""Speculative decoding of a real model: watch it, time it, and check that the text stays the same.

    python -m demo

Drafted tokens that the model accepted are shown in colour. Needs the packages of demo/requirements.txt.
"""

import argparse
import os
import sys
from pathlib import Path

PROMPTS = {path.stem: path for path in sorted((Path(__file__).parent / "prompts").glob("*.txt"))}


def main() -> int:
    options = _parse()
    # OpenMP reads this when torch is loaded. Threads that spin while waiting stall a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        from .run import run

        prompts = {name: PROMPTS[name].read_text(encoding="utf-8").strip() for name in options.prompts}
        return run(
            prompts,
            options.temperature,
            options.max_new_tokens,
            options.rounds,
            options.seed,
            options.picture,
        )
    except KeyboardInterrupt:
        print("\033[0m\ninterrupted" if sys.stdout.isatty() else "\ninterrupted")
        return 130
    except ModuleNotFoundError as error:
        print(f"demo: {error}: install this package and demo/requirements.txt", file=sys.stderr)
        return 2


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Speculative decoding of SmolLM2-135M-Instruct, drafted by prompt lookup."
    )
    add = parser.add_argument
    names = ", ".join(PROMPTS)
    add("--max-new-tokens", type=positive_integer, metavar="N", help="per answer (default: 96, quick: 32)")
    add("--prompts", nargs="+", choices=PROMPTS, default=list(PROMPTS), metavar="NAME", help=f"of {names}")
    add("--temperature", nargs="+", type=temperature, default=[0, 0.7], metavar="T", help="default: 0 0.7")
    add("--rounds", type=positive_integer, metavar="N", default=1, help="timed runs of each way (default: 1)")
    add("--seed", type=int, default=0, help="of the sampled answers (default: 0)")
    add("--picture", type=Path, default=Path("demo.png"), metavar="FILE", help="default: demo.png")
    add("--quick", action="store_true", help="short answers")
    options = parser.parse_args()
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
