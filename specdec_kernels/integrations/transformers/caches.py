# SPDX-License-Identifier: Apache-2.0
"""The caches of the texts, which are committed after every step.

`Together` holds all requests in one cache of every position, whose rows `commit_kv` moves. `Alone` gives each
request its own cache, and after a rejection restores it as it was before the draft.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ...commit import commit_kv
from ...tree import DraftTree
from .layers import (
    KEPT,
    CachedText,
    assemble,
    common,
    crop,
    croppable,
    full_cache,
    is_filled,
    part,
    restored,
    snapshot,
)
from .model import Target

# Accepted tokens that the next forward reads again; more are read by a forward of their own.
MOST_PENDING = 16


class Read(NamedTuple):
    """The result of reading prompts."""

    rows: int
    """Number of rows of the forward; 0 if there was none, or more than one."""
    logits: Tensor | None = None
    """[B, V], at the last tokens; None if these were not read."""


class Together:
    """All requests in one forward. A layer keeps [B, heads, L, D], and the text of request b fills its first
    slots.

    Args:
        target: the model.
        trees: whether the loop makes the mask by which nodes see their ancestors; otherwise drafts are
            chains, and a mask [B, L + N] hides the slots between a request's text and its drafts.
    """

    def __init__(self, target: Target, *, trees: bool = True) -> None:
        self.target = target
        self.trees = trees
        self.cache: Any = full_cache(target)
        self.shortest: int = 0  # of the cached prefixes
        self.longest: int = 0
        self.ends: list[int] = []  # of those that `load` brought

    def read(
        self, text: Tensor, sizes: Sequence[int], chunk: int | None = None, *, last: bool = False
    ) -> Read:
        """Read all texts but their last tokens. With `last` read these too, if one row of logits suffices.

        Slots behind a short text are never seen.
        """
        if self.longest:
            return Read(self._read_on(text, sizes))
        last &= min(sizes) == max(sizes)
        end = max(sizes) - (not last)
        numbers = self.target.numbers(text[:, :end])
        logits = None
        for start in range(self.longest, end, chunk or max(end, 1)):
            stop = min(end, start + chunk) if chunk else end
            out = self.target(text[:, start:stop], cache=self.cache, positions=numbers[:, start:stop], keep=1)
            self.cache, logits = out.cache, out.logits[:, -1]
        self.shortest, self.longest = min(sizes) - (not last), end
        rows = len(sizes) * end if chunk is None or end <= chunk else 0
        return Read(rows, logits if last else None)

    def load(self, cached: Sequence[CachedText | None], texts: Sequence[Sequence[int]]) -> None:
        """Take over the tokens that an earlier call has read, as far as the texts still begin with them."""
        held = [
            None if entry is None or (parts := entry.parts) is None else entry._replace(state=parts)
            for entry in cached
        ]
        ends = [
            0 if entry is None else common(entry.tokens, text)
            for entry, text in zip(held, texts, strict=True)
        ]
        if not any(ends):
            return
        self.ends, self.shortest, self.longest = ends, min(ends), max(ends)
        assemble(self.cache, held, [0] * len(ends), ends)

    def export(self, place: int, tokens: list[int]) -> CachedText:
        """The cache of one text, of which `tokens` were read."""
        layers = [part(layer, place, 0, len(tokens)) for layer in self.cache.layers]
        return CachedText(tokens, layers, self.target.key)

    def _read_on(self, text: Tensor, sizes: Sequence[int]) -> int:
        """Read the tokens that `load` did not bring, as chains behind prefixes of different lengths."""
        ends = self.ends
        rest = [size - 1 - end for size, end in zip(sizes, ends, strict=True)]
        if not any(rest):
            return 0
        nodes = [max(count, 1) for count in rest]
        tokens = torch.cat(
            [row[end : end + count] for row, end, count in zip(text, ends, nodes, strict=True)]
        )
        cu_nodes = torch.tensor([0, *nodes], device=text.device).cumsum(0).int()
        tree = DraftTree.chain(tokens, cu_nodes=cu_nodes, max_nodes=max(nodes), check=False)
        lengths = torch.tensor(ends, device=text.device) + 1
        begun = [end + 1 for end in ends]
        self.forward(tree, text, lengths, begun, [range(-1, count - 1) for count in nodes])
        index = torch.arange(max(nodes), device=text.device)
        path = torch.where(index < torch.tensor(rest, device=text.device)[:, None], index, -1).int()
        self.commit(path, tree, lengths, begun, [list(range(count)) for count in rest])
        return tree.tokens.numel()

    def forward(
        self,
        tree: DraftTree,
        text: Tensor,
        lengths: Tensor,
        sizes: Sequence[int],
        parents: Sequence[Sequence[int]],
    ) -> Tensor:
        """The logits [R, V] at the nodes of the trees.

        Args:
            tree: drafts over the last tokens of the texts.
            text, lengths: [B, L] and [B] int64.
            sizes, parents: the lengths, and the parents of every tree's nodes, on the host.
        """
        if tree.max_nodes == 1:
            ids, there, rows = text.gather(1, lengths[:, None] - 1), None, None
            positions = self._root_numbers(text, lengths)
            seen = torch.ones(1, 1, 1, dtype=torch.bool, device=text.device)
            depths = torch.zeros_like(ids)
            chains = True
        else:
            index = torch.arange(tree.max_nodes, device=text.device)
            rows = tree.cu_nodes[:-1, None].long() + index
            there = rows < tree.cu_nodes[1:, None]
            rows = rows.clamp_max(tree.tokens.numel() - 1)
            ids = torch.where(there, tree.tokens[rows], 0).clamp(0, self.target.vocab_size - 1)
            ids[:, :1] = text.gather(1, lengths[:, None] - 1)
            depths = torch.where(there, tree.depths[rows].long(), 0)
            chains = all(list(own) == list(range(-1, len(own) - 1)) for own in parents)
            bits = None
            if not chains or self.target.padding_idx is not None:
                words = tree.ancestor_bits[rows][..., index // 64] >> (index % 64) & 1
                own = index[:, None] == index  # a row that is no node sees itself
                bits = torch.where(there[..., None], words.bool(), own)
            padding = self.target.padding_idx
            if bits is None or padding is None:
                positions = lengths[:, None] - 1 + depths
            else:
                positions = _skipping(padding, ids, text, lengths, bits)
            seen = (index[:, None] >= index)[None] if bits is None else bits
        mask = self._mask(seen, chains, depths, lengths)
        out = self.target(ids, cache=self.cache, positions=positions, mask=mask)
        self.cache = out.cache
        if tree.tokens.numel() == ids.numel():
            return out.logits.reshape(ids.numel(), -1)
        return out.logits[_places(tree, len(sizes))]

    def commit(
        self,
        path: Tensor,
        tree: DraftTree,
        lengths: Tensor,
        sizes: Sequence[int],
        kept: Sequence[Sequence[int]],
    ) -> None:
        """Move the accepted rows behind their prefixes.

        Args:
            path: [B, max_depth + 1] int32, as of `Verified`.
            tree: what was verified.
            lengths: [B] int64, of the texts before this step.
            sizes: the same on the host.
            kept: the same paths on the host, without -1.
        """
        ragged = self.shortest != self.longest
        if ragged or any(nodes != list(range(len(nodes))) for nodes in kept):
            batch = torch.arange(len(kept), dtype=torch.int32, device=path.device)[:, None]
            prefix = (lengths - 1).int()
            for tensors, layout in self._tensors():
                new = None
                if ragged:
                    request, node = _places(tree, len(kept))
                    slots = self.longest + node
                    new = [t[request, :, slots] if layout == "HND" else t[request, slots] for t in tensors]
                size = tensors[0].shape[2 if layout == "HND" else 1]
                commit_kv(tensors, path, tree, batch, prefix, page_size=size, layout=layout, new=new)
        ends = [size - 1 + len(nodes) for size, nodes in zip(sizes, kept, strict=True)]
        self._cut(ends)

    def keep(self, places: Sequence[int], sizes: Sequence[int]) -> None:
        """Keep the requests at `places` only; `sizes` are the lengths of their texts."""
        index = torch.tensor(places, device=self.target.device)
        for layer in self._layers():
            for name in KEPT:
                value = getattr(layer, name, None)
                if isinstance(value, Tensor) and value.dim() > 1:
                    setattr(layer, name, value[index.to(value.device)])
        self._cut([size - 1 for size in sizes])

    def _layers(self) -> list[Any]:
        return [layer for layer in self.cache.layers if is_filled(getattr(layer, "keys", None))]

    def _tensors(self) -> list[tuple[list[Tensor], str]]:
        heads = [t for layer in self._layers() for t in (layer.keys, layer.values)]
        flat = [t for layer in self._layers() if is_filled(t := getattr(layer, "indexer_keys", None))]
        return [(heads, "HND"), *([(flat, "NHD")] if flat else [])]

    def _cut(self, ends: Sequence[int]) -> None:
        self.shortest, self.longest = min(ends), max(ends)
        for layer in self._layers():
            layer.keys = layer.keys[:, :, : self.longest]
            layer.values = layer.values[:, :, : self.longest]
            if is_filled(getattr(layer, "indexer_keys", None)):
                layer.indexer_keys = layer.indexer_keys[:, : self.longest]

    def _root_numbers(self, text: Tensor, lengths: Tensor) -> Tensor:
        if self.target.padding_idx is None:
            return lengths[:, None] - 1
        return self.target.numbers(text).gather(1, lengths[:, None] - 1)

    def _mask(self, bits: Tensor, chains: bool, depths: Tensor, lengths: Tensor) -> Any:
        """Which of [prefix slots, nodes] each node sees; None if the model's own mask is the same."""
        nodes, device = depths.shape[1], depths.device
        ragged = self.shortest != self.longest
        windows = {
            kind: size for kind, (_, size) in self.target.windows().items() if self.longest + nodes >= size
        }
        if chains and not ragged and not windows:
            return None
        slots = torch.arange(self.longest, device=device)
        prefix = (slots < lengths[:, None] - 1)[:, None]
        if not self.trees:
            mask = torch.cat([prefix[:, 0], torch.ones_like(depths, dtype=torch.bool)], 1)
            return mask.long()
        batch = depths.shape[0]
        seen = torch.cat([prefix.expand(-1, nodes, -1), bits.expand(batch, nodes, nodes)], -1)
        types = getattr(self.target.config, "layer_types", None) or ()
        if not windows:
            return self._additive(seen)
        query = (lengths[:, None] - 1 + depths)[..., None]
        key = torch.cat([slots.expand(batch, -1), lengths[:, None] - 1 + depths], 1)[:, None]
        masks = {}
        for kind in set(types) or set(windows):
            size = windows.get(kind)
            if size is None:
                near = None
            elif kind == "chunked_attention":
                near = query // size == key // size
            else:
                near = query - key < size
            masks[kind] = self._additive(seen if near is None else seen & near)
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _additive(self, seen: Tensor) -> Tensor:
        dtype = self.target.model.dtype
        mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


