# SPDX-License-Identifier: Apache-2.0
"""SGLang's `eagle_sample` by `verify`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from operator import is_
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ...rules import Rule, Threshold
from ...sampling import SamplingParams
from ...verification import verify
from .arrays import Arrays, Results

logger = logging.getLogger(__name__)

GREEDY = SamplingParams(temperature=0.0)

Sampled = tuple[Tensor, Tensor, Tensor]


class EagleSample:
    """Called as SGLang's `eagle_sample`, with what that returns: predict [B * N] int32, the token after every
    node of the accepted path, 0 elsewhere; accept_lens [B] int32, with the token after the accepted ones; and
    accept_index [B, width] int32, the rows of `predict` along the path, then -1.

    Args:
        own: SGLang's function, for what is not served here.
        engine: what is used of SGLang besides.
        backend: of `verify`.

    Attributes:
        served: steps that `verify` served.
        fallbacks: steps that `own` served, by reason. Each reason is logged once.

    Notes:
        Penalties, logit biases and grammar masks change the logits in place, as SGLang's function does, since
        log-probabilities are computed from them later. A request whose top_k is 1 is greedy, which is how
        SGLang writes temperature 0. Never synchronises.
    """

    def __init__(self, own: Callable[..., Sampled], engine: SimpleNamespace, backend: str = "auto") -> None:
        self.own, self.engine, self.backend = own, engine, backend
        self.served = 0
        self.fallbacks: Counter[str] = Counter()
        self._arrays: dict[tuple[Any, ...], Arrays] = {}
        self._given: tuple[Any, ...] = ()
        self._params = GREEDY

    def __call__(
        self,
        verify_input: Any,
        batch: Any,
        logits_output: Any,
        grammar_mask: Any = None,
        uno_target_max_top_k: int | None = None,
        *,
        watermark_state: Any = None,
        watermark_full_mask: bool = True,
    ) -> Sampled:
        info, logits = batch.sampling_info, logits_output.next_token_logits
        idle, spec = batch.forward_mode.is_idle(), self.engine.get_spec()
        reason = None if idle else self._refusal(verify_input, logits, info, spec, watermark_state)
        if reason:
            self._count(reason)
        if idle or reason:
            return self.own(
                verify_input,
                batch,
                logits_output,
                grammar_mask,
                uno_target_max_top_k,
                watermark_state=watermark_state,
                watermark_full_mask=watermark_full_mask,
            )
        self.served += 1
        self.engine.sanitize_nan_logits(logits, "verify: target model logits")
        _adjust(logits, info, grammar_mask)
        results = self._verify(verify_input, batch.seq_lens, logits, info, spec)
        if not info.is_all_greedy or torch.version.hip:
            _from_first_rank(self.engine, results.buffer)
        return results.predict, results.accept_lens, results.accept_index

    def _count(self, reason: str) -> None:
        if reason not in self.fallbacks:
            logger.warning("SGLang's own verification serves steps with %s", reason)
        self.fallbacks[reason] += 1

    def _refusal(
        self, verify_input: Any, logits: Tensor, info: Any, spec: Any, watermark_state: Any
    ) -> str | None:
        """Why SGLang's own function verifies a step."""
        if watermark_state is not None and info.has_watermark_candidates:
            return "a watermark"
        if self.engine.simulates:
            return "simulated acceptance lengths"
        if logits.device.type not in ("cpu", "cuda"):
            return f"tensors on {logits.device.type}"
        if _rejects(info, spec):
            draft, wanted = verify_input.draft_probs, (verify_input.draft_token_num - 1, logits.shape[-1])
            if draft is None or draft.shape[1:] != wanted:
                return "rejection sampling without draft probabilities over the target's vocabulary"
        return None

    def _verify(self, verify_input: Any, positions: Tensor, logits: Tensor, info: Any, spec: Any) -> Results:
        batch, nodes = positions.shape[0], verify_input.draft_token_num
        width = verify_input.max_tree_depth
        key = (batch, nodes, width, verify_input.tree_topk == 1 and nodes == width, logits.device)
        arrays = self._arrays.get(key)
        if arrays is None:
            arrays = self._arrays[key] = Arrays(*key, backend=self.backend)
        seeds: Tensor | None = arrays.zeros if info.is_all_greedy else info.sampling_seed
        draft = verify_input.draft_probs if _rejects(info, spec) else None
        results, out = arrays.begin()
        verify(
            logits,
            arrays.put(verify_input),
            draft,
            draft_sampling="probs" if draft is not None else None,
            sampling=self._law(info),
            rule=_rule(spec, draft is not None),
            seeds=seeds,
            positions=None if seeds is None else positions.long(),
            out=out,
            backend=self.backend,
        )
        arrays.fill(results, out)
        return results

    def _law(self, info: Any) -> SamplingParams:
        """That of the step before if it has the same tensors: they are read when `verify` runs."""
        if info.is_all_greedy:
            return GREEDY
        if info.is_any_greedy:
            return law_of(info)
        given = (
            info.temperatures,
            info.top_ks if info.need_top_k_sampling else None,
            info.top_ps if info.need_top_p_sampling else None,
            info.min_ps if info.need_min_p_sampling else None,
        )
        if len(self._given) != len(given) or not all(map(is_, given, self._given)):
            self._given, self._params = given, law_of(info)
        return self._params


def _rejects(info: Any, spec: Any) -> bool:
    """Whether drafted tokens were sampled and are verified with their probabilities: chains only."""
    return bool(spec.speculative_use_rejection_sampling) and not info.is_all_greedy


def _rule(spec: Any, rejects: bool) -> Rule:
    if rejects:
        return "traversal" if spec.speculative_use_block_verification else "token"
    single, acc = spec.speculative_accept_threshold_single, spec.speculative_accept_threshold_acc
    return "match" if single == acc == 1.0 else Threshold(single, acc)


def law_of(info: Any) -> SamplingParams:
    """SGLang's sampling parameters of a batch, in the order of its ordinary sampler."""
    temperature = info.temperatures.view(-1)
    if info.is_any_greedy:
        temperature = temperature * (info.top_ks > 1)
    return SamplingParams(
        temperature=temperature,
        top_k=info.top_ks if info.need_top_k_sampling else 0,
        top_p=info.top_ps if info.need_top_p_sampling else 1.0,
        min_p=info.min_ps if info.need_min_p_sampling else 0.0,
        order="min_p_last",
    )


def _adjust(logits: Tensor, info: Any, grammar_mask: Any) -> None:
    """Penalties and biases of a request at all of its nodes, and the grammar's mask of every node."""
    penalties, scales, bias = info.acc_additive_penalties, info.acc_scaling_penalties, info.logit_bias
    if penalties is not None or scales is not None or bias is not None:
        nodes = logits.view(len(info.temperatures), -1, logits.shape[-1])
        if penalties is not None:
            nodes.add_(penalties.unsqueeze(1))
        if scales is not None:
            scale = scales.unsqueeze(1)
            nodes.copy_(torch.where(nodes < 0, nodes * scale, nodes / scale))
        if bias is not None:
            nodes.add_(bias.unsqueeze(1))
    if grammar_mask is not None:
        grammar_mask.apply(logits)


def _from_first_rank(engine: SimpleNamespace, buffer: Tensor) -> None:
    """Ranks may have other logits in their last bits, and have other random numbers."""
    parallel = engine.get_parallel()
    group = parallel.attn_tp_group if engine.is_dp_attention_enabled() else parallel.tp_group
    if group.world_size > 1:
        group.broadcast(buffer, src=0)
