# SPDX-License-Identifier: Apache-2.0
"""The native core, built from csrc/. Pointers are addresses of memory that outlives the call, 0 = null."""

from collections.abc import Sequence
from enum import IntEnum

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

class SamplingArgs:
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

class Bitmask:
    fields: tuple[str, ...]
    def __init__(
        self,
        *,
        words: int,
        stride: int,
    ) -> None: ...

class VerifyArgs:
    fields: tuple[str, ...]
    def __init__(
        self,
        *,
        target: Rows,
        target_rows: int,
        rows_end_early: bool,
        tokens: int,
        parents: int,
        cu_nodes: int,
        proposals: int,
        first_child: int,
        next_sibling: int,
        rows: int,
        requests: int,
        draft: Rows,
        draft_rows: int,
        draft_chain: int,
        draft_ids: int,
        draft_columns: int,
        draft_is_logprobs: bool,
        draft_is_probs: bool,
        sampling: SamplingArgs,
        draft_sampling: SamplingArgs,
        rule: Rule,
        rule_values: list[float],
        seeds: int,
        positions: int,
        bitmask: Bitmask,
        bonus_tokens: int,
        bonus_is_int32: bool,
        width: int,
        out_tokens: int,
        out_tokens_are_int32: bool,
        out_num_tokens: int,
        out_num_accepted: int,
        out_path: int,
        out_logprobs: int,
        out_status: int,
        trace_thresholds: int,
        trace_masses: int,
    ) -> None: ...

class SampleArgs:
    fields: tuple[str, ...]
    def __init__(
        self,
        *,
        logits: Rows,
        sampling: SamplingArgs,
        seeds: int,
        positions: int,
        bitmask: Bitmask,
        out_tokens: int,
        out_logprobs: int,
    ) -> None: ...

class ChildrenArgs:
    fields: tuple[str, ...]
    def __init__(
        self,
        *,
        logits: Rows,
        k: int,
        method: Method,
        sampling: SamplingArgs,
        seeds: int,
        positions: int,
        nodes: int,
        purpose: Purpose,
        out_tokens: int,
        out_scores: int,
    ) -> None: ...

class NgramArgs:
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

class NgramDraftArgs:
    fields: tuple[str, ...]
    def __init__(
        self,
        *,
        search: NgramArgs,
        frequent: bool,
        num_draft: int,
        out: int,
    ) -> None: ...

class NgramTreeArgs:
    fields: tuple[str, ...]
    def __init__(
        self,
        *,
        search: NgramArgs,
        max_depth: int,
        branches: int,
        max_nodes: int,
        trust: list[float],
        out_tokens: int,
        out_parents: int,
        out_scores: int,
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

class AttentionArgs:
    fields: tuple[str, ...]
    def __init__(
        self,
        *,
        query: HeadRows,
        new_key: HeadRows,
        new_value: HeadRows,
        key: HeadCache,
        value: HeadCache,
        rows: int,
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

class CommitArgs:
    fields: tuple[str, ...]
    def __init__(
        self,
        *,
        caches: int,
        fresh: int,
        cache_count: int,
        paths: Paths,
        block_table: int,
        pages_per_request: int,
        prefix_lens: int,
        page_size: int,
        out_lengths: int,
        out_pages_kept: int,
    ) -> None: ...

class Commits:
    fields: tuple[str, ...]
    def __init__(
        self,
        *,
        paths: Paths,
        slots: int,
    ) -> None: ...

class StateRows:
    fields: tuple[str, ...]
    def __init__(
        self,
        *,
        address: int,
        slots: int,
        slot_stride: int,
        row_bytes: int,
    ) -> None: ...

class Snapshots:
    fields: tuple[str, ...]
    def __init__(
        self,
        *,
        address: int,
        row_stride: int,
    ) -> None: ...

class Windows:
    fields: tuple[str, ...]
    def __init__(
        self,
        *,
        address: int,
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
        address: int,
        row_stride: int,
        channel_stride: int,
    ) -> None: ...

class Matrices:
    fields: tuple[str, ...]
    def __init__(
        self,
        *,
        address: int,
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
        address: int,
        dtype: DType,
        heads: int,
        size: int,
        row_stride: int,
        head_stride: int,
    ) -> None: ...

def verify(args: VerifyArgs, threads: int) -> None: ...
def sample(args: SampleArgs, threads: int) -> None: ...
def sample_children(args: ChildrenArgs, threads: int) -> None: ...
def ngram_draft(args: NgramDraftArgs, threads: int) -> None: ...
def ngram_tree(args: NgramTreeArgs, threads: int) -> None: ...
def tree_attention(args: AttentionArgs, threads: int) -> None: ...
def commit_kv(args: CommitArgs, threads: int) -> None: ...
def commit_state(
    commits: Commits, states: Sequence[StateRows], snapshots: Sequence[Snapshots], threads: int
) -> None: ...
def replay_conv(
    commits: Commits, windows: Sequence[Windows], inputs: Sequence[WindowInputs], threads: int
) -> None: ...
def replay_gated_delta(
    commits: Commits, states: Sequence[Matrices], inputs: Sequence[Sequence[NodeInputs]], threads: int
) -> None: ...
def replay_mamba2(
    commits: Commits, states: Sequence[Matrices], inputs: Sequence[Sequence[NodeInputs]], threads: int
) -> None: ...
def instruction_set() -> str: ...
def exp2(isa: str, x: int, out: int, n: int) -> None: ...
def exponential(word: int) -> float: ...
def race(
    isa: str, x: int, n: int, max: float, seed: int, position: int, purpose: Purpose
) -> tuple[float, float, int]: ...
