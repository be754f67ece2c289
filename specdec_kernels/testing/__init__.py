# SPDX-License-Identifier: Apache-2.0
"""The referee: whether anyone's verifier, or a whole loop, is lossless. See docs/referee.md."""

from .cases import Case
from .referee import NotLossless, Verdict, assert_lossless, check_lossless
from .statistics import Finding

__all__ = ["Case", "Finding", "NotLossless", "Verdict", "assert_lossless", "check_lossless"]
