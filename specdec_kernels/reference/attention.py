# SPDX-License-Identifier: Apache-2.0
"""Attention over the draft tree, node by node."""

from __future__ import annotations

import torch
from torch import Tensor

from .._ops.calls import TreeAttentionCall


def tree_attention(call: TreeAttentionCall) -> None:
    """Fill the outputs, request by request."""
    stored_key = _Cache(call.key_cache, call.heads_first, call.key_scale, call.key_scales)
    stored_value, new_value = stored_key, call.new_key  # the values are the first elements of the keys
    if call.value_cache is not None:
        stored_value = _Cache(call.value_cache, call.heads_first, call.value_scale, call.value_scales)
        new_value = call.new_value
    query, heads = call.query, stored_key.heads
    query_heads = query.shape[1]
    logits_of_sinks = torch.full((query_heads,), -torch.inf) if call.sinks is None else call.sinks.cpu()
    longest = min(call.max_prefix_len, call.block_table.shape[1] * stored_key.page_size)
    call.out.zero_()
    if call.out_lse is not None:
        call.out_lse.fill_(-torch.inf)
    start = 0
    for b in range(call.cu_nodes.shape[0] - 1):
        start = min(max(int(call.cu_nodes[b]), start), query.shape[0])
        stop = min(max(int(call.cu_nodes[b + 1]), start), query.shape[0])
        prefix = min(max(int(call.prefix_lens[b]), 0), longest)
        paths = _paths(call.parents[start:stop].tolist())
        pages = call.block_table[b].tolist()
        for i, path in enumerate(paths):
            position = prefix + len(path) - 1
            first = max(position - call.window + 1, 0) if call.window > 0 else 0
            nodes = path[max(first - prefix, 0) :]
            slots = list(range(first, prefix))
            if call.new_key is None:
                slots += [prefix + node for node in nodes]
            key, value = stored_key.read(pages, slots), stored_value.read(pages, slots)
            if call.new_key is not None and new_value is not None:
                rows = [start + node for node in nodes]
                key = torch.cat([key, call.new_key[rows].cpu().double()])
                value = torch.cat([value, new_value[rows].cpu().double()])
            key = key.repeat_interleave(query_heads // heads, 1)
            value = value[..., : call.value_dim].repeat_interleave(query_heads // heads, 1)
            scores = torch.einsum("hd,jhd->jh", query[start + i].cpu().double(), key) * call.scale
            if call.softcap > 0:
                scores = call.softcap * torch.tanh(scores / call.softcap)
            with_sink = torch.cat([scores, logits_of_sinks.double().unsqueeze(0)])
            lse = torch.logsumexp(with_sink, 0)
            weights = torch.exp(scores - torch.where(lse == -torch.inf, 0.0, lse))
            call.out[start + i] = torch.einsum("jh,jhd->hd", weights, value)
            if call.out_lse is not None:
                call.out_lse[start + i] = lse


class _Cache:
    """A paged cache as [page, slot, head, element], and its scales."""

    def __init__(self, cache: Tensor, heads_first: bool, scale: float, scales: Tensor | None) -> None:
        self.cache = cache.transpose(1, 2) if heads_first else cache
        _, self.page_size, self.heads, _ = self.cache.shape
        self.scale = torch.full((self.heads,), scale) if scales is None else scales.cpu()

    def read(self, pages: list[int], slots: list[int]) -> Tensor:
        """Rows [len, heads, element] of the slots; slots without a valid page are left out."""
        held = [s for s in slots if s // self.page_size < len(pages)]
        held = [s for s in held if 0 <= pages[s // self.page_size] < self.cache.shape[0]]
        page = torch.tensor([pages[s // self.page_size] for s in held], dtype=torch.int64)
        slot = torch.tensor([s % self.page_size for s in held], dtype=torch.int64)
        stored = self.cache.view(torch.uint8) if self.cache.element_size() == 1 else self.cache  # float8
        rows = stored[page.to(stored.device), slot.to(stored.device)].cpu().view(self.cache.dtype)
        return rows.double() * self.scale.double().unsqueeze(-1)


def _paths(parents: list[int]) -> list[list[int]]:
    """The nodes from the root to each node; a node without a valid parent is a root."""
    paths: list[list[int]] = []
    for node, parent in enumerate(parents):
        paths.append([*(paths[parent] if 0 <= parent < node else []), node])
    return paths
