# SPDX-License-Identifier: Apache-2.0
"""The layers of a cache: cut, copied, restored, taken apart and assembled."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._checks import bad_value
from .model import Target

KEPT = ("keys", "values", "indexer_keys")  # tensors of a layer whose rows are positions
NUMBERS = ("_sliding_window_tensor",)  # tensors that stay as they are
FULL = ("DynamicLayer", "DynamicSlidingWindowLayer", "DynamicIndexedLayer", "DummyLayer")


class Part(NamedTuple):
    """The part of a layer that belongs to one text."""

    kind: type
    beside: dict[str, Any]
    """Its attributes without positions."""
    tensors: dict[str, Tensor]
    """[1, ..., L, D] by name."""


class CachedText(NamedTuple):
    """The cache of one text, for a later call that continues the text."""

    tokens: list[int]
    """What was read."""
    state: Any
    """A `Part` of each layer; or a cache of the model's own."""
    model: str
    """Whose it is, as of `Target.key`."""

    @property
    def parts(self) -> list[Part] | None:
        """The layers of every position; None where there are others."""
        if isinstance(self.state, list) and all(isinstance(layer, Part) for layer in self.state):
            return self.state
        if not croppable(self.state):
            return None
        return [part(layer, 0, 0, len(self.tokens)) for layer in self.state.layers]


def taken(
    cache: Any, texts: Sequence[Sequence[int]], pads: Sequence[int], model: str, operation: str
) -> list[CachedText | None]:
    """What a cache of transformers has read of texts that are padded on the left."""
    if getattr(cache, "layers", None) is None:
        bad_value(operation, "cache", "must be the cache of a decoder, with layers", type(cache).__name__)
    if not filled(cache):
        return [None] * len(texts)
    if not croppable(cache):
        kinds = ", ".join(sorted({type(layer).__name__ for layer in cache.layers}))
        bad_value(operation, "cache", "must have layers of keys and values of every position", kinds)
    length = cache.get_seq_length()
    found: list[CachedText | None] = []
    whole = max(pad + len(text) for text, pad in zip(texts, pads, strict=True))
    if length >= whole:
        rule = f"must hold fewer positions than input_ids, which is the whole text of {whole} tokens"
        bad_value(operation, "cache", rule, length)
    for row, (text, pad) in enumerate(zip(texts, pads, strict=True)):
        start = min(pad, length)
        layers = [part(layer, row, start, length) for layer in cache.layers]
        for layer in layers:
            if any(value.shape[0] != 1 for value in layer.tensors.values()):
                bad_value(operation, "cache", f"must hold B = {len(texts)} texts", "fewer")
        found.append(CachedText(list(text[: length - start]), layers, model))
    return found


def filled(cache: Any) -> bool:
    """Whether a cache of transformers has read anything."""
    return any(is_filled(getattr(layer, "keys", None)) for layer in cache.layers) and bool(
        cache.get_seq_length()
    )


def handed_back(cached: Sequence[CachedText | None], pads: Sequence[int], cache: Any) -> Any:
    """The same as a cache of transformers, in place where the caller gave one; None where there is none."""
    there = [entry for entry in cached if entry is not None]
    if len(there) < len(cached):
        return None
    first = there[0]
    if isinstance(first.state, list) and not first.parts:
        return None  # states that are no cache of transformers
    if not isinstance(first.state, list):
        if len(there) > 1:
            return None
        if cache is not None and cache is not first.state:
            vars(cache).update(vars(first.state))
        return first.state if cache is None else cache
    if cache is None:
        from transformers import DynamicCache

        cache = DynamicCache()
    assemble(cache, there, pads, [len(entry.tokens) for entry in there])
    return cache


def part(layer: Any, row: int, start: int, end: int) -> Part:
    """The positions of one text, copied, and the rest of a layer."""
    tensors = {}
    for name in KEPT:
        value: Any = getattr(layer, name, None)
        if is_filled(value):
            tensors[name] = value[row : row + 1].narrow(value.dim() - 2, start, end - start).clone()
    beside = {name: value for name, value in vars(layer).items() if name not in tensors}
    return Part(type(layer), beside, tensors)


