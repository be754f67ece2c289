# SPDX-License-Identifier: Apache-2.0
"""The operators as PyTorch sees them: schemas, fakes, and the hand-over to a backend.

Each operation is one operator that fills tensors its caller allocated, so it has no shapes to infer: the
fakes are empty. Backends are modules with a function per operation, which takes the operator's arguments less
`backend`.

Conventions of the arguments:

- `target_logits` is [R, V] or [B, N, V], `draft_logits` [Rq, Vd] or [B, K, Vd], as the user gave them: any
  strides, the last being 1. `draft_rows` None: row r for node row r; of 3-D draft logits the row of node i of
  request b is `draft_logits[b, i]`, the last node having none.
- `first_child` and `next_sibling` come together, and only where the sibling order may differ from index
  order.
- `sampling` is (temperature, top_k, top_p, min_p, 1 for min-p last or 0 for min-p first), and `sampling_rows`
  the first four as [B] tensors where they are given per request; an empty list if none is. The same for the
  draft.
- `rule` is "match", "token", "traversal" or the name of a lossy rule, whose numbers are `rule_values`.
- Caches are paged, [pages, page_size, Hkv, D], or with `heads_first` [pages, Hkv, page_size, D]; without a
  `value_cache` the values are the first `value_dim` elements of the keys. `window` and `softcap` are 0 where
  there is none. `key_scales` and `value_scales` [Hkv] stand in for the one number where they are given.
- Operations on caches and states move bytes, so a backend is chosen by `path`, whose dtype never varies.
  `path` is [B, max_depth + 1], `rows` is R. `table` is `cache_table` of `caches` or None; a tracer may pass
  copies of the caches, so a backend compares the addresses first. `new` is empty or one tensor per cache.
- One-dimensional arguments are contiguous; so are outputs, which hold anything; a backend writes every
  element.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from . import backends

VERIFY = """verify(
    Tensor target_logits, Tensor tokens, Tensor parents, Tensor cu_nodes, Tensor proposals,
    Tensor? first_child, Tensor? next_sibling,
    Tensor? draft_logits, Tensor? draft_rows, Tensor? draft_ids, Tensor? draft_columns,
    float[] sampling, Tensor?[] sampling_rows,
    float[] draft_sampling, Tensor?[] draft_sampling_rows, bool draft_is_logprobs,
    str rule, float[] rule_values, Tensor seeds, Tensor positions, Tensor? token_bitmask,
    Tensor(a!) out_tokens, Tensor(b!) out_num_tokens, Tensor(c!) out_num_accepted, Tensor(d!) out_path,
    Tensor(e!)? out_logprobs, Tensor(f!) out_status, str backend) -> ()"""

SAMPLE = """sample(
    Tensor logits, float[] sampling, Tensor?[] sampling_rows, Tensor seeds, Tensor positions,
    Tensor? token_bitmask, Tensor(a!) out_tokens, Tensor(b!)? out_logprobs, str backend) -> ()"""

SAMPLE_CHILDREN = """sample_children(
    Tensor logits, str method, float[] sampling, Tensor?[] sampling_rows,
    Tensor seeds, Tensor positions, Tensor nodes, int purpose,
    Tensor(a!) out_tokens, Tensor(b!) out_scores, str backend) -> ()"""

NGRAM_DRAFT = """ngram_draft(
    Tensor tokens, Tensor lengths, int min_ngram, int max_ngram, bool frequent, bool cyclic,
    Tensor(a!) out, str backend) -> ()"""

NGRAM_TREE = """ngram_tree(
    Tensor tokens, Tensor lengths, int max_depth, int branches, int min_ngram, int max_ngram,
    float[] trust, bool cyclic,
    Tensor(a!) out_tokens, Tensor(b!) out_parents, Tensor(c!) out_scores, str backend) -> ()"""

TREE_ATTENTION = """tree_attention(
    Tensor query, Tensor key_cache, Tensor? value_cache, Tensor parents, Tensor cu_nodes,
    Tensor block_table, Tensor prefix_lens, Tensor? new_key, Tensor? new_value,
    float scale, int window, float softcap, Tensor? sinks,
    float key_scale, Tensor? key_scales, float value_scale, Tensor? value_scales,
    int value_dim, SymInt max_prefix_len, bool heads_first, bool deterministic,
    Tensor(a!) out, Tensor(b!)? out_lse, str backend) -> ()"""

COMMIT_KV = """commit_kv(
    Tensor(a!)[] caches, Tensor? table, Tensor[] new, Tensor path, Tensor cu_nodes, int rows,
    Tensor block_table, Tensor prefix_lens, int page_size, str layout,
    Tensor(b!) out_lengths, Tensor(c!) out_pages_kept, str backend) -> ()"""

COMMIT_STATE = """commit_state(
    Tensor(a!)[] states, Tensor[] snapshots,
    Tensor path, Tensor cu_nodes, int rows, Tensor slots, str backend) -> ()"""

REPLAY_CONV = """replay_conv(
    Tensor(a!)[] windows, Tensor[] inputs,
    Tensor path, Tensor cu_nodes, int rows, Tensor slots, str backend) -> ()"""

REPLAY_GATED_DELTA = """replay_gated_delta(
    Tensor(a!)[] states, Tensor[] keys, Tensor[] values, Tensor[] log_decay, Tensor[] beta,
    Tensor path, Tensor cu_nodes, int rows, Tensor slots, str backend) -> ()"""

REPLAY_MAMBA2 = """replay_mamba2(
    Tensor(a!)[] states, Tensor[] x, Tensor[] B, Tensor[] dt, Tensor[] A,
    Tensor path, Tensor cu_nodes, int rows, Tensor slots, str backend) -> ()"""

_library = torch.library.Library("specdec_kernels", "DEF")


def _register(schema: str, rows: tuple[int, ...]) -> Callable[..., None]:
    """Define the operator of a schema; `rows` are the places of the tensors whose dtype a backend must
    serve. Returns what calls it.

    Eager calls on plain tensors go straight to the backend: in a decoding loop, where every call starts from
    cold caches, the way through the dispatcher costs as much as all checks of `verify` together. Whatever
    traces (`torch.compile`, dispatch modes, fake and meta tensors, other subclasses) meets the operator.
    """
    operation = schema.split("(", 1)[0]

    def serve(*args: object) -> None:
        *args, backend = args
        given = [args[place] for place in rows if args[place] is not None]
        given = [row for value in given for row in (value if isinstance(value, list) else [value])]
        module = backends.load(backend, operation, given[0].device.type, [row.dtype for row in given])
        getattr(module, operation)(*args)

    def fake(*args: object) -> None:
        return None

    _library.define(" ".join(schema.split()), tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(operation, serve, "CompositeExplicitAutograd")
    torch.library.register_fake(f"specdec_kernels::{operation}", fake, lib=_library)
    operator = getattr(torch.ops.specdec_kernels, operation).default

    def call(*args: object) -> None:
        values = [value for a in args for value in (a if isinstance(a, list) else [a])]
        plain = all(type(a) is Tensor and not a.is_meta for a in values if isinstance(a, Tensor))
        traced = torch.compiler.is_compiling() or is_in_torch_dispatch_mode()
        (serve if plain and not traced else operator)(*args)

    return call


verify = _register(VERIFY, rows=(0, 7))
sample = _register(SAMPLE, rows=(0,))
sample_children = _register(SAMPLE_CHILDREN, rows=(0,))
ngram_draft = _register(NGRAM_DRAFT, rows=(0,))
ngram_tree = _register(NGRAM_TREE, rows=(0,))
tree_attention = _register(TREE_ATTENTION, rows=(0, 1))
commit_kv = _register(COMMIT_KV, rows=(3,))
commit_state = _register(COMMIT_STATE, rows=(2,))
replay_conv = _register(REPLAY_CONV, rows=(2,))
replay_gated_delta = _register(REPLAY_GATED_DELTA, rows=(0, 1, 2, 3, 4))
replay_mamba2 = _register(REPLAY_MAMBA2, rows=(0, 1, 2, 3, 4))


def commit_kv_by_table(table: Tensor, *args: object) -> None:
    """`commit_kv` of a backend that works from the table alone, outside any tracer and past the dispatcher:
    to show it 64 caches takes as long as to move a small batch."""
    *args, backend = args
    backends.load(backend, "commit_kv", table.device.type, ()).commit_kv([], table, *args)
