# SPDX-License-Identifier: Apache-2.0
"""The native CPU backend: operators on addresses, written in C++ (see csrc/)."""

from __future__ import annotations

import specdec_kernels.cpu._native as _native

from .attention import tree_attention
from .budget import select_nodes, update_budget
from .commit import commit_kv
from .edits import count_tokens, edit_logits
from .ngram import ngram_draft, ngram_tree
from .sampling import sample, sample_children
from .state import commit_state, replay_conv, replay_gated_delta, replay_mamba2
from .trees import enter_chains, enter_links, uniform_chains
from .verification import verify

__all__ = [
    "commit_kv",
    "commit_state",
    "count_tokens",
    "describe",
    "device_type",
    "edit_logits",
    "enter_chains",
    "enter_links",
    "ngram_draft",
    "ngram_tree",
    "replay_conv",
    "replay_gated_delta",
    "replay_mamba2",
    "sample",
    "sample_children",
    "select_nodes",
    "tree_attention",
    "uniform_chains",
    "update_budget",
    "verify",
]


def device_type() -> str:
    """The kind of device whose tensors it serves."""
    return "cpu"


def describe() -> str:
    """One line about this backend here. The instruction set is "avx512", "avx2", "neon" or "baseline";
    SPECDEC_ISA asks for a lesser one."""
    return f"native extension, instruction set {_native.instruction_set()}"
