# SPDX-License-Identifier: Apache-2.0
"""Kernels of speculative decoding: lossless verification of chains and trees, fused with sampling;
attention over draft trees.

>>> import torch
>>> import specdec_kernels as sdk
>>> tree = sdk.DraftTree.chain(torch.tensor([[2, 0]]))
>>> verified = sdk.verify(torch.zeros(3, 4), tree, torch.zeros(3, 4))
>>> int(verified.num_tokens[0]) == int(verified.num_accepted[0]) + 1
True
"""

from ._checks import BackendUnavailable
from ._ops.backends import explain
from .attention import tree_attention
from .commit import CachePlan, Committed, commit_kv
from .compilation import Heads, Warmup, warmup
from .counts import TokenCounts
from .drafting import (
    AcceptanceStats,
    BatchBudget,
    Budget,
    Calibration,
    Children,
    CostCurve,
    Frontier,
    GrownTree,
    NgramTree,
    SelectedNodes,
    StepTimer,
    SuffixDrafter,
    SuffixIndex,
    TextCredit,
    draft_token,
    grow_tree,
    ngram_draft,
    ngram_tree,
    sample_children,
)
from .edits import LogitEdits, edit_logits_
from .ends import Ends, Finish
from .grammar import ForcedDraft, TreeBitmask, advance_matchers, forced_draft, tree_bitmask
from .integrations.layouts import fill_sglang, fill_tensorrt_llm
from .integrations.transformers import (
    AssistantDrafter,
    Drafts,
    Generated,
    Verdict,
    custom_generate,
    explain_model,
    generate,
)
from .matchers import AfterToken, LLGuidanceMatcher, Matcher
from .metrics import AcceptanceCollector, prometheus_text
from .module import SpeculativeVerifier
from .reporting import Logprobs, Masks, Sampled, SamplingMasks
from .rules import Deferred, Ensemble, Lenient, Relaxed, Synthetic, Threshold, Typical
from .sampling import DraftVocab, SamplingParams, sample
from .seeds import seeds_from_generators
from .state import commit_state, replay_conv, replay_gated_delta, replay_mamba2
from .tree import DraftTree, Proposal
from .verification import Status, Verified, verify

__version__ = "0.1.0"

__all__ = [
    "AcceptanceCollector",
    "AcceptanceStats",
    "AfterToken",
    "AssistantDrafter",
    "BackendUnavailable",
    "BatchBudget",
    "Budget",
    "CachePlan",
    "Calibration",
    "Children",
    "CostCurve",
    "Committed",
    "Deferred",
    "DraftTree",
    "Drafts",
    "DraftVocab",
    "Ends",
    "Ensemble",
    "Finish",
    "ForcedDraft",
    "Frontier",
    "Generated",
    "GrownTree",
    "Heads",
    "Lenient",
    "LogitEdits",
    "Logprobs",
    "LLGuidanceMatcher",
    "Masks",
    "Matcher",
    "NgramTree",
    "Proposal",
    "Relaxed",
    "Sampled",
    "SamplingMasks",
    "SamplingParams",
    "SelectedNodes",
    "SpeculativeVerifier",
    "Status",
    "StepTimer",
    "SuffixDrafter",
    "SuffixIndex",
    "TextCredit",
    "Synthetic",
    "Threshold",
    "TokenCounts",
    "TreeBitmask",
    "Typical",
    "Verdict",
    "Verified",
    "Warmup",
    "advance_matchers",
    "commit_kv",
    "commit_state",
    "custom_generate",
    "draft_token",
    "edit_logits_",
    "explain",
    "explain_model",
    "fill_sglang",
    "fill_tensorrt_llm",
    "forced_draft",
    "generate",
    "grow_tree",
    "ngram_draft",
    "ngram_tree",
    "prometheus_text",
    "replay_conv",
    "replay_gated_delta",
    "replay_mamba2",
    "sample",
    "sample_children",
    "seeds_from_generators",
    "tree_attention",
    "tree_bitmask",
    "verify",
    "warmup",
]


def __dir__() -> list[str]:
    """The public names. Submodules can still be imported by their names."""
    return sorted(__all__)
