# SPDX-License-Identifier: Apache-2.0
"""Sets of prompts that are answered in order, so that drafts may come from earlier ones."""
