# SPDX-License-Identifier: Apache-2.0
"""`make test-referee`: many verdicts of verifiers that are right, and of each mistake. Prints a table."""

from __future__ import annotations

import argparse
import math
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product

import referee_loops
import torch
import transformers
from plain_verifier import CHAIN_TRAPS, TREE_TRAPS, block, ours, token_by_token
from transformers.generation.utils import _speculative_sampling

from specdec_kernels.testing import check_lossless


def states(options: dict, seeds: range) -> list[str]:
    torch.set_num_threads(1)
    return [check_lossless(seed=seed, **options).state for seed in seeds]


def of_transformers(case):
    drafted = int((case.tokens[0, 1:] >= 0).sum())
    target, draft = case.target_logits[:, : drafted + 1], case.draft_logits[:, :drafted]
    with case.global_generator():
        if not drafted:
            return torch.multinomial(target[:, 0].softmax(-1), 1).tolist()
        return _speculative_sampling(case.tokens[:, : drafted + 1], draft, drafted, target)[0].tolist()


def highest_rate(count: int, runs: int) -> float:
    """Clopper and Pearson's upper bound: so few have a probability of 5 % there."""
    low, high = 0.0, 1.0
    for _ in range(50):
        rate = 0.5 * (low + high)
        seen = sum(math.comb(runs, k) * rate**k * (1.0 - rate) ** (runs - k) for k in range(count + 1))
        low, high = (rate, high) if seen > 0.05 else (low, rate)
    return high


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, help="of right verifiers, all together")
    parser.add_argument("--seeds", type=int, default=100, help="of each mistake")
    given = parser.parse_args()
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
    runs = -(-given.runs // len(right))
    asked = [(name, "LOSSLESS", runs, options) for name, options in right.items()]
    others = dict(verifier=of_transformers, batched=False, draws=2000)
    asked += [(f"transformers {transformers.__version__}, `_speculative_sampling`", "LOSSLESS", 5, others)]
    asked += [(name, "BIASED", given.seeds, options) for name, options in wrong.items()]
    failed, false, rights = False, 0, 0
    with ProcessPoolExecutor() as pool:
        waiting = [(*row[:3], pool.submit(states, row[3], range(row[2]))) for row in asked]
        print("| verifier | verdict | runs | so judged |\n|---|---|---|---|")
        for name, expected, runs, done in waiting:
            count = done.result().count(expected)
            if expected == "LOSSLESS":
                false, rights = false + runs - count, rights + runs
            failed |= count < (runs if expected == "LOSSLESS" else 0.99 * runs)
            print(f"| {name} | {expected} | {runs} | {count} |", flush=True)
    print(
        f"\n{false} of {rights} runs of right verifiers were not called LOSSLESS: with 95 % confidence at "
        f"most {highest_rate(false, rights):.2%} of all runs are not."
    )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
