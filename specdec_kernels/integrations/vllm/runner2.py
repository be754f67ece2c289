# SPDX-License-Identifier: Apache-2.0
"""vLLM's model runner V2: `vllm.v1.worker.gpu.spec_decode.rejection_sampler.RejectionSampler`.

Its class gathers drafts, makes log-probabilities and counts rejected tokens; the method `_verify` decides.
Steps without drafts are sampled by another class. Its seeded draws are replaced as well, so that a seeded
text does not depend on where drafts were made.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...sampling import SamplingParams, sample
from ...tree import DraftTree, Proposal
from ...verification import verify
from .serving import Method, count, logger, replace, rule_of


def install() -> None:
    try:
        from vllm.v1.worker.gpu.sample.sampler import Sampler
        from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler
    except ImportError as error:
        logger.warning("specdec_kernels: vLLM's model runner V2 stays as it is: %s", error)
        return
    if replace(RejectionSampler, "_verify", _verify):
        replace(Sampler, "_sample_random", _sample_random)


def _verify(original: Method) -> Method:
    def _verify(
        self: Any,
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
        states = self.sampler.sampling_states
        if reason := _not_served(self):
            count(reason)
            return original(
                self,
                logits,
                draft_logits,
                draft_sampled,
                pos,
                cu_num_logits,
                idx_mapping,
                idx_mapping_np,
                expanded_idx_mapping,
                expanded_local_pos,
                seq_lens_upper_bound_np,
                verify_draft_sampled,
            )
        count()
        rows = self.sampler.apply_sampling_params(
            logits,
            expanded_idx_mapping,
            idx_mapping,
            idx_mapping_np,
            pos,
            draft_sampled,
            expanded_local_pos,
            seq_lens_upper_bound_np,
            skip_top_k_top_p=True,
        )
        rule = rule_of(self, states.any_explicit_seed(idx_mapping_np), draft_logits is not None)
        laws = draft_logits if rule == "traversal" else None
        verified = verify(
            rows,
            DraftTree.chain(
                verify_draft_sampled,
                cu_nodes=cu_num_logits,
                proposal=Proposal.POINT if laws is None else Proposal.INDEPENDENT,
                max_nodes=self.num_speculative_steps + 1,
                check=False,
            ),
            None if laws is None else laws.flatten(0, 1),
            draft_rows=None
            if laws is None
            else _draft_rows(expanded_idx_mapping, expanded_local_pos, laws.shape[1]),
            sampling=_law(states, idx_mapping, idx_mapping_np),
            draft_sampling=SamplingParams(states.temperature.gpu[idx_mapping]),
            rule=rule,
            seeds=states.seeds.gpu[idx_mapping],
            positions=pos[cu_num_logits[:-1]] + 1,
        )
        return _shown(self, rows, expanded_idx_mapping, idx_mapping_np), verified.tokens, verified.num_tokens

    return _verify


def _not_served(self: Any) -> str | None:
    """Why a step is left to vLLM, if it is."""
    return "a watermark" if self.watermark_key is not None else None


def _draft_rows(requests: Tensor, local: Tensor, depth: int) -> Tensor:
    """[R] int32 rows of draft_logits [slots, K, V], flattened; the last node of a full chain has none."""
    return torch.where((local < depth) & (requests >= 0), requests * depth + local, -1).int()


def _law(states: Any, requests: Tensor, requests_np: Any) -> SamplingParams:
    """Of rows that are divided by the temperature already and cut by min-p; 0 is still greedy."""
    top_k, top_p = states.get_top_k_top_p(requests, requests_np)
    return SamplingParams(
        (states.temperature.gpu[requests] != 0).float(),
        top_k=0 if top_k is None else top_k,
        top_p=1.0 if top_p is None else top_p,
    )


def _shown(self: Any, rows: Tensor, expanded: Tensor, requests_np: Any) -> Tensor:
    """The rows of which log-probabilities or masks are shown, cut by top-k and top-p if they are needed."""
    sampler = self.sampler
    if not (sampler.return_sampling_mask or sampler.logprobs_mode.startswith("processed")):
        return rows
    cut: Tensor = sampler.sampling_states.apply_top_k_top_p(rows.clone(), expanded, requests_np)
    return cut


def _sample_random(original: Method) -> Method:
    def _sample_random(
        self: Any,
        processed_logits: Any,
        expanded_idx_mapping: Any,
        idx_mapping_np: Any,
        pos: Any,
        top_k: Any,
        top_p: Any,
        use_fused_sampler: Any,
    ) -> Any:
        states, tokens = self.sampling_states, None
        if states.any_explicit_seed(idx_mapping_np):
            law = SamplingParams(
                (states.temperature.gpu[expanded_idx_mapping] != 0).float(),
                top_k=0 if top_k is None else top_k,
                top_p=1.0 if top_p is None else top_p,
            )
            seeds = states.seeds.gpu[expanded_idx_mapping]
            tokens = sample(processed_logits, law, seeds=seeds, positions=pos + 1)
        sampled, shown = original(
            self,
            processed_logits,
            expanded_idx_mapping,
            idx_mapping_np,
            pos,
            top_k,
            top_p,
            use_fused_sampler,
        )
        return (sampled if tokens is None else tokens), shown

    return _sample_random
