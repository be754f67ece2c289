# SPDX-License-Identifier: Apache-2.0
"""What SGLang's plugin framework and verification step look like from a plugin.

SGLang itself needs CUDA packages. Where it cannot be imported, `install` puts modules in its place that have
the names, parameters, layouts and meanings of SGLang 0.5.23 (2026-10-30), and none of its code.
"""

from __future__ import annotations

import enum
import functools
import importlib
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from specdec_kernels.integrations import sglang as plugin

WORKERS = ("eagle_worker_common", "ngram_worker")  # they import `eagle_sample` by name


class HookType(enum.Enum):
    BEFORE, AFTER, AROUND, REPLACE = "before", "after", "around", "replace"


def hook_registry() -> type:
    class HookRegistry:
        hooks: list[tuple[str, Any, HookType]] = []

        @classmethod
        def register(cls, target: str, hook: Any, hook_type: HookType = HookType.AFTER, *, source=None):
            cls.hooks.append((target, hook, hook_type))

        @classmethod
        def apply_hooks(cls) -> None:
            """Replace the function, and every name under which a loaded module holds it."""
            for target, hook, hook_type in cls.hooks:
                assert hook_type is HookType.REPLACE
                place, name = target.rsplit(".", 1)
                original = getattr(importlib.import_module(place), name)
                for module in [sys.modules[key] for key in sys.modules if key.startswith("sglang.")]:
                    for key, value in list(vars(module).items()):
                        if value is original:
                            setattr(module, key, functools.partial(hook))

    return HookRegistry


def eagle_sample(
    verify_input,
    batch,
    logits_output,
    grammar_mask=None,
    uno_target_max_top_k=None,
    *,
    watermark_state=None,
    watermark_full_mask=True,
):
    return SimpleNamespace(own=True, given=(verify_input, batch, logits_output, grammar_mask))


def install(monkeypatch) -> None:
    """Make `import sglang.srt...` find the stand-ins for the time of a test."""
    parts = {
        "plugins.hook_registry": dict(HookRegistry=hook_registry(), HookType=HookType),
        "speculative.eagle_utils": dict(eagle_sample=eagle_sample),
        **{f"speculative.{worker}": dict(eagle_sample=eagle_sample) for worker in WORKERS},
        "speculative.spec_utils": dict(SIMULATE_ACC_LEN=-1.0),
        "layers.dp_attention": dict(is_dp_attention_enabled=lambda: False),
        "runtime_context": dict(get_spec=spec, get_parallel=parallel),
        "utils.async_probe": dict(sanitize_nan_logits=sanitize_nan_logits),
    }
    for name in {f"sglang.srt.{part}".rsplit(".", depth)[0] for part in parts for depth in range(4)}:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for part, members in parts.items():
        vars(sys.modules[f"sglang.srt.{part}"]).update(members)
    sys.modules["sglang"].Engine = Engine
    monkeypatch.setattr(plugin, "_active", None)


class Engine:
    """SGLang's entry point for programs. Its model knows the last token only, and its ngram drafter the one
    place before at which that token stood."""

    vocab = 8

    def __init__(self, model_path: str, **server_args: Any) -> None:
        assert server_args["speculative_algorithm"] == "NGRAM"
        self.nodes = server_args["speculative_num_draft_tokens"]
        self.table = 2 * torch.randn(self.vocab, self.vocab, generator=torch.Generator().manual_seed(0))
        plugin.register()  # SGLang finds it by its metadata
        sys.modules["sglang.srt.plugins.hook_registry"].HookRegistry.apply_hooks()

    def generate(self, input_ids: list[int], sampling_params: dict[str, Any]) -> dict[str, Any]:
        worker = sys.modules["sglang.srt.speculative.ngram_worker"]
        greedy = sampling_params.get("temperature", 1.0) == 0
        info = sampling_info(
            1,
            temperatures=torch.tensor([[1.0 if greedy else sampling_params.get("temperature", 1.0)]]),
            top_ks=torch.tensor([1 if greedy else sampling_params.get("top_k", 1 << 30)]).int(),
            top_ps=torch.tensor([sampling_params.get("top_p", 1.0)]),
            min_ps=torch.tensor([sampling_params.get("min_p", 0.0)]),
        )
        tokens, steps = list(input_ids), 0
        while len(tokens) < len(input_ids) + sampling_params["max_new_tokens"]:
            drafts = torch.tensor([[tokens[-1], *self.look_up(tokens)]])
            tree = verify_input(drafts, range(-1, self.nodes - 1), width=self.nodes)
            batch, logits = schedule_batch(info, torch.tensor([len(tokens)])), self.table[tree.draft_token]
            predict, lens, index = worker.eagle_sample(tree, batch, logits_output(logits))
            tokens += predict[index[0, : int(lens)].long()].tolist()
            steps += 1
        output = tokens[len(input_ids) :][: sampling_params["max_new_tokens"]]
        return {"output_ids": output, "meta_info": {"spec_verify_ct": steps}}

    def look_up(self, tokens: list[int]) -> list[int]:
        before = [place for place, token in enumerate(tokens[:-1]) if token == tokens[-1]]
        drafts = tokens[before[-1] + 1 :] if before else []
        return (drafts + [0] * self.nodes)[: self.nodes - 1]

    def shutdown(self) -> None:
        pass


