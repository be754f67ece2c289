# SPDX-License-Identifier: Apache-2.0
"""Loops around other libraries' models, and `verify` inside other engines."""
