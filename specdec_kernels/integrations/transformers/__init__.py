# SPDX-License-Identifier: Apache-2.0
"""Decoding loops around causal language models of the transformers library."""

from .custom import custom_generate
from .drafters import AssistantDrafter
from .drafts import Drafts
from .generate import generate
from .probe import Verdict, explain_model
from .results import Generated

__all__ = [
    "AssistantDrafter",
    "Drafts",
    "Generated",
    "Verdict",
    "custom_generate",
    "explain_model",
    "generate",
]
