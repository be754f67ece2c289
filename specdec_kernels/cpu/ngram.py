# SPDX-License-Identifier: Apache-2.0
"""Prompt lookup on the CPU."""

from __future__ import annotations

import torch

from . import _native


def ngram_draft(tokens, lengths, min_ngram, max_ngram, frequent, cyclic, out):
    """The operator `specdec_kernels::ngram_draft`."""
    _native.ngram_draft(
        [tokens.data_ptr(), lengths.data_ptr()],
        [*tokens.shape, min_ngram, max_ngram],
        cyclic,
        frequent,
        out.shape[1],
        out.data_ptr(),
        torch.get_num_threads(),
    )


def ngram_tree(
    tokens, lengths, max_depth, branches, min_ngram, max_ngram, trust, cyclic,
    out_tokens, out_parents, out_scores,
):  # fmt: skip
    """The operator `specdec_kernels::ngram_tree`."""
    _native.ngram_tree(
        [tokens.data_ptr(), lengths.data_ptr()],
        [*tokens.shape, min_ngram, max_ngram],
        cyclic,
        [max_depth, branches, out_tokens.shape[1]],
        trust,
        [out_tokens.data_ptr(), out_parents.data_ptr(), out_scores.data_ptr()],
        torch.get_num_threads(),
    )
