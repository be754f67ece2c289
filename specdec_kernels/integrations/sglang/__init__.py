# SPDX-License-Identifier: Apache-2.0
"""SGLang's verification step by `verify`: a plugin that does nothing unless SPECDEC_SGLANG=1.

SGLang finds `register` by the entry point group `sglang.srt.plugins`. It puts `EagleSample` in the place of
`sglang.srt.speculative.eagle_utils.eagle_sample`, through which the EAGLE, MTP, standalone and ngram workers
verify. Names, shapes and meanings are those of SGLang 0.5.22 (2026-10-15) and 0.5.23 (2026-10-30).
"""

from __future__ import annotations

import inspect
import logging
import os
from types import SimpleNamespace
from typing import NamedTuple

from .sample import EagleSample

logger = logging.getLogger(__name__)

SWITCH = "SPECDEC_SGLANG"
TARGET = "sglang.srt.speculative.eagle_utils.eagle_sample"
PARAMETERS = (
    "verify_input",
    "batch",
    "logits_output",
    "grammar_mask",
    "uno_target_max_top_k",
    "watermark_state",
    "watermark_full_mask",
)


class Statistics(NamedTuple):
    """What the verifier of this process did, in steps of whole batches."""

    served: int
    fallbacks: dict[str, int]
    """Steps that SGLang's own function verified, by reason."""


def register() -> None:
    """Put `verify` in the place of SGLang's verification if the environment has SPECDEC_SGLANG=1.

    SGLang calls this once in every process, before it applies hooks. Without the variable nothing is
    imported and nothing is changed. If SGLang is not as it is known here, a warning is logged and SGLang
    keeps its own function.
    """
    global _active
    switch = os.environ.get(SWITCH, "0")
    if switch != "1":  # nothing that was asked for is ignored without a word
        if switch not in ("", "0"):
            logger.warning("%s must be 0 or 1, got %r: SGLang keeps its own verification", SWITCH, switch)
        return
    try:
        from sglang.srt.plugins.hook_registry import HookRegistry, HookType
        from sglang.srt.speculative.eagle_utils import eagle_sample

        engine = _engine()
    except ImportError as error:
        logger.warning("SGLang keeps its own verification, since it lacks what is known of it: %s", error)
        return
    parameters = tuple(inspect.signature(eagle_sample).parameters)
    if parameters != PARAMETERS:
        logger.warning(
            "SGLang keeps its own verification, since eagle_sample must have the parameters %s, got %s",
            ", ".join(PARAMETERS),
            ", ".join(parameters),
        )
        return
    _active = EagleSample(eagle_sample, engine)
    HookRegistry.register(TARGET, _active, HookType.REPLACE)


def statistics() -> Statistics | None:
    """What the plugin did in this process so far; None where it is not active."""
    return None if _active is None else Statistics(_active.served, dict(_active.fallbacks))


_active: EagleSample | None = None


def _engine() -> SimpleNamespace:
    """What is used of SGLang besides the function itself."""
    from sglang.srt.layers.dp_attention import is_dp_attention_enabled
    from sglang.srt.runtime_context import get_parallel, get_spec
    from sglang.srt.speculative.spec_utils import SIMULATE_ACC_LEN
    from sglang.srt.utils.async_probe import sanitize_nan_logits

    return SimpleNamespace(
        is_dp_attention_enabled=is_dp_attention_enabled,
        get_parallel=get_parallel,
        get_spec=get_spec,
        simulates=SIMULATE_ACC_LEN > 0,
        sanitize_nan_logits=sanitize_nan_logits,
    )
