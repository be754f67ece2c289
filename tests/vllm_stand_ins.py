# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for what the plugin touches in vLLM, as it was in vLLM 0.32.0 in November 2026.

Names of modules, classes, fields and parameters are facts of that release. `make test-vllm` compares them
with those of the vLLM that it runs. What the methods do here is not what vLLM's do.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

OWN = "vLLM's own code"  # what the original methods return


@dataclass
class SpecDecodeMetadata:
    draft_token_ids: Tensor
    num_draft_tokens: list[int]
    cu_num_draft_tokens: Tensor
    cu_num_sampled_tokens: Tensor
    target_logits_indices: Tensor
    bonus_logits_indices: Tensor
    logits_indices: Tensor

    def __post_init__(self) -> None:
        self.max_spec_len = max(self.num_draft_tokens)


@dataclass
class SamplingMetadata:
    temperature: Tensor | None
    all_greedy: bool
    all_random: bool
    top_p: Tensor | None = None
    top_k: Tensor | None = None
    generators: dict[int, torch.Generator] = field(default_factory=dict)
    max_num_logprobs: int | None = None
    no_penalties: bool = True
    prompt_token_ids: Tensor | None = None
    frequency_penalties: Tensor | None = None
    presence_penalties: Tensor | None = None
    repetition_penalties: Tensor | None = None
    output_token_ids: list[list[int]] = field(default_factory=list)
    allowed_token_ids_mask: Tensor | None = None
    bad_words_token_ids: dict[int, list[list[int]]] = field(default_factory=dict)
    logitsprocs: Any = field(
        default_factory=lambda: SimpleNamespace(argmax_invariant=[], non_argmax_invariant=[])
    )
    logprob_token_ids: dict[int, list[int]] | None = None
    spec_token_ids: list[list[int]] | None = None
    thinking_budget_state_holder: Any = None


@dataclass
class SamplerOutput:
    sampled_token_ids: Tensor
    logprobs_tensors: Any


def spec_decode_metadata(drafts: list[list[int]]) -> SpecDecodeMetadata:
    """As the runner makes it: rows of a request together, the bonus row last."""
    lengths = torch.tensor([len(tokens) for tokens in drafts], dtype=torch.int32)
    ends = (lengths + 1).cumsum(0).int()
    bonus = ends - 1
    rows = torch.arange(int(ends[-1]), dtype=torch.int32)
    return SpecDecodeMetadata(
        draft_token_ids=torch.tensor([token for tokens in drafts for token in tokens], dtype=torch.int32),
        num_draft_tokens=lengths.tolist(),
        cu_num_draft_tokens=lengths.cumsum(0).int(),
        cu_num_sampled_tokens=ends,
        target_logits_indices=rows[~torch.isin(rows, bonus)],
        bonus_logits_indices=bonus,
        logits_indices=rows,
    )


def apply_top_k_top_p(logits: Any, k: Any, p: Any) -> Any:
    """Stands for the cuts, of which a test only asks where they act."""
    assert k.shape == logits.shape[:1] and p is None
    return logits.masked_fill_(k[:, None] == 1, -9.0)


