"""Decoding loops around causal language models of the transformers library."""
