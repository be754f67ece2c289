# SPDX-License-Identifier: Apache-2.0
"""How a causal language model of the transformers library is called."""

from __future__ import annotations

import inspect
import math
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..._checks import bad_type, bad_value

# Attributes of a configuration that bound what a layer sees, and the type of layer they belong to.
WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}


# What a cache is called, by the argument that takes it and the output that holds it.
CACHES = ("cache", "past_key_values", "cache_params", "state")


class Output(NamedTuple):
    """Of one forward."""

    logits: Tensor
    """[B, N, V]."""
    cache: Any
    """The cache that the model returns; None if it keeps none."""


class Target:
    """A model with its argument names, device and numbering of positions.

    Args:
        model: a causal language model: a module with `config` and `get_input_embeddings`, whose forward takes
            ids [B, N] and returns `logits` [B, N, V].

    Attributes:
        device: of its input embeddings' output.
        vocab_size: of its input embeddings.
        padding_idx: where the model numbers positions from `padding_idx + 1` and leaves padding out, as
            RoBERTa does; None: positions count from 0.
        key: identifies this model.
        at_least: least number of tokens of a forward that follows others. 2 if states limit their time
            steps, since the forward of a single token does not apply the limit.
        grows: whether the rotary embedding continues to change beyond `switch`.
        plain_cache: whether the cache that the model makes for itself fails, so that it gets one that grows
            as it is used.

    Raises:
        TypeError: not such a model.
        ValueError: its weights are on no device.
    """

    def __init__(self, model: Any) -> None:
        config, is_module = getattr(model, "config", None), isinstance(model, torch.nn.Module)
        if not is_module or config is None:
            bad_type(
                "generate", "target", "must be a causal language model of transformers", type(model).__name__
            )
        if getattr(config, "is_encoder_decoder", False):
            rule = "must be a decoder: the text of an encoder-decoder does not follow its prompt"
            bad_type("generate", "target", rule, type(model).__name__)
        if not hasattr(model, "get_input_embeddings") or model.get_output_embeddings() is None:
            bad_type("generate", "target", "must have a language model head", type(model).__name__)
        self.model = model
        self.name: str = type(model).__name__
        self.config: Any = config.get_text_config(decoder=True)
        embeddings = model.get_input_embeddings()
        self.device: torch.device = _device(embeddings)
        self.vocab_size: int = getattr(embeddings, "num_embeddings", None) or self.config.vocab_size
        names = _parameters(model)
        self.cache_name: str | None = next((name for name in CACHES if name in names), None)
        self.takes_positions: bool = "position_ids" in names
        self.takes_mask: bool = "attention_mask" in names
        self.keeps_logits: bool = "logits_to_keep" in names
        self.takes_use_cache: bool = "use_cache" in names
        self.padding_idx: int | None = _padding_idx(model) if self.takes_positions else None
        self.plain_cache = False
        self.key: str = _KEYS.setdefault(model, uuid.uuid4().hex)
        self.at_least = 2 if _limits_time_steps(model) else 1
        self.grows: bool = False
        self.attention: str = getattr(self.config, "_attn_implementation", None) or "eager"

    def __call__(
        self,
        ids: Tensor,
        *,
        cache: Any = None,
        positions: Tensor | None = None,
        mask: Any = None,
        keep: int | None = None,
        use_cache: bool = True,
    ) -> Output:
        """One forward over ids [B, N]; `keep`: logits of the last so many rows are enough."""
        given: dict[str, Any] = {}
        if self.takes_use_cache:
            given["use_cache"] = use_cache
        if use_cache and cache is not None and self.cache_name is not None:
            given[self.cache_name] = cache
        if positions is not None and self.takes_positions:
            given["position_ids"] = positions
        if mask is not None:
            given["attention_mask"] = mask
        if keep is not None and self.keeps_logits:
            given["logits_to_keep"] = keep
        out = self.model(ids, **given)
        logits = out.logits if hasattr(out, "logits") else out[0]
        if not use_cache:
            return Output(logits, None)
        for name in CACHES:
            kept = getattr(out, name, None)
            if kept is not None:
                return Output(logits, kept)
        return Output(logits, None)

    def numbers(self, text: Tensor) -> Tensor:
        """The positions [B, L] of the tokens of whole texts [B, L], as the model numbers them."""
        if self.padding_idx is None:
            return torch.arange(text.shape[1], device=text.device).expand(text.shape)
        read = text != self.padding_idx
        return read.cumsum(1) * read + self.padding_idx

    def fresh_cache(self) -> Any:
        """What to hand to the first forward of a text; None: the model makes its own."""
        if not self.plain_cache:
            return None
        from transformers import DynamicCache

        return DynamicCache()

    def windows(self) -> dict[str, tuple[str, int]]:
        """Of each type of layer that sees a part of the text: the attribute that says how much, its value."""
        types = getattr(self.config, "layer_types", None)
        found = {}
        for kind, attribute in WINDOWS.items():
            size = getattr(self.config, attribute, None)
            if isinstance(size, int) and size > 0 and (types is None or kind in types):
                found[kind] = (attribute, size)
        return found

    def most_positions(self) -> int | None:
        """The length from which this model has no positions; None where any length has some."""
        for name in ("n_positions", "max_position_embeddings"):
            size = getattr(self.config, name, None)
            if isinstance(size, int) and size > 0 and _learned_positions(self.model, size, self.padding_idx):
                return size
        return None

    def switch(self) -> int | None:
        """The length at which the rotary embedding changes for all positions at once, so that a cache does
        not survive it; None where there is none."""
        rope = getattr(self.config, "rope_parameters", None) or getattr(self.config, "rope_scaling", None)
        ropes = (
            [rope]
            if isinstance(rope, dict) and not any(isinstance(v, dict) for v in rope.values())
            else ([v for v in rope.values() if isinstance(v, dict)] if isinstance(rope, dict) else [])
        )
        lengths: list[Any] = []
        for rope in ropes:
            if rope.get("rope_type", rope.get("type")) in ("dynamic", "longrope"):
                length = rope.get("original_max_position_embeddings") or getattr(
                    self.config, "original_max_position_embeddings", None
                )
                lengths.append(length or getattr(self.config, "max_position_embeddings", 0))
                self.grows |= rope.get("rope_type", rope.get("type")) == "dynamic"
        return min(lengths) if lengths else None

    def other_window(self) -> int | None:
        """The least number that the configuration calls a window and that `windows` does not know."""
        known = set(WINDOWS.values()) | {"max_window_layers"}
        sizes = [
            value
            for name, value in vars(self.config).items()
            if "window" in name
            and "pattern" not in name
            and name not in known
            and type(value) is int
            and value > 0
        ]
        return min(sizes, default=None)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Evaluation mode, put back module by module by the last of all that read the model."""
        with _LOCK:
            readers = _READERS.setdefault(self.model, [0, []])
            if not readers[0]:
                readers[1] = [module for module in self.model.modules() if module.training]
            readers[0] += 1
            for module in readers[1]:
                module.training = False
        try:
            yield
        finally:
            with _LOCK:
                readers[0] -= 1
                if not readers[0]:
                    for module in readers[1]:
                        module.training = True


_KEYS: WeakKeyDictionary[torch.nn.Module, str] = WeakKeyDictionary()
_LOCK = threading.Lock()
_READERS: WeakKeyDictionary[torch.nn.Module, list[Any]] = (
    WeakKeyDictionary()
)  # how many; what was in training mode


def _parameters(model: Any) -> set[str]:
    """The names that its forward takes; where that hands on what it does not know, also those behind it."""
    model = getattr(model, "_orig_mod", model)  # of what torch.compile made
    own = inspect.signature(model.forward).parameters
    names = set(own)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in own.values()):
        for kind in type(model).__mro__:
            if "forward" in vars(kind) and kind is not torch.nn.Module:
                names |= set(inspect.signature(vars(kind)["forward"]).parameters)
        if hasattr(model, "get_base_model"):  # an adapter around it
            names |= _parameters(model.get_base_model())
    return names


def _device(embeddings: torch.nn.Module) -> torch.device:
    hook = getattr(embeddings, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    if device is not None:
        return torch.device(device)
    weight = next(iter(embeddings.parameters()), None)
    device = torch.device("cpu") if weight is None else weight.device
    if device.type == "meta":
        bad_value("generate", "target", "must have its input embeddings on a device", "weights on 'meta'")
    return device


def _padding_idx(model: torch.nn.Module) -> int | None:
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            return module.padding_idx
    return None


def _limits_time_steps(model: torch.nn.Module) -> bool:
    """Whether state space layers clamp their time steps."""
    limits = [getattr(module, "time_step_limit", None) for module in model.modules()]
    return any(limit is not None and tuple(limit) != (0.0, math.inf) for limit in limits)


def _learned_positions(model: torch.nn.Module, size: int, padding_idx: int | None) -> bool:
    """Whether a table of positions is what the number stands for."""
    sizes = (size, size + 2, size + 1)
    return any(
        isinstance(module, torch.nn.Embedding) and module.num_embeddings in sizes
        for name, module in model.named_modules()
        if "pos" in name.rsplit(".", 1)[-1] or name.endswith("wpe")
    )
