"""A whole speculative decoding loop for causal language models of the transformers library."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .acceptance import AcceptanceStats
from .commit import commit_kv
from .errors import INTEGERS, bad_type, bad_value, check_dtype, check_shape
from .module import SpeculativeVerifier
from .rules import Rule
from .sampling import SamplingParams
from .tree import DraftTree, Proposal

# From the texts [B, L] and their lengths [B] to drafts: tokens [B, K], -1 where there is none; or a tree; or
# a tree and its draft logits.
Drafter = Callable[[Tensor, Tensor], "Tensor | DraftTree | tuple[DraftTree, Tensor]"]


class Generated(NamedTuple):
    """What `generate` wrote.

    Attributes:
        tokens: of each request, in order, without its prompt.
        statistics: of all its steps.
    """

    tokens: list[list[int]]
    statistics: AcceptanceStats


@torch.inference_mode()
def generate(
    target: Any,
    drafter: Drafter,
    input_ids: Tensor | Sequence[Sequence[int]],
    *,
    attention_mask: Tensor | None = None,
    max_new_tokens: int = 128,
    stop_tokens: Collection[int] = (),
    sampling: SamplingParams = SamplingParams(),  # noqa: B008  a tuple: it cannot change
    draft_sampling: SamplingParams | str | None = None,
    rule: Rule = "auto",
    seeds: Tensor | int | None = None,
    on_tokens: Callable[[int, list[int]], object] | None = None,
    backend: str = "auto",
) -> Generated:
    """Write text by drafting, one forward of the target over all drafts, verification and committing.

    A step gives one token or more to every request that runs; a request leaves at a stop token or at its
    length. The target's own key-value cache is used: a layer holds [B, heads, L, D], of which request b has
    filled its first slots; accepted rows are moved there and the rest is cut off.

    Args:
        target: a causal language model, called as `target(ids, attention_mask=, position_ids=,
            past_key_values=, use_cache=True)`, whose cache has `layers` with `keys` and `values` of every
            position. Drafts that are trees, and batches, need an attention that takes a mask of its own
            ("sdpa" or "eager").
        drafter: called with the texts so far, [B, L] int64, and their lengths [B]; entries from a text's
            length on are undefined. Returns tokens [B, K] with -1 for none (chains of `Proposal.POINT`), or
            a `DraftTree` over the texts' last tokens, or a tree and its `draft_logits`.
        input_ids: the prompts, [B, L] or a list of lists.
        attention_mask: [B, L], 0 where `input_ids` is padding, on either side.
        max_new_tokens: of each request, >= 1.
        stop_tokens: each ends a request; it is the last token of its text.
        sampling, draft_sampling, rule, backend: as for `verify`.
        seeds: [B] int64, or the first of B consecutive ones; default: fresh ones. Under `rule="match"` the
            text is a function of prompt and seed, whatever is drafted.
        on_tokens: called with a request's index and its new tokens after every step.

    Returns:
        The texts and what was accepted.

    Raises:
        ValueError: wrong shapes or numbers; a cache or an attention that cannot be served.
        TypeError: wrong dtypes.

    Notes:
        Synchronises with the device once a step, to know which requests go on.

    Source: Leviathan et al. 2023, Chen et al. 2023 (the loop); Miao et al. 2024 (trees).

    Example:
        `generate(model, partial(ngram_draft, num_draft=8), ids, sampling=SamplingParams(temperature=0.0))`
        writes what the model's own greedy decoding writes.
    """
    device = next(target.parameters()).device
    prompts = _prompts(input_ids, attention_mask)
    if max_new_tokens < 1:
        bad_value("generate", "max_new_tokens", "must be >= 1", max_new_tokens)
    verifier = SpeculativeVerifier(rule=rule, draft_sampling=draft_sampling, backend=backend).to(device)
    batch = _Batch(target, prompts, max_new_tokens, _seeds(seeds, len(prompts)), sampling, device)
    written: list[list[int]] = [[] for _ in prompts]
    while batch.requests:
        most = max_new_tokens - min(len(written[request]) for request in batch.requests)
        tree, draft_logits = _drafts(drafter(batch.text, batch.lengths), batch, most - 1)
        logits = batch.forward(tree)
        verified = verifier(
            logits,
            tree,
            draft_logits,
            sampling=batch.sampling,
            seeds=batch.seeds,
            positions=batch.lengths,
        )
        batch.commit(verified.path, tree)
        stay = []
        for place, (request, row, count) in enumerate(
            zip(batch.requests, verified.tokens.tolist(), verified.num_tokens.tolist(), strict=True)
        ):
            tokens = row[: min(count, max_new_tokens - len(written[request]))]
            stop = next((i for i, token in enumerate(tokens) if token in stop_tokens), None)
            tokens = tokens if stop is None else tokens[: stop + 1]
            written[request] += tokens
            if on_tokens is not None:
                on_tokens(request, tokens)
            if stop is None and len(written[request]) < max_new_tokens:
                stay.append(place)
        batch.append(verified.tokens, verified.num_tokens)
        batch.keep(stay)
    return Generated(written, verifier.statistics())


class _Batch:
    """The requests that run: their texts, and the target's cache, which holds all but a text's last token."""

    def __init__(
        self,
        target: Any,
        prompts: list[list[int]],
        max_new_tokens: int,
        seeds: Tensor,
        sampling: SamplingParams,
        device: torch.device,
    ) -> None:
        self.target = target
        self.requests = list(range(len(prompts)))
        self.seeds = seeds.to(device)
        self.sampling = sampling
        lengths = [len(prompt) for prompt in prompts]
        self.text = torch.zeros(len(prompts), max(lengths), dtype=torch.int64, device=device)
        for row, prompt in zip(self.text, prompts, strict=True):
            row[: len(prompt)] = torch.tensor(prompt)
        self.lengths = torch.tensor(lengths, device=device)
        self.shortest, self.longest = min(lengths) - 1, max(lengths) - 1  # of the cached prefixes
        self.vocab_size = target.get_input_embeddings().num_embeddings
        self.cache = None
        if self.longest > 0:  # what stands behind a short prompt is not seen by it, and later not by anybody
            out = target(self.text[:, :-1], use_cache=True, logits_to_keep=1)
            self._adopt(out.past_key_values)

    def forward(self, tree: DraftTree) -> Tensor:
        """The target's logits [R, V] at the nodes of the trees."""
        index = torch.arange(tree.max_nodes, device=self.text.device)
        rows = tree.cu_nodes[:-1, None].long() + index
        there = rows < tree.cu_nodes[1:, None]
        rows = rows.clamp_max(tree.tokens.numel() - 1)
        ids = torch.where(there, tree.tokens[rows], 0).clamp(0, self.vocab_size - 1)
        ids[:, :1] = self.text.gather(1, self.lengths[:, None] - 1)
        places = self.lengths[:, None] - 1 + torch.where(there, tree.depths[rows], 0)
        chains = (tree.parents[rows] == index - 1) | ~there
        mask = None
        if self.shortest != self.longest or not chains.all():
            mask = self._mask(tree, rows, there)
        out = self.target(
            ids, attention_mask=mask, position_ids=places, past_key_values=self.cache, use_cache=True
        )
        self._adopt(out.past_key_values)
        return out.logits[self._places(tree)]

    def commit(self, path: Tensor, tree: DraftTree) -> None:
        """Accepted rows of the cache follow their prefixes; the longest text says where the cache ends."""
        prefix, tensors = self.longest, [t for layer in self.cache.layers for t in (layer.keys, layer.values)]
        new = None
        if self.shortest != self.longest:
            request, node = self._places(tree)
            new = [tensor[request, :, prefix + node] for tensor in tensors]
        committed = commit_kv(
            tensors,
            path,
            tree,
            torch.arange(len(self.requests), dtype=torch.int32, device=path.device)[:, None],
            (self.lengths - 1).int(),
            page_size=tensors[0].shape[2],
            layout="HND",
            new=new,
        )
        self._cut(committed.lengths)

    def append(self, tokens: Tensor, counts: Tensor) -> None:
        """Put new tokens behind the texts."""
        room = int(self.longest) + 1 + tokens.shape[1] - self.text.shape[1]
        if room > 0:
            self.text = torch.nn.functional.pad(self.text, (0, 2 * room + self.text.shape[1] // 2))
        places = self.lengths[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        new = torch.arange(tokens.shape[1], device=tokens.device) < counts[:, None]
        self.text.scatter_(1, places, torch.where(new, tokens, self.text.gather(1, places)))
        self.lengths = self.lengths + counts

    def keep(self, places: list[int]) -> None:
        """Let all other requests go."""
        if len(places) == len(self.requests):
            return
        self.requests = [self.requests[place] for place in places]
        if not places:
            return
        index = torch.tensor(places, device=self.text.device)
        self.text, self.lengths, self.seeds = self.text[index], self.lengths[index], self.seeds[index]
        self.sampling = SamplingParams(
            *(value[index] if isinstance(value, Tensor) and value.dim() else value for value in self.sampling)
        )
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[index], layer.values[index]
        self._cut(self.lengths - 1)

    def _cut(self, cached: Tensor) -> None:
        self.shortest, self.longest = torch.stack([cached.min(), cached.max()]).tolist()
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[:, :, : self.longest], layer.values[:, :, : self.longest]

    def _mask(self, tree: DraftTree, rows: Tensor, there: Tensor) -> Tensor:
        """What each node sees of [prefix slots, nodes], as an additive mask [B, 1, N, L + N]."""
        kind = getattr(self.target.config, "_attn_implementation", "sdpa")
        if kind not in ("sdpa", "eager"):
            bad_value("generate", "target", "must attend by sdpa | eager for trees and batches", kind)
        nodes = rows.shape[1]
        prefix = torch.arange(self.longest, device=rows.device) < self.lengths[:, None] - 1
        index = torch.arange(nodes, device=rows.device)
        bits = tree.ancestor_bits[rows][..., index // 64] >> (index % 64) & 1
        own = index[:, None] == index  # a row that is no node sees itself, so that it has something to see
        seen = torch.where(there[..., None], bits.bool(), own)
        seen = torch.cat([prefix[:, None].expand(-1, nodes, -1), seen], -1)[:, None]
        dtype = self.target.dtype
        return torch.zeros(seen.shape, dtype=dtype, device=rows.device).masked_fill_(
            ~seen, torch.finfo(dtype).min
        )

    def _places(self, tree: DraftTree) -> tuple[Tensor, Tensor]:
        """Request and node of every row of the trees; rows of no request share the last one's."""
        request, node = tree._owners
        return request.clamp_max(len(self.requests) - 1), node.clamp(0, tree.max_nodes - 1)

    def _adopt(self, cache: Any) -> None:
        """Keep the target's cache, provided that it is one."""
        for number, layer in enumerate(getattr(cache, "layers", [None])):
            keys = getattr(layer, "keys", None)
            if not isinstance(keys, Tensor) or keys.dim() != 4 or getattr(layer, "is_sliding", False):
                rule = "must keep keys [B, heads, L, D] of every position in every layer of its cache"
                bad_value("generate", "target", rule, f"{type(layer).__name__} in layer {number}")
        self.cache = cache


def _prompts(input_ids: Tensor | Sequence[Sequence[int]], attention_mask: Tensor | None) -> list[list[int]]:
    if isinstance(input_ids, Tensor):
        check_dtype("generate", "input_ids", input_ids, INTEGERS)
        if input_ids.dim() != 2:
            bad_value("generate", "input_ids", "must have shape [B, L]", list(input_ids.shape))
        kept = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        check_shape("generate", "attention_mask", kept, "[B, L]", input_ids.shape)
        prompts = [row[keep != 0].tolist() for row, keep in zip(input_ids, kept, strict=True)]
    elif attention_mask is not None:
        bad_value("generate", "attention_mask", "must be None for prompts in a list", "a mask")
    else:
        prompts = [list(prompt) for prompt in input_ids]
    if not prompts or not all(prompts):
        bad_value(
            "generate", "input_ids", "must hold prompts of one token or more", [len(p) for p in prompts]
        )
    return prompts


def _seeds(seeds: Tensor | int | None, batch: int) -> Tensor:
    if seeds is None:
        return torch.randint(-(2**63), 2**63 - 1, (batch,))
    if isinstance(seeds, int):
        return torch.arange(seeds, seeds + batch)
    check_dtype("generate", "seeds", seeds, (torch.int64,))
    check_shape("generate", "seeds", seeds, "[B]", (batch,))
    return seeds


def _drafts(drafted: Any, batch: _Batch, most: int) -> tuple[DraftTree, Tensor | None]:
    """The drafter's answer as a tree; chains no longer than any request can use."""
    if isinstance(drafted, DraftTree):
        drafted = (drafted, None)
    if isinstance(drafted, tuple):
        tree, draft_logits = drafted
        check_shape("generate", "the drafter's tree", tree.cu_nodes, "[B + 1]", (len(batch.requests) + 1,))
        return tree, draft_logits
    if not isinstance(drafted, Tensor):
        rule = "must return tokens [B, K], a DraftTree, or a DraftTree and its draft_logits"
        bad_type("generate", "drafter", rule, type(drafted).__name__)
    if drafted.dim() != 2 or drafted.shape[0] != len(batch.requests):
        rule = f"must return tokens [B, K], B = {len(batch.requests)}"
        bad_value("generate", "drafter", rule, list(drafted.shape))
    drafted = drafted[:, :most]
    used = int((drafted >= 0).cummin(1).values.any(0).sum()) if drafted.shape[1] else 0
    return DraftTree.chain(drafted[:, :used], proposal=Proposal.POINT), None
