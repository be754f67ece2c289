# SPDX-License-Identifier: Apache-2.0
"""The native core, built from csrc/. Pointers are addresses of memory that outlives the call, 0 = null."""

from enum import IntEnum
from typing import Any

from numpy.typing import NDArray

class DType(IntEnum):
    float32 = ...
    bfloat16 = ...
    float16 = ...
    int8 = ...
    float8_e4m3fn = ...

class Rule(IntEnum):
    match = ...
    token = ...
    traversal = ...
    typical = ...
    relaxed = ...
    lenient = ...
    synthetic = ...
    deferred = ...
    threshold = ...
    ensemble = ...

class DraftForm(IntEnum):
    logits = ...
    logprobs = ...
    probs = ...

class LawKind(IntEnum):
    processed = ...
    raw = ...
    temperature = ...

class Method(IntEnum):
    independent = ...
    without_replacement = ...
    top_k = ...
    hybrid = ...

class Purpose(IntEnum):
    NEXT = ...
    RESIDUAL = ...
    ACCEPT = ...
    DRAFT = ...

class Rows:
    fields: tuple[str, ...]
    def __init__(
        self,
        *,
        data: int,
        dtype: DType,
        count: int,
        size: int,
        group: int,
        group_stride: int,
        row_stride: int,
    ) -> None: ...

class Sampling:
    fields: tuple[str, ...]
    def __init__(
        self,
        *,
        temperature: tuple[float, int],
        top_k: tuple[float, int],
        top_p: tuple[float, int],
        min_p: tuple[float, int],
        min_p_last: bool,
    ) -> None: ...

class Edits:
    fields: tuple[str, ...]
    def __init__(
        self,
        *,
        count_tokens: int,
        count_prompt: int,
        count_output: int,
        count_sizes: int,
        recent: int,
        slots: int,
        capacity: int,
        recent_width: int,
        request_slots: int,
        repetition: tuple[float, int],
        frequency: tuple[float, int],
        presence: tuple[float, int],
        penalize_prompt: bool,
        bias_tokens: int,
        bias_values: int,
        bias_count: int,
        banned_tokens: int,
        banned_count: int,
        banned_until: int,
        bad_words: int,
        bad_word_count: int,
        bad_word_length: int,
        forced_tokens: int,
        forced_count: int,
    ) -> None: ...

class Logprobs:
    fields: tuple[str, ...]
    def __init__(
        self,
        *,
        kind: LawKind,
        top: int,
        chosen: int,
        chosen_count: int,
        out_top_logprobs: int,
        out_top_tokens: int,
        out_ranks: int,
        out_chosen_logprobs: int,
    ) -> None: ...

class Masks:
    fields: tuple[str, ...]
    def __init__(
        self,
        *,
        out_bits: int,
        out_ids: int,
        capacity: int,
        out_offsets: int,
        out_counts: int,
        out_mass: int,
    ) -> None: ...

class NgramSearch:
    fields: tuple[str, ...]
    def __init__(
        self,
        *,
        tokens: int,
        lengths: int,
        requests: int,
        width: int,
        min_ngram: int,
        max_ngram: int,
        cyclic: bool,
    ) -> None: ...

class Budget:
    fields: tuple[str, ...]
    def __init__(
        self,
        *,
        costs: int,
        max_rows: int,
        credit: int,
        idle_steps: int,
        promised: int,
        kept: int,
        slots: int,
    ) -> None: ...

class HeadRows:
    fields: tuple[str, ...]
    def __init__(
        self,
        *,
        data: int,
        dtype: DType,
        row_stride: int,
        head_stride: int,
    ) -> None: ...

class HeadCache:
    fields: tuple[str, ...]
    def __init__(
        self,
        *,
        data: int,
        dtype: DType,
        page_stride: int,
        slot_stride: int,
        head_stride: int,
        scales: int,
        scale: float,
    ) -> None: ...

class Paths:
    fields: tuple[str, ...]
    def __init__(
        self,
        *,
        nodes: int,
        width: int,
        cu_nodes: int,
        rows: int,
        requests: int,
    ) -> None: ...

class States:
    fields: tuple[str, ...]
    def __init__(
        self,
        *,
        data: int,
        slots: int,
        slot_stride: int,
        row_bytes: int,
    ) -> None: ...

