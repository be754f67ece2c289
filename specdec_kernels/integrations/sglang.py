# SPDX-License-Identifier: Apache-2.0
"""SGLang's verification step by `verify`: a plugin that does nothing unless SPECDEC_SGLANG=1.

SGLang finds `register` by the entry point group `sglang.srt.plugins`. It puts `EagleSample` in the place of
`sglang.srt.speculative.eagle_utils.eagle_sample`, through which the EAGLE, MTP, standalone and ngram workers
verify. Names, shapes and meanings are those of SGLang 0.5.22 (2026-10-15) and 0.5.23 (2026-10-30).
"""

from __future__ import annotations

import inspect
import logging
import os
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..rules import Rule, Threshold
from ..sampling import SamplingParams
from ..tree import DraftTree
from ..verification import Verified, verify

logger = logging.getLogger(__name__)

SWITCH = "SPECDEC_SGLANG"
TARGET = "sglang.srt.speculative.eagle_utils.eagle_sample"
PARAMETERS = (
    "verify_input",
    "batch",
    "logits_output",
    "grammar_mask",
    "uno_target_max_top_k",
    "watermark_state",
    "watermark_full_mask",
)
GREEDY = SamplingParams(temperature=0.0)

Sampled = tuple[Tensor, Tensor, Tensor]


class Statistics(NamedTuple):
    """What the verifier of this process did, in steps of whole batches."""

    served: int
    fallbacks: dict[str, int]
    """Steps that SGLang's own function verified, by reason."""


def register() -> None:
    """Put `verify` in the place of SGLang's verification if the environment has SPECDEC_SGLANG=1.

    SGLang calls this once in every process, before it applies hooks. Without the variable nothing is
    imported and nothing is changed. If SGLang is not as it is known here, a warning is logged and SGLang
    keeps its own function.
    """
    global _active
    switch = os.environ.get(SWITCH, "0")
    if switch != "1":  # nothing that was asked for is ignored without a word
        if switch not in ("", "0"):
            logger.warning("%s must be 0 or 1, got %r: SGLang keeps its own verification", SWITCH, switch)
        return
    try:
        from sglang.srt.plugins.hook_registry import HookRegistry, HookType
        from sglang.srt.speculative.eagle_utils import eagle_sample

        engine = _engine()
    except ImportError as error:
        logger.warning("SGLang keeps its own verification, since it lacks what is known of it: %s", error)
        return
    parameters = tuple(inspect.signature(eagle_sample).parameters)
    if parameters != PARAMETERS:
        logger.warning(
            "SGLang keeps its own verification, since eagle_sample must have the parameters %s, got %s",
            ", ".join(PARAMETERS),
            ", ".join(parameters),
        )
        return
    _active = EagleSample(eagle_sample, engine)
    HookRegistry.register(TARGET, _active, HookType.REPLACE)


def statistics() -> Statistics | None:
    """What the plugin did in this process so far; None where it is not active."""
    return None if _active is None else Statistics(_active.served, dict(_active.fallbacks))


class EagleSample:
    """Called as SGLang's `eagle_sample`, with what that returns: predict [B * N] int32, the token after every
    node of the accepted path, 0 elsewhere; accept_lens [B] int32, with the token after the accepted ones; and
    accept_index [B, width] int32, the rows of `predict` along the path, then -1.

    Args:
        own: SGLang's function, for what is not served here.
        engine: what is used of SGLang besides.

    Attributes:
        served: steps that `verify` served.
        fallbacks: steps that `own` served, by reason. Each reason is logged once.

    Notes:
        Penalties, logit biases and grammar masks change the logits in place, as SGLang's function does, since
        log-probabilities are computed from them later. A request whose top_k is 1 is greedy, which is how
        SGLang writes temperature 0. Never synchronises.
    """

    def __init__(self, own: Callable[..., Sampled], engine: SimpleNamespace) -> None:
        self.own, self.engine = own, engine
        self.served = 0
        self.fallbacks: Counter[str] = Counter()
        self._kept: dict[tuple[Any, ...], _Kept] = {}

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
        filled = self._verify(verify_input, batch.seq_lens, logits, info, spec)
        if not info.is_all_greedy or torch.version.hip:
            _from_first_rank(self.engine, filled.buffer)
        return filled.predict, filled.accept_lens, filled.accept_index

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
            draft = verify_input.draft_probs
            if draft is None or draft.shape[-1] != logits.shape[-1]:
                return "rejection sampling without draft probabilities over the target's vocabulary"
        return None

    def _verify(self, verify_input: Any, positions: Tensor, logits: Tensor, info: Any, spec: Any) -> _Filled:
        batch, nodes = positions.shape[0], verify_input.draft_token_num
        width = verify_input.max_tree_depth
        chain = verify_input.tree_topk == 1 and nodes == width
        key = (batch, nodes, width, chain, logits.device)
        kept = self._kept.get(key)
        if kept is None:
            kept = self._kept[key] = _keep(*key)
        filled = _new(batch, nodes, width, logits.device)
        seeds: Tensor | None = kept.zeros if info.is_all_greedy else info.sampling_seed
        draft = verify_input.draft_probs if _rejects(info, spec) else None
        out = kept.out._replace(num_tokens=filled.accept_lens)
        verify(
            logits,
            _put(kept, verify_input),
            draft.log() if draft is not None else None,
            draft_sampling="logprobs" if draft is not None else None,
            sampling=_law(info),
            rule=_rule(spec, draft is not None),
            seeds=seeds,
            positions=None if seeds is None else positions.long(),
            out=out,
        )
        _fill(filled, out, kept.first_rows)
        return filled


