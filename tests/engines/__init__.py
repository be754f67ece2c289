# SPDX-License-Identifier: Apache-2.0
"""Real engines with this package in them: optional make targets, whose results stand in pages of docs/."""
