# SPDX-License-Identifier: Apache-2.0
"""What each instruction means, as functions of numpy arrays. A file per family; `translate` finds the one."""

from . import bits, conversion, floating, integer, matrix, memory, movement, warp, warpgroup  # noqa: F401
from .step import ADDRESS, Step, translate

__all__ = ["ADDRESS", "Step", "translate"]
