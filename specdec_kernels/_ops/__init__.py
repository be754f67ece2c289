# SPDX-License-Identifier: Apache-2.0
"""From a public function to a backend: the record of a call, the operator, and the choice of the backend.

Internal. `calls` has the records, `operators` the operators of PyTorch, `backends` the choice and its reason.
"""

from .operators import (
    commit_kv,
    commit_kv_by_table,
    commit_state,
    count_tokens,
    edit_logits,
    ngram_draft,
    ngram_tree,
    replay_conv,
    replay_gated_delta,
    replay_mamba2,
    sample,
    sample_children,
    select_nodes,
    tree_attention,
    update_budget,
    verify,
)

__all__ = [
    "commit_kv",
    "commit_kv_by_table",
    "commit_state",
    "count_tokens",
    "edit_logits",
    "ngram_draft",
    "ngram_tree",
    "replay_conv",
    "replay_gated_delta",
    "replay_mamba2",
    "sample",
    "sample_children",
    "select_nodes",
    "tree_attention",
    "update_budget",
    "verify",
]
