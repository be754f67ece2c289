# SPDX-License-Identifier: Apache-2.0
"""Others' kernels, for the same inputs. They are timed where they can be imported, and named where not. The
softmax of the target's rows, which most need, is part of their time; the draft's law is given to them."""

from __future__ import annotations

import inspect
import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import specdec_kernels as sdk

from .. import peers
from ..inputs import Workload
from .device import Call
from .timing import Peer

WORKSPACE = 256 << 20  # bytes that FlashInfer asks for


class Chain:
    """A batch of chains as others take it."""

    def __init__(self, sampling: sdk.SamplingParams, target: Tensor, draft: Tensor, tokens: Tensor):
        batch, depth, vocab = draft.shape
        top_k, top_p = int(sampling.top_k), float(sampling.top_p)
        self.temperature = float(sampling.temperature)
        self.case = Workload(batch, depth, vocab, temperature=self.temperature, top_k=top_k, top_p=top_p)
        self.target, self.draft, self.tokens = target, draft, tokens[None]

    @property
    def drafted(self) -> Tensor:
        return self.tokens[0, :, 1:]

    @property
    def probs(self) -> Tensor:
        return torch.softmax(self.draft.float() / self.temperature, -1)

    def laws(self) -> Tensor:
        """What a caller computes before: probabilities of every row of the target, float32."""
        return torch.softmax(self.target.float() / self.temperature, -1)


def chain_peers(sampling: sdk.SamplingParams, target: Tensor, draft: Tensor, tokens: Tensor) -> list[Peer]:
    """Of the token rule. With cuts only those that cut themselves."""
    chain = Chain(sampling, target, draft, tokens)
    if chain.case.filtered:
        way = peers.topk_filter if chain.case.top_k else peers.sort_filter
        found = [Peer(f"torch, {way.__name__}", partial(_eager, way, chain))]
        return found if chain.case.top_k else []
    return [
        *(Peer(f"torch, {way.__name__}", partial(_eager, way, chain)) for way in (peers.plain, peers.lean)),
        Peer("FlashInfer", partial(flashinfer_chain, chain), "flashinfer"),
        Peer("vLLM", partial(vllm_chain, chain), "vllm"),
        Peer("SGLang", partial(sglang_chain, chain), "sgl_kernel"),
    ]


def _eager(way: Any, chain: Chain) -> Call:
    given = SimpleNamespace(case=chain.case, target=chain.target, tokens=chain.tokens, probs=chain.probs)
    return partial(way(given), 0)


def flashinfer_chain(chain: Chain) -> Call:
    from flashinfer.sampling import chain_speculative_sampling

    probs, drafted = chain.probs, chain.drafted.int().contiguous()
    return lambda: chain_speculative_sampling(probs, drafted, chain.laws())


def vllm_chain(chain: Chain) -> Call:
    from vllm.v1.sample.rejection_sampler import rejection_sample

    batch, depth = chain.drafted.shape
    ends = torch.arange(1, batch + 1, dtype=torch.int32) * depth
    probs, drafted = chain.probs.flatten(0, 1), chain.drafted.flatten().int()
    temperature = torch.full((batch,), chain.temperature)
    options = SimpleNamespace(all_greedy=False, all_random=True, temperature=temperature, generators={})

    def run() -> Tensor:
        laws = chain.laws()
        bonus = torch.multinomial(laws[:, depth], 1).int()
        target = laws[:, :depth].flatten(0, 1)
        return rejection_sample(drafted, [depth] * batch, depth, ends, probs, target, bonus, options)

    return run


def sglang_chain(chain: Chain) -> Call:
    from sgl_kernel import tree_speculative_sampling_target_only

    batch, nodes = chain.tokens[0].shape
    index = torch.arange(batch * nodes).view(batch, nodes)
    following = torch.arange(1, nodes + 1).repeat(batch, 1)
    following[:, -1] = -1
    siblings = torch.full((batch, nodes), -1)
    predicts = torch.empty(batch * nodes, dtype=torch.int32)
    accepted = torch.empty(batch, nodes, dtype=torch.int32)
    count = torch.empty(batch, dtype=torch.int32)
    drafted = torch.zeros_like(chain.target, dtype=torch.float32)  # which has as many rows as the target
    drafted[:, :-1] = chain.probs

    first = (predicts, accepted, count, chain.tokens[0], index, following, siblings)
    takes_draft = "draft_probs" in inspect.signature(tree_speculative_sampling_target_only).parameters
    last_ones = (*(drafted,) * takes_draft, 1.0, 1.0, True)  # newer releases read the target's law alone

    def run() -> None:
        coins, last = torch.rand(batch, nodes), torch.rand(batch)
        tree_speculative_sampling_target_only(*first, coins, last, chain.laws(), *last_ones)

    return run


def sample_peers(sampling: sdk.SamplingParams, logits: Tensor) -> list[Peer]:
    """All that draws a token from rows of logits."""
    ways = (("torch", sample_by_torch, "torch"), ("FlashInfer", flashinfer_sample, "flashinfer"))
    ways += (("vLLM", vllm_sample, "vllm"),)
    return [Peer(name, partial(way, sampling, logits), needs) for name, way, needs in ways]


