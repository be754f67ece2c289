# SPDX-License-Identifier: Apache-2.0
"""The gate: one command that proves and times every kernel on a GPU. See docs/gpu.md."""