def assemble(
    cache: Any, cached: Sequence[CachedText | None], starts: Sequence[int], lengths: Sequence[int]
) -> None:
    """Fill a cache with the first `lengths` positions of texts, behind `starts` slots that nobody sees."""
    states = [
        entry.parts if entry and length else None for entry, length in zip(cached, lengths, strict=True)
    ]
    first = next(state for state in states if state)
    restored(cache, ({}, [(layer.kind, dict(layer.beside)) for layer in first]))
    slots = max(start + length for start, length in zip(starts, lengths, strict=True))
    for number, layer in enumerate(cache.layers):
        for name, like in first[number].tensors.items():
            shape = list(like.shape)
            dim = len(shape) - 2
            shape[0], shape[dim] = len(states), slots
            whole = like.new_zeros(shape)
            for row, state, start, length in zip(whole, states, starts, lengths, strict=True):
                if state is not None and length:
                    kept = state[number].tensors[name][0].narrow(dim - 1, 0, length)
                    row.narrow(dim - 1, start, length).copy_(kept)
            setattr(layer, name, whole)


def common(read: Sequence[int], text: Sequence[int]) -> int:
    """How many tokens of a text need not be read again. The last token is always read."""
    most = max(min(len(read), len(text) - 1), 0)
    return next((place for place in range(most) if read[place] != text[place]), most)


def full_cache(target: Target) -> Any:
    """An empty cache that keeps every position in every layer, sliding ones too."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    if target.plain_cache:
        return DynamicCache()
    cache = DynamicCache(config=target.model.config)
    for place, layer in enumerate(cache.layers):
        if type(layer).__name__ == "DynamicSlidingWindowLayer":
            cache.layers[place] = DynamicLayer()
    return cache


def unknown(cache: Any) -> str | None:
    """The part of this cache that `Together` cannot commit, in words; None if there is none."""
    layers = getattr(cache, "layers", None)
    if layers is None:
        return f"{type(cache).__name__}, whose layers are not known"
    for number, layer in enumerate(layers):
        if type(layer).__name__ not in FULL or not _of_transformers(layer):
            return f"{type(layer).__name__} in layer {number}"
        for name, value in vars(layer).items():
            if isinstance(value, Tensor) and value.dim() and name not in KEPT + NUMBERS:
                return f"{name} of {type(layer).__name__} in layer {number}"
    return None


def croppable(cache: Any) -> bool:
    """Whether a cache keeps only keys and values of every position."""
    return (
        getattr(cache, "is_croppable", True)
        and unknown(cache) is None
        and all(type(layer).__name__ in ("DynamicLayer", "DummyLayer") for layer in cache.layers)
    )


def crop(cache: Any, end: int) -> None:
    """Keep the first `end` positions."""
    for layer in cache.layers:
        if is_filled(getattr(layer, "keys", None)):
            layer.keys, layer.values = layer.keys[:, :, :end], layer.values[:, :, :end]


def snapshot(cache: Any) -> Any:
    """All that a cache keeps, for `restored`. Keys and values that grow by concatenation are not copied."""
    if cache is None:
        return None
    layers = getattr(cache, "layers", None)
    if layers is None:
        return copy.deepcopy(cache)
    own = {name: _copied(value) for name, value in vars(cache).items() if name != "layers"}
    return own, [(type(layer), _saved(layer)) for layer in layers]


def restored(cache: Any, saved: Any) -> Any:
    """The cache as it was; the snapshot is used up."""
    if saved is None or not isinstance(saved, tuple) or not hasattr(cache, "layers"):
        return saved
    own, layers = saved
    vars(cache).update(own)
    cache.layers = []
    for kind, state in layers:
        layer = object.__new__(kind)
        vars(layer).update(state)
        cache.layers.append(layer)
    return cache


def _saved(layer: Any) -> dict[str, Any]:
    from transformers.cache_utils import DynamicLayer

    grows = isinstance(layer, DynamicLayer) and _of_transformers(layer)
    return {
        name: value if grows and name in ("keys", "values") else _copied(value)
        for name, value in vars(layer).items()
    }


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(part) for part in value)
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device, type)):
        return value
    if callable(value):
        return value
    return copy.deepcopy(value)


def _of_transformers(layer: Any) -> bool:
    return type(layer).__module__ == "transformers.cache_utils"


def is_filled(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() > 0
