"""Decoding loops around other libraries' models."""
