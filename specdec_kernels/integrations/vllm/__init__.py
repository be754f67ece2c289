# SPDX-License-Identifier: Apache-2.0
"""Verification inside vLLM: a plugin of the group `vllm.general_plugins`, active where SPECDEC_VLLM=1."""

from __future__ import annotations

import os

from .serving import logger, steps

__all__ = ["register", "steps"]


def register() -> None:
    """Put `verify` in place of vLLM's rejection samplers in this process; without SPECDEC_VLLM=1 do nothing.

    vLLM calls this in each of its processes, some more than once.
    """
    switch = os.environ.get("SPECDEC_VLLM", "0")
    if switch != "1":  # nothing that was asked for is ignored without a word
        if switch not in ("", "0"):
            logger.warning("SPECDEC_VLLM must be 0 or 1, got %r: vLLM keeps its own verification", switch)
        return
    from . import runner1, runner2

    runner1.install()
    runner2.install()
