# SPDX-License-Identifier: Apache-2.0
"""Verification and sampling where each process of a `torch.distributed` group has some columns of the rows.

Numbers per row are exchanged, never rows. docs/sharding.md has the phases and what they cost.
"""

from .sampling import sample
from .shard import VocabShard
from .traffic import Traffic, traffic
from .verification import verify

__all__ = ["Traffic", "VocabShard", "sample", "traffic", "verify"]
