# SPDX-License-Identifier: Apache-2.0
"""Drafting: prompt lookup, children sampled from a drafter's laws, growing trees, and how much to draft."""

from .acceptance import AcceptanceStats
from .batch_budget import BatchBudget, SelectedNodes
from .budget import Budget, Calibration
from .children import Children, draft_token, sample_children
from .costs import CostCurve, StepTimer
from .grow import Frontier, GrownTree, grow_tree
from .ngram import NgramTree, ngram_draft, ngram_tree
from .suffix import SuffixDrafter, SuffixIndex
from .text_credit import TextCredit

__all__ = [
    "AcceptanceStats",
    "BatchBudget",
    "Budget",
    "Calibration",
    "Children",
    "CostCurve",
    "Frontier",
    "GrownTree",
    "NgramTree",
    "StepTimer",
    "SelectedNodes",
    "SuffixDrafter",
    "SuffixIndex",
    "TextCredit",
    "draft_token",
    "grow_tree",
    "ngram_draft",
    "ngram_tree",
    "sample_children",
]
