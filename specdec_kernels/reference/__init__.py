# SPDX-License-Identifier: Apache-2.0
"""The specification: every operation in plain PyTorch, dense, in float64, one request at a time.

The code follows the mathematics. It takes tensors of any device and copies them to the host. The other
backends are tested against it.
"""

from .attention import tree_attention
from .budget import select_nodes, update_budget
from .children import sample_children
from .commit import commit_kv
from .counts import count_tokens
from .edits import edit_logits
from .ngram import ngram_draft, ngram_tree
from .request import Trace
from .sampling import sample
from .state import commit_state, replay_conv, replay_gated_delta, replay_mamba2
from .verification import verify

__all__ = [
    "Trace",
    "commit_kv",
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
