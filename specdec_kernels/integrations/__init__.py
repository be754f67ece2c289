# SPDX-License-Identifier: Apache-2.0
"""Decoding loops around other libraries' models."""
