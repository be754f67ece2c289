# SPDX-License-Identifier: Apache-2.0
"""vLLM's model runner V1: `vllm.v1.sample.rejection_sampler.RejectionSampler`.

Its rows of logits, [T + B, V] for T drafted tokens, are in the order of our nodes: those of a request
together, first the root's.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...sampling import SamplingParams
from ...seeds import seeds_from_generators
from ...tree import DraftTree, Proposal
from ...verification import verify
from ..steps import chain_of_step, chains_of_step, outputs_of_step
from .serving import Method, count, replace, rule_of


def install() -> None:
    from vllm.v1.sample.rejection_sampler import RejectionSampler

    if replace(RejectionSampler, "forward", _forward):
        replace(RejectionSampler, "__init__", _init)


def _init(original: Method) -> Method:
    def __init__(self: Any, sampler: Any, spec_config: Any = None, device: Any = None) -> None:
        original(self, sampler, spec_config, device)
        # The runner makes this sampler, so its module is loaded now. To load it earlier would take seconds.
        module = sys.modules.get("vllm.v1.worker.gpu_model_runner")
        if module is not None:
            replace(module.GPUModelRunner, "_sample", _sample)

    return __init__


def _sample(original: Method) -> Method:
    """Tell the rejection sampler where in their sequences the first new tokens go: [B] int64."""

    def _sample(self: Any, logits: Any, spec_decode_metadata: Any) -> Any:
        if spec_decode_metadata is None or not isinstance(self.positions, Tensor):
            return original(self, logits, spec_decode_metadata)
        ends = spec_decode_metadata.cu_num_sampled_tokens
        roots = spec_decode_metadata.logits_indices[F.pad(ends[:-1], (1, 0))]
        self.rejection_sampler.specdec_positions = self.positions[roots] + 1
        try:
            return original(self, logits, spec_decode_metadata)
        finally:
            self.rejection_sampler.specdec_positions = None

    return _sample


def _forward(original: Method) -> Method:
    from vllm.v1.outputs import SamplerOutput

    def forward(self: Any, metadata: Any, draft_probs: Any, logits: Any, sampling_metadata: Any) -> Any:
        seeded = bool(sampling_metadata.generators)
        positions = getattr(self, "specdec_positions", None)
        if reason := _not_served(sampling_metadata, seeded, positions):
            count(reason)
            return original(self, metadata, draft_probs, logits, sampling_metadata)
        count()
        rows = _processed(self, metadata, logits, sampling_metadata)
        rule = rule_of(self, seeded, draft_probs is not None)
        laws = draft_probs if rule == "traversal" else None
        law, seeds = _of_requests(sampling_metadata, len(metadata.num_draft_tokens), rows.device)
        tree, laws, draft_rows = _drafts(metadata, laws)
        out = outputs_of_step(tree.batch_size, tree.max_depth + 1, rows.device).verified
        verify(
            rows,
            tree,
            laws,
            draft_rows=draft_rows,
            sampling=law,
            draft_sampling=None if laws is None else "probs",
            rule=rule,
            seeds=seeds,
            positions=None if seeds is None else positions,
            out=out,
        )
        tokens = out.tokens.clone()
        logprobs = _logprobs(self, metadata, logits, rows, tokens, sampling_metadata)
        return SamplerOutput(sampled_token_ids=tokens, logprobs_tensors=logprobs)

    return forward


def _not_served(sampling_metadata: Any, seeded: bool, positions: Tensor | None) -> str | None:
    """Why a step is left to vLLM, if it is."""
    if sampling_metadata.logprob_token_ids:
        return "log-probabilities of chosen tokens"
    if any(getattr(p, "min_p_count", 1) for p in sampling_metadata.logitsprocs.argmax_invariant):
        return "a logits processor that acts after temperature"
    if seeded and positions is None:
        return "seeds where positions are unknown"
    return None


def _processed(self: Any, metadata: Any, logits: Tensor, sampling_metadata: Any) -> Tensor:
    """Rows after vLLM's own processors, as a copy if there are any: penalties, bad words, min_tokens, ..."""
    holder = sampling_metadata.thinking_budget_state_holder
    needed = (
        not sampling_metadata.no_penalties
        or sampling_metadata.bad_words_token_ids
        or sampling_metadata.allowed_token_ids_mask is not None
        or any(getattr(p, "min_toks", True) for p in sampling_metadata.logitsprocs.non_argmax_invariant)
        or (holder is not None and holder.has_tracked_requests())
    )
    if not needed:
        return logits
    rows = logits.to(torch.float32, copy=True)
    bonus, drafted = metadata.bonus_logits_indices, metadata.target_logits_indices
    rows[bonus] = self.sampler.apply_logits_processors(rows[bonus], sampling_metadata, True)
    if len(drafted):
        rows[drafted] = self.apply_logits_processors(rows[drafted], sampling_metadata, metadata)
    return rows