class Snapshots:
    fields: tuple[str, ...]
    def __init__(
        self,
        *,
        data: int,
        row_stride: int,
    ) -> None: ...

class Windows:
    fields: tuple[str, ...]
    def __init__(
        self,
        *,
        data: int,
        slots: int,
        channels: int,
        taps: int,
        slot_stride: int,
        channel_stride: int,
        tap_stride: int,
        item_bytes: int,
    ) -> None: ...

class WindowInputs:
    fields: tuple[str, ...]
    def __init__(
        self,
        *,
        data: int,
        row_stride: int,
        channel_stride: int,
    ) -> None: ...

class Matrices:
    fields: tuple[str, ...]
    def __init__(
        self,
        *,
        data: int,
        dtype: DType,
        slots: int,
        heads: int,
        rows: int,
        columns: int,
        slot_stride: int,
        head_stride: int,
        row_stride: int,
        column_stride: int,
    ) -> None: ...

class NodeInputs:
    fields: tuple[str, ...]
    def __init__(
        self,
        *,
        data: int,
        dtype: DType,
        heads: int,
        size: int,
        row_stride: int,
        head_stride: int,
    ) -> None: ...

def verify(
    threads: int,
    /,
    *,
    target: Rows,
    target_rows: int,
    rows_end_early: bool,
    requests: int,
    nodes: int,
    tokens: int,
    parents: int,
    cu_nodes: int,
    proposals: int,
    first_child: int,
    next_sibling: int,
    draft: Rows | None,
    draft_rows: int,
    draft_chain: int,
    draft_ids: int,
    draft_columns: int,
    draft_form: DraftForm,
    sampling: Sampling | None,
    draft_sampling: Sampling | None,
    rule: Rule,
    rule_values: list[float],
    seeds: int,
    positions: int,
    bitmask: int,
    bitmask_stride: int,
    bonus_tokens: int,
    bonus_tokens_are_int32: bool,
    edits: Edits | None,
    stop_tokens: int,
    stop_count: int,
    new_tokens_left: int,
    context_left: int,
    finished: int,
    width: int,
    out_tokens: int,
    out_tokens_are_int32: bool,
    out_num_tokens: int,
    out_num_accepted: int,
    out_path: int,
    out_logprobs: int,
    out_status: int,
    out_finish: int,
    logprobs: Logprobs | None,
    masks: Masks | None,
    trace_thresholds: int,
    trace_masses: int,
) -> None: ...
def sample(
    threads: int,
    /,
    *,
    logits: Rows,
    sampling: Sampling | None,
    seeds: int,
    positions: int,
    bitmask: int,
    bitmask_stride: int,
    edits: Edits | None,
    out_tokens: int,
    out_logprobs: int,
    logprobs: Logprobs | None,
) -> None: ...
def edit_logits(
    threads: int,
    /,
    *,
    logits: Rows,
    requests: int,
    nodes: int,
    tokens: int,
    parents: int,
    cu_nodes: int,
    target_rows: int,
    edits: Edits,
) -> None: ...
def count_tokens(
    threads: int,
    /,
    *,
    requests: int,
    width: int,
    vocab: int,
    tokens: int,
    tokens_are_int32: bool,
    num_tokens: int,
    request_slots: int,
    slots: int,
    capacity: int,
    recent_width: int,
    count_tokens: int,
    count_prompt: int,
    count_output: int,
    count_sizes: int,
    recent: int,
) -> None: ...
def sample_children(
    threads: int,
    /,
    *,
    logits: Rows,
    k: int,
    method: Method,
    purpose: int,
    sampling: Sampling | None,
    seeds: int,
    positions: int,
    nodes: int,
    out_tokens: int,
    out_scores: int,
) -> None: ...
def ngram_draft(
    threads: int,
    /,
    *,
    search: NgramSearch,
    frequent: bool,
    num_draft: int,
    out: int,
) -> None: ...
def ngram_tree(
    threads: int,
    /,
    *,
    search: NgramSearch,
    max_depth: int,
    branches: int,
    max_nodes: int,
    trust: list[float],
    out_tokens: int,
    out_parents: int,
    out_scores: int,
) -> None: ...
def select_nodes(
    threads: int,
    /,
    *,
    budget: Budget,
    prior: float,
    patience: int,
    requests: int,
    nodes: int,
    tokens: int,
    parents: int,
    cu_nodes: int,
    proposals: int,
    scores: int,
    draft_rows: int,
    request_slots: int,
    out_tokens: int,
    out_parents: int,
    out_cu_nodes: int,
    out_proposals: int,
    out_scores: int,
    out_rows: int,
    out_draft_rows: int,
    weights: int,
) -> None: ...
def update_budget(
    threads: int,
    /,
    *,
    budget: Budget,
    decay: float,
    allowance: float,
    max_credit: float,
    requests: int,
    nodes: int,
    parents: int,
    cu_nodes: int,
    proposals: int,
    scores: int,
    path: int,
    width: int,
    num_tokens: int,
    request_slots: int,
) -> None: ...
def enter_chains(
    threads: int,
    /,
    *,
    drafts: int,
    drafts_are_int32: bool,
    draft_count: int,
    cu_drafts: int,
    cu_drafts_are_int32: bool,
    requests: int,
    out_tokens: int,
    out_parents: int,
    out_cu_nodes: int,
) -> None: ...
def uniform_chains(
    drafts: int, are_int32: bool, batch: int, depth: int, kind: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]: ...
