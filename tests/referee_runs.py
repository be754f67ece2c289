# SPDX-License-Identifier: Apache-2.0
"""`make test-referee`: many verdicts of verifiers that are right, and of each mistake. Prints a table."""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product

import referee_loops
import torch
from plain_verifier import CHAIN_TRAPS, TREE_TRAPS, block, ours, token_by_token

from specdec_kernels.testing import check_lossless

RUNS, SEEDS = 1000, 100


def states(options: dict, seeds: range) -> list[str]:
    torch.set_num_threads(1)
    return [check_lossless(seed=seed, **options).state for seed in seeds]


def main() -> int:
    right = {
        f"{rule}, {'chosen' if chosen else 'drawn'} drafts": dict(
            verifier=partial(ours, rule=rule), trees=True, chosen=chosen
        )
        for rule, chosen in product(("match", "token", "traversal"), (False, True))
    }
    right |= {
        "plain torch, token by token": dict(verifier=token_by_token, trees=True),
        "plain torch, block": dict(verifier=block),
        "plain torch, a loop": dict(loop=referee_loops.loop),
    }
    wrong = {
        trap: dict(verifier=partial(token_by_token, trap=trap), trees=trap in TREE_TRAPS)
        for trap in (*CHAIN_TRAPS, *TREE_TRAPS)
    }
    wrong |= {"token-wise residual": dict(verifier=partial(block, trap="token-wise residual"))}
    wrong |= {
        f"loop: {trap}": dict(loop=partial(referee_loops.loop, trap=trap)) for trap in referee_loops.TRAPS
    }
    each = -(-RUNS // len(right))
    failed = False
    with ProcessPoolExecutor() as pool:
        asked = [(name, "LOSSLESS", each, pool.submit(states, o, range(each))) for name, o in right.items()]
        asked += [(name, "BIASED", SEEDS, pool.submit(states, o, range(SEEDS))) for name, o in wrong.items()]
        print("| verifier | verdict | runs | so judged |\n|---|---|---|---|")
        for name, expected, runs, done in asked:
            count = done.result().count(expected)
            failed |= count < (runs if expected == "LOSSLESS" else 0.99 * runs)
            print(f"| {name} | {expected} | {runs} | {count} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
