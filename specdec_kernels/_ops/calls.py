# SPDX-License-Identifier: Apache-2.0
"""One record per operator: the arguments of a backend.

The fields of a record are the arguments of the operator `specdec_kernels::<operation>` after `backend`. The
operator's schema is made of them (see `operators`). A public function fills a record by name, and a backend
reads it by name. A new option is a field at the end with a default; a list of tensors, for which a schema has
no default, stands before the first that has one.

Conventions of the fields:

- `target_logits` is [R, V] or [B, N, V], `draft_logits` [Rq, Vd] or [B, K, Vd], as the user gave them, with
  any strides but a last stride of 1. If `draft_rows` is None, node row r has draft row r; with 3-D draft
  logits, node i of request b has the row `draft_logits[b, i]`, and the last node has none.
- Without `target_rows` node row r has target row r; if `rows_end_early`, node row r of request b has target
  row r - b, and the last node of a request has none. Rows out of range are none. `bonus_tokens` and
  `out_tokens` are int64 or int32.
- `first_child` and `next_sibling` are given together, and only if the sibling order may differ from index
  order.
- `sampling` is (temperature, top_k, top_p, min_p, 1 for min-p last or 0 for min-p first). `sampling_rows`
  has the first four as [B] tensors, for those given per request; the list is empty if none is. The same
  holds for the draft.
- `rule` is "match", "token", "traversal" or the name of a lossy rule, whose numbers are `rule_values`. Those
  of "synthetic" may be `rule_rates` [D] float32 in their place.
- `edits` has the tensors of `EditTensors`, or is empty if nothing is edited. The first four are given
  together, if a penalty may be on; `counts_recent`, if bad words of several tokens are given. `slots` may be
  given with either. `repetition`, `frequency` and `presence` are [B] float32, for those given per request.
  `edit_numbers` has these three (1, 0 and 0 if given per request), and 1 if frequency and presence count the
  prompt, otherwise 0; it is empty with `edits`. reference/edits.py says what they mean.
- `logprobs_kind` is "processed", "raw" or "temperature", of `out_logprobs` and `out_report`. The latter is
  empty, or has top_logprobs [B, W, top], top_tokens, ranks [B, W] and chosen_logprobs [B, W, m]; W = 1
  of `sample`. `chosen_tokens` is [B, m], or None with m = 0. `out_masks` is empty, or has counts and mass,
  [B, W] or mass without elements if not asked for, then either bits [B, W, ceil(V / 32)], or ids [capacity]
  and offsets [B * W + 1].
- `stop_tokens` is [B, S]; `new_tokens_left`, `context_left` and `finished` (uint8) are [B] and changed in
  place. Requests end only if `out_finish` is given.
- Caches are paged, [pages, page_size, Hkv, D], or with `heads_first` [pages, Hkv, page_size, D]. Without a
  `value_cache` the values are the first `value_dim` elements of the keys. `window` and `softcap` are 0 if
  there is none. If `key_scales` or `value_scales` [Hkv] are given, they replace the one number.
- `path` is [B, max_depth + 1], `rows` is R. `table` is `cache_table` of `caches` or None. A tracer may pass
  copies of the caches, so a backend compares the addresses first. `new` is empty or one tensor per cache.
- A budget has `costs` [M + 1], `credit` [1], `promised` and `kept` [slots, 9], all float64, and `idle_steps`
  [1] int32. Outputs of `select_nodes` have min(M, R) rows. reference/budget.py says what is computed.
- One-dimensional tensors and outputs are contiguous. Outputs are not initialised: a backend writes every
  element.

`OPERATORS` has for every record its operator, the fields that are `written`, and the fields whose device and
dtypes choose the backend (`chosen_by`). Operations on caches and states move bytes, so `path` chooses, whose
dtype never varies.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

SymInt = int  # an int that a tracer may keep symbolic


class EditTensors(NamedTuple):
    """The tensors of `edits`, in their order."""

    counts_tokens: Tensor | None
    counts_prompt: Tensor | None
    counts_output: Tensor | None
    counts_sizes: Tensor | None
    counts_recent: Tensor | None
    slots: Tensor | None
    repetition: Tensor | None
    frequency: Tensor | None
    presence: Tensor | None
    bias_tokens: Tensor | None
    bias_values: Tensor | None
    banned_tokens: Tensor | None
    banned_until: Tensor | None
    bad_words: Tensor | None
    forced_tokens: Tensor | None


EDITS = EditTensors._fields


class VerifyCall(NamedTuple):
    """Of `verify`."""

    target_logits: Tensor
    tokens: Tensor
    parents: Tensor
    cu_nodes: Tensor
    proposals: Tensor
    first_child: Tensor | None
    next_sibling: Tensor | None
    draft_logits: Tensor | None
    draft_rows: Tensor | None
    draft_ids: Tensor | None
    draft_columns: Tensor | None
    sampling: list[float]
    sampling_rows: list[Tensor | None]
    draft_sampling: list[float]
    draft_sampling_rows: list[Tensor | None]
    draft_is_logprobs: bool
    rule: str
    rule_values: list[float]
    seeds: Tensor
    positions: Tensor
    token_bitmask: Tensor | None
    out_tokens: Tensor
    out_num_tokens: Tensor
    out_num_accepted: Tensor
    out_path: Tensor
    out_logprobs: Tensor | None
    out_status: Tensor
    edits: list[Tensor | None]
    edit_numbers: list[float]
    logprobs_kind: str
    chosen_tokens: Tensor | None
    out_report: list[Tensor]
    out_masks: list[Tensor]
    target_rows: Tensor | None = None
    rows_end_early: bool = False
    bonus_tokens: Tensor | None = None
    draft_is_probs: bool = False
    rule_rates: Tensor | None = None
    stop_tokens: Tensor | None = None
    new_tokens_left: Tensor | None = None
    context_left: Tensor | None = None
    finished: Tensor | None = None
    out_finish: Tensor | None = None


class SampleCall(NamedTuple):
    """Of `sample`."""

    logits: Tensor
    sampling: list[float]
    sampling_rows: list[Tensor | None]
    seeds: Tensor
    positions: Tensor
    token_bitmask: Tensor | None
    out_tokens: Tensor
    out_logprobs: Tensor | None
    edits: list[Tensor | None]
    edit_numbers: list[float]
    logprobs_kind: str
    chosen_tokens: Tensor | None
    out_report: list[Tensor]


class EditLogitsCall(NamedTuple):
    """Of `edit_logits_`."""

    logits: Tensor
    tokens: Tensor | None
    parents: Tensor | None
    cu_nodes: Tensor | None
    target_rows: Tensor | None
    edits: list[Tensor | None]
    edit_numbers: list[float]


class CountTokensCall(NamedTuple):
    """Of `TokenCounts.update_`."""

    tokens: Tensor
    num_tokens: Tensor | None
    slots: Tensor | None
    vocab_size: int
    counts_tokens: Tensor
    counts_prompt: Tensor
    counts_output: Tensor
    counts_sizes: Tensor
    counts_recent: Tensor


class SampleChildrenCall(NamedTuple):
    """Of `sample_children` and `draft_token`."""

    logits: Tensor
    method: str
    sampling: list[float]
    sampling_rows: list[Tensor | None]
    seeds: Tensor
    positions: Tensor
    nodes: Tensor
    purpose: int
    out_tokens: Tensor
    out_scores: Tensor


class NgramDraftCall(NamedTuple):
    """Of `ngram_draft`."""

    tokens: Tensor
    lengths: Tensor
    min_ngram: int
    max_ngram: int
    frequent: bool
    cyclic: bool
    out: Tensor


class NgramTreeCall(NamedTuple):
    """Of `ngram_tree`."""

    tokens: Tensor
    lengths: Tensor
    max_depth: int
    branches: int
    min_ngram: int
    max_ngram: int
    trust: list[float]
    cyclic: bool
    out_tokens: Tensor
    out_parents: Tensor
    out_scores: Tensor


class SelectNodesCall(NamedTuple):
    """Of `BatchBudget.select`."""

    tokens: Tensor
    parents: Tensor
    cu_nodes: Tensor
    proposals: Tensor
    scores: Tensor
    draft_rows: Tensor | None
    slots: Tensor | None
    weights: Tensor | None
    costs: Tensor
    credit: Tensor
    idle_steps: Tensor
    promised: Tensor
    kept: Tensor
    prior: float
    patience: int
    max_nodes: SymInt
    out_tokens: Tensor
    out_parents: Tensor
    out_cu_nodes: Tensor
    out_proposals: Tensor
    out_scores: Tensor
    out_rows: Tensor
    out_draft_rows: Tensor | None


class UpdateBudgetCall(NamedTuple):
    """Of `BatchBudget.update_`."""

    parents: Tensor
    cu_nodes: Tensor
    proposals: Tensor
    scores: Tensor
    path: Tensor
    num_tokens: Tensor
    slots: Tensor | None
    costs: Tensor
    credit: Tensor
    idle_steps: Tensor
    promised: Tensor
    kept: Tensor
    decay: float
    allowance: float
    max_credit: float
    max_nodes: SymInt


class TreeAttentionCall(NamedTuple):
    """Of `tree_attention`."""

    query: Tensor
    key_cache: Tensor
    value_cache: Tensor | None
    parents: Tensor
    cu_nodes: Tensor
    block_table: Tensor
    prefix_lens: Tensor
    new_key: Tensor | None
    new_value: Tensor | None
    scale: float
    window: int
    softcap: float
    sinks: Tensor | None
    key_scale: float
    key_scales: Tensor | None
    value_scale: float
    value_scales: Tensor | None
    value_dim: int
    max_prefix_len: SymInt
    heads_first: bool
    deterministic: bool
    out: Tensor
    out_lse: Tensor | None


class CommitKVCall(NamedTuple):
    """Of `commit_kv`."""

    caches: list[Tensor]
    table: Tensor | None
    new: list[Tensor]
    path: Tensor
    cu_nodes: Tensor
    rows: SymInt
    block_table: Tensor
    prefix_lens: Tensor
    page_size: int
    layout: str
    out_lengths: Tensor
    out_pages_kept: Tensor


class CommitStateCall(NamedTuple):
    """Of `commit_state`."""

    states: list[Tensor]
    snapshots: list[Tensor]
    path: Tensor
    cu_nodes: Tensor
    rows: SymInt
    slots: Tensor


class ReplayConvCall(NamedTuple):
    """Of `replay_conv`."""

    windows: list[Tensor]
    inputs: list[Tensor]
    path: Tensor
    cu_nodes: Tensor
    rows: SymInt
    slots: Tensor


class ReplayGatedDeltaCall(NamedTuple):
    """Of `replay_gated_delta`."""

    states: list[Tensor]
    keys: list[Tensor]
    values: list[Tensor]
    log_decay: list[Tensor]
    beta: list[Tensor]
    path: Tensor
    cu_nodes: Tensor
    rows: SymInt
    slots: Tensor


class ReplayMamba2Call(NamedTuple):
    """Of `replay_mamba2`."""

    states: list[Tensor]
    x: list[Tensor]
    B: list[Tensor]
    dt: list[Tensor]
    A: list[Tensor]
    path: Tensor
    cu_nodes: Tensor
    rows: SymInt
    slots: Tensor


class Operator(NamedTuple):
    """The facts of an operator that PyTorch and `backends` need."""

    record: type[Any]
    written: tuple[str, ...]
    chosen_by: tuple[str, ...]


OPERATORS = {
    "verify": Operator(
        VerifyCall,
        written=(
            "out_tokens",
            "out_num_tokens",
            "out_num_accepted",
            "out_path",
            "out_logprobs",
            "out_status",
            "new_tokens_left",
            "context_left",
            "finished",
            "out_finish",
            "out_report",
            "out_masks",
        ),
        chosen_by=("target_logits", "draft_logits"),
    ),
    "sample": Operator(
        SampleCall, written=("out_tokens", "out_logprobs", "out_report"), chosen_by=("logits",)
    ),
    "edit_logits": Operator(EditLogitsCall, written=("logits",), chosen_by=("logits",)),
    "count_tokens": Operator(
        CountTokensCall,
        written=("counts_tokens", "counts_prompt", "counts_output", "counts_sizes", "counts_recent"),
        chosen_by=("tokens",),
    ),
    "sample_children": Operator(
        SampleChildrenCall, written=("out_tokens", "out_scores"), chosen_by=("logits",)
    ),
    "ngram_draft": Operator(NgramDraftCall, written=("out",), chosen_by=("tokens",)),
    "ngram_tree": Operator(
        NgramTreeCall, written=("out_tokens", "out_parents", "out_scores"), chosen_by=("tokens",)
    ),
    "select_nodes": Operator(
        SelectNodesCall,
        written=(
            "out_tokens",
            "out_parents",
            "out_cu_nodes",
            "out_proposals",
            "out_scores",
            "out_rows",
            "out_draft_rows",
        ),
        chosen_by=("scores",),
    ),
    "update_budget": Operator(
        UpdateBudgetCall, written=("credit", "idle_steps", "promised", "kept"), chosen_by=("scores",)
    ),
    "tree_attention": Operator(
        TreeAttentionCall, written=("out", "out_lse"), chosen_by=("query", "key_cache")
    ),
    "commit_kv": Operator(
        CommitKVCall, written=("caches", "out_lengths", "out_pages_kept"), chosen_by=("path",)
    ),
    "commit_state": Operator(CommitStateCall, written=("states",), chosen_by=("path",)),
    "replay_conv": Operator(ReplayConvCall, written=("windows",), chosen_by=("path",)),
    "replay_gated_delta": Operator(
        ReplayGatedDeltaCall, written=("states",), chosen_by=("states", "keys", "values", "log_decay", "beta")
    ),
    "replay_mamba2": Operator(
        ReplayMamba2Call, written=("states",), chosen_by=("states", "x", "B", "dt", "A")
    ),
}