class _Filled(NamedTuple):
    """The results, parts of one buffer, so that they travel to other ranks together."""

    buffer: Tensor
    slots: Tensor  # `predict`, and one for what is emitted nowhere
    predict: Tensor
    accept_lens: Tensor
    accept_index: Tensor


class _Kept(NamedTuple):
    """What steps of one size share. Steps follow each other in one stream."""

    tree: DraftTree
    out: Verified
    first_rows: Tensor  # [B, 1] int32
    zeros: Tensor  # [B] int64: seeds where nothing is drawn


def _new(batch: int, nodes: int, width: int, device: torch.device) -> _Filled:
    rows, grid = batch * nodes, batch * width
    buffer = torch.zeros(rows + 1 + grid + batch, dtype=torch.int32, device=device)
    slots, index, lens = buffer.split_with_sizes((rows + 1, grid, batch))
    return _Filled(buffer, slots, slots[:rows], lens, index.view(batch, width))


def _keep(batch: int, nodes: int, width: int, chain: bool, device: torch.device) -> _Kept:
    none = torch.full((batch, nodes), -1, dtype=torch.int64, device=device)
    if chain:
        tree = DraftTree.chain(none[:, 1:], check=False)
    else:
        tree = DraftTree.from_links(none, none, none, max_depth=width - 1, check=False)
    ints = torch.empty((3, batch), dtype=torch.int32, device=device)
    out = Verified(
        tokens=torch.empty((batch, width), dtype=torch.int64, device=device),
        num_tokens=ints[0],
        num_accepted=ints[1],
        path=torch.empty((batch, width), dtype=torch.int32, device=device),
        logprobs=None,
        status=ints[2],
    )
    first_rows = (torch.arange(batch, dtype=torch.int32, device=device) * nodes).unsqueeze(1)
    return _Kept(tree, out, first_rows, torch.zeros(batch, dtype=torch.int64, device=device))


def _fill(filled: _Filled, out: Verified, first_rows: Tensor) -> None:
    index = torch.add(out.path, first_rows, out=filled.accept_index).masked_fill_(out.path < 0, -1)
    slot = index.view(-1).long().remainder_(filled.slots.numel())  # that of -1 is the last
    filled.slots.scatter_(0, slot, out.tokens.view(-1).int())


def _rejects(info: Any, spec: Any) -> bool:
    """Whether drafted tokens were sampled and are verified with their probabilities: chains only."""
    return bool(spec.speculative_use_rejection_sampling) and not info.is_all_greedy


def _rule(spec: Any, rejects: bool) -> Rule:
    if rejects:
        return "traversal" if spec.speculative_use_block_verification else "token"
    single, acc = spec.speculative_accept_threshold_single, spec.speculative_accept_threshold_acc
    return "match" if single == acc == 1.0 else Threshold(single, acc)


def _put(kept: _Kept, verify_input: Any) -> DraftTree:
    """The drafts of this step into the tree that is kept for its size. On a CPU, too, unread: SGLang's ngram
    trees have unused slots that hold tokens."""
    if kept.tree.links is None:
        return kept.tree.refresh_(verify_input.draft_token, check=False)
    return kept.tree.refresh_(
        verify_input.draft_token,
        next_token=verify_input.retrieve_next_token,
        next_sibling=verify_input.retrieve_next_sibling,
        check=False,
    )


def _law(info: Any) -> SamplingParams:
    if info.is_all_greedy:
        return GREEDY
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


_active: EagleSample | None = None


def _engine() -> SimpleNamespace:
    """What is used of SGLang besides the function itself."""
    from sglang.srt.layers.dp_attention import is_dp_attention_enabled
    from sglang.srt.runtime_context import get_parallel, get_spec
    from sglang.srt.speculative.spec_utils import SIMULATE_ACC_LEN
    from sglang.srt.utils.async_probe import sanitize_nan_logits

    return SimpleNamespace(
        is_dp_attention_enabled=is_dp_attention_enabled,
        get_parallel=get_parallel,
        get_spec=get_spec,
        simulates=SIMULATE_ACC_LEN > 0,
        sanitize_nan_logits=sanitize_nan_logits,
    )
