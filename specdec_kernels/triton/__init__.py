# SPDX-License-Identifier: Apache-2.0
"""The Triton backend: operators as GPU kernels, for whatever device Triton's active driver serves."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from triton.runtime import driver

from .acceptance import count_accepted  # noqa: F401
from .attention import tree_attention  # noqa: F401
from .budget import select_nodes, update_budget  # noqa: F401
from .chains import enter_chains  # noqa: F401
from .children import sample_children  # noqa: F401
from .commit import commit_kv  # noqa: F401
from .counts import count_tokens  # noqa: F401
from .dispatch import INTERPRETED
from .dynamic_trees import begin_dynamic_trees, end_dynamic_trees  # noqa: F401
from .edits import edit_logits  # noqa: F401
from .layouts import enter_path  # noqa: F401
from .links import enter_links  # noqa: F401
from .ngram import ngram_draft  # noqa: F401
from .ngram_tree import ngram_tree  # noqa: F401
from .sampling import sample  # noqa: F401
from .state import commit_state, replay_conv, replay_gated_delta, replay_mamba2  # noqa: F401
from .verification import verify  # noqa: F401


@lru_cache(maxsize=4)
def _served_by(active: Any) -> str:
    kind: str = active.get_active_torch_device().type
    return kind


def device_type() -> str:
    """The kind of device whose tensors it serves: that of Triton's active driver ("cuda" for CUDA and ROCm).

    Raises:
        RuntimeError: there is no such device here.
    """
    if INTERPRETED:
        return "cpu"
    try:
        return _served_by(driver.active)
    except RuntimeError as error:
        raise RuntimeError(f"triton finds no device here ({error})") from None


def describe() -> str:
    """One line about this backend here."""
    if INTERPRETED:
        return "the Triton interpreter, on cpu tensors"
    try:
        device_type()
    except RuntimeError as error:
        return str(error)
    target = driver.active.get_current_target()
    return f"Triton kernels for {target.backend} {target.arch}"
