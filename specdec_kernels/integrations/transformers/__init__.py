"""Decoding loops around causal language models of the transformers library."""

from .probe import Verdict, explain_model

__all__ = ["Verdict", "explain_model"]
