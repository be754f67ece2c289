# SPDX-License-Identifier: Apache-2.0
"""Speculative decoding of a small language model on a paged cache: watched, timed and checked."""
