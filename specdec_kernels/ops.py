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
- `sampling` is (temperature, top_k, top_p, min_p), and `sampling_rows` the same four as [B] tensors where
  they are given per request; an empty list if none is. The same for the draft.
- `rule` is "match", "token", "traversal" or the name of a lossy rule, whose numbers are `rule_values`.
- Caches are paged, [pages, page_size, Hkv, D], or with `heads_first` [pages, Hkv, page_size, D]; without a
  `value_cache` the values are the first `value_dim` elements of the keys. `window` and `softcap` are 0 where
  there is none. `key_scales` and `value_scales` [Hkv] stand in for the one number where they are given.
- One-dimensional arguments are contiguous; so are outputs, which hold anything; a backend writes every
  element.
"""

from __future__ import annotations

import torch

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

TREE_ATTENTION = """tree_attention(
    Tensor query, Tensor key_cache, Tensor? value_cache, Tensor parents, Tensor cu_nodes,
    Tensor block_table, Tensor prefix_lens, Tensor? new_key, Tensor? new_value,
    float scale, int window, float softcap, Tensor? sinks,
    float key_scale, Tensor? key_scales, float value_scale, Tensor? value_scales,
    int value_dim, SymInt max_prefix_len, bool heads_first, bool deterministic,
    Tensor(a!) out, Tensor(b!)? out_lse, str backend) -> ()"""

_library = torch.library.Library("specdec_kernels", "DEF")


def _register(schema: str, rows: tuple[int, ...]) -> None:
    """Define the operator of a schema; `rows`: places of tensors whose dtype a backend must serve."""
    operation = schema.split("(", 1)[0]

    def serve(*args: object) -> None:
        *args, backend = args
        given = [args[place] for place in rows if args[place] is not None]
        module = backends.load(backend, operation, given[0].device.type, [row.dtype for row in given])
        getattr(module, operation)(*args)

    def fake(*args: object) -> None:
        return None

    _library.define(" ".join(schema.split()), tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(operation, serve, "CompositeExplicitAutograd")
    torch.library.register_fake(f"specdec_kernels::{operation}", fake, lib=_library)


_register(VERIFY, rows=(0, 7))
_register(SAMPLE, rows=(0,))
_register(TREE_ATTENTION, rows=(0, 1))

verify = torch.ops.specdec_kernels.verify.default
sample = torch.ops.specdec_kernels.sample.default
tree_attention = torch.ops.specdec_kernels.tree_attention.default