def spec(**changed) -> SimpleNamespace:
    """Of the server's arguments: those of verification, with their defaults."""
    values = dict(
        speculative_use_rejection_sampling=False,
        speculative_use_block_verification=False,
        speculative_accept_threshold_single=1.0,
        speculative_accept_threshold_acc=1.0,
    )
    return SimpleNamespace(**values | changed)


def parallel(group: Any = SimpleNamespace(world_size=1)) -> SimpleNamespace:  # noqa: B008
    return SimpleNamespace(tp_group=group, attn_tp_group=group)


def sanitize_nan_logits(logits: Tensor, msg: str = "") -> None:
    """Only with SGLANG_SANITIZE_NAN_LOGITS; by default it changes nothing."""


@dataclass
class VerifyInput:
    """Of `EagleVerifyInput` and `NgramVerifyInput`, what verification reads. B requests of N nodes."""

    draft_token: Tensor  # [B * N] int64, roots included
    retrieve_index: Tensor  # [B, N] int64: b * N + i
    retrieve_next_token: Tensor  # [B, N] int64: first child within the request, or -1
    retrieve_next_sibling: Tensor  # [B, N] int64
    draft_token_num: int  # N
    max_tree_depth: int  # width of accept_index: spec_steps + 1, or N for ngram
    tree_topk: int = -1  # children of a node; 1 = a chain; -1 = any
    draft_probs: Tensor | None = None  # [B, K, V] float32, with rejection sampling


def verify_input(tokens: Tensor, parents: list[int] | Tensor, width: int, **more: Any) -> VerifyInput:
    """Trees of one shape, or of shapes [B, N], with siblings in index order. Parent -1 makes an unused slot,
    which no link reaches, except at the root."""
    batch, nodes = tokens.shape
    parents = torch.as_tensor(parents).expand(batch, nodes)
    first, after = torch.full((batch, nodes), -1), torch.full((batch, nodes), -1)
    for b in range(batch) if (parents != parents[:1]).any() else [slice(None)]:
        line = parents[b] if isinstance(b, int) else parents[0]
        for node in reversed(range(1, nodes)):
            if line[node] >= 0:
                after[b, node] = first[b, line[node]]
                first[b, line[node]] = node
    rows = torch.arange(batch * nodes).view(batch, nodes)
    return VerifyInput(tokens.reshape(-1), rows, first, after, nodes, width, **more)


def sampling_info(batch: int, **changed: Any) -> SimpleNamespace:
    """Of `SamplingBatchInfo`, what verification reads. Temperature 0 is written as top_k = 1."""
    values: dict[str, Any] = dict(
        temperatures=torch.ones(batch, 1),
        top_ps=torch.ones(batch),
        top_ks=torch.full((batch,), 1 << 30, dtype=torch.int32),
        min_ps=torch.zeros(batch),
        acc_additive_penalties=None,
        acc_scaling_penalties=None,
        logit_bias=None,
        sampling_seed=None,
        has_watermark_candidates=False,
    )
    values |= changed
    greedy = values["top_ks"] <= 1
    values |= dict(
        is_all_greedy=bool(greedy.all()),
        is_any_greedy=bool(greedy.any()),
        need_top_p_sampling=bool((values["top_ps"] != 1).any()),
        need_top_k_sampling=bool((values["top_ks"] != 1 << 30).any()),
        need_min_p_sampling=bool((values["min_ps"] > 0).any()),
    )
    return SimpleNamespace(**values)


def schedule_batch(info: SimpleNamespace, seq_lens: Tensor | None = None, idle: bool = False):
    lens = torch.full((len(info.temperatures),), 17) if seq_lens is None else seq_lens
    return SimpleNamespace(
        forward_mode=SimpleNamespace(is_idle=lambda: idle),
        sampling_info=info,
        seq_lens=lens,
        device="cpu",
        return_logprob=False,
    )


def logits_output(logits: Tensor) -> SimpleNamespace:
    return SimpleNamespace(next_token_logits=logits)