def _drafts(metadata: Any, laws: Tensor | None) -> tuple[DraftTree, Tensor | None, Tensor | None]:
    """The chains, the laws of their tokens, and which node's children have which law."""
    batch, depth, drafts = len(metadata.num_draft_tokens), metadata.max_spec_len, metadata.draft_token_ids
    proposal = Proposal.POINT if laws is None else Proposal.INDEPENDENT
    if depth and len(drafts) == batch * depth:  # chains of one length
        tree = chain_of_step(drafts.view(batch, depth), proposal)
        return tree, None if laws is None else laws.view(batch, depth, -1), None
    tree = chains_of_step(drafts, metadata.cu_num_draft_tokens, depth, proposal)
    return tree, laws, None if laws is None else _draft_rows(metadata)


def _draft_rows(metadata: Any) -> Tensor:
    """[R] int32: the law of the first drafted token belongs to the root, and so on."""
    drafted = metadata.target_logits_indices
    rows = torch.full_like(metadata.logits_indices, -1, dtype=torch.int32)
    rows[drafted] = torch.arange(len(drafted), dtype=torch.int32, device=rows.device)
    return rows


def _of_requests(
    sampling_metadata: Any, batch: int, device: torch.device
) -> tuple[SamplingParams, Tensor | None]:
    """Their law, and their seeds if one has any; kept with the metadata, which vLLM makes for a new batch."""
    if not hasattr(sampling_metadata, "specdec"):
        generators = sampling_metadata.generators
        given = [generators.get(request) for request in range(batch)]
        seeds = seeds_from_generators(given, device=device) if generators else None
        sampling_metadata.specdec = _law(sampling_metadata), seeds
    kept: tuple[SamplingParams, Tensor | None] = sampling_metadata.specdec
    return kept


def _law(sampling_metadata: Any) -> SamplingParams:
    if sampling_metadata.all_greedy:
        return SamplingParams(temperature=0.0)
    top_k, top_p = sampling_metadata.top_k, sampling_metadata.top_p
    return SamplingParams(
        sampling_metadata.temperature,
        top_k=0 if top_k is None else top_k,
        top_p=1.0 if top_p is None else top_p,
    )


def _logprobs(
    self: Any, metadata: Any, logits: Tensor, rows: Tensor, tokens: Tensor, sampling_metadata: Any
) -> Any:
    """As vLLM has them: of raw rows, or of rows after processors, temperature and cuts."""
    if sampling_metadata.max_num_logprobs is None:
        return None
    shown = logits
    if self.is_processed_logprobs_mode:
        shown = _constrained(rows.to(torch.float32, copy=True), metadata, sampling_metadata)
    return self._get_logprobs_tensors(
        sampling_metadata.max_num_logprobs,
        metadata,
        logits,
        shown[metadata.target_logits_indices],
        shown[metadata.bonus_logits_indices],
        tokens,
    )


def _constrained(rows: Tensor, metadata: Any, sampling_metadata: Any) -> Tensor:
    """Rows as vLLM shows them in its processed modes: divided by temperature, and cut."""
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

    if sampling_metadata.all_greedy:
        return rows
    counts = torch.tensor(metadata.num_draft_tokens) + 1
    owner = torch.arange(len(counts)).repeat_interleave(counts).to(rows.device)
    temperature = sampling_metadata.temperature[owner]
    top_k, top_p = sampling_metadata.top_k, sampling_metadata.top_p
    rows /= torch.where(temperature == 0, 1.0, temperature)[:, None]
    constrained: Tensor = apply_top_k_top_p(
        rows, None if top_k is None else top_k[owner], None if top_p is None else top_p[owner]
    )
    return constrained