def classes() -> dict[str, dict[str, Any]]:
    """New classes, and a function, by the names of their modules."""

    class Sampler1:
        def apply_logits_processors(
            self, logits: Any, sampling_metadata: Any, predict_bonus_token: Any
        ) -> Tensor:
            return logits.add_(9.0)

    class RejectionSampler1:
        def __init__(self, sampler: Any, spec_config: Any = None, device: Any = None) -> None:
            self.sampler = sampler
            self.is_processed_logprobs_mode = False
            self.synthetic_conditional_rates: Tensor | None = None
            self.specdec_positions: Tensor | None = None

        def forward(self, metadata: Any, draft_probs: Any, logits: Any, sampling_metadata: Any) -> Any:
            return OWN

        def apply_logits_processors(self, logits: Any, sampling_metadata: Any, metadata: Any) -> Tensor:
            return logits.add_(torch.tensor([0.0, 100.0, 0.0, 0.0]))

        def _get_logprobs_tensors(
            self,
            max_num_logprobs: Any,
            metadata: Any,
            logits: Any,
            target_logits: Any,
            bonus_logits: Any,
            sampled_token_ids: Any,
        ) -> Any:
            return max_num_logprobs, metadata, logits, target_logits, bonus_logits, sampled_token_ids

    class GPUModelRunner:
        rejection_sampler: Any
        positions: Tensor

        def _sample(self, logits: Any, spec_decode_metadata: Any) -> Any:
            return self.rejection_sampler.specdec_positions

    class RejectionSampler2:
        synthetic_conditional_rates: Tensor | None = None
        watermark_key: int | None = None
        num_speculative_steps = 3

        def _verify(
            self,
            logits: Any,
            draft_logits: Any,
            draft_sampled: Any,
            pos: Any,
            cu_num_logits: Any,
            idx_mapping: Any,
            idx_mapping_np: Any,
            expanded_idx_mapping: Any,
            expanded_local_pos: Any,
            seq_lens_upper_bound_np: Any,
            verify_draft_sampled: Any,
        ) -> Any:
            return OWN

    class Sampler2:
        def _sample_random(
            self,
            processed_logits: Any,
            expanded_idx_mapping: Any,
            idx_mapping_np: Any,
            pos: Any,
            top_k: Any,
            top_p: Any,
            use_fused_sampler: Any,
        ) -> Any:
            return OWN, processed_logits

    return {
        "vllm.v1.outputs": {"SamplerOutput": SamplerOutput},
        "vllm.v1.sample.sampler": {"Sampler": Sampler1},
        "vllm.v1.sample.metadata": {"SamplingMetadata": SamplingMetadata},
        "vllm.v1.spec_decode.metadata": {"SpecDecodeMetadata": SpecDecodeMetadata},
        "vllm.v1.sample.rejection_sampler": {"RejectionSampler": RejectionSampler1},
        "vllm.v1.sample.ops.topk_topp_sampler": {"apply_top_k_top_p": apply_top_k_top_p},
        "vllm.v1.worker.gpu_model_runner": {"GPUModelRunner": GPUModelRunner},
        "vllm.v1.worker.gpu.spec_decode.rejection_sampler": {"RejectionSampler": RejectionSampler2},
        "vllm.v1.worker.gpu.sample.sampler": {"Sampler": Sampler2},
    }


def install(monkeypatch: Any) -> SimpleNamespace:
    """Put the stand-ins where vLLM would be, and return their classes."""
    made = classes()
    for name, members in made.items():
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            module = sys.modules.get(".".join(parts[:end])) or ModuleType(".".join(parts[:end]))
            monkeypatch.setitem(sys.modules, module.__name__, module)
        for member, cls in members.items():
            monkeypatch.setattr(module, member, cls, raising=False)
    return SimpleNamespace(
        Sampler1=made["vllm.v1.sample.sampler"]["Sampler"],
        RejectionSampler1=made["vllm.v1.sample.rejection_sampler"]["RejectionSampler"],
        GPUModelRunner=made["vllm.v1.worker.gpu_model_runner"]["GPUModelRunner"],
        RejectionSampler2=made["vllm.v1.worker.gpu.spec_decode.rejection_sampler"]["RejectionSampler"],
        Sampler2=made["vllm.v1.worker.gpu.sample.sampler"]["Sampler"],
    )


def differences() -> list[str]:
    """Where the vLLM that is installed has other classes, fields or parameters than the stand-ins."""
    found = []
    for name, members in classes().items():
        module = importlib.import_module(name)
        for member, ours in members.items():
            theirs = getattr(module, member, None)
            if dataclasses.is_dataclass(ours):
                fields = [[field.name for field in dataclasses.fields(cls)] for cls in (theirs, ours)]
                found += [f"{name}.{member}: {fields[0]}"] if fields[0] != fields[1] else []
                continue
            pairs = {member: (theirs, ours)}
            if inspect.isclass(ours):
                pairs = {key: (getattr(theirs, key, None), value) for key, value in vars(ours).items()}
            for key, (real, function) in pairs.items():
                if inspect.isfunction(function):
                    parameters = list(inspect.signature(real or (lambda: None)).parameters)
                    if parameters != list(inspect.signature(function).parameters):
                        found.append(f"{name}.{member}: {key} has {parameters}")
    return found
