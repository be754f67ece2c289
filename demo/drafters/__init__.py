# SPDX-License-Identifier: Apache-2.0
"""What drafts trees for the engine."""
