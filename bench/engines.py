# SPDX-License-Identifier: Apache-2.0
"""Steps of adapters to engines, with the `verify` that each is compared with."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import torch

import specdec_kernels as sdk
from specdec_kernels._ops import backends
from specdec_kernels.integrations import lmdeploy, tensorrt_llm
from specdec_kernels.integrations.sglang.sample import EagleSample
from specdec_kernels.integrations.vllm import runner1

VOCAB, STEPS = 1024, 5  # drafted tokens of a path


class Step(NamedTuple):
    name: str
    run: Callable[[], object]
    verify: Callable[[], object]


def on_triton(step: Step) -> Step:
    """As if there were no native core, so that backend "auto" takes Triton's kernels."""

    def without(run: Callable[[], object]) -> Callable[[], object]:
        def call() -> object:
            native, backends._native = backends._native, lambda: (None, "left out here")
            try:
                return run()
            finally:
                backends._native = native

        return call

    return Step(step.name, without(step.run), without(step.verify))


def sglang(backend: str) -> Iterator[Step]:
    """SGLang's `eagle_sample` with seeds: chains of 6 nodes, and trees of 16 whose links come anew."""
    group = SimpleNamespace(world_size=1)
    parallel = SimpleNamespace(tp_group=group, attn_tp_group=group)
    spec = SimpleNamespace(
        speculative_use_rejection_sampling=False,
        speculative_use_block_verification=False,
        speculative_accept_threshold_single=1.0,
        speculative_accept_threshold_acc=1.0,
    )
    engine = SimpleNamespace(
        is_dp_attention_enabled=lambda: False,
        get_parallel=lambda: parallel,
        get_spec=lambda: spec,
        simulates=False,
        sanitize_nan_logits=lambda logits, message: None,
    )
    step = EagleSample(lambda *args, **more: None, engine, backend)
    for shape, nodes, topk in (("path of 6", STEPS + 1, 1), ("tree of 16", 16, 2)):
        for batch in (1, 32):
            given, tree = _drafts(batch, nodes, topk)
            greedy = dict(is_all_greedy=False, is_any_greedy=False)
            cuts = dict(need_top_p_sampling=False, need_top_k_sampling=False, need_min_p_sampling=False)
            adjust = dict(acc_additive_penalties=None, acc_scaling_penalties=None, logit_bias=None)
            off = dict.fromkeys(("top_ks", "top_ps", "min_ps"))
            law = dict(off, temperatures=torch.full((batch, 1), 0.8), sampling_seed=torch.arange(batch))
            info = SimpleNamespace(**greedy, **cuts, **adjust, **law)
            mode = SimpleNamespace(is_idle=lambda: False)
            lens = torch.arange(batch)
            request = SimpleNamespace(sampling_info=info, forward_mode=mode, seq_lens=lens)
            logits = torch.zeros(batch * nodes, VOCAB, dtype=torch.bfloat16)
            output = SimpleNamespace(next_token_logits=logits)
            yield Step(
                f"SGLang, {shape}, B = {batch}",
                lambda given=given, request=request, output=output: step(given, request, output),
                lambda tree=tree, logits=logits, info=info, lens=lens: sdk.verify(
                    logits,
                    tree,
                    sampling=sdk.SamplingParams(info.temperatures.view(-1), order="min_p_last"),
                    rule="match",
                    seeds=info.sampling_seed,
                    positions=lens,
                    backend=backend,
                ),
            )


