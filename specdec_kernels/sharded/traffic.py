# SPDX-License-Identifier: Apache-2.0
"""The collectives of a call and their bytes, from shapes, rule and options."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from .. import rules
from .._checks import check_int, check_type
from ..rules import READS_DRAFT, Rule
from ..sampling import PLAIN, SamplingParams, unpack
from ..tree import DraftTree
from .law import RADIX, cuts_of, steps_for

INT64 = 8
MEASURED, RACED = 4, 3  # integers for each row
PARTS = 2  # integers of a sum


class Traffic(NamedTuple):
    """Of one call, for each process."""

    gathers: int
    """The number of all-gathers."""
    sums: int
    """The number of all-reduces. All add integers."""
    gathered: int
    """Bytes that a process hands to all-gathers."""
    summed: int
    """Bytes that a process hands to all-reduces."""


def traffic(
    tree: DraftTree | int,
    *,
    rule: Rule = "auto",
    drafted: bool = False,
    sampling: SamplingParams = PLAIN,
    draft_sampling: SamplingParams | Literal["logprobs", "probs"] | None = None,
    bonus: bool = False,
    return_logprobs: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Traffic:
    """What `verify` or `sample` with a `VocabShard` exchange. No values are read.

    Args:
        tree: as for `verify`; an int: `sample` of as many rows.
        rule, sampling, draft_sampling, return_logprobs: as for `verify`.
        drafted: whether there are draft logits.
        bonus: whether there are bonus tokens.
        dtype: of the rows that top-k or top-p may cut; the wider one if target and draft differ. Edited rows
            count as float32.

    Returns:
        `Traffic`. The vocabulary and the number of processes are not in it.

    Example:
        >>> import torch
        >>> tree = DraftTree.chain(torch.zeros(8, 5, dtype=torch.int64))
        >>> traffic(tree, drafted=True)
        Traffic(gathers=2, sums=2, gathered=3264, summed=4480)
    """
    operation, cuts = "sharded.traffic", []
    if isinstance(tree, int):
        rows, batch, nodes, device = check_int(operation, "tree", tree, 0), tree, 1, torch.device("cpu")
        name = "match"
    else:
        check_type(operation, "tree", tree, DraftTree, "a DraftTree or an int")
        rows, batch, nodes = tree.tokens.shape[0], tree.batch_size, tree.max_nodes
        name, device = rules.resolve(operation, rule, drafted)[0], tree.tokens.device
    if rows == 0 or batch == 0 or nodes == 0:
        return Traffic(0, 0, 0, 0)
    laws: list[SamplingParams | str] = [sampling]
    if drafted and name in READS_DRAFT:
        laws.append(sampling if draft_sampling is None else draft_sampling)
    for law in laws:
        if not isinstance(law, str):
            cuts.append(cuts_of(unpack(operation, "sampling", law, batch, device)))
    gathered = MEASURED * rows * len(laws) + RACED * (rows if name == "match" else batch)
    sent: list[int] = []
    for sides in map(sum, zip(*cuts, strict=True)):  # with top-k, then with top-p
        sent += steps_for(dtype) * [2**RADIX * rows * sides] if sides else []
    if name != "match":
        sent.append(len(laws) * (2 * PARTS * rows + batch * nodes))
    elif return_logprobs:
        sent.append(PARTS * rows)
    if len(laws) > 1 and nodes > 1 and name != "lenient":
        chain = not isinstance(tree, int) and tree._made_as_chain
        sent += [PARTS * batch * (nodes - 1)] if chain else (nodes - 1) * [PARTS * batch]
    if bonus and return_logprobs:
        sent.append(batch)
    return Traffic(gathers=2, sums=len(sent), gathered=INT64 * gathered, summed=INT64 * sum(sent))
