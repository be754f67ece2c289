"""Verification in three launches, whatever the rule, the options, the data or the tree.

measure   (R, splits, 1 or 2)   every row once: what the laws need to know of it
walk      (B,)                  the rule; leaves a goal: the law to draw the next token from, as scalars
draw      (B, splits)           the race for the next token; the last program of a request merges

Under `match` the walk knows the next token, and there is no third launch.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from .arguments import Draft, Sampling, Scratch, Target
from .cuts import BINS
from .draw import GOAL, draw_kernel
from .launch import verify_launch
from .measure import RESULT, measure_kernel
from .walk import VISIT, walk_kernel

_READS_DRAFT = ("token", "traversal", "lenient")


def verify(
    target_logits, tokens, parents, cu_nodes, proposals, first_child, next_sibling,
    draft_logits, draft_rows, draft_ids, draft_columns,
    sampling, sampling_rows, draft_sampling, draft_sampling_rows, draft_is_logprobs,
    rule, rule_values, seeds, positions, token_bitmask,
    out_tokens, out_num_tokens, out_num_accepted, out_path, out_logprobs, out_status,
    trace_thresholds=None, trace_masses=None,
):  # fmt: skip
    """The operator `specdec_kernels::verify`.

    For tests, `trace_thresholds` and `trace_masses` ([R] float64) receive what each tested node's coin was
    compared with and the residual mass that its rejection left; other entries keep what they hold.
    """
    rows, requests, vocab = tokens.shape[0], seeds.shape[0], target_logits.shape[-1]
    if requests == 0:
        return
    if rule not in _READS_DRAFT:
        draft_logits = None
    group, group_stride, row_stride = _layout(target_logits)
    target = Target(
        target_logits, vocab, group, group_stride, row_stride,
        token_bitmask, 0 if token_bitmask is None else token_bitmask.stride(0),
    )  # fmt: skip
    draft, count, measured = None, 0, vocab
    cuts, draft_cuts = _may_cut(sampling, sampling_rows), False
    if draft_logits is not None:
        size, chain = draft_logits.shape[-1], 0
        count = draft_logits.shape[0]
        if draft_logits.dim() == 3:
            chain = draft_logits.shape[1]
            count *= chain
        draft = Draft(draft_logits, size, *_layout(draft_logits), draft_rows, chain, draft_ids, draft_columns)
        if not draft_is_logprobs:
            measured = max(vocab, size)
            draft_cuts = _may_cut(draft_sampling, draft_sampling_rows)
    launch = verify_launch(vocab, measured, rule, cuts or draft_cuts)
    parts, visits, nodes, ranks, bins, goals, winners = (
        rows * launch.padded_splits * RESULT,
        rows * VISIT,
        rows,
        rows if first_child is not None else 0,
        requests * BINS.value if cuts or draft_cuts or rule == "relaxed" else 0,
        requests * GOAL,
        requests * launch.padded_draw_splits * RESULT // 2,
    )
    *offsets, words = itertools.accumulate(
        -(-n // 16) * 16 for n in (parts, visits, nodes, ranks, bins, goals, winners)
    )
    scratch = Scratch(torch.empty(words, dtype=torch.float64, device=target_logits.device), *offsets)
    given = dict(
        target=target,
        draft=draft,
        sampling=Sampling(*sampling, *(sampling_rows or [None] * 4)),
        cu_nodes_ptr=cu_nodes,
        seeds_ptr=seeds,
        positions_ptr=positions,
        scratch=scratch,
        rows=rows,
    )
    tree = dict(tokens_ptr=tokens, parents_ptr=parents, proposals_ptr=proposals)
    drafted_by = Sampling(*draft_sampling, *(draft_sampling_rows or [None] * 4))
    splits = dict(RULE=rule, CUTS=cuts, SPLIT=launch.split, SPLITS=launch.padded_splits)
    if rows > 0:
        measure_kernel[(rows, launch.splits, 2 if draft is not None and not draft_is_logprobs else 1)](
            **given,
            **tree,
            draft_sampling=drafted_by,
            requests=requests,
            draft_count=count,
            **splits,
            RACE_TILE=launch.race_tile,
            WHOLE=vocab % launch.split == 0 and (draft is None or draft_logits.shape[-1] % launch.split == 0),
            num_warps=launch.split_warps,
        )
    walk_kernel[(requests,)](
        **given,
        **tree,
        draft_sampling=drafted_by,
        first_child_ptr=first_child,
        next_sibling_ptr=next_sibling,
        out_tokens_ptr=out_tokens,
        out_num_tokens_ptr=out_num_tokens,
        out_num_accepted_ptr=out_num_accepted,
        out_path_ptr=out_path,
        out_logprobs_ptr=out_logprobs,
        out_status_ptr=out_status,
        trace_thresholds_ptr=trace_thresholds,
        trace_masses_ptr=trace_masses,
        draft_count=count,
        width=out_tokens.shape[1],
        value0=rule_values[0] if rule_values else 0.0,
        value1=rule_values[1] if len(rule_values) > 1 else 0.0,
        **splits,
        DRAFT_CUTS=draft_cuts,
        LOGPROBS=draft_is_logprobs,
        RATES=tuple(rule_values) if rule == "synthetic" else (),
        TILE=launch.row_tile,
        RACE_TILE=launch.row_race_tile,
        num_warps=launch.row_warps,
    )
    if rule != "match":
        draw_kernel[(requests, launch.draw_splits)](
            **given,
            out_tokens_ptr=out_tokens,
            out_logprobs_ptr=out_logprobs,
            out_status_ptr=out_status,
            width=out_tokens.shape[1],
            LINKS=first_child is not None,
            SPLIT=launch.draw_split,
            SPLITS=launch.padded_draw_splits,
            TILE=launch.draw_tile,
            num_warps=launch.draw_warps,
        )


def _layout(rows: Tensor) -> tuple[int, int, int]:
    """Rows per group, and the strides of groups and rows."""
    if rows.dim() == 2:
        return 2**31 - 1, 0, rows.stride(0)
    return max(rows.shape[1], 1), rows.stride(0), rows.stride(1)


def _may_cut(numbers: list[float], per_request: list[Tensor | None]) -> bool:
    _, top_k, top_p, min_p = numbers
    return top_k >= 1 or top_p < 1 or min_p > 0 or any(row is not None for row in per_request[1:])
