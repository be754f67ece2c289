# SPDX-License-Identifier: Apache-2.0
"""Prompt lookup on the CPU."""

from __future__ import annotations

import torch

from .._ops.calls import NgramDraftCall, NgramTreeCall
from . import _native


def ngram_draft(call: NgramDraftCall) -> None:
    """Fill the output."""
    _native.ngram_draft(
        torch.get_num_threads(),
        search=_search(call),
        frequent=call.frequent,
        num_draft=call.out.shape[1],
        out=call.out.data_ptr(),
    )


def ngram_tree(call: NgramTreeCall) -> None:
    """Fill the outputs."""
    _native.ngram_tree(
        torch.get_num_threads(),
        search=_search(call),
        max_depth=call.max_depth,
        branches=call.branches,
        max_nodes=call.out_tokens.shape[1],
        trust=call.trust,
        out_tokens=call.out_tokens.data_ptr(),
        out_parents=call.out_parents.data_ptr(),
        out_scores=call.out_scores.data_ptr(),
    )


def _search(call: NgramDraftCall | NgramTreeCall) -> _native.NgramSearch:
    """The texts, and which n-grams of theirs to look up."""
    requests, width = call.tokens.shape
    return _native.NgramSearch(
        tokens=call.tokens.data_ptr(),
        lengths=call.lengths.data_ptr(),
        requests=requests,
        width=width,
        min_ngram=call.min_ngram,
        max_ngram=call.max_ngram,
        cyclic=call.cyclic,
    )
