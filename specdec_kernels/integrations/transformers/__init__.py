"""Decoding loops around causal language models of the transformers library."""

from .drafts import Drafts
from .generate import generate
from .probe import Verdict, explain_model
from .results import Generated

__all__ = ["Drafts", "Generated", "Verdict", "explain_model", "generate"]