def vllm() -> Iterator[Step]:
    """`RejectionSampler.forward` of vLLM's model runner V1: chains of 5 drafts, and of 4 and 5."""
    for name in ("vllm", "vllm.v1", "vllm.v1.outputs"):  # as if it were installed
        sys.modules.setdefault(name, ModuleType(name))
    sys.modules["vllm.v1.outputs"].__dict__.setdefault("SamplerOutput", SimpleNamespace)
    forward = runner1._forward(lambda *_: None)
    for shape, batch in (("5 drafts", 1), ("5 drafts", 32), ("4 or 5 drafts", 32)):
        lengths = [STEPS - (shape != "5 drafts" and request % 2) for request in range(batch)]
        ends = torch.tensor(lengths).cumsum(0).int()
        rows = torch.arange(sum(lengths) + batch).int()
        bonus = ends + torch.arange(batch).int()
        metadata = SimpleNamespace(
            draft_token_ids=torch.zeros(sum(lengths), dtype=torch.int32),
            num_draft_tokens=lengths,
            max_spec_len=max(lengths),
            cu_num_draft_tokens=ends,
            target_logits_indices=rows[~torch.isin(rows, bonus)],
            logits_indices=rows,
        )
        nothing = dict.fromkeys(("logprob_token_ids", "bad_words_token_ids", "allowed_token_ids_mask"))
        processors = SimpleNamespace(argmax_invariant=[], non_argmax_invariant=[])
        generators = {request: torch.Generator().manual_seed(request) for request in range(batch)}
        temperature, positions = torch.full((batch,), 0.8), torch.arange(batch)
        sampling = SimpleNamespace(
            **nothing, temperature=temperature, all_greedy=False, top_k=None, top_p=None,
            generators=generators, max_num_logprobs=None, no_penalties=True, logitsprocs=processors,
            thinking_budget_state_holder=None,
        )  # fmt: skip
        sampler = SimpleNamespace(synthetic_conditional_rates=None, specdec_positions=positions)
        logits = torch.zeros(len(rows), VOCAB, dtype=torch.bfloat16)
        chain = runner1._drafts(metadata, None)[0]
        law, keys = sdk.SamplingParams(temperature), dict(seeds=positions, positions=positions)
        yield Step(
            f"vLLM, {shape}, B = {batch}",
            partial(forward, sampler, metadata, None, logits, sampling),
            partial(sdk.verify, logits, chain, sampling=law, rule="match", **keys),
        )


def lmdeploy_chains() -> Iterator[Step]:
    """The function for a patch of LMDeploy: chains of 6 nodes."""
    for batch in (1, 32):
        drafts, seeds = torch.zeros(batch, STEPS, dtype=torch.int64), torch.arange(batch)
        logits = torch.zeros(batch, STEPS + 1, VOCAB, dtype=torch.bfloat16)
        none = dict.fromkeys(("top_k", "top_p", "min_p"))
        rows = dict.fromkeys(("random_seeds", "random_offsets"), seeds.repeat_interleave(STEPS + 1))
        inputs = SimpleNamespace(max_top_k=0, has_greedy=False, **none, **rows)
        chain = sdk.DraftTree.chain(drafts)
        yield Step(
            f"LMDeploy, path of 6, B = {batch}",
            partial(lmdeploy.rejection_sample, logits, drafts, inputs),
            partial(sdk.verify, logits, chain, seeds=seeds, positions=seeds),
        )


def tensorrt_llm_trees() -> Iterator[Step]:
    """That for TensorRT-LLM: trees of 16, whose links come anew."""
    for batch in (1, 32):
        given, tree = _drafts(batch, 16, 2)
        links, seeds = (given.retrieve_next_token, given.retrieve_next_sibling), torch.arange(batch)
        logits, temperatures = torch.zeros(batch * 16, VOCAB, dtype=torch.bfloat16), torch.full((batch,), 0.8)
        law = sdk.SamplingParams(temperatures)
        yield Step(
            f"TensorRT-LLM, tree of 16, B = {batch}",
            partial(
                tensorrt_llm.verify_dynamic_tree_rejection_out, given.draft_token.view(batch, 16)[:, 1:],
                logits, *links, None, temperatures, None, None, batch, STEPS + 1, seeds[:1],
            ),
            partial(sdk.verify, logits, tree, sampling=law, seeds=seeds, positions=seeds),
        )  # fmt: skip


def _drafts(batch: int, nodes: int, topk: int) -> tuple[SimpleNamespace, sdk.DraftTree]:
    """As SGLang has them, and as a tree."""
    tokens = torch.zeros(batch, nodes, dtype=torch.int64)
    first, after = torch.full((2, batch, nodes), -1).unbind()
    for node in reversed(range(1, nodes)):
        parent = (node - 1) // topk
        after[:, node] = first[:, parent]
        first[:, parent] = node
    given = SimpleNamespace(
        draft_token=tokens.view(-1),
        retrieve_next_token=first,
        retrieve_next_sibling=after,
        draft_token_num=nodes,
        max_tree_depth=STEPS + 1,
        tree_topk=topk,
        draft_probs=None,
    )
    return given, sdk.DraftTree.from_links(tokens, first, after, max_depth=STEPS)
