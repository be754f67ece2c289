# SPDX-License-Identifier: Apache-2.0
"""The backends that can serve tensors on `DEVICE` here, for tests of operators to run over."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch

from specdec_kernels._ops.backends import _native

NATIVE = _native()[0]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COPIED = DEVICE == "cpu" and os.environ.get("SPECDEC_TEST_DEVICE") == "copy"  # see device.py
BACKENDS = ["reference"]
if DEVICE == "cpu" and NATIVE is not None:
    BACKENDS.append("cpu")
if find_spec("triton") and find_spec("triton.knobs"):  # 3.4 or later, as the backend needs
    BACKENDS.append("triton")
QUICK = [backend for backend in BACKENDS if backend != "triton" or DEVICE != "cpu"]  # needs no emulator


def emulate_gpu() -> None:
    """Where there is no GPU, Triton's kernels run from their PTX on CPU tensors. They may touch any tensor
    that lives: caches are reached through a table of their addresses. SPECDEC_TEST_ARCH is what they are
    compiled for."""
    if DEVICE == "cpu" and "triton" in BACKENDS:
        import ptx_emulator
        from specdec_kernels.triton import dispatch

        ptx_emulator.activate(int(os.environ.get("SPECDEC_TEST_ARCH", 80)), reach="live")
        dispatch.Launch.checked = True