def sample_by_torch(sampling: sdk.SamplingParams, logits: Tensor) -> Call:
    """With a race; top-p of what top-k kept, or of a whole sorted row."""
    top_k, top_p = int(sampling.top_k) or logits.shape[-1], float(sampling.top_p)

    def run() -> Tensor:
        scaled = logits.float() / float(sampling.temperature)
        if top_k == scaled.shape[-1] and top_p == 1.0:
            return _race(torch.softmax(scaled, -1))
        largest, tokens = scaled.topk(top_k, -1) if sampling.top_k else scaled.sort(-1, descending=True)
        law = torch.softmax(largest, -1)
        law = law.masked_fill(law.cumsum(-1) - law >= top_p, 0.0)
        return tokens.gather(-1, _race(law)[:, None])

    return run


def _race(law: Tensor) -> Tensor:
    return (law / torch.empty_like(law).exponential_()).argmax(-1)


def flashinfer_sample(sampling: sdk.SamplingParams, logits: Tensor) -> Call:
    from flashinfer import sampling as other

    top_k, top_p, temperature = int(sampling.top_k), float(sampling.top_p), float(sampling.temperature)

    def run() -> Tensor:
        scaled = logits.float() / temperature
        if top_k:
            return other.top_k_top_p_sampling_from_logits(scaled, top_k, top_p)
        law = torch.softmax(scaled, -1)
        return other.top_p_sampling_from_probs(law, top_p) if top_p < 1 else other.sampling_from_probs(law)

    return run


def vllm_sample(sampling: sdk.SamplingParams, logits: Tensor) -> Call:
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

    rows = len(logits)
    top_k = torch.full((rows,), int(sampling.top_k), dtype=torch.int32) if sampling.top_k else None
    top_p = torch.full((rows,), float(sampling.top_p)) if float(sampling.top_p) < 1 else None

    def run() -> Tensor:
        kept = apply_top_k_top_p(logits.float() / float(sampling.temperature), top_k, top_p)
        return _race(torch.softmax(kept, -1))

    return run


def attention_peers(
    query: Tensor, key: Tensor, value: Tensor, tree: sdk.DraftTree, table: Tensor, prefix: int
) -> list[Peer]:
    """PyTorch gathers pages outside of its time."""
    given = (query, key, value, tree, table, prefix)
    return [
        Peer("torch, sdpa", partial(sdpa, *given)),
        Peer("FlashInfer", partial(flashinfer_attention, *given), "flashinfer"),
    ]


def seen(tree: sdk.DraftTree, prefix: int) -> Tensor:
    """[N, prefix + N]: what the nodes of the first request see; all requests have the same tree."""
    nodes = tree.max_nodes
    parents = tree.parents[:nodes].tolist()
    mask = torch.zeros(nodes, prefix + nodes, dtype=torch.bool, device="cpu")
    mask[:, :prefix] = True
    for node, parent in enumerate(parents):
        if parent >= 0:
            mask[node, prefix:] = mask[parent, prefix:]
        mask[node, prefix + node] = True
    return mask.to(tree.parents.device)


def sdpa(query: Tensor, key: Tensor, value: Tensor, tree: sdk.DraftTree, table: Tensor, prefix: int) -> Call:
    batch, nodes, group = len(table), tree.max_nodes, query.shape[1] // key.shape[2]
    split = query.view(batch, nodes, key.shape[2], group, -1).permute(0, 2, 3, 1, 4).flatten(2, 3)
    rows = split.contiguous()
    keys, values = (
        pool[table.long()].flatten(1, 2)[:, : prefix + nodes].transpose(1, 2).contiguous()
        for pool in (key, value)
    )
    hidden = torch.zeros(nodes, prefix + nodes, dtype=query.dtype).masked_fill(~seen(tree, prefix), -math.inf)
    mask = hidden.repeat(group, 1) if nodes > 1 else None
    return lambda: torch.nn.functional.scaled_dot_product_attention(rows, keys, values, attn_mask=mask)


def flashinfer_attention(
    query: Tensor, key: Tensor, value: Tensor, tree: sdk.DraftTree, table: Tensor, prefix: int
) -> Call:
    from flashinfer import BatchPrefillWithPagedKVCacheWrapper

    (batch, width), nodes, page = table.shape, tree.max_nodes, key.shape[1]
    wrapper = BatchPrefillWithPagedKVCacheWrapper(torch.empty(WORKSPACE, dtype=torch.uint8), "NHD")
    begins = torch.arange(batch + 1, dtype=torch.int32)
    last = torch.full((batch,), (prefix + nodes - 1) % page + 1, dtype=torch.int32)
    wrapper.plan(
        begins * nodes,
        begins * width,
        table.flatten(),
        last,
        query.shape[1],
        key.shape[2],
        query.shape[2],
        page,
        custom_mask=seen(tree, prefix).flatten().repeat(batch) if nodes > 1 else None,
        q_data_type=query.dtype,
    )
    return lambda: wrapper.run(query, (key, value))