def enter_links(
    threads: int,
    /,
    *,
    tokens: int,
    tokens_are_int32: bool,
    columns: int,
    next_token: int,
    next_sibling: int,
    links_are_int32: bool,
    requests: int,
    nodes: int,
    out_tokens: int,
    out_parents: int,
    out_first_child: int,
    out_next_sibling: int,
) -> None: ...
def tree_attention(
    threads: int,
    /,
    *,
    query: HeadRows,
    new_key: HeadRows | None,
    new_value: HeadRows | None,
    key: HeadCache,
    value: HeadCache,
    nodes: int,
    query_heads: int,
    heads: int,
    head: int,
    value_size: int,
    parents: int,
    cu_nodes: int,
    requests: int,
    block_table: int,
    table_width: int,
    pages: int,
    page_size: int,
    prefix_lens: int,
    max_prefix: int,
    scale: float,
    softcap: float,
    window: int,
    sinks: int,
    deterministic: bool,
    out: int,
    out_lse: int,
) -> None: ...
def commit_kv(
    threads: int,
    /,
    *,
    caches: int,
    new_rows: int,
    cache_count: int,
    cache_struct_size: int,
    new_rows_struct_size: int,
    paths: Paths,
    block_table: int,
    table_width: int,
    prefix_lens: int,
    page_size: int,
    out_lengths: int,
    out_pages_kept: int,
) -> None: ...
def commit_state(
    threads: int,
    /,
    *,
    paths: Paths,
    slots: int,
    states: list[States],
    snapshots: list[Snapshots],
) -> None: ...
def replay_conv(
    threads: int,
    /,
    *,
    paths: Paths,
    slots: int,
    windows: list[Windows],
    inputs: list[WindowInputs],
) -> None: ...
def replay_gated_delta(
    threads: int,
    /,
    *,
    paths: Paths,
    slots: int,
    states: list[Matrices],
    inputs: list[NodeInputs],
) -> None: ...
def replay_mamba2(
    threads: int,
    /,
    *,
    paths: Paths,
    slots: int,
    states: list[Matrices],
    inputs: list[NodeInputs],
) -> None: ...

class SuffixIndex:
    def __init__(self, max_bytes: int) -> None: ...
    def add(self, request: int, name: str, reads: list[str]) -> None: ...
    def extend(self, requests: int, count: int, tokens: int, width: int, sizes: int) -> None: ...
    def finish(self, request: int) -> None: ...
    def remove(self, request: int) -> None: ...
    def load(self, name: str, tokens: int, dtype: int, size: int) -> int: ...
    def unload(self, corpus: int) -> None: ...
    def draft(
        self,
        threads: int,
        requests: list[int],
        max_nodes: int,
        max_depth: int,
        candidates: int,
        min_match: int,
        trust: list[float],
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]: ...
    def size(self) -> int: ...
    def contains(self, request: int) -> bool: ...
    def list(self) -> list[tuple[int, str, int, bool]]: ...
    def read(self, request: int, out: int) -> None: ...
    def bytes(self) -> int: ...

def instruction_set() -> str: ...
def exp2(isa: str, x: int, out: int, n: int) -> None: ...
def exponential(word: int) -> float: ...
def race(
    isa: str, x: int, n: int, max: float, seed: int, position: int, purpose: int
) -> tuple[float, float, int]: ...