class Alone:
    """Each request with the model's own cache. Requests are read one after the other; drafts are chains.

    After a rejection, a cache of keys and values alone is cut. Any other cache is restored as it was before
    the draft, and the next forward reads the accepted tokens again.

    Args:
        target: the model.
        rereads: the model keeps no cache, so every forward reads the whole text.
        at_least: least number of tokens of a forward that follows others, as `Target.at_least`. With 2 a
            state does not advance until several tokens follow it.
        singly: the states take one token at a time. So tokens that follow others are read in one forward
            each.
    """

    def __init__(
        self, target: Target, *, rereads: bool = False, at_least: int = 1, singly: bool = False
    ) -> None:
        self.target = target
        self.rereads = rereads
        self.at_least: int = 1 if singly else at_least
        self.singly = singly
        self.caches: list[Any] = []
        self.cached: list[int] = []  # number of tokens that each cache holds
        self._before: list[tuple[int, Any]] = []  # number of tokens, and cache, before the draft

    def read(
        self, text: Tensor, sizes: Sequence[int], chunk: int | None = None, *, last: bool = False
    ) -> Read:
        """Read all texts but their last tokens. With `last` read these too, if states may advance so far."""
        if not self.caches:
            self.caches, self.cached = [self.target.fresh_cache() for _ in sizes], [0] * len(sizes)
        if self.rereads:
            return Read(0)
        last &= self.at_least == 1
        ends = [size - (0 if last else self.at_least) for size in sizes]
        rows = sum(max(end - cached, 0) for end, cached in zip(ends, self.cached, strict=True))
        logits = [self._read(place, text[place], end, chunk) for place, end in enumerate(ends)]
        return Read(rows if chunk is None else 0, torch.stack(cast("list[Tensor]", logits)) if last else None)

    def forward(
        self,
        tree: DraftTree,
        text: Tensor,
        lengths: Tensor,
        sizes: Sequence[int],
        parents: Sequence[Sequence[int]],
    ) -> Tensor:
        """The logits [R, V] at the nodes of the chains."""
        logits, end = [], 0
        self._before = []
        for place, (size, nodes) in enumerate(zip(sizes, map(len, parents), strict=True)):
            if not nodes:
                self._before.append((self.cached[place], None))
                continue
            begin, end = end, end + nodes
            drafts = tree.tokens[begin + 1 : end].clamp(0, self.target.vocab_size - 1)
            drops = len(drafts) > 0 or self.at_least > 1
            if size - self.cached[place] > MOST_PENDING and not self.rereads and drops:
                self._read(place, text[place], size - self.at_least, None)
            start = self.cached[place]
            whole = torch.cat([text[place, :size], drafts])[None]
            ids, positions = whole[:, start:], self.target.numbers(whole)[:, start:]
            before = None
            if drops and not self.rereads and not croppable(self.caches[place]):
                before = snapshot(self.caches[place])
            self._before.append((start, before))
            if self.rereads:  # positions are as the model numbers a whole text itself
                logits.append(self.target(ids, keep=nodes, use_cache=False).logits[0, -nodes:])
            else:
                logits.append(self._forward(place, ids, positions, nodes)[-nodes:])
        rows = torch.cat(logits)
        if len(rows) < tree.tokens.numel():  # rows of no request
            rows = torch.nn.functional.pad(rows, (0, 0, 0, tree.tokens.numel() - len(rows)))
        return rows

    def commit(
        self,
        path: Tensor,
        tree: DraftTree,
        lengths: Tensor,
        sizes: Sequence[int],
        kept: Sequence[Sequence[int]],
    ) -> None:
        """Remove the rejected tokens from the caches."""
        if self.rereads:
            return
        for place, (size, nodes) in enumerate(zip(sizes, kept, strict=True)):
            end = size - 1 + len(nodes)
            if not nodes or end == self.cached[place] and self.at_least == 1:
                continue
            start, before = self._before[place]
            if croppable(self.caches[place]):
                crop(self.caches[place], end)
                self.cached[place] = end
            else:
                self.caches[place], self.cached[place] = restored(self.caches[place], before), start

    def keep(self, places: Sequence[int], sizes: Sequence[int]) -> None:
        """Keep the requests at `places` only."""
        self.caches = [self.caches[place] for place in places]
        self.cached = [self.cached[place] for place in places]

    def load(self, cached: Sequence[CachedText | None], texts: Sequence[Sequence[int]]) -> None:
        """Take over the caches of an earlier call, for texts that still begin with all of their tokens."""
        self.caches, self.cached = [self.target.fresh_cache() for _ in texts], [0] * len(texts)
        for place, (entry, text) in enumerate(zip(cached, texts, strict=True)):
            if entry is None or self.rereads:
                continue
            end = common(entry.tokens, text)
            if not end or end != len(entry.tokens) or end > len(text) - self.at_least:
                continue
            if not isinstance(entry.state, list):
                self.caches[place] = restored(copy.copy(entry.state), snapshot(entry.state))
            elif not entry.parts:
                self.caches[place] = snapshot(entry.state)
            elif self._keeps_all():
                self.caches[place] = full_cache(self.target)
                assemble(self.caches[place], [entry], [0], [end])
            else:
                continue  # it was read for all positions, of which this model's own cache keeps some
            self.cached[place] = end

    def export(self, place: int, tokens: list[int]) -> CachedText | None:
        """The cache of one text."""
        if self.rereads:
            return None
        if self.cached[place] > len(tokens):  # what was accepted beyond the end of the text
            if not croppable(self.caches[place]):
                return None
            crop(self.caches[place], len(tokens))
        return CachedText(tokens[: self.cached[place]], self.caches[place], self.target.key)

    def _keeps_all(self) -> bool:
        """Whether the model sees every position, so that a cache of all of them is as good as its own."""
        return not self.target.windows() and self.target.other_window() is None

    def _read(self, place: int, text: Tensor, end: int, chunk: int | None) -> Tensor | None:
        """Read the text up to `end`; the logits [V] of the last token read."""
        logits, most = None, end if chunk is None else max(chunk, self.at_least)
        while self.cached[place] < end:
            start = self.cached[place]
            if start and end - start < self.at_least:
                break  # the rest is read with what follows
            stop = end if end - start < most + self.at_least else start + most
            positions = self.target.numbers(text[None, :stop])[:, start:]
            logits = self._forward(place, text[None, start:stop], positions, 1)[-1]
        return logits

    def _forward(self, place: int, ids: Tensor, positions: Tensor, keep: int) -> Tensor:
        """The logits [keep or more, V] at the last of these tokens [1, N], which follow the cached ones."""
        count, logits = ids.shape[1], []
        size = 1 if self.singly and self.cached[place] else count
        for start in range(0, count, size):
            some = slice(start, start + size)
            out = self.target(
                ids[:, some], cache=self.caches[place], positions=positions[:, some], keep=min(keep, size)
            )
            self.caches[place] = out.cache
            logits.append(out.logits[0])
        self.cached[place] += count
        return torch.cat(logits[-keep:])


def reader_of(target: Target, serves: str, *, at_least: int = 1) -> Together | Alone:
    """The reader that a `Verdict` asks for; `at_least` as for `Alone`."""
    if serves in ("trees", "chains"):
        return Together(target, trees=serves == "trees")
    if serves == "one by one":
        return Alone(target, at_least=at_least)
    return Alone(target, rereads=serves == "whole text", singly=serves == "token by token")


def _skipping(padding: int, ids: Tensor, text: Tensor, lengths: Tensor, bits: Tensor) -> Tensor:
    """The positions of the nodes, if padding tokens do not count."""
    before = ((text != padding) & (torch.arange(text.shape[1], device=text.device) < lengths[:, None])).sum(1)
    read = ids != padding
    below = (bits[..., 1:] & read[:, None, 1:]).sum(-1)
    return torch.where(read, padding + before[:, None] + below, padding)


def _places(tree: DraftTree, batch: int) -> tuple[Tensor, Tensor]:
    """Request and node of every row of the trees; rows of no request get the last request."""
    request, node = tree._owners
    return request.clamp_max(batch - 1), node.clamp(0, tree.max_nodes - 1)
